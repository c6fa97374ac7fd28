//! What a queue's settings come to, where they are asked for with every message.

use super::config::JetStreamConfig;
use crate::model::queue::{QueueArguments, QueueDefinition, QueueKind};

/// No policy sets a time to live.
pub(super) const NO_STAMP: u64 = u64::MAX;

/// Whether its length is limited, and counted here: the server keeps a log within its bounds.
pub(super) fn is_counted(settings: &QueueArguments) -> bool {
    settings.has_length_limit() && settings.kind != QueueKind::Stream
}

/// How long clients may take to settle deliveries, in milliseconds: what the queue says, else the gateway.
pub(super) fn ack_timeout(settings: &QueueArguments, config: &JetStreamConfig) -> u64 {
    let of_gateway = || config.consumer_timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    settings.consumer_timeout_ms.or_else(of_gateway).unwrap_or(0)
}

/// The time to live that messages are stored with: only where it is not the queue's own argument.
pub(super) fn stamp(definition: &QueueDefinition, settings: &QueueArguments) -> u64 {
    match settings.message_ttl_ms {
        Some(ttl) if definition.settings.message_ttl_ms != Some(ttl) => ttl.min(NO_STAMP - 1),
        _ => NO_STAMP,
    }
}
