//! What the sidecar tells an operator and takes from one: the JSON of the HTTP surface, and the one trait behind it.
//!
//! The HTTP surface ([`crate::http`]) and the CLI verbs see only this file; the cutover itself implements [`Control`].

mod backfill;
mod drain;
mod log;
mod rehearsal;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use self::backfill::{
    Backfill, BackfillCode, BackfillProgress, BackfillQueue, BackfillRefused, BackfillReport, BackfillState, fits,
};
pub use self::drain::{Drain, DrainRates, Draining};
pub use self::log::{LogEntry, Outcome};
pub use self::rehearsal::{Rehearsal, Rehearse, RehearsedQueue};
pub use crate::copies::StandbyStatus;
pub use crate::gate::{Faults, Number, Reason, Severity, Verdict};

/// The running cutover, as the HTTP surface drives it.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Where the cutover stands now. Answers from memory where a broker does not answer, and says so.
    async fn status(&self) -> Status;

    /// Moves to another phase or weight, and returns once the change is in force in this sidecar.
    ///
    /// A change to what already holds is not an error: it returns the state in force with `changed: false`.
    ///
    /// # Errors
    /// [`Refused`], with the state left as it was.
    async fn change(&self, request: Change) -> Result<Adopted, Refused>;

    /// May the cutover go on?
    async fn gate(&self) -> Verdict;

    /// Gives a broker up that is lost for good, or tells what that would do. Returns once it has begun.
    ///
    /// # Errors
    /// [`Refused`], with everything left as it was.
    async fn failover(self: Arc<Self>, asked: Failover) -> Result<FailoverReport, Refused>;

    /// How far a failover is; `None` when there was none.
    async fn failover_status(&self) -> Option<FailoverReport>;

    /// Makes standby copies of what lay in RabbitMQ before there were any, or tells what that would do. Returns once it has begun.
    ///
    /// # Errors
    /// [`Refused`], with everything left as it was.
    async fn backfill(self: Arc<Self>, asked: Backfill) -> Result<BackfillReport, Refused>;

    /// How far a backfill is; `None` when there was none.
    async fn backfill_status(&self) -> Option<BackfillReport>;

    /// Rolls back and goes up to the same weight again, measured. Returns once it has begun.
    ///
    /// # Errors
    /// [`Refused`], with everything left as it was.
    async fn rehearse(self: Arc<Self>, asked: Rehearse) -> Result<Rehearsal, Refused>;

    /// The last rehearsal; `None` when there was none.
    async fn rehearsal(&self) -> Option<Rehearsal>;

    /// The last entries of the log, newest first.
    ///
    /// # Errors
    /// [`Refused`] when NATS does not answer.
    async fn log(&self, last: u64) -> Result<Vec<LogEntry>, Refused>;

    /// Rates and latencies over time.
    async fn history(&self) -> History;

    /// The last changes, newest first.
    async fn changes(&self) -> Vec<ChangeRecord>;
}

/// A phase of the cutover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// RabbitMQ does everything; topology is recorded.
    Observe,
    /// RabbitMQ does everything; copies are stored in JetStream and compared.
    Shadow,
    /// A weight between 1 and 9 999 buckets: NATS owns some ordering keys.
    Canary,
    /// NATS owns every ordering key; RabbitMQ is still attached.
    Cutover,
    /// RabbitMQ is detached.
    Native,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Observe => "observe",
            Phase::Shadow => "shadow",
            Phase::Canary => "canary",
            Phase::Cutover => "cutover",
            Phase::Native => "native",
        })
    }
}

/// The share of ordering keys that NATS owns: 0 to 10 000 buckets, written and read as per cent with at most two
/// decimals (`5`, `0.25`, `100`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Weight(u16);

impl Weight {
    /// The number of buckets that all ordering keys are spread over.
    pub const BUCKETS: u16 = 10_000;
    /// RabbitMQ owns every ordering key.
    pub const NONE: Weight = Weight(0);
    /// NATS owns every ordering key.
    pub const ALL: Weight = Weight(Self::BUCKETS);

    /// The weight of this many buckets; `None` above 10 000.
    pub const fn from_buckets(buckets: u16) -> Option<Self> {
        if buckets <= Self::BUCKETS { Some(Self(buckets)) } else { None }
    }

    /// The weight of this many per cent; `None` outside 0 to 100, and for more than two decimals.
    pub fn from_percent(percent: f64) -> Option<Self> {
        let buckets = percent * 100.0;
        let whole = buckets.round();
        let fits = (0.0..=f64::from(Self::BUCKETS)).contains(&whole) && (buckets - whole).abs() < 1e-6;
        fits.then_some(Self(whole as u16))
    }

    /// Buckets below this number are owned by NATS.
    pub const fn buckets(self) -> u16 {
        self.0
    }

    /// The weight in per cent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.percent())
    }
}

