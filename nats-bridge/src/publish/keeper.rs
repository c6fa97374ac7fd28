//! The task behind a publisher: matches confirms, sends again, and gives up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::{Subject, jetstream};
use foldhash::{HashSet, HashSetExt};
use metrics::{Counter, Gauge, Histogram};
use tokio::sync::{broadcast, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::Published;
use super::confirm::{Rejection, Stored};
use super::inbox::{Confirm, Confirms};
use super::publisher::Shared;
use super::takers::{Taken, Takers};
use super::window::Outstanding;
use crate::connection::{Connection, ConnectionEvent};
use crate::error::{Error, ErrorKind, Result};
use crate::message::header_map;
use crate::provision::meet;
use crate::retry::Next;

/// How often overdue messages are looked for.
const TICK: Duration = Duration::from_millis(50);
/// Confirms taken at once.
const BATCH: usize = 256;

pub(super) struct Keeper {
    shared: Arc<Shared>,
    jetstream: jetstream::Context,
    connection: watch::Receiver<Connection>,
    events: broadcast::Receiver<ConnectionEvent>,
    connects: u64,
    streams: HashSet<Arc<str>>,
    takers: Takers,
}

/// Handles of the publisher's metrics, made once.
pub(super) struct PublishMetrics {
    stored: Counter,
    duplicate: Counter,
    rejected: Counter,
    unknown: Counter,
    resend_no_answer: Counter,
    resend_reconnect: Counter,
    resend_rejected: Counter,
    in_flight: Gauge,
    confirm_seconds: Histogram,
}

impl PublishMetrics {
    pub fn new() -> Self {
        let published = |result| metrics::counter!("natsbridge_published_total", "result" => result);
        let resend = |reason| metrics::counter!("natsbridge_publish_resends_total", "reason" => reason);
        PublishMetrics {
            stored: published("stored"),
            duplicate: published("duplicate"),
            rejected: published("rejected"),
            unknown: published("unknown"),
            resend_no_answer: resend("no_answer"),
            resend_reconnect: resend("reconnect"),
            resend_rejected: resend("rejected"),
            in_flight: metrics::gauge!("natsbridge_publish_in_flight"),
            confirm_seconds: metrics::histogram!("natsbridge_publish_confirm_seconds"),
        }
    }
}

impl Keeper {
    pub fn new(
        shared: Arc<Shared>,
        jetstream: jetstream::Context,
        mut connection: watch::Receiver<Connection>,
        events: broadcast::Receiver<ConnectionEvent>,
    ) -> Self {
        let connects = connection.borrow_and_update().connects;
        Keeper { shared, jetstream, connection, events, connects, streams: HashSet::new(), takers: Takers::default() }
    }

    /// Runs until the publisher was dropped and nothing is outstanding, or the client was closed.
    pub async fn run(mut self, mut confirms: Confirms, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                n = confirms.next_many(&mut batch, BATCH) => match n {
                    0 => return self.close(),
                    _ => self.confirmed(&mut batch),
                },
                (subject, taken) = self.takers.answer() => self.told(&subject, &taken),
                Ok(event) = self.events.recv() => self.heard(event),
                Ok(()) = self.connection.changed() => {
                    if self.connection.borrow().closed {
                        return self.close();
                    }
                    self.reconnected().await;
                }
                _ = tick.tick() => {
                    self.overdue().await;
                    if stop.is_cancelled() && self.shared.lock().len() == 0 {
                        return;
                    }
                }
            }
        }
    }

    fn confirmed(&mut self, batch: &mut Vec<Confirm>) {
        let now = Instant::now();
        let answered = |confirm: &Confirm| !matches!(&confirm.result, Err(rejection) if rejection.is_temporary());
        if batch.iter().any(answered) {
            self.shared.on_breaker(|breaker| breaker.heard());
        }
        let (mut stored, mut duplicates, mut slots, mut bytes) = (0, 0, 0, 0);
        let mut window = self.shared.lock();
        for Confirm { token, result } in batch.drain(..) {
            match result {
                Ok(place) => {
                    // Absent: the answer to an earlier attempt of a message that is confirmed already.
                    let Some(out) = window.remove(token) else { continue };
                    self.shared.metrics.confirm_seconds.record(now.duration_since(out.started).as_secs_f64());
                    stored += u64::from(!place.duplicate);
                    duplicates += u64::from(place.duplicate);
                    slots += 1;
                    bytes += out.size as usize;
                    if !self.streams.contains(&place.stream) {
                        self.streams.insert(place.stream.clone());
                        look_up_stream(&self.shared, &self.jetstream, place.stream.clone(), out.subject.clone());
                    }
                    let Stored { stream, sequence, duplicate } = place;
                    let _ = out.done.send(Ok(Published { stream, sequence, duplicate, id: out.id }));
                }
                Err(rejection) => {
                    let Some(out) = window.get_mut(token) else { continue };
                    if rejection.no_responders() {
                        match self.shared.elsewhere.load(Ordering::Relaxed) {
                            true => out.taken = Some(Taken::Unknown),
                            false => self.takers.ask(&self.jetstream, &out.subject),
                        }
                    }
                    if let Some(pause) = self.shared.pause_after(out, &rejection, now) {
                        out.resend_at = Some(now + pause);
                        out.rejection = Some(rejection);
                    } else if let Some(out) = window.remove(token) {
                        slots += 1;
                        bytes += out.size as usize;
                        self.shared.metrics.rejected.increment(1);
                        let error = rejected(&out, &rejection);
                        let _ = out.done.send(Err(error));
                    }
                }
            }
        }
        drop(window);
        self.shared.metrics.stored.increment(stored);
        self.shared.metrics.duplicate.increment(duplicates);
        if slots > 0 {
            self.shared.release(slots, bytes);
        }
    }

    // Who takes a subject that nobody answers on.
    fn told(&self, subject: &Subject, taken: &Taken) {
        let now = Instant::now();
        let ended: Vec<(Outstanding, Rejection)> = {
            let mut window = self.shared.lock();
            let tokens = window.tokens(|out| out.subject == *subject);
            let mut ended = Vec::new();
            for token in tokens {
                let Some(out) = window.get_mut(token) else { continue };
                out.taken = Some(taken.clone());
                let Some(rejection) = out.rejection.clone().filter(Rejection::no_responders) else { continue };
                if self.shared.pause_after(out, &rejection, now).is_none()
                    && let Some(out) = window.remove(token)
                {
                    ended.push((out, rejection));
                }
            }
            ended
        };
        for (out, rejection) in ended {
            self.shared.release(1, out.size as usize);
            self.shared.metrics.rejected.increment(1);
            let error = rejected(&out, &rejection);
            let _ = out.done.send(Err(error));
        }
    }

    // A reconnect: nothing that was written before it will be answered, so all is sent again at once.
    async fn reconnected(&mut self) {
        let now = *self.connection.borrow_and_update();
        if now.connects <= self.connects {
            return;
        }
        self.connects = now.connects;
        let tokens = {
            let mut window = self.shared.lock();
            // What waits after a rejection was answered and goes on waiting.
            let tokens = window.tokens(|out| out.resend_at.is_none() || out.rejection.is_none());
            for token in &tokens {
                if let Some(out) = window.get_mut(*token) {
                    out.unknown = true;
                }
            }
            tokens
        };
        if !tokens.is_empty() {
            tracing::info!(messages = tokens.len(), "sending unconfirmed messages again after a reconnect");
        }
        self.resend(tokens, &self.shared.metrics.resend_reconnect).await;
    }

    async fn overdue(&mut self) {
        let now = Instant::now();
        let config = &self.shared.config;
        self.shared.on_breaker(|breaker| breaker.tick(self.shared.lock().len() > 0, now));
        let (expired, silent, unanswered, rejected) = {
            let mut window = self.shared.lock();
            self.shared.metrics.in_flight.set(window.len() as f64);
            if window.len() == 0 {
                return;
            }
            let expired = window.tokens(|out| now.duration_since(out.started) >= config.deadline);
            let silent = window.tokens(|out| {
                out.resend_at.is_none()
                    && now.duration_since(out.sent) >= config.ack_wait
                    && !expired_at(out, now, config)
            });
            for token in &silent {
                if let Some(out) = window.get_mut(*token) {
                    out.unknown = true;
                    out.rejection = None;
                    out.resend_at = Some(now + self.shared.jitter(out.attempt));
                }
            }
            let due = |out: &Outstanding| out.resend_at.is_some_and(|at| at <= now) && !expired_at(out, now, config);
            let unanswered = window.tokens(|out| due(out) && out.rejection.is_none());
            let rejected = window.tokens(|out| due(out) && out.rejection.is_some());
            let expired: Vec<Outstanding> = expired.into_iter().filter_map(|token| window.remove(token)).collect();
            (expired, !silent.is_empty(), unanswered, rejected)
        };
        for out in expired {
            self.give_up(out);
        }
        if self.connection.borrow().connected {
            if silent {
                let pulse = self.shared.pulse.clone();
                tokio::spawn(async move { pulse.feel().await });
            }
            self.resend(unanswered, &self.shared.metrics.resend_no_answer).await;
            self.resend(rejected, &self.shared.metrics.resend_rejected).await;
        }
    }

    async fn resend(&self, tokens: Vec<u64>, counter: &Counter) {
        for token in tokens {
            let now = Instant::now();
            let (subject, payload, headers) = {
                let mut window = self.shared.lock();
                let Some(out) = window.get_mut(token) else { continue };
                let may = self.shared.may_resend(out, now);
                if !may {
                    // A message that must not be sent again is not silent either: its outcome is known to be unknown.
                    let hopeless = out.id.is_none() || out.attempt >= self.shared.config.attempts;
                    if hopeless && let Some(out) = window.remove(token) {
                        drop(window);
                        self.give_up(out);
                    }
                    continue;
                }
                out.attempt += 1;
                out.sent = now;
                out.resend_at = None;
                out.rejection = None;
                (out.subject.clone(), out.payload.clone(), header_map(&out.headers, out.id.as_deref()))
            };
            counter.increment(1);
            let handed_over = self.shared.inbox.publish(token, subject, headers, payload);
            // A full command channel means that nothing is being written: the next tick looks again.
            match timeout(Duration::from_secs(1), handed_over).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "a message could not be sent again"),
                Err(_) => return,
            }
        }
    }

    fn heard(&self, event: ConnectionEvent) {
        let ConnectionEvent::Denied(text) = event else { return };
        // The server's text: Permissions Violation for Publish to "orders.new".
        let Some(subject) = text.split('"').nth(1).filter(|_| text.to_ascii_lowercase().contains("publish")) else {
            return;
        };
        let denied: Vec<Outstanding> = {
            let mut window = self.shared.lock();
            let tokens = window.tokens(|out| &*out.subject == subject);
            tokens.into_iter().filter_map(|token| window.remove(token)).collect()
        };
        for out in denied {
            self.shared.release(1, out.size as usize);
            self.shared.metrics.rejected.increment(1);
            let error = describe(&out, Error::new(ErrorKind::Denied).with("why", &text));
            let _ = out.done.send(Err(error));
        }
    }

    fn give_up(&self, out: Outstanding) {
        self.shared.release(1, out.size as usize);
        let error = match &out.rejection {
            Some(rejection) => {
                self.shared.metrics.rejected.increment(1);
                rejected(&out, rejection)
            }
            _ => {
                self.shared.metrics.unknown.increment(1);
                let after = format!("{:?}", out.started.elapsed());
                let error = Error::new(ErrorKind::Timeout).with("after", after).with("attempts", out.attempt);
                describe(&out, error).landed_unknown()
            }
        };
        let _ = out.done.send(Err(error));
    }

    fn close(&self) {
        let all: Vec<Outstanding> = {
            let mut window = self.shared.lock();
            let tokens = window.tokens(|_| true);
            tokens.into_iter().filter_map(|token| window.remove(token)).collect()
        };
        self.shared.slots.close();
        self.shared.bytes.close();
        for out in all {
            self.shared.metrics.unknown.increment(1);
            let error = describe(&out, Error::new(ErrorKind::Closed)).landed_unknown();
            let _ = out.done.send(Err(error));
        }
    }
}

