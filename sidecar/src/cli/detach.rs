//! `nats-bridge detach`.

use clap::Args;

use super::request::Asked;
use super::{Control, Failure, request};

/// Arguments of `detach`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge detach --reason 'change 1234'")]
pub struct DetachArgs {
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Lets go of RabbitMQ. Returns once the change is in force.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: DetachArgs) -> Result<(), Failure> {
    let asked = Asked { reason: &args.reason, ..Asked::default() };
    request::change(&args.control, "/detach", asked).await
}
