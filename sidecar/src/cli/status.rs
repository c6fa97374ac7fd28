//! `nats-bridge status`.

use clap::Args;

use super::{Control, Failure};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print again every so many seconds until interrupted.
    #[arg(long, value_name = "SECONDS")]
    pub watch: Option<u64>,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Prints a sidecar's status.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: StatusArgs) -> Result<(), Failure> {
    Err(Failure::cannot_run(format!("status {args:?}: not built yet")))
}
