//! The actor's side towards the server: pulls, deliveries, and bringing both views in line after a loss.

use std::time::{Duration, Instant};

use async_nats::{Message as NatsMessage, Subject, Subscriber};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};

use super::super::ack::{self, Metadata, Sequences};
use super::super::api::ApiError;
use super::super::pull::Status;
use super::level::Level;
use super::limits::HEADS;
use super::{BATCH, Held, Pump};

const MAX_PULL: u64 = 4096;

/// How many messages are fetched before anybody has credit for them, so that a consumer with little credit does not
/// cost a pull request for each message.
const READ_AHEAD: u64 = 256;
/// About how many bytes those may have.
const READ_AHEAD_BYTES: u64 = 4 << 20;
/// How large messages are taken for of which none has come.
pub(super) const UNKNOWN_BYTES: u64 = 64 << 10;

const MAX_UNSEEN: usize = 65_536;
/// How long messages that are on their way are waited for.
pub(super) const LINGER: Duration = Duration::from_millis(250);
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);

/// How long after a failure the server is asked again.
pub(super) const RETRY: Duration = Duration::from_millis(250);

impl Pump {
    /// Waits until the server has taken in what was settled: it answers in order.
    pub(super) async fn sync(&mut self) {
        self.tell_settled().await;
        for level in &mut self.levels {
            let Some(reply) = level.unsynced.take() else { continue };
            let request = async_nats::Request::new().payload(Bytes::from_static(b"+WPI")).timeout(Some(SYNC_TIMEOUT));
            // Without an answer the settlements may be lost; what comes again is settled again.
            let _ = self.queue.bridge.client().send_request(reply, request).await;
        }
    }

    /// Takes in one message of the inbox, and hands out what can be.
    pub(super) async fn receive(&mut self, message: NatsMessage) {
        // What a limit takes from the head has not expired: `serve` comes next.
        if self.take_in(message).await.is_some() && !self.is_over() {
            self.hand_out().await;
        }
    }

    /// Takes in one message of the inbox; `None` for one that is not to be handed out.
    pub(super) async fn take_in(&mut self, message: NatsMessage) -> Option<u64> {
        let now = Instant::now();
        let priority = self.priority_of(&message.subject);
        let pulls = &mut self.level(priority).pulls;
        let Some(metadata) = message.reply.as_deref().and_then(ack::read) else {
            if pulls.status(&message, now) == Status::Lost {
                self.recover_at = Some(now + RETRY);
            }
            return None;
        };
        pulls.delivered(now);
        self.accept(metadata, message).await
    }

    /// Takes in what the server has sent of a priority and is not here yet, without handing it out.
    pub(super) async fn catch_up(&mut self, priority: u8) -> Result<(), ApiError> {
        let until = Instant::now() + LINGER;
        let info = self.queue.consumer_info(priority).await?;
        let sent = info["delivered"]["consumer_seq"].as_u64().unwrap_or_default();
        let mut messages = Vec::new();
        while self.level(priority).received < sent && self.subscriber.is_some() && Instant::now() < until {
            let _ = tokio::time::timeout(LINGER, next_messages(&mut self.subscriber, &mut messages)).await;
            for message in messages.drain(..) {
                self.take_in(message).await;
            }
        }
        Ok(())
    }

    /// Takes a delivery of the server into the backlog; `None` for one that is not to be handed out.
    pub(super) async fn accept(&mut self, metadata: Metadata, message: NatsMessage) -> Option<u64> {
        let Metadata { delivered, sequence, consumer_sequence, stored_ns, pending } = metadata;
        let priority = self.priority_of(&message.subject);
        let reply = message.reply?;
        let level = self.level(priority);
        if consumer_sequence > level.received.saturating_add(1) {
            // Deliveries before it are lost, with a server that was killed on their way: what lies behind them waits until
            // they have come again.
            tracing::debug!(queue = self.queue.name(), "deliveries were lost on their way");
            self.recover_at = Some(Instant::now());
            return None;
        }
        if consumer_sequence >= level.received {
            level.received = consumer_sequence;
            level.left = Some(pending);
        }
        level.last_reply = Some(reply.clone());
        if sequence <= self.newest.0 && stored_ns > self.newest.1 {
            // The server lost the end of its log and counts again from there: these are new messages.
            self.acked.forget_from(sequence);
            for level in &mut self.levels {
                level.highest = level.highest.min(sequence - 1);
                level.seen = level.seen.min(sequence - 1);
            }
            self.returns.split_off(&sequence);
            if let Some(mut ready) = self.queue.ready() {
                ready.forget_from(sequence);
            }
            self.newest = (sequence, stored_ns);
        } else if sequence > self.newest.0 {
            self.newest = (sequence, stored_ns);
        }
        let level = self.level(priority);
        level.seen = level.seen.max(sequence);
        let was_delivered = sequence <= level.highest;
        if self.acked.contains(sequence) {
            self.level(priority).owed.remove(&sequence);
            tell(self.queue.bridge.client(), reply, b"+ACK").await;
            return None;
        }
        if let Some(held) = self.held.get_mut(&sequence) {
            held.reply = reply;
            let was_stale = std::mem::take(&mut held.is_stale);
            self.level(priority).stale -= usize::from(was_stale);
            return None;
        }
        // Larger ones count at once, smaller ones in time.
        let bytes = message.length as u64;
        self.typical_bytes = bytes.max((self.typical_bytes * 7 + bytes) / 8);
        let redelivered = !self.unseen.remove(&sequence) && (delivered > 1 || was_delivered);
        let (headers, payload) = (message.headers, message.payload);
        let expires_ns = self.expiry(headers.as_ref(), stored_ns);
        let held = Held {
            reply,
            by: None,
            redelivered,
            priority,
            is_stale: false,
            headers,
            payload,
            stored_ns,
            expires_ns,
            _charge: None,
        };
        self.held.insert(sequence, held);
        self.backlog.insert(priority, sequence);
        self.count_in(sequence, true);
        Some(sequence)
    }

