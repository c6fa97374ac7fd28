//! A publisher: a window of unconfirmed messages and the task that watches over it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures::FutureExt;
use tokio::sync::{Semaphore, TryAcquireError, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::breaker::Breaker;
use super::inbox::ConfirmInbox;
use super::keeper::{Keeper, PublishMetrics};
use super::window::{Outstanding, Window};
use super::{BreakerState, PublishConfig, Published};
use crate::connection::Events;
use crate::encryption::Encrypter;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Message, header_map};
use crate::message_id::{Generator, MessageId};
use crate::pulse::Pulse;
use crate::schema::{Checker, Schemas};

/// Publishes to JetStream, with a window of its own. Clones share the window.
///
/// When the last clone is dropped, what was handed over is still confirmed or timed out.
/// ```no_run
/// # async fn example(bridge: nats_bridge::Bridge) -> nats_bridge::Result<()> {
/// use std::time::Duration;
/// use nats_bridge::{Message, PublishConfig};
///
/// // At most 100 that are not confirmed: the next one waits.
/// let publisher = bridge.publisher(PublishConfig { max_in_flight: 100, ..PublishConfig::default() }).await?;
/// let mut pending = Vec::new();
/// for n in 0..1_000 {
///     pending.push(publisher.publish_later(Message::new("orders.new", "one tea").id(format!("order-{n}"))).await?);
/// }
/// for outcome in pending {
///     println!("{}", outcome.await?.sequence);
/// }
/// publisher.flush(Duration::from_secs(5)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
    _last: Arc<DropGuard>,
}

pub(super) struct Shared {
    pub inbox: ConfirmInbox,
    pub config: PublishConfig,
    pub window: Mutex<Window>,
    pub slots: Semaphore,
    pub bytes: Semaphore,
    pub ids: Generator,
    pub metrics: PublishMetrics,
    // The shortest duplicate window (milliseconds) of the streams published to; a resend later than this after the
    // first send could be stored twice.
    pub resend_bound_ms: AtomicU64,
    /// Messages lie where this account's API does not know of: in another account or domain, or under a subject that is mapped.
    pub elsewhere: AtomicBool,
    pub pulse: Arc<Pulse>,
    pub breaker: Option<Mutex<Breaker>>,
    pub breaker_state: watch::Sender<BreakerState>,
    checker: Option<Checker>,
    encrypter: Option<Encrypter>,
}

/// A message that was handed over and is not confirmed yet; await it for the outcome.
///
/// Dropping it gives up the answer, not the message.
#[derive(Debug)]
pub struct Pending {
    done: oneshot::Receiver<Result<Published>>,
}

impl Publisher {
    pub(crate) async fn open(
        pulse: &Arc<Pulse>,
        jetstream: jetstream::Context,
        events: &Events,
        config: PublishConfig,
        region: Option<&str>,
    ) -> Result<Publisher> {
        config.check()?;
        let checker = match &config.schemas {
            Some(bucket) => Some(Checker::new(Schemas::open(&jetstream, bucket).await?)),
            None => None,
        };
        let (inbox, confirms) = ConfirmInbox::open(&jetstream.client()).await?;
        let shared = Arc::new(Shared {
            inbox,
            breaker: config.breaker.clone().map(|config| Mutex::new(Breaker::new(config, Instant::now()))),
            breaker_state: watch::Sender::new(BreakerState::Closed),
            checker,
            encrypter: config.encrypt.clone().map(Encrypter::new),
            pulse: pulse.clone(),
            slots: Semaphore::new(config.max_in_flight),
            bytes: Semaphore::new(config.max_in_flight_bytes),
            config,
            window: Default::default(),
            ids: Generator::new(region),
            metrics: PublishMetrics::new(),
            resend_bound_ms: AtomicU64::new(u64::MAX),
            elsewhere: AtomicBool::new(false),
        });
        let stop = CancellationToken::new();
        let keeper = Keeper::new(shared.clone(), jetstream, events.watch(), events.follow());
        tokio::spawn(keeper.run(confirms, stop.clone()));
        Ok(Publisher { shared, _last: Arc::new(stop.drop_guard()) })
    }

    /// Publishes one message and waits until JetStream has stored it.
    ///
    /// No answer, a lost connection or a rejection that may pass (no leader, busy) are handled here: the message is sent
    /// again with the same id, inside the streams' duplicate window, up to the bounds of [`PublishConfig`].
    /// `duplicate` is true when the id was already seen inside the stream's duplicate window (default 120 s).
    ///
    /// # Errors
    /// - `InvalidMessage`, `TooLarge`: it cannot be sent as it is. Nothing landed.
    /// - `Schema`: [`PublishConfig::schemas`] is set and the payload does not fit, or names no schema; `NotFound`: there is none of that
    ///   name. Nothing landed.
    /// - `UnknownKey`, `Decrypt`: [`PublishConfig::encrypt`] is set and its provider has no current key, or refuses to use it.
    ///   Nothing landed; nor does anything on `Unreachable` when the provider is away.
    /// - `Rejected`: JetStream refused it, such as a full stream with discard "new" (`err_code` 10077). Nothing landed,
    ///   unless an earlier attempt had no answer.
    /// - `Denied`: this user may not publish to the subject.
    /// - `NotFound`: no stream takes the subject. Nothing landed, unless an earlier attempt had no answer.
    /// - `Unreachable`: nobody answered on the subject for `no_stream_wait`, and a stream takes it, or it is not known whether one does.
    /// - `Timeout`: not confirmed within the deadline. It may have landed: resend with the same id.
    /// - `BreakerOpen`: [`PublishConfig::breaker`] is set and NATS confirms nothing at present. Nothing landed.
    /// - `Closed`: the connection was closed. It may have landed.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped after its first poll, the message may or may not be published.
    pub async fn publish(&self, message: Message) -> Result<Published> {
        self.publish_later(message).await?.await
    }

