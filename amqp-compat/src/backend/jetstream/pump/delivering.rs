//! What consumers get: handed out, taken back, ended.

use std::pin::Pin;
use std::time::Instant;

use amq_protocol::types::ShortString;
use smallvec::SmallVec;
use tokio::sync::mpsc;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::mpsc::error::{SendError, TrySendError};

use super::super::memory::now_ns;
use super::super::message;
use super::consumers::{Consumer, NewConsumer};
use super::server::LINGER;
use super::{Held, Holder, Pump, SEQUENCE_MASK};
use crate::backend::{ChannelId, Delivery, DeliveryId, Event};
use crate::error::{AmqpError, ReplyCode};
use crate::model::dead_letter::with_delivery_count;
use crate::model::queue::display;

/// A consumer that ended with its queue.
#[derive(Debug)]
pub(crate) struct Cancelled {
    channel: ChannelId,
    tag: ShortString,
    events: mpsc::Sender<Event>,
}

impl Cancelled {
    pub(crate) fn new(consumer: NewConsumer) -> Self {
        let NewConsumer { channel, tag, events, .. } = consumer;
        Self { channel, tag, events }
    }

    /// Tells the consumer's link, without waiting for it.
    pub(crate) fn tell(self) {
        let event = Event::ConsumerCancelled { channel: self.channel, consumer_tag: self.tag };
        if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
            let events = self.events;
            tokio::spawn(async move { events.send(event).await });
        }
    }
}

/// Whether consumers went and none is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LastGone(pub(crate) bool);

/// A link's word that it has room again for a consumer's deliveries.
pub(super) type Room = Pin<Box<dyn Future<Output = (u64, Result<OwnedPermit<Event>, SendError<()>>)> + Send>>;

impl Pump {
    pub(super) fn consume(&mut self, new: NewConsumer) -> Result<(), AmqpError> {
        if !self.consumers.admits(new.exclusive) {
            return Err(AmqpError::new(
                ReplyCode::AccessRefused,
                format!("{} in exclusive use", display(&self.queue.vhost, self.queue.name())),
            ));
        }
        let ready_ns = new.ready_ns;
        self.consumers.add(new);
        if ready_ns.is_some() {
            self.count_credit(ready_ns);
        }
        self.queue.set_consumers(self.consumers.len());
        Ok(())
    }

    /// Hands out the backlog to consumers that have credit.
    pub(super) async fn hand_out(&mut self) {
        loop {
            // Each one that comes to the head, as RabbitMQ does: what came back behind another one may have expired meanwhile.
            self.drop_expired().await;
            if self.is_clogged() {
                return;
            }
            let Some(sequence) = self.head().filter(|sequence| *sequence <= self.hands_to) else { return };
            if !self.deliver(sequence) {
                return;
            }
        }
    }

    /// Hands out what is ready for the credit that was given before a message comes back or is taken: in RabbitMQ the queue
    /// has done so when it hears of that. What is still with the server is waited for, but not for long, and nothing that was
    /// stored since: that may be of a client that gave back before it published.
    pub(super) async fn use_credit(&mut self) {
        let until = Instant::now() + LINGER;
        if !self.is_remembered() {
            self.hands_to = self.awaits.max(self.newest.0);
        }
        while !self.consumers.is_empty() {
            self.serve().await;
            let may_come = self.recover_at.is_none() && self.subscriber.is_some() && Instant::now() < until;
            if !may_come || self.has_all_to(self.awaits) || !self.arrives().await {
                break;
            }
        }
        (self.awaits, self.hands_to) = (0, u64::MAX);
    }

    /// Hands the head of the queue to a consumer, unless none has room for it or its time is over.
    pub(super) fn hand_over(&mut self, sequence: u64) -> bool {
        let lives = |held: &Held| held.expires_ns.is_none_or(|at| now_ns() < at) || self.is_for_who_is_ready(held);
        self.held.get(&sequence).is_some_and(lives) && self.deliver(sequence)
    }

