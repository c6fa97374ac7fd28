//! Settlements: acknowledgements, requeues and rejections, in the order of the client.

use super::*;

impl Channel {
    pub(super) fn settle(
        &mut self,
        tag: u64,
        multiple: bool,
        outcome: Outcome,
        shared: &mut Shared,
    ) -> Result<(), AmqpError> {
        let mut settled: SmallVec<[(u64, Entry); 1]> = SmallVec::new();
        let answer = self.unacked.settle(tag, multiple, |tag, entry| settled.push((tag, entry)));
        if answer.is_err() {
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, format!("unknown delivery tag {tag}")));
        }
        match &mut self.transaction {
            Some(transaction) => transaction.settle(outcome, settled.into_vec()),
            None => self.settled(outcome, &settled, shared),
        }
        Ok(())
    }

    /// Tells the broker how deliveries, ascending by tag, have ended.
    pub(super) fn settled(&mut self, outcome: Outcome, settled: &[(u64, Entry)], shared: &mut Shared) {
        let (Some((first, _)), Some((last, _))) = (settled.first(), settled.last()) else { return };
        let comes_back = outcome == Outcome::Requeue;
        if comes_back {
            self.send_settled(shared);
        }
        for (_, entry) in settled {
            if let Some(key) = entry.consumer {
                self.consumers.settled(key);
            }
        }
        shared.counts.settled += settled.len() as u64;
        if outcome == Outcome::Ack {
            if *first < self.last_ack {
                self.send_acks(shared);
            }
            self.last_ack = *last;
            self.acks.extend(tx::names(settled));
        } else {
            let deliveries = tx::names(settled);
            self.send(Command::Settle { channel: self.id, deliveries, outcome }, shared);
        }
        if comes_back {
            self.send_settled(shared);
        }
        self.release(shared);
        self.touch(shared);
    }

    pub(super) fn recover(&mut self, requeue: bool, shared: &mut Shared) -> Result<(), AmqpError> {
        if !requeue {
            return Err(AmqpError::not_implemented("requeue=false"));
        }
        // Not part of a transaction, as in RabbitMQ.
        let mut settled = Vec::new();
        self.unacked.drain(|tag, entry| settled.push((tag, entry)));
        self.settled(Outcome::Requeue, &settled, shared);
        Ok(())
    }

    /// Settles what a client that does not acknowledge was sent; its bytes go before whatever is said next.
    pub(in crate::session) fn settle_all_sent(&mut self, shared: &mut Shared) {
        self.done.extend(self.sent.drain(..).filter_map(|sent| sent.settle));
        self.send_acks(shared);
    }

    /// Sends acknowledgements, and the credit that they and other settlements give, ahead of what takes messages out of the
    /// queue or puts them back: as in RabbitMQ, consumers get what that credit is for before.
    ///
    /// Where the whole channel has a limit, credit comes at the end of the batch. RabbitMQ leaves open when it comes: a
    /// process of its own counts there, whose word mostly comes after what is settled next.
    pub(super) fn send_settled(&mut self, shared: &mut Shared) {
        self.send_acks(shared);
        if self.consumers.limit() == 0 {
            self.send_credit(shared);
        }
    }

    /// Sends the credit that is due.
    pub(super) fn send_credit(&mut self, shared: &mut Shared) {
        if !self.consumers.has_changed() {
            return;
        }
        let (channel, commands) = (self.id, &mut shared.commands);
        self.consumers.credit(self.unacked.len(), |tag, amount| {
            commands.push_back(Command::Credit { channel, consumer_tag: tag.clone(), amount });
        });
    }

    pub(super) fn send_acks(&mut self, shared: &mut Shared) {
        let channel = self.id;
        for list in [&mut self.acks, &mut self.done] {
            if !list.is_empty() {
                let deliveries = std::mem::take(list);
                shared.commands.push_back(Command::Settle { channel, deliveries, outcome: Outcome::Ack });
            }
        }
    }
}
