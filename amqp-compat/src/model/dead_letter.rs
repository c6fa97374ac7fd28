//! What becomes of a message that is dead-lettered: its new exchange and routing keys, and the `x-death` header that
//! tells where it has been.
//!
//! RabbitMQ 3.10's rules, seen on a running one: an entry for each queue and reason, the newest first and the others turned
//! round each time; an entry that is there already is counted up, and keeps its time. Entries without a count (those of
//! old versions, several for one queue and reason) become one that counts them. What a client has put in the place of
//! the header and is no list is replaced.

use std::collections::BTreeMap;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use smallvec::SmallVec;

use super::arguments::{integer, text};
use super::queue::QueueArguments;
use crate::backend::Message;

/// The header that tells where a message has died.
pub const X_DEATH: &str = "x-death";

/// The header of a quorum queue's deliveries that tells how often the message came back before.
pub const X_DELIVERY_COUNT: &str = "x-delivery-count";

/// Why a message is dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A consumer refused it.
    Rejected,
    /// It was too old.
    Expired,
    /// The queue was full.
    MaxLength,
    /// It came back too often.
    DeliveryLimit,
}

impl Reason {
    /// Its name in `x-death`.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Rejected => "rejected",
            Reason::Expired => "expired",
            Reason::MaxLength => "maxlen",
            Reason::DeliveryLimit => "delivery_limit",
        }
    }
}

/// Where, why and when a message died.
#[derive(Debug, Clone, Copy)]
pub struct Death<'a> {
    /// The queue.
    pub queue: &'a str,
    /// Why.
    pub reason: Reason,
    /// Seconds since 1970.
    pub at: u64,
}

/// A message on its way to a dead-letter exchange.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The message; its exchange is the dead-letter exchange.
    pub message: Message,
    /// Routing keys that its publisher gave as `BCC`, which no header of the message shows.
    pub bcc: Vec<ShortString>,
}

impl DeadLetter {
    /// The message that died, as its queue dead-letters it; `None` when the queue has no dead-letter exchange.
    pub fn new(message: Message, bcc: Vec<ShortString>, queue: &QueueArguments, death: Death<'_>) -> Option<Self> {
        let exchange = ShortString::try_new(queue.dead_letter_exchange.as_deref()?).ok()?;
        let new_key = queue.dead_letter_routing_key.as_deref().and_then(|key| ShortString::try_new(key).ok());
        let Message { exchange: from, routing_key, properties, body } = message;
        let mut headers: BTreeMap<ShortString, AMQPValue> =
            properties.headers().as_ref().map(|headers| headers.inner().clone()).unwrap_or_default();
        let entry = entry(&headers, &from, &routing_key, properties.expiration().as_ref(), death);
        add_death(&mut headers, entry, death, &from);
        let mut bcc = bcc;
        if new_key.is_some() {
            headers.remove("CC");
            bcc.clear();
        }
        let properties = without_expiration(&properties).with_headers(FieldTable::from(headers));
        let routing_key = new_key.unwrap_or(routing_key);
        Some(Self { message: Message { exchange, routing_key, properties, body }, bcc })
    }

    /// The routing keys: its own, those of `CC`, and the hidden ones.
    pub fn keys(&self) -> SmallVec<[&str; 4]> {
        let mut keys: SmallVec<[&str; 4]> = SmallVec::from_slice(&[self.message.routing_key.as_str()]);
        if let Some(headers) = self.message.properties.headers() {
            keys.extend(texts(headers.inner().get("CC")));
        }
        keys.extend(self.bcc.iter().map(|key| key.as_str()));
        keys
    }

    /// Whether the message has been in `queue` since it was last rejected: it goes round without anybody's doing, and is
    /// dropped there.
    pub fn is_cycle(&self, queue: &str, reason: Reason) -> bool {
        if reason == Reason::Rejected {
            return false;
        }
        let deaths = self.message.properties.headers().as_ref().and_then(|headers| headers.inner().get(X_DEATH));
        let Some(AMQPValue::FieldArray(deaths)) = deaths else { return false };
        let deaths = deaths.as_slice();
        let Some(at) = deaths.iter().position(|death| field(death, "queue").is_some_and(|name| name == queue)) else {
            return false;
        };
        // What is no table was put there by a client.
        deaths.iter().take(at + 1).all(|death| {
            matches!(death, AMQPValue::FieldTable(_)) && field(death, "reason") != Some(Reason::Rejected.name())
        })
    }
}

/// The properties with the header that a quorum queue adds to a delivery.
pub fn with_delivery_count(properties: &AMQPProperties, count: u32) -> AMQPProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(X_DELIVERY_COUNT.into(), AMQPValue::LongLongInt(i64::from(count)));
    properties.clone().with_headers(headers)
}

/// The properties without `BCC`, and its keys; `None` when there is none. It routes and is not delivered.
pub fn split_bcc(properties: &AMQPProperties) -> Option<(AMQPProperties, Vec<ShortString>)> {
    let headers = properties.headers().as_ref()?;
    let value = headers.inner().get("BCC")?;
    let keys = texts(Some(value)).filter_map(|key| ShortString::try_new(key).ok()).collect();
    let mut rest = headers.inner().clone();
    rest.remove("BCC");
    Some((properties.clone().with_headers(FieldTable::from(rest)), keys))
}

