//! Messages: published from JSON, and got as JSON.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::ShortString;
use amqp_compat::backend::{Got, Message};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::fields::{Fields, short, wrong};
use super::refusal::Refusal;
use super::table;

/// The most messages of one get.
const MOST: i64 = 10_000;

/// What becomes of messages that were got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::management) enum AckMode {
    /// They stay, and say `redelivered` from then on.
    Requeue,
    /// They are gone.
    Ack,
    /// They are rejected: dead-lettered where the queue says so, else gone.
    Reject,
}

/// A get, as its body asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::management) struct Get {
    /// At most how many messages.
    pub(in crate::management) count: usize,
    /// What becomes of them.
    pub(in crate::management) mode: AckMode,
    /// Whether payloads are base64 even where they are UTF-8.
    base64: bool,
    /// How many bytes of each payload are shown.
    truncate: Option<usize>,
}

impl Get {
    /// Reads the body of a get.
    pub(in crate::management) fn read(body: &Fields) -> Result<Self, Refusal> {
        body.need("ackmode")?;
        body.need("encoding")?;
        let mode = match body.text("ackmode")? {
            "ack_requeue_true" | "reject_requeue_true" => AckMode::Requeue,
            "ack_requeue_false" => AckMode::Ack,
            "reject_requeue_false" => AckMode::Reject,
            other => return Err(wrong("unsupported_ackmode", "ackmode", &json!(other))),
        };
        let base64 = match body.text("encoding")? {
            "auto" => false,
            "base64" => true,
            _ => return Err(Refusal::bad_request("Unsupported encoding. Please use auto or base64.")),
        };
        let count = body.number("count")?;
        if count > MOST {
            return Err(Refusal::bad_request(format!(
                "field 'count' is {count}; at most {MOST} messages are given at once"
            )));
        }
        let truncate = match body.get("truncate") {
            None => None,
            Some(_) => {
                let bytes = body.number("truncate")?;
                Some(usize::try_from(bytes).map_err(|_| wrong("not_integer", "truncate", &json!(bytes)))?)
            }
        };
        Ok(Self { count: usize::try_from(count).unwrap_or_default(), mode, base64, truncate })
    }

    /// A message's document.
    pub(in crate::management) fn document(&self, got: &Got) -> Value {
        let Message { exchange, routing_key, properties, body } = &got.delivery.message;
        let shown = &body[..self.truncate.unwrap_or(body.len()).min(body.len())];
        let (encoding, payload) = match std::str::from_utf8(shown) {
            Ok(text) if !self.base64 => ("string", text.to_owned()),
            _ => ("base64", STANDARD.encode(shown)),
        };
        json!({
            "payload_bytes": body.len(),
            "redelivered": got.delivery.redelivered,
            "exchange": exchange.as_str(),
            "routing_key": routing_key.as_str(),
            "message_count": got.message_count,
            "properties": properties_to_json(properties),
            "payload": payload,
            "payload_encoding": encoding,
        })
    }
}

/// The message that a publish's body asks for.
pub(in crate::management) fn publish(exchange: &str, body: &Fields) -> Result<Message, Refusal> {
    for name in ["properties", "routing_key", "payload", "payload_encoding"] {
        body.need(name)?;
    }
    let payload = body.text("payload")?;
    let payload = match body.text("payload_encoding")? {
        "string" => Bytes::copy_from_slice(payload.as_bytes()),
        "base64" => match STANDARD.decode(payload) {
            Ok(bytes) => Bytes::from(bytes),
            Err(_) => return Err(wrong("not_base64", "payload", &json!(payload))),
        },
        other => return Err(wrong("unsupported_encoding", "payload_encoding", &json!(other))),
    };
    Ok(Message {
        exchange: short("exchange", exchange)?,
        routing_key: body.short("routing_key")?,
        properties: properties_from_json(body.need("properties")?)?,
        body: payload,
    })
}

/// Properties that are set, by RabbitMQ's names; an empty list when there is none, as from RabbitMQ.
fn properties_to_json(properties: &AMQPProperties) -> Value {
    let mut set = Map::new();
    let mut text = |name: &str, value: &Option<ShortString>| {
        if let Some(value) = value {
            set.insert(name.to_owned(), json!(value.as_str()));
        }
    };
    text("content_type", properties.content_type());
    text("content_encoding", properties.content_encoding());
    text("correlation_id", properties.correlation_id());
    text("reply_to", properties.reply_to());
    text("expiration", properties.expiration());
    text("message_id", properties.message_id());
    text("type", properties.kind());
    text("user_id", properties.user_id());
    text("app_id", properties.app_id());
    text("cluster_id", properties.cluster_id());
    if let Some(headers) = properties.headers() {
        set.insert("headers".to_owned(), table::to_json(headers));
    }
    if let Some(mode) = properties.delivery_mode() {
        set.insert("delivery_mode".to_owned(), json!(mode));
    }
    if let Some(priority) = properties.priority() {
        set.insert("priority".to_owned(), json!(priority));
    }
    if let Some(timestamp) = properties.timestamp() {
        set.insert("timestamp".to_owned(), json!(timestamp));
    }
    if set.is_empty() { json!([]) } else { Value::Object(set) }
}

