//! The bindings of one exchange, arranged for its type.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{BindingDefinition, Target};
use crate::model::exchange::ExchangeKind;
use crate::model::headers::HeadersTable;
use crate::model::topic::TopicTable;

#[derive(Debug)]
pub(super) enum Table {
    Direct(HashMap<Arc<str>, SmallVec<[Target; 2]>>),
    Fanout(Vec<Target>),
    Topic(TopicTable),
    Headers(HeadersTable),
}

impl Table {
    pub(super) fn new(kind: ExchangeKind) -> Self {
        match kind {
            ExchangeKind::Direct => Table::Direct(HashMap::new()),
            ExchangeKind::Fanout => Table::Fanout(Vec::new()),
            ExchangeKind::Topic => Table::Topic(TopicTable::default()),
            ExchangeKind::Headers => Table::Headers(HeadersTable::default()),
        }
    }

    pub(super) fn insert(&mut self, definition: &BindingDefinition, target: Target) {
        match self {
            Table::Direct(table) => table.entry(definition.routing_key.clone()).or_default().push(target),
            Table::Fanout(targets) => targets.push(target),
            Table::Topic(table) => table.insert(&definition.routing_key, target),
            Table::Headers(table) => table.insert(&definition.arguments, target),
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
        }
    }
}
