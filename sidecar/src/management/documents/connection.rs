//! Connections, channels and consumers.

use std::time::UNIX_EPOCH;

use amqp_compat::listener::Connection;
use amqp_compat::session::{ChannelDescription, ConsumerDescription, Description};
use serde_json::{Value, json};

use super::table;

/// A connection as it is now, with where it is listed.
#[derive(Debug, Clone, Copy)]
pub(in crate::management) struct Seen<'a> {
    /// The node's name.
    pub(in crate::management) node: &'a str,
    /// Where it comes from.
    pub(in crate::management) connection: &'a Connection,
    /// What it says of itself.
    pub(in crate::management) described: &'a Description,
}

impl Seen<'_> {
    /// The connection's document.
    pub(in crate::management) fn document(&self) -> Value {
        let Self { node, connection, described } = self;
        let since = connection.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut document = json!({
            "name": connection.name,
            "node": node,
            "type": "network",
            "protocol": "AMQP 0-9-1",
            "state": if described.is_running { "running" } else { "closing" },
            "user": described.user,
            "user_who_performed_action": described.user,
            "vhost": described.vhost,
            "auth_mechanism": described.mechanism,
            "ssl": connection.is_tls,
            "host": connection.local.ip().to_string(),
            "port": connection.local.port(),
            "peer_host": connection.peer.ip().to_string(),
            "peer_port": connection.peer.port(),
            "channels": described.channels.len(),
            "channel_max": described.channel_max,
            "frame_max": described.frame_max,
            "timeout": described.heartbeat,
            "connected_at": u64::try_from(since.as_millis()).unwrap_or_default(),
            "client_properties": table::to_json(&described.client_properties),
        });
        if let Some(name) = document["client_properties"].get("connection_name").cloned() {
            document["user_provided_name"] = name;
        }
        document
    }

    /// The documents of its channels.
    pub(in crate::management) fn channels(&self) -> impl Iterator<Item = Value> + '_ {
        self.described.channels.iter().map(|channel| self.channel(channel))
    }

    /// A channel's document.
    pub(in crate::management) fn channel(&self, channel: &ChannelDescription) -> Value {
        let Self { node, connection, described } = self;
        json!({
            "name": self.channel_name(channel),
            "number": channel.number,
            "node": node,
            "user": described.user,
            "user_who_performed_action": described.user,
            "vhost": described.vhost,
            "state": "running",
            "connection_details": {
                "name": connection.name,
                "peer_host": connection.peer.ip().to_string(),
                "peer_port": connection.peer.port(),
            },
            "confirm": channel.confirm,
            "transactional": channel.transactional,
            "prefetch_count": channel.prefetch,
            "global_prefetch_count": channel.global_prefetch,
            "consumer_count": channel.consumers.len(),
            "messages_unacknowledged": channel.unacknowledged,
            "messages_unconfirmed": channel.unconfirmed,
            "messages_uncommitted": channel.uncommitted_publishes,
            "acks_uncommitted": channel.uncommitted_settlements,
        })
    }

    /// A channel's name.
    pub(in crate::management) fn channel_name(&self, channel: &ChannelDescription) -> String {
        format!("{} ({})", self.connection.name, channel.number)
    }

    /// A consumer's document. `is_served` says whether it gets messages, where that is known: of several consumers of a
    /// queue with a single active one, only the queue knows which it is.
    pub(in crate::management) fn consumer(
        &self,
        channel: &ChannelDescription,
        consumer: &ConsumerDescription,
        is_served: Option<bool>,
    ) -> Value {
        let Self { node, connection, described } = self;
        let mut document = json!({
            "consumer_tag": consumer.tag.as_str(),
            "queue": { "name": consumer.queue.as_str(), "vhost": described.vhost },
            "channel_details": {
                "connection_name": connection.name,
                "name": self.channel_name(channel),
                "node": node,
                "number": channel.number,
                "peer_host": connection.peer.ip().to_string(),
                "peer_port": connection.peer.port(),
                "user": described.user,
            },
            "ack_required": !consumer.no_ack,
            "exclusive": consumer.exclusive,
            "prefetch_count": consumer.prefetch,
            "arguments": table::to_json(&consumer.arguments),
        });
        if let Some(is_served) = is_served {
            document["active"] = json!(is_served);
            document["activity_status"] = json!(if is_served { "up" } else { "waiting" });
        }
        document
    }
}