impl Shared {
    // The pause before a rejected message is sent again; none: the rejection is final.
    fn pause_after(&self, out: &Outstanding, rejection: &Rejection, now: Instant) -> Option<Duration> {
        let elapsed = now.duration_since(out.started);
        if !rejection.is_temporary() {
            return None;
        }
        let in_vain = match (rejection.no_responders(), &out.taken) {
            (false, _) => false,
            // It is being asked.
            (true, None) => false,
            (true, Some(Taken::ByNobody)) => true,
            (true, Some(_)) => elapsed >= self.config.no_stream_wait,
        };
        if in_vain {
            return None;
        }
        match self.config.pauses().next(out.attempt, elapsed, rand::random()) {
            Next::After(pause) => Some(pause),
            Next::GiveUp => None,
        }
    }

    // What is sent again after silence is spread in time; the order within the window stays.
    fn jitter(&self, attempt: u32) -> Duration {
        self.config.pauses().full_pause(attempt).mul_f64(rand::random())
    }

    fn may_resend(&self, out: &Outstanding, now: Instant) -> bool {
        if out.attempt >= self.config.attempts {
            return false;
        }
        // After a rejection nothing landed: then neither an id nor the duplicate window matters.
        let clean = out.rejection.is_some() && !out.unknown;
        let bound = Duration::from_millis(self.resend_bound_ms.load(Ordering::Relaxed));
        clean || (out.id.is_some() && now.duration_since(out.started) < bound)
    }
}

