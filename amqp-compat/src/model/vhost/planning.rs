//! What a request would change, or why it is refused.

use super::removal::RemovalPlan;
use super::{BindingDefinition, Change, Destination, Target, Vhost, no_exchange, no_queue, without_line_ends};
use crate::backend::{Binding, ExchangeDeclare, QueueDeclare};
use crate::error::{AmqpError, ReplyCode};
use crate::model::arguments::text;
use crate::model::exchange::{self, ExchangeDefinition, ExchangeKind};
use crate::model::queue::{Owner, QueueDefinition};
use crate::model::{consistent_hash, headers};

/// What a `queue.declare` means.
#[derive(Debug, Clone, PartialEq)]
pub enum QueuePlan {
    /// The queue is there, in this slot.
    Exists(u32),
    /// The queue is to be made.
    Create(Box<QueueDefinition>),
}

impl Vhost {
    /// What an `exchange.declare` means; `None` when there is nothing to do.
    ///
    /// # Errors
    /// RabbitMQ's: `NotFound` (passive), `PreconditionFailed` (not equivalent), `AccessRefused` (reserved name),
    /// `CommandInvalid` (unknown type).
    pub fn plan_exchange_declare(&self, declare: &ExchangeDeclare) -> Result<Option<Change>, AmqpError> {
        let name = without_line_ends(declare.exchange.as_str());
        if declare.passive {
            refuse_default(&name)?;
            return match self.exchange(&name) {
                Some(_) => Ok(None),
                None => Err(no_exchange(&self.name, &name)),
            };
        }
        let kind = ExchangeKind::from_name(declare.kind.as_str())?;
        refuse_default(&name)?;
        if let Some(existing) = self.exchange(&name) {
            existing.same_as(&self.name, declare, kind)?;
            return Ok(None);
        }
        refuse_reserved("exchange", &name)?;
        let mut definition = ExchangeDefinition::from_declare(&self.name, declare, kind)?;
        definition.name = name.into();
        Ok(Some(Change::PutExchange(definition)))
    }

    /// What an `exchange.delete` means; nothing for an exchange that is not there.
    ///
    /// # Errors
    /// `AccessRefused` for an exchange that every vhost has; `PreconditionFailed` when `if_unused` and it has bindings.
    pub fn plan_exchange_delete(&self, name: &str, if_unused: bool) -> Result<Vec<Change>, AmqpError> {
        let name = without_line_ends(name);
        refuse_default(&name)?;
        if name.starts_with("amq.") {
            return Err(AmqpError::new(
                ReplyCode::AccessRefused,
                format!("deletion of system {} not allowed", exchange::display(&self.name, &name)),
            ));
        }
        let Some(&slot) = self.exchange_slots.get(name.as_str()) else { return Ok(Vec::new()) };
        if if_unused && self.exchange_at(slot).is_some_and(|exchange| !exchange.outgoing.is_empty()) {
            return Err(AmqpError::new(
                ReplyCode::PreconditionFailed,
                format!("{} in use", exchange::display(&self.name, &name)),
            ));
        }
        Ok(self.plan_removal(Target::Exchange(slot)))
    }

    /// What a `queue.declare` by `by` means. `name` is the queue's name, made up by the caller when the client left it
    /// to the broker.
    ///
    /// # Errors
    /// RabbitMQ's: `NotFound` (passive), `ResourceLocked`, `PreconditionFailed` (not equivalent, or an invalid argument),
    /// `AccessRefused` (reserved name), `NotImplemented` (an argument that is not honoured).
    pub fn plan_queue_declare(&self, declare: &QueueDeclare, name: &str, by: Owner) -> Result<QueuePlan, AmqpError> {
        if declare.passive {
            let given = without_line_ends(declare.queue.as_str());
            return self.queue_for(&given, by).map(|(slot, _)| QueuePlan::Exists(slot));
        }
        let given = without_line_ends(name);
        if !declare.queue.as_str().is_empty() {
            refuse_reserved("queue", &given)?;
        }
        if let Some(slot) = self.queue_slot(&given) {
            let existing = self.queue(slot).ok_or_else(|| no_queue(&self.name, &given))?;
            existing.same_as(&self.name, declare, by)?;
            return Ok(QueuePlan::Exists(slot));
        }
        let is_quorum = declare.arguments.inner().get("x-queue-type").and_then(text) == Some("quorum");
        if declare.queue.as_str().is_empty() && is_quorum {
            return Err(AmqpError::new(
                ReplyCode::PreconditionFailed,
                "Cannot declare a server-named queue for type rabbit_quorum_queue",
            ));
        }
        QueueDefinition::from_declare(&self.name, &given, declare, by)
            .map(|definition| QueuePlan::Create(definition.into()))
    }

