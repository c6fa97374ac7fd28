//! A broker that is lost for good: giving it up, and how far that is.

use serde::{Deserialize, Serialize};

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
