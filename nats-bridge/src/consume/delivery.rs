//! One delivered message, and its settlement.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use super::done::End;
use super::held::Token;
use super::place::Place;
use super::shared::{ACK, Shared};
use crate::dead_letter::{Failure, Reason};
use crate::encryption::Decrypted;
use crate::error::Result;
use crate::retry::Next;

/// A message as it was received. Clones share it.
#[derive(Debug, Clone)]
pub struct Received(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    message: async_nats::Message,
    place: Place,
    attempt: u64,
    // None: it is handed out as it was stored.
    decrypted: Option<Decrypted>,
    fencing_number: Option<u64>,
    // Payload and schema. None: it is of the version that it was published in.
    upcast: Option<(Bytes, String)>,
}

/// A message to be settled exactly once: [`ack`](Delivery::ack), [`retry`](Delivery::retry),
/// [`reject`](Delivery::reject) each consume it.
///
/// ```compile_fail,E0382
/// # async fn example(delivery: nats_bridge::Delivery) -> nats_bridge::Result<()> {
/// delivery.ack().await?;
/// delivery.retry("too late").await?; // the compiler refuses: `delivery` was moved
/// # Ok(())
/// # }
/// ```
///
/// Dropped without having been settled, it counts as failed (class `dropped`) and follows the retry policy. While it is
/// held, the server is told so, up to the consumer's `max_run`.
#[derive(Debug)]
pub struct Delivery {
    received: Received,
    token: Token,
    // None once it is settled.
    shared: Option<Arc<Shared>>,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// It is done.
    Acked,
    /// It will be delivered again.
    Retried {
        /// Not before this time has passed.
        after: Duration,
    },
    /// It was given up and is kept there.
    DeadLettered {
        /// The dead-letter stream.
        stream: Arc<str>,
        /// Its sequence there.
        sequence: u64,
    },
}

impl Received {
    pub(super) fn new(message: async_nats::Message, place: Place, fencing_number: Option<u64>) -> Self {
        let attempt = place.delivered;
        Received(Arc::new(Inner { message, place, attempt, decrypted: None, fencing_number, upcast: None }))
    }

    /// The same message as this attempt.
    pub(super) fn at_attempt(self, attempt: u64) -> Self {
        if self.0.attempt == attempt {
            return self;
        }
        let inner = Arc::try_unwrap(self.0).unwrap_or_else(|shared| shared.copy());
        Received(Arc::new(Inner { attempt, ..inner }))
    }

    /// The same message with the payload that it had before it was encrypted.
    pub(super) fn decrypted(self, decrypted: Decrypted) -> Self {
        let inner = Arc::try_unwrap(self.0).unwrap_or_else(|shared| shared.copy());
        Received(Arc::new(Inner { decrypted: Some(decrypted), ..inner }))
    }

    /// The same message as it lies in the stream.
    fn into_stored(self) -> Self {
        if self.0.decrypted.is_none() && self.0.upcast.is_none() {
            return self;
        }
        Received(Arc::new(Inner { decrypted: None, upcast: None, ..self.0.copy() }))
    }

    /// The same message with its payload in a newer version.
    pub(super) fn upcast(self, payload: Bytes, schema: String) -> Self {
        let inner = Arc::try_unwrap(self.0).unwrap_or_else(|shared| shared.copy());
        Received(Arc::new(Inner { upcast: Some((payload, schema)), ..inner }))
    }

    /// The subject it was published to.
    pub fn subject(&self) -> &str {
        &self.0.message.subject
    }

    /// The payload; decrypted and in the version that the consumer wants, if it does that.
    pub fn payload(&self) -> &Bytes {
        if let Some((payload, _)) = &self.0.upcast {
            return payload;
        }
        self.0.decrypted.as_ref().map_or(&self.0.message.payload, |decrypted| &decrypted.payload)
    }

    /// The key that the payload was decrypted with; none when it was not encrypted, or the consumer does not decrypt.
    pub fn key_id(&self) -> Option<&str> {
        self.0.decrypted.as_ref()?.key_id.as_deref()
    }

    /// The schema and version of [`payload`](Received::payload), such as `order/3`: what the message says, unless it was
    /// [made newer](crate::ConsumeConfig::upcast). The header says what it was published with.
    pub fn schema(&self) -> Option<&str> {
        match &self.0.upcast {
            Some((_, schema)) => Some(schema),
            None => self.header(crate::schema::SCHEMA),
        }
    }

    /// The payload as it lies in the stream.
    pub(super) fn stored_payload(&self) -> &Bytes {
        &self.0.message.payload
    }