    /// What deleting a queue means for its bindings and for exchanges that go with the last binding.
    pub fn plan_queue_removal(&self, name: &str) -> Vec<Change> {
        self.queue_slot(name).map(|slot| self.plan_removal(Target::Queue(slot))).unwrap_or_default()
    }

    /// What a `queue.bind` or `exchange.bind` means; `None` when the binding is there.
    ///
    /// # Errors
    /// `NotFound`, `ResourceLocked`, `AccessRefused` (default exchange), `PreconditionFailed` (arguments).
    pub fn plan_bind(&self, binding: &Binding, to_queue: bool, by: Owner) -> Result<Option<Change>, AmqpError> {
        let definition = self.definition(binding, to_queue)?;
        let source = self.exchange_slots.get(&*definition.source).and_then(|slot| self.exchange_at(*slot));
        let source = source.ok_or_else(|| no_exchange(&self.name, &definition.source))?;
        match &definition.destination {
            Destination::Queue(name) => drop(self.queue_for(name, by)?),
            Destination::Exchange(name) => {
                self.exchange(name).ok_or_else(|| no_exchange(&self.name, name))?;
            }
        }
        match source.definition.routing() {
            ExchangeKind::Headers => headers::check(&definition.arguments)?,
            ExchangeKind::ConsistentHash => consistent_hash::check_weight(&definition.routing_key)?,
            ExchangeKind::Direct | ExchangeKind::Fanout | ExchangeKind::Topic | ExchangeKind::Delayed => {}
        }
        let exists = source.outgoing.iter().any(|edge| edge.definition == definition);
        Ok((!exists).then_some(Change::Bind(definition)))
    }

    /// What a `queue.unbind` or `exchange.unbind` means; nothing for a binding that is not there.
    ///
    /// # Errors
    /// `AccessRefused` for the default exchange, `ResourceLocked` for a binding of another connection's exclusive queue.
    pub fn plan_unbind(&self, binding: &Binding, to_queue: bool, by: Owner) -> Result<Vec<Change>, AmqpError> {
        let definition = self.definition(binding, to_queue)?;
        let Some(source) = self.exchange_slots.get(&*definition.source).and_then(|slot| self.exchange_at(*slot)) else {
            return Ok(Vec::new());
        };
        let Some(edge) = source.outgoing.iter().find(|edge| edge.definition == definition) else {
            return Ok(Vec::new());
        };
        if let Destination::Queue(name) = &definition.destination
            && let Some(queue) = self.queue_slot(name).and_then(|slot| self.queue(slot))
        {
            queue.accessible_to(&self.name, by)?;
        }
        let mut plan = RemovalPlan::new(self);
        plan.unbind(edge);
        Ok(plan.changes)
    }

    fn definition(&self, binding: &Binding, to_queue: bool) -> Result<BindingDefinition, AmqpError> {
        let source = without_line_ends(binding.source.as_str());
        let destination = without_line_ends(binding.destination.as_str());
        refuse_default(&source)?;
        if !to_queue {
            refuse_default(&destination)?;
        }
        Ok(BindingDefinition {
            source: source.into(),
            destination: match to_queue {
                true => Destination::Queue(destination.into()),
                false => Destination::Exchange(destination.into()),
            },
            routing_key: binding.routing_key.as_str().into(),
            arguments: binding.arguments.clone(),
        })
    }

    fn plan_removal(&self, target: Target) -> Vec<Change> {
        let mut plan = RemovalPlan::new(self);
        plan.remove(target);
        plan.changes
    }
}

fn refuse_default(name: &str) -> Result<(), AmqpError> {
    match name.is_empty() {
        true => Err(AmqpError::new(ReplyCode::AccessRefused, "operation not permitted on the default exchange")),
        false => Ok(()),
    }
}

fn refuse_reserved(what: &str, name: &str) -> Result<(), AmqpError> {
    match name.starts_with("amq.") {
        true => Err(AmqpError::new(
            ReplyCode::AccessRefused,
            format!("{what} name '{name}' contains reserved prefix 'amq.*'"),
        )),
        false => Ok(()),
    }
}
