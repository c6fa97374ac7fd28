//! What the sidecar writes on a message, and takes off before delivery. Pure, but for the source of ids.
//!
//! | header | on | value |
//! |---|---|---|
//! | `bridge-id` | every publish | a ULID, unique for ever |
//! | `bridge-epoch` | every publish | the epoch it was published in |
//! | `bridge-bare` | a publish without a header table | `true`: no table is delivered either |
//! | `bridge-fence` | a fence | its id; a fence is never delivered to an application |
//! | `bridge-copy` | a standby copy | `true`; one that is replayed is delivered as `redelivered` |
//! | `bridge-exchange`, `bridge-key` | a standby copy | where it was published to |
//! | `bridge-mode`, `bridge-ttl`, `bridge-user`, `bridge-cc` | a standby copy | delivery mode, expiration, user id and `CC`, which must not act on the copy |
//!
//! A publish of an application that has one of these headers itself is refused, so that none is taken for a fence or
//! changed without a word.

use std::sync::atomic::{AtomicU64, Ordering};

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, FieldTable, LongString, ShortString};
use amqp_compat::backend::Message;
use bytes::Bytes;
use ulid::Ulid;

use crate::copies::backlog::Place;
use crate::fence::FenceId;

/// The id of a message.
pub const ID: &str = "bridge-id";
/// The epoch a message was published in.
pub const EPOCH: &str = "bridge-epoch";
/// Set on a message that had no header table.
pub const BARE: &str = "bridge-bare";
/// The id of a fence.
pub const FENCE: &str = "bridge-fence";
/// Set on a standby copy.
pub const COPY: &str = "bridge-copy";
const EXCHANGE: &str = "bridge-exchange";
const KEY: &str = "bridge-key";
const MODE: &str = "bridge-mode";
const TTL: &str = "bridge-ttl";
const USER: &str = "bridge-user";
const CC: &str = "bridge-cc";
/// Where a message without a stamp lay in its queue, on its copy.
const AFTER: &str = "bridge-after";
const PLACE: &str = "bridge-place";
/// All of them.
const OURS: [&str; 13] = [ID, EPOCH, BARE, FENCE, COPY, EXCHANGE, KEY, MODE, TTL, USER, CC, AFTER, PLACE];
/// What all of them begin with.
const PREFIX: &str = "bridge-";
/// The `type` property of a fence.
const FENCE_TYPE: &str = "nats-bridge.fence";

/// Unique message ids: the upper half is of this run of the sidecar, the lower half counts.
#[derive(Debug)]
pub struct Ids {
    run: u64,
    next: AtomicU64,
}

impl Ids {
    /// A new run's ids.
    pub fn new() -> Self {
        Self { run: (Ulid::new().0 >> 64) as u64, next: AtomicU64::new(0) }
    }

    /// The number of this run: 48 bits of the time it began, in ms, and 16 random bits.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// The next id.
    pub fn next(&self) -> u128 {
        u128::from(self.run) << 64 | u128::from(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self::new()
    }
}

/// What was read off a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Read {
    /// Its id; `None` when it was not published through the sidecar.
    pub id: Option<u128>,
    /// The epoch it was published in; 0 when it was not published through the sidecar.
    pub epoch: u64,
    /// Whether it is a standby copy that was replayed: it may have been delivered before.
    pub again: bool,
}

/// The reserved header that a publish of an application has, if any.
pub fn reserved(message: &Message) -> Option<&'static str> {
    ours(message.properties.headers().as_ref()?)
}

/// The first of our headers in a table. Each message is asked twice, so names of others are not compared with all of ours.
fn ours(table: &FieldTable) -> Option<&'static str> {
    table.inner().keys().find_map(|name| ours_named(name.as_str()))
}

fn ours_named(name: &str) -> Option<&'static str> {
    name.starts_with(PREFIX).then(|| OURS.into_iter().find(|ours| *ours == name)).flatten()
}

