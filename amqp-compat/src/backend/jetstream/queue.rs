//! One AMQP queue: a work-queue stream with one durable pull consumer, or for an exclusive one the gateway's memory; and
//! the actor that feeds its consumers.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use amq_protocol::protocol::basic::AMQPProperties;
use async_nats::Subject;
use nats_bridge::Bridge;
use serde_json::{Value, json};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OnceCell, mpsc, oneshot};

use super::api::{self, ApiError};
use super::config::JetStreamConfig;
use super::delays;
use super::gateways::{Gateways, start_relay};
use super::levels::Levels;
use super::log;
use super::memory::Memory;
use super::pump::{self, Cancelled, PumpCommand};
use super::shape::{self, META_QUEUE, META_VHOST};
use super::vhost::State;
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::name;
use crate::model::queue::{Overflow, QueueArguments, QueueDefinition, QueueKind, display};
use crate::model::ready::Ready;

/// The name of the durable consumer of every queue's stream; those of priorities above 0 have it in front.
pub(super) const CONSUMER: &str = "amqp";

/// In a consumer's metadata: up to which sequence messages may have been handed to clients before it was made anew.
const META_HANDED: &str = "amqp-handed";

/// Up to which sequence messages may have been handed to clients.
pub(crate) fn handed(consumer: &Value) -> u64 {
    let before = consumer["config"]["metadata"][META_HANDED].as_str().and_then(|text| text.parse().ok());
    consumer["delivered"]["stream_seq"].as_u64().unwrap_or_default().max(before.unwrap_or_default())
}

/// How long the server is given to remove a deleted stream's files before the name is used again.
const DELETION: Duration = Duration::from_secs(1);

/// No policy sets a time to live.
const NO_STAMP: u64 = u64::MAX;

/// A queue that exists. A queue that is deleted and declared again is another one.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) definition: QueueDefinition,
    pub(crate) vhost: Arc<str>,
    pub(crate) stream: String,
    pub(crate) levels: Levels,
    pub(crate) bridge: Bridge,
    pub(crate) config: Arc<JetStreamConfig>,
    /// The vhost's topology, to find where dead letters go.
    pub(crate) topology: Weak<RwLock<State>>,
    /// What has arrived, of an exclusive queue: it has no stream.
    pub(crate) memory: Option<Memory>,
    /// What it does now: its arguments, and what policies set.
    settings: RwLock<Arc<QueueArguments>>,
    /// The time to live that a policy sets for messages published now; [`NO_STAMP`] without one.
    stamp: AtomicU64,
    /// Whether its length is limited.
    is_limited: AtomicBool,
    /// What is ready, while its length is limited.
    ready: Mutex<Ready>,
    /// Dead letters on their way into the queue.
    arriving: AtomicUsize,
    /// Whether its actor has been told to look at its length and has not yet.
    trims: AtomicBool,
    pump: OnceCell<mpsc::Sender<PumpCommand>>,
    deleted: AtomicBool,
    /// Whether its deletion has begun: its stream is not to be made again.
    is_going: AtomicBool,
    watches_expiry: AtomicBool,
    /// How many consumers it has.
    consumers: AtomicUsize,
    /// When it was last used, for `x-expires`.
    used: Mutex<Instant>,
}

/// What is in a queue and who is attached to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Messages ready for delivery.
    pub(crate) ready: u64,
    /// Messages that clients have.
    pub(crate) unacknowledged: u64,
    /// Consumers.
    pub(crate) consumers: u32,
}

/// What the server says of the queue's consumer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    /// Messages that it has not delivered yet.
    pub(crate) pending: u64,
    /// Messages that it waits for an acknowledgement of.
    pub(crate) unsettled: u64,
    /// How many deliveries it has made since it was made.
    pub(crate) deliveries: u64,
}

