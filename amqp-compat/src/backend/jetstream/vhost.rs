//! A vhost that runs: the model, the queues behind it, and the store behind both.

use std::collections::HashMap;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::ShortString;
use futures::StreamExt as _;
use nats_bridge::Bridge;
use smallvec::SmallVec;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use super::api;
use super::config::JetStreamConfig;
use super::delays;
use super::gateways::Gateways;
use super::memory::now_ns;
use super::pump::Cancelled;
use super::queue::{Counts, Queue};
use super::shape::{META_LIFETIME, META_QUEUE, META_VHOST};
use super::store::{Store, Wire};
use crate::backend::reply_to::Replies;
use crate::backend::{Binding, ExchangeDeclare, QueueDeclare, Reply, Topology};
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::name;
use crate::model::beside_rabbitmq;
use crate::model::delay::delay_of;
use crate::model::exchange::ExchangeKind;
use crate::model::queue::{Owner, QueueKind, check_expiration, display};
use crate::model::vhost::{Change, Destination, QueuePlan, Route, Vhost, extra_keys, no_queue, without_line_ends};

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

    /// Declares a queue, and counts what is in it.
    pub(crate) async fn declare_queue(
        &self,
        declare: &QueueDeclare,
        by: Owner,
    ) -> Result<(Arc<Queue>, Counts), AmqpError> {
        let given = match declare.queue.as_str() {
            "" if !declare.passive => made_up_name(),
            given => without_line_ends(given),
        };
        // A name that the RabbitMQ before it has made up is taken as if it had been made up here.
        let nameless = QueueDeclare { queue: ShortString::default(), ..declare.clone() };
        let repeats = self.config.behind_rabbitmq && !declare.passive && given.starts_with("amq.gen-");
        let declare = if repeats { &nameless } else { declare };
        let find = || {
            let state = self.state();
            Ok(match state.model.plan_queue_declare(declare, &given, by)? {
                QueuePlan::Exists(slot) => match state.queue(slot) {
                    Some(queue) => Ok(queue.clone()),
                    None => return Err(no_queue(&self.name, &given)),
                },
                QueuePlan::Create(definition) => Err(*definition),
            })
        };
        if let Ok(queue) = find()? {
            queue.touch();
            // Without an answer it may be on its way out: then it is looked for again once it is gone.
            if let Ok(counts) = queue.counts().await {
                return Ok((queue, counts));
            }
        }
        let _changing = self.change_alone().await?;
        match find()? {
            Ok(queue) => {
                let counts = queue.counts().await?;
                Ok((queue, counts))
            }
            Err(definition) => {
                if self.config.gateways.is_some() && definition.settings.kind == QueueKind::Stream {
                    return Err(not_shared(&self.name, &definition.name));
                }
                if self.config.behind_rabbitmq {
                    beside_rabbitmq::check_queue(&self.name, &definition)?;
                }
                let stream = self.stream_for(&definition.name);
                let settings = self.state().model.policies().settings_of(&definition);
                let of = (definition.clone(), settings);
                let queue = Queue::new(&self.name, of, stream, &self.bridge, &self.config, &self.state);
                let queue = Arc::new(queue);
                queue.ensure().await?;
                let is_persistent = definition.is_persistent();
                let change = Change::PutQueue(definition);
                if is_persistent {
                    self.store.write(&change, &queue.stream).await?;
                }
                self.add_queue(&change, &queue);
                queue.watch().await?;
                Ok((queue, Counts::default()))
            }
        }
    }

    fn add_queue(&self, change: &Change, queue: &Arc<Queue>) {
        let mut state = self.state_mut();
        if let Some(slot) = state.model.apply(change) {
            put(&mut state.queues, slot, queue.clone());
        }
        drop(state);
        self.announce(std::slice::from_ref(change), &queue.stream);
    }

    /// Tells other gateways of changes.
    fn announce(&self, changes: &[Change], stream: &str) {
        if let Some(gateways) = &self.config.gateways {
            gateways.announce(&self.name, changes.iter().map(|change| Wire::of(change, stream)).collect());
        }
    }

    /// Deletes a queue for a client; says how many messages were ready in it, and which consumers are to be told.
    pub(crate) async fn delete_queue(
        &self,
        name: &str,
        if_unused: bool,
        if_empty: bool,
        by: Owner,
    ) -> Result<(u64, Vec<Cancelled>), AmqpError> {
        let name = without_line_ends(name);
        let _changing = self.change_alone().await?;
        let queue = match self.queue_for(&name, by) {
            Ok(queue) => queue,
            Err(error) if error.code == ReplyCode::NotFound => return Ok((0, Vec::new())),
            Err(error) => return Err(error),
        };
        let counts = self.check_delete(&queue, if_unused, if_empty).await?;
        Ok((counts.ready, self.remove_queue(&queue).await?))
    }

    /// Whether a client may delete a queue; gives what is in it.
    pub(crate) async fn check_delete(
        &self,
        queue: &Arc<Queue>,
        if_unused: bool,
        if_empty: bool,
    ) -> Result<Counts, AmqpError> {
        let counts = queue.counts().await?;
        let refuse = |why| {
            let what = display(&self.name, queue.name());
            Err(AmqpError::new(ReplyCode::PreconditionFailed, format!("{what} {why}")))
        };
        if if_unused && counts.consumers > 0 {
            return refuse("in use");
        }
        if if_empty && counts.ready > 0 {
            return refuse("not empty");
        }
        Ok(counts)
    }

    /// Deletes this queue, not a later one of its name: its connection closed, or its last consumer went.
    pub(crate) async fn discard_queue(&self, queue: &Arc<Queue>) -> Result<(), AmqpError> {
        match &self.config.gateways {
            Some(gateways) => gateways.discard(self, queue).await,
            None => self.discard_here(queue).await,
        }
    }

    /// [`Self::discard_queue`] by the gateway that changes the topology.
    pub(crate) async fn discard_here(&self, queue: &Arc<Queue>) -> Result<(), AmqpError> {
        // With its vhost it is gone already.
        let Ok(_changing) = self.change_alone().await else { return Ok(()) };
        match self.queue_named(queue.name()) {
            Some(current) if Arc::ptr_eq(&current, queue) => {
                self.remove_queue(queue).await?.into_iter().for_each(Cancelled::tell);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The queues that belong to a connection.
    pub(crate) fn queues_of(&self, owner: Owner) -> Vec<Arc<Queue>> {
        let state = self.state();
        state.queues.iter().flatten().filter(|queue| queue.definition.owner == Some(owner)).cloned().collect()
    }

    /// The name of the stream for a new queue: another one when a queue of this name was deleted a moment ago.
    fn stream_for(&self, queue: &str) -> String {
        let deleted = self.deleted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match deleted.get(queue) {
            Some(at) if at.elapsed() < REUSE_AFTER => name::next_stream(&self.name, queue, now_ns()),
            _ => name::stream(&self.name, queue),
        }
    }

    pub(super) fn note_deleted(&self, queue: &str) {
        let mut deleted = self.deleted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if deleted.len() >= DELETED_SWEEP && deleted.len().is_power_of_two() {
            deleted.retain(|_, at| at.elapsed() < REUSE_AFTER);
        }
        // A name that the broker made up is never declared again.
        if !queue.starts_with("amq.gen-") {
            deleted.insert(queue.to_owned(), Instant::now());
        }
    }

    /// The stream goes first: a crash in between leaves an empty queue, never a stream that nobody knows.
    async fn remove_queue(&self, queue: &Arc<Queue>) -> Result<Vec<Cancelled>, AmqpError> {
        let cancelled = queue.delete().await?;
        self.note_deleted(queue.name());
        let changes = self.state().model.plan_queue_removal(queue.name());
        self.make(&changes).await?;
        Ok(cancelled)
    }

    pub(crate) async fn declare_exchange(&self, declare: &ExchangeDeclare) -> Result<(), AmqpError> {
        if self.state().model.plan_exchange_declare(declare)?.is_none() {
            return Ok(());
        }
        let _changing = self.change_alone().await?;
        let change = self.state().model.plan_exchange_declare(declare)?;
        if let Some(Change::PutExchange(definition)) = &change {
            if self.config.behind_rabbitmq {
                beside_rabbitmq::check_exchange(&self.name, definition)?;
            }
            if definition.kind == ExchangeKind::Delayed {
                self.ensure_delays().await?;
            }
        }
        self.make(change.as_slice()).await
    }

    pub(super) fn delays(&self) -> Queue {
        delays::queue(&self.name, &self.bridge, &self.config, &self.state)
    }

    /// Makes the stream of delayed messages and starts its actor, once.
    async fn ensure_delays(&self) -> Result<(), AmqpError> {
        if self.state().delays.is_some() {
            return Ok(());
        }
        let queue = Arc::new(self.delays());
        queue.ensure().await?;
        delays::start(queue.clone(), &self.state);
        self.state_mut().delays = Some(queue);
        Ok(())
    }

    pub(crate) async fn delete_exchange(&self, name: &str, if_unused: bool) -> Result<(), AmqpError> {
        let _changing = self.change_alone().await?;
        let changes = self.state().model.plan_exchange_delete(name, if_unused)?;
        self.make(&changes).await
    }

    pub(crate) async fn bind(&self, binding: &Binding, to_queue: bool, by: Owner) -> Result<(), AmqpError> {
        let _changing = self.change_alone().await?;
        let change = self.state().model.plan_bind(binding, to_queue, by)?;
        self.make(change.as_slice()).await
    }

    pub(crate) async fn unbind(&self, binding: &Binding, to_queue: bool, by: Owner) -> Result<(), AmqpError> {
        let _changing = self.change_alone().await?;
        let changes = self.state().model.plan_unbind(binding, to_queue, by)?;
        self.make(&changes).await
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

/// Deletes queues that nobody has used for their `x-expires`, for as long as the vhost lives.
async fn expire_queues(vhost: Weak<VhostRuntime>) {
    let mut tick = tokio::time::interval(EXPIRY_TICK);
    loop {
        tick.tick().await;
        let Some(vhost) = vhost.upgrade().filter(|vhost| !vhost.config.is_overtaken() && !vhost.gone.is_cancelled())
        else {
            return;
        };
        let expired: Vec<Arc<Queue>> = vhost
            .state()
            .queues
            .iter()
            .flatten()
            .filter(|queue| queue.is_here() && queue.has_expired())
            .cloned()
            .collect();
        for queue in expired {
            match vhost.discard_queue(&queue).await {
                Ok(()) => tracing::debug!(vhost = &*vhost.name, queue = queue.name(), "a queue expired"),
                Err(error) => tracing::warn!(queue = queue.name(), %error, "an expired queue cannot be deleted yet"),
            }
        }
    }
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

/// A name as RabbitMQ makes them up.
pub(super) fn made_up_name() -> String {
    use base64::Engine as _;
    let random = ulid::Ulid::new().to_bytes();
    format!("amq.gen-{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random))
}

/// Deletes the streams of transient and exclusive queues of gateways before this one.
async fn remove_leftovers(bridge: &Bridge, vhost: &str) -> Result<HashMap<String, Instant>, AmqpError> {
    let mut deleted = HashMap::new();
    let subject = format!("{}.{}.*", name::SUBJECT_PREFIX, name::vhost_token(vhost));
    for stream in api::streams(bridge, &subject).await? {
        let metadata = &stream["config"]["metadata"];
        let is_leftover = metadata[META_LIFETIME] == "gateway" && metadata[META_VHOST] == vhost;
        if let (true, Some(name)) = (is_leftover, stream["config"]["name"].as_str()) {
            tracing::info!(vhost, queue = metadata[META_QUEUE].as_str(), "removing a queue that its gateway has left");
            match api::call(bridge, &format!("STREAM.DELETE.{name}"), &serde_json::Value::Null).await {
                Err(error) if !error.not_found() => return Err(error.into()),
                _ => {}
            }
            deleted.extend(metadata[META_QUEUE].as_str().map(|name| (name.to_owned(), Instant::now())));
        }
    }
    Ok(deleted)
}
