//! One virtual host: what exists, what may be changed, and where a message goes.
//!
//! A change has two halves, so that whoever stores the topology can do it in between: `plan_*` checks a request and
//! answers with the [`Change`]s that it means; [`Vhost::apply`] makes one of them true, and makes nothing of one that
//! already is.

use std::collections::HashMap;
use std::sync::Arc;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, FieldTable};
use smallvec::SmallVec;

use super::consistent_hash;
use super::delay;
use super::exchange::{self, ExchangeDefinition, ExchangeKind};
use super::headers::{self};
use super::policy::{Policies, Policy, Scope};
use super::queue::{self, Owner, QueueDefinition};
use super::topic::TopicScratch;
use crate::backend::{Binding, ExchangeDeclare, QueueDeclare};
use crate::error::{AmqpError, ReplyCode};
use crate::model::arguments::{text, type_name};

mod removal;
mod table;

use removal::RemovalPlan;
use table::Table;

/// Where a binding leads: the slot of a queue or of an exchange in this vhost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A queue's slot.
    Queue(u32),
    /// An exchange's slot.
    Exchange(u32),
}

/// A binding, by names.
#[derive(Debug, Clone, PartialEq)]
pub struct BindingDefinition {
    /// The exchange that messages come from.
    pub source: Arc<str>,
    /// Where they go.
    pub destination: Destination,
    /// The binding key.
    pub routing_key: Arc<str>,
    /// The arguments.
    pub arguments: FieldTable,
}

/// The name of a binding's destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A queue.
    Queue(Arc<str>),
    /// An exchange.
    Exchange(Arc<str>),
}

impl Destination {
    /// Whether it is a queue.
    pub fn is_queue(&self) -> bool {
        matches!(self, Destination::Queue(_))
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Destination::Queue(name) | Destination::Exchange(name) => name,
        }
    }
}

/// One change of what exists.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// An exchange is there.
    PutExchange(ExchangeDefinition),
    /// An exchange is gone. Its bindings were taken away by changes before this one.
    DropExchange(Arc<str>),
    /// A queue is there.
    PutQueue(QueueDefinition),
    /// A queue is gone. Its bindings were taken away by changes before this one.
    DropQueue(Arc<str>),
    /// A binding is there.
    Bind(BindingDefinition),
    /// A binding is gone.
    Unbind(BindingDefinition),
    /// A policy is there, in the place of one of its name.
    PutPolicy(Policy),
    /// A policy is gone.
    DropPolicy(Scope, Arc<str>),
}

/// What a `queue.declare` means.
#[derive(Debug, Clone, PartialEq)]
pub enum QueuePlan {
    /// The queue is there, in this slot.
    Exists(u32),
    /// The queue is to be made.
    Create(Box<QueueDefinition>),
}

/// One virtual host.
#[derive(Debug)]
pub struct Vhost {
    name: Arc<str>,
    exchanges: Vec<Option<Exchange>>,
    exchange_slots: HashMap<Arc<str>, u32>,
    queues: Vec<Option<Queue>>,
    queue_slots: HashMap<Arc<str>, u32>,
    policies: Policies,
}

#[derive(Debug)]
struct Exchange {
    definition: ExchangeDefinition,
    /// Where messages go that nothing took: by its arguments, or else by policy.
    alternate: Option<Arc<str>>,
    table: Table,
    outgoing: Vec<Edge>,
    incoming: Vec<Edge>,
}

#[derive(Debug)]
struct Queue {
    definition: QueueDefinition,
    incoming: Vec<Edge>,
}

/// One binding, kept at both of its ends.
type Edge = Arc<BoundEdge>;

#[derive(Debug, PartialEq)]
struct BoundEdge {
    source: u32,
    target: Target,
    definition: BindingDefinition,
}

/// Room for [`Vhost::route`] to work in, and its answer; kept between calls so that routing does not allocate.
#[derive(Debug, Default)]
pub struct Route {
    /// The slots of the queues that get the message, in ascending order, each once.
    pub queues: SmallVec<[u32; 8]>,
    /// Delayed exchanges that keep the message first; when it is due, it is routed from each of them with its delay negated.
    pub delayed_by: SmallVec<[Arc<str>; 1]>,
    visited: SmallVec<[u32; 8]>,
    scratch: TopicScratch,
}

