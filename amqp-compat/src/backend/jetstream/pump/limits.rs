//! The limits of length: what is ready is counted, and the head goes when it is too much.

use smallvec::SmallVec;

use super::super::ack;
use super::super::memory::now_ns;
use super::{BATCH, Pump};
use crate::error::{AmqpError, ReplyCode};
use crate::model::dead_letter::Reason;
use crate::model::queue::{Overflow, QueueKind};

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

    /// Notes how many messages consumers are about to take: those do not count.
    /// `at_ns`: since when they are ready, if they were not before; otherwise since now.
    pub(super) fn count_credit(&mut self, at_ns: Option<u64>) {
        match self.consumers.is_ready() || self.consumers.is_about_to_be_ready() {
            true => drop(self.ready_since_ns.get_or_insert_with(|| at_ns.unwrap_or_else(now_ns))),
            false => {
                self.ready_since_ns = None;
                self.awaits = 0;
            }
        }
        if let Some(mut ready) = self.queue.ready() {
            ready.set_credit(self.consumers.room());
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.limits_head && self.queue.ready().is_some_and(|ready| ready.is_over())
    }

    /// Takes messages off the head until the queue is within its limit.
    pub(super) async fn trim(&mut self) -> Result<(), AmqpError> {
        while self.is_over() {
            let stored = self.queue.levels.last_stored_of_all();
            let Some((sequence, _)) = self.bring_head(false).await? else {
                // Somebody has taken them past the gateway.
                if let Some(mut ready) = self.queue.ready() {
                    ready.clear_to(stored);
                }
                return Ok(());
            };
            // What has come since consumers had room is theirs first: in RabbitMQ they have it before the next one comes.
            if self.is_over() && !self.hand_over(sequence) {
                self.bury(sequence, Reason::MaxLength).await;
            }
        }
        Ok(())
    }

    /// A message that comes back counts, also where a consumer would take it at once; so in classic queues.
    pub(super) async fn trim_returned(&mut self) {
        if !self.limits_head || !self.consumers.is_ready() || self.queue.definition.settings.kind == QueueKind::Quorum {
            return;
        }
        loop {
            let sizes =
                self.backlog.sequences().filter_map(|at| self.held.get(&at)).map(|held| held.payload.len() as u64);
            let (length, bytes) = sizes.fold((0, 0), |(length, bytes), size| (length + 1, bytes + size));
            let Some((_, head)) = self.backlog.first() else { return };
            if !self.queue.ready().is_some_and(|ready| ready.is_too_much(length, bytes)) {
                return;
            }
            self.bury(head, Reason::MaxLength).await;
        }
    }

    /// [`Self::trim`] where nobody waits for it; it is tried again at the next turn.
    pub(super) async fn trim_or_log(&mut self) {
        if let Err(error) = self.trim().await {
            tracing::warn!(queue = self.queue.name(), %error, "a queue over its limit cannot be shortened yet");
        }
    }

    /// Does as the policies say that are in force now.
    pub(super) async fn apply(&mut self) -> Result<(), AmqpError> {
        let settings = self.queue.settings();
        // Messages that were published under another policy keep their time.
        self.watches_expiry |= settings.message_ttl_ms.is_some();
        self.limits_head = settings.has_length_limit() && settings.overflow == Overflow::DropHead;
        self.learns &= settings.has_length_limit();
        let seen: SmallVec<[u64; 1]> = self.levels.iter().map(|level| level.seen).collect();
        if self.queue.limit(&seen) {
            self.learn_late().await?;
        }
        self.trim().await
    }

    /// Learns what is in a queue that is in use; tried again at a later turn when JetStream does not answer.
    pub(super) async fn learn_late(&mut self) -> Result<(), AmqpError> {
        self.learns = false;
        if self.is_remembered() {
            self.count_backlog().await;
            return Ok(());
        }
        if self.fresh || self.recover_at.is_some() {
            self.recover().await;
        } else {
            self.close_inbox().await;
            self.get_inbox = None;
            self.take_back().await;
        }
        let learnt = match self.recover_at {
            None => self.learn().await,
            Some(_) => Err(AmqpError::new(ReplyCode::InternalError, "JetStream does not answer")),
        };
        self.count_credit(None);
        if learnt.is_err() {
            self.queue.count_no_more();
            self.learns = true;
        }
        learnt
    }

    /// Counts what is here, where everything is.
    async fn count_backlog(&mut self) {
        self.take_remembered().await;
        let ready: Vec<u64> = self.backlog.take().collect();
        for sequence in ready {
            if let Some(held) = self.held.get(&sequence) {
                self.backlog.insert(held.priority, sequence);
                self.count_in(sequence, false);
            }
        }
        self.count_credit(None);
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
                if let Some(held) = self.held.remove(&sequence)
                    && !held.redelivered
                    && sequence <= self.level(held.priority).highest
                {
                    self.unseen.insert(sequence);
                }
            }
            if is_end {
                return Ok(());
            }
        }
    }
}