    /// Hands one message over and gives its pending confirm.
    ///
    /// Waits while the window is full, in messages or bytes. Messages of one task are stored in the order of these
    /// calls, except around a resend.
    ///
    /// # Errors
    /// `InvalidMessage`, `TooLarge`, `BreakerOpen`, `Closed`, and what checking and encrypting say; nothing landed. All else comes from the [`Pending`].
    ///
    /// # Cancel safety
    /// Cancel safe: dropped before it is ready, nothing is sent.
    pub async fn publish_later(&self, message: Message) -> Result<Pending> {
        let (message, id) = self.prepare(message).await?;
        let size = self.window_size(&message);
        self.shared.admit(&message, id.as_deref())?;
        let room = async {
            let slot = self.shared.slots.acquire().await.map_err(|_| Error::new(ErrorKind::Closed))?;
            let bytes = self.shared.bytes.acquire_many(size).await.map_err(|_| Error::new(ErrorKind::Closed))?;
            slot.forget();
            bytes.forget();
            Ok::<(), Error>(())
        };
        tokio::select! {
            biased;
            room = room => room?,
            () = self.shared.opened() => return Err(refused(&message, id.as_deref())),
        }
        self.hand_over(message, id, size).await
    }

    /// Publishes messages in their order, and gives the outcome of each in the same order once all have one.
    ///
    /// Nothing waits for the confirm of the message before it, as far as the window allows. A message that fails holds none of
    /// the others back.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped, some may be published, and none or some of the rest.
    pub async fn publish_many(&self, messages: impl IntoIterator<Item = Message>) -> Vec<Result<Published>> {
        let messages = messages.into_iter();
        let mut handed_over = Vec::with_capacity(messages.size_hint().0);
        for message in messages {
            handed_over.push(self.publish_later(message).await);
        }
        let mut outcomes = Vec::with_capacity(handed_over.len());
        for pending in handed_over {
            outcomes.push(match pending {
                Ok(pending) => pending.await,
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    /// Hands one message over if there is room at once.
    ///
    /// # Errors
    /// As [`Publisher::publish_later`], and `WindowFull`: the window, or the client's own queue, has no room, or a key or a
    /// schema has to be waited for. Nothing landed.
    pub fn try_publish(&self, message: Message) -> Result<Pending> {
        let full = || Error::new(ErrorKind::WindowFull);
        let prepared = tokio::task::unconstrained(self.prepare(message)).now_or_never();
        let (message, id) = prepared.unwrap_or_else(|| Err(full()))?;
        let size = self.window_size(&message);
        self.shared.admit(&message, id.as_deref())?;
        let none = |error| match error {
            TryAcquireError::NoPermits => full(),
            TryAcquireError::Closed => Error::new(ErrorKind::Closed),
        };
        let slot = self.shared.slots.try_acquire().map_err(none)?;
        let bytes = self.shared.bytes.try_acquire_many(size).map_err(none)?;
        slot.forget();
        bytes.forget();
        // Outside of Tokio's budget, so that "not ready" means that the client's queue is full.
        tokio::task::unconstrained(self.hand_over(message, id, size)).now_or_never().unwrap_or_else(|| Err(full()))
    }

    /// Waits until nothing is outstanding; what is handed over meanwhile counts too.
    ///
    /// # Errors
    /// `Timeout`: something is still outstanding after `budget`, and may have landed.
    pub async fn flush(&self, budget: Duration) -> Result<()> {
        let all = self.shared.slots.acquire_many(self.shared.config.max_in_flight as u32);
        match tokio::time::timeout(budget, all).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(ErrorKind::Timeout).with("outstanding", self.outstanding()).landed_unknown()),
        }
    }

    /// From now on every publish is refused as `Closed`, and nothing of it lands. What is outstanding still is confirmed.
    pub(crate) fn take_no_more(&self) {
        self.shared.slots.close();
        self.shared.bytes.close();
    }

    /// The circuit breaker's state, to await changes of; always `Closed` when [`PublishConfig::breaker`] is none.
    pub fn breaker(&self) -> watch::Receiver<BreakerState> {
        self.shared.breaker_state.subscribe()
    }

    /// How many messages are handed over and not confirmed.
    pub fn outstanding(&self) -> usize {
        self.shared.lock().len()
    }

    async fn prepare(&self, message: Message) -> Result<(Message, Option<String>)> {
        let prepared = self.checked_and_encrypted(message).await;
        if let Err(error) = &prepared {
            metrics::counter!("natsbridge_publish_refused_total", "reason" => error.kind().name()).increment(1);
        }
        prepared
    }

    async fn checked_and_encrypted(&self, mut message: Message) -> Result<(Message, Option<String>)> {
        message.check()?;
        let id = match std::mem::take(&mut message.id) {
            MessageId::Generated => Some(self.shared.ids.generate()),
            MessageId::Given(id) => Some(id),
            MessageId::None => None,
        };
        match &self.shared.checker {
            Some(checker) if !message.stored_before => checker.admit(&mut message, id.as_deref()).await?,
            None if message.schema.is_some() => {
                let why = "this publisher checks no schemas";
                return Err(Error::new(ErrorKind::InvalidMessage).with("subject", &message.subject).with("why", why));
            }
            _ => {}
        }
        if let Some(encrypter) = self.shared.encrypter.as_ref().filter(|_| !message.stored_before) {
            encrypter.encrypt(&mut message, id.as_deref()).await?;
        }
        Ok((message, id))
    }

    // One that is larger than the whole window goes alone.
    fn window_size(&self, message: &Message) -> u32 {
        message.size().min(self.shared.config.max_in_flight_bytes) as u32
    }

    async fn hand_over(&self, message: Message, id: Option<String>, size: u32) -> Result<Pending> {
        let Message { subject, payload, headers, .. } = message;
        let (done, receiver) = oneshot::channel();
        let map = header_map(&headers, id.as_deref());
        let (wire_subject, wire_payload) = (subject.clone(), payload.clone());
        let outstanding = Outstanding::new(subject, payload, headers, id, size, done, Instant::now());
        let token = self.shared.lock().insert(outstanding);
        // Takes the entry back if this future is dropped, or fails, before the message was handed over.
        let mut entry = Entry { shared: &self.shared, token, keep: false };
        let handed_over = self.shared.inbox.publish(token, wire_subject, map, wire_payload).await;
        match handed_over {
            Ok(()) => {
                entry.keep = true;
                Ok(Pending { done: receiver })
            }
            Err(error) => Err(entry.describe(error)),
        }
    }
}

struct Entry<'a> {
    shared: &'a Shared,
    token: u64,
    keep: bool,
}

impl Entry<'_> {
    fn describe(&self, error: Error) -> Error {
        let mut window = self.shared.lock();
        match window.get_mut(self.token) {
            Some(out) => {
                let error = error.with("subject", &out.subject);
                match &out.id {
                    Some(id) => error.with("msg_id", id),
                    None => error,
                }
            }
            None => error,
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if !self.keep
            && let Some(out) = { self.shared.lock().remove(self.token) }
        {
            self.shared.release(1, out.size as usize);
        }
    }
}

impl Shared {
    pub fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        // Nothing panics while it is held; a poisoned window would still be whole.
        self.window.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn admit(&self, message: &Message, id: Option<&str>) -> Result<()> {
        match self.on_breaker(|breaker| breaker.admit(Instant::now())) {
            Some(false) => Err(refused(message, id)),
            _ => Ok(()),
        }
    }

