//! `nats-bridge log`.

use std::fmt::Write as _;

use clap::Args;

use super::{Control, Failure, request};
use crate::control_api::LogEntry;

/// Arguments of `log`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nats-bridge log --last 20\n\nThe last 10 000 entries are kept in JetStream, over restarts; nobody can change or remove one.\n\nExit codes: 0 printed, 1 NATS does not answer, 2 no sidecar answers."
)]
pub struct LogArgs {
    /// How many entries, the newest.
    #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub last: u64,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Prints who changed what.
///
/// # Errors
/// `refused` when the log cannot be read, `cannot_run` when no sidecar answers.
pub async fn run(args: LogArgs) -> Result<(), Failure> {
    let entries: Vec<LogEntry> = request::get(&args.control, &format!("/log?last={}", args.last)).await?;
    if args.control.json {
        return request::print_json(&entries);
    }
    request::print(&text(&entries));
    Ok(())
}

fn text(entries: &[LogEntry]) -> String {
    let mut out = String::new();
    for entry in entries.iter().rev() {
        let LogEntry { at, what, outcome, by, from, reason, phase, weight_percent, epoch, detail, .. } = entry;
        let mut flags = String::new();
        for (set, flag) in [(entry.forced, " FORCED"), (entry.automatic, " BY ITSELF")] {
            flags.push_str(if set { flag } else { "" });
        }
        let from = if from.is_empty() { String::new() } else { format!(" from {from}") };
        let why = [reason, detail].map(String::as_str).into_iter().filter(|text| !text.is_empty());
        let why = why.collect::<Vec<_>>().join("; ");
        let outcome = outcome.word();
        let _ =
            write!(out, "{at}  {what}: {outcome}{flags}, by {by}{from} -> {phase}, {weight_percent} %, epoch {epoch}");
        let _ = if why.is_empty() { writeln!(out) } else { writeln!(out, " ({why})") };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_api::{Outcome, Phase, Weight};

    #[test]
    fn an_entry_is_a_line_that_says_who_did_what_and_why() {
        let entry = LogEntry {
            number: 1,
            at: "2030-01-02T03:04:05Z".into(),
            what: "weight 5".into(),
            outcome: Outcome::Done,
            by: "ann".into(),
            from: "127.0.0.1:5".into(),
            reason: "try".into(),
            host: "h".into(),
            phase: Phase::Canary,
            weight_percent: Weight::from_percent(5.0).expect("a weight"),
            epoch: 3,
            forced: true,
            automatic: false,
            detail: String::new(),
        };
        let line =
            "2030-01-02T03:04:05Z  weight 5: done FORCED, by ann from 127.0.0.1:5 -> canary, 5 %, epoch 3 (try)\n";
        assert_eq!(text(&[entry]), line);
    }
}
