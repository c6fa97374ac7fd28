//! Delivered messages, and their settlement.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use napi::bindgen_prelude::{BufferSlice, Env};
use napi_derive::napi;
use nats_bridge::{Failure, Reason, Received};

use crate::errors;
use crate::held::{Eventually, Held};
use crate::options::millis;

/// Delivered messages, each known by its place. One object for many, as what V8 does to make an object of an addon, and to collect
/// it, takes longer than everything else about a message. They are let go of together.
#[napi]
pub struct Page {
    slots: Held<Mutex<Slots>>,
}

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    bytes: usize,
}

struct Slot {
    received: Received,
    // None once it is settled, or when something else settles it.
    core: Option<nats_bridge::Delivery>,
}

/// How many messages, and from how many bytes on, a page is full: what was settled stays in memory until the page is collected.
const FULL: usize = 64;
const FULL_BYTES: usize = 64 * 1024;

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

impl Page {
    /// A page that begins with this delivery.
    pub fn new(delivery: nats_bridge::Delivery) -> Self {
        let page = Page { slots: Held::new(Mutex::default()) };
        page.add(delivery);
        page
    }

    /// A page of one message, which something else settles.
    pub fn of<T>(received: Received, beside: &Held<T>) -> Self {
        let slots = Slots { all: vec![Slot { received, core: None }], bytes: 0 };
        Page { slots: Held::beside(beside, Mutex::new(slots)) }
    }

    /// Adds a delivery, and says at which place.
    pub fn add(&self, delivery: nats_bridge::Delivery) -> usize {
        let mut slots = self.lock();
        slots.bytes += delivery.payload().len();
        slots.all.push(Slot { received: delivery.received(), core: Some(delivery) });
        slots.all.len() - 1
    }

    /// Whether it takes no more.
    pub fn is_full(&self) -> bool {
        let slots = self.lock();
        slots.all.len() >= FULL || slots.bytes >= FULL_BYTES
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // What is behind the lock is whole at every step.
        self.slots.get().lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, at: u32) -> napi::Result<nats_bridge::Delivery> {
        let mut slots = self.lock();
        let slot = slots.all.get_mut(at as usize).ok_or_else(nothing_there)?;
        let taken = slot.core.take();
        taken.ok_or_else(|| errors::already_settled(slot.received.subject(), slot.received.sequence()))
    }

    fn read<T>(&self, at: u32, read: impl FnOnce(&Received) -> T) -> napi::Result<T> {
        self.lock().all.get(at as usize).map(|slot| read(&slot.received)).ok_or_else(nothing_there)
    }
}

fn nothing_there() -> napi::Error {
    errors::invalid("at", "no message is there")
}

/// The reason with this name.
pub fn reason(name: &str) -> napi::Result<Reason> {
    name.parse().map_err(|error| errors::from_core(&error))
}

/// The name that a header of a dead letter had on the original message; none for one that the dead letter added.
#[napi]
pub fn original_name(name: String) -> Option<String> {
    nats_bridge::dead_letter::original_name(&name)
}

