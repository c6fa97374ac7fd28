//! `nats-bridge shadow`.

use clap::Args;

use super::{Control, Failure};

/// Arguments of `shadow`.
#[derive(Debug, Args)]
pub struct ShadowArgs {
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Enters the shadow phase.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: ShadowArgs) -> Result<(), Failure> {
    Err(Failure::cannot_run(format!("shadow {args:?}: not built yet")))
}
