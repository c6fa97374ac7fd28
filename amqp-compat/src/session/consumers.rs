//! Consumers, prefetch and credit.
//!
//! A consumer's prefetch is the credit that its backend gets; a settlement gives one back. A consumer without prefetch
//! gets a window of [`WINDOW`], refilled as its deliveries are written to the socket. A prefetch for the whole channel
//! is kept here, to the message: what comes above it is held until something is settled. Held messages are out of reach
//! of other consumers, so a consumer's credit never exceeds the channel's prefetch.
//!
//! Source: RabbitMQ, "Consumer Prefetch" (`global` means the channel; without it, consumers that start later).

use std::collections::VecDeque;

use amq_protocol::types::ShortString;
use foldhash::HashMap;

use super::description::ConsumerDescription;
use crate::backend::{Consume, Delivery, DeliveryId};

/// The credit of a consumer that asked for no prefetch limit, in deliveries.
pub(super) const WINDOW: u32 = 1000;

/// From so many unsettled deliveries on, a channel's unlimited consumers get no more credit.
pub(super) const MAX_UNACKED: usize = 1_000_000;

/// One consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    /// Its tag.
    pub(super) tag: ShortString,
    /// Whether the client will not settle.
    pub(super) no_ack: bool,
    /// Its own prefetch; 0: none.
    prefetch: u16,
    /// Credit that the backend has and has not used.
    out: u32,
    /// Deliveries that are held back.
    held: u32,
    /// Deliveries that are not written yet, of those that came while it had a window.
    unwritten: u32,
    /// Deliveries that the client has not settled.
    unsettled: u32,
    /// What it was started with.
    asked: Option<Box<Consume>>,
}

impl Consumer {
    /// Whether its credit comes back when a delivery is written, and not when it is settled.
    fn is_windowed(&self, limit: u16) -> bool {
        self.no_ack || (self.prefetch == 0 && limit == 0)
    }

    /// How much credit it may get now.
    fn due(&self, limit: u16, taken: usize, unacked: usize) -> u32 {
        if self.is_windowed(limit) {
            let due = WINDOW.saturating_sub(self.out + self.held + self.unwritten);
            // Three quarters of a window keep a consumer busy; each command has its price.
            if due < WINDOW / 4 || (unacked >= MAX_UNACKED && !self.no_ack) { 0 } else { due }
        } else {
            let room = usize::from(limit).saturating_sub(taken) as u32;
            let target = match (u32::from(self.prefetch), limit) {
                (0, _) => room,
                (prefetch, 0) => prefetch,
                (prefetch, _) => prefetch.min(room),
            };
            target.saturating_sub(self.out + self.held + self.unsettled)
        }
    }
}

/// The consumers of one channel.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    by_tag: HashMap<ShortString, u32>,
    by_key: HashMap<u32, Consumer>,
    /// Keys of consumers whose credit may be due.
    changed: Vec<u32>,
    /// Prefetch of consumers that start from now on; 0: none.
    pub(super) next_prefetch: u16,
    /// Prefetch of the channel; 0: none.
    limit: u16,
    /// Unsettled deliveries to consumers, as counted against `limit`.
    counted: usize,
    /// What `basic.get` had taken and was not settled when `limit` was set; counted against it for as long as it is in force.
    taken: usize,
    /// Deliveries above `limit`, with their consumer.
    held: VecDeque<(u32, Box<Delivery>)>,
}

impl Consumers {
    /// Whether there is a consumer with this tag.
    pub(super) fn contains(&self, tag: &ShortString) -> bool {
        self.by_tag.contains_key(tag)
    }

    /// How many consumers there are.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Adds a consumer under a key that was never used on this connection, and answers its first credit.
    pub(super) fn add(&mut self, key: u32, tag: ShortString, no_ack: bool) -> u32 {
        let mut consumer = Consumer {
            tag: tag.clone(),
            no_ack,
            prefetch: self.next_prefetch,
            out: 0,
            held: 0,
            unwritten: 0,
            unsettled: 0,
            asked: None,
        };
        consumer.out = consumer.due(self.limit, self.taken, 0);
        let credit = consumer.out;
        self.by_tag.insert(tag, key);
        self.by_key.insert(key, consumer);
        credit
    }

    /// Notes what a consumer was started with, to tell it to those who ask.
    pub(super) fn note(&mut self, key: u32, asked: &Consume) {
        if let Some(consumer) = self.by_key.get_mut(&key) {
            consumer.asked = Some(Box::new(asked.clone()));
        }
    }