/// Writes id and epoch on a message.
pub fn stamp(message: &mut Message, id: u128, epoch: u64) {
    let mut properties = std::mem::take(&mut message.properties);
    let mut table = match properties.headers() {
        Some(table) => table.clone(),
        None => {
            let mut table = FieldTable::default();
            table.insert(BARE.into(), AMQPValue::Boolean(true));
            table
        }
    };
    table.insert(ID.into(), AMQPValue::LongString(LongString::from(Ulid(id).to_string())));
    table.insert(EPOCH.into(), AMQPValue::LongLongInt(i64::try_from(epoch).unwrap_or(i64::MAX)));
    properties = properties.with_headers(table);
    message.properties = properties;
}

/// The id that [`stamp`] wrote on a message.
pub fn id(message: &Message) -> Option<u128> {
    match message.properties.headers().as_ref()?.inner().get(ID)? {
        AMQPValue::LongString(text) => {
            std::str::from_utf8(text.as_bytes()).ok().and_then(|t| Ulid::from_string(t).ok()).map(|u| u.0)
        }
        _ => None,
    }
}

/// Takes off what [`stamp`] wrote, and tells it.
pub fn unstamp(message: &mut Message) -> Read {
    let Some(table) = message.properties.headers() else { return Read::default() };
    if ours(table).is_none() {
        return Read::default();
    }
    let id = id(message);
    let epoch = match table.inner().get(EPOCH) {
        Some(AMQPValue::LongLongInt(epoch)) => u64::try_from(*epoch).unwrap_or(0),
        _ => 0,
    };
    let bare = table.contains_key(BARE);
    let mut rest = FieldTable::default();
    for (name, value) in table.inner().iter().filter(|(name, _)| ours_named(name.as_str()).is_none()) {
        rest.insert(name.clone(), value.clone());
    }
    let aside = table.contains_key(COPY).then(|| table.clone());
    if let Some(cc) = aside.as_ref().and_then(|table| table.inner().get(CC)) {
        rest.insert("CC".into(), cc.clone());
    }
    let properties = std::mem::take(&mut message.properties);
    // A broker may have added a table of its own to a message that had none (`x-death`).
    message.properties =
        if bare && rest.inner().is_empty() { without_headers(&properties) } else { properties.with_headers(rest) };
    if let Some(aside) = &aside {
        put_back(message, aside);
    }
    Read { id, epoch, again: aside.is_some() }
}

/// Takes off what a quorum queue writes on a message that was delivered before.
pub fn without_count(message: &mut Message) {
    const COUNT: &str = "x-delivery-count";
    let Some(table) = message.properties.headers().as_ref().filter(|table| table.contains_key(COUNT)) else { return };
    let mut rest = FieldTable::default();
    for (name, value) in table.inner().iter().filter(|(name, _)| name.as_str() != COUNT) {
        rest.insert(name.clone(), value.clone());
    }
    let properties = std::mem::take(&mut message.properties);
    // It makes a table where there was none.
    let bare = rest.inner().is_empty();
    message.properties = if bare { without_headers(&properties) } else { properties.with_headers(rest) };
}

/// The standby copy of a message, to be published to the queue `store` through the default exchange. What would make the copy
/// itself expire, be refused or be routed to further queues is set aside.
pub fn copy(message: &Message, id: u128, epoch: u64, store: &str) -> Message {
    let mut copy = message.clone();
    stamp(&mut copy, id, epoch);
    let text = |text: &ShortString| AMQPValue::LongString(LongString::from(text.as_str()));
    let mut table = copy.properties.headers().clone().unwrap_or_default();
    let mut aside = |name: &'static str, value: Option<AMQPValue>| {
        if let Some(value) = value {
            table.insert(name.into(), value);
        }
    };
    let properties = &message.properties;
    aside(COPY, Some(AMQPValue::Boolean(true)));
    aside(EXCHANGE, Some(text(&message.exchange)));
    aside(KEY, Some(text(&message.routing_key)));
    aside(MODE, properties.delivery_mode().map(AMQPValue::ShortShortUInt));
    aside(TTL, properties.expiration().as_ref().map(text));
    aside(USER, properties.user_id().as_ref().map(text));
    let headers = properties.headers().as_ref();
    aside(CC, headers.and_then(|table| table.inner().get("CC").cloned()));
    let mut kept = FieldTable::default();
    for (name, value) in table.inner().iter().filter(|(name, _)| !["CC", "BCC"].contains(&name.as_str())) {
        kept.insert(name.clone(), value.clone());
    }
    copy.properties = without_limits(properties).with_delivery_mode(2).with_headers(kept);
    Message { exchange: ShortString::default(), routing_key: store.into(), ..copy }
}

