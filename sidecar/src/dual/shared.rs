//! What all links of a sidecar share: the order keeper, the position in force, what is unmapped, and counters.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amq_protocol::types::ShortString;
use amqp_compat::backend::jetstream::{Lease, Present};
use amqp_compat::backend::{Message, Topology};
use amqp_compat::error::{AmqpError, ReplyCode};
use amqp_compat::model::vhost::BindingDefinition;
use async_trait::async_trait;
use foldhash::{HashMap, HashMapExt};
use tokio::sync::{Notify, watch};

use super::meters::Meters;
use super::returns::{Awaited, Returns};
use super::stamp::Ids;
use crate::control_api::{Phase, Unmapped, Warning};
use crate::copies::Copies;
use crate::fence::{Action, FenceId, Fences, QueueName, Stamp};
use crate::integrity::{Integrity, Limits, Lookup};
use crate::ownership::{Bucket, Side};
use crate::phase::Position;
use crate::traces::{Span, Traces};

/// What JetStream has.
#[async_trait]
pub trait Routes: Send + Sync + 'static {
    /// The queues that would get the message.
    ///
    /// # Errors
    /// Why JetStream would refuse it.
    fn route(&self, vhost: &str, message: &Message) -> Result<Vec<ShortString>, AmqpError>;
    /// From now on the integrity is told where what JetStream stores is.
    fn tell_stored(&self, integrity: &Arc<Mutex<Integrity>>);
    /// What the stream of a queue has; `None` when that says nothing of what it has to have.
    ///
    /// # Errors
    /// `InternalError` when JetStream does not answer.
    async fn present(&self, asked: &Lookup) -> Result<Option<Present>, AmqpError>;
    /// The durable queues of a vhost.
    ///
    /// # Errors
    /// `InternalError` when JetStream does not answer.
    async fn durable_queues(&self, vhost: &str) -> Result<Vec<ShortString>, AmqpError>;
    /// Of a queue that outlives its broker: whether it dead-letters what is rejected. `None` for another queue, and one that JetStream does
    /// not have.
    fn outlives(&self, vhost: &str, queue: &str) -> Option<bool>;
    /// What matters of a queue to who reads it. `None` for one that JetStream does not have.
    fn declared(&self, vhost: &str, queue: &str) -> Option<Declared>;
    /// The bindings of a vhost, but for those of the default exchange.
    ///
    /// # Errors
    /// `InternalError` when JetStream does not answer.
    async fn bindings(&self, vhost: &str) -> Result<Vec<BindingDefinition>, AmqpError>;
}

/// What matters of a queue to who reads it without wanting to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Declared {
    /// It goes with its last consumer.
    pub auto_delete: bool,
    /// It counts what is returned.
    pub quorum: bool,
    /// How often what is returned is delivered before it is a dead letter.
    pub delivery_limit: Option<u64>,
}

/// The queues that JetStream would put a message into, or why it would refuse it.
pub type Routed = Result<Vec<QueueName>, ReplyCode>;

/// Where `shadow` takes its copies from. No call waits; what there is no room for is counted.
pub trait Shadow: Send + Sync + 'static {
    /// This phase is in force from this epoch on. `run` is the upper half of the ids that this run of the sidecar gives.
    fn phase(&self, phase: Phase, epoch: u64, run: u64);
    /// A message of this epoch is about to be given to RabbitMQ. `routed`: the queues that JetStream would put it into, or why it would
    /// refuse it; `behind`: it may not have all the topology that RabbitMQ has routed it by.
    fn published(&self, id: u128, epoch: u64, message: &Message, routed: &Routed, behind: bool);
    /// RabbitMQ refused a publish, or its fate is unknown.
    fn failed(&self, id: u128);
    /// RabbitMQ delivered a message of this epoch.
    fn delivered(&self, queue: &QueueName, id: u128, epoch: u64, message: &Message, redelivered: bool);
    /// A delivery of RabbitMQ's was acknowledged or rejected for good.
    fn settled(&self, queue: &QueueName, id: u128);
    /// A queue was purged or deleted.
    fn discarded(&self, queue: &QueueName);
    /// A queue was declared; `loses`: its messages may expire or be dropped by a limit.
    fn declared(&self, queue: &QueueName, loses: bool);
}

/// Why only RabbitMQ can take a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// JetStream has no queue for it.
    NoQueue,
    /// JetStream does not have the exchange.
    NoExchange,
    /// JetStream would refuse the message itself.
    Refused,
}

