//! A message's AMQP fields as NATS headers, and back.
//!
//! Each property that is set is one readable header; one that is not set has none, so that the round trip is exact.
//! A text that a header cannot carry (empty, control characters, white space at an end) is written as `=b64:` and its
//! base64. The `headers` table, which is typed, is one base64 header, [`HEADERS`], of its AMQP bytes.
//!
//! A message that a native NATS client published without any of these is an AMQP message too: its other headers are
//! the entries of the `headers` table, as text.

use std::collections::BTreeMap;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, FieldTable, ShortString};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::table;

/// The exchange it was published to; absent for the default exchange.
pub const EXCHANGE: &str = "Amqp-Exchange";
/// The routing key; absent when it is the queue's name.
pub const ROUTING_KEY: &str = "Amqp-Routing-Key";
/// `content-type`.
pub const CONTENT_TYPE: &str = "Amqp-Content-Type";
/// `content-encoding`.
pub const CONTENT_ENCODING: &str = "Amqp-Content-Encoding";
/// `headers`: base64 of the table's AMQP bytes.
pub const HEADERS: &str = "Amqp-Headers";
/// `delivery-mode`: `1` or `2`.
pub const DELIVERY_MODE: &str = "Amqp-Delivery-Mode";
/// `priority`: `0` to `255`.
pub const PRIORITY: &str = "Amqp-Priority";
/// `correlation-id`.
pub const CORRELATION_ID: &str = "Amqp-Correlation-Id";
/// `reply-to`.
pub const REPLY_TO: &str = "Amqp-Reply-To";
/// `expiration`: milliseconds.
pub const EXPIRATION: &str = "Amqp-Expiration";
/// `message-id`.
pub const MESSAGE_ID: &str = "Amqp-Message-Id";
/// `timestamp`: seconds since 1970.
pub const TIMESTAMP: &str = "Amqp-Timestamp";
/// `type`.
pub const TYPE: &str = "Amqp-Type";
/// `user-id`.
pub const USER_ID: &str = "Amqp-User-Id";
/// `app-id`.
pub const APP_ID: &str = "Amqp-App-Id";
/// `cluster-id`.
pub const CLUSTER_ID: &str = "Amqp-Cluster-Id";
/// Routing keys that the publisher gave as `BCC`: base64 of a table with `BCC` in it. Kept for a dead-letter exchange and
/// never delivered.
pub const BCC: &str = "Amqp-Bcc";
/// The delayed exchanges that keep a message, when they are not the one that it was published to: base64 of a table with
/// their names in `by`.
pub const DELAYED_BY: &str = "Amqp-Delayed-By";

/// Milliseconds that the message may lie in its queue, by a policy that was in force when it was published. Never delivered.
pub const TTL: &str = "Amqp-Ttl";

const BASE64_MARK: &str = "=b64:";

/// Where [`encode`] puts headers: a name and a value that is safe in a NATS header.
pub trait HeaderSink {
    /// Adds one header.
    fn put(&mut self, name: &'static str, value: &str);
}

/// Where [`decode`] takes headers from.
pub trait HeaderSource {
    /// Calls `each` with every header.
    fn each(&self, each: &mut dyn FnMut(&str, &str));
}

/// The AMQP fields of a message, as [`decode`] reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields {
    /// The exchange; empty for the default exchange.
    pub exchange: ShortString,
    /// The routing key.
    pub routing_key: ShortString,
    /// The properties.
    pub properties: AMQPProperties,
}

/// Writes the fields as headers. `queue` is the queue that the copy goes to when it is the only one, so that a routing
/// key equal to it on the default exchange needs no header.
pub fn encode(
    sink: &mut impl HeaderSink,
    exchange: &str,
    routing_key: &str,
    properties: &AMQPProperties,
    queue: Option<&str>,
) {
    if !exchange.is_empty() {
        put_text(sink, EXCHANGE, exchange);
    }
    if !(exchange.is_empty() && queue == Some(routing_key)) {
        put_text(sink, ROUTING_KEY, routing_key);
    }
    let mut text = |name, value: &Option<ShortString>| {
        if let Some(value) = value {
            put_text(sink, name, value.as_str());
        }
    };
    text(CONTENT_TYPE, properties.content_type());
    text(CONTENT_ENCODING, properties.content_encoding());
    text(CORRELATION_ID, properties.correlation_id());
    text(REPLY_TO, properties.reply_to());
    text(EXPIRATION, properties.expiration());
    text(MESSAGE_ID, properties.message_id());
    text(TYPE, properties.kind());
    text(USER_ID, properties.user_id());
    text(APP_ID, properties.app_id());
    text(CLUSTER_ID, properties.cluster_id());
    if let Some(mode) = properties.delivery_mode() {
        put_number(sink, DELIVERY_MODE, u64::from(*mode));
    }
    if let Some(priority) = properties.priority() {
        put_number(sink, PRIORITY, u64::from(*priority));
    }
    if let Some(timestamp) = properties.timestamp() {
        put_number(sink, TIMESTAMP, *timestamp);
    }
    if let Some(headers) = properties.headers() {
        sink.put(HEADERS, &table::to_base64(headers));
    }
}

