//! Both brokers and the connections to them. Time, order and loss are decided by the world.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{QUEUES, SIDECARS};
use crate::fence::{FenceId, MessageKey, Stamp};
use crate::ownership::{Bucket, Side};

#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    pub(super) number: u64,
    pub(super) key: u64,
    pub(super) stamp: Stamp,
    pub(super) fence: Option<FenceId>,
}

impl Message {
    pub(super) fn bucket(&self) -> Bucket {
        bucket(self.key)
    }

    pub(super) fn key(&self) -> MessageKey {
        MessageKey::Stamped(u128::from(self.number))
    }
}

pub(super) fn bucket(key: u64) -> Bucket {
    Bucket::of(3, &key.to_be_bytes())
}

/// Queue 0 gets every message, queue 1 those with an even key.
pub(super) fn routed(queue: usize, key: u64) -> bool {
    queue == 0 || key.is_multiple_of(2)
}

/// A message on its way to a client: its place in the broker's queue, and whether it came before.
pub(super) type Delivery = (u64, Message, bool);

pub(super) enum ToBroker {
    Ack(u64),
    Requeue(u64),
    Credit(u32),
}

/// One queue on one side. RabbitMQ puts a requeued message where it was; JetStream gives it out next.
#[derive(Default)]
pub(super) struct Queue {
    ready: VecDeque<(u64, Message)>,
    again: VecDeque<(u64, Message)>,
    unacked: BTreeMap<u64, (usize, Message)>,
    delivered_before: BTreeSet<u64>,
    next: u64,
}

impl Queue {
    pub(super) fn store(&mut self, message: Message) {
        self.ready.push_back((self.next, message));
        self.next += 1;
    }

    fn put_back(&mut self, side: Side, place: u64, message: Message) {
        match side {
            Side::Rabbit => {
                let at = self.ready.iter().position(|(other, _)| *other > place).unwrap_or(self.ready.len());
                self.ready.insert(at, (place, message));
            }
            Side::Nats => {
                let at = self.again.iter().position(|(other, _)| *other > place).unwrap_or(self.again.len());
                self.again.insert(at, (place, message));
            }
        }
    }
}

/// One sidecar's consumer of one queue on one side, as the broker knows it.
#[derive(Default)]
pub(super) struct Consumer {
    pub(super) open: bool,
    credit: u32,
    pub(super) deliveries: VecDeque<Delivery>,
    pub(super) commands: VecDeque<ToBroker>,
}

/// What was on its way in a connection that is gone.
#[derive(Default)]
pub(super) struct Lost {
    pub(super) publishes: Vec<Message>,
    pub(super) fences: Vec<(usize, FenceId)>,
}

/// One sidecar's connection to one side.
#[derive(Default)]
pub(super) struct Connection {
    /// When the broker last heard of it.
    pub(super) heard: u64,
    pub(super) open: bool,
    /// The broker has closed it, and the sidecar is yet to notice: what was on its way then.
    pub(super) failed: Option<Lost>,
    pub(super) consumers: [Consumer; QUEUES],
    /// Publishes on their way, and fences, which go on a connection of their own.
    pub(super) publishes: VecDeque<Message>,
    pub(super) fences: VecDeque<(usize, FenceId)>,
    pub(super) confirms: Vec<Message>,
    pub(super) stored: Vec<(usize, FenceId)>,
}

pub(super) struct Brokers {
    pub(super) queues: [[Queue; QUEUES]; 2],
    /// By sidecar, then side.
    pub(super) connections: Vec<[Connection; 2]>,
}

impl Brokers {
    pub(super) fn new() -> Self {
        Self { queues: Default::default(), connections: (0..SIDECARS).map(|_| Default::default()).collect() }
    }

    /// Whether a message is in a queue of either side.
    pub(super) fn has(&self, queue: usize, number: u64) -> bool {
        self.queues.iter().map(|side| &side[queue]).any(|queue| {
            let held = queue.unacked.values().map(|(_, message)| message);
            let all = queue.ready.iter().chain(&queue.again).map(|(_, message)| message).chain(held);
            all.into_iter().any(|message| message.fence.is_none() && message.number == number)
        })
    }

    /// A consumer begins with this much credit.
    pub(super) fn attach(&mut self, of: usize, side: Side, queue: usize, credit: u32) {
        let consumer = &mut self.connections[of][side.index()].consumers[queue];
        *consumer = Consumer { open: true, credit, ..Consumer::default() };
    }

    /// A consumer ends: what it has goes back. Answers the numbers of the messages.
    pub(super) fn detach(&mut self, of: usize, side: Side, queue: usize) -> Vec<u64> {
        // What it said before it ended is heard.
        while !self.connections[of][side.index()].consumers[queue].commands.is_empty() {
            self.obey(of, side, queue);
        }
        self.cut(of, side, queue)
    }