/// Shared by all links of one sidecar.
pub struct Shared {
    started: Instant,
    salt: u64,
    /// Message ids, and the number of this run.
    pub ids: Ids,
    order: Mutex<Order>,
    position: watch::Sender<Position>,
    lifted: watch::Sender<u64>,
    actions: [Mutex<VecDeque<Action>>; 2],
    actions_ready: [Notify; 2],
    unmapped: Mutex<BTreeMap<(String, String, String), String>>,
    /// Grows with every change of what is unmapped.
    pub unmapped_changes: AtomicU64,
    warnings: Mutex<BTreeMap<&'static str, (u64, String)>>,
    /// Topology that a side missed and whose connection is gone, RabbitMQ's first, by vhost.
    missed: [Mutex<HashMap<Arc<str>, Vec<Topology>>>; 2],
    /// What JetStream has; `None` takes everything as known.
    pub routes: Option<Arc<dyn Routes>>,
    /// Where copies go in `shadow`.
    pub shadow: Option<Arc<dyn Shadow>>,
    /// Standby copies of what each side owns, RabbitMQ first; `None`: there are none.
    pub copies: [Option<Arc<Copies>>; 2],
    /// Queues whose consumers are let go of on RabbitMQ for now, and what it has yet to take back of them.
    returns: Mutex<Returns>,
    any_paused: AtomicBool,
    /// Whether each side was given up for good, RabbitMQ first.
    lost: [AtomicBool; 2],
    /// Messages published to each side as their owner, RabbitMQ first.
    pub published: [AtomicU64; 2],
    /// Messages of each side that were delivered, RabbitMQ first.
    pub delivered: [AtomicU64; 2],
    /// Confirms, failures, latencies.
    pub meters: Meters,
    integrity: Arc<Mutex<Integrity>>,
    /// The lease that it serves under, where others may follow; see [`Shared::is_overtaken`].
    pub lease: Option<Lease>,
    /// Where spans go; `None`: nowhere.
    pub traces: Option<Arc<Traces>>,
    /// Open connections.
    pub connections: AtomicU64,
    /// Whether RabbitMQ may have been away since its bindings were last made sure of.
    pub rabbit_was_lost: AtomicBool,
    /// Open connections that have lost their link to NATS, or have not caught up with it.
    pub behind: AtomicU64,
    /// Open connections that have topology which NATS has yet to take.
    pub lacking: AtomicU64,
    /// Vhosts whose topology waits for a connection that repeats it to NATS.
    left: AtomicU64,
}

/// What one short lock guards.
pub struct Order {
    /// Epochs, holds, fences.
    pub fences: Fences,
    /// The phase in force.
    pub phase: Phase,
    /// Whether NATS has ever owned anything, so that it may hold messages at weight 0.
    pub nats_may_hold: bool,
    /// Consumers that the sidecar has, by queue.
    pub consumers: HashMap<QueueName, u64>,
    /// Deliveries that wait for a fence, by queue.
    pub held: HashMap<QueueName, u64>,
}

impl Shared {
    /// How many unmapped things are remembered; a weight above 0 is refused at one.
    const UNMAPPED_MOST: usize = 2_000;

    /// The shared state of a sidecar that starts at this position.
    pub fn new(ids: Ids, salt: u64, position: Position, fences: Fences, nats_may_hold: bool) -> Self {
        let order =
            Order { fences, phase: position.phase, nats_may_hold, consumers: HashMap::new(), held: HashMap::new() };
        Self {
            started: Instant::now(),
            salt,
            ids,
            order: Mutex::new(order),
            position: watch::Sender::new(position),
            lifted: watch::Sender::new(0),
            actions: Default::default(),
            actions_ready: Default::default(),
            unmapped: Mutex::default(),
            unmapped_changes: AtomicU64::new(0),
            warnings: Mutex::default(),
            missed: Default::default(),
            routes: None,
            shadow: None,
            copies: [None, None],
            returns: Mutex::default(),
            any_paused: AtomicBool::new(false),
            lost: Default::default(),
            published: Default::default(),
            delivered: Default::default(),
            meters: Meters::default(),
            integrity: Arc::new(Mutex::new(Integrity::new(Limits::default()))),
            lease: None,
            traces: None,
            connections: AtomicU64::new(0),
            rabbit_was_lost: AtomicBool::new(true),
            behind: AtomicU64::new(0),
            lacking: AtomicU64::new(0),
            left: AtomicU64::new(0),
        }
    }

