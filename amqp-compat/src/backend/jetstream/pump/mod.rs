//! The actor of one queue: it pulls messages with exactly the credit that its consumers have, hands them out in turn,
//! keeps alive what clients hold, and settles.
//!
//! It assumes that no other gateway serves the same queue at the same time: what JetStream has delivered and this actor
//! does not hold is made ready again when it starts and after a reconnect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use async_nats::{HeaderMap, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};

use super::ack::Sequences;
use super::memory::Charge;
use super::queue::{Counts, Queue};
use crate::backend::{ChannelId, Got, Outcome};
use crate::error::AmqpError;
use crate::model::dead_letter::Reason;
use crate::model::queue::{Overflow, QueueKind};

mod backlog;
mod consumers;
mod contents;
mod dead_letter;
mod delivering;
mod level;
mod limits;
mod remembered;
mod server;
mod settling;

use backlog::Backlog;
use consumers::{Consumers, Succession};
use dead_letter::{Dying, next_confirms};
use delivering::Room;
use level::Level;
use remembered::remembered;
use server::{UNKNOWN_BYTES, next_messages};
use settling::Settling;

pub(crate) use consumers::NewConsumer;
pub(crate) use delivering::{Cancelled, LastGone};

/// What a link asks of a queue's actor.
#[derive(Debug)]
pub(crate) enum PumpCommand {
    /// Adds a consumer, with no credit yet.
    Consume { consumer: NewConsumer, answer: oneshot::Sender<Result<(), AmqpError>> },
    /// Settles deliveries, in the order given, and adds credit to consumers, who have it since `at_ns`. What comes back comes
    /// first, after what was ready was handed out for the credit of earlier commands.
    Work { settled: Vec<(u64, Outcome)>, credit: Vec<(u64, u32)>, at_ns: u64 },
    /// Removes a consumer.
    Cancel { consumer: u64, answer: oneshot::Sender<LastGone> },
    /// Requeues what a channel (or a whole link) holds and removes its consumers.
    Release { link: u64, channel: Option<ChannelId>, answer: oneshot::Sender<LastGone> },
    /// Takes one message.
    Get { link: u64, channel: ChannelId, base: u64, answer: oneshot::Sender<Result<Option<Got>, AmqpError>> },
    /// Answers when everything before it was done.
    Sync { answer: oneshot::Sender<()> },
    /// Counts.
    Counts { answer: oneshot::Sender<Result<Counts, AmqpError>> },
    /// Removes every ready message.
    Purge { answer: oneshot::Sender<Result<u64, AmqpError>> },
    /// The queue is gone: ends, and gives back who is to be told.
    Stop { answer: oneshot::Sender<Vec<Cancelled>> },
    /// Messages of this queue may expire while nobody consumes.
    WatchExpiry,
    /// The queue may be longer than its limit.
    Trim,
    /// Other policies are in force.
    Apply { answer: oneshot::Sender<Result<(), AmqpError>> },
    /// Learns what is in a queue with a length limit.
    Learn { answer: oneshot::Sender<Result<(), AmqpError>> },
}

/// Who has a message: a consumer, or a channel that got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    link: u64,
    channel: ChannelId,
    consumer: Option<u64>,
}

/// A message that was taken from the server and not settled.
#[derive(Debug)]
struct Held {
    reply: Subject,
    /// Who has it; nobody while it is in the backlog.
    by: Option<Holder>,
    /// What its next delivery says.
    redelivered: bool,
    priority: u8,
    /// Whether the server has forgotten that we have it, and will bring it again.
    is_stale: bool,
    headers: Option<HeaderMap>,
    payload: Bytes,
    /// When it was stored and when it expires, in nanoseconds since 1970.
    stored_ns: u64,
    expires_ns: Option<u64>,
    /// Its share of the memory, in a queue that has no stream; given back with it.
    _charge: Option<Charge>,
}

const COMMANDS: usize = 1024;
const BATCH: usize = 256;

/// How many of the lower bits of a delivery id are the stream sequence: enough for 17 million million messages in the
/// life of one queue. The upper ones name the link's attachment to the queue.
pub(crate) const SEQUENCE_BITS: u32 = 44;

pub(crate) const SEQUENCE_MASK: u64 = (1 << SEQUENCE_BITS) - 1;

struct Pump {
    queue: Arc<Queue>,
    commands: mpsc::Receiver<PumpCommand>,
    consumers: Consumers,
    room: FuturesUnordered<Room>,

    held: BTreeMap<u64, Held>,
    /// Those of the held that nobody has.
    backlog: Backlog,
    /// By priority.
    levels: SmallVec<[Level; 1]>,
    /// Up to which sequence no confirm is waited for any more: what is there was stored past this gateway.
    certain: u64,
    /// When the server is asked about priorities that hold up lower ones.
    unsure_at: Option<Instant>,
    /// Given back to the server although no client had seen them: they are not "redelivered" when they come again.
    unseen: BTreeSet<u64>,
    /// Settled for good: when a server that crashed brings one of them again, it is settled again and not handed out.
    acked: Sequences,
    /// What the server has not been told yet of that.
    settling: Settling,
    /// Sequence and time of the newest message that came.
    newest: (u64, u64),
    /// About how large a message of this queue is, in bytes; rather too much than too little.
    typical_bytes: u64,

