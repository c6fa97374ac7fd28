//! One consumer's way through a stream queue.
//!
//! It reads through a JetStream consumer of its own, which lives in the server's memory and asks for no acknowledgements. The
//! place is known here: when that consumer is gone (nats-server was restarted), or skipped something, another one begins
//! after the last message that was handed out. Nothing is asked for beyond the client's credit.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amq_protocol::types::{AMQPValue, FieldTable};
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::super::message;
use super::super::pump::NewConsumer;
use super::super::queue::Queue;
use crate::backend::{Delivery, DeliveryId, Event};
use crate::error::{AmqpError, ReplyCode};
use crate::model::stream::{OFFSET, Offset};

/// The most messages that are asked for at once.
const BATCH: u32 = 256;

/// How long one request for messages may wait at the server; a lost one is noticed after it.
const WAIT: Duration = Duration::from_secs(5);

/// How long after NATS did not do what was asked it is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// After which time without a reader the server removes its consumer.
const ABANDONED: Duration = Duration::from_secs(60);

/// Reads for a consumer that began at this time, until it is aborted or its link is gone.
pub(super) async fn run(queue: Arc<Queue>, new: NewConsumer, credit: mpsc::UnboundedReceiver<u32>, begun_ms: u64) {
    let mut reader = Reader { queue, new, credit, room: 0, last: None, begun_ms };
    loop {
        match reader.read().await {
            // The link, or the queue, has gone.
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(queue = reader.queue.name(), %error, "a stream is read anew from where it was left");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

struct Reader {
    queue: Arc<Queue>,
    new: NewConsumer,
    credit: mpsc::UnboundedReceiver<u32>,
    room: u32,
    /// The sequence of the last message that was handed out.
    last: Option<u64>,
    /// When it began: what "an hour ago" means, however often the server has to be asked again.
    begun_ms: u64,
}

impl Reader {
    async fn read(&mut self) -> Result<(), AmqpError> {
        let mut connection = self.queue.bridge.connection();
        let connects = connection.borrow_and_update().connects;
        let consumer = self.consumer().await?;
        let mut expected = 1;
        loop {
            while self.room == 0 {
                let Some(amount) = self.credit.recv().await else { return Ok(()) };
                self.room = self.room.saturating_add(amount);
            }
            let batch = consumer.batch().max_messages(self.room.min(BATCH) as usize).expires(WAIT);
            let mut batch = batch.messages().await.map_err(failed)?;
            loop {
                let message = tokio::select! {
                    message = batch.next() => message,
                    changed = connection.changed() => {
                        changed.map_err(failed)?;
                        if connection.borrow_and_update().connects > connects {
                            return Err(failed("the connection to NATS was lost"));
                        }
                        continue;
                    }
                };
                let Some(message) = message else { break };
                let message = message.map_err(failed)?;
                let info = message.info().map_err(failed)?;
                if info.consumer_sequence != expected {
                    return Err(failed("the server has sent something that did not come"));
                }
                let sequence = info.stream_sequence;
                expected += 1;
                // The server begins at its end where a consumer wants to begin beyond that.
                if matches!(self.new.offset, Offset::At(offset) if sequence <= offset) {
                    continue;
                }
                let event = self.delivery(&message, sequence);
                if self.new.events.send(event).await.is_err() {
                    return Ok(());
                }
                self.last = Some(sequence);
                self.room -= 1;
                while let Ok(amount) = self.credit.try_recv() {
                    self.room = self.room.saturating_add(amount);
                }
            }
        }
    }

    /// A JetStream consumer that begins where this one goes on.
    async fn consumer(&self) -> Result<Consumer<Config>, AmqpError> {
        let from_time = |ms: u64| {
            let time = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
            time.map(|start_time| DeliverPolicy::ByStartTime { start_time }).map_err(failed)
        };
        let deliver_policy = match (self.last, self.new.offset) {
            (Some(last), _) => DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
            (None, Offset::First) => DeliverPolicy::All,
            // The log has made offsets of these before it answered the client.
            (None, Offset::Last | Offset::Next) => DeliverPolicy::New,
            (None, Offset::At(offset)) => DeliverPolicy::ByStartSequence { start_sequence: offset.saturating_add(1) },
            (None, Offset::Since(seconds)) => from_time(seconds.saturating_mul(1000))?,
            (None, Offset::Ago(seconds)) => from_time(self.begun_ms.saturating_sub(seconds.saturating_mul(1000)))?,
        };
        let config = Config {
            deliver_policy,
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: ABANDONED,
            ..Config::default()
        };
        let jetstream = self.queue.bridge.jetstream();
        jetstream.create_consumer_on_stream(config, self.queue.stream.as_str()).await.map_err(failed)
    }

    fn delivery(&self, message: &Message, sequence: u64) -> Event {
        let (headers, payload) = (message.headers.as_ref(), message.payload.clone());
        let mut message = message::message(headers, payload, self.queue.name());
        let mut entries = message.properties.headers().as_ref().map(|h| h.inner().clone()).unwrap_or_default();
        let offset = i64::try_from(sequence.saturating_sub(1)).unwrap_or(i64::MAX);
        entries.insert(OFFSET.into(), AMQPValue::LongLongInt(offset));
        message.properties = message.properties.with_headers(FieldTable::from(entries));
        let id = DeliveryId(self.new.base | sequence);
        let delivery = Box::new(Delivery { id, redelivered: false, ack_timeout: self.queue.ack_timeout(), message });
        Event::Delivery { channel: self.new.channel, consumer_tag: self.new.tag.clone(), delivery }
    }
}

/// Now, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn failed(error: impl std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, error.to_string())
}
