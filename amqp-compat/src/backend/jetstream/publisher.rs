//! What one link has published and JetStream has not confirmed: sent, resent, answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use nats_bridge::publish::{Confirm, OrderedInbox};
use nats_bridge::{ErrorKind, publish::Rejection};
use smallvec::SmallVec;

use super::alarm::Resource;
use super::config::JetStreamConfig;
use super::memory::now_ns;
use super::message::{self, MSG_ID};
use super::queue::Queue;
use crate::backend::{ChannelId, Message, PublishOutcome};
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::properties;

/// How long a copy waits for its confirm before it is sent again.
const RESEND_AFTER: Duration = Duration::from_secs(5);

/// How long after a temporary refusal a copy is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How long after a refusal for want of room one of the copies that wait is sent again.
const PROBE_AFTER: Duration = Duration::from_millis(500);

/// A publish whose copies are all settled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) channel: ChannelId,
    pub(crate) seq: u64,
    pub(crate) outcome: PublishOutcome,
}

/// The publishes of one link.
#[derive(Debug)]
pub(crate) struct Publisher {
    inbox: OrderedInbox,
    config: Arc<JetStreamConfig>,
    /// The start of this link's message ids: `<this>-<token>`.
    id: String,
    /// Outstanding copies, by token from `first` on; a settled one leaves a hole until it is at the front.
    copies: VecDeque<Option<Copy>>,
    first: u64,
    publishes: Vec<Option<Outstanding>>,
    free: Vec<u32>,
    count: usize,
    bytes: usize,
    /// How many copies wait for room.
    refused: usize,
    /// Whether there was none when it was last tried: then only the oldest of those is tried again.
    is_probing: bool,
    /// Queues whose stream cannot take a message now, as between two leaders, and when they are tried again: what comes for one of them
    /// meanwhile waits behind what was not taken.
    held_back: Vec<(Arc<Queue>, Instant)>,
}

#[derive(Debug)]
struct Copy {
    publish: u32,
    queue: Arc<Queue>,
    send_at: Instant,
    /// Whether JetStream had no room for it.
    is_refused: bool,
}

impl Copy {
    fn end(&self, publish: &Outstanding, stored: Option<u64>) {
        if let (Some(observer), Some(sequence)) = (&self.queue.config.observer, stored) {
            observer.stored(&self.queue.vhost, self.queue.name(), &publish.message, sequence);
        }
        self.queue.ended(&publish.message.properties, publish.message.body.len(), stored);
        if publish.also.is_dead_letter() {
            self.queue.dead_letter_came();
        }
    }
}

/// When a queue is tried again whose stream takes nothing now.
fn held_until(held_back: &[(Arc<Queue>, Instant)], queue: &Arc<Queue>) -> Option<Instant> {
    held_back.iter().find(|(held, _)| Arc::ptr_eq(held, queue)).map(|(_, until)| *until)
}

impl Drop for Publisher {
    /// What is not confirmed gives back the room that it took.
    fn drop(&mut self) {
        self.config.alarm.ended(self.refused);
        for copy in self.copies.drain(..).flatten() {
            if let Some(Some(publish)) = self.publishes.get(copy.publish as usize) {
                copy.end(publish, None);
            }
        }
    }
}

#[derive(Debug)]
struct Outstanding {
    channel: ChannelId,
    seq: u64,
    message: Message,
    also: Also,
    /// Its only destination, if there is just one.
    single: bool,
    copies_left: u32,
    failed: bool,
    give_up_at: Instant,
}

impl Outstanding {
    /// The headers of the copy for a queue.
    fn headers(&self, queue: &Queue) -> HeaderMap {
        let mut headers = message::headers(&self.message, self.single.then(|| queue.name()));
        if let Some(bcc) = self.also.bcc.as_deref().and_then(|bcc| bcc.parse::<HeaderValue>().ok()) {
            headers.insert(HeaderName::from_static(properties::BCC), bcc);
        }
        if let Some(by) = self.also.delayed_by.as_deref().and_then(|by| by.parse::<HeaderValue>().ok()) {
            headers.insert(HeaderName::from_static(properties::DELAYED_BY), by);
        }
        headers
    }