    /// All headers, `Nats-Msg-Id` included; none if it has none.
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.0.message.headers.as_ref()
    }

    /// The first value of a header; names are compared exactly.
    pub fn header(&self, name: &str) -> Option<&str> {
        let legal = name.parse::<async_nats::HeaderName>().ok()?;
        self.headers()?.get(legal).map(|value| value.as_str())
    }

    /// The id that it was published with.
    pub fn id(&self) -> Option<&str> {
        self.headers()?.get(async_nats::header::NATS_MESSAGE_ID).map(|value| value.as_str())
    }

    /// Which attempt at this message it is, from 1.
    ///
    /// Deliveries count, without those of which it is known that no handler got the message: what was fetched when a consumer was
    /// drained. Of a process that died it is not known, except that the last attempt of the policy is always a handler's. A
    /// nats-server that was killed may have forgotten deliveries; what this process knows is added. A message that the server
    /// delivers again while this process holds it is not handed out a second time.
    pub fn attempt(&self) -> u64 {
        self.0.attempt
    }

    /// Whether it may have been handled before: it was delivered before.
    pub fn redelivered(&self) -> bool {
        self.0.place.delivered > 1 || self.0.attempt > 1
    }

    /// Its sequence in the stream.
    pub fn sequence(&self) -> u64 {
        self.0.place.stream_sequence
    }

    /// When the stream stored it.
    pub fn stored_at(&self) -> SystemTime {
        let nanos = u64::try_from(self.0.place.stored_at).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
    }

    /// How many messages the consumer had still to deliver after this one.
    pub fn pending(&self) -> u64 {
        self.0.place.pending
    }

    /// Under which lease of the [single active consumer](super::ConsumeConfig::single_active) it came: higher with each instance
    /// that becomes the active one; none without that setting.
    ///
    /// An instance that was cut off or stopped for a while may still be handling a message when another has taken over. Store
    /// the number with the effect and refuse a lower one there: then the former one's effects cannot come behind the
    /// latter's. It begins anew if the bucket `{stream}_ACTIVE` is deleted.
    pub fn fencing_number(&self) -> Option<u64> {
        self.0.fencing_number
    }

    pub(super) fn place(&self) -> &Place {
        &self.0.place
    }

    /// The attempt and its delivery.
    pub(super) fn count(&self) -> (u64, u64) {
        (self.0.attempt, self.0.place.delivered)
    }

    pub(super) fn stored_at_nanos(&self) -> i128 {
        self.0.place.stored_at
    }

    pub(super) fn reply(&self) -> Subject {
        // Only messages with an ack subject become `Received`.
        self.0.message.reply.clone().unwrap_or_else(|| Subject::from_static("_"))
    }
}

impl Inner {
    fn copy(&self) -> Inner {
        let (message, decrypted) = (self.message.clone(), self.decrypted.clone());
        Inner { message, decrypted, upcast: self.upcast.clone(), ..*self }
    }
}

impl Delivery {
    pub(super) fn new(received: Received, token: Token, shared: Arc<Shared>) -> Self {
        Delivery { received, token, shared: Some(shared) }
    }

    /// The message, to keep beyond the settlement.
    pub fn received(&self) -> Received {
        self.received.clone()
    }

    /// Says that the message is done. Returns when the client has taken the ack, not when the server has it: when an ack is
    /// lost with the connection, the server delivers the message again and this process, as long as it lives, answers with
    /// another ack instead of handing it out.
    ///
    /// # Errors
    /// `Closed`: the connection was closed; the message will be delivered again.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, the delivery counts as dropped.
    pub async fn ack(mut self) -> Result<Settled> {
        let Some(shared) = &self.shared else { return Ok(Settled::Acked) };
        shared.send(&self.received, ACK).await?;
        shared.metrics.acked.increment(1);
        shared.settled(self.token, &self.received, Some(End::Acked));
        self.shared = None;
        Ok(Settled::Acked)
    }

    /// Says that the message is done and waits until the server has it: it will not be delivered again. Until the server answers
    /// it is told once a second, in case the connection died with it.
    ///
    /// # Errors
    /// `Timeout`: no answer within 5 s. `Unreachable`: for 5 s there was no consumer to take it, for it was deleted or has no leader.
    /// `Closed`: the connection was closed. The server may have it in all of these (`landed` is unknown). The delivery counts as dropped.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, the delivery counts as dropped.
    pub async fn ack_confirmed(mut self) -> Result<Settled> {
        let Some(shared) = &self.shared else { return Ok(Settled::Acked) };
        shared.send_confirmed(&self.received, ACK).await?;
        shared.metrics.acked.increment(1);
        shared.settled(self.token, &self.received, Some(End::Acked));
        self.shared = None;
        Ok(Settled::Acked)
    }

    /// Says that handling failed: it is delivered again after the pause that the policy computes, or becomes a dead letter
    /// with reason `handler_error` when no attempt is left. A failure that [gives up](Failure::giving_up) becomes a dead letter
    /// at once.
    ///
    /// # Errors
    /// As [`Delivery::dead_letter`] when no attempt is left. `Closed`: the connection was closed.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, the settlement goes on in the background or the delivery counts as dropped.
    pub async fn retry(self, failure: impl Into<Failure>) -> Result<Settled> {
        let failure = failure.into();
        match failure.give_up {
            Some(reason) => self.dead_letter(reason, failure).await,
            None => self.fail(Reason::HandlerError, failure, None).await,
        }
    }

