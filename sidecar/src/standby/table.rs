//! What is known of each message that is compared: its copy, its delivery, and what both wait for. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use amqp_compat::backend::Message;
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::subject;
use crate::fence::QueueName;
use crate::parity::{Digest, Limits, Parity, QueueId, Unverified};

/// Messages whose queues are remembered, in case RabbitMQ refuses one; and settlements that came before their copy.
const RECENT: usize = 16_384;
/// Copies that are not both read back and settled; the oldest are given up beyond it.
const KEPT: usize = 100_000;

pub(super) struct Copy {
    pub(super) vhost: Arc<str>,
    pub(super) id: u128,
    pub(super) epoch: u64,
    pub(super) taken: Duration,
    /// Where JetStream's topology led when it was published: a moment later it may lead elsewhere.
    pub(super) queues: Vec<QueueName>,
    pub(super) message: Message,
}

/// What became of a message on RabbitMQ's side.
pub(super) enum Heard {
    Delivered { queue: QueueName, id: u128, epoch: u64, digest: Digest, dead: bool, redelivered: bool, at: Duration },
    Settled { queue: QueueName, id: u128 },
}

pub(super) struct Table {
    pub(super) parity: Parity,
    /// The epoch in which shadowing began; `None` outside of it.
    pub(super) since: Option<u64>,
    /// Ids of this run of the sidecar have it as their upper half; copies of earlier runs are gone.
    pub(super) run: u64,
    pub(super) queues: HashMap<QueueName, QueueId>,
    pub(super) subjects: HashMap<String, QueueId>,
    /// Copies that are not both read back and settled; ids grow, so that the oldest is first.
    pub(super) kept: BTreeMap<(u128, QueueId), Kept>,
    /// Copies that left the queue, in order, until they are read back or given up.
    pub(super) tickets: BTreeMap<u64, Ticket>,
    /// How many copies left the queue, and when the last of them was put into it.
    pub(super) ticketed: u64,
    pub(super) received: Duration,
    /// Where the copies of a queue are, and whether some have gone since the last purge.
    pub(super) places: HashMap<QueueId, Places>,
    /// Settled before the copy left the queue; the oldest are forgotten first.
    pub(super) early: HashSet<(u128, QueueId)>,
    pub(super) early_order: VecDeque<(u128, QueueId)>,
    pub(super) recent: VecDeque<(u128, Vec<QueueId>)>,
    /// What has no copy, and why; the oldest are forgotten first.
    pub(super) uncopied: HashMap<u128, Unverified>,
    pub(super) uncopied_order: VecDeque<u128>,
}

/// A copy that is not both read back and settled.
pub(super) struct Kept {
    pub(super) ticket: u64,
    /// Where it is in its stream, once it was read back.
    pub(super) place: Option<u64>,
    pub(super) settled: bool,
}

/// The copies of one message that are on their way.
pub(super) struct Ticket {
    pub(super) taken: Duration,
    pub(super) id: u128,
    pub(super) left: Vec<QueueId>,
}

