//! What RabbitMQ's management API tells besides definitions: what lies in queues, who is connected, who consumes.

use std::collections::BTreeSet;

use amq_protocol::types::FieldTable;
use serde_json::{Value, json};

use crate::management::documents::fields::Fields;

/// Answers of the management API.
#[derive(Debug, Default)]
pub struct Answers {
    /// `/api/definitions`.
    pub definitions: Value,
    /// `/api/exchanges`.
    pub exchanges: Vec<Value>,
    /// `/api/queues`.
    pub queues: Vec<Value>,
    /// `/api/bindings`.
    pub bindings: Vec<Value>,
    /// `/api/connections`.
    pub connections: Vec<Value>,
    /// `/api/consumers`.
    pub consumers: Vec<Value>,
}

impl Answers {
    /// The definitions, with what an export leaves out: exclusive queues, internal exchanges, and the bindings of both.
    ///
    /// The lists were asked for one after another. A binding whose end has come or gone meanwhile is left out.
    pub fn definitions(&self) -> Value {
        let mut document = self.definitions.as_object().cloned().unwrap_or_default();
        let names = |list: &[Value]| -> BTreeSet<(String, String)> {
            list.iter().map(|entry| (text(entry, "vhost"), text(entry, "name"))).collect()
        };
        let (exchanges, queues) = (names(&self.exchanges), names(&self.queues));
        let is_there = |binding: &&Value| {
            let end = |name| (text(binding, "vhost"), text(binding, name));
            let destination = match text(binding, "destination_type").as_str() {
                "queue" => queues.contains(&end("destination")),
                _ => exchanges.contains(&end("destination")),
            };
            destination && exchanges.contains(&end("source"))
        };
        document.insert("exchanges".into(), json!(self.exchanges));
        document.insert("queues".into(), json!(self.queues));
        document.insert("bindings".into(), self.bindings.iter().filter(is_there).cloned().collect());
        Value::Object(document)
    }
}

/// What goes on at a broker.
#[derive(Debug, Default)]
pub struct Live {
    /// Queues, with what lies in them.
    pub queues: Vec<QueueCounts>,
    /// Open connections.
    pub connections: Vec<Connection>,
    /// Consumers.
    pub consumers: Vec<Consumer>,
    /// Messages that come in each second.
    pub publish_rate: f64,
    /// Messages that go out each second.
    pub deliver_rate: f64,
}

/// What lies in a queue.
#[derive(Debug, Default)]
pub struct QueueCounts {
    /// The vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// Messages, those that consumers hold included.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Who consumes.
    pub consumers: u64,
}

/// An open connection.
#[derive(Debug, Default)]
pub struct Connection {
    /// The vhost.
    pub vhost: String,
    /// The client's name for it, or its addresses.
    pub name: String,
    /// Who is logged in.
    pub user: String,
    /// `AMQP 0-9-1`, `MQTT 3.1.1`, ...
    pub protocol: String,
    /// How they logged in: `PLAIN`, `EXTERNAL`, ...
    pub mechanism: String,
    /// Whether it is encrypted.
    pub is_tls: bool,
    /// The client library and its version.
    pub client: String,
}

/// A consumer.
#[derive(Debug)]
pub struct Consumer {
    /// The vhost.
    pub vhost: String,
    /// The queue.
    pub queue: String,
    /// The tag.
    pub tag: String,
    /// How many deliveries it may hold; 0 for any number.
    pub prefetch: u64,
    /// Whether it acknowledges.
    pub acknowledges: bool,
    /// Its arguments, or why they were not understood.
    pub arguments: Result<FieldTable, String>,
}

impl Live {
    /// Reads what was answered about these vhosts.
    pub fn read(answers: &Answers, is_looked_at: impl Fn(&str) -> bool) -> Self {
        let of = |list: &[Value]| -> Vec<Value> {
            list.iter().filter(|entry| is_looked_at(&text(entry, "vhost"))).cloned().collect()
        };
        let queues = of(&answers.queues);
        let rate = |name: &str| -> f64 {
            let each = queues.iter().filter_map(|queue| queue["message_stats"][name]["rate"].as_f64());
            each.sum()
        };
        Self {
            publish_rate: rate("publish_details"),
            deliver_rate: rate("deliver_get_details"),
            connections: of(&answers.connections).iter().map(connection).collect(),
            consumers: answers.consumers.iter().map(consumer).filter(|each| is_looked_at(&each.vhost)).collect(),
            queues: queues.iter().map(counts).collect(),
        }
    }

    /// Messages and bytes in all queues.
    pub fn backlog(&self) -> (u64, u64) {
        self.queues.iter().fold((0, 0), |(messages, bytes), queue| {
            (messages.saturating_add(queue.messages), bytes.saturating_add(queue.bytes))
        })
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let (messages, bytes) = self.backlog();
        let queues = self.queues.iter().map(|queue| {
            json!({
                "vhost": queue.vhost, "name": queue.name, "messages": queue.messages, "bytes": queue.bytes,
                "consumers": queue.consumers,
            })
        });
        let connections = self.connections.iter().map(|each| {
            json!({
                "vhost": each.vhost, "name": each.name, "user": each.user, "protocol": each.protocol,
                "auth_mechanism": each.mechanism, "tls": each.is_tls, "client": each.client,
            })
        });
        let consumers = self.consumers.iter().map(|each| {
            json!({
                "vhost": each.vhost, "queue": each.queue, "consumer_tag": each.tag, "prefetch": each.prefetch,
                "no_ack": !each.acknowledges,
            })
        });
        json!({
            "messages": messages, "bytes": bytes, "publish_rate": self.publish_rate, "deliver_rate": self.deliver_rate,
            "queues": queues.collect::<Vec<_>>(), "connections": connections.collect::<Vec<_>>(),
            "consumers": consumers.collect::<Vec<_>>(),
        })
    }
}

fn counts(queue: &Value) -> QueueCounts {
    QueueCounts {
        vhost: text(queue, "vhost"),
        name: text(queue, "name"),
        messages: number(queue, "messages"),
        bytes: number(queue, "message_bytes"),
        consumers: number(queue, "consumers"),
    }
}

fn connection(of: &Value) -> Connection {
    let properties = &of["client_properties"];
    let given = text(properties, "connection_name");
    let client = [text(properties, "product"), text(properties, "version"), text(properties, "platform")];
    Connection {
        vhost: text(of, "vhost"),
        name: if given.is_empty() { text(of, "name") } else { given },
        user: text(of, "user"),
        protocol: text(of, "protocol"),
        mechanism: text(of, "auth_mechanism"),
        is_tls: of["ssl"].as_bool().unwrap_or(false),
        client: client.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "),
    }
}

fn consumer(of: &Value) -> Consumer {
    let arguments = Fields::of(json!({ "arguments": of["arguments"] }), "consumer").and_then(|f| f.table("arguments"));
    Consumer {
        vhost: text(&of["queue"], "vhost"),
        queue: text(&of["queue"], "name"),
        tag: text(of, "consumer_tag"),
        prefetch: number(of, "prefetch_count"),
        acknowledges: of["ack_required"].as_bool().unwrap_or(true),
        arguments: arguments.map_err(|refusal| refusal.reason),
    }
}

fn text(of: &Value, name: &str) -> String {
    of[name].as_str().unwrap_or_default().to_owned()
}

fn number(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or(0)
}
