//! A topology as a collection of named JSON documents, so that two of them can be compared whatever they come from.

use std::collections::BTreeMap;

use amqp_compat::backend::jetstream::QueueShape;
use amqp_compat::model::exchange::ExchangeDefinition;
use amqp_compat::model::policy::{Policy, Scope};
use amqp_compat::model::queue::QueueDefinition;
use amqp_compat::model::vhost::BindingDefinition;
use serde_json::{Value, json};

use crate::assess::inventory::binding_name;
use crate::management::documents::{binding, exchange, policy, queue, table};

/// What a thing is, in the order in which things are declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A policy.
    Policy,
    /// A policy of an operator.
    OperatorPolicy,
    /// An exchange.
    Exchange,
    /// A queue, with the stream that it becomes.
    Queue,
    /// A binding.
    Binding,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Kind; 5] = [Kind::Policy, Kind::OperatorPolicy, Kind::Exchange, Kind::Queue, Kind::Binding];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Policy => "policy",
            Kind::OperatorPolicy => "operator policy",
            Kind::Exchange => "exchange",
            Kind::Queue => "queue",
            Kind::Binding => "binding",
        }
    }

    /// The name of a list of them in a plan.
    pub fn list(self) -> &'static str {
        match self {
            Kind::Policy => "policies",
            Kind::OperatorPolicy => "operator_policies",
            Kind::Exchange => "exchanges",
            Kind::Queue => "queues",
            Kind::Binding => "bindings",
        }
    }
}

/// Which thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its vhost.
    pub vhost: String,
    /// What it is.
    pub kind: Kind,
    /// Its name; of a binding its ends, its key and its arguments.
    pub name: String,
}

impl Key {
    /// The thing of this name.
    pub fn new(vhost: &str, kind: Kind, name: impl Into<String>) -> Self {
        Self { vhost: vhost.to_owned(), kind, name: name.into() }
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({ "vhost": self.vhost, "kind": self.kind.name(), "name": self.name })
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} '{}' in vhost '{}'", self.kind.name(), self.name, self.vhost)
    }
}

/// Things as RabbitMQ's definitions have them, without their vhosts; a queue also with its stream and consumer.
pub type Things = BTreeMap<Key, Value>;

/// The settings of a stream that a plan shows and a comparison looks at.
const SHOWN: [&str; 12] = [
    "name",
    "subjects",
    "retention",
    "storage",
    "num_replicas",
    "discard",
    "max_msgs",
    "max_bytes",
    "max_age",
    "max_consumers",
    "duplicate_window",
    "allow_direct",
];

pub(super) fn put_exchange(things: &mut Things, vhost: &str, definition: &ExchangeDefinition) {
    things.insert(Key::new(vhost, Kind::Exchange, &*definition.name), exchange::definition(definition));
}

/// `stream` is its stream as JetStream's API has it, or null; `consumer` the name of its consumer, if it has one.
pub(super) fn put_queue(
    things: &mut Things,
    vhost: &str,
    definition: &QueueDefinition,
    stream: &Value,
    consumer: Option<&str>,
) {
    let mut document = queue::definition(definition);
    document["stream"] = match stream {
        Value::Null => Value::Null,
        stream => SHOWN.iter().map(|name| ((*name).to_owned(), stream[*name].clone())).collect(),
    };
    document["consumer"] = json!(consumer);
    things.insert(Key::new(vhost, Kind::Queue, &*definition.name), document);
}

pub(super) fn put_shaped_queue(things: &mut Things, vhost: &str, definition: &QueueDefinition, shape: &QueueShape) {
    put_queue(things, vhost, definition, &shape.stream, shape.consumer);
}

pub(super) fn binding_key(vhost: &str, definition: &BindingDefinition) -> Key {
    let kind = if definition.destination.is_queue() { "queue" } else { "exchange" };
    let arguments = table::to_json(&definition.arguments);
    let destination = definition.destination.name();
    let name = binding_name(&definition.source, kind, destination, &definition.routing_key, &arguments);
    Key::new(vhost, Kind::Binding, name)
}

pub(super) fn put_binding(things: &mut Things, vhost: &str, definition: &BindingDefinition) {
    things.insert(binding_key(vhost, definition), binding::definition(definition));
}

pub(super) fn put_policy(things: &mut Things, vhost: &str, of: &Policy) {
    let kind = match of.scope {
        Scope::User => Kind::Policy,
        Scope::Operator => Kind::OperatorPolicy,
    };
    let mut document = policy::document(vhost, of);
    if let Some(fields) = document.as_object_mut() {
        fields.remove("vhost");
    }
    things.insert(Key::new(vhost, kind, &*of.name), document);
}