#[derive(Default)]
pub(super) struct Places {
    pub(super) vhost: String,
    pub(super) subject: String,
    /// Read back and not settled.
    pub(super) open: BTreeSet<u64>,
    /// The last that was read back: what lies behind it is never purged.
    pub(super) last: u64,
    pub(super) gone: bool,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            parity: Parity::new(Limits::default()),
            since: None,
            run: 0,
            queues: HashMap::new(),
            subjects: HashMap::new(),
            kept: BTreeMap::new(),
            tickets: BTreeMap::new(),
            ticketed: 0,
            received: Duration::ZERO,
            places: HashMap::new(),
            early: HashSet::new(),
            early_order: VecDeque::new(),
            recent: VecDeque::new(),
            uncopied: HashMap::new(),
            uncopied_order: VecDeque::new(),
        }
    }

    pub(super) fn queue(&mut self, name: &QueueName) -> QueueId {
        if let Some(id) = self.queues.get(name) {
            return *id;
        }
        let id = self.parity.queue(&name.vhost, &name.queue);
        if self.queues.len() < Limits::default().queues {
            let subject = subject(&name.vhost, &name.queue);
            self.queues.insert(name.clone(), id);
            self.subjects.insert(subject.clone(), id);
            self.places.insert(id, Places { vhost: name.vhost.to_string(), subject, ..Places::default() });
        }
        id
    }

    pub(super) fn heard(&mut self, heard: Heard) {
        let Some(since) = self.since else { return };
        match heard {
            Heard::Delivered { queue, id, epoch, digest, dead, redelivered, at } => {
                let queue = self.queue(&queue);
                if epoch < since || (id >> 64) as u64 != self.run {
                    self.parity.unverified(queue, id, Unverified::OutsideShadow);
                } else if dead {
                    self.parity.unverified(queue, id, Unverified::DeadLettered);
                } else if let Some(why) = self.uncopied.get(&id).copied() {
                    if !redelivered {
                        self.parity.unverified(queue, id, why);
                    }
                } else {
                    self.parity.delivered(queue, id, digest, redelivered, at);
                }
            }
            Heard::Settled { queue, id } => {
                let queue = self.queue(&queue);
                self.parity.settled(queue, id);
                self.done(queue, id);
            }
        }
    }

    /// A copy left the queue: answers where it is to be stored.
    pub(super) fn leaves(&mut self, copy: &Copy) -> Vec<(QueueName, QueueId)> {
        self.ticketed += 1;
        self.received = copy.taken;
        if self.since.is_none_or(|since| copy.epoch < since) {
            // Of an earlier shadow: what it would be compared with is not looked at any more.
            return Vec::new();
        }
        let mut queues: Vec<_> = copy.queues.iter().map(|name| (name.clone(), self.queue(name))).collect();
        if let Some(why) = self.uncopied.get(&copy.id).copied() {
            // Its publish failed while it waited.
            queues.iter().for_each(|(_, queue)| self.parity.unverified(*queue, copy.id, why));
            return Vec::new();
        }
        // Of queues beyond the bound nothing is read back.
        queues.retain(|(_, queue)| {
            let known = self.places.contains_key(queue);
            if !known {
                self.parity.unverified(*queue, copy.id, Unverified::TooManyQueues);
            }
            known
        });
        let left: Vec<QueueId> = queues.iter().map(|(_, queue)| *queue).collect();
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((copy.id, left.clone()));
        let ticket = self.ticketed;
        for queue in &left {
            while self.kept.len() >= KEPT
                && let Some((id, queue)) = self.kept.first_key_value().map(|(key, _)| *key)
            {
                self.give_up(queue, id, Unverified::TableFull);
            }
            let settled = self.early.remove(&(copy.id, *queue));
            self.kept.insert((copy.id, *queue), Kept { ticket, place: None, settled });
        }
        if !left.is_empty() {
            self.tickets.insert(ticket, Ticket { taken: copy.taken, id: copy.id, left });
        }
        queues
    }

    /// A copy was read back, at this place of its stream.
    pub(super) fn arrived(&mut self, queue: QueueId, id: u128, place: u64) {
        let Some(places) = self.places.get_mut(&queue) else { return };
        places.last = places.last.max(place);
        let Some(kept) = self.kept.get_mut(&(id, queue)) else { return };
        let ticket = kept.ticket;
        if kept.settled {
            places.gone = true;
            self.kept.remove(&(id, queue));
        } else {
            places.open.insert(place);
            kept.place = Some(place);
        }
        self.off_ticket(ticket, queue);
    }

    /// A copy is not waited for any more.
    pub(super) fn give_up(&mut self, queue: QueueId, id: u128, why: Unverified) {
        let Some(kept) = self.kept.remove(&(id, queue)) else { return };
        match (kept.place, self.places.get_mut(&queue)) {
            (Some(place), Some(places)) => {
                places.open.remove(&place);
                places.gone = true;
            }
            (Some(_), None) => {}
            (None, _) => {
                self.parity.unverified(queue, id, why);
                self.off_ticket(kept.ticket, queue);
            }
        }
    }

    pub(super) fn off_ticket(&mut self, number: u64, queue: QueueId) {
        let Some(ticket) = self.tickets.get_mut(&number) else { return };
        ticket.left.retain(|left| *left != queue);
        if ticket.left.is_empty() {
            self.tickets.remove(&number);
        }
    }

    /// Gives up the copies that have been on their way since before `since`.
    pub(super) fn expire(&mut self, since: Duration) {
        while let Some(ticket) = self.tickets.first_entry().filter(|ticket| ticket.get().taken <= since) {
            let Ticket { id, left, .. } = ticket.remove();
            for queue in left {
                self.give_up(queue, id, Unverified::NotReadBack);
            }
        }
    }

    /// Its message needs no copy any more.
    pub(super) fn done(&mut self, queue: QueueId, id: u128) {
        match self.kept.get_mut(&(id, queue)) {
            Some(Kept { place: Some(place), .. }) => {
                let place = *place;
                self.kept.remove(&(id, queue));
                if let Some(places) = self.places.get_mut(&queue) {
                    places.open.remove(&place);
                    places.gone = true;
                }
            }
            // Not before it is read back: it has yet to be compared.
            Some(kept) => kept.settled = true,
            None => {
                if self.early_order.len() == RECENT
                    && let Some(oldest) = self.early_order.pop_front()
                {
                    self.early.remove(&oldest);
                }
                if self.early.insert((id, queue)) {
                    self.early_order.push_back((id, queue));
                }
            }
        }
    }

    pub(super) fn has_no_copy(&mut self, id: u128, why: Unverified) {
        if self.uncopied_order.len() == RECENT
            && let Some(oldest) = self.uncopied_order.pop_front()
        {
            self.uncopied.remove(&oldest);
        }
        if self.uncopied.insert(id, why).is_none() {
            self.uncopied_order.push_back(id);
        }
    }

    pub(super) fn forget_copies(&mut self) {
        self.kept.clear();
        self.tickets.clear();
        self.early.clear();
        self.early_order.clear();
        self.recent.clear();
        self.uncopied.clear();
        self.uncopied_order.clear();
        for places in self.places.values_mut() {
            places.open.clear();
            places.gone = true;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;

    use super::*;

    pub(in crate::standby) fn copy(id: u128, epoch: u64) -> Copy {
        let message = Message {
            exchange: "x".into(),
            routing_key: "k".into(),
            properties: Default::default(),
            body: Bytes::new(),
        };
        let queues = vec![QueueName { vhost: "/".into(), queue: "q".into() }];
        Copy { vhost: "/".into(), id, epoch, taken: Duration::from_secs(id as u64), queues, message }
    }

    fn shadowing() -> (Table, QueueId) {
        let mut table = Table::new();
        table.since = Some(5);
        let queue = table.queue(&QueueName { vhost: "/".into(), queue: "q".into() });
        (table, queue)
    }

    #[test]
    fn a_copy_is_removed_once_it_was_read_back_and_settled_whichever_comes_first() {
        let (mut table, queue) = shadowing();
        // Settled before it left the queue, before it was read back, and after.
        table.done(queue, 1);
        for id in 1..=4 {
            table.leaves(&copy(id, 5));
        }
        table.done(queue, 2);
        assert!(!table.places[&queue].gone, "nothing is purged that was not read back");
        for id in 1..=3 {
            table.arrived(queue, id, 10 + id as u64);
        }
        table.done(queue, 3);
        let places = &table.places[&queue];
        assert_eq!((places.open.len(), places.last, places.gone), (0, 13, true));
        assert_eq!((table.kept.len(), table.tickets.len(), table.early.len()), (1, 1, 0));
        // The one that is left lies behind what is purged.
        table.arrived(queue, 4, 14);
        assert_eq!(table.places[&queue].open.first(), Some(&14));
    }

    #[test]
    fn a_copy_that_is_not_read_back_in_time_is_unverified_and_one_of_an_earlier_shadow_is_not_stored() {
        let (mut table, queue) = shadowing();
        assert!(table.leaves(&copy(1, 4)).is_empty());
        assert_eq!((table.kept.len(), table.tickets.len(), table.ticketed), (0, 0, 1));
        table.leaves(&copy(2, 5));
        table.leaves(&copy(3, 6));
        table.parity.delivered(queue, 2, parity_digest(), false, Duration::from_secs(2));
        table.expire(Duration::from_secs(2));
        assert_eq!((table.kept.len(), table.tickets.len()), (1, 1));
        let counts = table.parity.snapshot()[0].counts;
        assert_eq!((counts.unverified, counts.missing, counts.pending), (1, 0, 0));
        assert_eq!(table.parity.snapshot()[0].unverified_by["not_read_back"], 1);
    }

    fn parity_digest() -> crate::parity::Digest {
        crate::parity::Digest { payload: 1, properties: 1, routing: 1 }
    }
}
