//! The broker as a whole: overview, its one node, vhosts.

use amqp_compat::backend::jetstream::{About, QueueCounts, Resource};
use amqp_compat::session::RABBITMQ_VERSION;
use serde_json::{Value, json};

/// Where something listens.
#[derive(Debug, Clone)]
pub(in crate::management) struct Place {
    /// The IP address.
    pub(in crate::management) ip: String,
    /// The port.
    pub(in crate::management) port: u16,
}

/// What does not change while the broker runs.
#[derive(Debug, Clone)]
pub(in crate::management) struct Identity {
    /// The node's name.
    pub(in crate::management) node: String,
    /// Where AMQP clients connect to.
    pub(in crate::management) amqp: Place,
    /// Where AMQPS clients connect to, if they can.
    pub(in crate::management) amqps: Option<Place>,
    /// Where this API is.
    pub(in crate::management) http: Place,
    /// This process.
    pub(in crate::management) pid: u32,
    /// How many processors there are.
    pub(in crate::management) processors: usize,
}

/// How much there is of everything.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::management) struct Totals {
    /// Exchanges.
    pub(in crate::management) exchanges: usize,
    /// Queues.
    pub(in crate::management) queues: usize,
    /// Connections.
    pub(in crate::management) connections: usize,
    /// Channels.
    pub(in crate::management) channels: usize,
    /// Consumers.
    pub(in crate::management) consumers: usize,
    /// Messages; `None` when JetStream did not answer.
    pub(in crate::management) messages: Option<QueueCounts>,
}

impl Identity {
    /// The overview. `rates_mode` is `none`: nobody measures any.
    pub(in crate::management) fn overview(&self, totals: &Totals) -> Value {
        let mut document = json!({
            "management_version": RABBITMQ_VERSION,
            "rates_mode": "none",
            "exchange_types": exchange_types(),
            "rabbitmq_version": RABBITMQ_VERSION,
            "product_name": "nats-bridge",
            "product_version": env!("CARGO_PKG_VERSION"),
            "cluster_name": "nats-bridge",
            "node": self.node,
            "object_totals": {
                "exchanges": totals.exchanges,
                "queues": totals.queues,
                "connections": totals.connections,
                "channels": totals.channels,
                "consumers": totals.consumers,
            },
            "listeners": self.listeners().map(|(protocol, at)| self.listener(protocol, at)).collect::<Value>(),
            "contexts": [{
                "node": self.node,
                "description": "RabbitMQ's HTTP API, by nats-bridge",
                "path": "/",
                "ip": self.http.ip,
                "port": self.http.port.to_string(),
            }],
        });
        if let Some(messages) = totals.messages {
            document["queue_totals"] = message_counts(messages);
        }
        document
    }

    /// What is listened to, by RabbitMQ's names of protocols.
    pub(in crate::management) fn listeners(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        let amqps = self.amqps.iter().map(|at| ("amqp/ssl", at));
        [("amqp", &self.amqp)].into_iter().chain(amqps).chain([("http", &self.http)])
    }

    fn listener(&self, protocol: &str, at: &Place) -> Value {
        json!({
            "node": self.node,
            "protocol": protocol,
            "ip_address": at.ip,
            "port": at.port,
        })
    }

    /// The node, and what it has no room for.
    pub(in crate::management) fn node(&self, uptime_ms: u64, alarm: Option<Resource>) -> Value {
        json!({
            "name": self.node,
            "type": "disc",
            "running": true,
            "partitions": [],
            "os_pid": self.pid.to_string(),
            "uptime": uptime_ms,
            "processors": self.processors,
            "mem_alarm": alarm == Some(Resource::Memory),
            "disk_free_alarm": alarm == Some(Resource::Disk),
            "rates_mode": "none",
            "exchange_types": exchange_types(),
            "auth_mechanisms": [
                { "name": "AMQPLAIN", "description": "QPid AMQPLAIN mechanism", "enabled": true },
                { "name": "PLAIN", "description": "SASL PLAIN authentication mechanism", "enabled": true },
            ],
            "applications": [
                { "name": "nats-bridge", "description": "AMQP 0-9-1 on NATS JetStream", "version": env!("CARGO_PKG_VERSION") },
            ],
            "enabled_plugins": ["rabbitmq_management"],
        })
    }

    /// A vhost.
    pub(in crate::management) fn vhost(&self, name: &str, about: &About, messages: Option<QueueCounts>) -> Value {
        let mut document = json!({
            "name": name,
            "description": about.description,
            "tags": about.tags,
            "default_queue_type": "undefined",
            "metadata": { "description": about.description, "tags": about.tags },
            "tracing": false,
            "cluster_state": { self.node.as_str(): "running" },
        });
        if let (Some(messages), Some(document)) = (messages.map(message_counts), document.as_object_mut()) {
            document.extend(messages.as_object().cloned().unwrap_or_default());
        }
        document
    }
}

fn message_counts(counts: QueueCounts) -> Value {
    json!({
        "messages": counts.ready.saturating_add(counts.unacknowledged),
        "messages_ready": counts.ready,
        "messages_unacknowledged": counts.unacknowledged,
    })
}

fn exchange_types() -> Value {
    let of = |name: &str| {
        let description = match name.starts_with("x-") {
            true => format!("{name} exchange, as of RabbitMQ's plugin"),
            false => format!("AMQP {name} exchange, as per the AMQP specification"),
        };
        json!({ "name": name, "description": description, "enabled": true })
    };
    ["direct", "fanout", "headers", "topic", "x-consistent-hash", "x-delayed-message"].into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_is_not_in_the_overview() {
        let identity = Identity {
            node: "nats-bridge@here".into(),
            amqp: Place { ip: "127.0.0.1".into(), port: 5672 },
            amqps: None,
            http: Place { ip: "127.0.0.1".into(), port: 15672 },
            pid: 7,
            processors: 2,
        };
        let overview = identity.overview(&Totals { queues: 3, ..Totals::default() });
        assert_eq!(overview["object_totals"]["queues"], 3);
        assert!(overview.get("queue_totals").is_none() && overview.get("erlang_version").is_none());
        let counts = QueueCounts { ready: 2, unacknowledged: 1, consumers: 0 };
        let overview = identity.overview(&Totals { messages: Some(counts), ..Totals::default() });
        assert_eq!(
            overview["queue_totals"],
            json!({ "messages": 3, "messages_ready": 2, "messages_unacknowledged": 1 })
        );
        assert_eq!(identity.vhost("/", &About::default(), Some(counts))["messages"], 3);
        let node = identity.node(5, Some(Resource::Disk));
        assert_eq!(node["os_pid"], "7");
        assert_eq!((&node["disk_free_alarm"], &node["mem_alarm"]), (&json!(true), &json!(false)));
    }
}
