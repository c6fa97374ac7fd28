//! What JetStream has to have so that it does what a RabbitMQ does: all that lasts and maps. What is left out is named.

use amqp_compat::backend::jetstream::JetStreamConfig;
use amqp_compat::backend::{Binding, ExchangeDeclare, QueueDeclare};
use amqp_compat::model::beside_rabbitmq;
use amqp_compat::model::queue::{Owner, QueueDefinition};
use amqp_compat::model::vhost::{BindingDefinition, Change, QueuePlan, Vhost};
use serde_json::Value;

use super::things::{self, Key, Kind, Things};
use crate::assess::inventory::{Declared, Policy, binding_name};
use crate::assess::{Inventory, Way};
use crate::control::audit;
use crate::management::documents::table;

/// Who declares, as the owner of exclusive queues.
const SOMEBODY: Owner = Owner(1);

/// What a queue that RabbitMQ named begins with.
const SERVER_NAMED: &str = "amq.gen-";

/// For which gateway a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How the applications are to move.
    pub way: Way,
    /// How many servers hold a durable classic queue.
    pub replicas: u8,
}

impl Settings {
    /// The gateway's configuration, as far as it decides what is made.
    pub fn config(self) -> JetStreamConfig {
        JetStreamConfig {
            replicas: self.replicas.into(),
            behind_rabbitmq: self.way == Way::Sidecar,
            ..JetStreamConfig::default()
        }
    }
}

/// A thing that RabbitMQ has and a plan does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Which.
    pub key: Key,
    /// Why.
    pub why: String,
    /// Whether JetStream would refuse it, so that something is amiss; else its application makes it.
    pub is_refused: bool,
}

/// What a RabbitMQ asks for.
#[derive(Debug, Default)]
pub struct Wanted {
    /// What is to be declared.
    pub things: Things,
    /// What is to be there as well, and only its application can declare.
    pub by_applications: Things,
    /// What is not to be there.
    pub left_out: Vec<LeftOut>,
}

impl Wanted {
    /// What is asked for under these settings.
    pub fn of(inventory: &Inventory, settings: Settings) -> Self {
        let mut wanted = Self::default();
        for (vhost, declared) in &inventory.vhosts {
            let of_vhost = inventory.policies.iter().filter(|policy| policy.vhost == *vhost);
            of_vhost.for_each(|policy| wanted.policy(policy, settings.way));
            Trial { vhost, settings, model: Vhost::new(vhost), wanted: &mut wanted }.all(declared);
        }
        for finding in &inventory.unread {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == finding.entity.kind);
            if let (Some(vhost), Some(kind)) = (&finding.entity.vhost, kind) {
                wanted.leave_out(Key::new(vhost, kind, &*finding.entity.name), finding.what.clone(), true);
            }
        }
        wanted
    }

    /// What is to be there in the end, whoever declares it.
    pub fn all(&self) -> Things {
        let both = self.things.iter().chain(&self.by_applications);
        both.map(|(key, thing)| (key.clone(), thing.clone())).collect()
    }

    /// How many things JetStream would refuse.
    pub fn refused(&self) -> usize {
        self.left_out.iter().filter(|left| left.is_refused).count()
    }

    fn leave_out(&mut self, key: Key, why: impl Into<String>, is_refused: bool) {
        self.left_out.push(LeftOut { key, why: why.into(), is_refused });
    }

    fn policy(&mut self, policy: &Policy, way: Way) {
        let kind = if policy.is_operator { Kind::OperatorPolicy } else { Kind::Policy };
        let key = Key::new(&policy.vhost, kind, &*policy.name);
        let missed = audit::missed(&policy.definition);
        if missed.is_empty() {
            return self.leave_out(key, "it says only how RabbitMQ keeps queues", false);
        }
        match (way, &policy.taken) {
            (Way::Sidecar, _) => {
                self.leave_out(
                    key,
                    format!("a sidecar has no policies, and this one sets {}", missed.join(", ")),
                    true,
                );
            }
            (Way::Serve, Err(why)) => self.leave_out(key, why.clone(), true),
            (Way::Serve, Ok(taken)) => things::put_policy(&mut self.things, &policy.vhost, taken),
        }
    }
}

/// A vhost into which everything is declared, to see what comes of it.
struct Trial<'a> {
    vhost: &'a str,
    settings: Settings,
    model: Vhost,
    wanted: &'a mut Wanted,
}

