//! What can be told of a connection while it runs, for people and tools that look at it.

use amq_protocol::types::{FieldTable, ShortString};

use super::Counts;
use crate::backend::ChannelId;

/// A connection as it is now.
#[derive(Debug, Clone)]
pub struct Description {
    /// Whether it is open for use, or on its way in or out.
    pub is_running: bool,
    /// Who is logged in; empty before the login.
    pub user: String,
    /// The vhost; empty before `connection.open`.
    pub vhost: String,
    /// The login's mechanism, such as `PLAIN`.
    pub mechanism: String,
    /// Client properties of `connection.start-ok`.
    pub client_properties: FieldTable,
    /// How many channels may be open.
    pub channel_max: u16,
    /// The largest frame in bytes.
    pub frame_max: u32,
    /// The heartbeat interval in seconds; 0: none.
    pub heartbeat: u16,
    /// What has happened so far.
    pub counts: Counts,
    /// The channels, by number.
    pub channels: Vec<ChannelDescription>,
}

/// A channel as it is now.
#[derive(Debug, Clone)]
pub struct ChannelDescription {
    /// Its number.
    pub number: ChannelId,
    /// Whether it is in confirm mode.
    pub confirm: bool,
    /// Whether it is transactional.
    pub transactional: bool,
    /// The prefetch of consumers that start now; 0: none.
    pub prefetch: u16,
    /// The prefetch of the channel; 0: none.
    pub global_prefetch: u16,
    /// Deliveries that wait for their settlement.
    pub unacknowledged: usize,
    /// Publishes in confirm mode whose confirm is due.
    pub unconfirmed: usize,
    /// Publishes that wait for `tx.commit`.
    pub uncommitted_publishes: usize,
    /// Settlements that wait for `tx.commit`.
    pub uncommitted_settlements: usize,
    /// The consumers, by tag.
    pub consumers: Vec<ConsumerDescription>,
}

/// A consumer as it is now.
#[derive(Debug, Clone)]
pub struct ConsumerDescription {
    /// Its tag.
    pub tag: ShortString,
    /// The queue.
    pub queue: ShortString,
    /// Whether the client does not settle.
    pub no_ack: bool,
    /// Whether it is the queue's only one.
    pub exclusive: bool,
    /// Its prefetch; 0: none.
    pub prefetch: u16,
    /// Its arguments.
    pub arguments: FieldTable,
}
