//! `nats-bridge weight`.

use clap::Args;

use super::request::Asked;
use super::{Control, Failure, request};
use crate::control_api::Weight;

/// Arguments of `weight`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nats-bridge weight 5 --reason 'first canary'\n\nMore weight is refused while `nats-bridge gate` says no, and 100 % until `nats-bridge rollback rehearse` has passed."
)]
pub struct WeightArgs {
    /// JetStream's share in percent, 0 to 100; two decimals.
    #[arg(value_parser = percent)]
    pub percent: f64,
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// Raise it although the gate says no. The sidecar logs it, with the gate's reasons.
    #[arg(long)]
    pub force: bool,
    /// Go to 100 % although no rehearsed rollback has passed. The log says so.
    #[arg(long)]
    pub unrehearsed: bool,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Changes the weight and waits until the change is in force.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: WeightArgs) -> Result<(), Failure> {
    let asked =
        Asked { reason: &args.reason, percent: Some(args.percent), force: args.force, unrehearsed: args.unrehearsed };
    request::change(&args.control, "/weight", asked).await
}

pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    let weight = number.and_then(Weight::from_percent);
    weight.map(Weight::percent).ok_or_else(|| "a number from 0 to 100 with at most two decimals is needed".to_owned())
}