async fn ack(cores: Vec<nats_bridge::Delivery>) -> nats_bridge::Result<()> {
    for core in cores {
        core.ack().await?;
    }
    Ok(())
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
impl Page {
    /// Says that these messages are done. They were not settled before.
    #[napi]
    pub fn ack_many<'env>(&self, env: &'env Env, places: Vec<u32>) -> napi::Result<Eventually<'env, ()>> {
        let cores = {
            let mut slots = self.lock();
            let taken = places.into_iter().filter_map(|at| slots.all.get_mut(at as usize)?.core.take());
            taken.collect()
        };
        self.slots.promise(env, ack(cores), |()| ())
    }

    /// Says that the message is done, and waits until the server has it.
    #[napi]
    pub fn ack_confirmed<'env>(&self, env: &'env Env, at: u32) -> napi::Result<Eventually<'env, ()>> {
        self.slots.promise(env, self.take(at)?.ack_confirmed(), |_| ())
    }

    /// Says that handling failed.
    #[napi]
    pub fn retry<'env>(
        &self,
        env: &'env Env,
        at: u32,
        kind: String,
        detail: String,
        delay_ms: Option<f64>,
    ) -> napi::Result<Eventually<'env, Settled>> {
        let pause = delay_ms.map(|ms| millis("delayMs", ms)).transpose()?;
        self.slots.promise(env, retry(self.take(at)?, Failure::of(kind, detail), pause), Settled::from)
    }

    /// Gives the message up at once.
    #[napi]
    pub fn dead_letter<'env>(
        &self,
        env: &'env Env,
        at: u32,
        reason: String,
        kind: String,
        detail: String,
    ) -> napi::Result<Eventually<'env, Settled>> {
        let reason = self::reason(&reason)?;
        self.slots.promise(env, self.take(at)?.dead_letter(reason, Failure::of(kind, detail)), Settled::from)
    }

    /// Gives it back unsettled: it is what the consumer's next wait gives.
    #[napi]
    pub fn give_back(&self, at: u32) -> napi::Result<()> {
        self.take(at)?.give_back();
        Ok(())
    }

    /// The subject it was published to.
    #[napi]
    pub fn subject(&self, at: u32) -> napi::Result<String> {
        self.read(at, |received| received.subject().to_owned())
    }

    /// The payload; a copy each time.
    #[napi]
    pub fn payload<'env>(&self, env: &'env Env, at: u32) -> napi::Result<BufferSlice<'env>> {
        self.read(at, |received| received.payload().clone()).and_then(|payload| BufferSlice::copy_from(env, payload))
    }

    /// The id that it was published with.
    #[napi]
    pub fn id(&self, at: u32) -> napi::Result<Option<String>> {
        self.read(at, |received| received.id().map(str::to_owned))
    }

    /// All headers.
    #[napi]
    pub fn headers(&self, at: u32) -> napi::Result<HashMap<String, Vec<String>>> {
        self.read(at, |received| {
            let headers = received.headers().into_iter().flat_map(|headers| headers.iter());
            headers.map(|(name, values)| (name.to_string(), values.iter().map(ToString::to_string).collect())).collect()
        })
    }

    /// The first value of a header.
    #[napi]
    pub fn header(&self, at: u32, name: String) -> napi::Result<Option<String>> {
        self.read(at, |received| received.header(&name).map(str::to_owned))
    }

    /// The key that the payload was decrypted with.
    #[napi]
    pub fn key_id(&self, at: u32) -> napi::Result<Option<String>> {
        self.read(at, |received| received.key_id().map(str::to_owned))
    }

    /// Which delivery of this message it is.
    #[napi]
    pub fn attempt(&self, at: u32) -> napi::Result<f64> {
        self.read(at, |received| received.attempt() as f64)
    }

    /// Under which lease of the single active consumer it came. Exact up to 2^53.
    #[napi]
    pub fn fencing_number(&self, at: u32) -> napi::Result<Option<f64>> {
        self.read(at, |received| received.fencing_number().map(|number| number as f64))
    }

    /// Its sequence in the stream.
    #[napi]
    pub fn sequence(&self, at: u32) -> napi::Result<f64> {
        self.read(at, |received| received.sequence() as f64)
    }

    /// When the stream stored it, in milliseconds since 1970.
    #[napi]
    pub fn stored_at_ms(&self, at: u32) -> napi::Result<f64> {
        self.read(at, |received| {
            let since = received.stored_at().duration_since(SystemTime::UNIX_EPOCH);
            since.map_or(0.0, |since| since.as_secs_f64() * 1000.0)
        })
    }

    /// How many messages the consumer had still to deliver after this one.
    #[napi]
    pub fn pending(&self, at: u32) -> napi::Result<f64> {
        self.read(at, |received| received.pending() as f64)
    }
}
