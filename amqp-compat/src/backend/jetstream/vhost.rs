//! A vhost that runs: the model, the queues behind it, and the store behind both.

mod exchanges;
mod queues;

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::ShortString;
use foldhash::HashMap;
use futures::StreamExt as _;
use nats_bridge::Bridge;
use smallvec::SmallVec;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

pub(super) use self::queues::made_up_name;
use self::queues::{expire_queues, remove_leftovers};
use super::config::JetStreamConfig;
use super::gateways::Gateways;
use super::pump::Cancelled;
use super::queue::Queue;
use super::store::{Store, Wire};
use crate::backend::reply_to::Replies;
use crate::backend::{Reply, Topology};
use crate::error::{AmqpError, ReplyCode};
use crate::model::delay::delay_of;
use crate::model::exchange::ExchangeKind;
use crate::model::queue::{Owner, check_expiration, display};
use crate::model::vhost::{Change, Destination, Route, Vhost, extra_keys, no_queue};

/// A vhost that runs.
#[derive(Debug)]
pub(crate) struct VhostRuntime {
    pub(crate) name: Arc<str>,
    pub(crate) bridge: Bridge,
    pub(crate) config: Arc<JetStreamConfig>,
    /// Who waits for direct replies.
    pub(crate) replies: Arc<Replies>,
    pub(super) store: Store,
    pub(super) state: Arc<RwLock<State>>,
    /// Held while the topology changes, so that one change is stored and made before the next is checked.
    pub(crate) changing: Mutex<()>,
    /// It is being deleted, or it was: its links end.
    pub(crate) gone: CancellationToken,
    /// When queues were deleted lately, by name.
    deleted: std::sync::Mutex<HashMap<String, Instant>>,
}

/// How long the name of a deleted stream is left alone; removing a large one's files takes the server a while.
const REUSE_AFTER: Duration = Duration::from_secs(600);

/// How many queues of a vhost that goes are deleted at once.
const DELETED_AT_ONCE: usize = 16;

/// How often expired queues are looked for.
const EXPIRY_TICK: Duration = Duration::from_millis(50);

/// From how many on the names of deleted queues are swept for old ones.
const DELETED_SWEEP: usize = 4096;

/// The model and, by the model's slots, the queues.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) model: Vhost,
    pub(super) queues: Vec<Option<Arc<Queue>>>,
    /// What delayed exchanges keep, once there is one.
    pub(crate) delays: Option<Arc<Queue>>,
}

impl State {
    /// Every queue.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.queues.iter().flatten()
    }

    pub(crate) fn queue(&self, slot: u32) -> Option<&Arc<Queue>> {
        self.queues.get(slot as usize)?.as_ref()
    }
}

impl VhostRuntime {
    /// Loads a vhost: its stored topology, with a stream for every durable queue, and removes what an earlier gateway has
    /// left that does not outlive a gateway.
    pub(crate) async fn load(
        name: &str,
        bridge: &Bridge,
        config: &Arc<JetStreamConfig>,
    ) -> Result<Arc<Self>, AmqpError> {
        let store = Store::open(bridge, name).await?;
        let vhost: Arc<str> = name.into();
        let state = Arc::new(RwLock::new(State { model: Vhost::new(name), queues: Vec::new(), delays: None }));
        let stored = store.load().await?;
        let queues: Vec<Arc<Queue>> = {
            let mut loaded = state.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            for (change, stream) in stored {
                let slot = loaded.model.apply(&change);
                if let (Some(slot), Change::PutQueue(definition), Some(stream)) = (slot, change, stream) {
                    let settings = loaded.model.policies().settings_of(&definition);
                    let queue = Queue::new(&vhost, (definition, settings), stream, bridge, config, &state);
                    let queue = Arc::new(queue);
                    put(&mut loaded.queues, slot, queue);
                }
            }
            loaded.queues.iter().flatten().cloned().collect()
        };
        let deleted = remove_leftovers(bridge, &vhost).await?;
        // Creating what is there already changes nothing; it is cheap, and a stream that is missing would refuse publishes.
        for queue in &queues {
            queue.ensure().await?;
        }
        for queue in &queues {
            queue.watch().await?;
        }
        let vhost = Arc::new(Self {
            name: vhost,
            bridge: bridge.clone(),
            config: config.clone(),
            replies: replies(config),
            store,
            state,
            changing: Mutex::new(()),
            gone: CancellationToken::new(),
            deleted: std::sync::Mutex::new(deleted),
        });
        let has_delayed = vhost.state().model.exchanges().any(|exchange| exchange.kind == ExchangeKind::Delayed);
        if has_delayed || vhost.delays().stream_is_there().await? {
            vhost.ensure_delays().await?;
        }
        tokio::spawn(expire_queues(Arc::downgrade(&vhost)));
        Ok(vhost)
    }