    /// The span of a delivery that begins now.
    pub(super) fn delivery_span(
        &self,
        queue: &QueueName,
        side: Side,
        message: &Message,
        redelivered: bool,
    ) -> Option<Box<Span>> {
        self.traces.as_ref()?.delivery(queue, message, side, redelivered)
    }

    /// How much topology is kept, by side and vhost, for another connection to repeat; the audit finds what is beyond it.
    const MISSED_MOST: usize = 8192;

    /// Leaves topology that a lost side has missed to the next connection of the vhost that gets the side back.
    pub fn leave_missed(&self, side: Side, vhost: &Arc<str>, topology: impl Iterator<Item = Topology>) {
        let mut missed = self.missed[side.index()].lock().unwrap_or_else(PoisonError::into_inner);
        let kept = missed.entry(Arc::clone(vhost)).or_default();
        if kept.is_empty() && side == Side::Nats {
            self.left.fetch_add(1, Ordering::Relaxed);
        }
        let room = Self::MISSED_MOST.saturating_sub(kept.len());
        kept.extend(topology.take(room));
    }

    /// Takes what [`Shared::leave_missed`] has left, in order. Say [`Shared::repeats_missed`] once somebody is behind with it.
    pub fn take_missed(&self, side: Side, vhost: &str) -> Vec<Topology> {
        let mut missed = self.missed[side.index()].lock().unwrap_or_else(PoisonError::into_inner);
        missed.remove(vhost).unwrap_or_default()
    }

    /// What was left of a vhost for a side is about to be repeated.
    pub fn repeats_missed(&self, side: Side) {
        if side == Side::Nats {
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many have declared what JetStream does not have yet: open connections, and vhosts whose connections are gone.
    pub fn behind(&self) -> u64 {
        self.behind.load(Ordering::Relaxed) + self.left.load(Ordering::Relaxed)
    }

    /// Whether another sidecar may lead by now: nothing is to be told to a broker or a client any more. Looked at before anything is, so
    /// that a process that stood still does not begin with what it was about to do.
    pub fn is_overtaken(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_lost) && !self.nats_is_lost()
    }

    /// The time since the sidecar started.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The lock over epochs and holds. Held for a few map operations, never across an await.
    pub fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bounds what is remembered of the messages that JetStream owns.
    pub fn remember(&mut self, limits: Limits) {
        *self.integrity() = Integrity::new(limits);
        if let Some(routes) = &self.routes {
            routes.tell_stored(&self.integrity);
        }
    }

    /// What is known of the messages that JetStream owns. Held for a few map operations, never across an await.
    pub fn integrity(&self) -> MutexGuard<'_, Integrity> {
        self.integrity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queues that JetStream would put a message into, or why it would refuse it.
    pub fn routed(&self, vhost: &Arc<str>, message: &Message) -> Routed {
        let Some(routes) = &self.routes else { return Ok(Vec::new()) };
        let name = |queue: &ShortString| QueueName { vhost: vhost.clone(), queue: queue.as_str().into() };
        match routes.route(vhost, message) {
            Ok(queues) => Ok(queues.iter().map(name).collect()),
            Err(error) => Err(error.code),
        }
    }

    /// Why RabbitMQ may put a message into other queues than JetStream, which would route it like this.
    pub fn others_of(&self, routed: &Routed) -> Option<&'static str> {
        self.routes.as_ref()?;
        let lacking = self.lacking.load(Ordering::Relaxed) + self.left.load(Ordering::Relaxed);
        match (lacking > 0, routed) {
            (true, _) => Some("topology_behind"),
            (false, Ok(_)) => None,
            (false, Err(_)) => Some("not_carried"),
        }
    }

    /// A queue was declared; `loses`: its messages may expire or be dropped by a limit.
    pub fn declared(&self, queue: &QueueName, loses: bool) {
        self.integrity().declared(queue, !loses);
        if let Some(shadow) = &self.shadow {
            shadow.declared(queue, loses);
        }
    }

    /// A queue was purged or deleted: nothing that it had is waited for.
    pub fn discarded(&self, queue: &QueueName) {
        self.integrity().discarded(queue);
        if let Some(shadow) = &self.shadow {
            shadow.discarded(queue);
        }
        for copies in self.copies.iter().flatten() {
            copies.over(queue, self.ids.next());
        }
    }

