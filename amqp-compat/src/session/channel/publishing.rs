//! Publishes, their confirms and returns, and transactions.

use super::*;

impl Channel {
    /// A body frame or an empty body may have completed a publish.
    pub(super) fn complete(&mut self, complete: Option<Complete>, shared: &mut Shared) -> Result<(), Fault> {
        if let Some(complete) = complete {
            match &mut self.transaction {
                Some(transaction) => shared.assembling += transaction.publish(complete),
                None => self.publish(complete, shared),
            }
        }
        if shared.assembling > shared.limits.max_assembling {
            let text = format!("more than {} bytes of unfinished messages", shared.limits.max_assembling);
            return Err(Fault::of(AmqpError::new(ReplyCode::ResourceError, text), PUBLISH));
        }
        Ok(())
    }

    pub(super) fn publish(&mut self, Complete { mandatory, message }: Complete, shared: &mut Shared) {
        let size = message.body.len();
        let publish = Publish { channel: self.id, seq: self.confirms.publish(size), mandatory, message };
        shared.publishes += 1;
        shared.publish_bytes += size;
        shared.counts.published += 1;
        self.send(Command::Publish(Box::new(publish)), shared);
    }

    pub(super) fn tx(
        &mut self,
        class: tx_class::AMQPMethod,
        method: (u16, u16),
        shared: &mut Shared,
    ) -> Result<(), Fault> {
        use tx_class::AMQPMethod as M;
        let of = |error| Fault::of(error, method);
        let ok = match (class, &mut self.transaction) {
            (M::Select(_), _) if self.confirms.is_selected() => {
                return Err(of(tx::wrong_mode("cannot switch from confirm to tx mode")));
            }
            (M::Select(_), transaction) => {
                transaction.get_or_insert_default();
                M::SelectOk(tx_class::SelectOk {})
            }
            (M::Commit(_) | M::Rollback(_), None) => return Err(of(tx::wrong_mode("channel is not transactional"))),
            (M::Commit(_), Some(transaction)) => {
                shared.assembling -= transaction.weight();
                let publishes = transaction.take_publishes();
                for complete in publishes {
                    self.publish(complete, shared);
                }
                self.request = Some(Request { kind: Kind::Commit { failed: false }, method, nowait: false });
                return self.end_of_publishes(shared);
            }
            (M::Rollback(_), Some(transaction)) => {
                shared.assembling -= transaction.weight();
                transaction.take_publishes();
                let settled: Vec<_> = transaction.take_settlements().into_iter().flat_map(|(_, all)| all).collect();
                settled.iter().for_each(|(_, entry)| shared.overdue.add(entry.due));
                self.unacked.restore(settled);
                M::RollbackOk(tx_class::RollbackOk {})
            }
            (M::SelectOk(_) | M::CommitOk(_) | M::RollbackOk(_), _) => {
                return Err(of(AmqpError::new(ReplyCode::CommandInvalid, "unimplemented method")));
            }
        };
        shared.output.method(self.id, AMQPClass::Tx(ok));
        Ok(())
    }

    /// Goes on with what waited for the end of all publishes.
    pub(super) fn end_of_publishes(&mut self, shared: &mut Shared) -> Result<(), Fault> {
        if !self.confirms.all_ended() {
            return Ok(());
        }
        let Some(request) = self.request.take_if(|request| request.waits_for_publishes()) else {
            return Ok(());
        };
        if matches!(self.phase, Phase::Refused | Phase::Settling) {
            self.close(shared);
            return Ok(());
        }
        match request.kind {
            Kind::Commit { failed } => self.end_commit(failed, request.method, shared)?,
            Kind::Behind { class } => self.method(class, shared)?,
            Kind::Fault { fault } => return Err(fault),
            _ => {}
        }
        self.tell_ended(shared);
        Ok(())
    }

    pub(super) fn end_commit(&mut self, failed: bool, method: (u16, u16), shared: &mut Shared) -> Result<(), Fault> {
        if failed {
            let error = AmqpError::new(ReplyCode::PreconditionFailed, "partial tx completion");
            return Err(Fault::of(error, method));
        }
        let settlements = self.transaction.as_mut().map(Transaction::take_settlements).unwrap_or_default();
        for (outcome, settled) in settlements {
            self.settled(outcome, &settled, shared);
        }
        let ok = tx_class::AMQPMethod::CommitOk(tx_class::CommitOk {});
        shared.output.method(self.id, AMQPClass::Tx(ok));
        Ok(())
    }

    /// The broker gives a message back.
    pub(in crate::session) fn returned(&mut self, error: &AmqpError, message: Message, shared: &mut Shared) {
        if self.phase != Phase::Open {
            return;
        }
        let Message { exchange, routing_key, properties, body } = message;
        let method = basic::Return {
            reply_code: error.code as u16,
            reply_text: error.code.name().into(),
            exchange,
            routing_key,
        };
        self.tell(basic::AMQPMethod::Return(method), shared);
        shared.output.content(self.id, &properties, &body, shared.frame_max);
        shared.counts.returned += 1;
    }

    /// The broker ended a publish.
    ///
    /// # Errors
    /// A fault when it was part of a transaction that has failed.
    pub(in crate::session) fn confirm(
        &mut self,
        seq: u64,
        outcome: PublishOutcome,
        shared: &mut Shared,
    ) -> Result<Next, Fault> {
        if let Some(size) = self.confirms.end(seq, outcome) {
            shared.publish_bytes -= size;
            self.touch(shared);
        }
        if let Some(Request { kind: Kind::Commit { failed }, .. }) = &mut self.request {
            *failed |= outcome == PublishOutcome::Failed;
        }
        self.end_of_publishes(shared)?;
        Ok(Next::Stay)
    }

    /// What the asynchronous failure of a channel is blamed on.
    pub(in crate::session) fn culprit(&self) -> (u16, u16) {
        if self.confirms.open() > 0 { PUBLISH } else { (0, 0) }
    }

    /// The connection is about to be closed for a fault: the client still hears of what is stored, as with RabbitMQ.
    pub(in crate::session) fn tell_last_confirms(&mut self, shared: &mut Shared) {
        if self.phase == Phase::Open {
            self.tell_confirms(shared);
        }
    }

    pub(super) fn tell_confirms(&mut self, shared: &mut Shared) {
        let before = self.confirms.open();
        let id = self.id;
        let Shared { output, counts, .. } = shared;
        self.confirms.tell(|verdict| match verdict {
            Verdict::Ack { tag, multiple } => {
                counts.acks += 1;
                let ack = basic::Ack { delivery_tag: tag, multiple };
                output.method(id, AMQPClass::Basic(basic::AMQPMethod::Ack(ack)));
            }
            Verdict::Nack { tag } => {
                counts.nacks += 1;
                let nack = basic::Nack { delivery_tag: tag, multiple: false, requeue: false };
                output.method(id, AMQPClass::Basic(basic::AMQPMethod::Nack(nack)));
            }
        });
        shared.publishes -= before - self.confirms.open();
    }
}
