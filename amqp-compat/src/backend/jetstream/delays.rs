//! Messages that a delayed exchange keeps: a stream of their own, and the actor that sends on what is due.
//!
//! The stream is read from its beginning, headers alone, into a list of due times in memory; the messages stay in the
//! stream. One that is due is read, routed from its exchange as the topology is then, and taken out of the stream when all
//! copies are confirmed. A crash in between sends it again with the same id, which the queues' streams drop within their
//! window of duplicates.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amq_protocol::types::{AMQPValue, FieldTable};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};
use futures::StreamExt as _;
use nats_bridge::Bridge;
use nats_bridge::publish::Confirm;
use serde_json::json;
use smallvec::SmallVec;

use super::api;
use super::config::JetStreamConfig;
use super::dead_letters::{Routed, admit, hidden, hide};
use super::message;
use super::publisher::{Also, Publisher, Settled};
use super::queue::Queue;
use super::vhost::State;
use crate::backend::{Message, PublishOutcome};
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::{name, properties, table};
use crate::model::delay::{delay_of, negated};
use crate::model::queue::{Overflow, QueueArguments, QueueDefinition, QueueKind};
use crate::model::vhost::Route;

/// Its name as a queue. No client can declare or reach it: the prefix is reserved, and it is not in the topology.
const NAME: &str = "amq.delayed";

/// How many messages that are due are read at once.
const BATCH: usize = 256;

/// How long after NATS did not do what was asked it is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// How often copies without a confirm are looked at, and whether the vhost is still there.
const TICK: Duration = Duration::from_millis(100);

/// The queue that stands for the stream of a vhost's delayed messages.
pub(crate) fn queue(
    vhost: &Arc<str>,
    bridge: &Bridge,
    config: &Arc<JetStreamConfig>,
    topology: &Arc<RwLock<State>>,
) -> Queue {
    let definition = QueueDefinition {
        name: NAME.into(),
        durable: true,
        owner: None,
        auto_delete: false,
        arguments: FieldTable::default(),
        settings: QueueArguments {
            kind: QueueKind::Stream,
            max_length: Some(config.max_delayed),
            overflow: Overflow::RejectPublish,
            ..QueueArguments::default()
        },
    };
    let settings = definition.settings.clone();
    Queue::new(vhost, (definition, settings), name::stream(vhost, NAME), bridge, config, topology)
}

/// Whether a queue stands for delayed messages.
pub(crate) fn is_store(queue: &Queue) -> bool {
    queue.name() == NAME
}

/// The exchanges that delay a message, as a header's value; `None` when that is the one that it was published to.
pub(crate) fn through(exchanges: &[Arc<str>], published_to: &str) -> Option<String> {
    if matches!(exchanges, [only] if **only == *published_to) || exchanges.is_empty() {
        return None;
    }
    let names: Vec<AMQPValue> = exchanges.iter().map(|name| AMQPValue::LongString(name.as_bytes().into())).collect();
    let mut listed = FieldTable::default();
    listed.insert("by".into(), AMQPValue::FieldArray(names.into()));
    Some(table::to_base64(&listed))
}

fn exchanges(headers: Option<&HeaderMap>, published_to: &str) -> Vec<String> {
    let listed = headers.and_then(|headers| table::from_base64(headers.get(properties::DELAYED_BY)?.as_str()));
    match listed.as_ref().and_then(|listed| listed.inner().get("by")) {
        Some(AMQPValue::FieldArray(names)) => {
            names.as_slice().iter().filter_map(crate::model::arguments::text).map(str::to_owned).collect()
        }
        _ => vec![published_to.to_owned()],
    }
}

/// Starts the actor over a stream that is there. It ends with the vhost, or when another gateway has taken over.
pub(crate) fn start(queue: Arc<Queue>, topology: &Arc<RwLock<State>>) {
    let topology = Arc::downgrade(topology);
    tokio::spawn(async move {
        while topology.strong_count() > 0 && !queue.config.is_overtaken() {
            let delays = Delays {
                queue: queue.clone(),
                topology: topology.clone(),
                waiting: BTreeSet::new(),
                under_way: HashMap::new(),
                done: Vec::new(),
            };
            if let Err(error) = delays.run().await {
                tracing::warn!(vhost = &*queue.vhost, %error, "delayed messages have to wait for NATS");
                tokio::time::sleep(AGAIN).await;
            }
        }
    });
}

