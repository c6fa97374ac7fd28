//! `nats-bridge shadow`.

use clap::Args;

use super::request::Asked;
use super::{Control, Failure, request};

/// Arguments of `shadow`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge shadow --reason 'change 1234'")]
pub struct ShadowArgs {
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Has all traffic copied to JetStream and compared, while RabbitMQ stays the owner. Returns once the change is in force.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: ShadowArgs) -> Result<(), Failure> {
    let asked = Asked { reason: &args.reason, ..Asked::default() };
    request::change(&args.control, "/shadow", asked).await
}
