//! The actor of one queue: it pulls messages with exactly the credit that its consumers have, hands them out in turn,
//! keeps alive what clients hold, and settles.
//!
//! It assumes that no other gateway serves the same queue at the same time: what JetStream has delivered and this actor
//! does not hold is made ready again when it starts and after a reconnect.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amq_protocol::types::ShortString;
use async_nats::{HeaderMap, Message as NatsMessage, Subject, Subscriber};
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use serde_json::Value;
use smallvec::SmallVec;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::mpsc::error::{SendError, TrySendError};
use tokio::sync::{mpsc, oneshot};

use super::ack::{self, Metadata, Sequences};
use super::api::{self, ApiError};
use super::message;
use super::pull::{Pulls, Status};
use super::queue::{CONSUMER, Counts, Queue, gone};
use crate::backend::{ChannelId, Delivery, DeliveryId, Event, Got, Outcome};
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::properties;
use crate::model::queue::display;

/// What a link asks of a queue's actor.
#[derive(Debug)]
pub(crate) enum PumpCommand {
    /// Adds a consumer, with no credit yet.
    Consume { consumer: NewConsumer, answer: oneshot::Sender<Result<(), AmqpError>> },
    /// Settles deliveries, in the order given, and adds credit to consumers.
    Work { settled: Vec<(u64, Outcome)>, credit: Vec<(u64, u32)> },
    /// Removes a consumer.
    Cancel { consumer: u64, answer: oneshot::Sender<LastGone> },
    /// Requeues what a channel (or a whole link) holds and removes its consumers.
    Release { link: u64, channel: Option<ChannelId>, answer: oneshot::Sender<LastGone> },
    /// Takes one message.
    Get { link: u64, channel: ChannelId, base: u64, answer: oneshot::Sender<Result<Option<Got>, AmqpError>> },
    /// Counts.
    Counts { answer: oneshot::Sender<Result<Counts, AmqpError>> },
    /// Removes every ready message.
    Purge { answer: oneshot::Sender<Result<u64, AmqpError>> },
    /// The queue is gone: ends, and gives back who is to be told.
    Stop { answer: oneshot::Sender<Vec<Cancelled>> },
    /// Messages of this queue may expire while nobody consumes.
    WatchExpiry,
}

/// A consumer that ended with its queue.
#[derive(Debug)]
pub(crate) struct Cancelled {
    channel: ChannelId,
    tag: ShortString,
    events: mpsc::Sender<Event>,
}

impl Cancelled {
    /// Tells the consumer's link, without waiting for it.
    pub(crate) fn tell(self) {
        let event = Event::ConsumerCancelled { channel: self.channel, consumer_tag: self.tag };
        if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
            let events = self.events;
            tokio::spawn(async move { events.send(event).await });
        }
    }
}

/// Whether consumers went and none is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LastGone(pub(crate) bool);

/// A consumer to add.
#[derive(Debug)]
pub(crate) struct NewConsumer {
    /// Its number, unique in the process.
    pub(crate) id: u64,
    /// Its link.
    pub(crate) link: u64,
    /// Its channel.
    pub(crate) channel: ChannelId,
    /// Its tag.
    pub(crate) tag: ShortString,
    /// Whether it wants to be alone.
    pub(crate) exclusive: bool,
    /// The upper bits of its delivery ids; the lower ones are the stream sequence.
    pub(crate) base: u64,
    /// Where its deliveries go.
    pub(crate) events: mpsc::Sender<Event>,
}

#[derive(Debug)]
struct Consumer {
    new: NewConsumer,
    credit: u64,
    /// Events that the link had no room for yet; bounded by the credit that was given.
    waiting: VecDeque<Event>,
}