impl Serialize for Weight {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(100) {
            serializer.serialize_u16(self.0 / 100)
        } else {
            serializer.serialize_f64(self.percent())
        }
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(deserializer)?;
        Self::from_percent(percent)
            .ok_or_else(|| serde::de::Error::custom("a weight is 0 to 100 per cent, with at most two decimals"))
    }
}

/// Where the cutover stands; the answer of `GET /status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The phase in force.
    pub phase: Phase,
    /// The weight in force.
    pub weight_percent: Weight,
    /// Grows by one with every change.
    pub epoch: u64,
    /// Who made the last change.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When, as RFC 3339 in UTC.
    pub at: String,
    /// Whether the sidecar is shutting down: it finishes what runs and takes no new connection.
    pub draining: bool,
    /// Both brokers.
    pub sides: Sides,
    /// AMQP connections that are open.
    pub connections: u64,
    /// Every queue that the sidecar knows, by vhost and name.
    pub queues: Vec<QueueStatus>,
    /// What `shadow` compared, by queue.
    pub parity: Vec<QueueParity>,
    /// What JetStream refused to take over. A weight above 0 is refused while there is any.
    pub unmapped: Vec<Unmapped>,
    /// What a human should look at.
    pub warnings: Vec<Warning>,
    /// Copies in the standby stream that nothing has been compared with yet.
    pub standby_lag: u64,
    /// The standby copies on RabbitMQ of what NATS owns; `None` when none are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyStatus>,
    /// The standby copies on NATS of what RabbitMQ owns; `None` when none are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby_rabbit: Option<StandbyStatus>,
    /// The side that the last change of weight took keys from, until what is older has come out of its queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losing: Option<crate::ownership::Side>,
    /// The last rehearsal of a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<Rehearsal>,
    /// How far the last backfill is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<BackfillProgress>,
    /// What the sidecar found wrong in messages that JetStream owns, since JetStream last owned nothing.
    #[serde(default)]
    pub faults: Faults,
    /// Why the sidecar has rolled back by itself, if that was the last thing that happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<String>,
    /// The sidecars that share the account and live, the one that leads first; none where this one does not share it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sidecars: Vec<SidecarStatus>,
}

/// One of several sidecars of a NATS account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidecarStatus {
    /// Its machine.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Since when it is there, as RFC 3339 in UTC.
    pub since: String,
    /// Whether it leads: it has the cutover, and the others pass their clients on to it.
    pub leads: bool,
    /// The epoch that it knows to be in force.
    pub epoch: u64,
    /// AMQP connections that are open: of one that leads all, those that are passed on to it included.
    pub connections: u64,
    /// Where the others reach it for AMQP.
    pub amqp: String,
    /// Where they reach it for status and control.
    pub http: String,
}

/// Rates and latencies over time; the answer of `GET /history`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct History {
    /// How far samples are apart.
    pub every_seconds: u64,
    /// Oldest first; at most an hour.
    pub samples: Vec<Sample>,
}

/// What happened between two moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The end of it, in seconds since 1970.
    pub unix: u64,
    /// The weight then.
    pub weight_percent: f64,
    /// RabbitMQ.
    pub rabbit: SideSample,
    /// NATS JetStream.
    pub nats: SideSample,
    /// Copies that were on their way to be compared.
    pub unread: u64,
    /// Messages that differed so far.
    pub differences: u64,
    /// Messages that were compared so far.
    pub compared: u64,
    /// Faults of messages that JetStream owns so far.
    pub faults: u64,
}

/// What one broker did between two moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SideSample {
    /// Messages that it took as their owner, in a second.
    pub published_per_s: f64,
    /// Messages of it that were delivered, in a second.
    pub delivered_per_s: f64,
    /// From a publish to its confirm: half of them were faster.
    pub confirm_p50_ms: Option<f64>,
    /// From a publish to its confirm: 99 of 100 were faster.
    pub confirm_p99_ms: Option<f64>,
}

/// One change of phase or weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// The epoch that it brought.
    pub epoch: u64,
    /// When, as RFC 3339 in UTC.
    pub at: String,
    /// The phase since.
    pub phase: Phase,
    /// The weight since.
    pub weight_percent: Weight,
    /// Who made it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Whether it was made against the gate's no.
    pub forced: bool,
    /// Whether the sidecar made it by itself.
    pub automatic: bool,
}

/// Both brokers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sides {
    /// RabbitMQ.
    pub rabbit: Side,
    /// NATS JetStream.
    pub nats: Side,
}

/// What [`Side::error`] of a RabbitMQ says that was let go of on purpose.
pub const DETACHED: &str = "detached";
/// What [`Side::error`] of a NATS says that is lost for good.
pub const GIVEN_UP: &str = "given up by a failover";

