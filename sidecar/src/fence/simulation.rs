//! Seeded schedules of publishes, weight changes, requeues, delays and lost links against an independent record.
//!
//! Two brokers, each first in, first out per queue; one publisher; one consumer a queue, which merges both sides with
//! the real [`Merge`] under the real [`Fences`]. Whatever is under way may be late by any number of steps. Where a side is
//! killed, RabbitMQ's fences may also expire: they are dead letters, which the kill loses, and JetStream's may be gone with their queue.
//! RabbitMQ also loses those of its messages that are transient, in the queue and in somebody's hands.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::*;
use crate::dual::merge::Merge;

const QUEUES: usize = 2;
const KEYS: u64 = 6;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug, Clone, Copy)]
struct Message {
    number: u64,
    key: u64,
    stamp: Stamp,
    fence: Option<FenceId>,
}

impl Message {
    fn bucket(&self) -> Bucket {
        bucket(self.key)
    }
    fn is_transient(&self) -> bool {
        self.number.is_multiple_of(3)
    }
    fn key(&self) -> MessageKey {
        MessageKey::Stamped(u128::from(self.number))
    }
}

fn bucket(key: u64) -> Bucket {
    Bucket::of(3, &key.to_be_bytes())
}

/// One queue on one side. RabbitMQ puts a requeued message where it was; JetStream gives it out next.
#[derive(Default)]
struct BrokerQueue {
    ready: VecDeque<(u64, Message)>,
    again: VecDeque<(u64, Message)>,
    unacked: BTreeMap<u64, Message>,
    next: u64,
    credit: u32,
    /// On their way to the sidecar, and back.
    deliveries: VecDeque<(u64, Message)>,
    commands: VecDeque<ToBroker>,
}

/// What a link tells a broker, in order.
enum ToBroker {
    Ack(u64),
    Requeue(u64),
    Credit(u32),
}

impl BrokerQueue {
    fn store(&mut self, message: Message) {
        self.ready.push_back((self.next, message));
        self.next += 1;
    }

    fn requeue(&mut self, side: Side, place: u64) {
        let Some(message) = self.unacked.remove(&place) else { return };
        match side {
            Side::Rabbit => {
                let at = self.ready.iter().position(|(p, _)| *p > place).unwrap_or(self.ready.len());
                self.ready.insert(at, (place, message));
            }
            Side::Nats => self.again.push_back((place, message)),
        }
    }

    fn deliver(&mut self) {
        if self.credit == 0 {
            return;
        }
        if let Some((place, message)) = self.again.pop_front().or_else(|| self.ready.pop_front()) {
            self.credit -= 1;
            self.unacked.insert(place, message);
            self.deliveries.push_back((place, message));
        }
    }

    fn obey(&mut self, side: Side) {
        match self.commands.pop_front() {
            Some(ToBroker::Ack(place)) => {
                self.unacked.remove(&place);
            }
            Some(ToBroker::Requeue(place)) => self.requeue(side, place),
            Some(ToBroker::Credit(amount)) => self.credit += amount,
            None => {}
        }
    }
}

struct Consumer {
    merge: Merge<(u64, Message)>,
    client: Vec<(Side, u64, Message)>,
    /// The record: by key, the last message that was delivered for the first time, and what was acked.
    last_first: BTreeMap<u64, u64>,
    last_acked: BTreeMap<u64, u64>,
    seen: BTreeSet<u64>,
    acked: BTreeSet<u64>,
    /// What RabbitMQ lost.
    lost: BTreeSet<u64>,
}

impl Consumer {
    fn ended(&self, message: u64) -> bool {
        self.acked.contains(&message) || self.lost.contains(&message)
    }
}

struct Simulation {
    random: Random,
    window: u32,
    now: Duration,
    fences: Fences,
    brokers: [[BrokerQueue; QUEUES]; 2],
    publishes: [VecDeque<Message>; 2],
    confirms: [Vec<Stamp>; 2],
    actions: Vec<Action>,
    stored: Vec<(QueueName, FenceId)>,
    consumers: Vec<Consumer>,
    published: Vec<Message>,
    /// The changes that the state keeps: those that are not known to be drained.
    kept: Vec<Shift>,
    /// How many of them; all, but to show that the tests notice.
    keeps: usize,
    lives: u64,
    /// How often a side is killed yet; fences expire where sides are killed.
    kills: Option<u64>,
    /// Fences that have expired and that nobody has received yet.
    dead: Vec<FenceId>,
    /// A side that is back, which the order keeper is yet to hear.
    back: Vec<Side>,
    /// Whether it hears; always, but to show that the tests notice.
    hears: bool,
    /// Whether a kill loses transient messages.
    loses: bool,
}

