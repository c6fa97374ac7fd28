//! `nats-bridge verify`: whether JetStream has what RabbitMQ has. Changes nothing, and may run beside a sidecar.

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;

use super::native::{Native, close};
use super::source::Move;
use super::{Failure, request, topology};
use crate::plan::{Difference, LeftOut, Wanted, compare};

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nats-bridge verify --rabbit-management http://USER:PASSWORD@rabbit:15672 --nats nats://nats:4222

Exit codes: 0 JetStream has all of it and nothing else, 1 something is missing, differs or is refused, 2 it could not be compared.")]
pub struct VerifyArgs {
    /// What moves, and how.
    #[command(flatten)]
    pub moves: Move,
    /// Which NATS.
    #[command(flatten)]
    pub native: Native,
}

/// Compares, prints, and ends with "no" when something differs.
///
/// # Errors
/// `refused` when something differs; `cannot_run`, naming the flag at fault.
pub async fn run(args: VerifyArgs) -> Result<(), Failure> {
    let input = args.moves.read().await?;
    let settings = args.moves.settings();
    let wanted = Wanted::of(&input.inventory, settings);
    let vhosts: Vec<String> = input.inventory.vhosts.keys().cloned().collect();
    let bridge = args.native.connect().await?;
    let found = topology::look(&bridge, &vhosts).await;
    let (all, reduced) = topology::fitted(wanted.all(), settings, &bridge);
    close(&bridge).await;
    let differences = compare(&all, &found?);
    let refused: Vec<&LeftOut> = wanted.left_out.iter().filter(|left| left.is_refused).collect();
    if args.native.json {
        request::print_json(&json!({
            "same": differences.is_empty() && refused.is_empty(),
            "compared": all.len(),
            "with_fewer_replicas": reduced,
            "differences": differences.iter().map(Difference::json).collect::<Vec<_>>(),
            "refused": refused.iter().map(|left| {
                let mut document = left.key.json();
                document["why"] = json!(left.why);
                document
            }).collect::<Vec<_>>(),
        }))?;
    } else {
        let mut text = String::new();
        for difference in &differences {
            let _ = writeln!(text, "{difference}");
        }
        for left in &refused {
            let _ = writeln!(text, "refused  {}: {}", left.key, left.why);
        }
        if reduced > 0 {
            let _ = writeln!(text, "{}", topology::on_one(reduced, settings));
        }
        let _ = writeln!(text, "{} exchanges, queues, bindings and policies compared", all.len());
        request::print(&text);
    }
    match differences.len() + refused.len() {
        0 => Ok(()),
        1 => Err(Failure::refused("JetStream does not have what RabbitMQ has: 1 difference")),
        count => Err(Failure::refused(format!("JetStream does not have what RabbitMQ has: {count} differences"))),
    }
}
