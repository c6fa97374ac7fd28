//! What the comparison of both sides says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What was compared for one queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueParity {
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub queue: String,
    /// How many copies ended in which class.
    #[serde(flatten)]
    pub counts: ParityCounts,
    /// What is unverified, by reason.
    #[serde(default)]
    pub unverified_by: BTreeMap<String, u64>,
    /// The last few messages that are not a match; at most 16.
    #[serde(default)]
    pub samples: Vec<ParitySample>,
}

/// One message that is not a match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParitySample {
    /// Its class.
    pub class: ParityClass,
    /// Its `bridge-id`.
    pub id: String,
}

/// What a message can end as, besides unverified; see [`ParityCounts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParityClass {
    /// Equal.
    Matched,
    /// The payloads differ.
    MismatchedPayload,
    /// The properties differ.
    MismatchedProperties,
    /// Exchange or routing key differ.
    MismatchedRouting,
    /// No copy came.
    Missing,
    /// A copy too many.
    Extra,
}

/// How many copies ended in which class; every copy ends in exactly one. `late` are among `matched` or `mismatched`
/// as well: they were resolved after the window but before they were forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ParityCounts {
    /// Copy and delivery were compared and are equal.
    pub matched: u64,
    /// The payloads differ.
    pub mismatched_payload: u64,
    /// The payloads are equal, the properties differ.
    pub mismatched_properties: u64,
    /// Payload and properties are equal, exchange or routing key differ.
    pub mismatched_routing: u64,
    /// RabbitMQ delivered it, and no copy came within the window.
    pub missing: u64,
    /// A copy that RabbitMQ never delivered, or whose publish it refused.
    pub extra: u64,
    /// Compared, but the second of the two came only after the window.
    pub late: u64,
    /// Could not be compared.
    pub unverified: u64,
    /// Not ended yet.
    pub pending: u64,
}

impl ParityCounts {
    /// How many were compared.
    pub fn compared(&self) -> u64 {
        self.matched + self.mismatched_payload + self.mismatched_properties + self.mismatched_routing
    }

    /// How many differ, or are on one side only.
    pub fn differences(&self) -> u64 {
        self.mismatched_payload + self.mismatched_properties + self.mismatched_routing + self.missing + self.extra
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    /// What is in `self` and was not in `before`.
    pub fn since(&self, before: &Self) -> Self {
        self.each(before, u64::saturating_sub)
    }

    fn each(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            matched: of(self.matched, other.matched),
            mismatched_payload: of(self.mismatched_payload, other.mismatched_payload),
            mismatched_properties: of(self.mismatched_properties, other.mismatched_properties),
            mismatched_routing: of(self.mismatched_routing, other.mismatched_routing),
            missing: of(self.missing, other.missing),
            extra: of(self.extra, other.extra),
            late: of(self.late, other.late),
            unverified: of(self.unverified, other.unverified),
            pending: of(self.pending, other.pending),
        }
    }
}
