//! What a store knows of its copies, and what it says to who keeps them. It does no I/O.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use amq_protocol::types::{AMQPValue, FieldTable, ShortString};
use amqp_compat::backend::{
    ChannelId, Command, Consume, DeliveryId, Event, Message, Outcome, Publish, PublishOutcome, QueueDeclare, Reply,
    Topology,
};
use amqp_compat::error::AmqpError;
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::{DEGRADE, Keep, name};
use crate::copies::held::Held;
use crate::copies::ledger::{Ledger, Place};
use crate::copies::tally::Tally;
use crate::copies::{UnderWay, backlog, lock};
use crate::dual::stamp;
use crate::fence::QueueName;
use crate::ownership::Side;

/// The most bytes that a standby queue holds; what is beyond is refused.
const MOST_BYTES: i64 = 1 << 30;
/// Queues of one vhost that have copies; RabbitMQ has 2 047 channels for a connection.
const MOST_QUEUES: usize = 2_000;
const PUBLISH: ChannelId = 1;
const TRY: Duration = Duration::from_secs(1);

pub(super) struct Store {
    vhost: Arc<str>,
    tally: Arc<Tally>,
    pub(super) outbox: VecDeque<Command>,
    queues: HashMap<Arc<str>, Queue>,
    /// The first has the channel after [`PUBLISH`].
    channels: Vec<Arc<str>>,
    seq: u64,
    flights: BTreeMap<u64, Flight>,
    returned: HashSet<u128>,
    attached: bool,
    /// Whether copies are given up at once.
    silent: bool,
    began: Instant,
    tried: Instant,
}

/// The copies of one queue.
struct Queue {
    name: QueueName,
    channel: ChannelId,
    stage: Stage,
    waiting: Vec<Keep>,
    ledger: Ledger,
    /// What came out of the store and is needed.
    window: HashMap<Place, Message>,
    settle: Vec<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Closed,
    Opening,
    Declaring,
    Consuming,
    Live,
    /// RabbitMQ does not let the sidecar have it.
    Refused,
}

/// Published and not confirmed.
struct Flight {
    queue: Arc<str>,
    since: Instant,
    what: What,
}

enum What {
    /// A new copy; nobody waits for one that was given up.
    Copy(u128, Option<Arc<UnderWay>>),
    /// A copy that goes back to the end.
    Turned(Place, Box<Message>),
}

impl Store {
    pub(super) fn new(vhost: Arc<str>, tally: Arc<Tally>) -> Self {
        let now = Instant::now();
        Self {
            vhost,
            tally,
            outbox: VecDeque::new(),
            queues: HashMap::new(),
            channels: Vec::new(),
            seq: 0,
            flights: BTreeMap::new(),
            returned: HashSet::new(),
            attached: false,
            silent: false,
            began: now,
            tried: now,
        }
    }

    /// The side that has the copies.
    pub(super) fn keeper(&self) -> Side {
        self.tally.owner.other()
    }

    fn queue(&mut self, queue: &Arc<str>) -> Option<&mut Queue> {
        if !self.queues.contains_key(queue) {
            if self.channels.len() >= MOST_QUEUES || name(queue).len() > 255 {
                return None;
            }
            let channel = PUBLISH + 1 + ChannelId::try_from(self.channels.len()).unwrap_or(0);
            self.channels.push(Arc::clone(queue));
            let mut new = Queue {
                name: QueueName { vhost: Arc::clone(&self.vhost), queue: Arc::clone(queue) },
                channel,
                stage: Stage::Closed,
                waiting: Vec::new(),
                ledger: Ledger::default(),
                window: HashMap::new(),
                settle: Vec::new(),
            };
            if self.attached {
                new.stage = Stage::Opening;
                self.outbox.push_back(Command::OpenChannel { channel });
            }
            self.queues.insert(Arc::clone(queue), new);
        }
        self.queues.get_mut(queue)
    }

    /// Reads what an earlier run has left of a queue's copies.
    pub(super) fn take_up(&mut self, queue: &Arc<str>) {
        self.queue(queue);
    }

    /// Makes the copies that were held back long enough; whether some still are.
    pub(super) fn look_after(&mut self, held: &Mutex<Held>) -> bool {
        let (due, left) = {
            let mut held = lock(held);
            (held.due(Instant::now()), held.len())
        };
        self.keep_all(due);
        self.tally.holds_back(&self.vhost, left);
        left > 0
    }