    fn cut(&mut self, of: usize, side: Side, queue: usize) -> Vec<u64> {
        self.connections[of][side.index()].consumers[queue] = Consumer::default();
        let at = &mut self.queues[side.index()][queue];
        let places: Vec<u64> = at.unacked.iter().filter(|(_, (holder, _))| *holder == of).map(|(p, _)| *p).collect();
        let mut numbers = Vec::new();
        for place in places {
            if let Some((_, message)) = at.unacked.remove(&place) {
                at.delivered_before.insert(place);
                at.put_back(side, place, message);
                if message.fence.is_none() {
                    numbers.push(message.number);
                }
            }
        }
        numbers
    }

    /// A connection is gone, with what was on its way in it; answers what it had, by queue.
    pub(super) fn close(&mut self, of: usize, side: Side) -> Vec<(usize, u64)> {
        let gone = (0..QUEUES)
            .flat_map(|queue| self.cut(of, side, queue).into_iter().map(move |n| (queue, n)).collect::<Vec<_>>());
        let gone = gone.collect();
        let Connection { publishes, confirms, fences, stored, .. } =
            std::mem::take(&mut self.connections[of][side.index()]);
        let lost = Lost {
            publishes: publishes.into_iter().chain(confirms).collect(),
            fences: fences.into_iter().chain(stored).collect(),
        };
        self.connections[of][side.index()].failed = Some(lost);
        gone
    }

    /// A side is killed and is back: every connection to it is gone, and of its fences those that are not `kept`. Answers what they had.
    pub(super) fn kill(&mut self, side: Side, mut kept: impl FnMut() -> bool) -> Vec<(usize, u64)> {
        let open = (0..SIDECARS).filter(|of| self.connections[*of][side.index()].open).collect::<Vec<_>>();
        let gone = open.into_iter().flat_map(|of| self.close(of, side)).collect();
        for queue in &mut self.queues[side.index()] {
            for held in [&mut queue.ready, &mut queue.again] {
                held.retain(|(_, message)| message.fence.is_none() || kept());
            }
        }
        gone
    }

    pub(super) fn obey(&mut self, of: usize, side: Side, queue: usize) {
        let consumer = &mut self.connections[of][side.index()].consumers[queue];
        let at = &mut self.queues[side.index()][queue];
        let is_its = |at: &Queue, place: &u64| at.unacked.get(place).is_some_and(|(holder, _)| *holder == of);
        match consumer.commands.pop_front() {
            Some(ToBroker::Ack(place)) if is_its(at, &place) => {
                at.unacked.remove(&place);
            }
            Some(ToBroker::Requeue(place)) if is_its(at, &place) => {
                if let Some((_, message)) = at.unacked.remove(&place) {
                    at.delivered_before.insert(place);
                    at.put_back(side, place, message);
                }
            }
            Some(ToBroker::Credit(amount)) => consumer.credit += amount,
            Some(ToBroker::Ack(_) | ToBroker::Requeue(_)) | None => {}
        }
    }

    pub(super) fn deliver(&mut self, of: usize, side: Side, queue: usize) {
        let consumer = &mut self.connections[of][side.index()].consumers[queue];
        if !consumer.open || consumer.credit == 0 {
            return;
        }
        let at = &mut self.queues[side.index()][queue];
        if let Some((place, message)) = at.again.pop_front().or_else(|| at.ready.pop_front()) {
            consumer.credit -= 1;
            at.unacked.insert(place, (of, message));
            consumer.deliveries.push_back((place, message, at.delivered_before.contains(&place)));
        }
    }

    /// The next publish of a sidecar comes to a side.
    pub(super) fn arrive(&mut self, of: usize, side: Side) {
        if let Some(message) = self.connections[of][side.index()].publishes.pop_front() {
            self.store(side, message);
            self.connections[of][side.index()].confirms.push(message);
        }
    }

    pub(super) fn store(&mut self, side: Side, message: Message) {
        for queue in (0..QUEUES).filter(|queue| routed(*queue, message.key)) {
            self.queues[side.index()][queue].store(message);
        }
    }

    /// The next fence of a sidecar comes to a side.
    pub(super) fn arrive_fence(&mut self, of: usize, side: Side) {
        if let Some((queue, fence)) = self.connections[of][side.index()].fences.pop_front() {
            let message = Message { number: 0, key: 0, stamp: Stamp { epoch: 0, owner: side }, fence: Some(fence) };
            self.queues[side.index()][queue].store(message);
            self.connections[of][side.index()].stored.push((queue, fence));
        }
    }
}
