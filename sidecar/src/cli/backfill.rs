//! `nats-bridge backfill`.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Control, Failure, request};
use crate::control_api::{BackfillQueue, BackfillReport, BackfillState};

/// Arguments of `backfill`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nats-bridge backfill --dry-run                   # what lies there, and which queues are left alone\n  nats-bridge backfill --queue 'orders*' --reason 'before the canary'\n\nThe consumers of a queue get nothing from RabbitMQ while it is read. What is read stays in its place, and is then delivered as redelivered.\nSafe to repeat: what has a copy gets no second one.\n\nExit codes: 0 every message has a copy, or looked at; 1 refused, or messages are left without; 2 no sidecar answers, or it stopped."
)]
pub struct BackfillArgs {
    /// Queues with such a name only; `*` stands for any text. May be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub queue: Vec<String>,
    /// Only print what it would do.
    #[arg(long)]
    pub dry_run: bool,
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// How often the sidecar is asked how far it is.
const EVERY: Duration = Duration::from_millis(200);

/// Has the copies made, and waits until they are.
///
/// # Errors
/// `refused` when the sidecar says no, or messages are left without a copy; `cannot_run` when it cannot be reached, or stopped.
pub async fn run(args: BackfillArgs) -> Result<(), Failure> {
    let BackfillArgs { queue, dry_run, reason, control } = &args;
    #[derive(Serialize)]
    struct Body<'a> {
        queues: &'a [String],
        dry_run: bool,
        by: &'a str,
        reason: &'a str,
    }
    let by = request::by(control);
    let body = Body { queues: queue, dry_run: *dry_run, by: &by, reason };
    let mut report: BackfillReport = request::begin(control, "/backfill", &body).await?;
    let bar = request::bar(control.json, "copying");
    while report.running {
        let progress = report.progress();
        bar.set_length(progress.held);
        bar.set_position(progress.read);
        tokio::time::sleep(EVERY).await;
        report = request::later(control, "/backfill").await?;
    }
    bar.finish_and_clear();
    match control.json {
        true => request::print_json(&report)?,
        false => request::print(&text(&report)),
    }
    match (&report.error, report.dry_run, report.left()) {
        (Some(error), _, _) => Err(Failure::cannot_run(format!("it stopped: {error}"))),
        (None, false, left) if left > 0 => Err(Failure::refused(format!("{left} messages have no copy"))),
        _ => Ok(()),
    }
}

fn text(report: &BackfillReport) -> String {
    let mut out = String::new();
    if report.unmapped > 0 {
        let unmapped = report.unmapped;
        let _ = writeln!(
            out,
            "unmapped: {unmapped} exchanges, queues or bindings that nats does not have (`status`): of what they hold there are no copies"
        );
    }
    let _ = writeln!(
        out,
        "{:<36}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  state",
        "queue", "held", "read", "copied", "had one", "paused ms"
    );
    for queue in &report.queues {
        let BackfillQueue { vhost, name, held, read, copied, had, paused_ms, .. } = queue;
        let name = format!("{vhost} {name}");
        let _ = writeln!(
            out,
            "{name:<36}  {held:>9}  {read:>9}  {copied:>9}  {had:>9}  {paused_ms:>9}  {}",
            state(report, queue)
        );
    }
    let _ = match report.dry_run {
        true => writeln!(out, "nothing was changed; without --dry-run it is done"),
        false => writeln!(out, "{} copied, {} left without a copy", report.progress().copied, report.left()),
    };
    out
}

fn state(report: &BackfillReport, queue: &BackfillQueue) -> String {
    if let Some(refused) = &queue.refused {
        return format!("left alone: {}; {}", refused.reason, refused.fix);
    }
    let carried = match queue.not_carried {
        0 => String::new(),
        some => format!(", {some} are larger than nats takes"),
    };
    let state = match queue.state {
        BackfillState::Waiting if report.dry_run => "would be read",
        BackfillState::Waiting => "not begun",
        BackfillState::Reading => "reading",
        BackfillState::Done => "done",
        BackfillState::Refused => "left alone",
        BackfillState::Stopped => "stopped",
    };
    format!("{state}{carried}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_api::{BackfillCode, BackfillRefused};

    #[test]
    fn a_queue_that_was_left_alone_says_why_and_what_to_do() {
        let refused = BackfillRefused { code: BackfillCode::InHand, reason: "3 in hand".into(), fix: "wait".into() };
        let queue = BackfillQueue {
            vhost: "/".into(),
            name: "orders".into(),
            state: BackfillState::Refused,
            held: 5,
            refused: Some(refused),
            ..BackfillQueue::default()
        };
        let report = BackfillReport { queues: vec![queue], done: true, ..BackfillReport::default() };
        let text = text(&report);
        assert!(
            text.contains("left alone: 3 in hand; wait") && text.ends_with("0 copied, 5 left without a copy\n"),
            "{text}"
        );
    }
}
