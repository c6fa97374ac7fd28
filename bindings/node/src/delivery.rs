//! One delivered message, and its settlement.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use napi::bindgen_prelude::{Buffer, Env};
use napi_derive::napi;
use nats_bridge::{Failure, Reason, Received};

use crate::errors;
use crate::held::{Eventually, Held};
use crate::options::millis;

/// A delivered message.
#[napi]
pub struct Delivery {
    received: Received,
    // None once it is settled.
    core: Held<Mutex<Option<nats_bridge::Delivery>>>,
}

/// What became of a delivery.
#[napi(object)]
pub struct Settled {
    /// `acked`, `retried` or `dead_lettered`.
    pub outcome: String,
    /// `retried`: not before this time has passed.
    pub after_ms: Option<f64>,
    /// `dead_lettered`: the dead-letter stream.
    pub stream: Option<String>,
    /// `dead_lettered`: its sequence there.
    pub sequence: Option<f64>,
}

impl From<nats_bridge::Settled> for Settled {
    fn from(core: nats_bridge::Settled) -> Self {
        let named =
            |outcome: &str| Settled { outcome: outcome.to_owned(), after_ms: None, stream: None, sequence: None };
        match core {
            nats_bridge::Settled::Acked => named("acked"),
            nats_bridge::Settled::Retried { after } => {
                Settled { after_ms: Some(after.as_millis() as f64), ..named("retried") }
            }
            nats_bridge::Settled::DeadLettered { stream, sequence } => {
                let (stream, sequence) = (Some(stream.to_string()), Some(sequence as f64));
                Settled { stream, sequence, ..named("dead_lettered") }
            }
        }
    }
}

impl Delivery {
    /// Wraps a delivery of the core.
    pub fn new(delivery: nats_bridge::Delivery) -> Self {
        Delivery { received: delivery.received(), core: Held::new(Mutex::new(Some(delivery))) }
    }

    /// A message that something else settles.
    pub fn of<T>(received: Received, beside: &Held<T>) -> Self {
        Delivery { received, core: Held::beside(beside, Mutex::new(None)) }
    }

    fn take(&self) -> napi::Result<nats_bridge::Delivery> {
        // What is behind the lock is whole at every step.
        let taken = self.core.get().lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| errors::already_settled(self.received.subject(), self.received.sequence()))
    }
}

/// The reason with this name.
pub fn reason(name: &str) -> napi::Result<Reason> {
    let all = [
        Reason::HandlerError,
        Reason::Timeout,
        Reason::Schema,
        Reason::Decrypt,
        Reason::NoHandler,
        Reason::Expired,
        Reason::MaxDeliver,
        Reason::Rejected,
        Reason::TooLarge,
        Reason::CrashLoop,
    ];
    all.into_iter()
        .find(|reason| reason.name() == name)
        .ok_or_else(|| errors::invalid("reason", "there is no such reason"))
}

/// The name that a header of a dead letter had on the original message; none for one that the dead letter added.
#[napi]
pub fn original_name(name: String) -> Option<String> {
    nats_bridge::dead_letter::original_name(&name)
}

async fn ack(core: nats_bridge::Delivery, confirmed: bool) -> nats_bridge::Result<nats_bridge::Settled> {
    if confirmed { core.ack_confirmed().await } else { core.ack().await }
}

async fn retry(
    core: nats_bridge::Delivery,
    failure: Failure,
    pause: Option<Duration>,
) -> nats_bridge::Result<nats_bridge::Settled> {
    match pause {
        Some(pause) => core.retry_after(pause, failure).await,
        None => core.retry(failure).await,
    }
}

#[napi]
impl Delivery {
    /// Says that the message is done.
    #[napi]
    pub fn ack<'env>(&self, env: &'env Env, confirmed: bool) -> napi::Result<Eventually<'env, Settled>> {
        self.core.promise(env, ack(self.take()?, confirmed), Settled::from)
    }

    /// Says that handling failed.
    #[napi]
    pub fn retry<'env>(
        &self,
        env: &'env Env,
        kind: String,
        detail: String,
        delay_ms: Option<f64>,
    ) -> napi::Result<Eventually<'env, Settled>> {
        let pause = delay_ms.map(|ms| millis("delayMs", ms)).transpose()?;
        self.core.promise(env, retry(self.take()?, Failure::of(kind, detail), pause), Settled::from)
    }

    /// Gives the message up at once.
    #[napi]
    pub fn dead_letter<'env>(
        &self,
        env: &'env Env,
        reason: String,
        kind: String,
        detail: String,
    ) -> napi::Result<Eventually<'env, Settled>> {
        let reason = self::reason(&reason)?;
        self.core.promise(env, self.take()?.dead_letter(reason, Failure::of(kind, detail)), Settled::from)
    }

    /// Gives it back to the server unsettled.
    #[napi]
    pub fn give_back<'env>(&self, env: &'env Env) -> napi::Result<Eventually<'env, ()>> {
        let core = self.take()?;
        let back = async move {
            core.give_back().await;
            Ok(())
        };
        self.core.promise(env, back, |()| ())
    }

    /// Whether it was settled.
    #[napi(getter)]
    pub fn settled(&self) -> bool {
        self.core.get().lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// The subject it was published to.
    #[napi(getter)]
    pub fn subject(&self) -> String {
        self.received.subject().to_owned()
    }

    /// The payload; a copy each time.
    #[napi(getter)]
    pub fn payload(&self) -> Buffer {
        self.received.payload().to_vec().into()
    }

    /// The id that it was published with.
    #[napi(getter)]
    pub fn id(&self) -> Option<String> {
        self.received.id().map(str::to_owned)
    }

    /// All headers.
    #[napi(getter)]
    pub fn headers(&self) -> HashMap<String, Vec<String>> {
        let headers = self.received.headers().into_iter().flat_map(|headers| headers.iter());
        headers.map(|(name, values)| (name.to_string(), values.iter().map(ToString::to_string).collect())).collect()
    }

    /// The first value of a header.
    #[napi]
    pub fn header(&self, name: String) -> Option<String> {
        self.received.header(&name).map(str::to_owned)
    }

    /// The key that the payload was decrypted with.
    #[napi(getter)]
    pub fn key_id(&self) -> Option<String> {
        self.received.key_id().map(str::to_owned)
    }

    /// Which delivery of this message it is.
    #[napi(getter)]
    pub fn attempt(&self) -> f64 {
        self.received.attempt() as f64
    }

    /// Its sequence in the stream.
    #[napi(getter)]
    pub fn sequence(&self) -> f64 {
        self.received.sequence() as f64
    }

    /// When the stream stored it, in milliseconds since 1970.
    #[napi(getter)]
    pub fn stored_at_ms(&self) -> f64 {
        let since = self.received.stored_at().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0.0, |since| since.as_secs_f64() * 1000.0)
    }

    /// How many messages the consumer had still to deliver after this one.
    #[napi(getter)]
    pub fn pending(&self) -> f64 {
        self.received.pending() as f64
    }
}
