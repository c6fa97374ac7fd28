//! Shadow: a copy of every message that RabbitMQ is given is stored in JetStream, read back, and compared with what
//! RabbitMQ delivers.
//!
//! Each vhost has a stream `AQS_<vhost>` with a subject `as.<vhost>.<queue>` for every queue: at most an hour and 256 MiB of
//! copies. The copy of a delivery that is settled is removed. Nothing here makes RabbitMQ's path wait: copies pass through
//! a bounded queue, and what does not fit is counted as unverified.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amqp_compat::backend::Message;
use amqp_compat::mapping::name;
use amqp_compat::mapping::properties::{self, HeaderSink, HeaderSource};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{Future, StreamExt};
use nats_bridge::publish::Publisher;
use nats_bridge::{Bridge, ErrorKind, PublishConfig};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use ulid::Ulid;

use crate::control::ShadowReport;
use crate::control_api::{Phase, QueueParity};
use crate::dual::shared::{Routes, Shadow};
use crate::fence::QueueName;
use crate::parity::{Limits, Parity, QueueId, Unverified, digest};

/// The header of a copy's id; a name that no AMQP header becomes.
const ID: &str = "Amqp-Bridge-Id";
/// Copies that wait to be stored. What comes beyond it is unverified.
const WAITING: usize = 16_384;
/// Copies that are sent and not confirmed.
const IN_FLIGHT: usize = 1_024;
/// Messages whose queues are remembered, in case RabbitMQ refuses one.
const RECENT: usize = 16_384;
const MAX_AGE: Duration = Duration::from_secs(3600);
const MAX_BYTES: i64 = 256 << 20;
const TICK: Duration = Duration::from_secs(1);

/// Stores copies, reads them back, and compares.
pub struct Standby {
    bridge: Bridge,
    routes: Arc<dyn Routes>,
    copies: mpsc::Sender<Copy>,
    table: Mutex<Table>,
    started: Instant,
    tasks: Mutex<JoinSet<()>>,
}

struct Copy {
    vhost: Arc<str>,
    id: u128,
    message: Message,
}

struct Table {
    parity: Parity,
    /// The epoch in which shadowing began; `None` outside of it.
    since: Option<u64>,
    /// Ids of this run of the sidecar have it as their upper half; copies of earlier runs are gone.
    run: u64,
    queues: HashMap<QueueName, QueueId>,
    subjects: HashMap<String, QueueId>,
    /// Where the copies are that are not settled.
    kept: HashMap<(QueueId, u128), u64>,
    /// The same, by queue and place, and whether some have gone since the last purge.
    places: HashMap<QueueId, Places>,
    /// Settled before the copy was confirmed.
    early: HashSet<(QueueId, u128)>,
    recent: VecDeque<(u128, Vec<QueueId>)>,
    /// Published while JetStream was behind with the topology; the oldest are forgotten first.
    uncopied: HashSet<u128>,
    uncopied_order: VecDeque<u128>,
}

#[derive(Default)]
struct Places {
    vhost: String,
    subject: String,
    open: BTreeSet<u64>,
    last: u64,
    gone: bool,
}

impl Standby {
    /// Begins to take copies. `routes` says which queues a message goes to.
    pub fn start(bridge: Bridge, routes: Arc<dyn Routes>) -> Arc<Self> {
        let (copies, waiting) = mpsc::channel(WAITING);
        let table = Table {
            parity: Parity::new(Limits::default()),
            since: None,
            run: 0,
            queues: HashMap::new(),
            subjects: HashMap::new(),
            kept: HashMap::new(),
            places: HashMap::new(),
            early: HashSet::new(),
            recent: VecDeque::new(),
            uncopied: HashSet::new(),
            uncopied_order: VecDeque::new(),
        };
        let standby = Arc::new(Self {
            bridge,
            routes,
            copies,
            table: Mutex::new(table),
            started: Instant::now(),
            tasks: Mutex::default(),
        });
        standby.spawn(copy_all(Arc::clone(&standby), waiting));
        standby.spawn(keep_time(Arc::clone(&standby)));
        standby
    }

    /// Ends its tasks.
    pub fn stop(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn queues_of(&self, vhost: &Arc<str>, message: &Message) -> Vec<QueueName> {
        let queues = self.routes.route(vhost, message).unwrap_or_default();
        queues.iter().map(|queue| QueueName { vhost: vhost.clone(), queue: queue.as_str().into() }).collect()
    }
}

impl Table {
    fn queue(&mut self, name: &QueueName) -> QueueId {
        if let Some(id) = self.queues.get(name) {
            return *id;
        }
        let id = self.parity.queue(&name.vhost, &name.queue);
        if self.queues.len() < Limits::default().queues {
            let subject = subject(&name.vhost, &name.queue);
            self.queues.insert(name.clone(), id);
            self.subjects.insert(subject.clone(), id);
            self.places.insert(id, Places { vhost: name.vhost.to_string(), subject, ..Places::default() });
        }
        id
    }