    /// Stores the copy for a queue that lives in memory; false when that is full.
    fn remember(&self, queue: &Queue) -> bool {
        let Some(memory) = &queue.memory else { return false };
        let Message { properties, body, .. } = &self.message;
        let headers = self.headers(queue);
        let headers = (!headers.is_empty()).then_some(headers);
        let stored = memory.store(headers, body, queue.levels.of(properties), now_ns());
        queue.ended(properties, body.len(), stored);
        if stored.is_none() {
            tracing::warn!(queue = queue.name(), "the memory for exclusive queues is used up; a publish is refused");
        }
        stored.is_some()
    }
}

impl From<Outstanding> for Settled {
    fn from(publish: Outstanding) -> Self {
        let outcome = if publish.failed { PublishOutcome::Failed } else { PublishOutcome::Stored };
        Self { channel: publish.channel, seq: publish.seq, outcome }
    }
}

/// What goes with a message besides itself.
#[derive(Debug, Default)]
pub(crate) struct Also {
    /// Its id, for a message whose resend may come from another publisher than this one.
    pub(crate) id: Option<String>,
    /// Hidden routing keys, as [`super::dead_letters::hide`] writes them.
    pub(crate) bcc: Option<String>,
    /// Delayed exchanges, as [`super::delays::through`] writes them.
    pub(crate) delayed_by: Option<String>,
    /// Whether a queue has refused it already, so that it fails however its other copies end.
    pub(crate) failed: bool,
}

impl Also {
    /// Only a dead letter has an id of its own.
    fn is_dead_letter(&self) -> bool {
        self.id.is_some()
    }
}

impl Publisher {
    pub(crate) fn new(inbox: OrderedInbox, config: Arc<JetStreamConfig>) -> Self {
        Self {
            inbox,
            config,
            id: ulid::Ulid::new().to_string(),
            copies: VecDeque::new(),
            first: 1,
            publishes: Vec::new(),
            free: Vec::new(),
            count: 0,
            bytes: 0,
            refused: 0,
            is_probing: false,
            held_back: Vec::new(),
        }
    }

    /// Whether anything waits for room.
    pub(crate) fn waits_for_room(&self) -> bool {
        self.refused > 0
    }

    /// Whether there is room for another publish.
    pub(crate) fn has_room(&self) -> bool {
        self.copies.len() < self.config.publish_window && self.bytes < self.config.publish_window_bytes
    }

    /// Whether anything of a channel is outstanding; `None` asks for any channel.
    pub(crate) fn is_outstanding(&self, channel: Option<ChannelId>) -> bool {
        match channel {
            None => self.count > 0,
            Some(_) if self.count == 0 => false,
            Some(channel) => self.publishes.iter().flatten().any(|publish| publish.channel == channel),
        }
    }