    /// Delivers a message to the consumer whose turn it is; false when there is none.
    fn deliver(&mut self, sequence: u64) -> bool {
        let Some(consumer) = self.consumers.next() else { return false };
        consumer.credit -= 1;
        let NewConsumer { id, link, channel, base, tag, .. } = &consumer.new;
        let (id, link, channel, base, tag) = (*id, *link, *channel, *base, tag.clone());
        let Some(delivery) = self.hand(sequence, Holder { link, channel, consumer: Some(id) }, base) else {
            return false;
        };
        let event = Event::Delivery { channel, consumer_tag: tag, delivery: Box::new(delivery) };
        let Some(consumer) = self.consumers.get_mut(id) else { return false };
        match consumer.new.events.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(event)) => {
                consumer.waiting.push_back(event);
                self.room.push(room(&consumer.new));
            }
            // The link has ended; its release is on its way and takes the delivery back.
            Err(TrySendError::Closed(_)) => {}
        }
        self.count_credit(None);
        true
    }

    /// Takes a message out of the backlog, for a channel: got by it, or else delivered to its consumer.
    pub(super) fn hand(&mut self, sequence: u64, holder: Holder, base: u64) -> Option<Delivery> {
        self.count_out(sequence);
        let returns = if self.counts_returns { self.returns_of(sequence) } else { 0 };
        let held = self.held.get_mut(&sequence)?;
        held.by = Some(holder);
        self.backlog.remove(held.priority, sequence);
        let level = &mut self.levels[usize::from(held.priority)];
        level.highest = level.highest.max(sequence);
        let mut message = message::message(held.headers.as_ref(), held.payload.clone(), self.queue.name());
        // As RabbitMQ: a consumer is not told that there were none.
        if self.counts_returns && (holder.consumer.is_none() || returns > 0) {
            message.properties = with_delivery_count(&message.properties, returns);
        }
        let id = DeliveryId(base | (sequence & SEQUENCE_MASK));
        Some(Delivery { id, redelivered: held.redelivered, ack_timeout: self.queue.ack_timeout(), message })
    }

    /// A link has room again.
    pub(super) async fn flush(&mut self, id: u64, permit: Result<OwnedPermit<Event>, SendError<()>>) {
        let Some(consumer) = self.consumers.get_mut(id) else { return };
        let (Ok(permit), Some(event)) = (permit, consumer.waiting.pop_front()) else { return };
        permit.send(event);
        while let Some(event) = consumer.waiting.pop_front() {
            if let Err(TrySendError::Full(event)) = consumer.new.events.try_send(event) {
                consumer.waiting.push_front(event);
                self.room.push(room(&consumer.new));
                return;
            }
        }
        self.hand_out().await;
    }

    /// Removes consumers; what they were not sent yet goes back.
    pub(super) fn remove_consumers(&mut self, gone: impl Fn(&NewConsumer) -> bool) -> LastGone {
        let mut unsent: SmallVec<[u64; 8]> = SmallVec::new();
        let before = self.consumers.len();
        self.consumers.remove(gone, |consumer| {
            unsent.extend(consumer.waiting.iter().filter_map(|event| match event {
                Event::Delivery { delivery, .. } => Some(delivery.id.0 & SEQUENCE_MASK),
                _ => None,
            }));
        });
        self.count_credit(None);
        unsent.into_iter().for_each(|sequence| self.put_back(sequence, false));
        self.queue.set_consumers(self.consumers.len());
        LastGone(before > self.consumers.len() && self.consumers.is_empty())
    }

    /// Requeues what a channel or link holds, and removes its consumers.
    pub(super) fn release(&mut self, link: u64, channel: Option<ChannelId>) -> LastGone {
        let is_meant = |other: u64, c: ChannelId| other == link && channel.is_none_or(|channel| channel == c);
        let is_its = |held: &Held| held.by.is_some_and(|by| is_meant(by.link, by.channel));
        let its = self.by_consumer(self.held.iter().filter(|(_, held)| is_its(held)).map(|(sequence, _)| *sequence));
        let last = self.remove_consumers(|new| is_meant(new.link, new.channel));
        its.into_iter().flatten().for_each(|sequence| self.put_back(sequence, true));
        last
    }

    /// What comes back together, in the parts in which RabbitMQ puts it back: first what was got, then what each consumer has, in
    /// the order of their tags (`foreach_per_queue` in `rabbit_channel.erl`, consumers by id in `rabbit_fifo.erl`).
    pub(super) fn by_consumer(&self, sequences: impl Iterator<Item = u64>) -> Vec<Vec<u64>> {
        let mut parts: Vec<(Option<u64>, Vec<u64>)> = Vec::new();
        for sequence in sequences {
            let consumer = self.held.get(&sequence).and_then(|held| held.by).and_then(|by| by.consumer);
            match parts.iter_mut().find(|(of, _)| *of == consumer) {
                Some((_, part)) => part.push(sequence),
                None => parts.push((consumer, vec![sequence])),
            }
        }
        if parts.len() > 1 {
            let tag = |consumer: Option<u64>| consumer.map(|id| self.consumers.client_tag(id).map(ShortString::as_str));
            parts.sort_by_key(|(consumer, _)| (tag(*consumer), *consumer));
        }
        parts.into_iter().map(|(_, part)| part).collect()
    }

    pub(super) fn cancel_all(&mut self) {
        self.end_consumers().into_iter().for_each(Cancelled::tell);
    }

    pub(super) fn end_consumers(&mut self) -> Vec<Cancelled> {
        self.queue.set_consumers(0);
        let mut cancelled = Vec::with_capacity(self.consumers.len());
        let told = |consumer: Consumer| cancelled.push(Cancelled::new(consumer.new));
        self.consumers.remove(|_| true, told);
        cancelled
    }
}

fn room(consumer: &NewConsumer) -> Room {
    let (id, events) = (consumer.id, consumer.events.clone());
    Box::pin(async move { (id, events.reserve_owned().await) })
}
