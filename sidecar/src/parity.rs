//! Joins what RabbitMQ delivered with the copies in the standby stream. Pure.
//!
//! Every message of every queue ends in exactly one class: match, mismatch (payload, properties or routing), missing,
//! extra or unverified. A match is only what was compared: copy and delivery were both seen, and their digests are equal.
//! What could not be compared is unverified, with the reason.
//!
//! That half of a message has not come says nothing while the comparison is behind: a delivery is missing its copy only when
//! every copy that was taken before it has been read back or given up ([`Parity::tick`] is told), and a copy is extra only when its
//! queue was seen empty twice, a while later. A comparison that does not finish in time ends as unverified, never as a difference.
//!
//! The table is bounded ([`Limits::entries`]). At the bound the oldest entry is given up: one that waits for its other
//! half is counted as unverified, and its other half, should it come, is then not counted as missing or extra.

mod digest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use ulid::Ulid;

pub use digest::{Digest, NOT_COMPARED, digest};

use crate::control_api::{ParityClass, ParityCounts, ParitySample, QueueParity};

/// The bounds of a [`Parity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long after a delivery its copy may come before it is missing. Default 5 s.
    pub window: Duration,
    /// How long after that a comparison that is behind is waited for, and a copy or delivery that comes still turns a missing or extra
    /// into a late match or mismatch. Default 60 s.
    pub grace: Duration,
    /// How old a copy is that RabbitMQ has not delivered, although its queue is empty, when that is first held against it. Default
    /// 30 s: deliveries may lie in the sockets of a sidecar that does not keep up.
    pub unclaimed: Duration,
    /// How many messages are kept at most, over all queues. Default 100 000 (about 20 MB).
    pub entries: usize,
    /// How many queues are told apart; what comes for further ones is unverified, under one name. Default 10 000.
    pub queues: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(5),
            grace: Duration::from_secs(60),
            unclaimed: Duration::from_secs(30),
            entries: 100_000,
            queues: 10_000,
        }
    }
}

/// A queue that [`Parity::queue`] has given a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(u32);

/// Why a message could not be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unverified {
    /// The bounded queue of copies was full.
    CopyQueueFull,
    /// JetStream refused the copy, or did not confirm it.
    CopyFailed,
    /// The copy cannot be carried by JetStream, such as one above `max_payload`.
    NotCarried,
    /// It was given up at the bound of the table.
    TableFull,
    /// There are more queues than are told apart.
    TooManyQueues,
    /// The queue was purged or deleted, or the message expired.
    Discarded,
    /// RabbitMQ put it into this queue itself: it was dead-lettered.
    DeadLettered,
    /// It was delivered again, and nothing is known of the first time.
    Redelivered,
    /// Shadowing began after it was published, or ended before it was delivered.
    OutsideShadow,
    /// JetStream had not caught up with the topology when it was published.
    TopologyBehind,
    /// RabbitMQ refused the publish, or nobody knows what became of it.
    PublishFailed,
    /// The copy was not read back in time: the sidecar or JetStream did not keep up.
    NotReadBack,
}

impl Unverified {
    /// Its name in `status` and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Unverified::CopyQueueFull => "copy_queue_full",
            Unverified::CopyFailed => "copy_failed",
            Unverified::NotCarried => "not_carried",
            Unverified::TableFull => "table_full",
            Unverified::TooManyQueues => "too_many_queues",
            Unverified::Discarded => "discarded",
            Unverified::DeadLettered => "dead_lettered",
            Unverified::Redelivered => "redelivered",
            Unverified::OutsideShadow => "outside_shadow",
            Unverified::TopologyBehind => "topology_behind",
            Unverified::PublishFailed => "publish_failed",
            Unverified::NotReadBack => "not_read_back",
        }
    }

    const ALL: [Unverified; 12] = [
        Unverified::CopyQueueFull,
        Unverified::CopyFailed,
        Unverified::NotCarried,
        Unverified::TableFull,
        Unverified::TooManyQueues,
        Unverified::Discarded,
        Unverified::DeadLettered,
        Unverified::Redelivered,
        Unverified::OutsideShadow,
        Unverified::TopologyBehind,
        Unverified::PublishFailed,
        Unverified::NotReadBack,
    ];

    /// Whether it should have been compared: the comparison itself did not manage.
    pub fn is_left_out(self) -> bool {
        match self {
            Unverified::CopyQueueFull
            | Unverified::CopyFailed
            | Unverified::TableFull
            | Unverified::TooManyQueues
            | Unverified::NotReadBack => true,
            Unverified::NotCarried
            | Unverified::Discarded
            | Unverified::DeadLettered
            | Unverified::Redelivered
            | Unverified::OutsideShadow
            | Unverified::TopologyBehind
            | Unverified::PublishFailed => false,
        }
    }
}

