//! `nats-bridge rollback`, and its rehearsal.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::request::Asked;
use super::{Control, Failure, request};
use crate::control_api::{Rehearsal, RehearsedQueue};

/// Arguments of `rollback`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Example:\n  nats-bridge rollback --reason 'change 1234'\n  nats-bridge rollback rehearse --stay 30s    # there and back again, measured"
)]
pub struct RollbackArgs {
    /// What else.
    #[command(subcommand)]
    pub verb: Option<RollbackVerb>,
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// The verbs of `rollback`.
#[derive(Debug, Subcommand)]
pub enum RollbackVerb {
    /// Roll back and go up to the same weight again, measured. 100 % is refused until that has passed.
    Rehearse(RehearseArgs),
}

/// Arguments of `rollback rehearse`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nats-bridge rollback rehearse --stay 30s --reason 'before 100 %'\n\nIt passes when publishes were confirmed meanwhile, none was lost, no message of JetStream's was corrupted, dropped, reordered or duplicated, no comparison\ndiffered, and no hold was lifted because its time was over. The verdict is kept; `observe` and a rollback that the sidecar makes by itself end it.\n\nExit codes: 0 passed; 1 refused, or not passed; 2 no sidecar answers."
)]
pub struct RehearseArgs {
    /// How long RabbitMQ keeps everything.
    #[arg(long, value_parser = super::duration, default_value = "5s", value_name = "TIME")]
    pub stay: Duration,
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// How often the sidecar is asked how far it is.
const EVERY: Duration = Duration::from_millis(200);

/// Gives all traffic back to RabbitMQ. Returns once the change is in force.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: RollbackArgs) -> Result<(), Failure> {
    match args.verb {
        Some(RollbackVerb::Rehearse(args)) => rehearse(args).await,
        None => {
            let asked = Asked { reason: &args.reason, ..Asked::default() };
            request::change(&args.control, "/rollback", asked).await
        }
    }
}

async fn rehearse(args: RehearseArgs) -> Result<(), Failure> {
    let RehearseArgs { stay, reason, control } = &args;
    #[derive(Serialize)]
    struct Body<'a> {
        stay_s: u64,
        by: &'a str,
        reason: &'a str,
    }
    let by = request::by(control);
    let body = Body { stay_s: stay.as_secs(), by: &by, reason };
    let mut rehearsal: Rehearsal = request::begin(control, "/rehearse", &body).await?;
    while rehearsal.running {
        tokio::time::sleep(EVERY).await;
        rehearsal = request::later(control, "/rehearse").await?;
    }
    match control.json {
        true => request::print_json(&rehearsal)?,
        false => request::print(&text(&rehearsal)),
    }
    if rehearsal.passed { Ok(()) } else { Err(Failure::refused(rehearsal.verdict())) }
}

fn text(rehearsal: &Rehearsal) -> String {
    let Rehearsal { weight_percent, epoch, down_ms, up_ms, settled_ms, .. } = rehearsal;
    let Rehearsal { confirmed, failed, faults, differences, compared, holds_timed_out, connections, .. } = rehearsal;
    let mut out = String::new();
    let _ = writeln!(out, "way:         {weight_percent} % to 0 and up again, epoch {epoch}");
    let _ = writeln!(out, "in force:    down after {down_ms} ms, up after {up_ms} ms");
    let _ = writeln!(out, "settled:     after {} ms, {} ms", settled_ms[0], settled_ms[1]);
    let _ = writeln!(out, "publishes:   {confirmed} confirmed, {failed} lost");
    let _ = writeln!(
        out,
        "messages:    {faults} corrupted, dropped, reordered or duplicated; {holds_timed_out} holds timed out"
    );
    let _ = writeln!(
        out,
        "comparison:  {} compared and {} differed before, {} and {} meanwhile",
        compared[0], differences[0], compared[1], differences[1]
    );
    let _ = writeln!(out, "connections: {} before, {} after", connections[0], connections[1]);
    if !rehearsal.queues.is_empty() {
        let _ = writeln!(out, "\n{:<36}  {:>9}  {:>9}  {:>9}", "queue that had to wait", "down ms", "up ms", "held");
        for RehearsedQueue { vhost, name, paused_ms, held } in &rehearsal.queues {
            let name = format!("{vhost} {name}");
            let _ = writeln!(out, "{name:<36}  {:>9}  {:>9}  {held:>9}", paused_ms[0], paused_ms[1]);
        }
        out.push('\n');
    }
    let _ = writeln!(out, "verdict:     {}", rehearsal.verdict());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsal_tells_its_figures_and_its_verdict() {
        let queue = RehearsedQueue { vhost: "/".into(), name: "orders".into(), paused_ms: [12, 7], held: 3 };
        let passed = Rehearsal { passed: true, confirmed: 9, queues: vec![queue], ..Rehearsal::default() };
        let text = text(&passed);
        assert!(text.lines().any(|line| line.split_whitespace().eq(["/", "orders", "12", "7", "3"])), "{text}");
        assert!(text.contains("longest pause of a queue 12 ms, 9 publishes confirmed, none lost"), "{text}");
        let not = Rehearsal { problems: vec!["no data".into()], ..Rehearsal::default() };
        assert!(super::text(&not).ends_with("verdict:     NOT PASSED: no data\n"));
        let void = Rehearsal { void: Some("observe".into()), ..passed };
        assert!(!void.counts() && void.verdict() == "counts no more: observe");
    }
}