fn queue_name(queue: usize) -> QueueName {
    QueueName { vhost: "/".into(), queue: format!("q{queue}").into() }
}

/// Queue 0 gets every message, queue 1 those with an even key.
fn routed(queue: usize, key: u64) -> bool {
    queue == 0 || key.is_multiple_of(2)
}

impl Simulation {
    fn new(seed: u64, holds: bool) -> Self {
        let mut random = Random(seed);
        let window = [1, 1, 2, 3, 8][random.below(5) as usize];
        let mut fences = Fences::new(seed, 1, Weight::NONE, Duration::from_secs(1_000_000));
        if !holds {
            fences = fences.without_holds();
        }
        let mut simulation = Self {
            random,
            window,
            now: Duration::ZERO,
            fences,
            brokers: Default::default(),
            publishes: Default::default(),
            confirms: Default::default(),
            actions: Vec::new(),
            stored: Vec::new(),
            consumers: Vec::new(),
            published: Vec::new(),
            kept: Vec::new(),
            keeps: usize::MAX,
            lives: 0,
            kills: None,
            dead: Vec::new(),
            back: Vec::new(),
            hears: true,
            loses: true,
        };
        for queue in 0..QUEUES {
            simulation.fences.register(&queue_name(queue), Duration::ZERO);
            simulation.consumers.push(Consumer {
                merge: Merge::new(0, true),
                client: Vec::new(),
                last_first: BTreeMap::new(),
                last_acked: BTreeMap::new(),
                seen: BTreeSet::new(),
                acked: BTreeSet::new(),
                lost: BTreeSet::new(),
            });
            simulation.attach(queue);
        }
        simulation
    }

    fn attach(&mut self, queue: usize) {
        let mut merge = Merge::new(self.window, true);
        for side in Side::BOTH {
            self.brokers[side.index()][queue].credit = merge.attach(side);
        }
        self.consumers[queue].merge = merge;
    }

    fn side(&mut self) -> Side {
        Side::BOTH[self.random.below(2) as usize]
    }

    fn publish(&mut self) {
        let key = self.random.below(KEYS);
        let stamp = self.fences.publish(bucket(key));
        let message = Message { number: self.published.len() as u64, key, stamp, fence: None };
        self.published.push(message);
        self.publishes[stamp.owner.index()].push_back(message);
    }

    fn arrive(&mut self, side: Side) {
        if let Some(message) = self.publishes[side.index()].pop_front() {
            for queue in (0..QUEUES).filter(|q| routed(*q, message.key)) {
                self.brokers[side.index()][queue].store(message);
            }
            self.confirms[side.index()].push(message.stamp);
        }
    }

    fn confirm(&mut self, side: Side) {
        let waiting = self.confirms[side.index()].len() as u64;
        if waiting > 0 {
            let at = self.random.below(waiting) as usize;
            let stamp = self.confirms[side.index()].swap_remove(at);
            let actions = self.fences.published(stamp);
            self.actions.extend(actions);
        }
    }

    fn change(&mut self) {
        if self.fences.can_begin() {
            let steps = [0, 500, 2_500, 5_000, 7_500, 10_000];
            let to = Weight::from_buckets(steps[self.random.below(6) as usize]).expect("at most 10 000");
            self.kept = self.fences.open_shifts(self.now);
            let (epoch, from) = (self.fences.epoch() + 1, self.fences.weight());
            if from != to {
                self.kept.push(Shift { epoch, from, to });
            }
            let actions = self.fences.begin(epoch, to);
            self.actions.extend(actions);
        }
    }

    /// The sidecar is killed and started again. What it had written arrives; what it knew is gone, but for the state.
    fn crash(&mut self) {
        for side in Side::BOTH {
            while !self.publishes[side.index()].is_empty() {
                self.arrive(side);
            }
            self.confirms[side.index()].clear();
        }
        self.actions.clear();
        self.stored.clear();
        self.lives += 1;
        let (epoch, weight) = (self.fences.epoch(), self.fences.weight());
        self.fences = Fences::new(u64::MAX - self.lives, epoch, weight, Duration::from_secs(1_000_000));
        // The state outlives the next crash, too.
        self.kept.drain(..self.kept.len().saturating_sub(self.keeps));
        self.fences.resume(self.kept.clone(), self.now);
        for queue in 0..QUEUES {
            let actions = self.fences.register(&queue_name(queue), self.now);
            self.lose_link(queue);
            // Nothing was settled by that: the record of it went with the life.
            self.actions.extend(actions);
        }
    }

