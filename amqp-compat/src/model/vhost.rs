//! One virtual host: what exists, what may be changed, and where a message goes.
//!
//! A change has two halves, so that whoever stores the topology can do it in between: `plan_*` checks a request and
//! answers with the [`Change`]s that it means; [`Vhost::apply`] makes one of them true, and makes nothing of one that
//! already is.

use std::sync::Arc;

use amq_protocol::types::FieldTable;
use foldhash::{HashMap, HashMapExt};

use super::exchange::{self, ExchangeDefinition};
use super::policy::{Policies, Policy, Scope};
use super::queue::{self, Owner, QueueDefinition};
use crate::error::{AmqpError, ReplyCode};

mod planning;
mod removal;
mod routing;
mod table;

pub use planning::QueuePlan;
pub use routing::{Route, extra_keys};
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