/// The same of a message that lay in its queue before there were copies.
pub fn late_copy(message: &Message, id: u128, epoch: u64, place: Place, store: &str) -> Message {
    let mut copy = copy(message, id, epoch, store);
    if place != Place::stamped(id) {
        let mut table = copy.properties.headers().clone().unwrap_or_default();
        table.insert(AFTER.into(), AMQPValue::LongString(LongString::from(Ulid(place.after).to_string())));
        let number = i64::try_from(place.number).unwrap_or(i64::MAX);
        table.insert(PLACE.into(), AMQPValue::LongLongInt(number));
        copy.properties = std::mem::take(&mut copy.properties).with_headers(table);
    }
    copy
}

/// Where a standby copy's message lay in its queue.
pub fn place_of(copy: &Message, id: u128) -> Place {
    let table = copy.properties.headers().as_ref();
    let after = table.and_then(|t| short(t, AFTER)).and_then(|text| Ulid::from_string(text.as_str()).ok());
    match (after, table.and_then(|t| t.inner().get(PLACE))) {
        (Some(after), Some(AMQPValue::LongLongInt(number))) => {
            Place { after: after.0, number: u64::try_from(*number).unwrap_or(0) }
        }
        _ => Place::stamped(id),
    }
}

/// A copy that came out of its store, to be published to `exchange`, which leads to its queue and nowhere else. It has its routing
/// key again, by which it may be dead-lettered, and expires as its message would have.
pub fn replayed(mut copy: Message, exchange: &str) -> Message {
    let table = copy.properties.headers().as_ref();
    let (key, ttl) = (table.and_then(|t| short(t, KEY)), table.and_then(|t| short(t, TTL)));
    copy.exchange = exchange.into();
    copy.routing_key = key.unwrap_or_default();
    if let Some(ttl) = ttl {
        copy.properties = std::mem::take(&mut copy.properties).with_expiration(ttl);
    }
    copy
}

/// The id of a standby copy.
pub fn id_of(copy: &Message) -> Option<u128> {
    let table = copy.properties.headers().as_ref().filter(|table| table.contains_key(COPY))?;
    Ulid::from_string(short(table, ID)?.as_str()).ok().map(|id| id.0)
}

/// What was set aside on a copy becomes part of the message again. Where it was dead-lettered to since then, and that it does not expire
/// there, is the queue's word.
fn put_back(message: &mut Message, aside: &FieldTable) {
    let died = message.properties.headers().as_ref().is_some_and(|table| table.contains_key("x-death"));
    if !died {
        message.exchange = short(aside, EXCHANGE).unwrap_or_default();
        message.routing_key = short(aside, KEY).unwrap_or_default();
    }
    let old = std::mem::take(&mut message.properties);
    let mut properties = without_limits(&old);
    if let Some(table) = old.headers() {
        properties = properties.with_headers(table.clone());
    }
    if let Some(AMQPValue::ShortShortUInt(mode)) = aside.inner().get(MODE) {
        properties = properties.with_delivery_mode(*mode);
    }
    if let Some(ttl) = short(aside, TTL).filter(|_| !died) {
        properties = properties.with_expiration(ttl);
    }
    if let Some(user) = short(aside, USER) {
        properties = properties.with_user_id(user);
    }
    message.properties = properties;
}