/// A message that was taken from the server and not settled.
#[derive(Debug)]
struct Held {
    reply: Subject,
    /// Who has it; nobody while it is in the backlog.
    by: Option<(u64, ChannelId)>,
    /// What its next delivery says.
    redelivered: bool,
    /// Whether the server has forgotten that we have it, and will bring it again.
    is_stale: bool,
    headers: Option<HeaderMap>,
    payload: Bytes,
    /// When it was stored and when it expires, in nanoseconds since 1970.
    stored_ns: u64,
    expires_ns: Option<u64>,
}

type Room = Pin<Box<dyn Future<Output = (u64, Result<OwnedPermit<Event>, SendError<()>>)> + Send>>;

const COMMANDS: usize = 1024;
const BATCH: usize = 256;
const MAX_PULL: u64 = 4096;
const MAX_UNSEEN: usize = 65_536;
const RETRY: Duration = Duration::from_millis(250);
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);
const GET_TIMEOUT: Duration = Duration::from_secs(4);
const GET_LINGER: Duration = Duration::from_millis(250);

/// How many of the lower bits of a delivery id are the stream sequence: enough for 17 million million messages in the
/// life of one queue. The upper ones name the link's attachment to the queue.
pub(crate) const SEQUENCE_BITS: u32 = 44;

const SEQUENCE_MASK: u64 = (1 << SEQUENCE_BITS) - 1;

struct Pump {
    queue: Arc<Queue>,
    commands: mpsc::Receiver<PumpCommand>,
    consumers: Vec<Consumer>,
    next: usize,
    room: FuturesUnordered<Room>,

    held: BTreeMap<u64, Held>,
    /// Those of the held that nobody has: next to be handed out, in the queue's order. A requeued message comes here, at
    /// its place, and not back to the server: that would lose its place.
    backlog: BTreeSet<u64>,
    /// How many of the held are stale.
    stale: usize,
    /// Acknowledged while stale: the server will bring them again, to be acknowledged again.
    owed: BTreeSet<u64>,
    /// Given back to the server although no client had seen them: they are not "redelivered" when they come again.
    unseen: BTreeSet<u64>,
    /// Settled for good: when a server that crashed brings one of them again, it is settled again and not handed out.
    acked: Sequences,
    /// The highest sequence that a client was handed.
    highest: u64,
    /// Sequence and time of the newest message that came.
    newest: (u64, u64),
    /// The reply subject of the last delivery, when something was settled since the server was last waited for.
    unsynced: Option<Subject>,
    last_reply: Option<Subject>,

    inbox: String,
    subscriber: Option<Subscriber>,
    pulls: Pulls,
    get_inbox: Option<(Subject, Subscriber)>,
    next_subject: Subject,
    /// When to make ready what the server thinks is out; at once at the start and after a reconnect.
    recover_at: Option<Instant>,
    fresh: bool,
    watches_expiry: bool,
    stopped: bool,
}

/// Starts the actor of a queue. It ends when it is told to stop, or when its queue's handles are gone.
pub(crate) fn start(queue: Arc<Queue>) -> mpsc::Sender<PumpCommand> {
    let (sender, commands) = mpsc::channel(COMMANDS);
    let next_subject = Subject::from(format!("$JS.API.CONSUMER.MSG.NEXT.{}.{CONSUMER}", queue.stream));
    let pump = Pump {
        watches_expiry: queue.definition.settings.message_ttl_ms.is_some(),
        queue,
        commands,
        consumers: Vec::new(),
        next: 0,
        room: FuturesUnordered::new(),
        held: BTreeMap::new(),
        backlog: BTreeSet::new(),
        stale: 0,
        owed: BTreeSet::new(),
        unseen: BTreeSet::new(),
        acked: Sequences::default(),
        highest: 0,
        newest: (0, 0),
        unsynced: None,
        last_reply: None,
        inbox: String::new(),
        subscriber: None,
        pulls: Pulls::default(),
        get_inbox: None,
        next_subject,
        recover_at: Some(Instant::now()),
        fresh: true,
        stopped: false,
    };
    tokio::spawn(pump.run());
    sender
}