fn properties_from_json(value: &Value) -> Result<AMQPProperties, Refusal> {
    let fields = match value {
        Value::Array(items) if items.is_empty() => Fields::default(),
        value => Fields::of(value.clone(), "field 'properties'")?,
    };
    let octet = |name: &str| {
        let number = fields.number(name)?;
        u8::try_from(number).map_err(|_| wrong("not_int", name, &json!(number)))
    };
    let mut properties = AMQPProperties::default();
    for name in fields.names() {
        if fields.get(name).is_none() {
            continue;
        }
        properties = match name {
            "content_type" => properties.with_content_type(fields.short(name)?),
            "content_encoding" => properties.with_content_encoding(fields.short(name)?),
            "correlation_id" => properties.with_correlation_id(fields.short(name)?),
            "reply_to" => properties.with_reply_to(fields.short(name)?),
            "expiration" => properties.with_expiration(fields.short(name)?),
            "message_id" => properties.with_message_id(fields.short(name)?),
            "type" => properties.with_type(fields.short(name)?),
            "user_id" => properties.with_user_id(fields.short(name)?),
            "app_id" => properties.with_app_id(fields.short(name)?),
            "cluster_id" => properties.with_cluster_id(fields.short(name)?),
            "headers" => properties.with_headers(fields.table(name)?),
            "delivery_mode" => properties.with_delivery_mode(octet(name)?),
            "priority" => properties.with_priority(octet(name)?),
            "timestamp" => {
                let number = fields.number(name)?;
                let seconds = u64::try_from(number).map_err(|_| wrong("not_int", name, &json!(number)))?;
                properties.with_timestamp(seconds)
            }
            other => {
                return Err(Refusal::bad_request(format!("field 'properties.{other}': AMQP has no such property")));
            }
        };
    }
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use amqp_compat::backend::{Delivery, DeliveryId};

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of(value, "the body").expect("an object")
    }

    fn get(value: Value) -> Result<Get, Refusal> {
        Get::read(&fields(value))
    }

    #[test]
    fn what_was_published_is_what_is_got() {
        let properties = json!({
            "delivery_mode": 2, "priority": 3, "timestamp": 1_700_000_000u64, "type": "t", "headers": { "a": [1, true] },
            "expiration": "60000"
        });
        let body =
            json!({ "properties": properties, "routing_key": "k", "payload": "/wA=", "payload_encoding": "base64" });
        let message = publish("x", &fields(body)).expect("valid");
        assert_eq!(&message.body[..], [0xff, 0]);
        let delivery = Delivery { id: DeliveryId(1), redelivered: true, ack_timeout: None, message };
        let asked = get(json!({ "count": "1", "ackmode": "ack_requeue_false", "encoding": "auto" })).expect("valid");
        assert_eq!((asked.count, asked.mode), (1, AckMode::Ack));
        assert_eq!(
            asked.document(&Got { delivery, message_count: 4 }),
            json!({
                "payload_bytes": 2, "redelivered": true, "exchange": "x", "routing_key": "k", "message_count": 4,
                "properties": properties, "payload": "/wA=", "payload_encoding": "base64"
            })
        );
    }

    #[test]
    fn a_payload_may_be_cut_and_an_empty_set_of_properties_is_a_list() {
        let body = json!({ "properties": {}, "routing_key": "", "payload": "hällo", "payload_encoding": "string" });
        let message = publish("", &fields(body)).expect("valid");
        let delivery = Delivery { id: DeliveryId(1), redelivered: false, ack_timeout: None, message };
        let got = Got { delivery, message_count: 0 };
        let shown = |truncate: Value| {
            let asked =
                json!({ "count": 1, "ackmode": "reject_requeue_false", "encoding": "auto", "truncate": truncate });
            let document = get(asked).expect("valid").document(&got);
            assert_eq!((&document["properties"], &document["payload_bytes"]), (&json!([]), &json!(6)));
            (document["payload"].clone(), document["payload_encoding"].clone())
        };
        assert_eq!(shown(json!(1)), (json!("h"), json!("string")));
        assert_eq!(shown(json!(2)), (json!("aMM="), json!("base64")), "cut in the middle of a character");
        assert_eq!(shown(Value::Null), (json!("hällo"), json!("string")));
    }

    #[test]
    fn bad_fields_are_named() {
        let message = |change: (&str, Value)| {
            let mut body =
                json!({ "properties": {}, "routing_key": "k", "payload": "p", "payload_encoding": "string" });
            body[change.0] = change.1;
            publish("x", &fields(body)).expect_err("refused").reason
        };
        assert_eq!(message(("payload", Value::Null)), "[{key_missing,payload}]");
        assert!(
            message(("payload_encoding", json!("banana")))
                .starts_with("unsupported_encoding: field 'payload_encoding'")
        );
        assert!(message(("payload_encoding", json!("base64"))).starts_with("not_base64: field 'payload'"));
        assert!(message(("properties", json!({ "delivery_mode": "x" }))).contains("'delivery_mode'"));
        assert!(message(("properties", json!({ "priority": 256 }))).contains("'priority'"));
        assert!(message(("properties", json!({ "bogus": 1 }))).contains("'properties.bogus'"));
        assert!(message(("properties", json!(5))).contains("'properties'"));
        for (body, named) in [
            (json!({ "count": 1, "encoding": "auto" }), "ackmode"),
            (json!({ "count": 1, "encoding": "auto", "ackmode": "banana" }), "ackmode"),
            (json!({ "count": "x", "encoding": "auto", "ackmode": "ack_requeue_true" }), "count"),
            (json!({ "count": MOST + 1, "encoding": "auto", "ackmode": "ack_requeue_true" }), "count"),
            (json!({ "count": 1, "encoding": "zz", "ackmode": "ack_requeue_true" }), "encoding"),
            (json!({ "count": 1, "encoding": "auto", "ackmode": "ack_requeue_true", "truncate": -1 }), "truncate"),
        ] {
            let reason = get(body).expect_err("refused").reason;
            assert!(reason.contains(named), "{reason}");
        }
    }
}
