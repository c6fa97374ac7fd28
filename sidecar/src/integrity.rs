//! Whether JetStream gives back what it owns: as it was published, once, in order, and all of it. Pure.
//!
//! At a weight above 0 a message has one copy, on its owner's side, so there is nothing to compare it with but itself: what the
//! sidecar was given to publish is remembered, and looked at when it is delivered.
//!
//! - *corrupted*: payload, properties, exchange or routing key are others.
//! - *duplicated*: a queue delivers it a second time, and does not say so (`redelivered`).
//! - *reordered*: a queue with one consumer delivers it before an older one of the same channel, routing key and priority.
//! - *dropped*: it was confirmed and has not been delivered, and its stream was looked at twice without it being where it was stored
//!   ([`Integrity::looked_up`]); or its queue was seen empty twice a while later. Only looked for in queues that drop nothing by themselves
//!   (no time to live, no limit).
//!
//! What cannot be judged is counted as unchecked, never as a fault: messages of an earlier run, those that fell out of the
//! bounded table ([`Limits::messages`]), dead letters, publishes whose fate is unknown.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use smallvec::SmallVec;
use ulid::Ulid;

use crate::fence::QueueName;
use crate::gate::Faults;
use crate::parity::Digest;

/// The bounds of an [`Integrity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many messages are remembered; the oldest are forgotten first. Default 100 000 (about 20 MB).
    pub messages: usize,
    /// How many queues are told apart; further ones are not looked at. Default 10 000.
    pub queues: usize,
    /// For how many channels and routing keys of a queue the last delivery is remembered. Default 10 000.
    pub flows: usize,
    /// How long after its confirm a message may be neither delivered nor in its queue. Default 30 s.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { messages: 100_000, queues: 10_000, flows: 10_000, patience: Duration::from_secs(30) }
    }
}

/// A queue whose stream is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The queue.
    pub queue: QueueName,
    /// The newest sequence that is asked for.
    pub newest: u64,
    /// What is looked up one by one where the stream cannot tell of all: what is doubted, and others in turn; at most 16.
    pub single: Vec<u64>,
}

/// A delivery, as it is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// What it was stamped with.
    pub id: u128,
    /// Of the message without its stamp.
    pub digest: Digest,
    /// Whether it says that it may have been delivered before.
    pub redelivered: bool,
    /// Its consumer, when the queue has no other; `None` when order cannot be judged.
    pub consumer: Option<u64>,
}

/// One message that something happened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// One of [`Faults::NAMES`].
    pub fault: &'static str,
    /// Its queue.
    pub queue: QueueName,
    /// Its `bridge-id`.
    pub id: String,
}

/// What JetStream owns, and what became of it. `now` never goes back.
#[derive(Debug)]
pub struct Integrity {
    limits: Limits,
    messages: HashMap<u128, Message>,
    ages: VecDeque<u128>,
    numbers: HashMap<QueueName, usize>,
    queues: Vec<Queue>,
    faults: Faults,
    checked: u64,
    unchecked: u64,
    samples: VecDeque<Sample>,
    /// The queue that is looked up next.
    turn: usize,
    looks: u64,
}

#[derive(Debug)]
struct Message {
    digest: Digest,
    flow: u64,
    fate: Fate,
    /// The queues that have it, how far it is there, and its sequence in the stream once that is known.
    places: SmallVec<[(usize, Place, Option<u64>); 2]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Sent,
    Stored(Duration),
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Waits,
    /// Its queue was seen empty once.
    Doubted,
    Dropped,
    Delivered,
}

#[derive(Debug)]
struct Queue {
    name: QueueName,
    keeps_all: bool,
    consumer: Option<u64>,
    last: HashMap<u64, u128>,
    undelivered: BTreeSet<u128>,
    /// Those of the undelivered whose sequence is known, by that.
    stored: BTreeMap<u64, u128>,
    /// Those of them that the stream did not have when it was looked at, and since when.
    doubted: BTreeMap<u64, Duration>,
    /// After which sequence single ones are looked up next.
    after: u64,
}