    inbox: String,
    subscriber: Option<Subscriber>,
    get_inbox: Option<(Subject, Subscriber)>,
    /// When to make ready what the server thinks is out; at once at the start and after a reconnect.
    recover_at: Option<Instant>,
    fresh: bool,
    watches_expiry: bool,
    /// Whether the head goes when the queue is too long.
    limits_head: bool,
    /// Whether the length is limited and it is not known yet what is there.
    learns: bool,
    /// Whether deliveries say how often the message came back: a quorum queue's do.
    counts_returns: bool,
    /// Since when a consumer has had credit for what comes, in nanoseconds since 1970.
    ready_since_ns: Option<u64>,
    /// Up to which sequence messages were stored when a consumer that had used up its credit got some: what it is for may still be
    /// with the server. 0 when nothing is awaited.
    awaits: u64,
    /// Up to which sequence messages are handed out now: all, but while something is about to come back.
    hands_to: u64,
    /// How often messages came back, of a queue that counts it.
    returns: BTreeMap<u64, u32>,
    dying: Dying,
    stopped: bool,
}

/// Starts the actor of a queue. It ends when it is told to stop, or when its queue's handles are gone.
pub(crate) fn start(queue: Arc<Queue>) -> mpsc::Sender<PumpCommand> {
    let (sender, commands) = mpsc::channel(COMMANDS);
    let settings = queue.settings();
    let succession = match (settings.single_active_consumer, settings.kind) {
        (false, _) => Succession::None,
        (true, QueueKind::Classic) => Succession::Priority,
        (true, QueueKind::Quorum | QueueKind::Stream) => Succession::Age,
    };
    let highest = queue.levels.highest();
    let has_stream = queue.memory.is_none();
    let pump = Pump {
        watches_expiry: settings.message_ttl_ms.is_some(),
        limits_head: settings.has_length_limit() && settings.overflow == Overflow::DropHead,
        learns: false,
        counts_returns: settings.kind == QueueKind::Quorum,
        ready_since_ns: None,
        awaits: 0,
        hands_to: u64::MAX,
        returns: BTreeMap::new(),
        dying: Dying::default(),
        levels: (0..=highest).map(|priority| Level::new(&queue, priority)).collect(),
        certain: 0,
        unsure_at: None,
        queue,
        commands,
        consumers: Consumers::new(succession),
        room: FuturesUnordered::new(),
        held: BTreeMap::new(),
        backlog: Backlog::new(highest),
        unseen: BTreeSet::new(),
        acked: Sequences::default(),
        settling: Settling::default(),
        newest: (0, 0),
        typical_bytes: UNKNOWN_BYTES,
        inbox: String::new(),
        subscriber: None,
        get_inbox: None,
        recover_at: has_stream.then(Instant::now),
        fresh: has_stream,
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
        let mut confirmed = Vec::new();
        let queue = Arc::clone(&self.queue);
        let has_stream = queue.memory.is_none();
        let config = queue.config.clone();
        let lease_lost = config.lease_lost();
        tokio::pin!(lease_lost);
        while !self.stopped {
            let recover_at = self.recover_at;
            let expires_at = self.next_expiry();
            let unsure_at = self.unsure_at;
            let dying_at = self.dying.due();
            let settle_at = self.settling.due();
            tokio::select! {
                // What is held stays as it is: the gateway that has the queue now gets it when its time is over.
                _ = &mut lease_lost => return,
                received = self.commands.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    for command in batch.drain(..) {
                        self.handle(command).await;
                    }
                }
                () = remembered(&queue) => self.take_remembered().await,
                open = next_messages(&mut self.subscriber, &mut messages) => {
                    for message in messages.drain(..) {
                        self.receive(message).await;
                    }
                    if !open {
                        self.subscriber = None;
                        self.recover_at = Some(Instant::now());
                    }
                }
                Some((consumer, permit)) = self.room.next(), if !self.room.is_empty() => self.flush(consumer, permit).await,
                changed = connection.changed() => {
                    let now = *connection.borrow_and_update();
                    if changed.is_err() || now.closed {
                        self.cancel_all();
                        return;
                    }
                    if now.connects > connects {
                        connects = now.connects;
                        self.recover_at = has_stream.then(Instant::now);
                    }
                }
                () = next_confirms(&mut self.dying, &mut confirmed) => self.dead_letters_confirmed(&mut confirmed).await,
                () = sleep_until(settle_at), if settle_at.is_some() => self.tell_settled().await,
                () = sleep_until(expires_at) => {}
                () = sleep_until(dying_at) => self.tick_dead_letters().await,
                () = sleep_until(unsure_at), if unsure_at.is_some() => self.look_again().await,
                () = self.queue.levels.wanted(), if self.has_priorities() => {
                    if let Err(error) = self.open_levels().await {
                        self.recover_from(error).await;
                    }
                }
                () = sleep_until(recover_at) => self.recover().await,
                _ = alive.tick(), if has_stream => {
                    self.keep_alive().await;
                    if self.learns && let Err(error) = self.apply().await {
                        tracing::warn!(queue = self.queue.name(), %error, "a queue's limit is not in force yet");
                    }
                }
            }
            // What was said before a message came holds for it: a consumer has become ready, or has gone.
            for _ in 0..BATCH {
                let Ok(command) = self.commands.try_recv() else { break };
                self.handle(command).await;
            }
            self.serve().await;
            if self.dying.has_work() {
                self.bury_condemned().await;
            }
        }
    }

    async fn handle(&mut self, command: PumpCommand) {
        self.take_remembered().await;
        if !matches!(command, PumpCommand::Work { .. }) {
            self.tell_settled().await;
        }
        // An answer that nobody waits for any more belongs to a link that has gone; its release follows.
        match command {
            PumpCommand::Consume { consumer, answer } => {
                let _ = answer.send(self.consume(consumer));
            }
            PumpCommand::Work { settled, credit, at_ns } => {
                let (back, ended): (Vec<_>, Vec<_>) =
                    settled.into_iter().partition(|(_, how)| *how == Outcome::Requeue);
                for back in self.by_consumer(back.into_iter().map(|(sequence, _)| sequence)) {
                    self.use_credit().await;
                    back.into_iter().for_each(|sequence| self.put_back(sequence, true));
                    self.trim_returned().await;
                }
                for (sequence, outcome) in ended {
                    self.settle(sequence, outcome).await;
                }
                let is_short = !self.backlog.is_empty() || !self.has_all_of_all();
                let was_ready = self.consumers.is_ready();
                if self.limits_head && !credit.is_empty() {
                    // What the limit takes from the head is not the consumers'.
                    self.trim_or_log().await;
                }
                for (id, amount) in credit {
                    self.consumers.credit(id, amount.into(), is_short);
                }
                if !was_ready && self.consumers.is_ready() && !self.has_all_of_all() {
                    let left: u64 = self.levels.iter().filter_map(|level| level.left).sum();
                    self.awaits = self.queue.levels.last_stored_of_all().max(self.newest.0 + left);
                }
                self.count_credit(Some(at_ns));
            }
            PumpCommand::Cancel { consumer, answer } => {
                let last = self.remove_consumers(|new| new.id == consumer);
                let _ = answer.send(last);
            }
            PumpCommand::Release { link, channel, answer } => {
                let last = self.release(link, channel);
                self.trim_returned().await;
                let _ = answer.send(last);
            }
            PumpCommand::Get { link, channel, base, answer } => {
                self.use_credit().await;
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
            PumpCommand::Sync { answer } => drop(answer.send(())),
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
            // The length is looked at after every turn.
            PumpCommand::Trim => self.queue.trimming(),
            PumpCommand::Apply { answer } => {
                let _ = answer.send(self.apply().await);
            }
            PumpCommand::Learn { answer } => {
                let _ = answer.send(self.learn().await);
            }
        }
    }

    /// Ends one delivery.
    async fn settle(&mut self, sequence: u64, outcome: Outcome) {
        if outcome == Outcome::Requeue {
            self.put_back(sequence, true);
            return;
        }
        if outcome == Outcome::Reject && self.has_dead_letter_exchange() {
            self.condemn(sequence, Reason::Rejected);
            return;
        }
        let Some(held) = self.held.remove(&sequence) else { return };
        self.backlog.remove(held.priority, sequence);
        self.count_out(sequence);
        self.returns.remove(&sequence);
        let level = self.level(held.priority);
        if held.is_stale {
            level.stale -= 1;
            level.owed.insert(sequence);
        }
        level.unsynced = level.last_reply.clone();
        self.acked.insert(sequence);
        if self.is_remembered() {
            return;
        }
        self.settling.add(held.reply, outcome == Outcome::Ack, Instant::now());
        if self.settling.is_full() {
            self.tell_settled().await;
        }
    }

    /// Puts a message back to its place in the queue.
    fn put_back(&mut self, sequence: u64, was_seen: bool) {
        if was_seen && self.count_return(sequence) {
            self.condemn(sequence, Reason::DeliveryLimit);
            return;
        }
        if let Some(held) = self.held.get_mut(&sequence) {
            held.by = None;
            held.redelivered |= was_seen;
            match was_seen && self.queue.settings().returns_first() {
                true => self.backlog.insert_first(held.priority, sequence),
                false => self.backlog.insert(held.priority, sequence),
            }
            self.count_in(sequence, false);
        }
    }

    /// Whether a client holds anything.
    fn is_held_by_clients(&self) -> bool {
        self.held.len() > self.backlog.len()
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