    pub(super) fn keep_all(&mut self, copies: Vec<Keep>) {
        copies.into_iter().for_each(|keep| self.keep(keep));
    }

    pub(super) fn keep(&mut self, keep: Keep) {
        let (attached, tries) = (self.attached, self.tried.elapsed() >= TRY);
        let given_up = self.silent && !(attached && tries);
        let of = QueueName { vhost: Arc::clone(&self.vhost), queue: Arc::clone(&keep.queue) };
        let Some(queue) = self.queue(&keep.queue) else {
            return self.tally.has_none(&of, keep.id, "too_many_queues");
        };
        match queue.stage {
            Stage::Refused => self.tally.has_none(&of, keep.id, "refused"),
            _ if given_up => self.tally.has_none(&of, keep.id, self.tally.away_reason()),
            Stage::Live => {
                self.tried = Instant::now();
                self.publish(keep.queue, keep.message, |_| What::Copy(keep.id, Some(keep.waiter)));
            }
            Stage::Closed | Stage::Opening | Stage::Declaring | Stage::Consuming => {
                queue.waiting.push(keep);
                self.tried = Instant::now();
            }
        }
    }

    fn publish(&mut self, queue: Arc<str>, message: Message, what: impl FnOnce(&Message) -> What) {
        self.seq += 1;
        let (seq, what) = (self.seq, what(&message));
        self.flights.insert(seq, Flight { queue, since: Instant::now(), what });
        self.outbox.push_back(Command::Publish(Box::new(Publish { channel: PUBLISH, seq, mandatory: true, message })));
    }

    pub(super) fn here(&self, of: &Arc<str>) -> Vec<(u128, backlog::Place)> {
        let Some(queue) = self.queues.get(of) else { return Vec::new() };
        let known = |message: &Message| stamp::id_of(message).map(|id| (id, stamp::place_of(message, id)));
        let mut all: Vec<_> =
            queue.window.values().chain(queue.waiting.iter().map(|keep| &keep.message)).filter_map(known).collect();
        for flight in self.flights.values().filter(|flight| flight.queue == *of) {
            match &flight.what {
                What::Copy(id, _) => all.push((*id, backlog::Place::stamped(*id))),
                What::Turned(_, message) => all.extend(known(message)),
            }
        }
        all
    }

    pub(super) fn settled(&mut self, queue: Arc<str>, id: u128) {
        // Of RabbitMQ's queues all stores are known, and a queue without one has no copies.
        if self.tally.owner == Side::Rabbit && !self.queues.contains_key(&queue) {
            return;
        }
        let Some(queue) = self.queue(&queue) else { return };
        if let Some(place) = queue.ledger.settled(id) {
            queue.window.remove(&place);
            queue.settle.push(place);
        }
        let name = queue.name.clone();
        self.tally.needs_none(&name, id);
        self.turn(&name.queue);
    }

    pub(super) fn over(&mut self, queue: Arc<str>, before: u128) {
        let Some(queue) = self.queue(&queue) else { return };
        let gone = queue.ledger.over(before);
        gone.iter().for_each(|place| drop(queue.window.remove(place)));
        queue.settle.extend(gone);
        let name = queue.name.clone();
        self.tally.over(&name, before);
    }

    /// Puts copies back that hide settled ones.
    fn turn(&mut self, queue: &Arc<str>) {
        let Some(open) = self.queues.get_mut(queue).filter(|q| q.stage == Stage::Live) else { return };
        let moved: Vec<(Place, Message)> = open
            .ledger
            .turn()
            .into_iter()
            .filter_map(|place| open.window.remove(&place).map(|message| (place, message)))
            .collect();
        for (place, mut message) in moved {
            message.routing_key = name(queue).as_str().into();
            self.publish(Arc::clone(queue), message, |message| What::Turned(place, Box::new(message.clone())));
        }
    }

    /// Tells the keeper which copies are not needed any more.
    pub(super) fn remove_settled(&mut self) {
        for queue in self.queues.values_mut().filter(|q| !q.settle.is_empty()) {
            if queue.stage != Stage::Live {
                continue;
            }
            queue.settle.sort_unstable();
            let amount = u32::try_from(queue.settle.len()).unwrap_or(u32::MAX);
            let deliveries = queue.settle.drain(..).map(DeliveryId).collect();
            let channel = queue.channel;
            self.outbox.push_back(Command::Settle { channel, deliveries, outcome: Outcome::Ack });
            self.outbox.push_back(Command::Credit { channel, consumer_tag: tag(), amount });
        }
    }

