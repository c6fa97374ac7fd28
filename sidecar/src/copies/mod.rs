//! Standby copies of what one side owns, kept on the other: so that a broker can be lost for good and nothing that was confirmed with it.
//!
//! Each durable queue `Q` has a queue `nats-bridge.standby.Q` in its vhost on the side that keeps the copies. A publish is confirmed to its
//! publisher when its owner has it and the keeper has a copy of it for each durable queue that it is in; in `shadow` when RabbitMQ has it, and
//! the copies of at most [`AHEAD_MOST`] publishes are on their way; there a copy is made only when its message is not settled within a moment
//! ([`held`]). A copy is removed when its delivery is settled for good; that of a message
//! which was rejected in a queue with a dead-letter exchange stays until the dead letter is settled. What cannot be copied (the keeper is
//! away, its store is full) is confirmed without, and counted.
//!
//! [`held`] and [`ledger`] decide; [`store`] has the queues of one vhost; [`replay`] puts copies into the real queues when their owner is given up.

pub mod backlog;
mod held;
pub mod late;
pub mod ledger;
pub(crate) mod peek;
mod replay;
mod store;
mod tally;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amqp_compat::backend::{ChannelId, Message};
use amqp_compat::error::AmqpError;
use foldhash::{HashMap, HashSet, HashSetExt};
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};

pub use self::replay::Progress;
pub use self::tally::StandbyStatus;

use self::held::{Fresh, Held};
use self::ledger::Ledger;
use self::store::{Job, Keep};
use self::tally::Tally;
use crate::dual::operator::Operator;
use crate::dual::shared::Routes;
use crate::dual::stamp;
use crate::fence::QueueName;
use crate::ownership::Side;

/// A publish needs no copy any more: all that it was to have are stored, or given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Its channel.
    pub channel: ChannelId,
    /// Its number there.
    pub seq: u64,
    /// Its id.
    pub id: u128,
}

/// Says [`Copied`] when the last copy of a publish has let go of it.
#[derive(Debug)]
pub struct Waiter {
    /// To the link of the publish. It has no bound of its own: a link has a bounded number of publishes in hand.
    pub to: mpsc::UnboundedSender<Copied>,
    /// What is said.
    pub copied: Copied,
}

/// Who waits for the copies of one message.
enum Waits {
    /// Nobody.
    None,
    /// The confirm of a publish.
    Confirm(Waiter),
    /// Who makes the copy of what lay in its queue before: it is told whether it is stored.
    Late(mpsc::UnboundedSender<(u128, bool)>, u128),
}

/// The copies of one message are on their way, and who waits for them.
struct UnderWay {
    waits: Waits,
    count: Arc<AtomicUsize>,
    stored: AtomicBool,
}

impl UnderWay {
    fn new(waits: Waits, count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self { waits, count, stored: AtomicBool::new(false) }
    }

    /// One of them is stored.
    fn stored(&self) {
        self.stored.store(true, Ordering::Release);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        match &self.waits {
            Waits::None => {}
            Waits::Confirm(Waiter { to, copied }) => drop(to.send(*copied)),
            Waits::Late(to, id) => drop(to.send((*id, self.stored.load(Ordering::Acquire)))),
        }
    }
}

/// Of whose messages the other broker keeps copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standby {
    /// Of what either owns.
    #[default]
    Both,
    /// Of what NATS owns.
    Nats,
    /// Of nothing.
    Off,
}

impl Standby {
    /// Whether what this side owns has copies.
    pub fn of(self, owner: Side) -> bool {
        match self {
            Standby::Both => true,
            Standby::Nats => owner == Side::Nats,
            Standby::Off => false,
        }
    }
}

/// Publishes whose copies may be on their way without anybody waiting for them; those beyond it have none.
pub const AHEAD_MOST: usize = 16_384;
/// How long copies on their way are waited for when their owner is given up.
const ARRIVE: Duration = Duration::from_secs(15);
/// How long copies that are held back are waited for when the sidecar stops.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The copies of one vhost.
struct OfVhost {
    /// To its store.
    jobs: mpsc::UnboundedSender<Job>,
    held: Arc<Mutex<Held>>,
    /// Queues of which copies were held back.
    known: HashSet<Arc<str>>,
}