fn short(table: &FieldTable, name: &str) -> Option<ShortString> {
    match table.inner().get(name) {
        Some(AMQPValue::LongString(text)) => {
            std::str::from_utf8(text.as_bytes()).ok().and_then(|text| ShortString::try_new(text).ok())
        }
        _ => None,
    }
}

/// A fence for a queue, to be published to it through the default exchange.
pub fn fence(queue: &str, id: FenceId) -> Message {
    let mut table = FieldTable::default();
    table.insert(FENCE.into(), AMQPValue::LongString(LongString::from(id.to_string())));
    Message {
        exchange: ShortString::default(),
        routing_key: queue.into(),
        properties: AMQPProperties::default().with_headers(table).with_type(FENCE_TYPE.into()).with_delivery_mode(2),
        body: Bytes::new(),
    }
}

/// The fence that a message is.
pub fn is_fence(message: &Message) -> Option<FenceId> {
    let table = message.properties.headers().as_ref()?;
    let AMQPValue::LongString(text) = table.inner().get(FENCE)? else { return None };
    let is_ours =
        message.body.is_empty() && message.properties.kind().as_ref().is_some_and(|t| t.as_str() == FENCE_TYPE);
    if !is_ours {
        return None;
    }
    std::str::from_utf8(text.as_bytes()).ok()?.parse().ok()
}

macro_rules! copied {
    ($old:expr, $new:expr, $($get:ident $set:ident),*) => {{
        let mut new = $new;
        $(if let Some(value) = $old.$get() { new = new.$set(value.clone()); })*
        new
    }};
}

fn without_headers(old: &AMQPProperties) -> AMQPProperties {
    copied!(
        old,
        without_limits(old),
        delivery_mode with_delivery_mode, expiration with_expiration, user_id with_user_id
    )
}

