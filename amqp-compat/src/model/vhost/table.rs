//! The bindings of one exchange, arranged for its type.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use smallvec::SmallVec;

use super::{BindingDefinition, Target};
use crate::model::consistent_hash::ConsistentHashTable;
use crate::model::exchange::{ExchangeDefinition, ExchangeKind};
use crate::model::headers::HeadersTable;
use crate::model::topic::TopicTable;

#[derive(Debug)]
pub(super) enum Table {
    Direct(HashMap<Arc<str>, SmallVec<[Target; 2]>>),
    Fanout(Vec<Target>),
    Topic(TopicTable),
    Headers(HeadersTable),
    ConsistentHash(ConsistentHashTable),
}

impl Table {
    pub(super) fn new(definition: &ExchangeDefinition) -> Self {
        match definition.routing() {
            // `routing` has named the type behind it.
            ExchangeKind::Direct | ExchangeKind::Delayed => Table::Direct(HashMap::new()),
            ExchangeKind::Fanout => Table::Fanout(Vec::new()),
            ExchangeKind::Topic => Table::Topic(TopicTable::default()),
            ExchangeKind::Headers => Table::Headers(HeadersTable::default()),
            ExchangeKind::ConsistentHash => Table::ConsistentHash(ConsistentHashTable::new(&definition.arguments)),
        }
    }

    pub(super) fn insert(&mut self, definition: &BindingDefinition, target: Target) {
        match self {
            Table::Direct(table) => table.entry(definition.routing_key.clone()).or_default().push(target),
            Table::Fanout(targets) => targets.push(target),
            Table::Topic(table) => table.insert(&definition.routing_key, target),
            Table::Headers(table) => table.insert(&definition.arguments, target),
            Table::ConsistentHash(table) => table.insert(&definition.routing_key, &definition.destination, target),
        }
    }

    pub(super) fn remove(&mut self, definition: &BindingDefinition, target: Target) {
        match self {
            Table::Direct(table) => {
                if let Some(targets) = table.get_mut(&definition.routing_key) {
                    if let Some(index) = targets.iter().position(|other| *other == target) {
                        targets.swap_remove(index);
                    }
                    if targets.is_empty() {
                        table.remove(&definition.routing_key);
                    }
                }
            }
            Table::Fanout(targets) => {
                if let Some(index) = targets.iter().position(|other| *other == target) {
                    targets.swap_remove(index);
                }
            }
            Table::Topic(table) => table.remove(&definition.routing_key, target),
            Table::Headers(table) => table.remove(&definition.arguments, target),
            Table::ConsistentHash(table) => table.remove(&definition.routing_key, target),
        }
    }
}