/// How many messages of these counts by reason should have been compared, and were not.
pub fn left_out(by: &BTreeMap<String, u64>) -> u64 {
    Unverified::ALL.iter().filter(|why| why.is_left_out()).filter_map(|why| by.get(why.name())).sum()
}

/// The comparison of all queues. `now` is the time since any fixed moment, the same for all calls, and never goes back.
#[derive(Debug)]
pub struct Parity {
    limits: Limits,
    names: HashMap<(Box<str>, Box<str>), QueueId>,
    queues: Vec<Queue>,
    entries: HashMap<Key, Entry>,
    // What is given up first at the bound: entries that nothing is expected of any more, then the oldest.
    closed: BTreeMap<u64, Key>,
    waiting: BTreeMap<u64, Key>,
    // Entries that end by time.
    deadlines: BTreeSet<(Duration, Key)>,
    next_age: u64,
}

type Key = (QueueId, u128);

#[derive(Debug)]
struct Queue {
    vhost: Box<str>,
    name: Box<str>,
    counts: ParityCounts,
    reasons: BTreeMap<Unverified, u64>,
    samples: VecDeque<ParitySample>,
    // Messages of it may expire or be dropped by a limit.
    loses: bool,
    // Entries given up whose other half may still come. It is counted already.
    untracked: u64,
}

#[derive(Debug)]
struct Entry {
    age: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A copy that RabbitMQ has not delivered yet.
    Copied(Copied),
    /// A delivery whose copy has not come yet: when it was, and when it is looked at next.
    Delivered(Digest, Duration, Duration),
    /// A delivery that was counted as missing, and until when it may still be late.
    Missing(Digest, Duration),
    /// A copy that was counted as extra, and until when it may still be delivered.
    Extra(Digest, Duration),
    /// Counted; kept so that a redelivery is not counted again. True: its other half was not seen.
    Closed(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Copied {
    digest: Digest,
    since: Duration,
    /// Its message has a time to live.
    expires: bool,
    /// Its queue was seen empty once when it should have been delivered.
    doubted: bool,
}

/// The number of samples kept for each queue.
const SAMPLES: usize = 16;

impl Parity {
    /// An empty comparison.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            names: HashMap::new(),
            queues: Vec::new(),
            entries: HashMap::new(),
            closed: BTreeMap::new(),
            waiting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_age: 0,
        }
    }

    /// The number of a queue. Beyond [`Limits::queues`] all get the number of the queue `(more)` in the vhost ``, on which
    /// everything is unverified.
    pub fn queue(&mut self, vhost: &str, name: &str) -> QueueId {
        let (vhost, name) = if self.names.len() < self.limits.queues { (vhost, name) } else { self.known(vhost, name) };
        if let Some(queue) = self.names.get(&(vhost.into(), name.into())) {
            return *queue;
        }
        let queue = QueueId(u32::try_from(self.queues.len()).expect("the number of queues is bounded"));
        self.names.insert((vhost.into(), name.into()), queue);
        self.queues.push(Queue {
            vhost: vhost.into(),
            name: name.into(),
            counts: ParityCounts::default(),
            reasons: BTreeMap::new(),
            samples: VecDeque::new(),
            loses: false,
            untracked: 0,
        });
        queue
    }

