//! `nats-bridge plan`: what `apply` would declare on JetStream, as a file to review. Changes nothing anywhere.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::source::{Input, Move};
use super::{Failure, request};
use crate::plan::{Plan, Wanted};

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nats-bridge plan --rabbit-management http://USER:PASSWORD@rabbit:15672 --out plan.json
  nats-bridge apply plan.json --rabbit-management http://USER:PASSWORD@rabbit:15672 --nats nats://nats:4222 --execute

Exit codes: 0 everything maps, 1 something would be refused and is left out, 2 it could not be planned.")]
pub struct PlanArgs {
    /// What moves, and how.
    #[command(flatten)]
    pub moves: Move,
    /// Where to write the plan. Without it nothing is written.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print the plan itself instead of a summary.
    #[arg(long)]
    pub json: bool,
}

/// Plans, writes and prints.
///
/// # Errors
/// `refused` when something is left out that would be refused; `cannot_run`, naming the flag at fault.
pub async fn run(args: PlanArgs) -> Result<(), Failure> {
    let input = args.moves.read().await?;
    let settings = args.moves.settings();
    let wanted = Wanted::of(&input.inventory, settings);
    let plan = Plan::new(&wanted, input.inventory.vhosts.keys().cloned().collect(), settings);
    let origin = json!({ "rabbitmq": input.inventory.version, "source": input.source });
    let document = plan.json(&origin, &wanted.left_out);
    if let Some(path) = &args.out {
        write(path, &document)?;
    }
    match args.json {
        true => request::print_json(&document)?,
        false => request::print(&shown(&input, &wanted, &plan, args.out.as_deref())),
    }
    match wanted.refused() {
        0 => Ok(()),
        1 => Err(Failure::refused("1 thing would be refused and is left out; `assess` says what to do about it")),
        count => Err(Failure::refused(format!(
            "{count} things would be refused and are left out; `assess` says what to do about them"
        ))),
    }
}

fn write(path: &Path, document: &Value) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::cannot_run(format!("--out {}: {why}", path.display()));
    let mut text = serde_json::to_string_pretty(document).map_err(|error| failed(&error))?;
    text.push('\n');
    std::fs::write(path, text).map_err(|error| failed(&error))
}

fn shown(input: &Input, wanted: &Wanted, plan: &Plan, out: Option<&Path>) -> String {
    let mut text =
        format!("RabbitMQ {} in {}, for `{}`\n", input.inventory.version, input.source, plan.settings.way.name());
    let totals = plan.totals();
    let _ = writeln!(
        text,
        "declares: {} exchanges, {} queues, {} bindings, {} policies, in vhosts {}",
        totals["exchanges"],
        totals["queues"],
        totals["bindings"],
        totals["policies"],
        plan.vhosts.join(", ")
    );
    let _ = writeln!(
        text,
        "makes:    {} streams, {} consumers; {} copies of streams on all servers together",
        totals["streams"], totals["consumers"], totals["stream_copies"]
    );
    for key in wanted.by_applications.keys() {
        let _ = writeln!(text, "left to its application: {key}: RabbitMQ does not tell the width of its numbers");
    }
    for left in wanted.left_out.iter().filter(|left| !left.is_refused) {
        let _ = writeln!(text, "left out: {}: {}", left.key, left.why);
    }
    for left in wanted.left_out.iter().filter(|left| left.is_refused) {
        let _ = writeln!(text, "REFUSED:  {}: {}", left.key, left.why);
    }
    let _ = writeln!(text, "digest: {}", plan.digest);
    let next = match out {
        Some(path) => format!(
            "review {0}, then: nats-bridge apply {0} --nats nats://NATS:4222 and the --definitions or --rabbit-management of this plan",
            path.display()
        ),
        None => "nothing was written: give --out FILE".to_owned(),
    };
    let _ = writeln!(text, "next: {next}");
    text
}