    /// A vhost whose topology another gateway is about to tell.
    pub(crate) async fn empty(
        name: &str,
        bridge: &Bridge,
        config: &Arc<JetStreamConfig>,
    ) -> Result<Arc<Self>, AmqpError> {
        let vhost = Arc::new(Self {
            name: name.into(),
            bridge: bridge.clone(),
            config: config.clone(),
            replies: replies(config),
            store: Store::open(bridge, name).await?,
            state: Arc::new(RwLock::new(State { model: Vhost::new(name), queues: Vec::new(), delays: None })),
            changing: Mutex::new(()),
            gone: CancellationToken::new(),
            deleted: std::sync::Mutex::default(),
        });
        tokio::spawn(expire_queues(Arc::downgrade(&vhost)));
        Ok(vhost)
    }

    /// Waits until nobody else changes the topology.
    ///
    /// # Errors
    /// `ConnectionForced` when the vhost is deleted: nothing of it is to be touched any more.
    pub(super) async fn change_alone(&self) -> Result<MutexGuard<'_, ()>, AmqpError> {
        let changing = self.changing.lock().await;
        if self.gone.is_cancelled() { Err(self.is_deleted()) } else { Ok(changing) }
    }

    /// Deletes everything that is in it, for good. No link is opened any more, and those that are open end.
    pub(crate) async fn destroy(&self) -> Result<(), AmqpError> {
        self.gone.cancel();
        let _changing = self.changing.lock().await;
        let queues: Vec<Arc<Queue>> = self.state().queues().cloned().collect();
        let mut deleting = futures::stream::iter(queues)
            .map(|queue| async move {
                let deleted = queue.delete().await;
                (queue, deleted)
            })
            .buffer_unordered(DELETED_AT_ONCE);
        while let Some((queue, deleted)) = deleting.next().await {
            deleted?.into_iter().for_each(Cancelled::tell);
            self.note_deleted(queue.name());
        }
        drop(deleting);
        self.delays().delete_stream().await?;
        self.store.destroy(&self.bridge).await
    }

    /// What its clients are told when it is deleted.
    pub(crate) fn is_deleted(&self) -> AmqpError {
        AmqpError::new(ReplyCode::ConnectionForced, format!("vhost '{}' is deleted", self.name))
    }

    /// When which of its queues was deleted lately.
    pub(super) fn deleted(&self) -> HashMap<String, Instant> {
        self.deleted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Queues of a vhost of this name before it.
    pub(super) fn remember_deleted(&self, deleted: HashMap<String, Instant>) {
        self.deleted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(deleted);
    }

    /// Whether any of these deletions still matters.
    pub(super) fn is_recent(deleted: &HashMap<String, Instant>) -> bool {
        deleted.values().any(|at| at.elapsed() < REUSE_AFTER)
    }

    /// The topology as it is now. Never held across an await.
    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The queue of this name, for an operation by `by`.
    pub(crate) fn queue_for(&self, name: &str, by: Owner) -> Result<Arc<Queue>, AmqpError> {
        let state = self.state();
        let (slot, _) = state.model.queue_for(name, by)?;
        state.queue(slot).cloned().ok_or_else(|| no_queue(&self.name, name))
    }

    /// The queue of this name, whoever asks.
    pub(crate) fn queue_named(&self, name: &str) -> Option<Arc<Queue>> {
        let state = self.state();
        state.queue(state.model.queue_slot(name)?).cloned()
    }

    /// Does a client's request for the topology; gives who is to be told that their queue is gone.
    pub(crate) async fn change(&self, request: Topology, owner: Owner) -> Result<(Reply, Vec<Cancelled>), AmqpError> {
        match request {
            Topology::ExchangeDeclare(declare) => self.declare_exchange(&declare).await?,
            Topology::ExchangeDelete { exchange, if_unused } => {
                self.delete_exchange(exchange.as_str(), if_unused).await?;
            }
            Topology::ExchangeBind(binding) => self.bind(&binding, false, owner).await?,
            Topology::ExchangeUnbind(binding) => self.unbind(&binding, false, owner).await?,
            Topology::QueueBind(binding) => self.bind(&binding, true, owner).await?,
            Topology::QueueUnbind(binding) => self.unbind(&binding, true, owner).await?,
            Topology::QueueDeclare(declare) => {
                let (queue, counts) = self.declare_queue(&declare, owner).await?;
                let reply = Reply::Queue {
                    queue: ShortString::try_new(queue.name()).unwrap_or_default(),
                    message_count: u32::try_from(counts.ready).unwrap_or(u32::MAX),
                    consumer_count: counts.consumers,
                };
                return Ok((reply, Vec::new()));
            }
            Topology::QueuePurge { queue } => {
                let purged = self.queue_for(queue.as_str(), owner)?.purge().await?;
                return Ok((Reply::MessageCount(u32::try_from(purged).unwrap_or(u32::MAX)), Vec::new()));
            }
            Topology::QueueDelete { queue, if_unused, if_empty } => {
                let (count, cancelled) = self.delete_queue(queue.as_str(), if_unused, if_empty, owner).await?;
                return Ok((Reply::MessageCount(u32::try_from(count).unwrap_or(u32::MAX)), cancelled));
            }
        }
        Ok((Reply::Done, Vec::new()))
    }

    /// Tells other gateways of changes.
    fn announce(&self, changes: &[Change], stream: &str) {
        if let Some(gateways) = &self.config.gateways {
            gateways.announce(&self.name, changes.iter().map(|change| Wire::of(change, stream)).collect());
        }
    }

    /// The queues that a message of `user` goes to, the stream of delayed messages among them; its `user_id` is not checked when that is `None`.
    pub(crate) fn destinations(
        &self,
        properties: &AMQPProperties,
        exchange: &str,
        routing_key: &str,
        user: Option<&str>,
        route: &mut Route,
    ) -> Result<SmallVec<[Arc<Queue>; 4]>, AmqpError> {
        // In RabbitMQ's order: a client sees the first fault.
        let state = self.state();
        state.model.publishable(exchange)?;
        if let Some(claimed) = properties.user_id()
            && let Some(user) = user
            && claimed.as_str() != user
        {
            return Err(AmqpError::new(
                ReplyCode::PreconditionFailed,
                format!("user_id property set to '{claimed}' but authenticated user was '{user}'"),
            ));
        }
        if let Some(expiration) = properties.expiration() {
            check_expiration(expiration.as_str())?;
        }
        let extra = extra_keys(properties)?;
        if let Some(mode) = properties.delivery_mode()
            && ![1, 2].contains(mode)
        {
            let text = format!("invalid message: {{delivery_mode_unknown,{mode}}}");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        if state.model.exchange(exchange).is_some_and(|exchange| exchange.kind == ExchangeKind::Delayed) {
            delay_of(properties)?;
        }
        if extra.is_empty() {
            state.model.route(exchange, &[routing_key], Some(properties), route)?;
        } else {
            let mut keys: SmallVec<[&str; 4]> = SmallVec::from_slice(&[routing_key]);
            keys.extend(extra);
            state.model.route(exchange, &keys, Some(properties), route)?;
        }
        let delays = state.delays.clone().filter(|_| !route.delayed_by.is_empty());
        Ok(route.queues.iter().filter_map(|slot| state.queue(*slot).cloned()).chain(delays).collect())
    }

    /// Stores what of the changes is durable, then makes them.
    pub(crate) async fn make(&self, changes: &[Change]) -> Result<(), AmqpError> {
        let durable: Vec<&Change> = {
            let state = self.state();
            changes.iter().filter(|change| is_durable(&state.model, change)).collect()
        };
        for change in durable {
            self.store.write(change, "").await?;
        }
        let mut state = self.state_mut();
        for change in changes {
            let slot = state.model.apply(change);
            if let (Some(slot), Change::DropQueue(_)) = (slot, change) {
                state.queues[slot as usize] = None;
            }
        }
        drop(state);
        self.announce(changes, "");
        Ok(())
    }
}

/// 540 for a stream queue where several gateways share an account: its readers would each be of one gateway alone.
pub(crate) fn not_shared(vhost: &str, queue: &str) -> AmqpError {
    AmqpError::not_implemented(format!(
        "stream {} is not implemented where several gateways share an account; see docs/mapping.md of nats-bridge",
        display(vhost, queue)
    ))
}

fn replies(config: &JetStreamConfig) -> Arc<Replies> {
    Arc::new(config.gateways.as_ref().map_or_else(Replies::default, Gateways::replies))
}

pub(super) fn is_durable(model: &Vhost, change: &Change) -> bool {
    match change {
        Change::PutExchange(exchange) => exchange.durable,
        Change::DropExchange(name) => model.exchange(name).is_some_and(|exchange| exchange.durable),
        Change::PutQueue(queue) => queue.is_persistent(),
        Change::DropQueue(name) => {
            model.queue_slot(name).and_then(|slot| model.queue(slot)).is_some_and(|queue| queue.is_persistent())
        }
        Change::Bind(binding) | Change::Unbind(binding) => {
            debug_assert!(!matches!(&binding.destination, Destination::Exchange(name) if name.is_empty()));
            model.is_persistent(binding)
        }
        Change::PutPolicy(_) | Change::DropPolicy(..) => true,
    }
}

pub(super) fn put(queues: &mut Vec<Option<Arc<Queue>>>, slot: u32, queue: Arc<Queue>) {
    let slot = slot as usize;
    if queues.len() <= slot {
        queues.resize(slot + 1, None);
    }
    queues[slot] = Some(queue);
}
