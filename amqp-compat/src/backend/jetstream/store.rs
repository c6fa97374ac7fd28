//! The durable part of a vhost's topology, in a NATS key-value bucket: one key for each exchange, queue, binding and policy.
//!
//! Keys: `x.<exchange>`, `q.<queue>`, `b.<exchange>.<q|e>.<destination>.<hash of key and arguments>`, `p.<policy>`,
//! `o.<operator policy>`.

use std::collections::BTreeMap;
use std::time::Instant;

use amq_protocol::types::FieldTable;
use async_nats::jetstream::kv;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use nats_bridge::Bridge;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::api::{self, PATIENCE, PAUSE};
use super::bucket::{is_there, open_bucket};
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::{name, table};
use crate::model::exchange::{ExchangeDefinition, ExchangeKind};
use crate::model::policy::{ApplyTo, Policy, PolicyValue, Scope};
use crate::model::queue::{Owner, QueueArguments, QueueDefinition, display};
use crate::model::vhost::{BindingDefinition, Change, Destination};

/// A vhost's bucket.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    bucket: kv::Store,
    vhost: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct ExchangeDocument {
    name: String,
    kind: String,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    /// Base64 of the AMQP table.
    arguments: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct QueueDocument {
    name: String,
    durable: bool,
    auto_delete: bool,
    arguments: String,
    /// The stream that holds it.
    stream: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct PolicyDocument {
    name: String,
    pattern: String,
    apply_to: String,
    priority: i64,
    definition: BTreeMap<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Integer(i64),
    Text(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct BindingDocument {
    source: String,
    to_queue: bool,
    destination: String,
    routing_key: String,
    arguments: String,
}

impl Store {
    /// Opens the bucket of a vhost, and makes it if need be.
    pub(crate) async fn open(bridge: &Bridge, vhost: &str) -> Result<Self, AmqpError> {
        let bucket = name::topology_bucket(vhost);
        let config = kv::Config {
            bucket,
            description: format!("AMQP topology of vhost {vhost}"),
            history: 1,
            ..Default::default()
        };
        let bucket = open_bucket(bridge, config).await.map_err(|error| failed("open the topology", &error))?;
        Ok(Self { bucket, vhost: vhost.to_owned() })
    }

    /// Whether the bucket of a vhost is there.
    pub(crate) async fn is_there(bridge: &Bridge, vhost: &str) -> Result<bool, AmqpError> {
        is_there(bridge, &name::topology_bucket(vhost)).await
    }

    /// Deletes the bucket. It is emptied first, lest one of this name that is made soon come up with its files.
    pub(crate) async fn destroy(&self, bridge: &Bridge) -> Result<(), AmqpError> {
        let bucket = name::topology_bucket(&self.vhost);
        for call in ["PURGE", "DELETE"] {
            match api::call(bridge, &format!("STREAM.{call}.KV_{bucket}"), &serde_json::Value::Null).await {
                Err(error) if !error.not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Everything that is stored: policies, exchanges, then queues with their streams, then bindings. What cannot be read is logged and left alone.
    pub(crate) async fn load(&self) -> Result<Vec<(Change, Option<String>)>, AmqpError> {
        let keys = self.bucket.keys().await.map_err(|error| failed("list the topology", &error))?;
        let keys: Vec<String> = keys.try_collect().await.map_err(|error| failed("list the topology", &error))?;
        let mut entries = futures::stream::iter(keys)
            .map(|key| async move { self.bucket.get(&key).await.map(|value| (key, value)) })
            .buffer_unordered(64);
        let mut changes = Vec::new();
        while let Some(entry) = entries.next().await {
            let (key, value) = entry.map_err(|error| failed("read the topology", &error))?;
            let Some(value) = value else { continue };
            match read(&self.vhost, &key, &value) {
                Some(change) => changes.push(change),
                None => tracing::error!(vhost = self.vhost, key, "a topology entry cannot be read and is left out"),
            }
        }
        changes.sort_by_key(|(change, _)| match change {
            Change::PutPolicy(_) => 0,
            Change::PutExchange(_) => 1,
            Change::PutQueue(_) => 2,
            _ => 3,
        });
        Ok(changes)
    }

    /// Writes one change, and tries for [`PATIENCE`]; `stream` is the stream of a queue that is put. The caller leaves out what is not durable.
    pub(crate) async fn write(&self, change: &Change, stream: &str) -> Result<(), AmqpError> {
        let (key, value) = entry(change, stream);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let written = match value.clone() {
                Some(value) => {
                    self.bucket.put(&key, value).await.map(drop).map_err(|e| failed("store the topology", &e))
                }
                None => self.bucket.purge(&key).await.map_err(|e| failed("store the topology", &e)),
            };
            match written {
                // Written twice, it says the same.
                Err(error) if Instant::now() < deadline => {
                    tracing::warn!(key, error = error.text, "written again");
                    tokio::time::sleep(PAUSE).await;
                }
                written => return written,
            }
        }
    }
}

/// A change as one gateway tells it to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wire {
    /// Something is there: its key and document as in the bucket, and for an exclusive queue who it belongs to.
    Put {
        key: String,
        document: String,
        owner: Option<u64>,
    },
    /// A binding is gone: its document.
    Unbind {
        key: String,
        document: String,
    },
    DropExchange(String),
    DropQueue(String),
    DropPolicy {
        is_operator: bool,
        name: String,
    },
}

impl Wire {
    /// The key of what is there; empty for what is gone.
    pub(crate) fn key(&self) -> &str {
        match self {
            Wire::Put { key, .. } => key,
            _ => "",
        }
    }

    /// `stream` is the stream of a queue that is put.
    pub(crate) fn of(change: &Change, stream: &str) -> Self {
        let text = |document: Option<Bytes>| {
            // What serde has written is UTF-8.
            String::from_utf8(document.map(|bytes| bytes.to_vec()).unwrap_or_default()).unwrap_or_default()
        };
        match change {
            Change::DropExchange(name) => Wire::DropExchange(name.to_string()),
            Change::DropQueue(name) => Wire::DropQueue(name.to_string()),
            Change::DropPolicy(scope, name) => {
                Wire::DropPolicy { is_operator: *scope == Scope::Operator, name: name.to_string() }
            }
            Change::Unbind(binding) => {
                let (key, document) = entry(&Change::Bind(binding.clone()), stream);
                Wire::Unbind { key, document: text(document) }
            }
            put => {
                let (key, document) = entry(put, stream);
                let owner = match put {
                    Change::PutQueue(queue) => queue.owner.map(|owner| owner.0),
                    _ => None,
                };
                Wire::Put { key, document: text(document), owner }
            }
        }
    }

    /// The change and, for a queue that is put, its stream; `None` for what cannot be read.
    pub(crate) fn change(&self, vhost: &str) -> Option<(Change, Option<String>)> {
        Some(match self {
            Wire::Put { key, document, owner } => {
                let (mut change, stream) = read(vhost, key, document.as_bytes())?;
                if let Change::PutQueue(queue) = &mut change {
                    queue.owner = owner.map(Owner);
                }
                (change, stream)
            }
            Wire::Unbind { key, document } => match read(vhost, key, document.as_bytes())? {
                (Change::Bind(binding), _) => (Change::Unbind(binding), None),
                _ => return None,
            },
            Wire::DropExchange(name) => (Change::DropExchange(name.as_str().into()), None),
            Wire::DropQueue(name) => (Change::DropQueue(name.as_str().into()), None),
            Wire::DropPolicy { is_operator, name } => {
                let scope = if *is_operator { Scope::Operator } else { Scope::User };
                (Change::DropPolicy(scope, name.as_str().into()), None)
            }
        })
    }
}

fn read(vhost: &str, key: &str, value: &[u8]) -> Option<(Change, Option<String>)> {
    let mut stream = None;
    let change = match key.split('.').next()? {
        "x" => {
            let document: ExchangeDocument = serde_json::from_slice(value).ok()?;
            Change::PutExchange(ExchangeDefinition {
                name: document.name.into(),
                kind: ExchangeKind::from_name(&document.kind).ok()?,
                durable: document.durable,
                auto_delete: document.auto_delete,
                internal: document.internal,
                arguments: table::from_base64(&document.arguments)?,
            })
        }
        "q" => {
            let document: QueueDocument = serde_json::from_slice(value).ok()?;
            let arguments = table::from_base64(&document.arguments)?;
            let settings = QueueArguments::read(&arguments, &display(vhost, &document.name)).ok()?;
            stream = Some(document.stream);
            Change::PutQueue(QueueDefinition {
                name: document.name.into(),
                durable: document.durable,
                owner: None,
                auto_delete: document.auto_delete,
                arguments,
                settings,
            })
        }
        "b" => {
            let document: BindingDocument = serde_json::from_slice(value).ok()?;
            Change::Bind(BindingDefinition {
                source: document.source.into(),
                destination: match document.to_queue {
                    true => Destination::Queue(document.destination.into()),
                    false => Destination::Exchange(document.destination.into()),
                },
                routing_key: document.routing_key.into(),
                arguments: table::from_base64(&document.arguments)?,
            })
        }
        "p" => Change::PutPolicy(read_policy(Scope::User, value)?),
        "o" => Change::PutPolicy(read_policy(Scope::Operator, value)?),
        _ => return None,
    };
    Some((change, stream))
}

/// The key of what a change is about, and its document; `None` for what goes.
fn entry(change: &Change, stream: &str) -> (String, Option<Bytes>) {
    match change {
        Change::PutExchange(exchange) => {
            let document = ExchangeDocument {
                name: exchange.name.to_string(),
                kind: exchange.kind.name().to_owned(),
                durable: exchange.durable,
                auto_delete: exchange.auto_delete,
                internal: exchange.internal,
                arguments: table::to_base64(&exchange.arguments),
            };
            (format!("x.{}", token(&exchange.name)), json(&document))
        }
        Change::DropExchange(exchange) => (format!("x.{}", token(exchange)), None),
        Change::PutQueue(queue) => {
            let document = QueueDocument {
                name: queue.name.to_string(),
                durable: queue.durable,
                auto_delete: queue.auto_delete,
                arguments: table::to_base64(&queue.arguments),
                stream: stream.to_owned(),
            };
            (format!("q.{}", token(&queue.name)), json(&document))
        }
        Change::DropQueue(queue) => (format!("q.{}", token(queue)), None),
        Change::Bind(binding) => {
            let document = BindingDocument {
                source: binding.source.to_string(),
                to_queue: binding.destination.is_queue(),
                destination: binding.destination.name().to_string(),
                routing_key: binding.routing_key.to_string(),
                arguments: table::to_base64(&binding.arguments),
            };
            (binding_key(binding), json(&document))
        }
        Change::Unbind(binding) => (binding_key(binding), None),
        Change::PutPolicy(policy) => (policy_key(policy.scope, &policy.name), json(&policy_document(policy))),
        Change::DropPolicy(scope, name) => (policy_key(*scope, name), None),
    }
}

fn read_policy(scope: Scope, value: &[u8]) -> Option<Policy> {
    let document: PolicyDocument = serde_json::from_slice(value).ok()?;
    let settings = document.definition.into_iter().map(|(name, value)| {
        let value = match value {
            Value::Integer(number) => PolicyValue::Integer(number),
            Value::Text(text) => PolicyValue::Text(text),
        };
        (name, value)
    });
    let apply_to = ApplyTo::from_name(&document.apply_to).ok()?;
    Policy::new(scope, &document.name, &document.pattern, apply_to, document.priority, settings.collect()).ok()
}

fn policy_document(policy: &Policy) -> PolicyDocument {
    let definition = policy.settings.iter().map(|(name, value)| {
        let value = match value {
            PolicyValue::Integer(number) => Value::Integer(*number),
            PolicyValue::Text(text) | PolicyValue::Other(text) => Value::Text(text.clone()),
        };
        (name.clone(), value)
    });
    PolicyDocument {
        name: policy.name.to_string(),
        pattern: policy.pattern.to_string(),
        apply_to: policy.apply_to.name().to_owned(),
        priority: policy.priority,
        definition: definition.collect(),
    }
}

fn policy_key(scope: Scope, name: &str) -> String {
    let kind = match scope {
        Scope::User => 'p',
        Scope::Operator => 'o',
    };
    // NATS's keys have no empty parts.
    format!("{kind}.{}", if name.is_empty() { "=".to_owned() } else { token(name) })
}

fn binding_key(binding: &BindingDefinition) -> String {
    let kind = if binding.destination.is_queue() { 'q' } else { 'e' };
    let hash = hash(&binding.routing_key, &binding.arguments);
    format!("b.{}.{kind}.{}.{hash:032x}", token(&binding.source), token(binding.destination.name()))
}

fn hash(routing_key: &str, arguments: &FieldTable) -> u128 {
    let mut bytes = routing_key.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend(table::to_bytes(arguments));
    xxh3_128(&bytes)
}

fn token(text: &str) -> String {
    name::short(&name::token(text), 200)
}

fn json(document: &impl Serialize) -> Option<Bytes> {
    // These documents hold texts and flags alone, which always serialize.
    serde_json::to_vec(document).ok().map(Bytes::from)
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, format!("could not {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_gateway_hears_every_change_as_it_is() {
        let binding = BindingDefinition {
            source: "x".into(),
            destination: Destination::Exchange("y".into()),
            routing_key: "k".into(),
            arguments: FieldTable::default(),
        };
        let exclusive = QueueDefinition {
            name: "q".into(),
            durable: false,
            owner: Some(Owner(7 << 32)),
            auto_delete: true,
            arguments: FieldTable::default(),
            settings: QueueArguments::default(),
        };
        for change in [
            Change::PutQueue(exclusive),
            Change::Bind(binding.clone()),
            Change::Unbind(binding),
            Change::DropQueue("a.b".into()),
            Change::DropExchange("x".into()),
            Change::DropPolicy(Scope::Operator, "p".into()),
        ] {
            let wire = serde_json::to_vec(&Wire::of(&change, "S")).expect("written");
            let wire: Wire = serde_json::from_slice(&wire).expect("read");
            let stream = matches!(change, Change::PutQueue(_)).then(|| "S".to_owned());
            assert_eq!(wire.change("/"), Some((change, stream)));
        }
    }

    #[test]
    fn binding_keys_tell_bindings_apart() {
        let binding = |key: &str| BindingDefinition {
            source: "x".into(),
            destination: Destination::Queue("q.1".into()),
            routing_key: key.into(),
            arguments: FieldTable::default(),
        };
        assert_ne!(binding_key(&binding("a")), binding_key(&binding("b")));
        assert!(binding_key(&binding("a")).starts_with("b.x.q.q=2E1."));
    }
}
