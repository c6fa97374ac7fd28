//! What dies in the queue: rejected, expired, over the limit of length or of deliveries.
//!
//! Its copies are stored where the dead-letter exchange leads before it is acknowledged here, so that a crash in between
//! repeats a copy and loses none; the repeat has the same id and is dropped within the window of duplicates. The actor
//! does not wait for the confirms: what is on its way is held, by nobody, until they come.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use nats_bridge::publish::{Confirm, Confirms};

use super::super::dead_letters::{self, Routed, hidden, hide};
use super::super::message;
use super::super::publisher::{Also, Publisher, Settled};
use super::Pump;
use crate::backend::{Outcome, PublishOutcome};
use crate::model::dead_letter::Reason;

/// How often copies without a confirm are looked at.
const TICK: Duration = Duration::from_millis(100);

/// How long after NATS refused a copy it is sent again.
const AGAIN: Duration = Duration::from_secs(1);

/// From how many on, that wait for room among the copies under way, expired messages stay at the head of the queue.
const FULL: usize = 256;

/// How many messages' returns are counted; beyond it the oldest ones' are forgotten.
const MAX_RETURNS: usize = 65_536;

/// The dead of one queue.
#[derive(Default)]
pub(super) struct Dying {
    /// Out of the queue, and not sent yet. At most what clients held, and [`FULL`].
    waiting: VecDeque<(u64, Reason)>,
    /// Sent, by sequence: how many publishes are not confirmed, whether one of them failed, and why it died.
    sent: HashMap<u64, (usize, bool, Reason)>,
    publisher: Option<Publisher>,
    confirms: Option<Confirms>,
    tick_at: Option<Instant>,
    again_at: Option<Instant>,
}

impl Dying {
    /// Whether something waits and may be sent.
    pub(super) fn has_work(&self) -> bool {
        !self.waiting.is_empty() && self.again_at.is_none()
    }

    /// Whether so much waits that no more is taken from the head of the queue.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= FULL
    }

    /// When it is to be looked at.
    pub(super) fn due(&self) -> Option<Instant> {
        self.tick_at.into_iter().chain(self.again_at).min()
    }

    /// Forgets everything: the queue is another one now.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.sent.clear();
        self.again_at = None;
    }
}

/// Waits for confirms of dead letters.
pub(super) async fn next_confirms(dying: &mut Dying, confirmed: &mut Vec<Confirm>) {
    match &mut dying.confirms {
        Some(confirms) => {
            if confirms.next_many(confirmed, super::BATCH).await == 0 {
                // The client was closed; the actor hears of it on another way.
                dying.confirms = None;
            }
        }
        None => std::future::pending().await,
    }
}

impl Pump {
    pub(super) fn has_dead_letter_exchange(&self) -> bool {
        self.queue.settings().dead_letter_exchange.is_some()
    }

    /// Takes a message out of the queue for good, to the dead-letter exchange if there is one.
    pub(super) async fn bury(&mut self, sequence: u64, reason: Reason) {
        if self.has_dead_letter_exchange() {
            self.condemn(sequence, reason);
        } else {
            self.settle(sequence, Outcome::Ack).await;
        }
    }

    /// Takes a message out of the queue; [`Self::bury_condemned`] does the rest.
    pub(super) fn condemn(&mut self, sequence: u64, reason: Reason) {
        let Some(held) = self.held.get_mut(&sequence) else { return };
        held.by = None;
        self.backlog.remove(held.priority, sequence);
        self.count_out(sequence);
        self.dying.waiting.push_back((sequence, reason));
    }

    /// Sends what died, as far as there is room.
    pub(super) async fn bury_condemned(&mut self) {
        while let Some(&(sequence, reason)) = self.dying.waiting.front() {
            if self.dying.publisher.as_ref().is_some_and(|publisher| !publisher.has_room()) {
                return;
            }
            self.dying.waiting.pop_front();
            let Some(held) = self.held.get(&sequence) else { continue };
            let bcc = hidden(held.headers.as_ref());
            let message = message::message(held.headers.as_ref(), held.payload.clone(), self.queue.name());
            let id = format!("dlx:{}:{sequence}:{}", self.queue.stream, held.stored_ns);
            let routed = dead_letters::route(&self.queue, message, bcc, reason);
            if routed.is_empty() {
                self.settle(sequence, Outcome::Ack).await;
            } else if !self.send_dead_letters(sequence, reason, &id, routed).await {
                self.dying.waiting.push_front((sequence, reason));
                self.dying.again_at = Some(Instant::now() + AGAIN);
                return;
            }
        }
    }