fn expired_at(out: &Outstanding, now: Instant, config: &super::PublishConfig) -> bool {
    now.duration_since(out.started) >= config.deadline
}

fn rejected(out: &Outstanding, rejection: &Rejection) -> Error {
    let error = |kind| describe(out, Error::new(kind)).with("code", rejection.code);
    let error = match (rejection.no_responders(), &out.taken) {
        (false, _) => error(ErrorKind::Rejected).with("err_code", rejection.err_code).with("why", &rejection.text),
        (true, Some(Taken::ByNobody)) => error(ErrorKind::NotFound).with(
            "why",
            "no stream takes the subject: make one with `ensure_stream` or a manifest, or add the subject to one that exists",
        ),
        (true, Some(Taken::By(stream))) => error(ErrorKind::Unreachable)
            .with("stream", stream)
            .with("why", "the stream takes the subject and has no leader at present"),
        (true, _) => error(ErrorKind::Unreachable)
            .with("why", "nobody answers on the subject: no stream takes it, or its stream has no leader at present"),
    };
    if out.unknown { error.landed_unknown() } else { error }
}

fn describe(out: &Outstanding, error: Error) -> Error {
    let error = error.with("subject", &out.subject);
    match &out.id {
        Some(id) => error.with("msg_id", id),
        None => error,
    }
}

