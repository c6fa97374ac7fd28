//! What a consumer, its deliveries and its supervisor share, and how a delivery is settled.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use async_nats::{Client, Message, Subject, Subscriber, jetstream};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::active::Active;
use super::attempts::Verdict;
use super::begun::Kept;
use super::confirm;
use super::delivery::{Received, Settled};
use super::done::{Done, End};
use super::held::{Count, Held, Token};
use super::metrics::ConsumeMetrics;
use super::outcomes::{Outcomes, Remembered};
use super::place;
use super::{ConsumeConfig, ConsumerState};
use crate::dead_letter::{self, Facts, Failure, Reason};
use crate::encryption::Decrypter;
use crate::error::{Error, ErrorKind, Result};
use crate::publish::{Published, Publisher};
use crate::pulse::Pulse;
use crate::retry::{Next, RetryPolicy};
use crate::schema::Checker;

pub(super) struct Shared {
    pub client: Client,
    pub jetstream: jetstream::Context,
    pub pulse: Arc<Pulse>,
    pub config: ConsumeConfig,
    pub metrics: ConsumeMetrics,
    /// Publishes dead letters; apart from the application's own publishing, with shorter bounds.
    pub letters: Publisher,
    pub letter_subject: String,
    /// How often messages were begun.
    pub kept: Kept,
    pub host: String,
    pub state: watch::Sender<ConsumerState>,
    /// Something came into `Inner::ready`, or the consumer ended.
    pub arrived: Notify,
    /// Enough was settled to pull again.
    pub credit: Notify,
    /// Deliveries that were dropped without having been settled. Bounded by what may be held.
    pub dropped: mpsc::UnboundedSender<(Received, Token)>,
    /// Asks the supervisor to drain.
    pub drain: CancellationToken,
    /// The connection is about to be closed, which drains it as well.
    pub closing: AtomicBool,
    /// Whether the server has everything back that no handler has seen, once it is drained.
    pub given_back: watch::Sender<Back>,
    /// The supervisor ended.
    pub end: CancellationToken,
    pub paused: AtomicBool,
    /// The first message that is ready waits for its key, and the others behind it.
    pub fetching: AtomicBool,
    /// Where messages arrive; none while the supervisor has it in hand. Whoever waits for messages reads it: a hop through
    /// the supervisor for each of them would cost a wake-up of another thread.
    pub intake: Mutex<Option<Subscriber>>,
    /// Statuses that were read from the intake, for the supervisor. Bounded by the pulls that were made.
    pub statuses: mpsc::UnboundedSender<(u16, Message)>,
    pub decrypter: Option<Decrypter>,
    pub checker: Option<Checker>,
    /// The lease of a single active consumer.
    pub active: Option<Active>,
    inner: Mutex<Inner>,
}

pub(super) struct Inner {
    pub held: Held,
    pub outcomes: Outcomes,
    /// Delivered to this process and not handed out yet; they are held too.
    pub ready: VecDeque<(Received, Token)>,
    pub ended: Option<Result<()>>,
    /// When the server was heard last, and when a message came last.
    pub heard: Instant,
    pub delivered: Instant,
    /// Messages that the policy has given up before they came, for the supervisor.
    pub unreported: Vec<(Received, Token)>,
    /// Of some that are ready it has to be asked which attempts they are.
    pub asks: bool,
    /// What ended here or is in a handler's hands and came again: the server is told so.
    pub told_again: Vec<(Subject, Bytes)>,
    done: Done,
    /// The subscription ended.
    pub closed: bool,
    /// The supervisor waits for everything to be settled.
    pub draining: bool,
    // Messages that wait for the dead-letter stream.
    stuck: usize,
}

/// What no handler has seen of a consumer that is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Back {
    /// Some may be here.
    NotYet,
    /// The server has read that it is given back.
    Told,
    /// The server did not answer, or is away: it finds out by itself after `ack_wait`.
    Untold,
}

/// Messages taken from the client at once.
const BATCH: usize = 256;