/// Without headers, and without what a broker acts on: delivery mode, expiration and user id.
fn without_limits(old: &AMQPProperties) -> AMQPProperties {
    copied!(
        old,
        AMQPProperties::default(),
        content_type with_content_type, content_encoding with_content_encoding, priority with_priority,
        correlation_id with_correlation_id, reply_to with_reply_to, message_id with_message_id,
        timestamp with_timestamp, kind with_type, app_id with_app_id, cluster_id with_cluster_id
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(properties: AMQPProperties) -> Message {
        Message { exchange: "x".into(), routing_key: "k".into(), properties, body: Bytes::from_static(b"body") }
    }

    fn full() -> AMQPProperties {
        AMQPProperties::default()
            .with_content_type("a".into())
            .with_content_encoding("b".into())
            .with_delivery_mode(2)
            .with_priority(3)
            .with_correlation_id("c".into())
            .with_reply_to("d".into())
            .with_expiration("5".into())
            .with_message_id("e".into())
            .with_timestamp(7)
            .with_type("f".into())
            .with_user_id("g".into())
            .with_app_id("h".into())
            .with_cluster_id("i".into())
    }

    #[test]
    fn a_message_is_delivered_exactly_as_it_was_published() {
        let mut table = FieldTable::default();
        table.insert("x-app".into(), AMQPValue::LongUInt(1));
        for properties in [
            AMQPProperties::default(),
            AMQPProperties::default().with_headers(FieldTable::default()),
            full(),
            full().with_headers(table),
        ] {
            let original = message(properties);
            let mut stamped = original.clone();
            stamp(&mut stamped, 77, 12);
            assert_ne!(stamped, original);
            assert_eq!(unstamp(&mut stamped), Read { id: Some(77), epoch: 12, again: false });
            assert_eq!(stamped, original);
        }
    }

    #[test]
    fn a_replayed_copy_is_delivered_exactly_as_its_message_was_published() {
        let mut table = FieldTable::default();
        table.insert("x-app".into(), AMQPValue::LongUInt(1));
        table.insert("CC".into(), AMQPValue::LongString("elsewhere".into()));
        for properties in [
            AMQPProperties::default(),
            AMQPProperties::default().with_headers(FieldTable::default()),
            AMQPProperties::default().with_delivery_mode(1),
            full(),
            full().with_headers(table),
        ] {
            let original = message(properties);
            let stored = copy(&original, 77, 12, "store");
            assert_eq!((stored.exchange.as_str(), stored.routing_key.as_str()), ("", "store"));
            assert_eq!(id_of(&stored), Some(77));
            let own = &stored.properties;
            assert_eq!((own.expiration(), own.user_id(), own.delivery_mode()), (&None, &None, &Some(2)));
            assert!(!own.headers().as_ref().expect("stamped").contains_key("CC"), "it is routed nowhere else");
            let mut replayed = replayed(stored, "to orders");
            assert_eq!((replayed.exchange.as_str(), &replayed.routing_key), ("to orders", &original.routing_key));
            assert_eq!(replayed.properties.expiration(), original.properties.expiration());
            assert_eq!(unstamp(&mut replayed), Read { id: Some(77), epoch: 12, again: true });
            assert_eq!(replayed, original);
        }
        assert_eq!(id_of(&message(full())), None);
    }

    #[test]
    fn a_copy_of_what_had_no_id_knows_where_its_message_lay() {
        let (original, place) = (message(full()), Place { after: 5, number: 1 << 60 });
        let mut late = late_copy(&original, 7, 0, place, "store");
        assert_eq!((id_of(&late), place_of(&late, 7)), (Some(7), place));
        assert_eq!(unstamp(&mut late), Read { id: Some(7), epoch: 0, again: true });
        let stamped = late_copy(&original, 7, 3, Place::stamped(7), "store");
        assert_eq!((&stamped, place_of(&stamped, 7)), (&copy(&original, 7, 3, "store"), Place::stamped(7)));
    }

    #[test]
    fn a_message_is_as_it_was_without_the_count_of_a_quorum_queue() {
        let mut table = FieldTable::default();
        table.insert("x-app".into(), AMQPValue::LongUInt(1));
        for properties in [full(), full().with_headers(table)] {
            let original = message(properties.clone());
            let mut headers = properties.headers().clone().unwrap_or_default();
            headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(1));
            let mut again = message(properties.with_headers(headers));
            without_count(&mut again);
            assert_eq!(again, original);
        }
    }

    #[test]
    fn what_was_not_stamped_is_left_alone() {
        let mut table = FieldTable::default();
        table.insert("bridge-of-spies".into(), AMQPValue::Boolean(true));
        let original = message(AMQPProperties::default().with_headers(table));
        let mut read = original.clone();
        assert_eq!(unstamp(&mut read), Read::default());
        assert_eq!(read, original);
        assert_eq!(reserved(&original), None);
    }

    #[test]
    fn headers_that_a_broker_added_to_a_bare_message_stay() {
        let mut stamped = message(AMQPProperties::default());
        stamp(&mut stamped, 1, 1);
        let mut table = stamped.properties.headers().clone().expect("stamped");
        table.insert("x-death".into(), AMQPValue::Boolean(true));
        stamped.properties = stamped.properties.with_headers(table);
        unstamp(&mut stamped);
        let kept = stamped.properties.headers().as_ref().expect("kept");
        let left: Vec<_> = kept.inner().keys().map(|k| k.as_str()).collect();
        assert_eq!(left, ["x-death"]);
    }

    #[test]
    fn a_fence_is_known_by_more_than_its_header() {
        let id: FenceId = "000000000000000a-1".parse().expect("a fence id");
        assert_eq!(id.to_string(), "000000000000000a-1");
        let mut fence = fence("q", id);
        assert_eq!(is_fence(&fence), Some(id));
        assert_eq!(reserved(&fence), Some(FENCE));
        fence.body = Bytes::from_static(b"payment");
        assert_eq!(is_fence(&fence), None);
    }

    #[test]
    fn ids_are_never_given_twice() {
        let (a, b) = (Ids::new(), Ids::new());
        assert_ne!(a.next(), a.next());
        assert_ne!(a.run(), b.run());
    }
}
