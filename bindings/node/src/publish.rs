//! Publishing: what JavaScript gives becomes a message of the core, what the core answers becomes a `Published`.

use bytes::Bytes;
use napi::bindgen_prelude::{Either, Uint8Array};
use napi_derive::napi;
use nats_bridge::{Message, MessageId, PublishConfig};

use crate::errors;
use crate::options::{count, millis};

/// Where a published message is stored.
#[napi(object)]
pub struct Published {
    /// The stream that holds it.
    pub stream: String,
    /// Its sequence in that stream; for a duplicate, the sequence of the first one. Exact up to 2^53.
    pub sequence: f64,
    /// Whether the id was already seen inside the stream's duplicate window.
    pub duplicate: bool,
    /// The id it carries, also when it was generated.
    pub id: Option<String>,
}

impl From<nats_bridge::Published> for Published {
    fn from(core: nats_bridge::Published) -> Self {
        let nats_bridge::Published { stream, sequence, duplicate, id } = core;
        Published { stream: stream.to_string(), sequence: sequence as f64, duplicate, id }
    }
}

/// The core's message. `headers` are names and values in turn; `id` false sends none.
pub fn message(
    subject: String,
    payload: Uint8Array,
    id: Option<Either<String, bool>>,
    headers: Vec<String>,
) -> napi::Result<Message> {
    // Copied here, on the event loop's thread: the application may change the array once `publish` has returned.
    let mut message = Message::new(subject, Bytes::copy_from_slice(&payload));
    match id {
        Some(Either::A(id)) => message = message.id(id),
        Some(Either::B(false)) => message = message.message_id(MessageId::None),
        Some(Either::B(true)) => return Err(errors::invalid("id", "it is a string or false")),
        None => {}
    }
    let mut headers = headers.into_iter();
    while let (Some(name), Some(value)) = (headers.next(), headers.next()) {
        message = message.header(name, value);
    }
    Ok(message)
}

/// The bounds of publishing; what is left out has the core's default.
#[napi(object)]
pub struct PublishOptions {
    /// Messages handed over and not confirmed.
    pub max_in_flight: Option<f64>,
    /// Bytes of those.
    pub max_in_flight_bytes: Option<f64>,
    /// How long to wait for a confirm before sending again.
    pub ack_wait_ms: Option<f64>,
    /// How often one message is sent.
    pub attempts: Option<f64>,
    /// How long one message is tried in all.
    pub deadline_ms: Option<f64>,
    /// How long "no stream listens on the subject" is tried again.
    pub no_stream_wait_ms: Option<f64>,
}

impl PublishOptions {
    /// The core's bounds.
    pub fn config(self) -> napi::Result<PublishConfig> {
        let mut config = PublishConfig::default();
        if let Some(number) = self.max_in_flight {
            config.max_in_flight = count("publish.maxInFlight", number)?;
        }
        if let Some(number) = self.max_in_flight_bytes {
            config.max_in_flight_bytes = count("publish.maxInFlightBytes", number)?;
        }
        if let Some(ms) = self.ack_wait_ms {
            config.ack_wait = millis("publish.ackWaitMs", ms)?;
        }
        if let Some(number) = self.attempts {
            config.attempts = count("publish.attempts", number)?;
        }
        if let Some(ms) = self.deadline_ms {
            config.deadline = millis("publish.deadlineMs", ms)?;
        }
        if let Some(ms) = self.no_stream_wait_ms {
            config.no_stream_wait = millis("publish.noStreamWaitMs", ms)?;
        }
        Ok(config)
    }
}