    /// False when NATS cannot be reached at all.
    async fn send_dead_letters(&mut self, sequence: u64, reason: Reason, id: &str, routed: Vec<Routed>) -> bool {
        if self.dying.publisher.is_none() {
            let Ok((inbox, confirms)) = self.queue.bridge.ordered_inbox().await else {
                for Routed { letter, queues, .. } in routed {
                    let (properties, size) = (&letter.message.properties, letter.message.body.len());
                    queues.iter().for_each(|queue| queue.ended(properties, size, None));
                }
                return false;
            };
            self.dying.publisher = Some(Publisher::new(inbox, self.queue.config.clone()));
            self.dying.confirms = Some(confirms);
        }
        let Some(publisher) = &mut self.dying.publisher else { return false };
        let now = Instant::now();
        let mut sent = 0;
        let mut failed = false;
        for Routed { letter, queues, delayed_by } in routed {
            let also = Also { id: Some(id.to_owned()), bcc: hide(&letter.bcc), delayed_by, failed: false };
            match publisher.publish(0, sequence, letter.message, also, queues, now).await {
                Ok(None) => sent += 1,
                Ok(Some(settled)) => failed |= settled.outcome == PublishOutcome::Failed,
                Err(error) => tracing::error!(
                    queue = self.queue.name(),
                    %error,
                    "a dead letter is too large with its x-death header and is dropped"
                ),
            }
        }
        self.dying.tick_at.get_or_insert(now + TICK);
        if sent > 0 {
            self.dying.sent.insert(sequence, (sent, failed, reason));
        } else if failed {
            return false;
        } else {
            self.settle(sequence, Outcome::Ack).await;
        }
        true
    }

    /// Takes in confirms of dead letters.
    pub(super) async fn dead_letters_confirmed(&mut self, confirmed: &mut Vec<Confirm>) {
        let now = Instant::now();
        for confirm in confirmed.drain(..) {
            let settled = self.dying.publisher.as_mut().and_then(|publisher| publisher.confirmed(confirm, now));
            if let Some(settled) = settled {
                self.dead_letter_ended(settled).await;
            }
        }
    }

    /// Sends again what is due; everything over another connection.
    pub(super) async fn tick_dead_letters(&mut self) {
        let now = Instant::now();
        if self.dying.again_at.is_some_and(|at| at <= now) {
            self.dying.again_at = None;
        }
        if self.dying.tick_at.is_none_or(|at| at > now) {
            return;
        }
        self.dying.tick_at = None;
        let Some(publisher) = &mut self.dying.publisher else { return };
        let settled = publisher.resend(now).await;
        self.dying.tick_at = publisher.is_outstanding(None).then_some(now + TICK);
        for settled in settled {
            self.dead_letter_ended(settled).await;
        }
    }

    async fn dead_letter_ended(&mut self, Settled { seq, outcome, .. }: Settled) {
        let Some((left, failed, reason)) = self.dying.sent.get_mut(&seq) else { return };
        *left -= 1;
        *failed |= outcome == PublishOutcome::Failed;
        if *left > 0 {
            return;
        }
        let (failed, reason) = (*failed, *reason);
        self.dying.sent.remove(&seq);
        if failed {
            // It stays where it is until NATS takes its copies.
            self.dying.waiting.push_back((seq, reason));
            self.dying.again_at = Some(Instant::now() + AGAIN);
        } else {
            self.settle(seq, Outcome::Ack).await;
        }
    }

    /// Counts that a client had a message and it comes back; true when that was once too often.
    pub(super) fn count_return(&mut self, sequence: u64) -> bool {
        if !self.counts_returns {
            return false;
        }
        let seen = self.returns_of(sequence) + 1;
        self.returns.insert(sequence, seen);
        if self.returns.len() > MAX_RETURNS {
            self.returns.pop_first();
        }
        self.queue.settings().delivery_limit.is_some_and(|limit| u64::from(seen) > limit)
    }

    /// How often a message came back; at least once when a gateway before this one may have delivered it.
    pub(super) fn returns_of(&self, sequence: u64) -> u32 {
        let before = self.held.get(&sequence).is_some_and(|held| held.redelivered);
        self.returns.get(&sequence).copied().unwrap_or(u32::from(before))
    }
}
