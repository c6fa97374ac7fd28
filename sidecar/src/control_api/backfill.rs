//! What an operator asks of a backfill, and is told.

use serde::{Deserialize, Serialize};

/// Copies are to be made of what lay in RabbitMQ's queues before there were any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Backfill {
    /// Patterns of queue names, `*` for any text; none: all queues.
    pub queues: Vec<String>,
    /// Only tell what it would do.
    pub dry_run: bool,
    /// Who asks.
    pub by: String,
    /// Why.
    pub reason: String,
    /// From where: an address, or empty.
    #[serde(default)]
    pub from: String,
}

/// How far a backfill is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackfillReport {
    /// It was only looked at.
    pub dry_run: bool,
    /// Whether it goes on.
    pub running: bool,
    /// Whether every queue was gone through.
    pub done: bool,
    /// Who asked for it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When it began, as RFC 3339 in UTC.
    pub at: String,
    /// Exchanges, queues and bindings that JetStream does not have: of what they hold there can be no copies.
    pub unmapped: u64,
    /// By queue.
    pub queues: Vec<BackfillQueue>,
    /// Why it stopped; asked for again, it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One queue of a backfill.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackfillQueue {
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: BackfillState,
    /// Messages that were ready in it when it was looked at.
    pub held: u64,
    /// Of them, those that were read.
    pub read: u64,
    /// Of them, those of which a copy was made.
    pub copied: u64,
    /// Of them, those that had one.
    pub had: u64,
    /// Of them, those that JetStream cannot carry.
    pub not_carried: u64,
    /// How long its consumers got nothing from RabbitMQ.
    pub paused_ms: u64,
    /// Why it was left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<BackfillRefused>,
}

/// How far a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackfillState {
    /// Not begun.
    #[default]
    Waiting,
    /// Its consumers wait, and it is read.
    Reading,
    /// Everything in it has a copy.
    Done,
    /// It was left alone.
    Refused,
    /// It stopped in the middle: what was read is back in its place.
    Stopped,
}

/// Why a queue was left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillRefused {
    /// For programs.
    pub code: BackfillCode,
    /// For people.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

/// Why a queue was left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BackfillCode {
    /// It goes with its last consumer, and reading it is consuming.
    AutoDelete,
    /// What is read counts as returned, and the queue dead-letters what is returned too often.
    DeliveryLimit,
    /// Whether a policy sets such a limit is not known.
    PolicyUnknown,
    /// It has consumers that the sidecar does not know.
    ConsumedPastTheSidecar,
    /// Its consumers did not settle what they had.
    InHand,
}

/// How far a backfill is, in short.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackfillProgress {
    /// Whether it goes on.
    pub running: bool,
    /// Whether every queue was gone through.
    pub done: bool,
    /// When it began.
    pub at: String,
    /// Queues.
    pub queues: u64,
    /// Of them, those where everything has a copy.
    pub queues_done: u64,
    /// Of them, those that were left alone.
    pub queues_refused: u64,
    /// Messages that were ready.
    pub held: u64,
    /// Of them, those that were read.
    pub read: u64,
    /// Of them, those of which a copy was made.
    pub copied: u64,
    /// Of them, those that had one.
    pub had: u64,
    /// Why it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl BackfillReport {
    /// In short.
    pub fn progress(&self) -> BackfillProgress {
        let sum = |of: fn(&BackfillQueue) -> u64| self.queues.iter().map(of).sum();
        let count = |state| self.queues.iter().filter(|queue| queue.state == state).count() as u64;
        BackfillProgress {
            running: self.running,
            done: self.done,
            at: self.at.clone(),
            queues: self.queues.len() as u64,
            queues_done: count(BackfillState::Done),
            queues_refused: count(BackfillState::Refused),
            held: sum(|queue| queue.held),
            read: sum(|queue| queue.read),
            copied: sum(|queue| queue.copied),
            had: sum(|queue| queue.had),
            error: self.error.clone(),
        }
    }

    /// Messages without a copy after all.
    pub fn left(&self) -> u64 {
        self.queues.iter().map(|queue| queue.held.saturating_sub(queue.copied + queue.had)).sum()
    }
}

/// Whether a name fits a pattern in which `*` stands for any text.
pub fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, rest)) => match name.strip_prefix(before) {
            None => false,
            Some(left) => left.char_indices().map(|(at, _)| at).chain([left.len()]).any(|at| fits(rest, &left[at..])),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, expected) in [
            ("orders", "orders", true),
            ("orders", "orders.eu", false),
            ("orders*", "orders.eu", true),
            ("*.eu", "orders.eu", true),
            ("o*s*u", "orders.eu", true),
            ("*", "", true),
            ("o*x", "orders", false),
            ("*é", "café", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_not_read_is_left() {
        let queue = |held, copied, had| BackfillQueue { held, copied, had, ..BackfillQueue::default() };
        let report = BackfillReport { queues: vec![queue(5, 3, 2), queue(4, 1, 0)], ..BackfillReport::default() };
        assert_eq!((report.left(), report.progress().copied), (3, 4));
    }
}
