//! A rollback that is rehearsed: to 0 and up again, measured.

use serde::{Deserialize, Serialize};

use super::Weight;

/// A rollback is to be rehearsed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rehearse {
    /// How long RabbitMQ keeps everything, in milliseconds.
    pub stay_ms: u64,
    /// Who asks.
    pub by: String,
    /// Why.
    pub reason: String,
    /// From where.
    pub from: String,
}

/// What a rehearsal measured, and its verdict.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Rehearsal {
    /// Whether it goes on.
    pub running: bool,
    /// Whether a rollback may be relied on.
    pub passed: bool,
    /// Why it has not passed.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Why it counts no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub void: Option<String>,
    /// Who asked for it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When it began, as RFC 3339 in UTC.
    pub at: String,
    /// The weight that it rolled back from, and went up to again.
    pub weight_percent: Weight,
    /// The epoch that it ended with.
    pub epoch: u64,
    /// Until everything was RabbitMQ's, in milliseconds.
    pub down_ms: u64,
    /// Until the weight was in force again, in milliseconds.
    pub up_ms: u64,
    /// Until everything older had come out of every queue, after the way down and the way up.
    pub settled_ms: [u64; 2],
    /// Publishes that were confirmed meanwhile.
    pub confirmed: u64,
    /// Publishes that were refused or lost meanwhile.
    pub failed: u64,
    /// Messages that JetStream corrupted, dropped, reordered or duplicated meanwhile.
    pub faults: u64,
    /// Messages that differed in the comparison: before, and meanwhile.
    pub differences: [u64; 2],
    /// Messages that were compared: before, and meanwhile.
    pub compared: [u64; 2],
    /// Holds that were lifted because their time was over, meanwhile.
    pub holds_timed_out: u64,
    /// Connections: before and after.
    pub connections: [u64; 2],
    /// By queue, those that had to wait.
    pub queues: Vec<RehearsedQueue>,
}

/// A queue in a rehearsal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RehearsedQueue {
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// How long deliveries waited for its fence, in milliseconds, on the way down and on the way up; a pause of those keys.
    pub paused_ms: [u64; 2],
    /// The most deliveries that waited.
    pub held: u64,
}

impl Rehearsal {
    /// Whether more weight may rest on it.
    pub fn counts(&self) -> bool {
        self.passed && self.void.is_none()
    }

    /// The longest pause of a queue, in milliseconds.
    pub fn longest_ms(&self) -> u64 {
        self.queues.iter().flat_map(|queue| queue.paused_ms).max().unwrap_or(0)
    }

    /// Its verdict, for people.
    pub fn verdict(&self) -> String {
        let Rehearsal { weight_percent, down_ms, up_ms, confirmed, .. } = self;
        match (&self.void, self.running, self.passed) {
            (Some(void), _, _) => format!("counts no more: {void}"),
            (None, true, _) => "running".to_owned(),
            (None, false, true) => format!(
                "passed at {weight_percent} %: down in {down_ms} ms, up in {up_ms} ms, longest pause of a queue {} ms, {confirmed} publishes confirmed, none lost",
                self.longest_ms()
            ),
            (None, false, false) => format!("NOT PASSED: {}", self.problems.join("; ")),
        }
    }
}