    /// As [`Delivery::retry`], with a pause of the caller's choice.
    ///
    /// # Errors
    /// As [`Delivery::retry`].
    pub async fn retry_after(self, pause: Duration, failure: impl Into<Failure>) -> Result<Settled> {
        self.fail(Reason::HandlerError, failure.into(), Some(pause)).await
    }

    /// Gives the message up at once: it becomes a dead letter with reason `rejected`.
    ///
    /// # Errors
    /// As [`Delivery::dead_letter`].
    pub async fn reject(self, failure: impl Into<Failure>) -> Result<Settled> {
        self.dead_letter(Reason::Rejected, failure).await
    }

    /// Gives the message up at once: publishes it to the dead-letter stream, waits for the confirm, then ends the original.
    ///
    /// # Errors
    /// When the dead-letter stream does not take it, with that publish's kind. Then the message is neither dead letter
    /// nor done: it stays un-acked, the consumer pauses and says so, and the hand-over is tried again until it succeeds.
    /// The caller has nothing more to do.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, the delivery counts as dropped unless the hand-over had ended.
    pub async fn dead_letter(mut self, reason: Reason, failure: impl Into<Failure>) -> Result<Settled> {
        let Some(shared) = self.shared.clone() else { return Ok(Settled::Acked) };
        let (received, token) = (self.received.clone(), self.token);
        let now = SystemTime::now();
        let why = shared.lock().outcomes.failed(received.sequence(), received.count(), reason, failure.into(), now);
        // In a task of its own, so that a caller that goes away does not cut a hand-over in two.
        self.shared = None;
        finish(tokio::spawn(async move { shared.give_up(received, token, why).await })).await
    }

    /// It waits in this process for its turn: the time does not count for `max_run`.
    pub(super) fn wait(&self) {
        self.mark(None);
    }

    /// Its handler begins.
    pub(super) fn start(&self, now: Instant) {
        self.mark(Some(now));
    }

    fn mark(&self, started: Option<Instant>) {
        if let Some(shared) = &self.shared
            && let Some(tenant) = shared.lock().held.get_mut(self.token)
        {
            tenant.started = started;
        }
    }

    /// Notes a failure that is tried again in this process, and counts the next attempt.
    pub(super) fn failed_here(&mut self, failure: Failure, now: SystemTime) -> Next {
        let Some(shared) = &self.shared else { return Next::GiveUp };
        let next = shared.note_failure(&self.received, Reason::HandlerError, failure, now).1;
        if let Next::After(pause) = next {
            shared.log_retry(&self.received, pause);
            self.received = self.received.clone().at_attempt(self.received.attempt() + 1);
        }
        next
    }

    /// Waits until the consumer is drained.
    pub(super) async fn drained(&self) {
        match &self.shared {
            Some(shared) => shared.drain.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Waits; false when the consumer is drained meanwhile.
    pub(super) async fn pause(&self, pause: Duration) -> bool {
        let Some(shared) = &self.shared else { return true };
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = shared.drain.cancelled() => false,
        }
    }

    /// Gives it back unsettled, as if it had not been handed out, which costs it no attempt: it is what [`Consumer::next`](super::Consumer::next)
    /// gives next. Of a consumer that is drained, or whose connection is closed, it goes back to the server with the rest that was not
    /// handed out: another process may have it at once.
    pub fn give_back(mut self) {
        if let Some(shared) = self.shared.take() {
            shared.put_back(self.received.clone().into_stored(), self.token);
        }
    }

    async fn fail(mut self, reason: Reason, failure: Failure, pause: Option<Duration>) -> Result<Settled> {
        let Some(shared) = self.shared.clone() else { return Ok(Settled::Acked) };
        let (received, token) = (self.received.clone(), self.token);
        self.shared = None;
        finish(tokio::spawn(async move { shared.failed(received, token, reason, failure, pause).await })).await
    }
}

async fn finish(task: tokio::task::JoinHandle<Result<Settled>>) -> Result<Settled> {
    match task.await {
        Ok(settled) => settled,
        // The runtime is shutting down: the server delivers the message again.
        Err(e) => Err(crate::Error::new(crate::ErrorKind::Closed).because(e)),
    }
}

impl Deref for Delivery {
    type Target = Received;

    fn deref(&self) -> &Received {
        &self.received
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.metrics.dropped.increment(1);
            // Without a supervisor nobody tells the server any more, and it delivers again after `ack_wait`.
            let _ = shared.dropped.send((self.received.clone(), self.token));
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.config.stream, self.config.name)
    }
}