    /// A copy is stored at this place of the stream.
    fn stored(&mut self, queue: QueueId, id: u128, place: u64) {
        let Some(places) = self.places.get_mut(&queue) else { return };
        places.last = places.last.max(place);
        if self.early.remove(&(queue, id)) {
            places.gone = true;
        } else if self.kept.len() < Limits::default().entries {
            self.kept.insert((queue, id), place);
            places.open.insert(place);
        }
    }

    /// Its message needs no copy any more.
    fn done(&mut self, queue: QueueId, id: u128) {
        let Some(places) = self.places.get_mut(&queue) else { return };
        match self.kept.remove(&(queue, id)) {
            Some(place) => {
                places.open.remove(&place);
                places.gone = true;
            }
            None if self.early.len() < RECENT => {
                self.early.insert((queue, id));
            }
            None => {}
        }
    }

    fn forget_copies(&mut self) {
        self.kept.clear();
        self.early.clear();
        self.recent.clear();
        self.uncopied.clear();
        self.uncopied_order.clear();
        for places in self.places.values_mut() {
            places.open.clear();
            places.gone = true;
        }
    }
}

impl Shadow for Standby {
    fn phase(&self, phase: Phase, epoch: u64, run: u64) {
        let mut table = self.table();
        table.run = run;
        match (phase == Phase::Shadow, table.since) {
            (true, None) => table.since = Some(epoch),
            (false, Some(_)) => {
                table.since = None;
                table.parity.stop();
                table.forget_copies();
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    fn published(&self, vhost: &Arc<str>, id: u128, message: &Message, behind: bool) {
        if behind {
            let mut table = self.table();
            if table.uncopied.len() == RECENT
                && let Some(oldest) = table.uncopied_order.pop_front()
            {
                table.uncopied.remove(&oldest);
            }
            table.uncopied.insert(id);
            table.uncopied_order.push_back(id);
            return;
        }
        let copy = Copy { vhost: vhost.clone(), id, message: message.clone() };
        if let Err(full) = self.copies.try_send(copy) {
            let Copy { vhost, id, message } = full.into_inner();
            let queues = self.queues_of(&vhost, &message);
            let mut table = self.table();
            for queue in queues {
                let queue = table.queue(&queue);
                table.parity.unverified(queue, id, Unverified::CopyQueueFull);
            }
        }
    }

    fn failed(&self, id: u128) {
        let now = self.now();
        let mut table = self.table();
        // The last ones are the likely ones.
        let queues = table.recent.iter().rev().find(|(recent, _)| *recent == id).map(|(_, queues)| queues.clone());
        for queue in queues.unwrap_or_default() {
            table.parity.refused(queue, id, now);
            table.done(queue, id);
        }
    }

    fn delivered(&self, queue: &QueueName, id: u128, epoch: u64, message: &Message, redelivered: bool) {
        let now = self.now();
        let digest = digest(message);
        let dead = message.properties.headers().as_ref().is_some_and(|table| table.contains_key("x-death"));
        let mut table = self.table();
        let Some(since) = table.since else { return };
        let queue = table.queue(queue);
        if epoch < since || (id >> 64) as u64 != table.run {
            table.parity.unverified(queue, id, Unverified::OutsideShadow);
        } else if dead {
            table.parity.unverified(queue, id, Unverified::DeadLettered);
        } else if table.uncopied.contains(&id) {
            if !redelivered {
                table.parity.unverified(queue, id, Unverified::TopologyBehind);
            }
        } else {
            table.parity.delivered(queue, id, digest, redelivered, now);
        }
    }

    fn settled(&self, queue: &QueueName, id: u128) {
        let mut table = self.table();
        if table.since.is_some() {
            let queue = table.queue(queue);
            table.parity.settled(queue, id);
            table.done(queue, id);
        }
    }

    fn discarded(&self, queue: &QueueName) {
        let mut table = self.table();
        if table.since.is_none() {
            return;
        }
        let queue = table.queue(queue);
        table.parity.discarded(queue);
        table.kept.retain(|(of, _), _| *of != queue);
        if let Some(places) = table.places.get_mut(&queue) {
            places.open.clear();
            places.gone = true;
        }
    }
}

impl ShadowReport for Standby {
    fn emptied(&self, queue: &QueueName) {
        let now = self.now();
        let mut table = self.table();
        if table.since.is_some() {
            let queue = table.queue(queue);
            table.parity.emptied(queue, now);
        }
    }

    fn parity(&self) -> Vec<QueueParity> {
        self.table().parity.snapshot()
    }

    fn lag(&self) -> u64 {
        let pending: u64 = self.table().parity.snapshot().iter().map(|queue| queue.counts.pending).sum();
        pending + (WAITING - self.copies.capacity()) as u64
    }
}

type Sending = Pin<Box<dyn Future<Output = (QueueId, u128, nats_bridge::Result<nats_bridge::Published>)> + Send>>;

/// Stores what comes, for as long as the sidecar runs.
async fn copy_all(standby: Arc<Standby>, mut copies: mpsc::Receiver<Copy>) {
    let config = PublishConfig {
        attempts: 3,
        deadline: Duration::from_secs(5),
        no_stream_wait: Duration::from_secs(1),
        ..PublishConfig::default()
    };
    let publisher = loop {
        match standby.bridge.publisher(config.clone()).await {
            Ok(publisher) => break publisher,
            Err(error) => tracing::debug!(%error, "copies cannot be published yet"),
        }
        tokio::time::sleep(TICK).await;
    };
    let mut streams = HashMap::new();
    let mut sending: FuturesUnordered<Sending> = FuturesUnordered::new();
    loop {
        tokio::select! {
            copy = copies.recv(), if sending.len() < IN_FLIGHT => {
                let Some(copy) = copy else { return };
                store(&standby, &publisher, &mut streams, &mut sending, copy).await;
            }
            Some((queue, id, stored)) = sending.next() => {
                let mut table = standby.table();
                match stored {
                    Ok(published) => table.stored(queue, id, published.sequence),
                    Err(error) => {
                        tracing::debug!(%error, "a copy was not stored");
                        let too_large = error.kind() == ErrorKind::Rejected;
                        let why = if too_large { Unverified::NotCarried } else { Unverified::CopyFailed };
                        table.parity.unverified(queue, id, why);
                    }
                }
            }
        }
    }
}

/// Sends a copy for each queue that it would be in.
async fn store(
    standby: &Arc<Standby>,
    publisher: &Publisher,
    streams: &mut HashMap<Arc<str>, ()>,
    sending: &mut FuturesUnordered<Sending>,
    copy: Copy,
) {
    let Copy { vhost, id, message } = copy;
    let names = standby.queues_of(&vhost, &message);
    let queues: Vec<QueueId> = {
        let mut table = standby.table();
        let queues: Vec<_> = names.iter().map(|name| table.queue(name)).collect();
        if table.recent.len() == RECENT {
            table.recent.pop_front();
        }
        table.recent.push_back((id, queues.clone()));
        queues
    };
    if !queues.is_empty() && !streams.contains_key(&vhost) {
        match ensure(&standby.bridge, &vhost).await {
            Ok(()) => {
                streams.insert(vhost.clone(), ());
                standby.spawn(read_back(Arc::clone(standby), vhost.clone()));
            }
            Err(error) => tracing::warn!(error, %vhost, "copies cannot be stored yet"),
        }
    }
    for (name, queue) in names.iter().zip(queues) {
        let subject = subject(&name.vhost, &name.queue);
        let text = Ulid(id).to_string();
        let mut sink = Sink(nats_bridge::Message::new(subject, message.body.clone()).id(format!("{text}.{queue:?}")));
        properties::encode(
            &mut sink,
            message.exchange.as_str(),
            message.routing_key.as_str(),
            &message.properties,
            Some(&name.queue),
        );
        let sent = publisher.publish_later(sink.0.header(ID, text)).await;
        sending.push(Box::pin(async move {
            let stored = match sent {
                Ok(pending) => pending.await,
                Err(error) => Err(error),
            };
            (queue, id, stored)
        }));
    }
}

/// Makes the stream of a vhost's copies, and removes what an earlier run has left in it.
async fn ensure(bridge: &Bridge, vhost: &str) -> Result<(), String> {
    let config = stream::Config {
        name: stream_name(vhost),
        description: Some(format!("nats-bridge: standby copies of vhost {vhost}")),
        subjects: vec![format!("as.{}.*", name::vhost_token(vhost))],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_age: MAX_AGE,
        max_bytes: MAX_BYTES,
        storage: StorageType::File,
        ..Default::default()
    };
    let stream = bridge.jetstream().get_or_create_stream(config).await.map_err(|e| e.to_string())?;
    stream.purge().await.map_err(|e| e.to_string())?;
    Ok(())
}

/// Reads a vhost's copies as they are stored, for as long as the sidecar runs.
async fn read_back(standby: Arc<Standby>, vhost: Arc<str>) {
    loop {
        if let Err(error) = read(&standby, &vhost).await {
            tracing::warn!(error, %vhost, "copies cannot be read back for now");
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn read(standby: &Standby, vhost: &str) -> Result<(), String> {
    let stream = standby.bridge.jetstream().get_stream(stream_name(vhost)).await.map_err(|e| e.to_string())?;
    let config = OrderedConfig { deliver_policy: DeliverPolicy::All, ..Default::default() };
    let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
    let mut messages = consumer.messages().await.map_err(|e| e.to_string())?;
    while let Some(message) = messages.next().await {
        let message = message.map_err(|e| e.to_string())?;
        let headers = message.headers.clone().unwrap_or_default();
        let Some(id) = headers.get(ID).and_then(|text| Ulid::from_str(text.as_str()).ok()) else { continue };
        let copy = decode(&headers, message.payload.clone(), &message.subject);
        let (digest, now) = (digest(&copy), standby.now());
        let mut table = standby.table();
        if table.since.is_some()
            && let Some(queue) = table.subjects.get(message.subject.as_str()).copied()
        {
            table.parity.copy_stored(queue, id.0, digest, now);
        }
    }
    Err("the consumer ended".to_owned())
}

/// Lets time pass for the comparison, and removes settled copies.
async fn keep_time(standby: Arc<Standby>) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let now = standby.now();
        let settled: Vec<(String, String, u64)> = {
            let mut table = standby.table();
            table.parity.tick(now);
            // All up to the first that is open: queues are settled in order, but for a few.
            let mut settled = Vec::new();
            for p in table.places.values_mut().filter(|p| p.gone) {
                p.gone = false;
                let before = p.open.first().copied().unwrap_or(p.last + 1);
                settled.push((p.vhost.clone(), p.subject.clone(), before));
            }
            settled
        };
        for (vhost, subject, before) in settled {
            let purged = async {
                let stream = standby.bridge.jetstream().get_stream_no_info(stream_name(&vhost)).await.ok()?;
                stream.purge().filter(subject).sequence(before).await.ok()
            };
            // What is left goes with the next purge, or with its age.
            let _ = purged.await;
        }
    }
}

fn stream_name(vhost: &str) -> String {
    format!("AQS_{}", name::short(&name::vhost_token(vhost), name::MAX_STREAM_NAME))
}

fn subject(vhost: &str, queue: &str) -> String {
    format!("as.{}.{}", name::vhost_token(vhost), name::token(queue))
}

struct Sink(nats_bridge::Message);

impl HeaderSink for Sink {
    fn put(&mut self, name: &'static str, value: &str) {
        let message = std::mem::replace(&mut self.0, nats_bridge::Message::new("", Bytes::new()));
        self.0 = message.header(name, value);
    }
}

struct Source<'a>(&'a HeaderMap);

impl HeaderSource for Source<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.as_str())
    }

