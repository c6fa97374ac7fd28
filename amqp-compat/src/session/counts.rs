//! What a session counts.

/// What has happened on a connection; all but `channels` and `consumers` only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Channels that are open.
    pub channels: u64,
    /// Consumers that are attached.
    pub consumers: u64,
    /// Messages that the client published.
    pub published: u64,
    /// `basic.ack`s to a publisher; one may stand for many publishes.
    pub acks: u64,
    /// `basic.nack`s to a publisher.
    pub nacks: u64,
    /// Messages that were given back.
    pub returned: u64,
    /// Messages that were delivered or got.
    pub delivered: u64,
    /// Deliveries that the client settled.
    pub settled: u64,
    /// Channels that were closed for an error.
    pub channel_errors: u64,
    /// 1 once the connection was closed for an error.
    pub connection_errors: u64,
}