// Compares the deadline with the stream's duplicate window, which bounds how late a resend is safe. Notes a stream that is found by
// another subject than its own, or not found here at all: then STREAM.NAMES does not know where messages go.
fn look_up_stream(shared: &Arc<Shared>, jetstream: &jetstream::Context, stream: Arc<str>, subject: Subject) {
    let (shared, jetstream) = (Arc::downgrade(shared), jetstream.clone());
    tokio::spawn(async move {
        let found = jetstream.get_stream(&*stream).await;
        let Some(shared) = shared.upgrade() else { return };
        let config = match &found {
            Ok(found) => &found.cached_info().config,
            Err(error) => {
                tracing::debug!(%stream, %error, "the stream's duplicate window is not known");
                shared.elsewhere.store(true, Ordering::Relaxed);
                return;
            }
        };
        if !config.subjects.iter().any(|of| meet(of, &subject)) {
            shared.elsewhere.store(true, Ordering::Relaxed);
        }
        let window = config.duplicate_window;
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        if window < shared.config.deadline {
            tracing::warn!(
                %stream, window_ms, deadline_ms = shared.config.deadline.as_millis() as u64,
                "the stream's duplicate window is shorter than the publish deadline: resends stop at the window"
            );
        }
        shared.resend_bound_ms.fetch_min(window_ms, Ordering::Relaxed);
    });
}

impl super::PublishConfig {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |field: &'static str, why: &'static str| Err(Error::setting(field, why));
        match self {
            // The client drops confirms beyond its subscription buffer of 65 536.
            c if c.max_in_flight == 0 || c.max_in_flight > 32_768 => wrong("publish.max_in_flight", "it is 1 to 32768"),
            c if c.max_in_flight_bytes == 0 || c.max_in_flight_bytes > u32::MAX as usize / 2 => {
                wrong("publish.max_in_flight_bytes", "it is 1 to 2 GiB")
            }
            c if c.ack_wait.is_zero() => wrong("publish.ack_wait", "it is above 0"),
            c if c.breaker.as_ref().is_some_and(|b| b.trip_after.is_zero()) => {
                wrong("publish.breaker.trip_after", "it is above 0")
            }
            c if c.breaker.as_ref().is_some_and(|b| b.probe_every.is_zero()) => {
                wrong("publish.breaker.probe_every", "it is above 0")
            }
            c if c.attempts == 0 => wrong("publish.attempts", "it is at least 1"),
            _ => Ok(()),
        }
    }
}