impl Queue {
    fn delivered(&mut self, id: u128, sequence: Option<u64>) {
        self.undelivered.remove(&id);
        if let Some(sequence) = sequence {
            self.stored.remove(&sequence);
            self.doubted.remove(&sequence);
        }
    }
}

/// How many samples are kept.
const SAMPLES: usize = 16;
/// How long a stream has to lack a message: a server that has just begun to lead may not know yet of the newest ones.
const DOUBT: Duration = Duration::from_millis(900);
/// How many sequences of a queue are looked up one by one.
const SINGLE: usize = 16;

impl Integrity {
    /// Nothing is known yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            messages: HashMap::new(),
            ages: VecDeque::new(),
            numbers: HashMap::new(),
            queues: Vec::new(),
            faults: Faults::default(),
            checked: 0,
            unchecked: 0,
            samples: VecDeque::new(),
            turn: 0,
            looks: 0,
        }
    }

    /// A queue was declared; `keeps_all` when nothing of it expires or is dropped by a limit.
    pub fn declared(&mut self, name: &QueueName, keeps_all: bool) {
        if let Some(queue) = self.number(name) {
            self.queues[queue].keeps_all = keeps_all;
        }
    }

    /// A message is on its way to JetStream, which routes it to these queues. `flow` is the same for messages that keep their
    /// order; `expires`: it has a time to live of its own.
    pub fn published(&mut self, id: u128, digest: Digest, flow: u64, queues: &[QueueName], expires: bool) {
        if self.messages.len() >= self.limits.messages
            && let Some(oldest) = self.ages.pop_front()
        {
            self.forget(oldest);
        }
        let mut places = SmallVec::new();
        for name in queues {
            let Some(queue) = self.number(name) else { continue };
            places.push((queue, Place::Waits, None));
            if !expires {
                self.queues[queue].undelivered.insert(id);
            }
        }
        if self.messages.insert(id, Message { digest, flow, fate: Fate::Sent, places }).is_none() {
            self.ages.push_back(id);
        }
    }

    /// JetStream has confirmed a publish, or it is not known whether it has it.
    pub fn confirmed(&mut self, id: u128, stored: bool, now: Duration) {
        if let Some(message) = self.messages.get_mut(&id) {
            message.fate = if stored { Fate::Stored(now) } else { Fate::Unknown };
        }
    }

    /// JetStream has stored a message of a queue at this sequence of the queue's stream.
    pub fn stored(&mut self, vhost: &str, queue: &str, id: u128, sequence: u64) {
        let Some(message) = self.messages.get_mut(&id) else { return };
        let is_its = |name: &QueueName| &*name.queue == queue && &*name.vhost == vhost;
        let Some((at, place, known)) = message.places.iter_mut().find(|(at, ..)| is_its(&self.queues[*at].name)) else {
            return;
        };
        let queue = &mut self.queues[*at];
        if *place == Place::Waits && known.is_none() && queue.undelivered.contains(&id) {
            *known = Some(sequence);
            queue.stored.insert(sequence, id);
        }
    }

    /// JetStream delivered a message to the application.
    pub fn delivered(&mut self, name: &QueueName, seen: Seen) {
        let Some(queue) = self.number(name) else {
            self.unchecked += 1;
            return;
        };
        let state = &mut self.queues[queue];
        if state.consumer != seen.consumer {
            // What another consumer got may have come before or after.
            state.last.clear();
            state.consumer = seen.consumer;
        }
        let Some(message) = self.messages.get_mut(&seen.id) else {
            self.unchecked += 1;
            return;
        };
        self.checked += 1;
        let (before, sequence) = match message.places.iter_mut().find(|(at, ..)| *at == queue) {
            Some((_, place, sequence)) => (std::mem::replace(place, Place::Delivered), *sequence),
            None => {
                message.places.push((queue, Place::Delivered, None));
                (Place::Waits, None)
            }
        };
        state.delivered(seen.id, sequence);
        let (flow, known, same) = (message.flow, message.fate != Fate::Unknown, message.digest == seen.digest);
        if before == Place::Dropped {
            self.faults.dropped -= 1;
        }
        if !same {
            self.faults.corrupted += 1;
            self.sample("corrupted", queue, seen.id);
        }
        if seen.redelivered || !known {
            return;
        }
        if before == Place::Delivered {
            self.faults.duplicated += 1;
            return self.sample("duplicated", queue, seen.id);
        }
        if seen.consumer.is_none() {
            return;
        }
        let state = &mut self.queues[queue];
        match state.last.get_mut(&flow) {
            Some(last) if *last > seen.id => {
                self.faults.reordered += 1;
                self.sample("reordered", queue, seen.id);
            }
            Some(last) => *last = seen.id,
            None => {
                if state.last.len() >= self.limits.flows {
                    state.last.clear();
                }
                state.last.insert(flow, seen.id);
            }
        }
    }

    /// A delivery that cannot be judged, such as a dead letter.
    pub fn not_judged(&mut self, name: &QueueName, id: u128) {
        self.unchecked += 1;
        let Some(queue) = self.number(name) else { return };
        let places = self.messages.get(&id).map(|message| message.places.as_slice()).unwrap_or_default();
        let sequence = places.iter().find(|(at, ..)| *at == queue).and_then(|(.., sequence)| *sequence);
        self.queues[queue].delivered(id, sequence);
    }

    /// The queues whose streams are to be looked at now, at most so many: those first of which something is doubted, the others in turn.
    pub fn lookups(&mut self, most: usize) -> Vec<Lookup> {
        let waits = |queue: &Queue| queue.keeps_all && !queue.stored.is_empty();
        let doubted = |queue: &Queue| waits(queue) && !queue.doubted.is_empty();
        let count = self.queues.len();
        let in_turn = (0..count).map(|n| (self.turn + n) % count);
        let mut chosen: Vec<usize> = (0..count).filter(|at| doubted(&self.queues[*at])).take(most).collect();
        let room = most - chosen.len();
        chosen.extend(in_turn.filter(|at| waits(&self.queues[*at]) && !doubted(&self.queues[*at])).take(room));
        if let Some(last) = chosen.last().filter(|_| room > 0) {
            self.turn = (last + 1) % count;
        }
        let lookup = |at: usize| {
            let queue = &mut self.queues[at];
            let newest = *queue.stored.last_key_value()?.0;
            let mut single: Vec<u64> = queue.doubted.keys().copied().take(SINGLE).collect();
            let others = |range: &mut dyn Iterator<Item = (&u64, &u128)>, room| -> Vec<u64> {
                range.map(|(sequence, _)| *sequence).filter(|s| !queue.doubted.contains_key(s)).take(room).collect()
            };
            let mut next = others(&mut queue.stored.range(queue.after.saturating_add(1)..), SINGLE - single.len());
            if next.is_empty() {
                next = others(&mut queue.stored.iter(), SINGLE - single.len());
            }
            queue.after = next.last().copied().unwrap_or_default();
            single.extend(next);
            Some(Lookup { queue: queue.name.clone(), newest, single })
        };
        chosen.into_iter().filter_map(lookup).collect()
    }

    /// What the stream of a queue has, asked for after [`Integrity::lookups`]: from `first` to `last`, without those that are `gone`. What was
    /// stored and not delivered, and is not there, was taken by nobody: the sidecar sees each delivery before JetStream is told
    /// that it is settled.
    pub fn looked_up(&mut self, asked: &Lookup, first: u64, last: u64, gone: &[u64], now: Duration) {
        let Some(at) = self.number(&asked.queue) else { return };
        self.looks += 1;
        let queue = &mut self.queues[at];
        let newest = asked.newest;
        let mut missing: BTreeSet<u64> = gone.iter().copied().filter(|s| *s <= newest).collect();
        missing.retain(|sequence| queue.stored.contains_key(sequence));
        missing.extend(queue.stored.range(..first.min(newest.saturating_add(1))).map(|(sequence, _)| *sequence));
        if last < newest {
            missing.extend(queue.stored.range(last + 1..=newest).map(|(sequence, _)| *sequence));
        }
        let before = std::mem::take(&mut queue.doubted);
        let mut lost = Vec::new();
        for sequence in missing {
            let since = before.get(&sequence).copied().unwrap_or(now);
            match queue.stored.get(&sequence) {
                Some(id) if since + DOUBT <= now => lost.push(*id),
                _ => drop(queue.doubted.insert(sequence, since)),
            }
        }
        for id in lost {
            self.dropped(at, id);
        }
    }

    /// A message is neither delivered nor in its queue.
    fn dropped(&mut self, queue: usize, id: u128) {
        let Some(message) = self.messages.get_mut(&id) else { return };
        let Some((_, place, sequence)) = message.places.iter_mut().find(|(at, ..)| *at == queue) else { return };
        *place = Place::Dropped;
        self.queues[queue].delivered(id, *sequence);
        self.faults.dropped += 1;
        self.sample("dropped", queue, id);
    }

    /// How often a stream was looked at.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// How many messages are remembered.
    pub fn remembered(&self) -> usize {
        self.messages.len()
    }

    /// JetStream's queue holds nothing, deliveries that are not settled included.
    pub fn emptied(&mut self, name: &QueueName, now: Duration) {
        let Some(queue) = self.number(name) else { return };
        if !self.queues[queue].keeps_all {
            return;
        }
        let patience = self.limits.patience;
        let waiting: Vec<u128> = self.queues[queue].undelivered.iter().copied().collect();
        for id in waiting {
            let Some(message) = self.messages.get_mut(&id) else { continue };
            match message.fate {
                Fate::Stored(at) if at + patience <= now => {}
                Fate::Stored(_) | Fate::Sent => continue,
                Fate::Unknown => {
                    self.queues[queue].undelivered.remove(&id);
                    continue;
                }
            }
            let Some((_, place, _)) = message.places.iter_mut().find(|(at, ..)| *at == queue) else { continue };
            match place {
                Place::Waits => *place = Place::Doubted,
                Place::Doubted => self.dropped(queue, id),
                Place::Dropped | Place::Delivered => {}
            }
        }
    }

    /// A queue was purged or deleted: what it had will not be delivered.
    pub fn discarded(&mut self, name: &QueueName) {
        if let Some(queue) = self.number(name) {
            let queue = &mut self.queues[queue];
            queue.undelivered.clear();
            queue.stored.clear();
            queue.doubted.clear();
            queue.last.clear();
        }
    }

    /// What was found since the start.
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// How many deliveries were looked at, and how many could not be.
    pub fn looked_at(&self) -> (u64, u64) {
        (self.checked, self.unchecked)
    }

    /// The last few that something happened to; at most 16.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.iter().cloned().collect()
    }

    /// The queues in which something is not delivered yet.
    pub fn waiting(&self) -> Vec<QueueName> {
        let waits = |queue: &&Queue| queue.keeps_all && !queue.undelivered.is_empty();
        self.queues.iter().filter(waits).map(|queue| queue.name.clone()).collect()
    }

    fn number(&mut self, name: &QueueName) -> Option<usize> {
        if let Some(number) = self.numbers.get(name) {
            return Some(*number);
        }
        if self.queues.len() >= self.limits.queues {
            return None;
        }
        let number = self.queues.len();
        self.numbers.insert(name.clone(), number);
        self.queues.push(Queue {
            name: name.clone(),
            keeps_all: false,
            consumer: None,
            last: HashMap::new(),
            undelivered: BTreeSet::new(),
            stored: BTreeMap::new(),
            doubted: BTreeMap::new(),
            after: 0,
        });
        Some(number)
    }

    fn forget(&mut self, id: u128) {
        let Some(message) = self.messages.remove(&id) else { return };
        for (queue, _, sequence) in message.places {
            self.queues[queue].delivered(id, sequence);
        }
    }

    fn sample(&mut self, fault: &'static str, queue: usize, id: u128) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        let queue = self.queues[queue].name.clone();
        self.samples.push_back(Sample { fault, queue, id: Ulid(id).to_string() });
    }
}
