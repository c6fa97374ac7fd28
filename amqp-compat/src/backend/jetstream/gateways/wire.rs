//! What gateways say to each other: JSON, and behind it the body of the AMQP message that it speaks of, if any.

use std::str::FromStr as _;

use amq_protocol::types::ShortString;
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::message;
use super::super::queue::Counts;
use super::super::store::Wire;
use crate::backend::{Got, Message, Outcome, Reply, Topology};
use crate::error::{AmqpError, ReplyCode};

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct At {
    pub(super) vhost: String,
    pub(super) queue: String,
}

/// What a following gateway says to the leading one. With an `ask` that is not 0 it is answered once.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Up {
    pub(super) ask: u64,
    pub(super) say: Say,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Say {
    /// The first word: its number, the vhosts that it serves, and of each its own exclusive queues with their bindings.
    Hello { number: u32, vhosts: Vec<(String, Vec<Wire>)> },
    /// Changes of the topology up to this one are in force there.
    Applied { version: u64 },
    /// A client of it reads or changes the topology.
    Topology { vhost: String, owner: u64, request: Topology },
    /// A queue is to go: its connection closed, its last consumer went, or it expired.
    Discard { at: At, owner: Option<u64> },
    /// A policy is put, or dropped.
    Policy { vhost: String, is_operator: bool, name: String, policy: Option<Wire> },
    /// A consumer comes, ready for what is stored since then if its first credit is sure to follow.
    Consume {
        at: At,
        consumer: u64,
        link: u64,
        channel: u16,
        #[serde(default)]
        tag: String,
        exclusive: bool,
        priority: i64,
        ready_ns: Option<u64>,
    },
    /// Deliveries are settled, and consumers get credit.
    Work { at: At, settled: Vec<(u64, Ended)>, credit: Vec<(u64, u32)> },
    /// A consumer goes.
    Cancel { at: At, consumer: u64 },
    /// A channel or link goes.
    Release { at: At, link: u64, channel: Option<u16> },
    /// Takes one message.
    Get { at: At, link: u64, channel: u16 },
    /// Counts what is in a queue.
    Counts { at: At },
    /// Messages of a queue may expire.
    WatchExpiry { at: At },
    /// The last word.
    Bye,
    /// It has heard that the leading gateway leaves, and routes nothing by what that one has said.
    Heard,
}

/// [`Outcome`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Ended {
    Ack,
    Requeue,
    Reject,
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ack => Ended::Ack,
            Outcome::Requeue => Ended::Requeue,
            Outcome::Reject => Ended::Reject,
        }
    }
}

impl From<Ended> for Outcome {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Ack => Outcome::Ack,
            Ended::Requeue => Outcome::Requeue,
            Ended::Reject => Outcome::Reject,
        }
    }
}

/// What the leading gateway says to a following one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Down {
    /// The answer to the first word: who leads, and all that there is, as of `version`.
    Welcome { number: u32, version: u64, vhosts: Vec<(String, Vec<Wire>)> },
    /// The topology has changed.
    Changed { version: u64, vhost: String, changes: Vec<Wire> },
    /// The answer to what was asked under this number.
    Answer { ask: u64, answer: Answer },
    /// A delivery to a consumer; the message's body is behind it.
    Delivery { consumer: u64, sequence: u64, redelivered: bool, headers: Headers },
    /// A consumer has ended with its queue.
    Cancelled { consumer: u64 },
    /// The last word.
    Bye,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Refused {
        code: u16,
        text: String,
    },
    Queue {
        queue: String,
        message_count: u32,
        consumer_count: u32,
    },
    MessageCount(u32),
    /// Whether a policy of the name was there.
    WasThere(bool),
    Counts {
        ready: u64,
        unacknowledged: u64,
        consumers: u32,
    },
    /// A message that was got, whose body is behind it; nothing when the queue is empty.
    Got(Option<GotFields>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GotFields {
    pub(super) sequence: u64,
    pub(super) redelivered: bool,
    pub(super) message_count: u32,
    pub(super) headers: Headers,
}

impl Answer {
    pub(super) fn refused(error: &AmqpError) -> Self {
        Answer::Refused { code: error.code as u16, text: error.text.clone() }
    }

    /// The answer to a request for the topology.
    pub(super) fn of_reply(reply: Reply) -> Self {
        match reply {
            Reply::Done | Reply::Got(_) => Answer::Done,
            Reply::Queue { queue, message_count, consumer_count } => {
                Answer::Queue { queue: queue.to_string(), message_count, consumer_count }
            }
            Reply::MessageCount(count) => Answer::MessageCount(count),
        }
    }

    pub(super) fn of_counts(counts: Counts) -> Self {
        let Counts { ready, unacknowledged, consumers } = counts;
        Answer::Counts { ready, unacknowledged, consumers }
    }

    /// The answer to a get, and the body that goes behind it. The delivery's name is its sequence in the queue.
    pub(super) fn of_got(got: Option<Got>) -> (Self, Bytes) {
        let Some(Got { delivery, message_count }) = got else { return (Answer::Got(None), Bytes::new()) };
        let fields = GotFields {
            sequence: delivery.id.0,
            redelivered: delivery.redelivered,
            message_count,
            headers: headers(&delivery.message),
        };
        (Answer::Got(Some(fields)), delivery.message.body)
    }

    /// What it means for a request for the topology.
    pub(super) fn into_reply(self) -> Result<Reply, AmqpError> {
        match self {
            Answer::Done => Ok(Reply::Done),
            Answer::Queue { queue, message_count, consumer_count } => {
                let queue = ShortString::try_new(queue).unwrap_or_default();
                Ok(Reply::Queue { queue, message_count, consumer_count })
            }
            Answer::MessageCount(count) => Ok(Reply::MessageCount(count)),
            other => Err(other.into_error()),
        }
    }

    /// The error that it is, or that it is not what was asked for.
    pub(super) fn into_error(self) -> AmqpError {
        match self {
            Answer::Refused { code, text } => {
                AmqpError::new(ReplyCode::from_u16(code).unwrap_or(ReplyCode::InternalError), text)
            }
            other => {
                tracing::error!(?other, "the leading gateway gave an answer that nobody asked for");
                AmqpError::new(ReplyCode::InternalError, "the leading gateway's answer cannot be read")
            }
        }
    }
}

/// A message's exchange, routing key and properties, as the headers of its copy in a queue.
pub(super) type Headers = Vec<(String, String)>;

/// See [`Headers`].
pub(super) fn headers(message: &Message) -> Headers {
    let headers = message::headers(message, None);
    let entries = headers.iter().filter_map(|(name, values)| Some((name, values.first()?)));
    entries.map(|(name, value)| (AsRef::<str>::as_ref(name).to_owned(), value.as_str().to_owned())).collect()
}

/// The message that has these headers and this body, in the queue `queue`.
pub(super) fn message_of(headers: &Headers, body: Bytes, queue: &str) -> Message {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(name), value.parse::<HeaderValue>()) {
            map.insert(name, value);
        }
    }
    message::message(Some(&map), body, queue)
}