/// Reads the fields from headers. `queue` is the queue that the message is in: the routing key of a message without one.
///
/// What cannot be read (a native publisher's mistake) is left out rather than failed: the message must not get stuck. Of
/// several values of a header the first counts.
pub fn decode(source: &impl HeaderSource, queue: &str) -> Fields {
    let (mut exchange, mut routing_key) = (None, None);
    let mut texts: [Option<ShortString>; SETTERS.len()] = Default::default();
    let (mut mode, mut priority, mut timestamp) = (None, None, None);
    let (mut table, mut native) = (None, BTreeMap::new());
    source.each(&mut |name, value| match name {
        EXCHANGE => first(&mut exchange, || read_text(value)),
        ROUTING_KEY => first(&mut routing_key, || read_text(value)),
        DELIVERY_MODE => first(&mut mode, || value.parse().ok()),
        PRIORITY => first(&mut priority, || value.parse().ok()),
        TIMESTAMP => first(&mut timestamp, || value.parse().ok()),
        HEADERS => first(&mut table, || Some(table::from_base64(value))),
        _ if let Some(at) = SETTERS.iter().position(|(text, _)| *text == name) => {
            first(&mut texts[at], || read_text(value));
        }
        // Neither NATS's nor ours: what a native publisher said.
        _ if !has_prefix(name, "Nats-") && !has_prefix(name, "Amqp-") => {
            if let Ok(name) = ShortString::try_new(name) {
                native.entry(name).or_insert_with(|| AMQPValue::LongString(value.into()));
            }
        }
        _ => {}
    });
    let mut properties = AMQPProperties::default();
    for ((_, set), text) in SETTERS.into_iter().zip(texts) {
        if let Some(text) = text {
            properties = set(properties, text);
        }
    }
    if let Some(mode) = mode {
        properties = properties.with_delivery_mode(mode);
    }
    if let Some(priority) = priority {
        properties = properties.with_priority(priority);
    }
    if let Some(timestamp) = timestamp {
        properties = properties.with_timestamp(timestamp);
    }
    if let Some(headers) = table.unwrap_or_else(|| (!native.is_empty()).then(|| FieldTable::from(native))) {
        properties = properties.with_headers(headers);
    }
    Fields {
        exchange: exchange.unwrap_or_default(),
        routing_key: routing_key.or_else(|| ShortString::try_new(queue).ok()).unwrap_or_default(),
        properties,
    }
}

type Setter = fn(AMQPProperties, ShortString) -> AMQPProperties;

/// The headers that are texts, and what sets each.
const SETTERS: [(&str, Setter); 10] = [
    (CONTENT_TYPE, AMQPProperties::with_content_type),
    (CONTENT_ENCODING, AMQPProperties::with_content_encoding),
    (CORRELATION_ID, AMQPProperties::with_correlation_id),
    (REPLY_TO, AMQPProperties::with_reply_to),
    (EXPIRATION, AMQPProperties::with_expiration),
    (MESSAGE_ID, AMQPProperties::with_message_id),
    (TYPE, AMQPProperties::with_type),
    (USER_ID, AMQPProperties::with_user_id),
    (APP_ID, AMQPProperties::with_app_id),
    (CLUSTER_ID, AMQPProperties::with_cluster_id),
];

fn first<T>(place: &mut Option<T>, value: impl FnOnce() -> Option<T>) {
    if place.is_none() {
        *place = value();
    }
}