/// The standby copies that one sidecar keeps of what one side owns.
pub struct Copies {
    owner: Side,
    operator: Arc<Operator>,
    /// Publishes whose copies are on their way.
    ahead: Arc<AtomicUsize>,
    routes: Arc<dyn Routes>,
    /// By vhost. What a store has to do is bounded by what links have in hand, and by their settlements.
    stores: Mutex<HashMap<Arc<str>, OfVhost>>,
    /// Publishes that the owner has not answered, and the queues that they have copies for.
    open: Mutex<BTreeMap<u128, SmallVec<[QueueName; 1]>>>,
    tally: Arc<Tally>,
    /// The owner is given up: no copy is taken or removed any more.
    ended: AtomicBool,
    /// Which late copies of messages without stamp are not settled, by queue.
    late: Mutex<HashMap<QueueName, backlog::Unsettled>>,
    any_late: AtomicBool,
    /// Held while the copies of a queue are read: meanwhile another reader would find none there.
    reading: tokio::sync::Mutex<()>,
    /// What is known of each queue's copies once its store has been let go of.
    ledgers: tokio::sync::Mutex<BTreeMap<QueueName, Ledger>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Copies {
    /// Copies of what `owner` owns, through the sidecar's own links to the other side, made when they are needed.
    pub fn new(owner: Side, operator: Arc<Operator>, routes: Arc<dyn Routes>) -> Self {
        Self {
            owner,
            operator,
            ahead: Arc::default(),
            routes,
            stores: Mutex::default(),
            open: Mutex::default(),
            tally: Arc::new(Tally::of(owner)),
            ended: AtomicBool::new(false),
            late: Mutex::default(),
            any_late: AtomicBool::new(false),
            reading: tokio::sync::Mutex::default(),
            ledgers: tokio::sync::Mutex::default(),
        }
    }

    /// Does something with the copies of a vhost, unless the owner is given up.
    fn with(&self, vhost: &Arc<str>, act: impl FnOnce(&mut OfVhost)) {
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        let mut stores = lock(&self.stores);
        act(stores.entry(Arc::clone(vhost)).or_insert_with(|| {
            let (jobs, waiting) = mpsc::unbounded_channel();
            let held = Arc::<Mutex<Held>>::default();
            let keeper = (Arc::clone(&self.operator), Arc::clone(vhost));
            tokio::spawn(store::run(keeper, waiting, Arc::clone(&held), Arc::clone(&self.tally)));
            OfVhost { jobs, held, known: HashSet::new() }
        }));
    }

    fn tell(&self, vhost: &Arc<str>, job: Job) {
        self.with(vhost, |store| drop(store.jobs.send(job)));
    }

    /// A message needs no copy any more.
    fn no_longer(&self, vhost: &Arc<str>, queue: &Arc<str>, id: u128) {
        self.with(vhost, |store| {
            if !lock(&store.held).settled(queue, id) {
                let _ = store.jobs.send(Job::Settled { queue: Arc::clone(queue), id });
            }
        });
    }

    /// A message needs no copy any more: whether its copy was held back, and is not made at all.
    fn is_no_longer_held(&self, vhost: &str, queue: &Arc<str>, id: u128) -> bool {
        !self.ended.load(Ordering::Acquire)
            && lock(&self.stores).get(vhost).is_some_and(|store| lock(&store.held).settled(queue, id))
    }

    /// A message is about to be given to its owner, which will put it into these queues. Whether its confirm waits for copies.
    pub fn keep(&self, queues: &[QueueName], id: u128, epoch: u64, message: &Message, waiter: Option<Waiter>) -> bool {
        // A queue that does not outlive its broker has promised nothing.
        let durable: SmallVec<[QueueName; 1]> =
            queues.iter().filter(|q| self.routes.outlives(&q.vhost, &q.queue).is_some()).cloned().collect();
        if durable.is_empty() || self.ended.load(Ordering::Acquire) {
            return false;
        }
        let waits = waiter.is_some();
        if !waits && self.ahead.load(Ordering::Acquire) >= AHEAD_MOST {
            durable.iter().for_each(|queue| self.tally.has_none(queue, id, "behind"));
            return false;
        }
        lock(&self.open).insert(id, durable.clone());
        match waiter {
            Some(waiter) => {
                let waiter = Arc::new(self.under_way_for(Waits::Confirm(waiter)));
                for QueueName { vhost, queue } in durable {
                    let message = stamp::copy(message, id, epoch, &store::name(&queue));
                    self.tell(&vhost, Job::Keep(Box::new(Keep { queue, id, message, waiter: Arc::clone(&waiter) })));
                }
            }
            None => {
                let waiter = Arc::new(self.under_way_for(Waits::None));
                let fresh = Fresh { epoch, message: Arc::new(message.clone()), waiter };
                let now = Instant::now();
                for name in durable {
                    self.hold(name, id, fresh.clone(), now);
                }
            }
        }
        waits
    }

    fn hold(&self, name: QueueName, id: u128, fresh: Fresh, now: Instant) {
        self.with(&name.vhost, |store| {
            if store.known.insert(Arc::clone(&name.queue)) {
                self.tally.knows(&name);
            }
            if lock(&store.held).hold(Arc::clone(&name.queue), id, fresh, now) {
                let _ = store.jobs.send(Job::LookAfter);
            }
        });
    }

    fn under_way_for(&self, waits: Waits) -> UnderWay {
        UnderWay::new(waits, Arc::clone(&self.ahead))
    }

    /// A message has no copy, in queues that are not known.
    pub fn cannot_keep(&self, id: u128, why: &'static str) {
        if !self.ended.load(Ordering::Acquire) {
            self.tally.has_none_anywhere(id, why);
        }
    }

    /// A store that an earlier run has left.
    pub fn take_up(&self, store: &QueueName) {
        if let Some(queue) = store.queue.strip_prefix(store::PREFIX) {
            self.tell(&store.vhost, Job::TakeUp { queue: queue.into() });
        }
    }

    /// The owner has answered a publish, or is not asked any more.
    pub fn answered(&self, id: u128, stored: bool) {
        let queues = lock(&self.open).remove(&id);
        if !stored {
            for QueueName { vhost, queue } in queues.into_iter().flatten() {
                self.no_longer(&vhost, &queue, id);
            }
        }
    }

    /// A delivery of the owner's ended for good. `died_in`: the queues that had dead-lettered it before.
    pub fn settled(&self, name: &QueueName, id: u128, rejected: bool, died_in: &[Arc<str>]) {
        let QueueName { vhost, queue } = name;
        self.tally.needs_none_anywhere(id);
        // Nothing of RabbitMQ's has a copy before `shadow`, and JetStream is not to have a store for it.
        if self.owner == Side::Rabbit && !lock(&self.stores).contains_key(vhost) {
            return;
        }
        for queue in died_in {
            self.no_longer(vhost, queue, id);
        }
        if !rejected && self.is_no_longer_held(vhost, queue, id) {
            return;
        }
        match self.routes.outlives(vhost, queue) {
            // It lives on as a dead letter.
            Some(dead_letters) if rejected && dead_letters => {}
            Some(_) => self.no_longer(vhost, queue, id),
            None => {}
        }
    }

    /// A queue was purged or deleted: all that was published up to now with ids below `before` is over in it.
    pub fn over(&self, name: &QueueName, before: u128) {
        lock(&self.late).remove(name);
        if lock(&self.stores).contains_key(&name.vhost) {
            self.with(&name.vhost, |store| {
                lock(&store.held).over(&name.queue, before);
                let _ = store.jobs.send(Job::Over { queue: Arc::clone(&name.queue), before });
            });
        }
    }

    /// Below this id nothing is on its way to the owner. `next`: no id so far is greater.
    pub fn under_way(&self, next: u128) -> u128 {
        lock(&self.open).first_key_value().map_or(next, |(id, _)| *id)
    }

    /// The queues that have copies, and whether each has dead letters.
    pub fn queues(&self) -> Vec<(QueueName, bool)> {
        let names = self.tally.queues();
        let known = |q: QueueName| self.routes.outlives(&q.vhost, &q.queue).map(|dead_letters| (q, dead_letters));
        names.into_iter().filter_map(known).collect()
    }

    /// For people.
    pub fn status(&self) -> StandbyStatus {
        self.tally.status()
    }

    /// How many messages are without a copy that should have one, so far.
    pub fn missed(&self) -> u64 {
        self.tally.missed()
    }

    /// RabbitMQ is detached: no copy is taken or removed any more.
    pub fn stop(&self) {
        self.ended.store(true, Ordering::Release);
        lock(&self.stores).clear();
    }

    /// The sidecar stops: makes the copies that are held back, and waits until none is on its way, for 5 s at most.
    pub async fn last_words(&self) {
        for store in lock(&self.stores).values() {
            let _ = store.jobs.send(Job::HoldNothing);
        }
        if let Err(why) = self.arrive_within(LAST_WORDS).await {
            tracing::warn!(owner = %self.owner, why, "the sidecar stops before all standby copies are stored");
        }
    }

    /// Deletes the stores, after [`Copies::stop`].
    pub async fn discard(&self) {
        for QueueName { vhost, queue } in self.tally.queues() {
            let store = QueueName { vhost, queue: store::name(&queue).into() };
            if let Err(error) = self.operator.delete(&store).await {
                tracing::warn!(queue = %store, %error, "a queue of copies that nobody needs is left");
            }
        }
        self.tally.emptied();
    }

    /// Waits until no copy is on its way, where nobody publishes any more.
    ///
    /// # Errors
    /// Some still are: they may yet be stored.
    pub async fn arrive(&self) -> Result<(), String> {
        self.arrive_within(ARRIVE).await
    }

    async fn arrive_within(&self, limit: Duration) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let ahead = self.ahead.load(Ordering::Acquire);
            if ahead == 0 || self.ended.load(Ordering::Acquire) {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(format!("the copies of {ahead} messages are still on their way"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets go of the stores: every copy is back in its queue, and nothing is taken or removed any more.
    async fn let_go(&self) {
        let mut ledgers = self.ledgers.lock().await;
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let stores: Vec<_> = lock(&self.stores).drain().collect();
        for (vhost, store) in stores {
            let (answer, kept) = oneshot::channel();
            if store.jobs.send(Job::LetGo(answer)).is_ok()
                && let Ok(kept) = kept.await
            {
                let named = |(queue, ledger)| (QueueName { vhost: Arc::clone(&vhost), queue }, ledger);
                ledgers.extend(kept.into_iter().map(named));
            }
        }
    }

    /// Puts all copies that are needed into the real queues of the side that keeps them, in order; those of `queues` and of all that had
    /// copies in this run. May be called again after an error: what was replayed is not replayed twice.
    ///
    /// # Errors
    /// What that side said, or that it did not answer.
    pub async fn replay(&self, queues: &[QueueName], progress: &Progress) -> Result<(), AmqpError> {
        self.let_go().await;
        let mut ledgers = self.ledgers.lock().await;
        for queue in queues {
            ledgers.entry(queue.clone()).or_default();
        }
        for (queue, ledger) in ledgers.iter_mut() {
            let open = |id: u128| lock(&self.open).contains_key(&id);
            replay::replay(&self.operator, queue, ledger, &open, progress).await?;
        }
        self.tally.emptied();
        Ok(())
    }

    /// How many copies there are of these queues and of all that had copies in this run, as far as it is known without reading them.
    ///
    /// # Errors
    /// What the side that keeps them said, or that it did not answer.
    pub async fn count(&self, queues: &[QueueName]) -> Result<BTreeMap<QueueName, u64>, AmqpError> {
        let known: std::collections::BTreeSet<QueueName> = queues.iter().cloned().chain(self.tally.queues()).collect();
        let mut counts = BTreeMap::new();
        for name in known {
            let store = QueueName { vhost: name.vhost.clone(), queue: store::name(&name.queue).into() };
            // What this sidecar reads is not ready, and counted already.
            let count = match self.tally.copies_of(&name) {
                Some(copies) => copies,
                None => self.operator.depth(&store).await?.map_or(0, |depth| depth.ready),
            };
            counts.insert(name, count);
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod simulation;
