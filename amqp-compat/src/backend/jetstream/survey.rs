//! What a backend has, for those who look at it: vhosts, exchanges, queues and how full they are.

use serde_json::{Value, json};

use super::alarm::Resource;
use super::vhosts::About;
use super::{JetStreamBackend, api};
use crate::error::AmqpError;
use crate::model::exchange::ExchangeDefinition;
use crate::model::queue::QueueDefinition;

/// What is in a queue, and who is attached to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Messages that are ready for delivery.
    pub ready: u64,
    /// Messages that clients have and have not settled.
    pub unacknowledged: u64,
    /// Consumers.
    pub consumers: u32,
}

/// Which of its messages a queue's stream still has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// The sequence of the oldest message; one above the newest when there is none.
    pub first: u64,
    /// The newest sequence that was ever stored.
    pub last: u64,
    /// Sequences between the two that are not there any more: all of them, or those that were asked for.
    pub gone: Vec<u64>,
    /// How many questions JetStream was asked.
    pub asked: u64,
}

/// Up to how many removed messages between others are told of in one answer; beyond it single ones are asked for.
const GONE_MOST: u64 = 4_096;

impl JetStreamBackend {
    /// Which messages the stream of a queue still has, whoever holds them. Where more than 4 096 were removed from between others, only
    /// the sequences of `single` are looked up there. `None` for a queue that has no stream on disk.
    ///
    /// # Errors
    /// `InternalError` when JetStream does not answer.
    pub async fn present(&self, vhost: &str, queue: &str, single: &[u64]) -> Result<Option<Present>, AmqpError> {
        let Some(queue) = self.vhosts.get(vhost).and_then(|vhost| vhost.queue_named(queue)) else { return Ok(None) };
        if !queue.has_stream() || queue.is_in_memory() || queue.is_log() {
            return Ok(None);
        }
        let not_found = |error: api::ApiError| if error.not_found() { Ok(None) } else { Err(error.into()) };
        let state = match queue.stream_info().await {
            Ok(mut info) => info["state"].take(),
            Err(error) => return not_found(error),
        };
        let number = |of: &Value, field: &str| of[field].as_u64().unwrap_or_default();
        let mut present = Present { asked: 1, ..Present::default() };
        (present.first, present.last) = (number(&state, "first_seq"), number(&state, "last_seq"));
        match number(&state, "num_deleted") {
            0 => {}
            1..=GONE_MOST => {
                present.asked += 1;
                let state = match queue.stream_info_with(&json!({ "deleted_details": true })).await {
                    Ok(mut info) => info["state"].take(),
                    Err(error) => return not_found(error),
                };
                // What became the first meanwhile, or was stored, is of the later answer as well.
                (present.first, present.last) = (number(&state, "first_seq"), number(&state, "last_seq"));
                present.gone = state["deleted"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
            }
            _ => {
                for sequence in single.iter().filter(|s| (present.first..=present.last).contains(*s)) {
                    present.asked += 1;
                    match queue.has_message(*sequence).await {
                        Ok(true) => {}
                        Ok(false) => present.gone.push(*sequence),
                        Err(error) => return not_found(error),
                    }
                }
            }
        }
        Ok(Some(present))
    }

    /// The names of the vhosts, in order.
    pub fn vhosts(&self) -> Vec<String> {
        self.vhosts.names()
    }

    /// What is said of a vhost; `None` when there is no such vhost.
    pub fn about_vhost(&self, name: &str) -> Option<About> {
        self.vhosts.about(name)
    }

    /// The exchanges of a vhost, by name; `None` when there is no such vhost.
    pub fn exchanges(&self, vhost: &str) -> Option<Vec<ExchangeDefinition>> {
        let mut exchanges: Vec<_> = self.vhosts.get(vhost)?.state().model.exchanges().cloned().collect();
        exchanges.sort_by(|a, b| a.name.cmp(&b.name));
        Some(exchanges)
    }

    /// An exchange.
    pub fn exchange(&self, vhost: &str, name: &str) -> Option<ExchangeDefinition> {
        self.vhosts.get(vhost)?.state().model.exchange(name).cloned()
    }

    /// The queues of a vhost, by name; `None` when there is no such vhost.
    pub fn queues(&self, vhost: &str) -> Option<Vec<QueueDefinition>> {
        let mut queues: Vec<_> = self.vhosts.get(vhost)?.state().model.queues().cloned().collect();
        queues.sort_by(|a, b| a.name.cmp(&b.name));
        Some(queues)
    }

    /// A queue.
    pub fn queue(&self, vhost: &str, name: &str) -> Option<QueueDefinition> {
        let vhost = self.vhosts.get(vhost)?;
        let state = vhost.state();
        state.model.queue_slot(name).and_then(|slot| state.model.queue(slot)).cloned()
    }

    /// What is in a queue; `None` when it is not there.
    ///
    /// # Errors
    /// `InternalError` when JetStream does not answer.
    pub async fn counts(&self, vhost: &str, queue: &str) -> Result<Option<QueueCounts>, AmqpError> {
        let Some(queue) = self.vhosts.get(vhost).and_then(|vhost| vhost.queue_named(queue)) else { return Ok(None) };
        let counts = queue.counts().await?;
        Ok(Some(QueueCounts {
            ready: counts.ready,
            unacknowledged: counts.unacknowledged,
            consumers: counts.consumers,
        }))
    }

    /// What JetStream has no room for, while it is so; connections that publish are blocked then.
    pub fn alarm(&self) -> Option<Resource> {
        self.config.alarm.raised()
    }

    /// Whether NATS is connected; while it is not, publishes wait.
    pub fn is_connected(&self) -> bool {
        let now = *self.bridge.connection().borrow();
        now.connected && !now.closed
    }
}