    /// Hands out what can be handed out and asks the server for as much as there is credit for.
    pub(super) async fn serve(&mut self) {
        if self.stopped || self.recover_at.is_some() {
            return;
        }
        if self.limits_head {
            self.trim_or_log().await;
        }
        self.hand_out().await;
        if self.is_remembered() {
            return;
        }
        let now = Instant::now();
        if self.levels.iter().any(|level| level.pulls.is_silent(now)) {
            tracing::warn!(queue = self.queue.name(), "the server went silent; pulling anew");
            self.recover_at = Some(now);
            return;
        }
        // Where messages expire, the head of the queue is always here, so that its time is known.
        let head = if self.limits_head { HEADS } else { u64::from(self.watches_expiry) };
        let taken = |(priority, level): (u8, &Level)| level.pulls.outstanding() + self.backlog.len_of(priority);
        if self.consumers.is_empty()
            && !self.is_held_by_clients()
            && !self.backlog.has_first()
            && self.levels.iter().all(|level| level.again() == 0)
            && self.open().any(|level| taken(level) > head)
        {
            self.rest().await;
            if head == 0 || self.recover_at.is_some() {
                return;
            }
        }
        // Together, the priorities may bring as much as a queue without them.
        let most = (MAX_PULL / self.open().count().max(1) as u64).max(1);
        let credit = self.consumers.room();
        let ahead = self.read_ahead();
        let mut room = credit.max(head);
        for priority in (0..=self.queue.levels.highest()).rev() {
            self.ask(priority, room.min(most), ahead, now).await;
            // Lower ones are not needed for what higher ones fill.
            room = room.saturating_sub(self.coming(priority));
        }
    }

    /// How many messages may be here, or asked for, that no consumer has credit for.
    fn read_ahead(&self) -> u64 {
        // What is taken of a lower priority does not wait for a higher one.
        if self.has_priorities() || self.consumers.is_empty() {
            return 0;
        }
        (READ_AHEAD_BYTES / self.typical_bytes.max(1)).min(READ_AHEAD)
    }

    /// Asks the server for messages of one priority, for as many as there is room for and `ahead` more.
    async fn ask(&mut self, priority: u8, room: u64, ahead: u64, now: Instant) {
        let level = &self.levels[usize::from(priority)];
        let outstanding = level.pulls.outstanding();
        let room = (room + level.again()).min(MAX_PULL);
        let wanted = (room + ahead).saturating_sub(outstanding + self.backlog.len_of(priority));
        // Many small grants make one request: the next one is sent when the last is half used up, or what is ahead is.
        if !level.is_open || wanted <= ahead / 2 || wanted < outstanding {
            return;
        }
        if self.subscriber.is_none() && !self.open_inbox().await {
            return;
        }
        let level = &mut self.levels[usize::from(priority)];
        let (number, body) = level.pulls.ask(wanted, now);
        let reply = Subject::from(format!("{}.{priority}.{number}", self.inbox));
        let client = self.queue.bridge.client();
        let _ = client.publish_with_reply(level.next_subject.clone(), reply, body).await;
    }

    pub(super) async fn open_inbox(&mut self) -> bool {
        let client = self.queue.bridge.client();
        self.inbox = client.new_inbox();
        self.levels.iter_mut().for_each(|level| level.pulls.clear());
        match client.subscribe(format!("{}.*.*", self.inbox)).await {
            Ok(subscriber) => {
                self.subscriber = Some(subscriber);
                true
            }
            Err(error) => {
                tracing::warn!(queue = self.queue.name(), %error, "cannot subscribe");
                self.recover_at = Some(Instant::now() + RETRY);
                false
            }
        }
    }

    pub(super) async fn close_inbox(&mut self) {
        if let Some(mut subscriber) = self.subscriber.take() {
            let _ = subscriber.unsubscribe().await;
        }
        self.levels.iter_mut().for_each(|level| level.pulls.clear());
    }

