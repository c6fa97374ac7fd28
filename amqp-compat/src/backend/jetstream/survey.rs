//! What a backend has, for those who look at it: vhosts, exchanges, queues and how full they are.

use super::JetStreamBackend;
use super::alarm::Resource;
use super::vhosts::About;
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

impl JetStreamBackend {
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