    fn each(&self, each: &mut dyn FnMut(&str, &str)) {
        for (name, values) in self.0.iter() {
            if let Some(value) = values.first() {
                each(name.as_ref(), value.as_str());
            }
        }
    }
}

/// The AMQP message that a copy is of.
fn decode(headers: &HeaderMap, body: Bytes, subject: &str) -> Message {
    let queue = subject.rsplit('.').next().and_then(name::untoken).unwrap_or_default();
    let fields = properties::decode(&Source(headers), &queue);
    Message { exchange: fields.exchange, routing_key: fields.routing_key, properties: fields.properties, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settled_copy_is_removed_whichever_comes_first_the_confirm_or_the_settlement() {
        let mut table = Table {
            parity: Parity::new(Limits::default()),
            since: Some(1),
            run: 0,
            queues: HashMap::new(),
            subjects: HashMap::new(),
            kept: HashMap::new(),
            places: HashMap::new(),
            early: HashSet::new(),
            recent: VecDeque::new(),
            uncopied: HashSet::new(),
            uncopied_order: VecDeque::new(),
        };
        let queue = table.queue(&QueueName { vhost: "/".into(), queue: "q".into() });
        table.stored(queue, 1, 10);
        table.stored(queue, 2, 11);
        table.done(queue, 1);
        table.done(queue, 3);
        table.stored(queue, 3, 12);
        let places = &table.places[&queue];
        assert_eq!((places.open.iter().copied().collect::<Vec<_>>(), places.last, places.gone), (vec![11], 12, true));
        assert!(table.early.is_empty());
    }
}
