//! `nats-bridge weight`.

use clap::Args;

use super::{Control, Failure};

/// Arguments of `weight`.
#[derive(Debug, Args)]
pub struct WeightArgs {
    /// JetStream's share in percent, 0 to 100; two decimals.
    pub percent: f64,
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// Go on although the parity checks say no.
    #[arg(long)]
    pub force: bool,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Changes the weight and waits until the change is in force.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: WeightArgs) -> Result<(), Failure> {
    Err(Failure::cannot_run(format!("weight {args:?}: not built yet")))
}
