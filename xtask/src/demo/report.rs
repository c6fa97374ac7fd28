//! The end of the demo: the ledger and the steps, as text or as one JSON object.

use std::time::Duration;

use serde::Serialize;

use super::sidecar::Parity;
use super::timeline::{Row, milliseconds};
use super::verdict::{Promise, Verdict};

/// Everything that is reported.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The seed that repeats this run's messages and kills.
    pub seed: u64,
    /// Whether everything that was promised holds.
    pub right: bool,
    /// What does not hold, in words.
    pub wrong: Vec<String>,
    /// The counts from the applications' files.
    pub ledger: Verdict,
    /// What was killed with `kill -9`, and when.
    pub kills: Vec<String>,
    /// The steps.
    pub steps: Vec<StepReport>,
    /// What the sidecar compared in `shadow`; counts of a sidecar that was killed are gone with it.
    pub parity: Option<Parity>,
    /// From the first server's start to the last one's end, in seconds.
    pub seconds: f64,
    /// What had to hold.
    pub promise: Promise,
}

/// One step: what the applications saw, and which side the sidecar says it gave the messages to.
#[derive(Debug, Serialize)]
pub struct StepReport {
    /// What the applications saw.
    #[serde(flatten)]
    pub row: Row,
    /// Share of RabbitMQ in per cent, as the sidecar counts; absent without a sidecar.
    pub rabbit_percent: Option<f64>,
    /// Share of JetStream in per cent, as the sidecar counts; absent without a sidecar.
    pub nats_percent: Option<f64>,
    /// How long the change took that began the step, in milliseconds.
    pub change_ms: f64,
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |words: String| {
            text.push_str(words.trim_end());
            text.push('\n');
        };
        line(format!(
            "\n{:<18} {:>8} {:>8} {:>7} {:>10} {:>10} {:>12} {:>11}",
            "step", "messages", "rabbit", "nats", "p50 ms", "p99 ms", "pause ms", "change ms"
        ));
        for StepReport { row, rabbit_percent, nats_percent, change_ms } in &self.steps {
            let percent = |share: &Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.0} %"));
            line(format!(
                "{:<18} {:>8} {:>8} {:>7} {:>10.1} {:>10.1} {:>12.1} {:>11.0}",
                row.step,
                row.messages,
                percent(rabbit_percent),
                percent(nats_percent),
                row.p50_ms,
                row.p99_ms,
                row.longest_pause_ms,
                change_ms
            ));
        }
        line("(latency from publish to delivery; pause: longest time without a delivery on one queue; shares as the sidecar counts them)".to_owned());
        if let Some(Parity { matched, differing, unverified }) = self.parity {
            line(format!(
                "(shadow, as the sidecar compared it: {matched} match, {differing} differ, {unverified} unverified)"
            ));
        }
        let ledger = &self.ledger;
        line("\nledger, from the applications' own files".to_owned());
        let mut count = |name: &str, count: u64, note: String| line(format!("  {name:<22} {count:>9}  {note}"));
        count("published", ledger.published, String::new());
        count("confirmed", ledger.confirmed, String::new());
        count("delivered", ledger.delivered, format!("of {} expected", ledger.expected));
        count("lost", ledger.lost, String::new());
        count("duplicated", ledger.duplicated, String::new());
        if self.promise == Promise::SurvivesKills || ledger.again_flagged + ledger.again_resent > 0 {
            count("again, flagged", ledger.again_flagged, "delivered again and said so (redelivered)".to_owned());
            count(
                "again, resent",
                ledger.again_resent,
                format!("of {} messages that their producer sent again", ledger.resent),
            );
        }
        count("reordered", ledger.reordered, String::new());
        count("altered or misrouted", ledger.altered + ledger.misrouted, String::new());
        count("connections dropped", ledger.connections_dropped, String::new());
        if let Some(pause) = &ledger.longest_pause {
            line(format!("  {:<22} {:>9.0}  ms, on {}", "longest pause", milliseconds(pause.ns), pause.queue));
        }
        if let Some(slowest) = &ledger.slowest {
            line(format!("  {:<22} {:>9.0}  ms, on {}", "slowest message", milliseconds(slowest.ns), slowest.queue));
        }
        for kill in &self.kills {
            line(format!("  kill -9: {kill}"));
        }
        line(String::new());
        if self.right {
            line(format!("right: nothing was lost ({:.0} s, seed {})", self.seconds, self.seed));
        } else {
            for wrong in &self.wrong {
                line(format!("wrong: {wrong}"));
            }
            for sample in &ledger.samples {
                line(format!("  {sample}"));
            }
            line(format!("run it again with --seed {}", self.seed));
        }
        text
    }
}

/// A duration in milliseconds.
pub fn in_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