    /// A side is lost for good: every link lets go of it. Of NATS, and keeps what it would have published there; of RabbitMQ, and ends, unless
    /// NATS owns everything already.
    pub fn give_up(&self, side: Side) {
        self.lost[side.index()].store(true, Ordering::Release);
        self.position.send_modify(|_| {});
    }

    /// Lets the consumers of a queue go on RabbitMQ, or lets them have it again. What they have they keep; new ones, and gets, wait.
    pub fn pause(&self, queue: &QueueName, pause: bool) {
        let any = {
            let mut returns = self.returns();
            match pause {
                true => returns.pause(queue),
                false => returns.resume(queue),
            }
            returns.any_paused()
        };
        self.any_paused.store(any, Ordering::Release);
        self.position.send_modify(|_| {});
    }

    /// Whether the consumers of a queue are let go of on RabbitMQ.
    pub fn is_paused(&self, queue: &QueueName) -> bool {
        self.any_paused.load(Ordering::Acquire) && self.returns().is_paused(queue)
    }

    /// What RabbitMQ may not have back of a paused queue.
    pub fn awaited(&self, queue: &QueueName) -> Awaited {
        self.returns().awaited(queue, self.now())
    }

    /// What RabbitMQ has yet to take back. Held for a few map operations, never across an await.
    pub(super) fn returns(&self) -> MutexGuard<'_, Returns> {
        self.returns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a side was given up for good.
    pub fn is_lost(&self, side: Side) -> bool {
        self.lost[side.index()].load(Ordering::Acquire)
    }

    /// Whether NATS was given up for good.
    pub fn nats_is_lost(&self) -> bool {
        self.is_lost(Side::Nats)
    }

    /// The standby copies of what a side owns.
    pub fn copies_of(&self, owner: Side) -> Option<&Arc<Copies>> {
        self.copies[owner.index()].as_ref()
    }

    /// The bucket of a message. Its ordering key is its routing key.
    pub fn bucket(&self, message: &Message) -> Bucket {
        Bucket::of(self.salt, message.routing_key.as_str().as_bytes())
    }