    pub(super) fn attached(&mut self) {
        (self.attached, self.silent) = (true, false);
        self.tally.away(&self.vhost, false);
        self.outbox.clear();
        self.outbox.push_back(Command::OpenChannel { channel: PUBLISH });
        for queue in self.queues.values_mut() {
            queue.stage = Stage::Opening;
            self.outbox.push_back(Command::OpenChannel { channel: queue.channel });
        }
    }

    /// The keeper is away: its queues have everything that was not removed.
    pub(super) fn lost(&mut self) {
        self.attached = false;
        self.outbox.clear();
        for queue in self.queues.values_mut() {
            queue.stage = Stage::Closed;
            queue.window.clear();
            queue.settle.clear();
        }
        self.give_up();
        self.flights.clear();
        self.returned.clear();
    }

    fn give_up(&mut self) {
        if !self.silent {
            let (owner, keeper) = (self.tally.owner, self.keeper());
            tracing::warn!(vhost = %self.vhost, %owner, %keeper, "no standby copies are taken: publishes are confirmed without");
        }
        self.silent = true;
        self.tally.away(&self.vhost, true);
        let away = self.tally.away_reason();
        for flight in self.flights.values_mut() {
            if let (What::Copy(id, waiter), Some(queue)) = (&mut flight.what, self.queues.get(&flight.queue))
                && waiter.take().is_some()
            {
                self.tally.has_none(&queue.name, *id, away);
            }
        }
        for queue in self.queues.values_mut() {
            for keep in queue.waiting.drain(..) {
                self.tally.has_none(&queue.name, keep.id, away);
            }
        }
    }