struct Delays {
    queue: Arc<Queue>,
    topology: Weak<RwLock<State>>,
    /// When each message is due, in milliseconds since 1970, and its sequence.
    waiting: BTreeSet<(u64, u64)>,
    /// How many publishes of a message are not confirmed, and whether one of them failed.
    under_way: HashMap<u64, (usize, bool)>,
    /// Sent, and still in the stream.
    done: Vec<u64>,
}

impl Delays {
    async fn run(mut self) -> Result<(), AmqpError> {
        let bridge = self.queue.bridge.clone();
        let mut connection = bridge.connection();
        let connects = connection.borrow_and_update().connects;
        let mut stream = bridge.jetstream().get_stream(&self.queue.stream).await.map_err(failed)?;
        let config = OrderedConfig { headers_only: true, ..OrderedConfig::default() };
        let consumer = stream.create_consumer(config).await.map_err(failed)?;
        // What is due already goes in the order of its time, which is known when everything has been read.
        let mut is_read = stream.info().await.map_err(failed)?.state.messages == 0;
        let mut index = consumer.messages().await.map_err(failed)?;
        let (inbox, mut confirms) = bridge.ordered_inbox().await.map_err(failed)?;
        let mut publisher = Publisher::new(inbox, self.queue.config.clone());
        let mut confirmed: Vec<Confirm> = Vec::with_capacity(BATCH);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = self.waiting.first().map(|(due, _)| Duration::from_millis(due.saturating_sub(now())));
            let may_send = is_read && publisher.has_room() && self.under_way.len() < BATCH;
            let settled = tokio::select! {
                entry = index.next() => {
                    let entry = entry.ok_or_else(|| failed("the stream of delayed messages cannot be read"))?;
                    is_read |= self.learn(&entry.map_err(failed)?)?;
                    continue;
                }
                () = tokio::time::sleep(next.unwrap_or_default()), if next.is_some() && may_send => {
                    self.send_due(&stream, &mut publisher).await;
                    Vec::new()
                }
                count = confirms.next_many(&mut confirmed, BATCH) => {
                    if count == 0 {
                        return Err(failed("the connection to NATS was closed"));
                    }
                    let now = Instant::now();
                    confirmed.drain(..).filter_map(|confirm| publisher.confirmed(confirm, now)).collect()
                }
                changed = connection.changed() => {
                    changed.map_err(failed)?;
                    if connection.borrow_and_update().connects > connects {
                        // A server that was restarted has forgotten who reads the stream. What was sent and is not confirmed
                        // is sent again from the start, with its id.
                        return Ok(());
                    }
                    continue;
                }
                _ = tick.tick() => {
                    if self.topology.strong_count() == 0 || self.queue.config.is_overtaken() {
                        return Ok(());
                    }
                    publisher.resend(Instant::now()).await
                }
            };
            for settled in settled {
                self.ended(&settled);
            }
            self.remove_done().await;
        }
    }

    /// Notes when a message is due: by the server's clock, when it was stored, and its delay. True for the last one.
    fn learn(&mut self, entry: &async_nats::jetstream::Message) -> Result<bool, AmqpError> {
        let info = entry.info().map_err(failed)?;
        let message = message::message(entry.headers.as_ref(), Bytes::new(), NAME);
        let delay = delay_of(&message.properties).unwrap_or_default().unwrap_or_default();
        let stored = u64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
        self.waiting.insert((stored.saturating_add(delay), info.stream_sequence));
        Ok(info.pending == 0)
    }

    async fn send_due(&mut self, stream: &Stream, publisher: &mut Publisher) {
        let now = now();
        let due: Vec<(u64, u64)> = self.waiting.range(..=(now, u64::MAX)).take(BATCH).copied().collect();
        let mut read = futures::stream::iter(due)
            .map(|(due, sequence)| async move { (due, sequence, stream.get_raw_message(sequence).await) })
            .buffered(32);
        while let Some((due, sequence, stored)) = read.next().await {
            self.waiting.remove(&(due, sequence));
            match stored {
                Ok(stored) => {
                    let id = format!("delay:{}:{sequence}:{}", self.queue.stream, stored.time.unix_timestamp_nanos());
                    self.send(publisher, sequence, &id, &stored.headers, stored.payload).await;
                }
                Err(error) if error.kind() == NO_MESSAGE => {
                    tracing::debug!(sequence, "a delayed message is not there any more");
                }
                Err(error) => {
                    tracing::warn!(%error, "a delayed message cannot be read yet");
                    self.waiting.insert((again(), sequence));
                }
            }
        }
    }

    /// Sends a message to where its exchange leads now.
    async fn send(&mut self, publisher: &mut Publisher, sequence: u64, id: &str, headers: &HeaderMap, payload: Bytes) {
        let mut message = message::message(Some(headers), payload, NAME);
        message.properties = negated(&message.properties);
        let bcc = hidden(Some(headers));
        let mut queues = self.route(&message, &exchanges(Some(headers), message.exchange.as_str()), &bcc);
        let passed_on = admit(&mut queues, &message, &bcc);
        if message.properties.expiration().is_some() {
            for queue in &queues {
                queue.watch_expiry().await;
            }
        }
        let (mut sent, mut failed) = (0, false);
        let direct = Some((message, bcc, queues, None)).filter(|(_, _, queues, _)| !queues.is_empty());
        let passed_on = passed_on
            .into_iter()
            .map(|Routed { letter, queues, delayed_by }| (letter.message, letter.bcc, queues, delayed_by));
        for (message, bcc, queues, delayed_by) in passed_on.chain(direct) {
            let also = Also { id: Some(id.to_owned()), bcc: hide(&bcc), delayed_by, ..Also::default() };
            match publisher.publish(0, sequence, message, also, queues, Instant::now()).await {
                Ok(None) => sent += 1,
                Ok(Some(settled)) => failed |= settled.outcome == PublishOutcome::Failed,
                Err(error) => tracing::error!(%error, "a delayed message is too large and is dropped"),
            }
        }
        match (sent, failed) {
            // Stored in memory, or without a route, as any message that is not mandatory.
            (0, false) => self.done.push(sequence),
            (0, true) => drop(self.waiting.insert((again(), sequence))),
            (sent, failed) => drop(self.under_way.insert(sequence, (sent, failed))),
        }
    }

    fn route(
        &self,
        message: &Message,
        exchanges: &[String],
        bcc: &[amq_protocol::types::ShortString],
    ) -> SmallVec<[Arc<Queue>; 4]> {
        let Some(state) = self.topology.upgrade() else { return SmallVec::new() };
        let state = state.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let extra = crate::model::vhost::extra_keys(&message.properties).unwrap_or_default();
        let keys: Vec<&str> = std::iter::once(message.routing_key.as_str())
            .chain(extra)
            .chain(bcc.iter().map(|key| key.as_str()))
            .collect();
        let mut route = Route::default();
        let mut slots: SmallVec<[u32; 8]> = SmallVec::new();
        for exchange in exchanges {
            if state.model.exchange(exchange).is_none() {
                tracing::warn!(exchange, "a delayed message is dropped: its exchange is gone");
            }
            state.model.route_within(exchange, &keys, Some(&message.properties), &mut route);
            slots.extend_from_slice(&route.queues);
        }
        slots.sort_unstable();
        slots.dedup();
        slots.iter().filter_map(|slot| state.queue(*slot).cloned()).collect()
    }

    fn ended(&mut self, settled: &Settled) {
        let Some((left, failed)) = self.under_way.get_mut(&settled.seq) else { return };
        *left -= 1;
        *failed |= settled.outcome == PublishOutcome::Failed;
        if *left > 0 {
            return;
        }
        let failed = *failed;
        self.under_way.remove(&settled.seq);
        if failed {
            self.waiting.insert((again(), settled.seq));
        } else {
            self.done.push(settled.seq);
        }
    }

    /// Takes what was sent out of the stream. What cannot be taken out now is tried again with the next tick.
    async fn remove_done(&mut self) {
        let (bridge, call) = (&self.queue.bridge, format!("STREAM.MSG.DELETE.{}", self.queue.stream));
        let remove = |sequence: u64| {
            let call = &call;
            async move {
                let answer = api::call(bridge, call, &json!({ "seq": sequence, "no_erase": true })).await;
                answer.err().filter(|error| !error.no_message()).map(|error| (sequence, error))
            }
        };
        let failed: Vec<_> =
            futures::stream::iter(self.done.drain(..).map(remove)).buffer_unordered(32).collect().await;
        if let Some((sequence, error)) = failed.iter().flatten().next() {
            tracing::warn!(%error, sequence, "a message that was sent after its delay cannot be removed yet");
        }
        self.done.extend(failed.into_iter().flatten().map(|(sequence, _)| sequence));
    }
}

const NO_MESSAGE: async_nats::jetstream::stream::RawMessageErrorKind =
    async_nats::jetstream::stream::LastRawMessageErrorKind::NoMessageFound;

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn again() -> u64 {
    now() + u64::try_from(AGAIN.as_millis()).unwrap_or_default()
}

fn failed(error: impl std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, error.to_string())
}