    /// The position in force, to be watched.
    pub fn position(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Says that holds were lifted, to be watched.
    pub fn lifts(&self) -> watch::Receiver<u64> {
        self.lifted.subscribe()
    }

    /// Puts a position in force: from here on every publish has the new epoch.
    pub fn adopt(&self, epoch: u64, position: Position) {
        let actions = {
            let mut order = self.order();
            order.phase = position.phase;
            order.nats_may_hold |= position.weight.buckets() > 0;
            order.fences.begin(epoch, position.weight)
        };
        self.act(actions);
        if let Some(shadow) = &self.shadow {
            shadow.phase(position.phase, epoch, self.ids.run());
        }
        for copies in self.copies.iter().flatten().filter(|_| position.phase == Phase::Native) {
            copies.stop();
        }
        self.position.send_replace(position);
    }

    /// Puts the position in force in which one side has everything and the lost one nothing: what waits for that waits no longer.
    pub fn adopt_without(&self, lost: Side, epoch: u64, position: Position) {
        if lost == Side::Nats {
            self.order().nats_may_hold = false;
        }
        self.adopt(epoch, position);
        let actions = self.order().fences.give_up(lost);
        self.act(actions);
    }

    /// Takes a publish under the epoch in force. `None` in `native`, where nothing is stamped.
    pub fn publish(&self, bucket: Bucket, only_rabbit: impl FnOnce() -> bool) -> Option<(Phase, Stamp)> {
        let mut order = self.order();
        let phase = order.phase;
        if phase == Phase::Native {
            drop(order);
            self.published[Side::Nats.index()].fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let mut owner = bucket.owner(order.fences.weight());
        if owner == Side::Nats && only_rabbit() {
            owner = Side::Rabbit;
        }
        let stamp = order.fences.publish_to(owner);
        drop(order);
        self.published[owner.index()].fetch_add(1, Ordering::Relaxed);
        Some((phase, stamp))
    }

    /// Why a publish goes to RabbitMQ whoever owns its key: JetStream would refuse it, or has no queue for it, and RabbitMQ
    /// may have one. `None` when JetStream can take it.
    pub fn only_for_rabbit(&self, vhost: &str, message: &Message) -> Option<Why> {
        match self.routes.as_ref()?.route(vhost, message) {
            Ok(queues) if queues.is_empty() => Some(Why::NoQueue),
            Ok(_) => None,
            Err(error) if error.code == ReplyCode::NotFound => Some(Why::NoExchange),
            Err(error) => {
                self.warn("kept_on_rabbitmq", format!("exchange '{}': {error}", message.exchange));
                Some(Why::Refused)
            }
        }
    }

    /// Whether JetStream does not have an exchange.
    pub fn lacks_exchange(&self, vhost: &str, exchange: &ShortString) -> bool {
        let (routing_key, properties, body) = Default::default();
        let message = Message { exchange: exchange.clone(), routing_key, properties, body };
        let route = self.routes.as_ref().map(|routes| routes.route(vhost, &message));
        matches!(route, Some(Err(error)) if error.code == ReplyCode::NotFound)
    }

    /// Carries out what the order keeper asks for.
    pub fn act(&self, actions: Vec<Action>) {
        if actions.is_empty() {
            return;
        }
        let mut lifted = 0;
        for action in actions {
            match action {
                Action::PublishFence { side, .. } => {
                    self.actions[side.index()].lock().unwrap_or_else(PoisonError::into_inner).push_back(action);
                    self.actions_ready[side.index()].notify_one();
                }
                Action::Lifted { queue, epoch, timed_out } => {
                    lifted += 1;
                    if timed_out {
                        tracing::warn!(%queue, epoch, "a hold was lifted because its time was over");
                        metrics::counter!("natsbridge_holds_timed_out_total").increment(1);
                        self.warn(
                            "hold_timed_out",
                            format!(
                                "queue {queue}: the messages of epoch {epoch} waited too long and may be out of order"
                            ),
                        );
                    }
                }
            }
        }
        if lifted > 0 {
            self.lifted.send_modify(|n| *n += lifted);
        }
    }

    /// A hold was lifted: every link looks again at what waits.
    pub fn look_again(&self) {
        self.lifted.send_modify(|n| *n += 1);
    }

    /// Waits for a fence to publish on this side. At most one a queue and change is waiting at any time.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is taken by a future that is dropped.
    pub async fn next_fence(&self, side: Side) -> (QueueName, FenceId) {
        loop {
            let next = self.actions[side.index()].lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(Action::PublishFence { queue, fence, .. }) = next {
                return (queue, fence);
            }
            self.actions_ready[side.index()].notified().await;
        }
    }

    /// Records something that JetStream does not have.
    pub fn unmapped(&self, vhost: &str, kind: &str, name: &str, reason: impl Into<String>) {
        let mut all = self.unmapped.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, reason) = ((vhost.to_owned(), kind.to_owned(), name.to_owned()), reason.into());
        if all.len() < Self::UNMAPPED_MOST && all.get(&key) != Some(&reason) {
            all.insert(key, reason);
            self.unmapped_changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Something is in JetStream now, or is gone from RabbitMQ.
    pub fn mapped(&self, vhost: &str, kind: &str, name: &str) {
        let mut all = self.unmapped.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.is_empty() && all.remove(&(vhost.to_owned(), kind.to_owned(), name.to_owned())).is_some() {
            self.unmapped_changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A queue was deleted: what was unmapped of it is no longer missed.
    pub fn queue_gone(&self, vhost: &str, queue: &str) {
        let mut all = self.unmapped.lock().unwrap_or_else(PoisonError::into_inner);
        let (bound, before) = (format!(" -> {queue} ("), all.len());
        all.retain(|(v, kind, name), _| v != vhost || !(kind == "queue" && name == queue || name.contains(&bound)));
        if all.len() < before {
            self.unmapped_changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What JetStream does not have.
    pub fn all_unmapped(&self) -> Vec<Unmapped> {
        let all = self.unmapped.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |((vhost, kind, name), reason): (&(String, String, String), &String)| Unmapped {
            vhost: vhost.clone(),
            kind: kind.clone(),
            name: name.clone(),
            reason: reason.clone(),
        };
        all.iter().map(one).collect()
    }

    /// Counts something that a human should look at.
    pub fn warn(&self, code: &'static str, text: String) {
        let mut all = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let warning = all.entry(code).or_default();
        warning.0 += 1;
        warning.1 = text;
    }

    /// What a human should look at.
    pub fn warnings(&self) -> Vec<Warning> {
        let all = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(code, (count, text))| Warning { code: (*code).to_owned(), count: *count, text: text.clone() })
            .collect()
    }
}