    /// Nobody consumes or holds anything any more: open pulls are withdrawn, and what they brought or may still bring is
    /// the server's again.
    ///
    /// JetStream has no call that withdraws a pull. Pulls that nobody listens to would swallow redeliveries and put
    /// them out of order, so the consumer is made anew, which drops them.
    pub(super) async fn rest(&mut self) {
        self.close_inbox().await;
        self.take_back().await;
    }

    /// Makes everything ready again that no client holds, in the queue's order.
    pub(super) async fn take_back(&mut self) {
        for sequence in self.backlog.take() {
            if let Some(held) = self.held.remove(&sequence)
                && !held.redelivered
                && self.unseen.len() < MAX_UNSEEN
            {
                self.unseen.insert(sequence);
            }
        }
        self.levels.iter_mut().for_each(|level| level.stale = 0);
        for held in self.held.values_mut() {
            held.is_stale = true;
            self.levels[usize::from(held.priority)].stale += 1;
        }
        self.levels.iter_mut().for_each(|level| level.pulls.clear());
        self.sync().await;
        for priority in 0..=self.queue.levels.highest() {
            let level = &mut self.levels[usize::from(priority)];
            if !level.is_open {
                continue;
            }
            level.received = 0;
            let handed = level.highest;
            match self.queue.recreate_consumer(priority, handed).await {
                Ok(info) => level.left = info["num_pending"].as_u64(),
                Err(error) => {
                    // The stream of a queue that is being deleted goes first; one that is gone for good is told of in
                    // `recover_from`.
                    if !error.not_found() {
                        tracing::warn!(queue = self.queue.name(), %error, "cannot make messages ready again yet");
                    }
                    level.left = None;
                    self.recover_at = Some(Instant::now() + RETRY);
                    return;
                }
            }
        }
    }

    /// Brings the server's view in line with ours: at the start, after a reconnect, and when pulls got lost.
    pub(super) async fn recover(&mut self) {
        self.recover_at = None;
        if self.fresh {
            match self.find_levels().await {
                Ok(unsettled) => {
                    self.fresh = false;
                    if !unsettled {
                        return;
                    }
                }
                Err(error) => return self.recover_from(error).await,
            }
        }
        self.close_inbox().await;
        self.get_inbox = None;
        self.take_back().await;
        if self.recover_at.is_some()
            && let Err(error) = self.queue.consumer_info(0).await
        {
            self.recover_from(error).await;
        }
    }

    pub(super) async fn recover_from(&mut self, error: ApiError) {
        self.recover_at = Some(Instant::now() + RETRY);
        if !error.not_found() || self.queue.is_going() {
            return;
        }
        match self.queue.stream_info().await {
            Err(error) if error.not_found() => {}
            // Its consumer alone is gone; what was settled and seen of the messages is true still.
            _ => {
                let made = match self.fresh {
                    true => self.queue.ensure_consumer().await,
                    false => self.queue.recreate_consumer(0, self.levels[0].highest).await.map(drop),
                };
                if let Err(error) = made {
                    tracing::warn!(queue = self.queue.name(), %error, "cannot make a queue's consumer again yet");
                }
                return;
            }
        }
        if !self.queue.is_in_memory() {
            tracing::error!(queue = self.queue.name(), "the stream of a queue is gone; its consumers are cancelled");
            self.cancel_all();
            self.stopped = true;
            return;
        }
        // A transient queue does not survive its server; it goes on empty, as after a restart of RabbitMQ.
        if let Err(error) = self.queue.ensure().await {
            tracing::warn!(queue = self.queue.name(), %error, "cannot make a queue's stream again yet");
            return;
        }
        // A stream that is made while its queue is deleted would stay for ever, and keep the queue's name from others.
        if self.queue.is_going()
            && let Err(error) = self.queue.delete_stream().await
        {
            tracing::warn!(queue = self.queue.name(), %error, "the stream of a deleted queue cannot be deleted");
        }
        self.held.clear();
        drop(self.backlog.take());
        self.levels.iter_mut().for_each(Level::clear);
        self.unseen.clear();
        self.returns.clear();
        self.dying.clear();
        if let Some(mut ready) = self.queue.ready() {
            ready.forget_from(0);
        }
        self.newest = (0, 0);
        self.acked = Sequences::default();
    }

    pub(super) async fn keep_alive(&mut self) {
        for held in self.held.values() {
            tell(self.queue.bridge.client(), held.reply.clone(), b"+WPI").await;
        }
    }
}

pub(super) async fn tell(client: &async_nats::Client, reply: Subject, payload: &'static [u8]) {
    // It fails only when the client was closed; then nothing can be told to anybody.
    let _ = client.publish(reply, Bytes::from_static(payload)).await;
}

/// Waits for a message and takes what else is there. False when the subscription has ended.
pub(super) async fn next_messages(subscriber: &mut Option<Subscriber>, messages: &mut Vec<NatsMessage>) -> bool {
    let Some(subscriber) = subscriber else { return std::future::pending().await };
    let Some(first) = subscriber.next().await else { return false };
    messages.push(first);
    while messages.len() < BATCH {
        match subscriber.next().now_or_never() {
            Some(Some(message)) => messages.push(message),
            Some(None) => return false,
            None => break,
        }
    }
    true
}