type Entry = BTreeMap<ShortString, AMQPValue>;

fn entry(
    headers: &Entry,
    exchange: &ShortString,
    routing_key: &ShortString,
    expiration: Option<&ShortString>,
    death: Death<'_>,
) -> Entry {
    let mut keys = FieldArray::default();
    keys.push(long(routing_key.as_str()));
    texts(headers.get("CC")).for_each(|key| keys.push(long(key)));
    let mut entry = Entry::from([
        ("count".into(), AMQPValue::LongLongInt(1)),
        ("reason".into(), long(death.reason.name())),
        ("queue".into(), long(death.queue)),
        ("time".into(), AMQPValue::Timestamp(death.at)),
        ("exchange".into(), long(exchange.as_str())),
        ("routing-keys".into(), AMQPValue::FieldArray(keys)),
    ]);
    if let Some(expiration) = expiration {
        entry.insert("original-expiration".into(), long(expiration.as_str()));
    }
    entry
}

fn add_death(headers: &mut Entry, new: Entry, death: Death<'_>, exchange: &ShortString) {
    let earlier = match headers.get(X_DEATH) {
        Some(AMQPValue::FieldArray(earlier)) => earlier.as_slice(),
        Some(_) => &[],
        None => {
            for (name, value) in [
                ("x-first-death-reason", death.reason.name()),
                ("x-first-death-queue", death.queue),
                ("x-first-death-exchange", exchange.as_str()),
            ] {
                headers.insert(name.into(), long(value));
            }
            &[]
        }
    };
    let mut others = grouped(earlier);
    let is_same = |other: &AMQPValue| {
        field(other, "queue") == Some(death.queue) && field(other, "reason") == Some(death.reason.name())
    };
    let first = match others.iter().position(is_same).map(|at| others.remove(at)) {
        Some(AMQPValue::FieldTable(same)) => {
            let count = same.inner().get("count").and_then(integer).unwrap_or(0).saturating_add(1);
            with_count(&same, count)
        }
        _ => FieldTable::from(new),
    };
    others.insert(0, AMQPValue::FieldTable(first));
    headers.insert(X_DEATH.into(), AMQPValue::FieldArray(others.into()));
}

/// One entry for each queue and reason, each with a count, in the opposite order.
fn grouped(deaths: &[AMQPValue]) -> Vec<AMQPValue> {
    let key = |death| (field(death, "queue"), field(death, "reason"));
    let mut grouped = Vec::with_capacity(deaths.len() + 1);
    for (index, death) in deaths.iter().enumerate() {
        let AMQPValue::FieldTable(table) = death else {
            grouped.push(death.clone());
            continue;
        };
        if deaths.iter().take(index).any(|other| key(other) == key(death) && other.get_type() == death.get_type()) {
            continue;
        }
        grouped.push(match table.inner().get("count").and_then(integer) {
            Some(_) => death.clone(),
            None => {
                let same = deaths.iter().filter(|other| key(other) == key(death)).count();
                AMQPValue::FieldTable(with_count(table, i64::try_from(same).unwrap_or(i64::MAX)))
            }
        });
    }
    grouped.reverse();
    grouped
}

fn with_count(death: &FieldTable, count: i64) -> FieldTable {
    let mut death = death.clone();
    death.insert("count".into(), AMQPValue::LongLongInt(count));
    death
}

fn field<'a>(death: &'a AMQPValue, name: &str) -> Option<&'a str> {
    match death {
        AMQPValue::FieldTable(table) => text(table.inner().get(name)?),
        _ => None,
    }
}

fn texts(value: Option<&AMQPValue>) -> impl Iterator<Item = &str> {
    let values = match value {
        Some(AMQPValue::FieldArray(values)) => values.as_slice(),
        _ => &[],
    };
    values.iter().filter_map(text)
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn without_expiration(properties: &AMQPProperties) -> AMQPProperties {
    let mut kept = AMQPProperties::default();
    type Setter = fn(AMQPProperties, ShortString) -> AMQPProperties;
    let texts: [(&Option<ShortString>, Setter); 9] = [
        (properties.content_type(), AMQPProperties::with_content_type),
        (properties.content_encoding(), AMQPProperties::with_content_encoding),
        (properties.correlation_id(), AMQPProperties::with_correlation_id),
        (properties.reply_to(), AMQPProperties::with_reply_to),
        (properties.message_id(), AMQPProperties::with_message_id),
        (properties.kind(), AMQPProperties::with_type),
        (properties.user_id(), AMQPProperties::with_user_id),
        (properties.app_id(), AMQPProperties::with_app_id),
        (properties.cluster_id(), AMQPProperties::with_cluster_id),
    ];
    for (value, set) in texts {
        if let Some(value) = value {
            kept = set(kept, value.clone());
        }
    }
    if let Some(mode) = properties.delivery_mode() {
        kept = kept.with_delivery_mode(*mode);
    }
    if let Some(priority) = properties.priority() {
        kept = kept.with_priority(*priority);
    }
    if let Some(timestamp) = properties.timestamp() {
        kept = kept.with_timestamp(*timestamp);
    }
    kept
}

#[cfg(test)]
mod tests;
