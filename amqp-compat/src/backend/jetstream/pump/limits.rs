//! The limits of length: what is ready is counted, and the head goes when it is too much.

use smallvec::SmallVec;

use super::super::ack;
use super::{BATCH, Pump};
use crate::error::{AmqpError, ReplyCode};
use crate::model::dead_letter::Reason;

/// How much of the head of a queue is kept here, so that it can be dropped without asking for it.
pub(super) const HEADS: u64 = 64;

impl Pump {
    /// A message is ready: it came, or came back.
    pub(super) fn count_in(&self, sequence: u64, is_new: bool) {
        let Some(mut ready) = self.queue.ready() else { return };
        let Some(held) = self.held.get(&sequence) else { return };
        let size = held.payload.len() as u64;
        match is_new {
            true => ready.arrived(held.priority, sequence, size),
            false => ready.put(sequence, size),
        }
    }

    /// A message is not ready any more.
    pub(super) fn count_out(&self, sequence: u64) {
        if let Some(mut ready) = self.queue.ready() {
            ready.take(sequence);
        }
    }

    /// Says how many messages consumers are about to take: those do not count.
    pub(super) fn count_credit(&self) {
        if let Some(mut ready) = self.queue.ready() {
            ready.set_credit(self.consumers.room());
        }
    }

    fn is_over(&self) -> bool {
        self.limits_head && self.queue.ready().is_some_and(|ready| ready.is_over())
    }

    /// Takes messages off the head until the queue is within its limit.
    pub(super) async fn trim(&mut self) -> Result<(), AmqpError> {
        while self.is_over() {
            let stored = self.queue.levels.last_stored_of_all();
            let Some((sequence, _)) = self.bring_head().await? else {
                // Somebody has taken them past the gateway.
                if let Some(mut ready) = self.queue.ready() {
                    ready.clear_to(stored);
                }
                return Ok(());
            };
            if self.is_over() {
                self.bury(sequence, Reason::MaxLength).await;
            }
        }
        Ok(())
    }

    /// [`Self::trim`] where nobody waits for it; it is tried again at the next turn.
    pub(super) async fn trim_or_log(&mut self) {
        if let Err(error) = self.trim().await {
            tracing::warn!(queue = self.queue.name(), %error, "a queue over its limit cannot be shortened yet");
        }
    }

    /// Learns the sizes of what is in the queue when the gateway starts: everything is read once.
    pub(super) async fn learn(&mut self) -> Result<(), AmqpError> {
        if self.is_remembered() {
            return Ok(());
        }
        if self.fresh {
            self.recover().await;
        }
        if self.queue.stream_info().await?["state"]["messages"].as_u64() == Some(0) {
            return Ok(());
        }
        let priorities: SmallVec<[u8; 1]> = self.open().map(|(priority, _)| priority).collect();
        for priority in priorities {
            self.learn_priority(priority).await?;
        }
        // What was looked at is not kept: the consumers are made anew, and have it all again.
        self.take_back().await;
        Ok(())
    }

    async fn learn_priority(&mut self, priority: u8) -> Result<(), AmqpError> {
        loop {
            let messages = self.pull_some(priority, BATCH, false).await?;
            if messages.is_empty() {
                return Err(AmqpError::new(ReplyCode::InternalError, "JetStream does not answer"));
            }
            let mut is_end = false;
            for message in messages {
                match message.reply.as_deref().and_then(ack::read) {
                    Some(metadata) => drop(self.accept(metadata, message).await),
                    None => is_end = true,
                }
            }
            for sequence in self.backlog.take() {
                self.held.remove(&sequence);
            }
            if is_end {
                return Ok(());
            }
        }
    }
}