impl Pump {
    async fn run(mut self) {
        let mut connection = self.queue.bridge.connection();
        let mut connects = connection.borrow_and_update().connects;
        let mut alive = tokio::time::interval(self.queue.config.ack_wait / 3);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        let mut messages = Vec::with_capacity(BATCH);
        while !self.stopped {
            let recover_at = self.recover_at;
            let expires_at = self.next_expiry();
            tokio::select! {
                received = self.commands.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    for command in batch.drain(..) {
                        self.handle(command).await;
                    }
                }
                open = next_messages(&mut self.subscriber, &mut messages) => {
                    for message in messages.drain(..) {
                        self.receive(message).await;
                    }
                    if !open {
                        self.subscriber = None;
                        self.recover_at = Some(Instant::now());
                    }
                }
                Some((consumer, permit)) = self.room.next(), if !self.room.is_empty() => self.flush(consumer, permit),
                changed = connection.changed() => {
                    let now = *connection.borrow_and_update();
                    if changed.is_err() || now.closed {
                        self.cancel_all();
                        return;
                    }
                    if now.connects > connects {
                        connects = now.connects;
                        self.recover_at = Some(Instant::now());
                    }
                }
                () = sleep_until(expires_at) => {}
                () = sleep_until(recover_at) => self.recover().await,
                _ = alive.tick() => self.keep_alive().await,
            }
            self.serve().await;
        }
    }

    async fn handle(&mut self, command: PumpCommand) {
        // An answer that nobody waits for any more belongs to a link that has gone; its release follows.
        match command {
            PumpCommand::Consume { consumer, answer } => {
                let _ = answer.send(self.consume(consumer));
            }
            PumpCommand::Work { settled, credit } => {
                for (sequence, outcome) in settled {
                    self.settle(sequence, outcome).await;
                }
                for (id, amount) in credit {
                    if let Some(consumer) = self.consumers.iter_mut().find(|consumer| consumer.new.id == id) {
                        consumer.credit = consumer.credit.saturating_add(u64::from(amount));
                    }
                }
            }
            PumpCommand::Cancel { consumer, answer } => {
                let last = self.remove_consumers(|new| new.id == consumer);
                let _ = answer.send(last);
            }
            PumpCommand::Release { link, channel, answer } => {
                let last = self.release(link, channel);
                let _ = answer.send(last);
            }
            PumpCommand::Get { link, channel, base, answer } => {
                let got = self.get(link, channel, base).await;
                let sequence = match &got {
                    Ok(Some(got)) => Some(got.delivery.id.0 & SEQUENCE_MASK),
                    _ => None,
                };
                if answer.send(got).is_err()
                    && let Some(sequence) = sequence
                {
                    self.settle(sequence, Outcome::Requeue).await;
                }
            }
            PumpCommand::Counts { answer } => {
                let _ = answer.send(self.counts().await);
            }
            PumpCommand::Purge { answer } => {
                let _ = answer.send(self.purge().await);
            }
            PumpCommand::Stop { answer } => {
                self.stopped = true;
                let cancelled = self.end_consumers();
                if let Err(cancelled) = answer.send(cancelled) {
                    cancelled.into_iter().for_each(Cancelled::tell);
                }
            }
            PumpCommand::WatchExpiry => self.watches_expiry = true,
        }
    }

    fn consume(&mut self, new: NewConsumer) -> Result<(), AmqpError> {
        let taken = self.consumers.iter().any(|consumer| consumer.new.exclusive);
        if taken || (new.exclusive && !self.consumers.is_empty()) {
            return Err(AmqpError::new(
                ReplyCode::AccessRefused,
                format!("{} in exclusive use", display(&self.queue.vhost, self.queue.name())),
            ));
        }
        self.consumers.push(Consumer { new, credit: 0, waiting: VecDeque::new() });
        self.queue.set_consumers(self.consumers.len());
        Ok(())
    }

    /// Ends one delivery.
    async fn settle(&mut self, sequence: u64, outcome: Outcome) {
        if outcome == Outcome::Requeue {
            self.put_back(sequence, true);
            return;
        }
        let Some(held) = self.held.remove(&sequence) else { return };
        self.backlog.remove(&sequence);
        if held.is_stale {
            self.stale -= 1;
            self.owed.insert(sequence);
        }
        self.acked.insert(sequence);
        self.unsynced = self.last_reply.clone();
        let payload = if outcome == Outcome::Ack { &b"+ACK"[..] } else { &b"+TERM"[..] };
        tell(self.queue.bridge.client(), held.reply, payload).await;
    }

    /// Puts a message back to its place in the queue.
    fn put_back(&mut self, sequence: u64, was_seen: bool) {
        if let Some(held) = self.held.get_mut(&sequence) {
            held.by = None;
            held.redelivered |= was_seen;
            self.backlog.insert(sequence);
        }
    }

    /// Whether a client holds anything.
    fn is_held_by_clients(&self) -> bool {
        self.held.len() > self.backlog.len()
    }

    /// Waits until the server has taken in what was settled: it answers in order.
    async fn sync(&mut self) {
        let Some(reply) = self.unsynced.take() else { return };
        let request = async_nats::Request::new().payload(Bytes::from_static(b"+WPI")).timeout(Some(SYNC_TIMEOUT));
        // Without an answer the settlements may be lost; what comes again is settled again.
        let _ = self.queue.bridge.client().send_request(reply, request).await;
    }

    /// Takes in one message of the inbox.
    async fn receive(&mut self, message: NatsMessage) {
        let now = Instant::now();
        let Some(metadata) = message.reply.as_deref().and_then(ack::read) else {
            if self.pulls.status(&message, now) == Status::Lost {
                self.recover_at = Some(now + RETRY);
            }
            return;
        };
        self.pulls.delivered(now);
        if self.accept(metadata, message).await.is_some() {
            self.drop_expired().await;
            self.hand_out();
        }
    }

    /// Takes a delivery of the server into the backlog; `None` for one that is not to be handed out.
    async fn accept(&mut self, metadata: Metadata, message: NatsMessage) -> Option<u64> {
        let Metadata { delivered, sequence, stored_ns, .. } = metadata;
        let reply = message.reply?;
        if sequence <= self.newest.0 && stored_ns > self.newest.1 {
            // The server lost the end of its log and counts again from there: these are new messages.
            self.acked.forget_from(sequence);
            self.highest = self.highest.min(sequence - 1);
            self.newest = (sequence, stored_ns);
        } else if sequence > self.newest.0 {
            self.newest = (sequence, stored_ns);
        }
        self.last_reply = Some(reply.clone());
        if self.acked.contains(sequence) {
            self.owed.remove(&sequence);
            tell(self.queue.bridge.client(), reply, b"+ACK").await;
            return None;
        }
        if let Some(held) = self.held.get_mut(&sequence) {
            held.reply = reply;
            self.stale -= usize::from(std::mem::take(&mut held.is_stale));
            return None;
        }
        let redelivered = !self.unseen.remove(&sequence) && (delivered > 1 || sequence <= self.highest);
        let (headers, payload) = (message.headers, message.payload);
        let expires_ns = self.expiry(headers.as_ref(), stored_ns);
        let held = Held { reply, by: None, redelivered, is_stale: false, headers, payload, stored_ns, expires_ns };
        self.held.insert(sequence, held);
        self.backlog.insert(sequence);
        Some(sequence)
    }

    fn expiry(&self, headers: Option<&HeaderMap>, stored_ns: u64) -> Option<u64> {
        let own = headers.and_then(|headers| headers.get(properties::EXPIRATION)).and_then(|v| v.as_str().parse().ok());
        let ms: u64 = own.into_iter().chain(self.queue.definition.settings.message_ttl_ms).min()?;
        Some(stored_ns.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Hands out the backlog to consumers that have credit, in turn.
    fn hand_out(&mut self) {
        while let Some(&sequence) = self.backlog.first() {
            let count = self.consumers.len();
            let chosen = (0..count)
                .map(|offset| (self.next + offset) % count)
                .find(|index| self.consumers[*index].credit > 0 && self.consumers[*index].waiting.is_empty());
            let Some(chosen) = chosen else { return };
            self.next = chosen + 1;
            let new = &self.consumers[chosen].new;
            let (link, channel, base, tag) = (new.link, new.channel, new.base, new.tag.clone());
            let Some(delivery) = self.hand(sequence, link, channel, base) else { return };
            let event = Event::Delivery { channel, consumer_tag: tag, delivery: Box::new(delivery) };
            let consumer = &mut self.consumers[chosen];
            consumer.credit -= 1;
            match consumer.new.events.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    consumer.waiting.push_back(event);
                    self.room.push(room(&consumer.new));
                }
                // The link has ended; its release is on its way and takes the delivery back.
                Err(TrySendError::Closed(_)) => {}
            }
        }
    }

    /// Takes a message out of the backlog, for a channel.
    fn hand(&mut self, sequence: u64, link: u64, channel: ChannelId, base: u64) -> Option<Delivery> {
        self.backlog.remove(&sequence);
        let held = self.held.get_mut(&sequence)?;
        held.by = Some((link, channel));
        self.highest = self.highest.max(sequence);
        Some(Delivery {
            id: DeliveryId(base | (sequence & SEQUENCE_MASK)),
            redelivered: held.redelivered,
            message: message::message(held.headers.as_ref(), held.payload.clone(), self.queue.name()),
        })
    }

    /// A link has room again.
    fn flush(&mut self, id: u64, permit: Result<OwnedPermit<Event>, SendError<()>>) {
        let Some(consumer) = self.consumers.iter_mut().find(|consumer| consumer.new.id == id) else { return };
        let (Ok(permit), Some(event)) = (permit, consumer.waiting.pop_front()) else { return };
        permit.send(event);
        while let Some(event) = consumer.waiting.pop_front() {
            if let Err(TrySendError::Full(event)) = consumer.new.events.try_send(event) {
                consumer.waiting.push_front(event);
                self.room.push(room(&consumer.new));
                return;
            }
        }
        self.hand_out();
    }

    /// Hands out what can be handed out and asks the server for as much as there is credit for.
    async fn serve(&mut self) {
        if self.stopped || self.recover_at.is_some() {
            return;
        }
        self.drop_expired().await;
        self.hand_out();
        let now = Instant::now();
        if self.pulls.is_silent(now) {
            tracing::warn!(queue = self.queue.name(), "the server went silent; pulling anew");
            self.recover_at = Some(now);
            return;
        }
        let owed = (self.stale + self.owed.len()) as u64;
        // Where messages expire, the head of the queue is always here, so that its time is known.
        let head = u64::from(self.watches_expiry);
        let taken = self.pulls.outstanding() + self.backlog.len() as u64;
        if self.consumers.is_empty() && owed == 0 && !self.is_held_by_clients() && taken > head {
            self.rest().await;
            return;
        }
        let credit: u64 = self.consumers.iter().filter(|c| c.waiting.is_empty()).map(|c| c.credit).sum();
        let room = (credit.max(head) + owed).min(MAX_PULL);
        let wanted = room.saturating_sub(self.pulls.outstanding() + self.backlog.len() as u64);
        // Many small grants make one request: the next one is sent when the last is half used up.
        if wanted == 0 || (self.pulls.outstanding() > 0 && wanted < self.pulls.outstanding()) {
            return;
        }
        if self.subscriber.is_none() && !self.open_inbox().await {
            return;
        }
        let (number, body) = self.pulls.ask(wanted, now);
        let reply = Subject::from(format!("{}.{number}", self.inbox));
        let client = self.queue.bridge.client();
        let _ = client.publish_with_reply(self.next_subject.clone(), reply, body).await;
    }

    async fn open_inbox(&mut self) -> bool {
        let client = self.queue.bridge.client();
        self.inbox = client.new_inbox();
        self.pulls.clear();
        match client.subscribe(format!("{}.*", self.inbox)).await {
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

    async fn close_inbox(&mut self) {
        if let Some(mut subscriber) = self.subscriber.take() {
            let _ = subscriber.unsubscribe().await;
        }
        self.pulls.clear();
    }

    /// Removes consumers; what they were not sent yet goes back.
    fn remove_consumers(&mut self, gone: impl Fn(&NewConsumer) -> bool) -> LastGone {
        let mut unsent: SmallVec<[u64; 8]> = SmallVec::new();
        let before = self.consumers.len();
        self.consumers.retain(|consumer| {
            let goes = gone(&consumer.new);
            if goes {
                unsent.extend(consumer.waiting.iter().filter_map(|event| match event {
                    Event::Delivery { delivery, .. } => Some(delivery.id.0 & SEQUENCE_MASK),
                    _ => None,
                }));
            }
            !goes
        });
        unsent.into_iter().for_each(|sequence| self.put_back(sequence, false));
        self.queue.set_consumers(self.consumers.len());
        LastGone(before > self.consumers.len() && self.consumers.is_empty())
    }

    /// Requeues what a channel or link holds, and removes its consumers.
    fn release(&mut self, link: u64, channel: Option<ChannelId>) -> LastGone {
        let is_meant = |other: u64, c: ChannelId| other == link && channel.is_none_or(|channel| channel == c);
        let last = self.remove_consumers(|new| is_meant(new.link, new.channel));
        for (sequence, held) in &mut self.held {
            if held.by.is_some_and(|(link, channel)| is_meant(link, channel)) {
                held.by = None;
                held.redelivered = true;
                self.backlog.insert(*sequence);
            }
        }
        last
    }

    /// Nobody consumes or holds anything any more: open pulls are withdrawn, and what they brought or may still bring is
    /// the server's again.
    ///
    /// JetStream has no call that withdraws a pull. Pulls that nobody listens to would swallow redeliveries and put
    /// them out of order, so the consumer is made anew, which drops them.
    async fn rest(&mut self) {
        self.close_inbox().await;
        self.take_back().await;
    }

    /// Makes everything ready again that no client holds, in the queue's order.
    async fn take_back(&mut self) {
        for sequence in std::mem::take(&mut self.backlog) {
            if let Some(held) = self.held.remove(&sequence)
                && !held.redelivered
                && self.unseen.len() < MAX_UNSEEN
            {
                self.unseen.insert(sequence);
            }
        }
        self.held.values_mut().for_each(|held| held.is_stale = true);
        self.stale = self.held.len();
        self.pulls.clear();
        self.sync().await;
        if let Err(error) = self.queue.recreate_consumer().await {
            tracing::warn!(queue = self.queue.name(), %error, "cannot make messages ready again yet");
            self.recover_at = Some(Instant::now() + RETRY);
        }
    }

    /// Brings the server's view in line with ours: at the start, after a reconnect, and when pulls got lost.
    async fn recover(&mut self) {
        self.recover_at = None;
        if self.fresh {
            match self.queue.consumer_info().await {
                Ok(info) => {
                    self.fresh = false;
                    self.highest = info["delivered"]["stream_seq"].as_u64().unwrap_or_default();
                    if info["num_ack_pending"].as_u64() == Some(0) {
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
            && let Err(error) = self.queue.consumer_info().await
        {
            self.recover_from(error).await;
        }
    }

    async fn recover_from(&mut self, error: ApiError) {
        self.recover_at = Some(Instant::now() + RETRY);
        if !error.not_found() || self.queue.is_deleted() {
            return;
        }
        if !self.queue.is_in_memory() {
            match self.queue.stream_info().await {
                Err(error) if error.not_found() => {
                    tracing::error!(
                        queue = self.queue.name(),
                        "the stream of a queue is gone; its consumers are cancelled"
                    );
                    self.cancel_all();
                    self.stopped = true;
                    return;
                }
                _ => {}
            }
        }
        // A transient queue does not survive its server; it goes on empty, as after a restart of RabbitMQ.
        if let Err(error) = self.queue.ensure().await {
            tracing::warn!(queue = self.queue.name(), %error, "cannot make a queue's stream again yet");
            return;
        }
        self.held.clear();
        self.backlog.clear();
        self.stale = 0;
        self.owed.clear();
        self.unseen.clear();
        self.newest = (0, 0);
        self.acked = Sequences::default();
        self.highest = 0;
    }

    async fn keep_alive(&mut self) {
        for held in self.held.values() {
            tell(self.queue.bridge.client(), held.reply.clone(), b"+WPI").await;
        }
    }

    fn cancel_all(&mut self) {
        self.end_consumers().into_iter().for_each(Cancelled::tell);
    }

    fn end_consumers(&mut self) -> Vec<Cancelled> {
        self.queue.set_consumers(0);
        let cancelled = |consumer: Consumer| {
            let NewConsumer { channel, tag, events, .. } = consumer.new;
            Cancelled { channel, tag, events }
        };
        self.consumers.drain(..).map(cancelled).collect()
    }

    /// Drops messages at the head of the queue whose time has come, as RabbitMQ does: one that has not reached the head
    /// stays.
    async fn drop_expired(&mut self) {
        while let Some(sequence) = self.backlog.first().copied() {
            let Some(at) = self.held.get(&sequence).and_then(|held| held.expires_ns) else { return };
            if now_ns() < at {
                return;
            }
            // A time to live of 0 still reaches a consumer that is ready when the message comes.
            let held = &self.held[&sequence];
            let is_at_once = held.stored_ns == at && !held.redelivered;
            if is_at_once && self.consumers.iter().any(|consumer| consumer.credit > 0) {
                return;
            }
            self.settle(sequence, Outcome::Ack).await;
        }
    }

    /// When the head of the queue expires.
    fn next_expiry(&self) -> Option<Instant> {
        let at = self.held.get(self.backlog.first()?)?.expires_ns?;
        Some(Instant::now() + Duration::from_nanos(at.saturating_sub(now_ns())))
    }

    async fn get(&mut self, link: u64, channel: ChannelId, base: u64) -> Result<Option<Got>, AmqpError> {
        let until = Instant::now() + GET_TIMEOUT;
        let mut linger = false;
        let mut pending = 0;
        loop {
            self.drop_expired().await;
            if !self.backlog.is_empty() {
                break;
            }
            if Instant::now() > until {
                return Err(AmqpError::new(ReplyCode::InternalError, "JetStream does not answer"));
            }
            if self.recover_at.is_some() {
                self.recover().await;
                if self.recover_at.is_some() {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
            let Some(message) = self.pull_some(1, linger).await?.pop() else { continue };
            if let Some(metadata) = message.reply.as_deref().and_then(ack::read) {
                pending = metadata.pending;
                self.accept(metadata, message).await;
                continue;
            }
            if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
                self.recover_at = Some(Instant::now());
                tokio::time::sleep(RETRY).await;
                continue;
            }
            // The server answers "empty" from counters that trail a confirm by some microseconds; or an open pull of a
            // consumer that went has got the message.
            let stored = self.queue.last_stored();
            if linger || stored <= self.newest.0.max(self.queue.drained()) {
                self.queue.set_drained(stored);
                return Ok(None);
            }
            if self.pulls.outstanding() == 0 {
                linger = true;
                continue;
            }
            let mut messages = Vec::new();
            match tokio::time::timeout(GET_LINGER, next_messages(&mut self.subscriber, &mut messages)).await {
                Ok(_) => {
                    for message in messages {
                        self.receive(message).await;
                    }
                }
                Err(_) => linger = true,
            }
        }
        let Some(&sequence) = self.backlog.first() else { return Ok(None) };
        let Some(delivery) = self.hand(sequence, link, channel, base) else { return Ok(None) };
        if pending == 0 && !self.backlog.is_empty() {
            pending = self.unsent().await?;
        }
        let left = pending + self.backlog.len() as u64;
        Ok(Some(Got { delivery, message_count: u32::try_from(left).unwrap_or(u32::MAX) }))
    }

    /// Asks for up to `batch` messages and waits until they are there or the server says that there are no more; that
    /// message comes last. Nothing when no answer came in time.
    async fn pull_some(&mut self, batch: usize, linger: bool) -> Result<Vec<NatsMessage>, AmqpError> {
        let client = self.queue.bridge.client().clone();
        let (inbox, subscriber) = match &mut self.get_inbox {
            Some(open) => open,
            none => {
                let inbox = Subject::from(client.new_inbox());
                let subscriber = client.subscribe(inbox.clone()).await.map_err(|_| gone())?;
                none.insert((inbox, subscriber))
            }
        };
        let body = match linger {
            true => format!("{{\"batch\":{batch},\"expires\":{}}}", GET_LINGER.as_nanos()),
            // Without `expires` an empty queue answers at once. A request would be parked for ever if
            // `max_ack_pending` could be reached, and it is unlimited here.
            false => format!("{{\"batch\":{batch},\"no_wait\":true}}"),
        };
        let _ = client.publish_with_reply(self.next_subject.clone(), inbox.clone(), body.into()).await;
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
    async fn unsent(&mut self) -> Result<u64, AmqpError> {
        let (pending, _) = self.queue.pending(self.newest.0).await?;
        Ok(pending.saturating_sub((self.stale + self.owed.len()) as u64))
    }

    async fn counts(&mut self) -> Result<Counts, AmqpError> {
        if self.fresh {
            self.recover().await;
        }
        Ok(Counts {
            ready: self.unsent().await? + self.backlog.len() as u64,
            consumers: u32::try_from(self.consumers.len()).unwrap_or(u32::MAX),
        })
    }

    async fn purge(&mut self) -> Result<u64, AmqpError> {
        if self.fresh || self.recover_at.is_some() {
            self.recover().await;
        }
        if !self.is_held_by_clients() {
            self.sync().await;
            let stored = self.queue.last_stored();
            let call = format!("STREAM.PURGE.{}", self.queue.stream);
            let answer = api::call(&self.queue.bridge, &call, &Value::Null).await?;
            self.held.clear();
            self.backlog.clear();
            self.stale = 0;
            let again = std::mem::take(&mut self.owed).len() as u64;
            self.queue.set_drained(stored);
            return Ok(answer["purged"].as_u64().unwrap_or_default().saturating_sub(again));
        }
        // A purge of the stream would take what clients hold as well, so the ready messages are acknowledged instead.
        let mut purged = 0;
        loop {
            for sequence in std::mem::take(&mut self.backlog) {
                self.settle(sequence, Outcome::Ack).await;
                purged += 1;
            }
            let messages = self.pull_some(BATCH, false).await?;
            if messages.is_empty() {
                return Err(AmqpError::new(ReplyCode::InternalError, "JetStream does not answer"));
            }
            let mut is_end = false;
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

fn room(consumer: &NewConsumer) -> Room {
    let (id, events) = (consumer.id, consumer.events.clone());
    Box::pin(async move { (id, events.reserve_owned().await) })
}

async fn tell(client: &async_nats::Client, reply: Subject, payload: &'static [u8]) {
    // It fails only when the client was closed; then nothing can be told to anybody.
    let _ = client.publish(reply, Bytes::from_static(payload)).await;
}

/// Waits for a message and takes what else is there. False when the subscription has ended.
async fn next_messages(subscriber: &mut Option<Subscriber>, messages: &mut Vec<NatsMessage>) -> bool {
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

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
