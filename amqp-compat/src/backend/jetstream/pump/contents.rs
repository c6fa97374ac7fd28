//! What is in the queue: counted, got, purged, expired.

use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Message as NatsMessage, Subject};
use futures::{FutureExt as _, StreamExt as _};
use serde_json::json;
use smallvec::SmallVec;

use super::super::memory::now_ns;
use super::super::queue::{Counts, Pending, gone};
use super::super::{ack, api};
use super::level::Level;
use super::server::{LINGER, RETRY, next_messages};
use super::{BATCH, Held, Holder, Pump};
use crate::backend::{ChannelId, Got, Outcome};
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::properties;
use crate::model::dead_letter::Reason;

const GET_TIMEOUT: Duration = Duration::from_secs(4);
/// How far the clock of a nats-server may be behind this one.
const CLOCKS_DIFFER_NS: u64 = 3_000_000;
/// How often it is looked whether dead letters that are under way have come.
const ARRIVAL: Duration = Duration::from_millis(1);

impl Pump {
    pub(super) fn expiry(&self, headers: Option<&HeaderMap>, stored_ns: u64) -> Option<u64> {
        let (mut of_message, mut of_queue) = (None, None);
        // A look at each is less work than two look-ups by name.
        for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
            let number = || values.first()?.as_str().parse::<u64>().ok();
            match name.as_ref() {
                properties::EXPIRATION => of_message = number(),
                properties::TTL => of_queue = number(),
                _ => {}
            }
        }
        let of_queue = of_queue.or(self.queue.definition.settings.message_ttl_ms);
        let ms = of_message.into_iter().chain(of_queue).min()?;
        Some(stored_ns.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Takes messages off the head of the queue whose time has come, as RabbitMQ does: one that has not reached the head
    /// stays.
    pub(super) async fn drop_expired(&mut self) {
        while let Some(sequence) = self.head() {
            let Some(held) = self.held.get(&sequence) else { return };
            let Some(at) = held.expires_ns else { return };
            if now_ns() < at || self.dying.is_full() {
                return;
            }
            if self.is_for_who_is_ready(held) {
                return;
            }
            self.bury(sequence, Reason::Expired).await;
        }
    }

    /// Whether a message lives for no time, and a consumer was ready when it came: that one still gets it.
    pub(super) fn is_for_who_is_ready(&self, held: &Held) -> bool {
        let is_at_once = held.expires_ns == Some(held.stored_ns) && !held.redelivered;
        let latest = held.stored_ns.saturating_add(CLOCKS_DIFFER_NS);
        is_at_once && self.ready_since_ns.is_some_and(|since| since <= latest)
    }

    /// Whether an expired message is at the head that cannot be dead-lettered before others are.
    pub(super) fn is_clogged(&self) -> bool {
        let head = || self.held.get(&self.backlog.first()?.1)?.expires_ns;
        self.dying.is_full() && head().is_some_and(|at| at <= now_ns())
    }

    /// When the head of the queue expires.
    pub(super) fn next_expiry(&mut self) -> Option<Instant> {
        let head = self.head()?;
        let held = self.held.get(&head)?;
        if self.is_for_who_is_ready(held) {
            return None;
        }
        let at = held.expires_ns?;
        Some(Instant::now() + Duration::from_nanos(at.saturating_sub(now_ns())))
    }

    pub(super) async fn get(&mut self, link: u64, channel: ChannelId, base: u64) -> Result<Option<Got>, AmqpError> {
        self.trim().await?;
        let Some((sequence, left)) = self.bring_head(true).await? else { return Ok(None) };
        let Some(delivery) = self.hand(sequence, Holder { link, channel, consumer: None }, base) else {
            return Ok(None);
        };
        let mut pending = left;
        if self.watches_expiry && !self.has_priorities() {
            // What has expired behind it is not counted any more.
            self.bring_head(true).await?;
            pending = None;
        }
        // Of a message that was here already, the server has not said how many are behind it; and what it says may for an
        // instant be one too many or too few, of messages that it has just stored.
        let is_known = |pending: u64| sequence.saturating_add(pending) == self.queue.levels.last_stored(0);
        let pending = match pending {
            Some(pending) if self.backlog.is_empty() && !self.has_priorities() && is_known(pending) => pending,
            _ => self.unsent().await?,
        };
        let left = pending + self.backlog.len() as u64;
        Ok(Some(Got { delivery, message_count: u32::try_from(left).unwrap_or(u32::MAX) }))
    }

    /// Brings the head of the queue into the backlog, unless it is there; gives its sequence, and how many messages the
    /// server has left, if it has just said so. `None` when the queue is empty. `expires`: what has expired goes.
    pub(super) async fn bring_head(&mut self, expires: bool) -> Result<Option<(u64, Option<u64>)>, AmqpError> {
        let start = Instant::now();
        let mut linger = false;
        let mut pending = None;
        // Priorities that the server has just said to be empty, from the highest on.
        let mut empty = 0;
        self.open_levels().await?;
        if self.backlog.is_empty() && !self.queue.is_limited() {
            self.queue.learn_last().await?;
        }
        loop {
            if expires {
                self.drop_expired().await;
                if self.is_clogged() {
                    return Ok(None);
                }
            }
            if self.is_remembered() {
                return Ok(self.backlog.first().map(|(_, sequence)| (sequence, Some(0))));
            }
            let asked = self.open().nth(empty).map(|(priority, _)| priority);
            if let Some((priority, sequence)) = self.backlog.first()
                && asked.is_none_or(|asked| asked <= priority)
            {
                return Ok(Some((sequence, pending)));
            }
            let Some(asked) = asked else {
                if self.queue.is_awaiting_dead_letters() && start.elapsed() < LINGER {
                    tokio::time::sleep(ARRIVAL).await;
                    empty = 0;
                    continue;
                }
                return Ok(None);
            };
            if start.elapsed() > GET_TIMEOUT {
                return Err(AmqpError::new(ReplyCode::InternalError, "JetStream does not answer"));
            }
            if self.recover_at.is_some() {
                self.recover().await;
                if self.recover_at.is_some() {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
            let is_open = self.level(asked).pulls.outstanding() > 0;
            if !linger && (is_open || self.parks_pulls()) && self.has_nothing_left(asked).await {
                empty += 1;
                continue;
            }
            if !linger && is_open {
                // The open pull gets what there is; one beside it would have to wait behind it.
                linger = !self.arrives().await;
                continue;
            }
            let Some(message) = self.pull_some(asked, 1, linger).await?.pop() else { continue };
            // What the server sent to an open pull before this answer is here by now, and comes first.
            self.take_arrived().await;
            if let Some(metadata) = message.reply.as_deref().and_then(ack::read) {
                // nats-server (2.15, under load) has been seen to say more than there is; it counts anew when it is asked.
                let possible = self.queue.levels.last_stored(asked).saturating_sub(metadata.sequence);
                let is_exact = self.level(asked).again() == 0 && metadata.pending <= possible;
                pending = is_exact.then_some(metadata.pending);
                self.accept(metadata, message).await;
                continue;
            }
            if self.backlog.first().is_some_and(|(priority, _)| priority >= asked) {
                continue;
            }
            if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
                self.recover_at = Some(Instant::now());
                tokio::time::sleep(RETRY).await;
                continue;
            }
            // The server answers "empty" from counters that trail a confirm by some microseconds.
            if linger || self.has_all_that_is_known(asked) {
                let stored = self.queue.levels.last_stored(asked);
                self.queue.levels.set_drained(asked, stored);
                self.level(asked).left = Some(0);
                empty += 1;
                linger = false;
                continue;
            }
            // Or an open pull of a consumer that went has got the message.
            linger = self.level(asked).pulls.outstanding() == 0 || !self.arrives().await;
        }
    }

    /// Waits for what is on its way to open pulls, and takes it in; whether anything came.
    pub(super) async fn arrives(&mut self) -> bool {
        let mut messages = Vec::new();
        let next = next_messages(&mut self.subscriber, &mut messages);
        let came = tokio::time::timeout(LINGER, next).await.unwrap_or(false);
        for message in messages {
            self.receive(message).await;
        }
        came
    }

    /// Takes in what open pulls have brought and nobody has looked at yet.
    async fn take_arrived(&mut self) {
        while let Some(message) = self.subscriber.as_mut().and_then(|open| open.next().now_or_never().flatten()) {
            self.receive(message).await;
        }
    }

    /// Whether every message of a priority has come that is known to be stored.
    fn has_all_that_is_known(&mut self, priority: u8) -> bool {
        let stored = self.queue.levels.last_stored(priority);
        let drained = self.queue.levels.drained(priority);
        let level = self.level(priority);
        // What was taken back has been seen, and is there all the same: the consumer that was made anew said so.
        level.left.is_none_or(|left| left == 0) && stored <= level.seen.max(drained)
    }

    /// Whether the server says, without being asked for a message, that none of a priority is left.
    async fn has_nothing_left(&mut self, priority: u8) -> bool {
        if !self.has_all_that_is_known(priority) {
            return false;
        }
        // Whoever asks for the state makes the server count anew.
        let Ok(info) = self.queue.consumer_info(priority).await else { return false };
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or(u64::MAX);
        let is_sent = number(&info["delivered"]["consumer_seq"]) <= self.level(priority).received;
        is_sent && number(&info["num_pending"]) == 0
    }

    /// Whether the server may leave a pull without an answer, when it has counted a message that is not there.
    ///
    /// nats-server 2.14 was the first that answers "no messages" at the end of the stream, whatever its count says.
    fn parks_pulls(&self) -> bool {
        !self.queue.bridge.client().is_server_compatible(2, 14, 0)
    }

    /// Asks for up to `batch` messages of a priority and waits until they are there or the server says that there are no
    /// more; that message comes last. Nothing when no answer came in time.
    pub(super) async fn pull_some(
        &mut self,
        priority: u8,
        batch: usize,
        linger: bool,
    ) -> Result<Vec<NatsMessage>, AmqpError> {
        let client = self.queue.bridge.client().clone();
        let parks = self.parks_pulls();
        let next_subject = self.level(priority).next_subject.clone();
        let (inbox, subscriber) = match &mut self.get_inbox {
            Some(open) => open,
            none => {
                let inbox = Subject::from(client.new_inbox());
                let subscriber = client.subscribe(inbox.clone()).await.map_err(|_| gone())?;
                none.insert((inbox, subscriber))
            }
        };
        let body = match linger {
            true => format!("{{\"batch\":{batch},\"expires\":{}}}", LINGER.as_nanos()),
            // It is answered at once, but for a message that was counted and is not there.
            false if parks => format!("{{\"batch\":{batch},\"no_wait\":true,\"expires\":{}}}", LINGER.as_nanos()),
            // Without `expires` an empty queue answers at once. A request would be parked for ever if
            // `max_ack_pending` could be reached, and it is unlimited here.
            false => format!("{{\"batch\":{batch},\"no_wait\":true}}"),
        };
        let _ = client.publish_with_reply(next_subject, inbox.clone(), body.into()).await;
        let mut messages = Vec::new();
        while messages.len() < batch {
            match tokio::time::timeout(GET_TIMEOUT, subscriber.next()).await {
                Ok(Some(message)) => {
                    let is_last = message.status.is_some();
                    messages.push(message);
                    if is_last {
                        break;
                    }
                }
                Ok(None) | Err(_) => {
                    // A late answer must not be taken for the next one's; what it brings is taken back.
                    self.get_inbox = None;
                    self.recover_at = Some(Instant::now());
                    break;
                }
            }
        }
        Ok(messages)
    }

    /// How many messages the server has ready that are not here.
    pub(super) async fn unsent(&mut self) -> Result<u64, AmqpError> {
        if self.is_remembered() {
            return Ok(0);
        }
        if self.has_priorities() {
            // Sequences of one priority have gaps, so that its counts cannot be held against confirms.
            return self.stored_unsent().await;
        }
        let until = Instant::now() + LINGER;
        loop {
            let Pending { pending, deliveries, .. } = self.queue.pending(self.newest.0).await?;
            let Level { received, .. } = self.levels[0];
            // What the server has sent and we have not read yet is on neither side: it is taken in first.
            if deliveries > received && self.subscriber.is_some() && Instant::now() < until {
                self.arrives().await;
                continue;
            }
            let pending = pending.saturating_sub(self.levels[0].again());
            // For an instant the server may count a message twice that it has just stored.
            if pending > 0 && self.newest.0.saturating_add(pending) > self.queue.levels.last_stored(0) {
                return Ok(pending.min(self.stored_unsent().await?));
            }
            return Ok(pending);
        }
    }

    /// [`Self::unsent`], by the stream's own count: it is as new as the confirms.
    async fn stored_unsent(&mut self) -> Result<u64, AmqpError> {
        self.sync().await;
        let again: usize = self.levels.iter().map(|level| level.owed.len()).sum();
        Ok(self.queue.stored_messages().await?.saturating_sub((self.held.len() + again) as u64))
    }

    pub(super) async fn counts(&mut self) -> Result<Counts, AmqpError> {
        if self.fresh {
            self.recover().await;
        }
        let start = Instant::now();
        while self.queue.is_awaiting_dead_letters() && start.elapsed() < LINGER {
            tokio::time::sleep(ARRIVAL).await;
        }
        self.trim().await?;
        self.queue.learn_last().await?;
        let unsent = self.unsent().await?;
        Ok(Counts {
            ready: unsent + self.backlog.len() as u64,
            unacknowledged: (self.held.len() - self.backlog.len()) as u64,
            consumers: u32::try_from(self.consumers.len()).unwrap_or(u32::MAX),
        })
    }

    pub(super) async fn purge(&mut self) -> Result<u64, AmqpError> {
        self.trim().await?;
        if self.is_remembered() {
            let ready: Vec<u64> = self.backlog.take().collect();
            for &sequence in &ready {
                self.settle(sequence, Outcome::Ack).await;
            }
            return Ok(ready.len() as u64);
        }
        if self.fresh || self.recover_at.is_some() {
            self.recover().await;
        }
        if !self.is_held_by_clients() {
            self.sync().await;
            let stored: SmallVec<[u64; 1]> =
                (0..=self.queue.levels.highest()).map(|priority| self.queue.levels.last_stored(priority)).collect();
            let call = format!("STREAM.PURGE.{}", self.queue.stream);
            // What an open pull has brought and nobody has read yet is purged as well, and must not come after it.
            let last = self.queue.stream_info().await?["state"]["last_seq"].as_u64().unwrap_or_default();
            let answer = api::call(&self.queue.bridge, &call, &json!({ "seq": last + 1 })).await?;
            self.acked.insert_to(last);
            if let Some(mut ready) = self.queue.ready() {
                ready.clear_to(last);
            }
            self.held.clear();
            drop(self.backlog.take());
            let mut again = 0;
            for ((priority, stored), level) in (0..=u8::MAX).zip(stored).zip(&mut self.levels) {
                level.stale = 0;
                again += std::mem::take(&mut level.owed).len() as u64;
                level.left = Some(0);
                self.queue.levels.set_drained(priority, stored);
            }
            return Ok(answer["purged"].as_u64().unwrap_or_default().saturating_sub(again));
        }
        // A purge of the stream would take what clients hold as well, so the ready messages are acknowledged instead.
        self.open_levels().await?;
        let priorities: SmallVec<[u8; 1]> = self.open().map(|(priority, _)| priority).collect();
        let mut purged = 0;
        for &priority in &priorities {
            self.catch_up(priority).await?;
        }
        for priority in priorities {
            purged += self.purge_ready(priority).await?;
        }
        Ok(purged)
    }

    async fn purge_ready(&mut self, priority: u8) -> Result<u64, AmqpError> {
        let mut purged = 0;
        loop {
            for sequence in self.backlog.take() {
                self.settle(sequence, Outcome::Ack).await;
                purged += 1;
            }
            if self.parks_pulls() && self.has_nothing_left(priority).await {
                return Ok(purged);
            }
            let messages = self.pull_some(priority, BATCH, false).await?;
            if messages.is_empty() {
                return Err(AmqpError::new(ReplyCode::InternalError, "JetStream does not answer"));
            }
            let mut is_end = false;
            self.take_arrived().await;
            for message in messages {
                match message.reply.as_deref().and_then(ack::read) {
                    Some(metadata) => drop(self.accept(metadata, message).await),
                    None => is_end = true,
                }
            }
            if is_end && self.backlog.is_empty() {
                return Ok(purged);
            }
        }
    }
}
