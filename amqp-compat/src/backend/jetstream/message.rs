//! AMQP messages as NATS messages.

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use crate::backend::Message;
use crate::mapping::properties::{self, HeaderSink, HeaderSource};

/// JetStream's header for the id of a publish.
pub(crate) const MSG_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");

struct Sink<'a>(&'a mut HeaderMap);

impl HeaderSink for Sink<'_> {
    fn put(&mut self, name: &'static str, value: &str) {
        // The mapping has made the value safe; the check stays as the last word before the wire.
        if let Ok(value) = value.parse::<HeaderValue>() {
            self.0.insert(HeaderName::from_static(name), value);
        }
    }
}

impl HeaderSource for HeaderMap {
    fn each(&self, each: &mut dyn FnMut(&str, &str)) {
        for (name, values) in self.iter() {
            if let Some(value) = values.first() {
                each(name.as_ref(), value.as_str());
            }
        }
    }
}

/// The headers of a message's copy. `queue` is its only destination, if there is just one.
pub(crate) fn headers(message: &Message, queue: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    properties::encode(
        &mut Sink(&mut headers),
        message.exchange.as_str(),
        message.routing_key.as_str(),
        &message.properties,
        queue,
    );
    headers
}

/// The AMQP message that a NATS message in the queue `queue` is.
pub(crate) fn message(headers: Option<&HeaderMap>, payload: Bytes, queue: &str) -> Message {
    let none = HeaderMap::new();
    let fields = properties::decode(headers.unwrap_or(&none), queue);
    Message { exchange: fields.exchange, routing_key: fields.routing_key, properties: fields.properties, body: payload }
}