    /// A side is killed and is back at once: its links are gone, and some of the fences that it had.
    fn kill(&mut self, side: Side) {
        (0..QUEUES).for_each(|queue| self.lose_link(queue));
        if side == Side::Rabbit {
            self.dead.clear();
            self.lose_transient();
        }
        for queue in &mut self.brokers[side.index()] {
            for held in [&mut queue.ready, &mut queue.again] {
                held.retain(|(_, message)| message.fence.is_none() || self.random.one_in(2));
            }
        }
        if self.hears && !self.back.contains(&side) {
            self.back.push(side);
        }
    }

    /// What RabbitMQ has of transient messages is gone; everything of it is back in its queues by now.
    fn lose_transient(&mut self) {
        for (queue, consumer) in self.brokers[Side::Rabbit.index()].iter_mut().zip(&mut self.consumers) {
            queue.ready.retain(|(_, message)| {
                let lost = self.loses && message.fence.is_none() && message.is_transient();
                if lost {
                    consumer.lost.insert(message.number);
                }
                !lost
            });
        }
    }

    /// A fence expires at the head of RabbitMQ's queue, when nothing is on its way out of it.
    fn expire(&mut self, queue: usize) {
        let at = &mut self.brokers[Side::Rabbit.index()][queue];
        if at.deliveries.is_empty()
            && let Some((_, Message { fence: Some(fence), .. })) = at.ready.front()
        {
            self.dead.push(*fence);
            at.ready.pop_front();
        }
    }

    fn act(&mut self) {
        let waiting = self.actions.len() as u64;
        if waiting == 0 {
            return;
        }
        let at = self.random.below(waiting) as usize;
        match self.actions.remove(at) {
            Action::PublishFence { queue, side, fence } => {
                let index = usize::from(queue == queue_name(1));
                let stamp = Stamp { epoch: 0, owner: side };
                self.brokers[side.index()][index].store(Message { number: 0, key: 0, stamp, fence: Some(fence) });
                if self.random.one_in(2) {
                    self.fences.fence_stored(&queue, fence);
                } else {
                    // The consumer may see it before its publisher knows that it is stored.
                    self.stored.push((queue, fence));
                }
            }
            Action::Lifted { .. } => {}
        }
    }

    fn receive(&mut self, side: Side, queue: usize) -> Result<(), String> {
        let Some((place, message)) = self.brokers[side.index()][queue].deliveries.pop_front() else { return Ok(()) };
        let name = queue_name(queue);
        let actions = if let Some(fence) = message.fence {
            self.consumers[queue].merge.fence(side);
            self.brokers[side.index()][queue].commands.push_back(ToBroker::Ack(place));
            self.fences.fence_out(&name, fence, self.now)
        } else {
            let received =
                self.fences.received(&name, side, message.key(), message.bucket(), message.stamp.epoch, self.now);
            self.consumers[queue].merge.received(side, received.place, received.waits, (place, message));
            Vec::new()
        };
        self.after(queue, actions)
    }

    /// What a link does after any event: releases what waits no longer, gives the client what it may have, replenishes.
    fn after(&mut self, queue: usize, actions: Vec<Action>) -> Result<(), String> {
        self.actions.extend(actions);
        let consumer = &mut self.consumers[queue];
        let (fences, now, name) = (&mut self.fences, self.now, queue_name(queue));
        consumer.merge.release(|side, (_, m)| fences.must_wait(&name, side, m.bucket(), m.stamp.epoch, now));
        while let Some((side, (place, message))) = consumer.merge.pop() {
            if consumer.client.len() as u32 >= self.window {
                return Err(format!("queue {queue}: more than the window of {} delivered", self.window));
            }
            consumer.client.push((side, place, message));
            if consumer.acked.contains(&message.number) {
                return Err(format!("queue {queue}: message {} came after its ack", message.number));
            }
            if consumer.seen.insert(message.number) {
                let last = consumer.last_first.insert(message.key, message.number);
                if last.is_some_and(|last| last > message.number) {
                    return Err(format!("queue {queue} key {}: {} after {last:?}", message.key, message.number));
                }
                let open = |m: &&Message| m.key == message.key && m.stamp.owner != side && !consumer.ended(m.number);
                if let Some(first) = self.published[..message.number as usize].iter().find(open) {
                    return Err(format!("queue {queue}: {} came while {} was open", message.number, first.number));
                }
            }
        }
        for side in Side::BOTH {
            let more = consumer.merge.grant(side);
            if more > 0 {
                self.brokers[side.index()][queue].commands.push_back(ToBroker::Credit(more));
            }
        }
        Ok(())
    }

