//! One AMQP queue: a work-queue stream with one durable pull consumer, or for an exclusive one the gateway's memory; and
//! the actor that feeds its consumers.

mod stream;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use amq_protocol::protocol::basic::AMQPProperties;
use async_nats::Subject;
use nats_bridge::Bridge;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OnceCell, mpsc, oneshot};

pub(crate) use self::stream::{CONSUMER, Pending, handed, nanoseconds};
use super::api::ApiError;
use super::config::JetStreamConfig;
use super::gateways::{Gateways, start_relay};
use super::levels::Levels;
use super::log;
use super::memory::Memory;
use super::pump::{self, Cancelled, PumpCommand};
use super::settings::{NO_STAMP, ack_timeout, is_counted, stamp};
use super::vhost::State;
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::name;
use crate::model::queue::{Overflow, QueueArguments, QueueDefinition, QueueKind};
use crate::model::ready::Ready;

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
    /// How long clients may take to settle its deliveries, in milliseconds; 0: as long as they like.
    ack_timeout_ms: AtomicU64,
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
            ack_timeout_ms: AtomicU64::new(ack_timeout(&settings, config)),
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

    /// What it does now: its arguments, and what policies set.
    pub(crate) fn settings(&self) -> Arc<QueueArguments> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The time to live in milliseconds that messages published now are stored with, where a policy sets one. As in RabbitMQ,
    /// a policy that comes or goes later does not change it.
    pub(crate) fn stamp(&self) -> Option<u64> {
        Some(self.stamp.load(Ordering::Acquire)).filter(|stamp| *stamp != NO_STAMP)
    }

    /// How long a client may take to settle a delivery that is made now.
    pub(crate) fn ack_timeout(&self) -> Option<Duration> {
        let milliseconds = self.ack_timeout_ms.load(Ordering::Relaxed);
        (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
    }

    /// Other policies are in force: does from now on as they say.
    pub(crate) async fn apply(self: &Arc<Self>, settings: QueueArguments) -> Result<(), AmqpError> {
        self.ack_timeout_ms.store(ack_timeout(&settings, &self.config), Ordering::Relaxed);
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

    /// Whether messages of the queue may expire.
    pub(crate) fn is_expiring(&self) -> bool {
        self.watches_expiry.load(Ordering::Acquire)
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

    /// Whether messages stay when they are read.
    pub(crate) fn is_log(&self) -> bool {
        self.definition.settings.kind == QueueKind::Stream
    }

    /// Whether its messages live in the server's memory and are gone when that restarts.
    pub(crate) fn is_in_memory(&self) -> bool {
        !self.definition.is_persistent()
    }
}

/// 541 for a queue whose actor ended in the middle: the queue was deleted.
pub(crate) fn gone() -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, "the queue was deleted meanwhile")
}
