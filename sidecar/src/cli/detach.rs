//! `nats-bridge detach`.

use clap::Args;

use super::{Control, Failure};

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
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

/// Enters the native phase.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: DetachArgs) -> Result<(), Failure> {
    Err(Failure::cannot_run(format!("detach {args:?}: not built yet")))
}
