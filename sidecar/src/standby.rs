//! Shadow: a copy of every message that RabbitMQ is given is stored in JetStream, read back, and compared with what
//! RabbitMQ delivers.
//!
//! Each vhost has a stream `AQS_<vhost>` with a subject `as.<vhost>.<queue>` for every queue: at most an hour and 256 MiB of
//! copies. A copy is removed once it was read back and its delivery is settled. Nothing here makes RabbitMQ's path wait: copies pass
//! through a bounded queue, and what does not fit is counted as unverified.
//!
//! Each copy has a ticket from the moment it leaves that queue until it is read back or given up. The oldest ticket tells up to when
//! the comparison is complete: only for deliveries from before that is a copy that did not come missing.

mod table;

use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amqp_compat::backend::Message;
use amqp_compat::error::ReplyCode;
use amqp_compat::mapping::name;
use amqp_compat::mapping::properties::{self, HeaderSink};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};
use futures::stream::FuturesUnordered;
use futures::{Future, StreamExt};
use nats_bridge::publish::Publisher;
use nats_bridge::{Bridge, ErrorKind, PublishConfig};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use ulid::Ulid;

use self::table::{Copy, Heard, Table};
use crate::control::ShadowReport;
use crate::control_api::{Phase, QueueParity};
use crate::dual::shared::{Routed, Shadow};
use crate::fence::QueueName;
use crate::parity::{Limits, QueueId, Unverified, digest};

/// The header of a copy's id; a name that no AMQP header becomes.
const ID: &str = "Amqp-Bridge-Id";
/// Copies that wait to be stored. What comes beyond it is unverified.
const WAITING: usize = 16_384;
/// What is told of RabbitMQ's path before that works it off itself, as nobody has looked at the table meanwhile.
const HEARD: usize = 16_384;
/// Copies that are sent and not confirmed.
const IN_FLIGHT: usize = 1_024;
/// How long those that come next are collected: nobody waits for them, and sent together they take less from what has to be fast.
const COLLECT: Duration = Duration::from_millis(10);
const MAX_AGE: Duration = Duration::from_secs(3600);
const MAX_BYTES: i64 = 256 << 20;
const TICK: Duration = Duration::from_secs(1);

/// Stores copies, reads them back, and compares.
pub struct Standby {
    bridge: Bridge,
    copies: mpsc::Sender<Copy>,
    /// Copies that were put into the queue, or were about to be.
    taken: AtomicU64,
    table: Mutex<Table>,
    /// Whether what RabbitMQ delivers is compared: in `shadow`.
    compares: AtomicBool,
    /// What RabbitMQ's path has told, for who looks at the table next; it waits for nothing but other pushes.
    heard: Mutex<Vec<Heard>>,
    started: Instant,
    tasks: Mutex<JoinSet<()>>,
}