/// One broker, as the sidecar sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Side {
    /// Whether it answers.
    pub connected: bool,
    /// Its address, without user and password.
    pub url: String,
    /// Why it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Messages it took as their owner since the sidecar started.
    pub published: u64,
    /// Messages of it that were delivered since the sidecar started, redeliveries included.
    pub delivered: u64,
    /// Deliveries of it that are not settled.
    pub unsettled: u64,
    /// Deliveries of it that were rejected for good since the sidecar started: dead-lettered or dropped.
    #[serde(default)]
    pub rejected: u64,
    /// Publishes that it refused or lost since the sidecar started.
    #[serde(default)]
    pub failed: u64,
    /// Connections to which it says that it takes no publishes for now.
    #[serde(default)]
    pub blocked: u64,
}

/// One queue on both sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// Messages ready in RabbitMQ; `None` when it did not say.
    pub rabbit_ready: Option<u64>,
    /// Messages ready in JetStream; `None` when it did not say.
    pub nats_ready: Option<u64>,
    /// Deliveries from RabbitMQ that are not settled.
    pub rabbit_unsettled: u64,
    /// Deliveries from JetStream that are not settled.
    pub nats_unsettled: u64,
    /// Deliveries that wait for the fence of a change of weight.
    pub held: u64,
    /// The fence of the last change of weight.
    pub fence: FenceState,
    /// Consumers that came through the sidecar.
    #[serde(default)]
    pub consumers: u64,
}

/// How far the fence of a change of weight is, for one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceState {
    /// No change of weight touches the queue.
    None,
    /// Publishes of the old epoch are not all confirmed yet.
    Waiting,
    /// The fence is in the queue of the losing side.
    Sent,
    /// The fence came out and all before it is settled: the hold is lifted.
    Passed,
    /// The hold was lifted because its time was over.
    TimedOut,
}

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

/// Something that JetStream refused to take over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmapped {
    /// Its vhost.
    pub vhost: String,
    /// What it is: `queue`, `exchange`, `binding`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Why it was refused.
    pub reason: String,
}

/// Something a human should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// A stable name, such as `hold_timed_out`.
    pub code: String,
    /// How often since the sidecar started.
    pub count: u64,
    /// What happened last.
    pub text: String,
}

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

/// A broker is lost for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// Which.
    pub lost: crate::ownership::Side,
    /// Do it; without it, only what it would do is told.
    pub execute: bool,
    /// Although the broker answers.
    pub force: bool,
    /// Who asks.
    pub by: String,
    /// Why.
    pub reason: String,
    /// From where: an address, or empty.
    #[serde(default)]
    pub from: String,
}

/// What a failover did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverReport {
    /// The broker that is lost.
    pub lost: crate::ownership::Side,
    /// Whether it was begun; otherwise it was only looked at.
    pub executed: bool,
    /// Whether it goes on.
    pub running: bool,
    /// Whether the other broker owns everything.
    pub done: bool,
    /// Standby copies that the other broker has.
    pub copies: u64,
    /// Of them, those that were put into their queues.
    pub replayed: u64,
    /// Of them, those of messages that are settled, or that another copy stands for.
    pub not_needed: u64,
    /// Of them, those whose queue the other broker does not have; they stay in the standby queue.
    pub left: u64,
    /// Messages that may have been held and have no copy: they are lost.
    pub no_copy: u64,
    /// Exchanges, queues and bindings of a lost RabbitMQ that JetStream does not have: of what they held there are no copies.
    #[serde(default)]
    pub unmapped: u64,
    /// How old `held` of the queues is, in seconds; `None` when it is not known, or NATS is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_before_s: Option<u64>,
    /// By queue, those that have copies or held anything.
    #[serde(default)]
    pub queues: Vec<FailoverQueue>,
    /// The epoch that it brought.
    pub epoch: u64,
    /// Why it stopped; asked for again, it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A queue of a broker that is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverQueue {
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// Standby copies that the other broker has.
    pub copies: u64,
    /// What a lost RabbitMQ held of it when it last answered; what is beyond the copies was published before there were any, past the
    /// sidecar, or without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
}

impl Default for FailoverReport {
    fn default() -> Self {
        Self {
            lost: crate::ownership::Side::Nats,
            executed: false,
            running: false,
            done: false,
            copies: 0,
            replayed: 0,
            not_needed: 0,
            left: 0,
            no_copy: 0,
            unmapped: 0,
            held_before_s: None,
            queues: Vec::new(),
            epoch: 0,
            error: None,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_written_as_per_cent_and_read_back() {
        for (percent, text) in [(0.0, "0"), (5.0, "5"), (0.25, "0.25"), (99.99, "99.99"), (100.0, "100")] {
            let weight = Weight::from_percent(percent).expect("a valid weight");
            assert_eq!(serde_json::to_string(&weight).expect("serializable"), text);
            assert_eq!(serde_json::from_str::<Weight>(text).expect("readable"), weight);
            assert_eq!(weight.to_string(), text);
        }
        for bad in ["-1", "100.01", "0.001", "1e9", "\"5\""] {
            assert!(serde_json::from_str::<Weight>(bad).is_err(), "{bad} was taken");
        }
        assert!(Weight::from_percent(f64::NAN).is_none());
    }
}