    // Ready when the breaker is open.
    async fn opened(&self) {
        let mut state = self.breaker_state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|state| *state == BreakerState::Open).await;
    }

    /// Does something with the breaker, if there is one, and tells everybody when its state changed by that.
    pub fn on_breaker<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> Option<T> {
        let breaker = self.breaker.as_ref()?;
        let mut breaker = breaker.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before = breaker.state();
        let result = act(&mut breaker);
        let after = breaker.state();
        if before != after {
            tracing::warn!(from = before.name(), to = after.name(), "the publisher's circuit breaker changed");
            metrics::counter!("natsbridge_publish_breaker_changes_total", "to" => after.name()).increment(1);
            metrics::gauge!("natsbridge_publish_breaker_open").set(f64::from(u8::from(after != BreakerState::Closed)));
            self.breaker_state.send_replace(after);
        }
        Some(result)
    }

    pub fn release(&self, slots: usize, bytes: usize) {
        self.slots.add_permits(slots);
        self.bytes.add_permits(bytes);
    }
}

fn refused(message: &Message, id: Option<&str>) -> Error {
    let error = Error::new(ErrorKind::BreakerOpen).with("subject", &message.subject);
    match id {
        Some(id) => error.with("msg_id", id),
        None => error,
    }
}

impl Future for Pending {
    type Output = Result<Published>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.done.poll_unpin(cx).map(|outcome| match outcome {
            Ok(outcome) => outcome,
            // The keeper ended without an answer: the runtime is shutting down.
            Err(_) => Err(Error::new(ErrorKind::Closed).landed_unknown()),
        })
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("outstanding", &self.outstanding()).finish_non_exhaustive()
    }
}