    /// Whether messages of a queue may expire or be dropped by a limit: then a copy that is not delivered says nothing.
    pub fn loses(&mut self, queue: QueueId, loses: bool) {
        self.queue_mut(queue).loses = loses;
    }

    /// A copy was read back from the standby stream. `expires`: its message has a time to live.
    pub fn copy_stored(&mut self, queue: QueueId, id: u128, digest: Digest, expires: bool, now: Duration) {
        let key = (queue, id);
        match self.entries.get(&key).map(|entry| entry.state) {
            None => self.open(key, State::Copied(Copied { digest, since: now, expires, doubted: false })),
            Some(State::Delivered(delivered, at, _)) => {
                let late = at + self.limits.window < now;
                self.compared(key, digest, delivered, late);
            }
            Some(State::Missing(delivered, _)) => {
                self.queue_mut(queue).counts.missing -= 1;
                self.compared(key, digest, delivered, true);
            }
            // Read back a second time.
            Some(State::Copied(..) | State::Extra(..) | State::Closed(_)) => {}
        }
    }

    /// RabbitMQ delivered it to the sidecar. `redelivered` is RabbitMQ's flag.
    pub fn delivered(&mut self, queue: QueueId, id: u128, digest: Digest, redelivered: bool, now: Duration) {
        let key = (queue, id);
        match self.entries.get(&key).map(|entry| entry.state) {
            Some(State::Copied(copy)) => self.compared(key, copy.digest, digest, false),
            Some(State::Extra(copy, _)) => {
                self.queue_mut(queue).counts.extra -= 1;
                self.compared(key, copy, digest, true);
            }
            Some(State::Closed(true)) => self.close(key, false),
            // Delivered before; it was or will be compared once.
            Some(State::Delivered(..) | State::Missing(..) | State::Closed(false)) => {}
            None if redelivered => self.unverified(queue, id, Unverified::Redelivered),
            None => self.open(key, State::Delivered(digest, now, now + self.limits.window)),
        }
    }

    /// A delivery was settled for good: acknowledged, dropped or dead-lettered. Nothing more will come for it.
    pub fn settled(&mut self, queue: QueueId, id: u128) {
        if matches!(self.entries.get(&(queue, id)), Some(Entry { state: State::Closed(false), .. })) {
            self.remove((queue, id));
        }
    }

    /// It cannot be compared: its copy was not stored, or its delivery will not be seen.
    pub fn unverified(&mut self, queue: QueueId, id: u128, reason: Unverified) {
        let key = (queue, id);
        let other_half = match self.entries.get(&key).map(|entry| entry.state) {
            Some(State::Closed(_)) => return,
            Some(State::Missing(..)) => {
                self.queue_mut(queue).counts.missing -= 1;
                false
            }
            Some(State::Extra(..)) => {
                self.queue_mut(queue).counts.extra -= 1;
                false
            }
            Some(State::Copied(..) | State::Delivered(..)) => false,
            // Delivered again, it is not expected a third time; else the delivery may still come.
            None => reason != Unverified::Redelivered && reason != Unverified::DeadLettered,
        };
        self.count_unverified(queue, reason);
        self.close(key, other_half);
    }

    /// RabbitMQ's queue holds nothing any more, unsettled deliveries included: copies that are old, were never delivered, and
    /// were there when it was seen empty before are extra.
    pub fn emptied(&mut self, queue: QueueId, now: Duration) {
        let (unclaimed, grace) = (self.limits.unclaimed, self.limits.grace);
        let old = |state| matches!(state, State::Copied(copy) if copy.since + unclaimed <= now);
        for key in self.keys_of(queue, old) {
            let Some(State::Copied(copy)) = self.entries.get(&key).map(|entry| entry.state) else { continue };
            let queue = self.queue_mut(queue);
            if queue.untracked > 0 {
                queue.untracked -= 1;
                self.remove(key);
            } else if copy.expires || queue.loses {
                self.unverified(key.0, key.1, Unverified::Discarded);
            } else if !copy.doubted {
                self.change(key, State::Copied(Copied { doubted: true, ..copy }));
            } else {
                self.count(key, ParityClass::Extra);
                self.change(key, State::Extra(copy.digest, now + grace));
            }
        }
    }

