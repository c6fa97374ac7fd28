//! The log of what was asked for and what became of it.

use serde::{Deserialize, Serialize};

use super::{Phase, Weight};

/// One entry of the log; the answer of `GET /log` is a list of them, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its number; grows.
    #[serde(default)]
    pub number: u64,
    /// When, as RFC 3339 in UTC.
    pub at: String,
    /// What was asked for, such as `weight 5`, `rollback` or `backfill`.
    pub what: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Who asked.
    pub by: String,
    /// From where: an address, or empty for the sidecar itself and the program that it is in.
    pub from: String,
    /// Why.
    pub reason: String,
    /// Of the sidecar that wrote it.
    pub host: String,
    /// The phase afterwards.
    pub phase: Phase,
    /// The weight afterwards.
    pub weight_percent: Weight,
    /// The epoch afterwards.
    pub epoch: u64,
    /// Whether it was done against a no: the gate's, or for want of a rehearsal.
    #[serde(default)]
    pub forced: bool,
    /// Whether the sidecar did it by itself.
    #[serde(default)]
    pub automatic: bool,
    /// What else there is to say: why it was refused, figures.
    #[serde(default)]
    pub detail: String,
}

/// What became of what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It goes on.
    Begun,
    /// It is in force, or finished.
    Done,
    /// It was so already.
    Unchanged,
    /// It was refused: nothing changed.
    Refused,
    /// It was begun, and did not get to its end.
    Failed,
}

impl Outcome {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Begun => "begun",
            Outcome::Done => "done",
            Outcome::Unchanged => "unchanged",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        }
    }
}
