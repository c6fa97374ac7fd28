//! How many standby copies there are of what one side owns, and which of its messages have none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::{HashMap, HashSet};
use serde::{Deserialize, Serialize};

use crate::fence::QueueName;
use crate::ownership::Side;

/// How it stands with the standby copies of what one broker owns, which the other one keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// Copies that the other broker holds.
    pub copies: u64,
    /// Of them, those whose message is settled and which are not removed yet.
    pub lag: u64,
    /// Messages without a copy that their owner may still hold; at most 100 000 are known by id.
    pub no_copy: u64,
    /// Messages that were confirmed without a copy since the sidecar started.
    pub no_copy_total: u64,
    /// Why, and how many.
    pub no_copy_by: BTreeMap<String, u64>,
    /// Whether the other broker takes no copies now.
    pub away: bool,
}

/// Counts of all vhosts.
pub(super) struct Tally {
    /// Whose messages they are copies of.
    pub owner: Side,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    queues: HashMap<QueueName, (u64, u64)>,
    away: HashSet<Arc<str>>,
    missed: u64,
    by: BTreeMap<&'static str, u64>,
    without: HashSet<(u128, QueueName)>,
    /// In queues that are not known.
    anywhere: HashSet<u128>,
}

impl Counts {
    fn known(&self) -> usize {
        self.without.len() + self.anywhere.len()
    }
}

/// How many messages without a copy are known by id.
const WITHOUT_MOST: usize = 100_000;

impl Tally {
    pub(super) fn of(owner: Side) -> Self {
        Self { owner, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason of a message that has no copy because the side that keeps them takes none.
    pub(super) fn away_reason(&self) -> &'static str {
        match self.owner {
            Side::Nats => "rabbit_away",
            Side::Rabbit => "nats_away",
        }
    }

    pub(super) fn has_none(&self, queue: &QueueName, id: u128, why: &'static str) {
        let mut counts = self.count(why);
        if counts.known() < WITHOUT_MOST {
            counts.without.insert((id, queue.clone()));
        }
    }

    /// The same, in queues that are not known.
    pub(super) fn has_none_anywhere(&self, id: u128, why: &'static str) {
        let mut counts = self.count(why);
        if counts.known() < WITHOUT_MOST {
            counts.anywhere.insert(id);
        }
    }

    /// A delivery of it is settled.
    pub(super) fn needs_none_anywhere(&self, id: u128) {
        let mut counts = self.counts();
        if !counts.anywhere.is_empty() {
            counts.anywhere.remove(&id);
        }
    }

    fn count(&self, why: &'static str) -> MutexGuard<'_, Counts> {
        metrics::counter!("natsbridge_standby_no_copy_total", "owner" => self.owner_label(), "reason" => why)
            .increment(1);
        let mut counts = self.counts();
        counts.missed += 1;
        *counts.by.entry(why).or_default() += 1;
        counts
    }

    /// It has one after all, or needs none any more.
    pub(super) fn needs_none(&self, queue: &QueueName, id: u128) {
        let mut counts = self.counts();
        if !counts.without.is_empty() {
            counts.without.remove(&(id, queue.clone()));
        }
    }

    /// All of a queue up to this id need none any more.
    pub(super) fn over(&self, queue: &QueueName, before: u128) {
        let mut counts = self.counts();
        if !counts.without.is_empty() {
            counts.without.retain(|(id, of)| of != queue || *id >= before);
        }
    }

    pub(super) fn holds(&self, queue: &QueueName, copies: u64, lag: u64) {
        self.counts().queues.insert(queue.clone(), (copies, lag));
    }

    /// A queue may have copies soon.
    pub(super) fn knows(&self, queue: &QueueName) {
        self.counts().queues.entry(queue.clone()).or_default();
    }

    /// How many copies are held back, in a vhost that has just been looked at.
    pub(super) fn holds_back(&self, vhost: &str, held: usize) {
        let owner = self.owner_label();
        metrics::gauge!("natsbridge_standby_held_back", "owner" => owner, "vhost" => vhost.to_owned()).set(held as f64);
    }

    fn owner_label(&self) -> &'static str {
        match self.owner {
            Side::Rabbit => "rabbit",
            Side::Nats => "nats",
        }
    }

    /// Every copy has been given to its queue.
    pub(super) fn emptied(&self) {
        self.counts().queues.clear();
    }

    pub(super) fn away(&self, vhost: &Arc<str>, away: bool) {
        let mut counts = self.counts();
        match away {
            true => counts.away.insert(Arc::clone(vhost)),
            false => counts.away.remove(vhost),
        };
    }

    pub(super) fn copies_of(&self, queue: &QueueName) -> Option<u64> {
        self.counts().queues.get(queue).map(|(copies, _)| *copies)
    }

    pub(super) fn queues(&self) -> Vec<QueueName> {
        self.counts().queues.keys().cloned().collect()
    }

    pub(super) fn missed(&self) -> u64 {
        self.counts().missed
    }

    pub(super) fn status(&self) -> StandbyStatus {
        let counts = self.counts();
        StandbyStatus {
            copies: counts.queues.values().map(|(copies, _)| copies).sum(),
            lag: counts.queues.values().map(|(_, lag)| lag).sum(),
            no_copy: counts.known() as u64,
            no_copy_total: counts.missed,
            no_copy_by: counts.by.iter().map(|(why, count)| ((*why).to_owned(), *count)).collect(),
            away: !counts.away.is_empty(),
        }
    }
}