    /// RabbitMQ's queue was purged or deleted, or its messages expired: the copies that wait will never be delivered.
    pub fn discarded(&mut self, queue: QueueId) {
        for key in self.keys_of(queue, |state| matches!(state, State::Copied(..))) {
            self.unverified(queue, key.1, Unverified::Discarded);
        }
    }

    /// Shadowing has ended: what waits is unverified, and nothing more is expected. The counts stay.
    pub fn stop(&mut self) {
        let waiting: Vec<Key> = self.waiting.values().copied().collect();
        for key in waiting {
            if matches!(self.entries[&key].state, State::Copied(..) | State::Delivered(..)) {
                self.count_unverified(key.0, Unverified::OutsideShadow);
            }
        }
        self.entries.clear();
        self.closed.clear();
        self.waiting.clear();
        self.deadlines.clear();
        for queue in &mut self.queues {
            queue.untracked = 0;
            queue.counts.pending = 0;
        }
    }

    /// Lets time pass. Every copy that was taken before `complete` has been read back or is unverified: a delivery from before it
    /// whose copy has not come is missing. A later one is waited for, and then unverified.
    pub fn tick(&mut self, now: Duration, complete: Duration) {
        while let Some((due, key)) = self.deadlines.first().copied()
            && due <= now
        {
            match self.entries[&key].state {
                State::Delivered(digest, at, _) => {
                    let queue = self.queue_mut(key.0);
                    if queue.untracked > 0 {
                        // Its copy may be the one that was given up, and that is counted.
                        queue.untracked -= 1;
                        self.remove(key);
                    } else if at <= complete {
                        self.count(key, ParityClass::Missing);
                        self.change(key, State::Missing(digest, now + self.limits.grace));
                    } else if at + self.limits.window + self.limits.grace <= now {
                        self.unverified(key.0, key.1, Unverified::NotReadBack);
                    } else {
                        self.change(key, State::Delivered(digest, at, now + AGAIN));
                    }
                }
                State::Missing(..) | State::Extra(..) => self.close(key, true),
                State::Copied(..) | State::Closed(_) => self.remove(key),
            }
        }
    }

    /// When [`Parity::tick`] has something to do next.
    pub fn next_tick(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// How many messages are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no message is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All queues, sorted by vhost and name.
    pub fn snapshot(&self) -> Vec<QueueParity> {
        let mut queues: Vec<QueueParity> = self
            .queues
            .iter()
            .map(|queue| QueueParity {
                vhost: queue.vhost.to_string(),
                queue: queue.name.to_string(),
                counts: queue.counts,
                unverified_by: queue.reasons.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
                samples: queue.samples.iter().cloned().collect(),
            })
            .collect();
        queues.sort_by(|a, b| (&a.vhost, &a.queue).cmp(&(&b.vhost, &b.queue)));
        queues
    }

    fn known<'a>(&self, vhost: &'a str, name: &'a str) -> (&'a str, &'a str) {
        if self.names.contains_key(&(vhost.into(), name.into())) { (vhost, name) } else { ("", MORE) }
    }

    fn queue_mut(&mut self, queue: QueueId) -> &mut Queue {
        &mut self.queues[queue.0 as usize]
    }

    fn compared(&mut self, key: Key, copy: Digest, delivered: Digest, late: bool) {
        let class = if copy.payload != delivered.payload {
            ParityClass::MismatchedPayload
        } else if copy.properties != delivered.properties {
            ParityClass::MismatchedProperties
        } else if copy.routing != delivered.routing {
            ParityClass::MismatchedRouting
        } else {
            ParityClass::Matched
        };
        self.count(key, class);
        self.queue_mut(key.0).counts.late += u64::from(late);
        self.close(key, false);
    }