impl Queue {
    pub(crate) fn new(
        vhost: &Arc<str>,
        (definition, settings): (QueueDefinition, QueueArguments),
        stream: String,
        bridge: &Bridge,
        config: &Arc<JetStreamConfig>,
        topology: &Arc<RwLock<State>>,
    ) -> Self {
        let subject = name::subject(vhost, &definition.name);
        let highest = settings.max_priority.unwrap_or(0);
        let is_mine = |owner| config.gateways.as_ref().is_none_or(|gateways| gateways.is_mine(owner));
        let memory = definition.owner.is_some_and(is_mine).then(|| Memory::new(config.memory.clone()));
        let ready = Ready::new(settings.max_length, settings.max_length_bytes, highest);
        Self {
            stream,
            memory,
            levels: Levels::new(&subject, highest),
            topology: Arc::downgrade(topology),
            stamp: AtomicU64::new(stamp(&definition, &settings)),
            is_limited: AtomicBool::new(is_counted(&settings)),
            settings: RwLock::new(Arc::new(settings)),
            ready: Mutex::new(ready),
            arriving: AtomicUsize::new(0),
            trims: AtomicBool::new(false),
            definition,
            vhost: vhost.clone(),
            bridge: bridge.clone(),
            config: config.clone(),
            pump: OnceCell::new(),
            deleted: AtomicBool::new(false),
            is_going: AtomicBool::new(false),
            watches_expiry: AtomicBool::new(false),
            consumers: AtomicUsize::new(0),
            used: Mutex::new(Instant::now()),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.definition.name
    }

    fn gateways(&self) -> Option<&Gateways> {
        self.config.gateways.as_ref()
    }

    /// Whether it has a stream: an exclusive queue lives in the memory of its connection's gateway.
    pub(crate) fn has_stream(&self) -> bool {
        self.definition.owner.is_none()
    }

    /// Whether its actor runs in this gateway.
    pub(crate) fn is_here(&self) -> bool {
        match (self.gateways(), self.definition.owner) {
            (None, _) => true,
            (Some(gateways), Some(owner)) => gateways.is_mine(owner),
            (Some(gateways), None) => gateways.runs_queues(),
        }
    }

    /// Whether it is the exclusive queue of another gateway's client.
    pub(crate) fn is_foreign(&self) -> bool {
        !self.has_stream() && !self.is_here()
    }

    /// Whether others than this gateway may store into its stream.
    pub(crate) fn is_shared(&self) -> bool {
        self.gateways().is_some() && self.has_stream()
    }

    /// Where messages with these properties are sent: to its stream, or to the gateway that has to take them in.
    pub(crate) fn destination(&self, properties: &AMQPProperties) -> Subject {
        match self.gateways() {
            Some(gateways)
                if !self.is_here() && (!self.has_stream() || self.is_limited() || self.levels.highest() > 0) =>
            {
                gateways.put_subject(&self.vhost, self.name(), self.definition.owner)
            }
            _ => self.levels.subject(self.levels.of(properties)).clone(),
        }
    }

    /// Whether it has consumers.
    pub(crate) fn has_consumers(&self) -> bool {
        self.consumers.load(Ordering::Acquire) > 0
    }

    /// Whether it was deleted: nothing is to be stored, delivered or made again for it.
    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Whether it is deleted, or about to be.
    pub(crate) fn is_going(&self) -> bool {
        self.is_going.load(Ordering::Acquire)
    }

    pub(crate) fn set_consumers(&self, count: usize) {
        self.consumers.store(count, Ordering::Release);
        self.touch();
    }

    /// Notes that it was used: declared, consumed from or got from.
    pub(crate) fn touch(&self) {
        *self.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Instant::now();
    }

    /// Whether nobody has used it for as long as its `x-expires` says.
    pub(crate) fn has_expired(&self) -> bool {
        let Some(after) = self.settings().expires_ms else { return false };
        let used = *self.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.consumers.load(Ordering::Acquire) == 0 && used.elapsed() >= Duration::from_millis(after)
    }

    /// The name of the JetStream consumer of a priority.
    pub(crate) fn consumer(priority: u8) -> String {
        match priority {
            0 => CONSUMER.to_owned(),
            priority => format!("{CONSUMER}-{priority}"),
        }
    }

    /// What it does now: its arguments, and what policies set.
    pub(crate) fn settings(&self) -> Arc<QueueArguments> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The time to live in milliseconds that messages published now are stored with, where a policy sets one. As in RabbitMQ,
    /// a policy that comes or goes later does not change it.
    pub(crate) fn stamp(&self) -> Option<u64> {
        Some(self.stamp.load(Ordering::Acquire)).filter(|stamp| *stamp != NO_STAMP)
    }

    /// Other policies are in force: does from now on as they say.
    pub(crate) async fn apply(self: &Arc<Self>, settings: QueueArguments) -> Result<(), AmqpError> {
        self.stamp.store(stamp(&self.definition, &settings), Ordering::Release);
        let is_counted = is_counted(&settings);
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.touch();
        if !self.is_here() {
            self.is_limited.store(is_counted, Ordering::Release);
            return Ok(());
        }
        self.apply_here().await
    }

    /// Its actor does as its settings say.
    async fn apply_here(self: &Arc<Self>) -> Result<(), AmqpError> {
        let (answer, applied) = oneshot::channel();
        // An actor that has ended belongs to a queue that was deleted.
        if self.pump().await.send(PumpCommand::Apply { answer }).await.is_ok() {
            return applied.await.unwrap_or(Ok(()));
        }
        Ok(())
    }

    /// Whether its length is limited.
    pub(crate) fn is_limited(&self) -> bool {
        self.is_limited.load(Ordering::Acquire)
    }

    /// Counts what is ready from now on, under the limits that are set, or does so no more. True when it has to be learnt what
    /// is there: `seen` is, by priority, up to where the queue's actor has been given it.
    pub(crate) fn limit(&self, seen: &[u64]) -> bool {
        let settings = self.settings();
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let is_limited = is_counted(&settings);
        let was_limited = self.is_limited.swap(is_limited, Ordering::AcqRel);
        match (was_limited, is_limited) {
            (true, true) => ready.set_limits(settings.max_length, settings.max_length_bytes),
            (false, false) => {}
            _ => *ready = Ready::after(settings.max_length, settings.max_length_bytes, seen),
        }
        is_limited && !was_limited
    }

    /// What is ready cannot be told yet: does as if there was no limit.
    pub(crate) fn count_no_more(&self) {
        self.is_limited.store(false, Ordering::Release);
    }

    /// What is ready; `None` for a queue without a length limit. Never held across an await.
    pub(crate) fn ready(&self) -> Option<MutexGuard<'_, Ready>> {
        self.is_limited().then(|| self.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes room for a message; false when the queue is full and refuses.
    pub(crate) fn admit(&self, size: usize) -> bool {
        // Whoever runs it takes messages in.
        if !self.is_here() {
            return true;
        }
        let Some(mut ready) = self.ready() else { return true };
        if ready.refuses(size as u64) && self.settings().overflow != Overflow::DropHead {
            return false;
        }
        ready.admit(size as u64);
        true
    }

    /// Whether what it refuses goes to its dead-letter exchange.
    pub(crate) fn passes_on(&self) -> bool {
        self.settings().overflow == Overflow::RejectPublishDlx
    }

    /// A copy for this queue reached its end: stored at a sequence, or not.
    pub(crate) fn ended(&self, properties: &AMQPProperties, size: usize, stored: Option<u64>) {
        let priority = self.levels.of(properties);
        if let Some(sequence) = stored {
            self.levels.stored(priority, sequence);
        }
        if !self.is_here() {
            return;
        }
        let Some(mut ready) = self.ready() else { return };
        match stored {
            Some(sequence) => ready.stored(priority, sequence, size as u64),
            None => ready.lost(size as u64),
        }
        let over = ready.is_over() && self.settings().overflow == Overflow::DropHead;
        drop(ready);
        if over
            && let Some(pump) = self.pump.get()
            && !self.trims.swap(true, Ordering::AcqRel)
            && let Err(TrySendError::Full(command)) = pump.try_send(PumpCommand::Trim)
        {
            let pump = pump.clone();
            tokio::spawn(async move { pump.send(command).await });
        }
    }

    /// Its actor looks at its length.
    pub(crate) fn trimming(&self) {
        self.trims.store(false, Ordering::Release);
    }

    /// Dead letters come, or have come.
    pub(crate) fn dead_letter_comes(&self) {
        self.arriving.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn dead_letter_came(&self) {
        self.arriving.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether dead letters are on their way into it.
    pub(crate) fn is_awaiting_dead_letters(&self) -> bool {
        self.arriving.load(Ordering::Acquire) > 0
    }

    /// Messages that the consumer has not delivered yet, and those that it waits for an acknowledgement of.
    ///
    /// The server counts a message some microseconds after it has confirmed it, so that the count is asked for again
    /// while it is lower than the confirms since `seen` say.
    pub(crate) async fn pending(&self, seen: u64) -> Result<Pending, ApiError> {
        let mut tries = 0;
        loop {
            let info = self.consumer_info(0).await?;
            let pending = info["num_pending"].as_u64().unwrap_or_default();
            let delivered = info["delivered"]["stream_seq"].as_u64().unwrap_or_default();
            let counted = delivered.max(seen).max(self.levels.drained(0));
            tries += 1;
            if tries > 5 || counted.saturating_add(pending) >= self.levels.last_stored(0) {
                return Ok(Pending {
                    pending,
                    unsettled: info["num_ack_pending"].as_u64().unwrap_or_default(),
                    deliveries: info["delivered"]["consumer_seq"].as_u64().unwrap_or_default(),
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Makes the stream and its consumer, or finds them there; an exclusive queue has none.
    pub(crate) async fn ensure(&self) -> Result<(), AmqpError> {
        if !self.has_stream() {
            return Ok(());
        }
        match self.create_stream(self.replicas()).await {
            Ok(()) => {}
            Err(error) if error.too_few_servers() && self.definition.settings.kind != QueueKind::Classic => {
                if !self.config.quorum_fallback {
                    return Err(AmqpError::not_implemented(format!(
                        "replicated {}: the NATS servers cannot hold {} replicas",
                        display(&self.vhost, self.name()),
                        self.replicas()
                    )));
                }
                tracing::warn!(
                    queue = self.name(),
                    wanted = self.replicas(),
                    replicas = self.config.replicas,
                    "a replicated queue is made with fewer replicas: the NATS servers cannot hold more"
                );
                self.create_stream(self.config.replicas).await?;
            }
            Err(error) => {
                let queue = display(&self.vhost, self.name());
                return Err(AmqpError::new(ReplyCode::InternalError, format!("{queue} cannot be stored: {error}")));
            }
        }
        if !self.is_log() {
            self.ensure_consumer().await?;
        }
        Ok(())
    }

    async fn create_stream(&self, replicas: usize) -> Result<(), ApiError> {
        let config = self.stream_config(replicas);
        let call = format!("STREAM.CREATE.{}", self.stream);
        match api::call_again(&self.bridge, &call, &config).await {
            Ok(_) => return Ok(()),
            Err(error) if error.in_use() => {}
            Err(error) => return Err(error),
        }
        // It is there with other settings: left by another version or other options, or another queue's whose hashed
        // name is the same. An empty one of ours is made anew; nothing that holds messages is ever touched.
        let info = self.stream_info().await?;
        let metadata = &info["config"]["metadata"];
        let ours = metadata[META_QUEUE] == self.name() && metadata[META_VHOST] == *self.vhost;
        if !ours {
            return Err(ApiError::Refused {
                err_code: 10058,
                text: format!(
                    "stream {} exists and does not belong to {}",
                    self.stream,
                    display(&self.vhost, self.name())
                ),
            });
        }
        if info["state"]["messages"].as_u64() == Some(0) {
            api::call(&self.bridge, &format!("STREAM.DELETE.{}", self.stream), &Value::Null).await?;
            tokio::time::sleep(DELETION).await;
            return api::call(&self.bridge, &call, &config).await.map(drop);
        }
        tracing::warn!(stream = self.stream, "the stream of a queue holds messages and is kept with its own settings");
        Ok(())
    }

    /// Gives the stream the bounds that are in force now.
    pub(crate) async fn update_stream(&self) -> Result<(), ApiError> {
        let replicas = self.stream_info().await?["config"]["num_replicas"].as_u64().unwrap_or(1);
        let config = self.stream_config(usize::try_from(replicas).unwrap_or(1));
        api::call(&self.bridge, &format!("STREAM.UPDATE.{}", self.stream), &config).await.map(drop)
    }

    /// Makes the consumer that every queue has, or finds it there. One that is missing where there are messages was lost.
    pub(crate) async fn ensure_consumer(&self) -> Result<(), ApiError> {
        let handed = match self.consumer_info(0).await {
            Ok(info) => handed(&info),
            // A gateway was killed while it made the consumer anew: anything may have been delivered.
            Err(error) if error.not_found() => {
                let state = &self.stream_info().await?["state"];
                if state["messages"] == 0 { 0 } else { state["last_seq"].as_u64().unwrap_or_default() }
            }
            Err(error) => return Err(error),
        };
        self.put_consumer(0, self.consumer_request(0, handed)).await.map(drop)
    }

    /// Makes the consumer of a priority, or finds it there, with what it says was handed out; gives what the server says of
    /// it.
    pub(crate) async fn create_consumer(&self, priority: u8) -> Result<Value, ApiError> {
        let mut body = self.consumer_request(priority, 0);
        body["action"] = json!("create");
        let refused = match self.put_consumer(priority, body).await {
            Err(error @ ApiError::Refused { .. }) => error,
            other => return other,
        };
        // It is there with other settings, or has been made anew by `recreate_consumer`.
        let Ok(info) = self.consumer_info(priority).await else { return Err(refused) };
        self.put_consumer(priority, self.consumer_request(priority, handed(&info))).await
    }

    async fn put_consumer(&self, priority: u8, request: Value) -> Result<Value, ApiError> {
        let call = format!("CONSUMER.DURABLE.CREATE.{}.{}", self.stream, Self::consumer(priority));
        api::call_again(&self.bridge, &call, &request).await
    }

    fn consumer_request(&self, priority: u8, handed: u64) -> Value {
        let name = Self::consumer(priority);
        let mut body = json!({
            "stream_name": self.stream,
            "config": {
                "durable_name": name,
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "ack_wait": nanoseconds(self.config.ack_wait),
                "max_deliver": -1,
                "max_ack_pending": -1,
                "max_waiting": 4096,
                "replay_policy": "instant",
            }
        });
        if self.levels.highest() > 0 {
            body["config"]["filter_subject"] = json!(self.levels.subject(priority).as_str());
        }
        if handed > 0 {
            body["config"]["metadata"] = json!({ META_HANDED: handed.to_string() });
        }
        body
    }

    /// Deletes the consumer and makes it anew: all that was delivered and not acknowledged is ready again, at once and
    /// in order. The server's delivery counts start again, so that the consumer says up to which sequence messages may
    /// have been `handed` to clients: a gateway that starts later takes those for redelivered.
    pub(crate) async fn recreate_consumer(&self, priority: u8, handed: u64) -> Result<Value, ApiError> {
        let call = format!("CONSUMER.DELETE.{}.{}", self.stream, Self::consumer(priority));
        match api::call(&self.bridge, &call, &Value::Null).await {
            Err(error) if !error.not_found() => return Err(error),
            _ => {}
        }
        self.put_consumer(priority, self.consumer_request(priority, handed)).await
    }

    pub(crate) async fn stream_is_there(&self) -> Result<bool, ApiError> {
        match self.stream_info().await {
            Ok(_) => Ok(true),
            Err(error) if error.not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn stream_info(&self) -> Result<Value, ApiError> {
        api::call(&self.bridge, &format!("STREAM.INFO.{}", self.stream), &Value::Null).await
    }

    pub(crate) async fn consumer_info(&self, priority: u8) -> Result<Value, ApiError> {
        let call = format!("CONSUMER.INFO.{}.{}", self.stream, Self::consumer(priority));
        api::call(&self.bridge, &call, &Value::Null).await
    }

    /// How many messages are stored, whoever holds them.
    pub(crate) async fn stored_messages(&self) -> Result<u64, ApiError> {
        Ok(self.stream_info().await?["state"]["messages"].as_u64().unwrap_or_default())
    }

    /// The priorities above 0 that have messages.
    pub(crate) async fn stored_priorities(&self) -> Result<Vec<u8>, ApiError> {
        let above = format!("{}.*", self.levels.subject(0));
        let body = json!({ "subjects_filter": above });
        let info = api::call(&self.bridge, &format!("STREAM.INFO.{}", self.stream), &body).await?;
        let subjects = info["state"]["subjects"].as_object();
        let of = |subject: &String| (1..=self.levels.highest()).find(|p| self.levels.subject(*p).as_str() == subject);
        Ok(subjects.into_iter().flatten().filter_map(|(subject, _)| of(subject)).collect())
    }

    /// Messages that are ready, and consumers.
    pub(crate) async fn counts(self: &Arc<Self>) -> Result<Counts, AmqpError> {
        if self.is_foreign() {
            return Ok(Counts::default());
        }
        let pump = match self.levels.highest() {
            0 if self.memory.is_none() && self.is_here() => self.pump.get(),
            _ => Some(self.pump().await),
        };
        if let Some(pump) = pump {
            let (answer, counts) = oneshot::channel();
            if pump.send(PumpCommand::Counts { answer }).await.is_ok()
                && let Ok(counts) = counts.await
            {
                return counts;
            }
        }
        if self.is_log() {
            return Ok(Counts { ready: self.stored_messages().await?, ..Counts::default() });
        }
        self.learn_last().await?;
        let Pending { pending, unsettled, .. } = self.pending(0).await?;
        Ok(Counts { ready: pending + unsettled, ..Counts::default() })
    }

    /// Learns what other gateways have stored: their confirms are not heard here.
    pub(crate) async fn learn_last(&self) -> Result<(), ApiError> {
        if self.is_shared() && self.levels.highest() == 0 {
            let last = self.stream_info().await?["state"]["last_seq"].as_u64().unwrap_or_default();
            self.levels.stored(0, last);
        }
        Ok(())
    }

    /// Its actor runs here from now on: it does what it would have done since its gateway's start.
    pub(crate) async fn begin(self: &Arc<Self>) -> Result<(), AmqpError> {
        if self.settings().message_ttl_ms.is_some() {
            self.watch_expiry().await;
        }
        if is_counted(&self.settings()) {
            // Everything is read once, as when a limit comes by policy.
            self.count_no_more();
            self.apply_here().await?;
        }
        Ok(())
    }

    /// The gateway that changes the topology has deleted it. Its consumers are told.
    pub(crate) async fn forget(&self) {
        self.is_going.store(true, Ordering::Release);
        self.deleted.store(true, Ordering::Release);
        let Some(pump) = self.pump.get() else { return };
        let (answer, done) = oneshot::channel();
        if pump.send(PumpCommand::Stop { answer }).await.is_ok() {
            done.await.unwrap_or_default().into_iter().for_each(Cancelled::tell);
        }
    }

    /// Waits until what links have settled has been said to the gateway that runs it.
    pub(crate) async fn sync(&self) {
        let Some(pump) = self.pump.get() else { return };
        let (answer, done) = oneshot::channel();
        // An actor that has ended belongs to a queue that was deleted.
        if pump.send(PumpCommand::Sync { answer }).await.is_ok() {
            let _ = done.await;
        }
    }

    /// Removes every ready message and says how many they were.
    pub(crate) async fn purge(self: &Arc<Self>) -> Result<u64, AmqpError> {
        let (answer, purged) = oneshot::channel();
        self.pump().await.send(PumpCommand::Purge { answer }).await.map_err(|_| gone())?;
        purged.await.map_err(|_| gone())?
    }

    /// The actor that feeds the queue's consumers, started when it is first needed.
    pub(crate) async fn pump(self: &Arc<Self>) -> &mpsc::Sender<PumpCommand> {
        let start = || async {
            match self.gateways() {
                Some(gateways) if !self.is_here() => start_relay(self.clone(), gateways.clone()),
                _ if self.is_log() => log::start(self.clone()),
                _ => pump::start(self.clone()),
            }
        };
        self.pump.get_or_init(start).await
    }

    /// Makes sure that messages expire though nobody consumes.
    pub(crate) async fn watch_expiry(self: &Arc<Self>) {
        // The gateway of an exclusive queue watches it when it takes the message in.
        if !self.is_log() && !self.is_foreign() && !self.watches_expiry.swap(true, Ordering::AcqRel) {
            // An actor that has ended belongs to a queue that was deleted.
            let _ = self.pump().await.send(PumpCommand::WatchExpiry).await;
        }
    }

    /// Starts what has to go on while nobody uses the queue: messages expire, and a length limit knows what is there.
    pub(crate) async fn watch(self: &Arc<Self>) -> Result<(), AmqpError> {
        if !self.is_here() {
            return Ok(());
        }
        if self.settings().message_ttl_ms.is_some() {
            self.watch_expiry().await;
        }
        if self.is_limited() {
            let (answer, learnt) = oneshot::channel();
            self.pump().await.send(PumpCommand::Learn { answer }).await.map_err(|_| gone())?;
            learnt.await.map_err(|_| gone())??;
        }
        Ok(())
    }

    /// Deletes the stream; one that is gone already counts as deleted. Gives back its consumers, who are to be told.
    pub(crate) async fn delete(&self) -> Result<Vec<Cancelled>, AmqpError> {
        self.is_going.store(true, Ordering::Release);
        if let Err(error) = self.delete_stream().await {
            self.is_going.store(false, Ordering::Release);
            return Err(error.into());
        }
        self.deleted.store(true, Ordering::Release);
        if let Some(pump) = self.pump.get() {
            let (answer, done) = oneshot::channel();
            if pump.send(PumpCommand::Stop { answer }).await.is_ok() {
                // Ended without an answer is ended all the same.
                return Ok(done.await.unwrap_or_default());
            }
        }
        Ok(Vec::new())
    }

    pub(crate) async fn delete_stream(&self) -> Result<(), ApiError> {
        if !self.has_stream() {
            return Ok(());
        }
        match api::call(&self.bridge, &format!("STREAM.DELETE.{}", self.stream), &Value::Null).await {
            Err(error) if !error.not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether messages stay when they are read.
    pub(crate) fn is_log(&self) -> bool {
        self.definition.settings.kind == QueueKind::Stream
    }

    /// Whether its messages live in the server's memory and are gone when that restarts.
    pub(crate) fn is_in_memory(&self) -> bool {
        !self.definition.is_persistent()
    }

    fn replicas(&self) -> usize {
        match delays::is_store(self) {
            true => self.config.replicas,
            false => shape::replicas(&self.definition, &self.config),
        }
    }

    fn stream_config(&self, replicas: usize) -> Value {
        let of = (&self.definition, &*self.settings());
        let mut config = shape::stream_config(&self.vhost, &self.stream, of, replicas, &self.config);
        if self.bridge.api_level() >= 1 {
            config["allow_msg_ttl"] = json!(true);
        }
        config
    }
}

/// Whether its length is limited, and counted here: the server keeps a log within its bounds.
fn is_counted(settings: &QueueArguments) -> bool {
    settings.has_length_limit() && settings.kind != QueueKind::Stream
}

/// The time to live that messages are stored with: only where it is not the queue's own argument.
fn stamp(definition: &QueueDefinition, settings: &QueueArguments) -> u64 {
    match settings.message_ttl_ms {
        Some(ttl) if definition.settings.message_ttl_ms != Some(ttl) => ttl.min(NO_STAMP - 1),
        _ => NO_STAMP,
    }
}

/// 541 for a queue whose actor ended in the middle: the queue was deleted.
pub(crate) fn gone() -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, "the queue was deleted meanwhile")
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