    fn settle(&mut self, queue: usize) -> Result<(), String> {
        let held = self.consumers[queue].client.len() as u64;
        if held == 0 {
            return Ok(());
        }
        let at = if self.random.one_in(4) { self.random.below(held) as usize } else { 0 };
        let requeue = self.random.one_in(6);
        let consumer = &mut self.consumers[queue];
        let (side, place, message) = consumer.client.remove(at);
        let name = queue_name(queue);
        let actions = if requeue {
            self.fences.requeued(&name, side, message.key(), self.now)
        } else {
            if !consumer.acked.insert(message.number) {
                return Err(format!("queue {queue}: {} acked twice", message.number));
            }
            let last = consumer.last_acked.insert(message.key, message.number);
            if self.window == 1 && last.is_some_and(|last| last > message.number) {
                return Err(format!("queue {queue} key {}: {} acked after {last:?}", message.key, message.number));
            }
            self.fences.settled(&name, side, message.key())
        };
        let command = if requeue { ToBroker::Requeue(place) } else { ToBroker::Ack(place) };
        self.brokers[side.index()][queue].commands.push_back(command);
        consumer.merge.settled(side);
        consumer.merge.credit(1);
        self.after(queue, actions)
    }

    /// The consumer's connection is lost and made again.
    fn lose_link(&mut self, queue: usize) {
        let name = queue_name(queue);
        let consumer = &mut self.consumers[queue];
        let mut back: Vec<_> = consumer.client.drain(..).collect();
        back.extend(consumer.merge.drain().into_iter().map(|(side, (place, m))| (side, place, m)));
        for (side, _, message) in back {
            let actions = self.fences.requeued(&name, side, message.key(), self.now);
            self.actions.extend(actions);
        }
        for side in Side::BOTH {
            let broker = &mut self.brokers[side.index()][queue];
            while !broker.commands.is_empty() {
                broker.obey(side);
            }
            broker.deliveries.clear();
            let places: Vec<u64> = broker.unacked.keys().copied().collect();
            // JetStream: what was not asked for again yet goes before what is asked for now.
            let rest: Vec<_> = broker.again.drain(..).collect();
            for place in places {
                broker.requeue(side, place);
            }
            broker.again.extend(rest);
            broker.again.make_contiguous().sort_by_key(|(place, _)| *place);
        }
        self.attach(queue);
    }