    fn count(&mut self, (queue, id): Key, class: ParityClass) {
        let queue = self.queue_mut(queue);
        let count = match class {
            ParityClass::Matched => &mut queue.counts.matched,
            ParityClass::MismatchedPayload => &mut queue.counts.mismatched_payload,
            ParityClass::MismatchedProperties => &mut queue.counts.mismatched_properties,
            ParityClass::MismatchedRouting => &mut queue.counts.mismatched_routing,
            ParityClass::Missing => &mut queue.counts.missing,
            ParityClass::Extra => &mut queue.counts.extra,
        };
        *count += 1;
        if class != ParityClass::Matched {
            if queue.samples.len() == SAMPLES {
                queue.samples.pop_front();
            }
            queue.samples.push_back(ParitySample { class, id: Ulid(id).to_string() });
        }
    }

    fn count_unverified(&mut self, queue: QueueId, reason: Unverified) {
        let queue = self.queue_mut(queue);
        queue.counts.unverified += 1;
        *queue.reasons.entry(reason).or_default() += 1;
    }

    /// Adds an entry for what was not known before.
    fn open(&mut self, key: Key, state: State) {
        if &*self.queues[key.0.0 as usize].name == MORE {
            return self.count_unverified(key.0, Unverified::TooManyQueues);
        }
        self.put(key, state);
    }

    fn change(&mut self, key: Key, state: State) {
        self.remove(key);
        self.put(key, state);
    }

    fn close(&mut self, key: Key, other_half: bool) {
        self.change(key, State::Closed(other_half));
    }

    fn put(&mut self, key: Key, state: State) {
        let age = self.next_age;
        self.next_age += 1;
        match state {
            State::Closed(_) => self.closed.insert(age, key),
            _ => self.waiting.insert(age, key),
        };
        if let Some(at) = deadline(state) {
            self.deadlines.insert((at, key));
        }
        self.queue_mut(key.0).counts.pending += u64::from(is_pending(state));
        self.entries.insert(key, Entry { age, state });
        if self.entries.len() > self.limits.entries {
            self.give_up();
        }
    }

    fn remove(&mut self, key: Key) {
        let Some(entry) = self.entries.remove(&key) else { return };
        match entry.state {
            State::Closed(_) => self.closed.remove(&entry.age),
            _ => self.waiting.remove(&entry.age),
        };
        if let Some(at) = deadline(entry.state) {
            self.deadlines.remove(&(at, key));
        }
        self.queue_mut(key.0).counts.pending -= u64::from(is_pending(entry.state));
    }

    fn give_up(&mut self) {
        let oldest = self.closed.first_key_value().or_else(|| self.waiting.first_key_value());
        let Some((_, &key)) = oldest else { return };
        match self.entries[&key].state {
            State::Copied(..) | State::Delivered(..) => {
                self.count_unverified(key.0, Unverified::TableFull);
                self.queue_mut(key.0).untracked += 1;
            }
            State::Closed(other_half) => self.queue_mut(key.0).untracked += u64::from(other_half),
            // Counted; a copy that comes for it waits until its queue is empty.
            State::Missing(..) | State::Extra(..) => self.queue_mut(key.0).untracked += 1,
        }
        self.remove(key);
    }

    fn keys_of(&self, queue: QueueId, which: impl Fn(State) -> bool) -> Vec<Key> {
        self.waiting.values().filter(|key| key.0 == queue && which(self.entries[key].state)).copied().collect()
    }
}

/// How soon a delivery is looked at again while the comparison is behind.
const AGAIN: Duration = Duration::from_secs(1);

/// The queue that stands for all above [`Limits::queues`].
const MORE: &str = "(more)";

fn deadline(state: State) -> Option<Duration> {
    match state {
        State::Delivered(_, _, until) | State::Missing(_, until) | State::Extra(_, until) => Some(until),
        State::Copied(..) | State::Closed(_) => None,
    }
}

fn is_pending(state: State) -> bool {
    matches!(state, State::Copied(..) | State::Delivered(..))
}