impl Trial<'_> {
    fn all(mut self, declared: &Declared) {
        declared.exchanges.iter().for_each(|asked| self.exchange(asked));
        declared.queues.iter().for_each(|asked| self.queue(asked));
        declared.bindings.iter().for_each(|(asked, to_queue)| self.binding(asked, *to_queue));
    }

    fn is_beside(&self) -> bool {
        self.settings.way == Way::Sidecar
    }

    fn exchange(&mut self, asked: &ExchangeDeclare) {
        let key = Key::new(self.vhost, Kind::Exchange, asked.exchange.as_str());
        let definition = match self.model.plan_exchange_declare(asked) {
            Ok(Some(Change::PutExchange(definition))) => definition,
            Ok(_) => return,
            Err(error) => return self.wanted.leave_out(key, error.to_string(), true),
        };
        if self.is_beside()
            && let Err(error) = beside_rabbitmq::check_exchange(self.vhost, &definition)
        {
            return self.wanted.leave_out(key, error.to_string(), true);
        }
        match definition.durable {
            true => things::put_exchange(&mut self.wanted.things, self.vhost, &definition),
            false => self.wanted.leave_out(key, "not durable: its application declares it", false),
        }
        self.model.apply(&Change::PutExchange(definition));
    }

    fn queue(&mut self, asked: &QueueDeclare) {
        let name = asked.queue.as_str();
        let key = Key::new(self.vhost, Kind::Queue, name);
        let is_named_by_server = name.starts_with(SERVER_NAMED);
        let asked_for = match is_named_by_server {
            true => &QueueDeclare { queue: Default::default(), ..asked.clone() },
            false => asked,
        };
        let definition = match self.model.plan_queue_declare(asked_for, name, SOMEBODY) {
            Ok(QueuePlan::Create(definition)) => *definition,
            Ok(QueuePlan::Exists(_)) => return,
            Err(error) => return self.wanted.leave_out(key, error.to_string(), true),
        };
        if self.is_beside()
            && let Err(error) = beside_rabbitmq::check_queue(self.vhost, &definition)
        {
            return self.wanted.leave_out(key, error.to_string(), true);
        }
        match goes_away(&definition, is_named_by_server) {
            Some(why) => self.wanted.leave_out(key, why, false),
            None => {
                if let Some(shape) = self.settings.config().shape(self.vhost, &definition) {
                    things::put_shaped_queue(&mut self.wanted.things, self.vhost, &definition, &shape);
                }
            }
        }
        self.model.apply(&Change::PutQueue(definition));
    }

    fn binding(&mut self, asked: &Binding, to_queue: bool) {
        let definition = match self.model.plan_bind(asked, to_queue, SOMEBODY) {
            Ok(Some(Change::Bind(definition))) => definition,
            Ok(_) => return,
            Err(error) => {
                let kind = if to_queue { "queue" } else { "exchange" };
                let arguments = table::to_json(&asked.arguments);
                let (source, destination) = (asked.source.as_str(), asked.destination.as_str());
                let name = binding_name(source, kind, destination, asked.routing_key.as_str(), &arguments);
                let to = if to_queue { Kind::Queue } else { Kind::Exchange };
                let why = match self.is_refused(Kind::Exchange, source) || self.is_refused(to, destination) {
                    true => "one of its ends is refused".to_owned(),
                    false => error.to_string(),
                };
                return self.wanted.leave_out(Key::new(self.vhost, Kind::Binding, name), why, true);
            }
        };
        self.model.apply(&Change::Bind(definition.clone()));
        let key = things::binding_key(self.vhost, &definition);
        if !self.model.is_persistent(&definition) || self.leads_to_one_that_is_made_up(&definition) {
            return self.wanted.leave_out(key, "one of its ends does not last: its application binds it", false);
        }
        let numbers = contains_number(&table::to_json(&definition.arguments));
        let things = if numbers { &mut self.wanted.by_applications } else { &mut self.wanted.things };
        things::put_binding(things, self.vhost, &definition);
    }

    fn is_refused(&self, kind: Kind, name: &str) -> bool {
        let key = Key::new(self.vhost, kind, name);
        self.wanted.left_out.iter().any(|left| left.is_refused && left.key == key)
    }

    fn leads_to_one_that_is_made_up(&self, definition: &BindingDefinition) -> bool {
        definition.destination.is_queue() && definition.destination.name().starts_with(SERVER_NAMED)
    }
}

/// Why a queue is left to its application.
fn goes_away(definition: &QueueDefinition, is_named_by_server: bool) -> Option<&'static str> {
    if definition.owner.is_some() {
        return Some("exclusive: it goes with its connection");
    }
    if is_named_by_server {
        return Some("RabbitMQ made up its name: its application asks for another one");
    }
    (!definition.durable).then_some("not durable: its application declares it")
}

/// Whether there is a number somewhere. What RabbitMQ tells has lost its width; a binding is another one with another width, and
/// could then not be taken away by the application that made it.
fn contains_number(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::Array(items) => items.iter().any(contains_number),
        Value::Object(fields) => fields.values().any(contains_number),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}