impl Vhost {
    /// A vhost with the exchanges that every vhost has.
    pub fn new(name: &str) -> Self {
        let mut vhost = Self {
            name: name.into(),
            exchanges: Vec::new(),
            exchange_slots: HashMap::new(),
            queues: Vec::new(),
            queue_slots: HashMap::new(),
            policies: Policies::default(),
        };
        for definition in ExchangeDefinition::predeclared() {
            vhost.put_exchange(definition);
        }
        vhost
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The definition of a queue by its slot.
    pub fn queue(&self, slot: u32) -> Option<&QueueDefinition> {
        self.queues.get(slot as usize)?.as_ref().map(|queue| &queue.definition)
    }

    /// The slot of a queue by its name.
    pub fn queue_slot(&self, name: &str) -> Option<u32> {
        self.queue_slots.get(name).copied()
    }

    /// The definition of an exchange by its name.
    pub fn exchange(&self, name: &str) -> Option<&ExchangeDefinition> {
        Some(&self.exchange_at(*self.exchange_slots.get(name)?)?.definition)
    }

    /// Its policies.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Every queue.
    pub fn queues(&self) -> impl Iterator<Item = &QueueDefinition> {
        self.queues.iter().flatten().map(|queue| &queue.definition)
    }

    /// Every exchange, the ones that every vhost has included.
    pub fn exchanges(&self) -> impl Iterator<Item = &ExchangeDefinition> {
        self.exchanges.iter().flatten().map(|exchange| &exchange.definition)
    }

    /// Every binding that was made; the default exchange has none.
    pub fn bindings(&self) -> impl Iterator<Item = &BindingDefinition> {
        self.exchanges.iter().flatten().flat_map(|exchange| exchange.outgoing.iter().map(|edge| &edge.definition))
    }

    /// Whether a binding outlives the broker: both of its ends do.
    pub fn is_persistent(&self, binding: &BindingDefinition) -> bool {
        let source = self.exchange(&binding.source).is_some_and(|exchange| exchange.durable);
        let destination = match &binding.destination {
            Destination::Exchange(name) => self.exchange(name).is_some_and(|exchange| exchange.durable),
            Destination::Queue(name) => {
                self.queue_slot(name).and_then(|slot| self.queue(slot)).is_some_and(QueueDefinition::is_persistent)
            }
        };
        source && destination
    }

    /// The queue of this name, for an operation by `by`.
    ///
    /// # Errors
    /// `NotFound`, or `ResourceLocked` for another connection's exclusive queue.
    pub fn queue_for(&self, name: &str, by: Owner) -> Result<(u32, &QueueDefinition), AmqpError> {
        let slot = self.queue_slot(name).ok_or_else(|| no_queue(&self.name, name))?;
        let definition = self.queue(slot).ok_or_else(|| no_queue(&self.name, name))?;
        definition.accessible_to(&self.name, by)?;
        Ok((slot, definition))
    }

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

    /// Makes a change true. Returns the slot of the queue that it made, or took away.
    pub fn apply(&mut self, change: &Change) -> Option<u32> {
        match change {
            Change::PutExchange(definition) => {
                self.put_exchange(definition.clone());
                None
            }
            Change::DropExchange(name) => {
                self.drop_exchange(name);
                None
            }
            Change::PutQueue(definition) => Some(self.put_queue(definition.clone())),
            Change::DropQueue(name) => self.drop_queue(name),
            Change::Bind(binding) => {
                self.bind(binding);
                None
            }
            Change::Unbind(binding) => {
                self.unbind(binding);
                None
            }
            Change::PutPolicy(policy) => {
                self.policies.put(policy.clone());
                self.find_alternates();
                None
            }
            Change::DropPolicy(scope, name) => {
                self.policies.drop(*scope, name);
                self.find_alternates();
                None
            }
        }
    }

    /// Whether messages may be published to an exchange.
    ///
    /// # Errors
    /// `NotFound` for one that is not there, `AccessRefused` for an internal one.
    pub fn publishable(&self, exchange: &str) -> Result<(), AmqpError> {
        let there = self.exchange(exchange).ok_or_else(|| no_exchange(&self.name, exchange))?;
        if there.internal {
            return Err(AmqpError::new(
                ReplyCode::AccessRefused,
                format!("cannot publish to internal {}", exchange::display(&self.name, exchange)),
            ));
        }
        Ok(())
    }

    /// Finds the queues that get a message, into `route.queues`.
    ///
    /// `keys` are the routing key and those of `CC` and `BCC` ([`extra_keys`]).
    ///
    /// # Errors
    /// `NotFound` for an exchange that is not there, `AccessRefused` for an internal one.
    pub fn route(
        &self,
        exchange: &str,
        keys: &[&str],
        properties: Option<&AMQPProperties>,
        route: &mut Route,
    ) -> Result<(), AmqpError> {
        if exchange.is_empty() {
            self.collect(None, keys, properties, route);
            return Ok(());
        }
        self.publishable(exchange)?;
        let slot = *self.exchange_slots.get(exchange).ok_or_else(|| no_exchange(&self.name, exchange))?;
        self.collect(Some(slot), keys, properties, route);
        Ok(())
    }

    /// [`Self::route`] for the broker itself, which may use internal exchanges; an exchange that is not there has no
    /// queues.
    pub fn route_within(&self, exchange: &str, keys: &[&str], properties: Option<&AMQPProperties>, route: &mut Route) {
        match self.exchange_slots.get(exchange) {
            _ if exchange.is_empty() => self.collect(None, keys, properties, route),
            Some(&first) => self.collect(Some(first), keys, properties, route),
            None => {
                route.queues.clear();
                route.delayed_by.clear();
            }
        }
    }

    /// From the exchange in slot `first`, or from the default exchange.
    fn collect(&self, first: Option<u32>, keys: &[&str], properties: Option<&AMQPProperties>, route: &mut Route) {
        route.queues.clear();
        route.delayed_by.clear();
        match first {
            None => route.queues.extend(keys.iter().filter_map(|key| self.queue_slot(key))),
            Some(slot) => self.walk(slot, keys, properties, route),
        }
        route.queues.sort_unstable();
        route.queues.dedup();
    }

    fn walk(&self, first: u32, keys: &[&str], properties: Option<&AMQPProperties>, route: &mut Route) {
        let Route { queues, delayed_by, visited, scratch } = route;
        let is_delayed = properties.is_some_and(|properties| matches!(delay::delay_of(properties), Ok(Some(_))));
        visited.clear();
        visited.push(first);
        let mut next = 0;
        while let Some(&slot) = visited.get(next) {
            next += 1;
            let Some(exchange) = self.exchange_at(slot) else { continue };
            if is_delayed && exchange.definition.kind == ExchangeKind::Delayed {
                delayed_by.push(exchange.definition.name.clone());
                continue;
            }
            let mut routed = false;
            let mut found = |target: Target| {
                routed = true;
                match target {
                    Target::Queue(queue) => queues.push(queue),
                    Target::Exchange(exchange) => {
                        if !visited.contains(&exchange) {
                            visited.push(exchange);
                        }
                    }
                }
            };
            match &exchange.table {
                Table::Direct(table) => {
                    for key in keys {
                        table.get(*key).into_iter().flatten().for_each(|target| found(*target));
                    }
                }
                Table::Fanout(targets) => targets.iter().for_each(|target| found(*target)),
                Table::Topic(table) => keys.iter().for_each(|key| table.route(key, scratch, &mut found)),
                Table::Headers(table) => {
                    table.route(properties.and_then(|properties| properties.headers().as_ref()), found);
                }
                // One destination, by the routing key alone, as in RabbitMQ: those of `CC` and `BCC` do not count.
                Table::ConsistentHash(table) => {
                    keys.first().and_then(|key| table.route(key, properties)).into_iter().for_each(found);
                }
            }
            // Each exchange on the way has its own alternate: it takes what that exchange had no binding for.
            if !routed
                && let Some(name) = exchange.alternate.as_deref()
                && !name.is_empty()
                && let Some(&alternate) = self.exchange_slots.get(name)
                && !visited.contains(&alternate)
            {
                visited.push(alternate);
            }
        }
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

    fn exchange_at(&self, slot: u32) -> Option<&Exchange> {
        self.exchanges.get(slot as usize)?.as_ref()
    }

    fn put_exchange(&mut self, definition: ExchangeDefinition) {
        if self.exchange_slots.contains_key(&definition.name) {
            return;
        }
        let table = Table::new(&definition);
        let name = definition.name.clone();
        let alternate = alternate(&self.policies, &definition);
        let exchange = Exchange { definition, alternate, table, outgoing: Vec::new(), incoming: Vec::new() };
        let slot = fill(&mut self.exchanges, exchange);
        self.exchange_slots.insert(name, slot);
    }

    fn find_alternates(&mut self) {
        for exchange in self.exchanges.iter_mut().flatten() {
            exchange.alternate = alternate(&self.policies, &exchange.definition);
        }
    }

    fn drop_exchange(&mut self, name: &str) {
        let Some(slot) = self.exchange_slots.remove(name) else { return };
        let Some(exchange) = self.exchanges[slot as usize].take() else { return };
        for edge in exchange.outgoing.iter().chain(&exchange.incoming) {
            self.detach(edge);
        }
    }

    fn put_queue(&mut self, definition: QueueDefinition) -> u32 {
        if let Some(slot) = self.queue_slot(&definition.name) {
            return slot;
        }
        let name = definition.name.clone();
        let slot = fill(&mut self.queues, Queue { definition, incoming: Vec::new() });
        self.queue_slots.insert(name, slot);
        slot
    }

    fn drop_queue(&mut self, name: &str) -> Option<u32> {
        let slot = self.queue_slots.remove(name)?;
        let queue = self.queues[slot as usize].take()?;
        for edge in &queue.incoming {
            self.detach(edge);
        }
        Some(slot)
    }

    fn bind(&mut self, definition: &BindingDefinition) {
        let Some(&source) = self.exchange_slots.get(&definition.source) else { return };
        let target = match &definition.destination {
            Destination::Queue(name) => self.queue_slot(name).map(Target::Queue),
            Destination::Exchange(name) => self.exchange_slots.get(name).copied().map(Target::Exchange),
        };
        let Some(target) = target else { return };
        let edge = Arc::new(BoundEdge { source, target, definition: definition.clone() });
        let Some(exchange) = self.exchanges[source as usize].as_mut() else { return };
        if exchange.outgoing.contains(&edge) {
            return;
        }
        exchange.table.insert(definition, target);
        exchange.outgoing.push(edge.clone());
        match target {
            Target::Queue(slot) => {
                if let Some(queue) = self.queues[slot as usize].as_mut() {
                    queue.incoming.push(edge);
                }
            }
            Target::Exchange(slot) => {
                if let Some(exchange) = self.exchanges[slot as usize].as_mut() {
                    exchange.incoming.push(edge);
                }
            }
        }
    }

    fn unbind(&mut self, definition: &BindingDefinition) {
        let source = self.exchange_slots.get(&definition.source).and_then(|slot| self.exchange_at(*slot));
        let edge = source.and_then(|exchange| exchange.outgoing.iter().find(|edge| edge.definition == *definition));
        if let Some(edge) = edge.cloned() {
            self.detach(&edge);
        }
    }

    /// Takes a binding away at both of its ends, as far as they are still there.
    fn detach(&mut self, edge: &Edge) {
        let forget = |edges: &mut Vec<Edge>| {
            if let Some(index) = edges.iter().position(|other| Arc::ptr_eq(other, edge)) {
                edges.swap_remove(index);
            }
        };
        if let Some(exchange) = self.exchanges[edge.source as usize].as_mut() {
            forget(&mut exchange.outgoing);
            exchange.table.remove(&edge.definition, edge.target);
        }
        match edge.target {
            Target::Queue(slot) => {
                if let Some(queue) = self.queues[slot as usize].as_mut() {
                    forget(&mut queue.incoming);
                }
            }
            Target::Exchange(slot) => {
                if let Some(exchange) = self.exchanges[slot as usize].as_mut() {
                    forget(&mut exchange.incoming);
                }
            }
        }
    }
}

fn alternate(policies: &Policies, definition: &ExchangeDefinition) -> Option<Arc<str>> {
    match definition.alternate() {
        Some(own) => Some(own.into()),
        None => policies.alternate_of(&definition.name).map(Arc::from),
    }
}

/// The routing keys that a message's `CC` and `BCC` headers add.
///
/// # Errors
/// `PreconditionFailed` with RabbitMQ's text when one of them is no array. Entries that are no text are skipped, as
/// RabbitMQ does.
pub fn extra_keys(properties: &AMQPProperties) -> Result<SmallVec<[&str; 2]>, AmqpError> {
    let mut keys = SmallVec::new();
    let Some(headers) = properties.headers() else { return Ok(keys) };
    for name in ["CC", "BCC"] {
        match headers.inner().get(name) {
            None => {}
            Some(AMQPValue::FieldArray(values)) => {
                keys.extend(values.as_slice().iter().filter_map(super::arguments::text));
            }
            Some(other) => {
                return Err(AmqpError::new(
                    ReplyCode::PreconditionFailed,
                    format!("invalid message: {{unacceptable_type_in_header,\"{name}\",{}}}", type_name(other)),
                ));
            }
        }
    }
    Ok(keys)
}

/// 404 for a queue.
pub fn no_queue(vhost: &str, name: &str) -> AmqpError {
    AmqpError::new(ReplyCode::NotFound, format!("no {}", queue::display(vhost, name)))
}

/// 404 for an exchange.
pub fn no_exchange(vhost: &str, name: &str) -> AmqpError {
    AmqpError::new(ReplyCode::NotFound, format!("no {}", exchange::display(vhost, name)))
}

/// A name as RabbitMQ stores it: without carriage returns and line feeds.
pub fn without_line_ends(name: &str) -> String {
    name.replace(['\r', '\n'], "")
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

fn fill<T>(slots: &mut Vec<Option<T>>, value: T) -> u32 {
    let index = match slots.iter().position(Option::is_none) {
        Some(index) => {
            slots[index] = Some(value);
            index
        }
        None => {
            slots.push(Some(value));
            slots.len() - 1
        }
    };
    u32::try_from(index).expect("fewer than 2^32 queues or exchanges in memory")
}

#[cfg(test)]
mod tests;