/// What ends the original of a dead letter.
pub(super) const TERMINATE: Bytes = Bytes::from_static(b"+TERM dead letter");
/// What keeps a delivery alive.
pub(super) const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");
/// What ends a message that was handled.
pub(super) const ACK: Bytes = Bytes::from_static(b"+ACK");

/// How [`Shared::hand_over`] went wrong, with what is needed to try again.
type Stuck = Box<(Error, Received, Remembered)>;

impl Shared {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        client: Client,
        jetstream: jetstream::Context,
        pulse: Arc<Pulse>,
        config: ConsumeConfig,
        letters: Publisher,
        kept: Kept,
        checker: Option<Checker>,
        active: Option<Active>,
        held: Held,
        dropped: mpsc::UnboundedSender<(Received, Token)>,
        statuses: mpsc::UnboundedSender<(u16, Message)>,
    ) -> Self {
        Shared {
            client,
            jetstream,
            pulse,
            metrics: ConsumeMetrics::new(&config.stream, &config.name),
            letters,
            kept,
            letter_subject: dead_letter::subject(&config.stream, &config.name),
            host: host(),
            state: watch::Sender::new(match active {
                Some(_) => ConsumerState::Waiting,
                None => ConsumerState::Running,
            }),
            arrived: Notify::new(),
            credit: Notify::new(),
            dropped,
            drain: CancellationToken::new(),
            closing: AtomicBool::new(false),
            given_back: watch::Sender::new(Back::NotYet),
            end: CancellationToken::new(),
            paused: AtomicBool::new(false),
            fetching: AtomicBool::new(false),
            intake: Mutex::new(None),
            statuses,
            checker,
            active,
            decrypter: config.decrypt.clone().map(Decrypter::new),
            inner: Mutex::new(Inner {
                held,
                outcomes: Outcomes::default(),
                ready: VecDeque::new(),
                ended: None,
                heard: Instant::now(),
                delivered: Instant::now(),
                unreported: Vec::new(),
                asks: false,
                told_again: Vec::new(),
                done: Done::default(),
                closed: false,
                draining: false,
                stuck: 0,
            }),
            config,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Reads what has arrived, at most [`BATCH`] messages: `Ready` if there was anything, or the subscription ended.
    pub fn poll_intake(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut intake = self.intake.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match intake.as_mut() {
            // Back soon, with `arrived` notified.
            None => Poll::Pending,
            Some(subscriber) => self.poll_subscriber(subscriber, cx),
        }
    }

    /// As [`Shared::poll_intake`], for a subscription in hand.
    pub fn poll_subscriber(&self, subscriber: &mut Subscriber, cx: &mut Context<'_>) -> Poll<()> {
        let first = subscriber.poll_next_unpin(cx);
        if first.is_pending() {
            return Poll::Pending;
        }
        let mut first = Some(first);
        let now = Instant::now();
        let fencing_number = self.active.as_ref().and_then(|active| active.fencing_number());
        let attempts = u64::from(self.config.retry.attempts);
        let (mut fresh, mut again, mut for_supervisor) = (0, 0, false);
        let mut inner = self.lock();
        inner.heard = now;
        for _ in 0..BATCH {
            // Asked for only where there is a turn to handle what comes: what is taken and let go is lost until `ack_wait` is over.
            let next = first.take().unwrap_or_else(|| subscriber.poll_next_unpin(cx));
            let message = match next {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    inner.closed = true;
                    for_supervisor = true;
                    break;
                }
                Poll::Ready(Some(message)) => message,
            };
            match (message.status, message.reply.as_deref().and_then(place::read)) {
                (Some(code), _) => {
                    let _ = self.statuses.send((code.as_u16(), message));
                }
                (None, None) => {
                    tracing::warn!(subject = &*message.subject, "a message without an ack subject came to a consumer");
                }
                (None, Some(mut place)) => {
                    fresh += 1;
                    let bytes = message.length;
                    let reply = message.reply.clone().unwrap_or_else(|| message.subject.clone());
                    if let Some(known) = inner.known(&place, &reply) {
                        again += 1;
                        inner.held.credit.received(bytes);
                        inner.held.credit.settled(bytes);
                        inner.told_again.push((reply, known));
                        for_supervisor = true;
                        continue;
                    }
                    place.delivered = inner.true_count(&place);
                    again += u64::from(place.delivered > 1);
                    let token = inner.held.insert(reply, &place, bytes, now);
                    let received = Received::new(message, place, fencing_number);
                    if place.delivered <= 1 {
                        inner.ready.push_back((received, token));
                        continue;
                    }
                    let verdict = inner.judged_here(&place, attempts);
                    let (attempt, count) = match verdict {
                        None => {
                            (inner.asks, for_supervisor) = (true, true);
                            (place.delivered, Count::Asks)
                        }
                        Some(Verdict::Last(attempt)) => (attempt, Count::Last),
                        Some(Verdict::HandOut(attempt) | Verdict::GiveUp(attempt)) => (attempt, Count::Known),
                    };
                    if let Some(tenant) = inner.held.get_mut(token) {
                        (tenant.attempt, tenant.count) = (attempt, count);
                    }
                    let received = received.at_attempt(attempt);
                    match verdict {
                        Some(Verdict::GiveUp(_)) => {
                            inner.unreported.push((received, token));
                            for_supervisor = true;
                        }
                        _ => inner.ready.push_back((received, token)),
                    }
                }
            }
        }
        if fresh > 0 {
            inner.delivered = now;
        }
        let wants_pull = inner.held.credit.wants_pull();
        drop(inner);
        self.metrics.delivered.increment(fresh);
        self.metrics.redelivered.increment(again);
        if for_supervisor || wants_pull {
            self.credit.notify_one();
        }
        Poll::Ready(())
    }

    /// Sends one settlement; the client's queue takes it also while disconnected, up to its capacity.
    pub async fn send(&self, received: &Received, what: Bytes) -> Result<()> {
        self.client
            .publish(received.reply(), what)
            .await
            .map_err(|e| self.describe(Error::new(ErrorKind::Closed).because(e), received))
    }

    /// Sends one settlement and waits until the server has it.
    pub async fn send_confirmed(&self, received: &Received, what: Bytes) -> Result<()> {
        let sent = confirm::until_it_has_it(&self.client, received.reply(), what).await;
        sent.map_err(|error| self.describe(error, received).landed_unknown())
    }

    /// The delivery is settled: gives its credit back. One that ended is remembered, in case the server does not hear of it,
    /// and its failures are forgotten.
    pub fn settled(&self, token: Token, received: &Received, end: Option<End>) {
        let mut inner = self.lock();
        let wanted = inner.held.credit.wants_pull();
        inner.held.remove(token);
        if let Some(end) = end {
            inner.outcomes.forget(received.sequence());
            inner.done.ended(received.sequence(), received.stored_at_nanos(), end);
        }
        let wants = !wanted && inner.held.credit.wants_pull();
        let draining = inner.draining;
        drop(inner);
        if wants || draining {
            self.credit.notify_one();
        }
    }

    /// Puts a delivery back among those that nobody has, in the stream's order: it is the next one's, or goes back to the server when the
    /// consumer is drained.
    pub fn put_back(&self, received: Received, token: Token) {
        let may_work = self.may_work(Instant::now());
        let mut inner = self.lock();
        // After the end, and without the lease, the server delivers it again by itself.
        if inner.ended.is_some() || !(may_work || self.drain.is_cancelled()) {
            inner.held.remove(token);
            return;
        }
        if let Some(tenant) = inner.held.get_mut(token) {
            tenant.started = None;
        }
        let behind = |(other, _): &(Received, Token)| other.sequence() > received.sequence();
        let at = inner.ready.iter().position(behind).unwrap_or(inner.ready.len());
        inner.ready.insert(at, (received, token));
        self.given_back.send_replace(Back::NotYet);
        drop(inner);
        self.credit.notify_one();
        self.arrived.notify_one();
    }

    /// After a failure: tries again later, or gives up, as the policy says.
    pub async fn failed(
        self: &Arc<Self>,
        received: Received,
        token: Token,
        reason: Reason,
        failure: Failure,
        pause: Option<Duration>,
    ) -> Result<Settled> {
        let (remembered, next) = self.note_failure(&received, reason, failure, SystemTime::now());
        let Next::After(computed) = next else { return self.give_up(received, token, remembered).await };
        let pause = pause.unwrap_or(computed);
        self.log_retry(&received, pause);
        // A delay of zero means "not given" to the server, which is the same: at once.
        let nak = format!("-NAK {{\"delay\": {}}}", pause.as_nanos());
        self.send(&received, nak.into()).await?;
        self.settled(token, &received, None);
        Ok(Settled::Retried { after: pause })
    }

    /// Remembers a failure and asks the policy what to do.
    pub fn note_failure(
        &self,
        received: &Received,
        reason: Reason,
        failure: Failure,
        now: SystemTime,
    ) -> (Remembered, Next) {
        let attempt = received.attempt();
        let remembered = self.lock().outcomes.failed(received.sequence(), received.count(), reason, failure, now);
        let elapsed = now.duration_since(remembered.first).unwrap_or_default();
        let next = self.config.retry.next(u32::try_from(attempt).unwrap_or(u32::MAX), elapsed, rand::random());
        (remembered, next)
    }

    /// No retry is silent.
    pub fn log_retry(&self, received: &Received, pause: Duration) {
        self.metrics.retried.increment(1);
        let inner = self.lock();
        let known = inner.outcomes.get(received.sequence());
        tracing::info!(
            stream = self.config.stream,
            consumer = self.config.name,
            sequence = received.sequence(),
            attempt = received.attempt(),
            pause_ms = pause.as_millis() as u64,
            reason = known.map(|known| known.reason.name()),
            class = known.map(|known| known.failure.class.as_str()),
            "a delivery failed and will be tried again"
        );
    }

    /// Hands the message over to the dead-letter stream. If that cannot be, the consumer pauses and a task goes on trying.
    pub async fn give_up(self: &Arc<Self>, received: Received, token: Token, why: Remembered) -> Result<Settled> {
        if let Some(tenant) = self.lock().held.get_mut(token) {
            tenant.leaving = true;
        }
        let stuck = match self.hand_over(received, why).await {
            Ok((received, published)) => return self.lettered(received, token, published).await,
            Err(stuck) => stuck,
        };
        let (error, received, why) = *stuck;
        self.stuck(&error, "a dead letter cannot be stored");
        let shared = self.clone();
        tokio::spawn(async move { shared.hand_over_until_it_is_stored(received, token, why).await });
        Err(error)
    }

    async fn hand_over(&self, received: Received, why: Remembered) -> Result<(Received, Published), Stuck> {
        let facts = Facts {
            stream: &self.config.stream,
            consumer: &self.config.name,
            subject: received.subject(),
            sequence: received.sequence(),
            stored_at: received.stored_at_nanos(),
            attempts: why.attempt,
            reason: why.reason,
            failure: &why.failure,
            first_failed: why.first,
            last_failed: why.last,
            host: &self.host,
        };
        let letter =
            dead_letter::letter(&self.letter_subject, &facts, received.headers(), received.stored_payload().clone());
        match self.letters.publish(letter).await {
            Ok(published) => {
                tracing::warn!(
                    stream = self.config.stream,
                    consumer = self.config.name,
                    sequence = received.sequence(),
                    attempts = why.attempt,
                    reason = why.reason.name(),
                    class = why.failure.class,
                    dead_letter_stream = &*published.stream,
                    dead_letter_sequence = published.sequence,
                    "a message was given up and is a dead letter now"
                );
                Ok((received, published))
            }
            Err(error) => {
                self.metrics.dead_letter_failed.increment(1);
                Err(Box::new((self.describe(error, &received), received, why)))
            }
        }
    }

    // It is stored as a dead letter: ends the original.
    async fn lettered(self: &Arc<Self>, received: Received, token: Token, at: Published) -> Result<Settled> {
        self.metrics.dead_lettered.increment(1);
        let settled = Settled::DeadLettered { stream: at.stream.clone(), sequence: at.sequence };
        if self.terminate(&received).await.is_err() {
            // The connection is away. Until it is back the message stays held; should the server deliver it again, the
            // dead letter's id makes the second hand-over a duplicate.
            let shared = self.clone();
            tokio::spawn(async move {
                while !shared.end.is_cancelled() && shared.terminate(&received).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                shared.settled(token, &received, Some(End::DeadLettered));
            });
            return Ok(settled);
        }
        self.settled(token, &received, Some(End::DeadLettered));
        Ok(settled)
    }

    async fn terminate(&self, received: &Received) -> Result<()> {
        self.send_confirmed(received, TERMINATE).await
    }

    async fn hand_over_until_it_is_stored(self: Arc<Self>, mut received: Received, token: Token, mut why: Remembered) {
        // Short: whoever waits for another leader of the dead-letter stream is to hear of it soon.
        let pauses = RetryPolicy { max_pause: Duration::from_secs(2), ..RetryPolicy::default() };
        for attempt in 1.. {
            let pause = pauses.full_pause(attempt).mul_f64(0.5 + 0.5 * rand::random::<f64>());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.end.cancelled() => return,
            }
            match self.hand_over(received, why).await {
                Ok((back, published)) => {
                    // It cannot fail: what is away is tried again there.
                    let _ = self.lettered(back, token, published).await;
                    self.unstuck();
                    return;
                }
                Err(stuck) => {
                    let (error, back, reason) = *stuck;
                    tracing::error!(%error, attempt, "a dead letter can still not be stored; the consumer stays paused");
                    (received, why) = (back, reason);
                }
            }
        }
    }

    /// Pauses the consumer until [`Shared::unstuck`] was said as often.
    pub fn stuck(&self, error: &Error, what: &'static str) {
        tracing::error!(%error, "the consumer pauses: {what}");
        self.lock().stuck += 1;
        self.paused.store(true, Ordering::Release);
        self.metrics.paused.set(1.0);
        self.state.send_if_modified(|state| {
            let running = *state == ConsumerState::Running;
            if running {
                *state = ConsumerState::Paused { why: error.to_string() };
            }
            running
        });
    }

    pub fn unstuck(&self) {
        {
            let mut inner = self.lock();
            inner.stuck -= 1;
            if inner.stuck > 0 {
                return;
            }
        }
        self.paused.store(false, Ordering::Release);
        self.metrics.paused.set(0.0);
        self.state.send_if_modified(|state| {
            let paused = matches!(state, ConsumerState::Paused { .. });
            if paused {
                *state = ConsumerState::Running;
            }
            paused
        });
        tracing::info!(stream = self.config.stream, consumer = self.config.name, "the consumer goes on");
        self.credit.notify_one();
        self.arrived.notify_one();
    }

    fn describe(&self, error: Error, received: &Received) -> Error {
        error
            .with("stream", &self.config.stream)
            .with("consumer", &self.config.name)
            .with("sequence", received.sequence())
    }
}

impl Inner {
    // What to tell the server of a message that came again and needs no handler: it ended here, or is in a handler's hands.
    fn known(&mut self, place: &place::Place, reply: &Subject) -> Option<Bytes> {
        if !self.done.may_be_known(place) {
            return None;
        }
        match self.done.end_of(place) {
            Some(End::Acked) => Some(ACK),
            Some(End::DeadLettered) => Some(TERMINATE),
            None => {
                let held = self.held.again(place.stream_sequence, place.stored_at, reply).is_some();
                held.then_some(IN_PROGRESS)
            }
        }
    }

    // A nats-server that was killed may count from 1 again; what this process knows is added.
    fn true_count(&mut self, place: &place::Place) -> u64 {
        let before = self.done.arrived(place);
        let known = self.outcomes.get(place.stream_sequence).map_or(0, |known| known.delivery);
        place.delivered.max(known + 1).max(1 + u64::from(before))
    }
}

fn host() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".into())
}

/// Milliseconds of an instant's age, for logs.
pub(super) fn age_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