    pub(super) fn tick(&mut self) {
        let waits = self.queues.values().any(|q| !q.waiting.is_empty());
        let never = waits && !self.attached && self.began.elapsed() > DEGRADE;
        let asks = waits && self.attached && self.tried.elapsed() > DEGRADE;
        let late = self.flights.values().find(|f| matches!(&f.what, What::Copy(_, Some(_))));
        if never || asks || late.is_some_and(|flight| flight.since.elapsed() > DEGRADE) {
            self.give_up();
        }
        let live = self.queues.iter_mut().filter(|(_, queue)| queue.stage == Stage::Live);
        let ticked: Vec<Arc<str>> = live
            .map(|(name, queue)| {
                queue.ledger.tick();
                Arc::clone(name)
            })
            .collect();
        ticked.iter().for_each(|queue| self.turn(queue));
        // Until it is declared it is not known what a store holds.
        for queue in self.queues.values().filter(|queue| queue.stage == Stage::Live) {
            self.tally.holds(&queue.name, queue.ledger.copies(), queue.ledger.lag());
        }
    }

    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Reply { channel, reply } => self.replied(channel, reply),
            Event::Confirm { seq, outcome, .. } => self.confirmed(seq, outcome),
            Event::Returned { message, .. } => {
                self.returned.extend(stamp::id_of(&message));
            }
            Event::Delivery { channel, delivery, .. } => {
                let Some(queue) = self.of(channel) else { return };
                let (place, message) = (delivery.id.0, delivery.message);
                // Somebody else's message is no copy.
                let needed = stamp::id_of(&message).is_some_and(|id| !queue.ledger.arrived(place, id));
                if needed {
                    queue.window.insert(place, message);
                } else {
                    queue.settle.push(place);
                }
                let queue = Arc::clone(&queue.name.queue);
                self.turn(&queue);
            }
            Event::ConsumerCancelled { channel, .. } | Event::ChannelFailed { channel, .. } => self.reopen(channel),
            Event::Blocked { .. } | Event::Unblocked | Event::Closed { .. } => {}
        }
    }

    fn of(&mut self, channel: ChannelId) -> Option<&mut Queue> {
        let index = usize::from(channel.checked_sub(PUBLISH + 1)?);
        let queue = self.channels.get(index)?;
        self.queues.get_mut(queue)
    }

    /// Its queue was deleted by somebody else, or its channel failed: it is declared again.
    fn reopen(&mut self, channel: ChannelId) {
        let Some(queue) = self.of(channel).filter(|q| q.stage == Stage::Live) else { return };
        queue.stage = Stage::Closed;
        queue.window.clear();
        queue.settle.clear();
        self.outbox.push_back(Command::CloseChannel { channel });
    }

    fn replied(&mut self, channel: ChannelId, reply: Result<Reply, AmqpError>) {
        let (keeper, tally) = (self.keeper(), Arc::clone(&self.tally));
        let Some(queue) = self.of(channel) else { return };
        match (queue.stage, reply) {
            (Stage::Closed, Ok(_)) => {
                queue.stage = Stage::Opening;
                self.outbox.push_back(Command::OpenChannel { channel });
            }
            (Stage::Opening, Ok(_)) => {
                queue.stage = Stage::Declaring;
                let declare = declare(&queue.name.queue);
                self.outbox.push_back(Command::Topology { channel, request: Topology::QueueDeclare(declare) });
            }
            (Stage::Declaring, Ok(reply)) => {
                queue.stage = Stage::Consuming;
                let stored = if let Reply::Queue { message_count, .. } = reply { message_count } else { 0 };
                queue.ledger.attached(stored.into());
                tally.holds(&queue.name, queue.ledger.copies(), queue.ledger.lag());
                let consume = consume(&queue.name.queue);
                self.outbox.push_back(Command::Consume { channel, consume });
            }
            (Stage::Consuming, Ok(_)) => {
                queue.stage = Stage::Live;
                let (name, waiting) = (Arc::clone(&queue.name.queue), std::mem::take(&mut queue.waiting));
                for keep in waiting {
                    self.publish(Arc::clone(&name), keep.message, |_| What::Copy(keep.id, Some(keep.waiter)));
                }
            }
            (Stage::Live | Stage::Refused, _) => {}
            (Stage::Closed | Stage::Opening | Stage::Declaring | Stage::Consuming, Err(error)) => {
                tracing::warn!(queue = %queue.name, %error, %keeper, "no standby copies of this queue are kept");
                queue.stage = Stage::Refused;
                let (name, waiting) = (queue.name.clone(), std::mem::take(&mut queue.waiting));
                waiting.iter().for_each(|keep| self.tally.has_none(&name, keep.id, "refused"));
            }
        }
    }

    fn confirmed(&mut self, seq: u64, outcome: PublishOutcome) {
        let Some(Flight { queue, what, .. }) = self.flights.remove(&seq) else { return };
        if self.silent {
            self.silent = false;
            self.tally.away(&self.vhost, false);
        }
        let Some(open) = self.queues.get_mut(&queue) else { return };
        match what {
            What::Copy(id, waiter) => {
                let (returned, name) = (self.returned.remove(&id), open.name.clone());
                match (outcome, waiter) {
                    (PublishOutcome::Stored, waiter) if !returned => {
                        open.ledger.stored();
                        if let Some(waiter) = &waiter {
                            waiter.stored();
                        }
                        if waiter.is_none() {
                            self.tally.needs_none(&name, id);
                        }
                    }
                    (PublishOutcome::Failed, Some(_)) => self.tally.has_none(&name, id, "full"),
                    (_, Some(_)) => self.tally.has_none(&name, id, "no_standby_queue"),
                    (_, None) => {}
                }
            }
            What::Turned(place, message) => {
                if outcome == PublishOutcome::Stored {
                    open.ledger.stored();
                    open.ledger.turned();
                    open.settle.push(place);
                } else if stamp::id_of(&message).is_some_and(|id| !open.ledger.arrived(place, id)) {
                    open.window.insert(place, *message);
                } else {
                    open.settle.push(place);
                }
            }
        }
    }

    /// No copy is waited for any more.
    pub(super) fn end(&mut self) -> HashMap<Arc<str>, Ledger> {
        self.remove_settled();
        self.flights.clear();
        self.queues.drain().map(|(name, queue)| (name, queue.ledger)).collect()
    }
}

fn tag() -> ShortString {
    "nats-bridge.standby".into()
}

fn declare(queue: &str) -> QueueDeclare {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(MOST_BYTES));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    // On disk: nobody reads them, most of the time.
    arguments.insert("x-queue-mode".into(), AMQPValue::LongString("lazy".into()));
    QueueDeclare {
        queue: name(queue).as_str().into(),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments,
    }
}

fn consume(queue: &str) -> Consume {
    Consume {
        queue: name(queue).as_str().into(),
        consumer_tag: tag(),
        exclusive: false,
        no_ack: false,
        credit: Ledger::WINDOW as u32,
        prefetch: Ledger::WINDOW as u16,
        no_limit: false,
        arguments: FieldTable::default(),
    }
}
