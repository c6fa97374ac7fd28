//! Where the cutover stands: the answer of `GET /status`.

use serde::{Deserialize, Serialize};

use super::{BackfillProgress, Faults, Phase, QueueParity, Rehearsal, StandbyStatus, Weight};

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