    /// The prefetch of the channel; 0: none.
    pub(super) fn limit(&self) -> u16 {
        self.limit
    }

    /// All consumers, by tag.
    pub(super) fn describe(&self) -> Vec<ConsumerDescription> {
        let described = self.by_key.values().filter_map(|consumer| {
            let asked = consumer.asked.as_ref()?;
            Some(ConsumerDescription {
                tag: consumer.tag.clone(),
                queue: asked.queue.clone(),
                no_ack: consumer.no_ack,
                exclusive: asked.exclusive,
                prefetch: consumer.prefetch,
                arguments: asked.arguments.clone(),
            })
        });
        let mut described: Vec<ConsumerDescription> = described.collect();
        described.sort_by(|a, b| a.tag.as_str().cmp(b.tag.as_str()));
        described
    }

    /// Whether any number of this consumer's deliveries may be unsettled.
    pub(super) fn is_unlimited(&self, key: u32) -> bool {
        self.by_key.get(&key).is_some_and(|consumer| !consumer.no_ack && consumer.is_windowed(self.limit))
    }

    /// Removes a consumer, and answers what was held for it, oldest first.
    pub(super) fn remove(&mut self, tag: &ShortString) -> Vec<DeliveryId> {
        let Some(key) = self.by_tag.remove(tag) else { return Vec::new() };
        self.by_key.remove(&key);
        let mut left = Vec::new();
        self.held.retain(|(holder, delivery)| {
            if *holder == key {
                left.push(delivery.id);
            }
            *holder != key
        });
        left
    }

    /// The consumer with this key.
    pub(super) fn get(&self, key: u32) -> Option<&Consumer> {
        self.by_key.get(&key)
    }

    /// A delivery came for the consumer with this tag; answers its key, and whether the delivery has to be held: the
    /// channel's prefetch is used up, or others wait already. As in RabbitMQ, a delivery that nobody will settle needs
    /// room as well, and takes none.
    pub(super) fn arrived(&mut self, tag: &ShortString) -> Option<(u32, bool)> {
        let key = *self.by_tag.get(tag)?;
        let hold = !self.has_room() || !self.held.is_empty();
        let consumer = self.by_key.get_mut(&key)?;
        consumer.out = consumer.out.saturating_sub(1);
        Some((key, hold))
    }

    /// Holds a delivery back.
    pub(super) fn hold(&mut self, key: u32, delivery: Box<Delivery>) {
        if let Some(consumer) = self.by_key.get_mut(&key) {
            consumer.held += 1;
        }
        self.held.push_back((key, delivery));
    }

    /// Takes the next held delivery if there is room for it.
    pub(super) fn release(&mut self) -> Option<(u32, Box<Delivery>)> {
        if !self.has_room() {
            return None;
        }
        let (key, delivery) = self.held.pop_front()?;
        if let Some(consumer) = self.by_key.get_mut(&key) {
            consumer.held -= 1;
        }
        Some((key, delivery))
    }

    /// Changes the channel's prefetch, of which `unacked` deliveries are not settled, those of `basic.get` included; the credit of all
    /// consumers follows.
    ///
    /// RabbitMQ counts what a get has taken when a limit begins, does not count what gets take later, and gives neither back
    /// when it is settled, but with the end of the limit (`rabbit_channel.erl` and `rabbit_limiter.erl` of 3.10, which calls it obscure).
    pub(super) fn set_limit(&mut self, limit: u16, unacked: usize) {
        match (self.limit, limit) {
            (_, 0) => self.taken = 0,
            (0, _) => self.taken = unacked.saturating_sub(self.counted),
            _ => {}
        }
        self.limit = limit;
        self.changed = self.by_key.keys().copied().collect();
    }

    /// Whether the channel's prefetch lets one more delivery through now.
    fn has_room(&self) -> bool {
        self.limit == 0 || self.counted + self.taken < usize::from(self.limit)
    }

    /// A delivery was sent to a consumer; answers whether [`Consumers::written`] wants to hear of it.
    pub(super) fn sent(&mut self, key: u32) -> bool {
        let Some(consumer) = self.by_key.get_mut(&key) else { return false };
        if !consumer.no_ack {
            consumer.unsettled += 1;
            self.counted += 1;
        }
        let windowed = consumer.is_windowed(self.limit);
        consumer.unwritten += u32::from(windowed);
        windowed
    }

    /// A delivery to a consumer, which may be gone, was settled.
    pub(super) fn settled(&mut self, key: u32) {
        self.counted = self.counted.saturating_sub(1);
        self.change(key, |consumer| consumer.unsettled = consumer.unsettled.saturating_sub(1));
    }