    fn step(&mut self, messages: u64, changes: &mut u64, crashes: &mut u64) -> Result<(), String> {
        self.now += Duration::from_millis(1);
        let side = self.side();
        let queue = self.random.below(QUEUES as u64) as usize;
        match self.random.below(20) {
            0 | 1 if (self.published.len() as u64) < messages => self.publish(),
            2 if *changes > 0 && self.random.one_in(4) => {
                *changes -= 1;
                self.change();
            }
            3 | 4 => self.arrive(side),
            5 => self.confirm(side),
            6 => self.act(),
            7..=9 => self.brokers[side.index()][queue].deliver(),
            10..=12 => self.receive(side, queue)?,
            13..=15 => self.settle(queue)?,
            16 | 17 => self.brokers[side.index()][queue].obey(side),
            18 if self.random.one_in(200) => self.lose_link(queue),
            18 if *crashes > 0 && self.random.one_in(100) => {
                *crashes -= 1;
                self.crash();
            }
            18 if self.kills.is_some_and(|kills| kills > 0) && self.random.one_in(100) => {
                self.kills = self.kills.map(|kills| kills - 1);
                self.kill(side);
            }
            18 if self.kills.is_some() && self.random.one_in(20) => self.expire(queue),
            19 => {
                // What is stored is known before: the task that publishes fences hears both.
                if self.stored.is_empty()
                    && let Some(side) = self.back.pop()
                {
                    let actions = self.fences.returned(side);
                    self.actions.extend(actions);
                }
                if let Some(fence) = self.dead.pop() {
                    let actions = self.fences.fence_out(&queue_name(QUEUES), fence, self.now);
                    self.actions.extend(actions);
                }
                if let Some((queue, fence)) = self.stored.pop() {
                    self.fences.fence_stored(&queue, fence);
                }
                let actions = self.fences.tick(self.now);
                self.actions.extend(actions);
                self.after(queue, Vec::new())?;
            }
            _ => {}
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.consumers.iter().enumerate().all(|(queue, consumer)| {
            self.published.iter().filter(|m| routed(queue, m.key)).all(|m| consumer.ended(m.number))
        })
    }
}

/// Runs one schedule; the error says what was broken.
fn run(seed: u64, holds: bool, crashes: u64) -> Result<(), String> {
    simulate(Simulation::new(seed, holds), crashes)
}

fn simulate(mut simulation: Simulation, mut crashes: u64) -> Result<(), String> {
    let messages = 40 + simulation.random.below(160);
    let mut changes = 1 + simulation.random.below(8);
    for _ in 0..400_000 {
        simulation.step(messages, &mut changes, &mut crashes)?;
        if simulation.published.len() as u64 == messages && simulation.done() {
            return Ok(());
        }
    }
    Err(format!("stuck: {:?}", simulation.fences))
}

/// How many schedules one run of the tests tries.
const SEEDS: u64 = 400;

#[test]
fn order_holds_and_nothing_is_lost_or_doubled_across_any_weight_changes() {
    for seed in 0..SEEDS {
        if let Err(broken) = run(seed, true, 0) {
            panic!("seed {seed}: {broken}\nreplay: SEED={seed} cargo test -p nats-bridge-sidecar replay_one_seed");
        }
    }
}

#[test]
fn order_holds_across_changes_that_overlap_when_the_sidecar_is_killed_in_them() {
    for seed in 0..SEEDS / 2 {
        if let Err(broken) = run(seed, true, 2) {
            panic!(
                "seed {seed}: {broken}\nreplay: CRASHES=2 SEED={seed} cargo test -p nats-bridge-sidecar replay_one_seed"
            );
        }
    }
}

fn killed(seed: u64, hears: bool, crashes: u64) -> Result<(), String> {
    let mut simulation = Simulation::new(seed, true);
    (simulation.kills, simulation.hears) = (Some(3), hears);
    simulate(simulation, crashes)
}

/// How many schedules with kills one run of the tests tries.
const KILLED: u64 = 400;

#[test]
fn order_holds_and_nothing_waits_for_a_fence_that_went_with_a_side_that_was_killed() {
    for seed in 0..KILLED {
        if let Err(broken) = killed(seed, true, seed % 2) {
            panic!(
                "seed {seed}: {broken}\nreplay: KILLS= CRASHES={} SEED={seed} cargo test -p nats-bridge-sidecar replay_one_seed",
                seed % 2
            );
        }
    }
}

#[test]
fn the_simulation_notices_when_nobody_hears_that_a_side_was_away() {
    let stuck = |seed: &u64| killed(*seed, false, 0).is_err_and(|broken| broken.starts_with("stuck"));
    assert!((0..KILLED).any(|seed| stuck(&seed)), "of {KILLED} schedules none noticed");
}

#[test]
fn the_simulation_notices_when_the_state_keeps_only_the_last_change() {
    let broken = |seed: &u64| {
        let mut simulation = Simulation::new(*seed, true);
        simulation.keeps = 1;
        simulate(simulation, 2).is_err()
    };
    assert!((0..SEEDS).any(|seed| broken(&seed)), "of {SEEDS} schedules none noticed");
}

#[test]
fn the_simulation_notices_when_nothing_is_held() {
    let caught = (0..SEEDS).filter(|seed| run(*seed, false, 0).is_err()).count();
    assert!(caught > SEEDS as usize / 4, "only {caught} schedules of {SEEDS} noticed that holds were off");
}

#[test]
fn replay_one_seed() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let crashes = std::env::var("CRASHES").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let ended =
        if std::env::var_os("KILLS").is_some() { killed(seed, true, crashes) } else { run(seed, true, crashes) };
    assert_eq!(ended, Ok(()));
}
