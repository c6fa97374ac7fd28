//! Publishing: what JavaScript gives becomes a message of the core, what the core answers becomes a `Published`.

use bytes::Bytes;
use napi::bindgen_prelude::{Array, Either, Uint8ArraySlice};
use napi_derive::napi;
use nats_bridge::{BreakerConfig, Message, MessageId, PublishConfig};

use crate::errors;
use crate::options::{count, keys, millis};

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
    /// That it is stored: `yes`.
    pub landed: String,
}

impl From<nats_bridge::Published> for Published {
    fn from(core: nats_bridge::Published) -> Self {
        let nats_bridge::Published { stream, sequence, duplicate, id } = core;
        Published { stream: stream.to_string(), sequence: sequence as f64, duplicate, id, landed: "yes".to_owned() }
    }
}

/// The core's message. `headers` are names and values in turn; `id` false sends none.
pub fn message(
    subject: String,
    payload: Either<String, Uint8ArraySlice<'_>>,
    id: Option<Either<String, bool>>,
    headers: Vec<String>,
    schema: Option<String>,
) -> napi::Result<Message> {
    let payload = match payload {
        Either::A(text) => Bytes::from(text),
        // Copied here, on the event loop's thread: the application may change the array once `publish` has returned.
        Either::B(bytes) => Bytes::copy_from_slice(&bytes),
    };
    let mut message = Message::new(subject, payload);
    match id {
        Some(Either::A(id)) => message = message.id(id),
        Some(Either::B(false)) => message = message.message_id(MessageId::None),
        Some(Either::B(true)) => return Err(errors::invalid("id", "it is a string or false")),
        None => {}
    }
    if let Some(schema) = schema {
        message = message.schema(schema);
    }
    let mut headers = headers.into_iter();
    while let (Some(name), Some(value)) = (headers.next(), headers.next()) {
        message = message.header(name, value);
    }
    Ok(message)
}

/// The core's messages for subject, payload, id, headers and schema of each in turn.
pub fn messages(flat: &Array<'_>) -> napi::Result<Vec<Message>> {
    let mut messages = Vec::with_capacity(flat.len() as usize / 5);
    for at in (0..flat.len()).step_by(5) {
        let (subject, payload) = (flat.get(at)?.unwrap_or_default(), flat.get(at + 1)?);
        let (id, headers) = (flat.get::<Option<_>>(at + 2)?.flatten(), flat.get(at + 3)?.unwrap_or_default());
        let payload = payload.ok_or_else(|| errors::invalid("payload", "it is missing"))?;
        let schema = flat.get::<Option<_>>(at + 4)?.flatten();
        messages.push(message(subject, payload, id, headers, schema)?);
    }
    Ok(messages)
}

/// The outcome of one of many: where it is stored, or the error as a text.
pub type Outcome = Either<Published, String>;

/// The outcome of the message at `index` as it crosses.
pub fn outcome((index, outcome): (usize, nats_bridge::Result<nats_bridge::Published>)) -> Outcome {
    match outcome {
        Ok(stored) => Either::A(stored.into()),
        Err(error) => Either::B(errors::of_message(index, &error).reason.clone()),
    }
}

/// The bounds of publishing; what is left out has the core's default.
#[napi(object)]
#[derive(Default)]
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
    /// Fails at once while NATS confirms nothing.
    pub breaker: Option<BreakerOptions>,
    /// Where the keys are under which payloads are encrypted.
    pub encrypt: Option<String>,
    /// The registry by which payloads are checked.
    pub schemas: Option<String>,
}

/// When a publisher stops taking messages.
#[napi(object)]
#[derive(Default)]
pub struct BreakerOptions {
    /// Opens when nothing was confirmed for this long.
    pub trip_after_ms: Option<f64>,
    /// How often one message is let through.
    pub probe_every_ms: Option<f64>,
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
        if let Some(breaker) = self.breaker {
            let mut made = BreakerConfig::default();
            if let Some(ms) = breaker.trip_after_ms {
                made.trip_after = millis("publish.breaker.tripAfterMs", ms)?;
            }
            if let Some(ms) = breaker.probe_every_ms {
                made.probe_every = millis("publish.breaker.probeEveryMs", ms)?;
            }
            config.breaker = Some(made);
        }
        config.schemas = self.schemas;
        config.encrypt = self.encrypt.as_deref().map(keys).transpose()?;
        Ok(config)
    }
}