    /// A delivery to a consumer, which may be gone, was written to the socket.
    pub(super) fn written(&mut self, key: u32) {
        self.change(key, |consumer| consumer.unwritten = consumer.unwritten.saturating_sub(1));
    }

    fn change(&mut self, key: u32, change: impl FnOnce(&mut Consumer)) {
        if let Some(consumer) = self.by_key.get_mut(&key) {
            change(consumer);
            if self.changed.last() != Some(&key) {
                self.changed.push(key);
            }
        }
    }

    /// Takes the credit that is due. With `unacked` at [`MAX_UNACKED`], unlimited consumers get none.
    pub(super) fn credit(&mut self, unacked: usize, mut each: impl FnMut(&ShortString, u32)) {
        for key in std::mem::take(&mut self.changed) {
            let Some(consumer) = self.by_key.get_mut(&key) else { continue };
            let due = consumer.due(self.limit, self.taken, unacked);
            if due > 0 {
                consumer.out += due;
                each(&consumer.tag, due);
            }
        }
    }

    /// Whether [`Consumers::credit`] may have something to give.
    pub(super) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::Message;

    fn delivery() -> Box<Delivery> {
        let message = Message {
            exchange: "".into(),
            routing_key: "".into(),
            properties: Default::default(),
            body: Default::default(),
        };
        Box::new(Delivery { id: DeliveryId(0), redelivered: false, ack_timeout: None, message })
    }

    #[test]
    fn a_window_comes_back_as_deliveries_are_written() {
        let mut consumers = Consumers::default();
        assert_eq!(consumers.add(1, "c".into(), false), WINDOW);
        for _ in 0..300 {
            assert_eq!(consumers.arrived(&"c".into()), Some((1, false)));
            assert!(consumers.sent(1));
        }
        let mut given = 0;
        consumers.credit(300, |_, amount| given += amount);
        assert_eq!(given, 0);
        for _ in 0..300 {
            consumers.written(1);
        }
        consumers.credit(MAX_UNACKED, |_, amount| given += amount);
        assert_eq!(given, 0, "too many unsettled");
        consumers.written(1);
        consumers.credit(300, |_, amount| given += amount);
        assert_eq!(given, 300);
    }

    proptest! {
        /// A backend that uses all its credit at once, and a client that settles now and then.
        #[test]
        fn no_prefetch_is_ever_exceeded_and_none_is_lost(
            prefetch in 0u16..6,
            limits in proptest::collection::vec((0u16..6, 0usize..12), 1..12),
        ) {
            let mut consumers = Consumers { next_prefetch: prefetch, ..Consumers::default() };
            let tags: [ShortString; 2] = ["a".into(), "b".into()];
            let mut credit = [0u32; 2];
            let mut unsettled: VecDeque<u32> = VecDeque::new();
            for key in 0..2u32 {
                credit[key as usize] = consumers.add(key, tags[key as usize].clone(), false);
            }
            for (limit, settle) in limits {
                let before = unsettled.len();
                consumers.set_limit(limit, before);
                consumers.credit(before, |tag, amount| credit[usize::from(*tag == tags[1])] += amount);
                for round in 0..=settle {
                    for key in 0..2u32 {
                        // Windows are of no interest here, and large.
                        for _ in 0..std::mem::take(&mut credit[key as usize]).min(40) {
                            let (found, hold) = consumers.arrived(&tags[key as usize]).expect("is there");
                            prop_assert_eq!(found, key);
                            if hold {
                                consumers.hold(key, delivery());
                            } else {
                                consumers.sent(key);
                                unsettled.push_back(key);
                            }
                        }
                    }
                    while let Some((key, _)) = consumers.release() {
                        consumers.sent(key);
                        unsettled.push_back(key);
                    }
                    if limit > 0 {
                        prop_assert!(unsettled.len() <= before.max(limit.into()));
                    }
                    if prefetch > 0 {
                        for key in 0..2 {
                            let count = unsettled.iter().filter(|k| **k == key).count();
                            prop_assert!(count <= prefetch.into());
                        }
                        // As much as may be out is out.
                        let most = usize::from(prefetch) * 2;
                        let most = if limit > 0 { most.min(limit.into()) } else { most };
                        prop_assert!(unsettled.len() >= most, "{} of {}", unsettled.len(), most);
                    }
                    if round < settle && let Some(key) = unsettled.pop_front() {
                        consumers.settled(key);
                    }
                    consumers.credit(unsettled.len(), |tag, amount| credit[usize::from(*tag == tags[1])] += amount);
                }
            }
        }
    }
}