fn has_prefix(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

fn put_number(sink: &mut impl HeaderSink, name: &'static str, value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    sink.put(name, std::str::from_utf8(&digits[at..]).unwrap_or("0"));
}

fn put_text(sink: &mut impl HeaderSink, name: &'static str, value: &str) {
    if is_header_safe(value) {
        sink.put(name, value);
    } else {
        sink.put(name, &format!("{BASE64_MARK}{}", STANDARD.encode(value)));
    }
}

fn read_text(value: &str) -> Option<ShortString> {
    let text = match value.strip_prefix(BASE64_MARK) {
        Some(encoded) => String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?,
        None => value.to_owned(),
    };
    ShortString::try_new(text).ok()
}

fn is_header_safe(value: &str) -> bool {
    if value.is_ascii() {
        let bytes = value.as_bytes();
        return bytes.first().is_some_and(|first| *first != b' ')
            && bytes.last() != Some(&b' ')
            && bytes.iter().all(|byte| (0x20..0x7f).contains(byte))
            && !value.starts_with(BASE64_MARK);
    }
    !value.starts_with(char::is_whitespace)
        && !value.ends_with(char::is_whitespace)
        && !value.chars().any(char::is_control)
        && !value.starts_with(BASE64_MARK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default, Debug)]
    struct Headers(Vec<(String, String)>);

    impl HeaderSink for Headers {
        fn put(&mut self, name: &'static str, value: &str) {
            // What the NATS protocol and its clients keep of a value.
            assert!(!value.contains(['\r', '\n']), "{value:?}");
            assert_eq!(value.trim(), value, "{value:?}");
            assert!(!value.is_empty());
            self.0.push((name.to_owned(), value.to_owned()));
        }
    }

    impl Headers {
        fn get(&self, name: &str) -> Option<&str> {
            self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
        }
    }

    impl HeaderSource for Headers {
        fn each(&self, each: &mut dyn FnMut(&str, &str)) {
            self.0.iter().for_each(|(name, value)| each(name, value));
        }
    }

    fn short() -> impl Strategy<Value = Option<ShortString>> {
        proptest::option::of(prop_oneof![
            "[ -~]{0,40}".prop_map(|text| ShortString::try_new(text).expect("short enough")),
            any::<String>().prop_map(|text| ShortString::try_new(text).unwrap_or_default()),
            Just("=b64:AAAA".into()),
            Just(" x".into()),
        ])
    }

    proptest! {
        #[test]
        fn every_message_comes_back_exactly(
            exchange in short(), key in short(), texts in proptest::array::uniform10(short()),
            mode in any::<Option<u8>>(), priority in any::<Option<u8>>(), timestamp in any::<Option<u64>>(),
            table in any::<Option<Vec<(u8, i64)>>>(), queue in short(),
        ) {
            let mut properties = AMQPProperties::default();
            for ((_, set), text) in SETTERS.into_iter().zip(texts) {
                if let Some(text) = text { properties = set(properties, text); }
            }
            if let Some(mode) = mode { properties = properties.with_delivery_mode(mode); }
            if let Some(priority) = priority { properties = properties.with_priority(priority); }
            if let Some(timestamp) = timestamp { properties = properties.with_timestamp(timestamp); }
            if let Some(entries) = table {
                let entries: BTreeMap<ShortString, AMQPValue> = entries.into_iter()
                    .map(|(name, value)| (name.to_string().into(), AMQPValue::LongLongInt(value))).collect();
                properties = properties.with_headers(FieldTable::from(entries));
            }
            let fields = Fields {
                exchange: exchange.unwrap_or_default(), routing_key: key.unwrap_or_default(), properties,
            };
            let queue = queue.unwrap_or_default();
            for only in [None, Some(queue.as_str())] {
                let mut headers = Headers::default();
                encode(&mut headers, fields.exchange.as_str(), fields.routing_key.as_str(), &fields.properties, only);
                prop_assert_eq!(&decode(&headers, queue.as_str()), &fields);
            }
        }
    }

    #[test]
    fn common_fields_are_readable() {
        let mut headers = Headers::default();
        let properties = AMQPProperties::default().with_content_type("text/plain".into()).with_delivery_mode(2);
        encode(&mut headers, "orders", "eu.new", &properties, None);
        assert_eq!(headers.get(EXCHANGE), Some("orders"));
        assert_eq!(headers.get(ROUTING_KEY), Some("eu.new"));
        assert_eq!(headers.get(CONTENT_TYPE), Some("text/plain"));
        assert_eq!(headers.get(DELIVERY_MODE), Some("2"));
        assert_eq!(headers.0.len(), 4);
    }

    #[test]
    fn a_publish_to_a_queue_needs_no_header_at_all() {
        let mut headers = Headers::default();
        encode(&mut headers, "", "q", &AMQPProperties::default(), Some("q"));
        assert!(headers.0.is_empty());
        assert_eq!(decode(&headers, "q").routing_key.as_str(), "q");
    }

    #[test]
    fn a_native_message_is_an_amqp_message() {
        let headers = Headers(vec![
            ("Nats-Msg-Id".into(), "1".into()),
            ("traceparent".into(), "00-1".into()),
            ("Amqp-Content-Type".into(), "text/plain".into()),
            ("Amqp-Priority".into(), "many".into()),
        ]);
        let fields = decode(&headers, "q");
        let table = fields.properties.headers().as_ref().expect("a table");
        assert_eq!(table.inner().get("traceparent"), Some(&AMQPValue::LongString("00-1".into())));
        assert_eq!(table.inner().len(), 1);
        assert_eq!(fields.properties.priority(), &None);
        assert_eq!(fields.properties.content_type().as_ref().map(|t| t.as_str()), Some("text/plain"));
        assert_eq!(fields.routing_key.as_str(), "q");
        assert_eq!(decode(&Headers::default(), "q").properties, AMQPProperties::default());
    }
}