impl Standby {
    /// Begins to take copies.
    pub fn start(bridge: Bridge) -> Arc<Self> {
        let (copies, waiting) = mpsc::channel(WAITING);
        let standby = Arc::new(Self {
            bridge,
            copies,
            taken: AtomicU64::new(0),
            table: Mutex::new(Table::new()),
            compares: AtomicBool::new(false),
            heard: Mutex::default(),
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

    /// The table with all that was heard.
    fn table(&self) -> MutexGuard<'_, Table> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = std::mem::take(&mut *self.heard());
        heard.into_iter().for_each(|heard| table.heard(heard));
        table
    }

    fn heard(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, what: Heard) {
        let is_full = {
            let mut heard = self.heard();
            heard.push(what);
            heard.len() >= HEARD
        };
        if is_full {
            drop(self.table());
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Up to when every copy that was taken has been read back or given up. `now` was read before.
    fn complete(&self, table: &Table, now: Duration) -> Duration {
        match table.tickets.first_key_value() {
            Some((_, ticket)) => ticket.taken.saturating_sub(Duration::from_nanos(1)),
            None if self.taken.load(Ordering::SeqCst) == table.ticketed => now,
            None => table.received,
        }
    }
}

impl Shadow for Standby {
    fn phase(&self, phase: Phase, epoch: u64, run: u64) {
        let mut table = self.table();
        table.run = run;
        self.compares.store(phase == Phase::Shadow, Ordering::Release);
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

    fn published(&self, id: u128, epoch: u64, message: &Message, routed: &Routed, behind: bool) {
        if behind {
            return self.table().has_no_copy(id, Unverified::TopologyBehind);
        }
        let queues = match routed {
            Ok(queues) => queues.clone(),
            // What RabbitMQ routes through an exchange that JetStream does not have is missing there.
            Err(ReplyCode::NotFound) => return,
            Err(_) => return self.table().has_no_copy(id, Unverified::NotCarried),
        };
        let Some(vhost) = queues.first().map(|queue| Arc::clone(&queue.vhost)) else { return };
        self.taken.fetch_add(1, Ordering::SeqCst);
        let copy = Copy { vhost, id, epoch, taken: self.now(), queues, message: message.clone() };
        if let Err(full) = self.copies.try_send(copy) {
            let Copy { id, queues, .. } = full.into_inner();
            let mut table = self.table();
            table.ticketed += 1;
            for queue in queues {
                let queue = table.queue(&queue);
                table.parity.unverified(queue, id, Unverified::CopyQueueFull);
            }
        }
    }

    fn failed(&self, id: u128) {
        let mut table = self.table();
        // The last ones are the likely ones.
        let queues = table.recent.iter().rev().find(|(recent, _)| *recent == id).map(|(_, queues)| queues.clone());
        for queue in queues.unwrap_or_default() {
            table.parity.unverified(queue, id, Unverified::PublishFailed);
            table.done(queue, id);
        }
        table.has_no_copy(id, Unverified::PublishFailed);
    }

    fn declared(&self, queue: &QueueName, loses: bool) {
        let mut table = self.table();
        let queue = table.queue(queue);
        table.parity.loses(queue, loses);
    }

    fn delivered(&self, queue: &QueueName, id: u128, epoch: u64, message: &Message, redelivered: bool) {
        if !self.compares.load(Ordering::Acquire) {
            return;
        }
        let dead = message.properties.headers().as_ref().is_some_and(|table| table.contains_key("x-death"));
        let (queue, digest, at) = (queue.clone(), digest(message), self.now());
        self.hear(Heard::Delivered { queue, id, epoch, digest, dead, redelivered, at });
    }

    fn settled(&self, queue: &QueueName, id: u128) {
        if self.compares.load(Ordering::Acquire) {
            self.hear(Heard::Settled { queue: queue.clone(), id });
        }
    }

    fn discarded(&self, queue: &QueueName) {
        let mut table = self.table();
        if table.since.is_none() {
            return;
        }
        let queue = table.queue(queue);
        table.parity.discarded(queue);
        let gone: Vec<u128> = table.kept.keys().filter(|(_, of)| *of == queue).map(|(id, _)| *id).collect();
        for id in gone {
            table.give_up(queue, id, Unverified::Discarded);
        }
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

    fn unread(&self) -> u64 {
        let table = self.table();
        table.tickets.len() as u64 + self.taken.load(Ordering::SeqCst).saturating_sub(table.ticketed)
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
    let mut batch = Vec::new();
    let collected = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(collected);
    loop {
        let room = IN_FLIGHT.saturating_sub(sending.len());
        let mut together = async |batch: &mut Vec<Copy>| {
            if !collected.is_elapsed() {
                collected.as_mut().await;
            }
            copies.recv_many(batch, room).await
        };
        tokio::select! {
            received = together(&mut batch), if room > 0 => {
                if received == 0 {
                    return;
                }
                for copy in batch.drain(..) {
                    store(&standby, &publisher, &mut streams, &mut sending, copy).await;
                }
                collected.as_mut().reset(tokio::time::Instant::now() + COLLECT);
            }
            Some((queue, id, stored)) = sending.next() => {
                // One that is stored is waited for by its reader.
                if let Err(error) = stored {
                    tracing::debug!(%error, "a copy was not stored");
                    let too_large = error.kind() == ErrorKind::Rejected;
                    let why = if too_large { Unverified::NotCarried } else { Unverified::CopyFailed };
                    standby.table().give_up(queue, id, why);
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
    let queues = standby.table().leaves(&copy);
    let Copy { vhost, id, message, .. } = copy;
    if !queues.is_empty() && !streams.contains_key(&vhost) {
        match ensure(&standby.bridge, &vhost).await {
            Ok(()) => {
                streams.insert(vhost.clone(), ());
                standby.spawn(read_back(Arc::clone(standby), vhost.clone()));
            }
            Err(error) => tracing::warn!(error, %vhost, "copies cannot be stored yet"),
        }
    }
    for (name, queue) in queues {
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
        take_in(standby, &message.map_err(|e| e.to_string())?)?;
    }
    Err("the consumer ended".to_owned())
}

fn take_in(standby: &Standby, message: &async_nats::jetstream::Message) -> Result<(), String> {
    let Some(headers) = &message.headers else { return Ok(()) };
    let Some(id) = headers.get(ID).and_then(|text| Ulid::from_str(text.as_str()).ok()) else { return Ok(()) };
    let place = message.info().map_err(|e| e.to_string())?.stream_sequence;
    let copy = decode(headers, message.payload.clone(), &message.subject);
    let (digest, expires) = (digest(&copy), copy.properties.expiration().is_some());
    let now = standby.now();
    let mut table = standby.table();
    if let Some(queue) = table.subjects.get(message.subject.as_str()).copied() {
        // Of an earlier shadow, or given up: nobody waits for it.
        if table.since.is_some() && table.kept.contains_key(&(id.0, queue)) {
            table.parity.copy_stored(queue, id.0, digest, expires, now);
        }
        table.arrived(queue, id.0, place);
    }
    Ok(())
}

/// Lets time pass for the comparison, and removes settled copies.
async fn keep_time(standby: Arc<Standby>) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        metrics::gauge!("natsbridge_shadow_heard").set(standby.heard().len() as f64);
        let now = standby.now();
        let settled: Vec<(String, String, u64)> = {
            let mut table = standby.table();
            let Limits { window, grace, .. } = Limits::default();
            table.expire(now.saturating_sub(window + grace));
            let complete = standby.complete(&table, now);
            table.parity.tick(now, complete);
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

/// The AMQP message that a copy is of.
fn decode(headers: &HeaderMap, body: Bytes, subject: &str) -> Message {
    let queue = subject.rsplit('.').next().and_then(name::untoken).unwrap_or_default();
    let fields = properties::decode(headers, &queue);
    Message { exchange: fields.exchange, routing_key: fields.routing_key, properties: fields.properties, body }
}

#[cfg(test)]
mod tests {
    use super::table::tests::copy;
    use super::*;

    #[tokio::test]
    async fn what_nobody_takes_in_is_taken_in_at_the_bound_by_who_tells_it() {
        let nats = test_support::nats::NatsServer::start();
        let standby = Standby::start(Bridge::connect(&nats.url()).await.expect("NATS answers"));
        let queue = QueueName { vhost: "/".into(), queue: "q".into() };
        let message = copy(0, 5).message;
        standby.delivered(&queue, 1, 5, &message, false);
        assert_eq!(standby.heard().len(), 0, "nothing is compared before shadow");
        standby.phase(Phase::Shadow, 5, 0);
        let count = HEARD as u64 + 10;
        for id in 0..count {
            standby.delivered(&queue, u128::from(id), 5, &message, false);
            standby.settled(&queue, u128::from(id));
            assert!(standby.heard().len() < HEARD);
        }
        let pending: u64 = ShadowReport::parity(&*standby).iter().map(|queue| queue.counts.pending).sum();
        assert_eq!((pending, standby.heard().len()), (count, 0));
        standby.stop();
    }
}
