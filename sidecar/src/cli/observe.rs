//! `nats-bridge observe`.

use clap::Args;

use super::{Control, Failure};

/// Arguments of `observe`.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Returns to the observe phase.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: ObserveArgs) -> Result<(), Failure> {
    Err(Failure::cannot_run(format!("observe {args:?}: not built yet")))
}
