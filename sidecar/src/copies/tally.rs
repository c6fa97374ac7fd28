//! How many standby copies there are, and which messages have none.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::fence::QueueName;

/// How it stands with the standby copies of what NATS owns.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// Copies that RabbitMQ holds.
    pub copies: u64,
    /// Of them, those whose message is settled and which are not removed yet.
    pub lag: u64,
    /// Messages without a copy that NATS may still hold; at most 100 000 are known by id.
    pub no_copy: u64,
    /// Messages that were confirmed without a copy since the sidecar started.
    pub no_copy_total: u64,
    /// Why, and how many.
    pub no_copy_by: BTreeMap<String, u64>,
    /// Whether RabbitMQ takes no copies now.
    pub away: bool,
}

/// Counts of all vhosts.
#[derive(Default)]
pub(super) struct Tally(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    queues: HashMap<QueueName, (u64, u64)>,
    away: HashSet<Arc<str>>,
    missed: u64,
    by: BTreeMap<&'static str, u64>,
    without: HashSet<(u128, QueueName)>,
}

/// How many messages without a copy are known by id.
const WITHOUT_MOST: usize = 100_000;

impl Tally {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_none(&self, queue: &QueueName, id: u128, why: &'static str) {
        metrics::counter!("natsbridge_standby_no_copy_total", "reason" => why).increment(1);
        let mut counts = self.counts();
        counts.missed += 1;
        *counts.by.entry(why).or_default() += 1;
        if counts.without.len() < WITHOUT_MOST {
            counts.without.insert((id, queue.clone()));
        }
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

    pub(super) fn has(&self, queue: &QueueName) -> bool {
        self.counts().queues.contains_key(queue)
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
            no_copy: counts.without.len() as u64,
            no_copy_total: counts.missed,
            no_copy_by: counts.by.iter().map(|(why, count)| ((*why).to_owned(), *count)).collect(),
            away: !counts.away.is_empty(),
        }
    }
}
