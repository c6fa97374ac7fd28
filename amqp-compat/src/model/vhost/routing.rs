//! Where a message goes.

use std::sync::Arc;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use smallvec::SmallVec;

use super::table::Table;
use super::{Target, Vhost, no_exchange};
use crate::error::{AmqpError, ReplyCode};
use crate::model::arguments::{text, type_name};
use crate::model::delay;
use crate::model::exchange::{self, ExchangeKind};
use crate::model::topic::TopicScratch;

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
                keys.extend(values.as_slice().iter().filter_map(text));
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
