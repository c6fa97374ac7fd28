//! What an operator asks for, and what comes of it.

use serde::{Deserialize, Serialize};

use super::{Phase, Reason, Verdict, Weight};

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Where to.
    pub to: Target,
    /// Who asks.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Raise the weight although the gate says no.
    #[serde(default)]
    pub force: bool,
    /// Go to 100 per cent although no rehearsal of a rollback has passed.
    #[serde(default)]
    pub unrehearsed: bool,
    /// From where it is asked for: an address, or empty.
    #[serde(default)]
    pub from: String,
}

impl Change {
    /// What is asked for, in the words of the command line.
    pub fn words(&self) -> String {
        match self.to {
            Target::Observe => "observe".to_owned(),
            Target::Shadow => "shadow".to_owned(),
            Target::Weight(weight) => format!("weight {weight}"),
            Target::Rollback => "rollback".to_owned(),
            Target::Detach => "detach".to_owned(),
        }
    }
}

/// Where a change leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// [`Phase::Observe`].
    Observe,
    /// [`Phase::Shadow`].
    Shadow,
    /// [`Phase::Canary`], or [`Phase::Cutover`] at 100 per cent.
    Weight(Weight),
    /// Weight 0 at once, from any phase before `native`.
    Rollback,
    /// [`Phase::Native`]; only at 100 per cent and with RabbitMQ's queues empty.
    Detach,
}

/// A change that is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adopted {
    /// False when the state was already the one asked for.
    pub changed: bool,
    /// The phase in force.
    pub phase: Phase,
    /// The weight in force.
    pub weight_percent: Weight,
    /// The epoch in force.
    pub epoch: u64,
    /// Who made the change in force.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When, as RFC 3339 in UTC.
    pub at: String,
    /// From the request to the change being in force, in milliseconds.
    pub took_ms: u64,
}

/// A change that was not made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}; {fix}")]
pub struct Refused {
    /// Why, for programs.
    pub code: RefusedCode,
    /// The field of the request that is at fault, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Why, for humans.
    pub reason: String,
    /// What to do next.
    pub fix: String,
    /// The gate's reasons, when it says no.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gate: Vec<Reason>,
}

impl Refused {
    /// A refusal that no single field is at fault for.
    pub fn new(code: RefusedCode, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, field: None, reason: reason.into(), fix: fix.into(), gate: Vec::new() }
    }

    /// The gate says no to more weight.
    pub fn gate(verdict: Verdict) -> Self {
        let reason = format!("the gate says no: {}", verdict.because());
        let fix =
            "`nats-bridge gate` says what to do about each reason; --force raises the weight nevertheless".to_owned();
        Self { code: RefusedCode::Gate, field: None, reason, fix, gate: verdict.reasons }
    }

    /// A request that makes no sense by itself, because of this field.
    pub fn invalid(field: &str, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        let (field, gate) = (Some(field.to_owned()), Vec::new());
        Self { code: RefusedCode::Invalid, field, reason: reason.into(), fix: fix.into(), gate }
    }
}

/// Why a change was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RefusedCode {
    /// The request is malformed (HTTP 400).
    Invalid,
    /// The caller may not change anything (HTTP 403, or 401 for a wrong token).
    Forbidden,
    /// The phase in force does not lead there (HTTP 409).
    WrongPhase,
    /// JetStream refused part of the topology (HTTP 409).
    Unmapped,
    /// The gate says no to more weight (HTTP 409).
    Gate,
    /// No rehearsal of a rollback has passed (HTTP 409).
    NotRehearsed,
    /// RabbitMQ's queues still hold messages (HTTP 409).
    NotDrained,
    /// Somebody else changed the state meanwhile (HTTP 409).
    Conflict,
    /// A broker that the change needs does not answer (HTTP 503).
    SideDown,
    /// The sidecar is shutting down (HTTP 503).
    Draining,
}