/// As bytes: the JSON's length in four bytes, the JSON, the body.
pub(super) fn write(document: &impl Serialize, body: &[u8]) -> Bytes {
    let json = match serde_json::to_vec(document) {
        Ok(json) => json,
        Err(error) => {
            // Texts, numbers and flags alone, which always serialize.
            tracing::error!(%error, "a word to another gateway cannot be written");
            Vec::new()
        }
    };
    let mut bytes = BytesMut::with_capacity(4 + json.len() + body.len());
    bytes.put_u32(u32::try_from(json.len()).unwrap_or_default());
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(body);
    bytes.freeze()
}

/// What [`write()`] was given; `None` for bytes that it has not made.
pub(super) fn read<T: DeserializeOwned>(mut bytes: Bytes) -> Option<(T, Bytes)> {
    if bytes.len() < 4 {
        return None;
    }
    let length = usize::try_from(bytes.get_u32()).ok()?;
    if bytes.len() < length {
        return None;
    }
    let json = bytes.split_to(length);
    Some((serde_json::from_slice(&json).ok()?, bytes))
}

#[cfg(test)]
mod tests {
    use amq_protocol::protocol::basic::AMQPProperties;
    use amq_protocol::types::{AMQPValue, FieldTable};

    use super::*;
    use crate::backend::{Delivery, DeliveryId, QueueDeclare};

    #[test]
    fn a_message_comes_as_it_went() {
        let mut table = FieldTable::default();
        table.insert("x".into(), AMQPValue::LongInt(7));
        table.insert("nan".into(), AMQPValue::Double(0.5));
        let properties = AMQPProperties::default()
            .with_headers(table)
            .with_priority(3)
            .with_message_id("m".into())
            .with_content_type("text/plain".into());
        let message = Message {
            exchange: "ex".into(),
            routing_key: "a key".into(),
            properties,
            body: Bytes::from_static(b"body"),
        };
        let delivery = Delivery { id: DeliveryId(9), redelivered: true, ack_timeout: None, message: message.clone() };
        let (answer, body) = Answer::of_got(Some(Got { delivery, message_count: 4 }));
        let (back, body) = read::<Answer>(write(&answer, &body)).expect("read");
        let Answer::Got(Some(fields)) = back else { panic!("{back:?}") };
        assert_eq!((fields.sequence, fields.redelivered, fields.message_count), (9, true, 4));
        assert_eq!(message_of(&fields.headers, body, "q"), message);
    }

    #[test]
    fn a_request_comes_as_it_went() {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(7));
        let declare = QueueDeclare {
            queue: "q".into(),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: true,
            arguments,
        };
        let request = Topology::QueueDeclare(declare);
        let up = Up { ask: 3, say: Say::Topology { vhost: "/".into(), owner: 1 << 40, request: request.clone() } };
        let (back, _) = read::<Up>(write(&up, &[])).expect("read");
        let Say::Topology { owner, request: read, .. } = back.say else { panic!("{back:?}") };
        assert_eq!((back.ask, owner, read), (3, 1 << 40, request));
    }

    #[test]
    fn bytes_of_somebody_else_are_nothing() {
        for bytes in [&b""[..], b"{}", b"\0\0\0\xff{}", b"\0\0\0\x02{}", b"\xff\xff\xff\xff"] {
            assert!(read::<Up>(Bytes::from_static(bytes)).is_none(), "{bytes:?}");
        }
    }
}