    /// Sends a copy to each queue, in which it has room ([`Queue::admit`]); gives the publish when it has ended already,
    /// because all of them live in memory.
    ///
    /// # Errors
    /// `PreconditionFailed` for a message that is larger than the server takes. Nothing was sent.
    pub(crate) async fn publish(
        &mut self,
        channel: ChannelId,
        seq: u64,
        message: Message,
        also: Also,
        mut queues: SmallVec<[Arc<Queue>; 4]>,
        now: Instant,
    ) -> Result<Option<Settled>, AmqpError> {
        let single = queues.len() == 1;
        let mut in_memory: SmallVec<[Arc<Queue>; 4]> = SmallVec::new();
        queues.retain(|queue| {
            let has_stream = queue.memory.is_none();
            if !has_stream {
                in_memory.push(queue.clone());
            }
            has_stream
        });
        let is_dead_letter = also.is_dead_letter();
        let publish = Outstanding {
            channel,
            seq,
            message,
            single,
            copies_left: u32::try_from(queues.len()).unwrap_or(u32::MAX),
            failed: also.failed,
            also,
            give_up_at: now + self.config.publish_timeout,
        };
        self.bytes += publish.message.body.len();
        self.count += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.publishes[slot as usize] = Some(publish);
                slot
            }
            None => {
                self.publishes.push(Some(publish));
                u32::try_from(self.publishes.len() - 1).expect("fewer than 2^32 publishes are outstanding")
            }
        };
        let first = self.first + self.copies.len() as u64;
        for queue in queues {
            if is_dead_letter {
                queue.dead_letter_comes();
            }
            self.copies.push_back(Some(Copy { publish: slot, queue, send_at: now + RESEND_AFTER, is_refused: false }));
        }
        for token in first..self.first + self.copies.len() as u64 {
            if let Err(error) = self.send(token).await {
                // The check is of size alone, the same for every copy, and comes before the first is sent.
                let from = usize::try_from(first - self.first).unwrap_or(usize::MAX);
                let copies: SmallVec<[Copy; 4]> = self.copies.drain(from..).flatten().collect();
                if let Some(publish) = self.end(slot) {
                    copies.iter().for_each(|copy| copy.end(&publish, None));
                }
                return Err(error);
            }
        }
        let Some(Some(publish)) = self.publishes.get_mut(slot as usize) else { return Ok(None) };
        for queue in in_memory {
            publish.failed |= !publish.remember(&queue);
        }
        if publish.copies_left > 0 {
            return Ok(None);
        }
        Ok(self.end(slot).map(Settled::from))
    }

    /// Hands one copy to the client.
    async fn send(&mut self, token: u64) -> Result<(), AmqpError> {
        let index = self.index(token);
        let Some(Some(copy)) = self.copies.get_mut(index) else { return Ok(()) };
        let held_back = held_until(&self.held_back, &copy.queue);
        if let Some(until) = held_back {
            copy.send_at = until;
        }
        let Some(Some(publish)) = self.publishes.get(copy.publish as usize) else { return Ok(()) };
        let mut headers = publish.headers(&copy.queue);
        let id = match &publish.also.id {
            Some(id) => Some(id.clone()),
            None => self.config.publish_ids.then(|| format!("{}-{token}", self.id)),
        };
        if let Some(Ok(id)) = id.map(|id| id.parse::<HeaderValue>()) {
            headers.insert(MSG_ID, id);
        }
        if let Some(ttl) = copy.queue.stamp() {
            headers.insert(HeaderName::from_static(properties::TTL), HeaderValue::from(ttl));
        }
        let headers = (!headers.is_empty()).then_some(headers);
        let body = publish.message.body.clone();
        let too_large = || {
            AmqpError::new(
                ReplyCode::PreconditionFailed,
                format!(
                    "message size {} is larger than what the server takes with its headers (max_payload {})",
                    publish.message.body.len(),
                    copy.queue.bridge.client().max_payload()
                ),
            )
        };
        if held_back.is_some() || self.inbox.is_over() {
            let fits = !self.inbox.is_too_large(headers.as_ref(), &body);
            return if fits { Ok(()) } else { Err(too_large()) };
        }
        let subject = copy.queue.destination(&publish.message.properties);
        match self.inbox.publish(token, subject, headers, body).await {
            Err(error) if error.kind() == ErrorKind::TooLarge => Err(too_large()),
            // It stays outstanding: it is sent again over the next connection, or fails in time.
            _ => Ok(()),
        }
    }

    /// Takes in a confirm; gives the publish that it settled.
    pub(crate) fn confirmed(&mut self, confirm: Confirm, now: Instant) -> Option<Settled> {
        let index = self.index(confirm.token);
        let copy = self.copies.get_mut(index)?.as_mut()?;
        let mut stored = None;
        let failed = match confirm.result {
            Ok(at) => {
                stored = Some(at.sequence);
                if copy.is_refused {
                    self.there_is_room(now);
                }
                false
            }
            // A queue that was deleted meanwhile takes its messages with it; that is no failure of the publish.
            Err(_) if copy.queue.is_deleted() => false,
            Err(rejection) if rejection.is_out_of_room() => {
                self.refused(index, &rejection, now);
                return None;
            }
            Err(rejection) if rejection.is_temporary() => {
                copy.send_at = held_until(&self.held_back, &copy.queue).unwrap_or_else(|| {
                    self.held_back.push((copy.queue.clone(), now + RETRY_AFTER));
                    now + RETRY_AFTER
                });
                return None;
            }
            Err(rejection) => {
                self.log(&rejection, index);
                true
            }
        };
        self.settle(index, failed, stored)
    }

    /// There was no room for a copy: it waits, as RabbitMQ lets a publish wait for the end of an alarm.
    fn refused(&mut self, index: usize, rejection: &Rejection, now: Instant) {
        let waits_for_ever = self.waits_for_ever();
        let Some(Some(copy)) = self.copies.get_mut(index) else { return };
        copy.send_at = now + PROBE_AFTER;
        self.is_probing = true;
        if !copy.is_refused {
            copy.is_refused = true;
            self.refused += 1;
            let resource = if copy.queue.is_in_memory() { Resource::Memory } else { Resource::Disk };
            self.config.alarm.refused(resource, &rejection.text);
        }
        // It is known that it was not stored: only an answer that is missing from now on makes it late.
        if waits_for_ever && let Some(Some(publish)) = self.publishes.get_mut(copy.publish as usize) {
            publish.give_up_at = now + self.config.publish_timeout;
        }
    }

    /// Whether what finds no room waits until there is some. A sidecar has another broker, to which it rolls back when
    /// JetStream confirms nothing.
    fn waits_for_ever(&self) -> bool {
        !self.config.behind_rabbitmq
    }

    /// One of the copies that were refused is stored: the others are sent, in their order.
    fn there_is_room(&mut self, now: Instant) {
        self.is_probing = false;
        for copy in self.copies.iter_mut().flatten().filter(|copy| copy.is_refused) {
            copy.send_at = now;
        }
    }

    /// Waits until there is another connection, over which [`Self::resend`] sends everything again.
    pub(crate) async fn available(&mut self) {
        self.inbox.available().await;
    }

    /// Sends again what is due, or everything over another connection; gives up what has been tried for too long.
    pub(crate) async fn resend(&mut self, now: Instant) -> Vec<Settled> {
        let mut settled = Vec::new();
        let everything = self.inbox.renew().await;
        self.held_back.retain(|(_, until)| !everything && *until > now);
        let (mut has_probed, waits_for_ever) = (false, self.waits_for_ever());
        for index in 0..self.copies.len() {
            let Some(Some(copy)) = self.copies.get_mut(index) else { continue };
            let (publish, deleted) = (copy.publish as usize, copy.queue.is_deleted());
            let late = self.publishes[publish].as_ref().is_none_or(|publish| publish.give_up_at <= now);
            if copy.is_refused && self.is_probing && !everything && !deleted {
                if has_probed && (waits_for_ever || !late) {
                    continue;
                }
                has_probed = true;
            }
            if !everything && copy.send_at > now {
                continue;
            }
            copy.send_at = now + RESEND_AFTER;
            if late || deleted {
                if late {
                    tracing::warn!(
                        queue = self.copies[index].as_ref().map(|c| c.queue.name()),
                        "a publish was not confirmed in time"
                    );
                }
                settled.extend(self.settle_in_place(index, late && !deleted, None));
                continue;
            }
            // A copy that was not too large the first time is not too large now.
            let _ = self.send(self.first + index as u64).await;
        }
        self.trim();
        settled
    }

    fn log(&self, rejection: &Rejection, index: usize) {
        let queue = self.copies.get(index).and_then(Option::as_ref).map(|copy| copy.queue.name());
        tracing::warn!(
            queue,
            code = rejection.code,
            err_code = rejection.err_code,
            text = rejection.text,
            "JetStream refused a publish"
        );
    }

    fn settle(&mut self, index: usize, failed: bool, stored: Option<u64>) -> Option<Settled> {
        let settled = self.settle_in_place(index, failed, stored);
        self.trim();
        settled
    }

    /// `stored`: at which sequence.
    fn settle_in_place(&mut self, index: usize, failed: bool, stored: Option<u64>) -> Option<Settled> {
        let copy = self.copies.get_mut(index)?.take()?;
        if copy.is_refused {
            self.refused -= 1;
            self.config.alarm.ended(1);
        }
        let publish = self.publishes.get_mut(copy.publish as usize)?.as_mut()?;
        copy.end(publish, stored);
        publish.failed |= failed;
        publish.copies_left -= 1;
        if publish.copies_left > 0 {
            return None;
        }
        self.end(copy.publish).map(Settled::from)
    }

    fn end(&mut self, slot: u32) -> Option<Outstanding> {
        let publish = self.publishes.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        self.count -= 1;
        self.bytes -= publish.message.body.len();
        Some(publish)
    }

    fn trim(&mut self) {
        while let Some(None) = self.copies.front() {
            self.copies.pop_front();
            self.first += 1;
        }
    }

    fn index(&self, token: u64) -> usize {
        token.checked_sub(self.first).and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX)
    }
}
