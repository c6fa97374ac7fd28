//! `nats-bridge rollback`.

use clap::Args;

use super::{Control, Failure};

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Sets the weight to 0.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: RollbackArgs) -> Result<(), Failure> {
    Err(Failure::cannot_run(format!("rollback {args:?}: not built yet")))
}
