//! Transactions: publishes and settlements that wait for `tx.commit`.
//!
//! At a commit the publishes go to the broker, and once all of them are stored the settlements follow and the client hears
//! `commit-ok`. As in RabbitMQ this is a batch and not atomic over queues: a publish that fails leaves those that did not
//! in their queues, and the client is told with 406 `partial tx completion`, its settlements undone.
//!
//! Source: RabbitMQ, "AMQP 0-9-1 semantics", section "tx".

use smallvec::SmallVec;

use super::publish::Complete;
use super::unacked::Entry;
use crate::backend::{DeliveryId, Outcome};
use crate::error::{AmqpError, ReplyCode};

/// What a transaction has gathered.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    publishes: Vec<Complete>,
    settlements: Vec<(Outcome, Vec<(u64, Entry)>)>,
}

impl Transaction {
    /// Adds a publish, and answers what it takes, in bytes.
    pub(super) fn publish(&mut self, complete: Complete) -> usize {
        let weight = weight(&complete);
        self.publishes.push(complete);
        weight
    }

    /// Adds settlements of one method. Those that end alike, one method behind the other, are one at the commit, in the order of their
    /// tags (`ack_cons` in `rabbit_channel.erl`).
    pub(super) fn settle(&mut self, outcome: Outcome, settled: Vec<(u64, Entry)>) {
        match self.settlements.last_mut().filter(|(last, _)| *last == outcome) {
            Some((_, before)) => {
                before.extend(settled);
                before.sort_unstable_by_key(|(tag, _)| *tag);
            }
            None => self.settlements.push((outcome, settled)),
        }
    }

    /// How many publishes and settlements it has gathered.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.publishes.len(), self.settlements.iter().map(|(_, settled)| settled.len()).sum())
    }

    /// What its publishes take, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.publishes.iter().map(weight).sum()
    }

    /// Takes the publishes.
    pub(super) fn take_publishes(&mut self) -> Vec<Complete> {
        std::mem::take(&mut self.publishes)
    }

    /// Takes the settlements, in the order of the client.
    pub(super) fn take_settlements(&mut self) -> Vec<(Outcome, Vec<(u64, Entry)>)> {
        std::mem::take(&mut self.settlements)
    }
}

/// The names of deliveries.
pub(super) fn names(settled: &[(u64, Entry)]) -> SmallVec<[DeliveryId; 1]> {
    settled.iter().map(|(_, entry)| entry.id).collect()
}

/// A publish counts with more than its body: empty ones take room as well.
fn weight(complete: &Complete) -> usize {
    complete.message.body.len() + 512
}

/// 406 for a method that needs another mode than the channel's.
pub(super) fn wrong_mode(text: &str) -> AmqpError {
    AmqpError::new(ReplyCode::PreconditionFailed, text)
}
