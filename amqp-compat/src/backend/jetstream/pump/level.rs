//! The queue's priorities, each with a JetStream consumer of its own. A queue without priorities has one.
//!
//! A consumer of its own is what lets the gateway ask for the highest priority alone: one consumer for all would have to
//! be read to its end to know what is in it. A message is handed out only when everything that is stored with a higher
//! priority has come: the server says with each delivery how many are left, and a confirm says what was added since.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_nats::Subject;
use serde_json::Value;

use super::super::api::ApiError;
use super::super::pull::Pulls;
use super::super::queue::{Queue, handed};
use super::Pump;

/// How long a message waits for those of a higher priority before the server is asked about them.
const UNSURE: Duration = Duration::from_millis(100);

/// One priority.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) next_subject: Subject,
    /// Whether its consumer is known to be there.
    pub(super) is_open: bool,
    pub(super) pulls: Pulls,
    /// How many of the held are stale.
    pub(super) stale: usize,
    /// Acknowledged while stale: the server will bring them again, to be acknowledged again.
    pub(super) owed: BTreeSet<u64>,
    /// The highest sequence that a client was handed.
    pub(super) highest: u64,
    /// The highest sequence that came.
    pub(super) seen: u64,
    /// How many of the consumer's deliveries have come.
    pub(super) received: u64,
    /// How many messages the server had left after the last one that came; nothing when that is not known.
    pub(super) left: Option<u64>,
    /// The reply subject of the last delivery, when something was settled since the server was last waited for.
    pub(super) unsynced: Option<Subject>,
    pub(super) last_reply: Option<Subject>,
}

impl Level {
    pub(super) fn new(queue: &Queue, priority: u8) -> Self {
        let consumer = Queue::consumer(priority);
        Self {
            next_subject: Subject::from(format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", queue.stream)),
            is_open: priority == 0,
            pulls: Pulls::default(),
            stale: 0,
            owed: BTreeSet::new(),
            highest: 0,
            seen: 0,
            received: 0,
            left: None,
            unsynced: None,
            last_reply: None,
        }
    }

    /// How many deliveries the server will make that are none to the queue.
    pub(super) fn again(&self) -> u64 {
        (self.stale + self.owed.len()) as u64
    }

    /// Forgets everything: the stream is another one.
    pub(super) fn clear(&mut self) {
        self.stale = 0;
        self.owed.clear();
        self.highest = 0;
        self.seen = 0;
        self.left = None;
    }
}

impl Pump {
    /// Whether the queue has priorities.
    pub(super) fn has_priorities(&self) -> bool {
        self.levels.len() > 1
    }

    /// The priorities whose consumers are there, the highest first.
    pub(super) fn open(&self) -> impl Iterator<Item = (u8, &Level)> {
        let of = |at: usize| u8::try_from(at).unwrap_or(u8::MAX);
        self.levels.iter().enumerate().rev().filter(|(_, level)| level.is_open).map(move |(at, level)| (of(at), level))
    }

    pub(super) fn level(&mut self, priority: u8) -> &mut Level {
        let at = usize::from(priority).min(self.levels.len() - 1);
        &mut self.levels[at]
    }

    /// The priority of a subject: of a message, or of the inbox.
    pub(super) fn priority_of(&self, subject: &str) -> u8 {
        if !self.has_priorities() {
            return 0;
        }
        let rest = match subject.strip_prefix(&*self.inbox) {
            Some(rest) if !self.inbox.is_empty() => rest.split('.').nth(1),
            _ => subject.strip_prefix(self.queue.levels.subject(0).as_str()).and_then(|rest| rest.strip_prefix('.')),
        };
        rest.and_then(|priority| priority.parse().ok()).unwrap_or_default()
    }

    /// The sequence of the queue's first ready message; nothing while it is not here or not known to be the first.
    pub(super) fn head(&mut self) -> Option<u64> {
        let (priority, sequence) = self.backlog.first()?;
        if self.has_priorities() && !self.is_certain(priority, sequence) {
            if self.watches_expiry || self.consumers.is_ready() {
                self.unsure_at.get_or_insert_with(|| Instant::now() + UNSURE);
            }
            return None;
        }
        self.unsure_at = None;
        Some(sequence)
    }

    /// Whether nothing of a higher priority is ahead of a message that is here.
    fn is_certain(&self, priority: u8, sequence: u64) -> bool {
        // It may have overtaken the confirms of those that were stored before it.
        if sequence > self.certain {
            self.queue.levels.await_confirm();
            if sequence > self.queue.levels.last_stored_of_all() {
                return false;
            }
        }
        (usize::from(priority) + 1..self.levels.len()).all(|higher| self.has_all(higher))
    }

    /// Whether everything that is stored has come.
    pub(super) fn has_all_of_all(&self) -> bool {
        (0..self.levels.len()).all(|priority| self.has_all(priority))
    }

    /// Whether everything that is stored up to a sequence has come.
    pub(super) fn has_all_to(&self, sequence: u64) -> bool {
        self.levels.iter().enumerate().all(|(priority, level)| level.seen >= sequence || self.has_all(priority))
    }

    /// Whether everything that is stored with a priority has come.
    fn has_all(&self, priority: usize) -> bool {
        if self.is_remembered() {
            return true;
        }
        let Some(level) = self.levels.get(priority) else { return true };
        let priority = u8::try_from(priority).unwrap_or(u8::MAX);
        let stored = self.queue.levels.last_stored(priority);
        let seen = level.seen.max(self.queue.levels.drained(priority));
        stored <= seen && (!level.is_open || level.left == Some(0))
    }

    /// How many messages of a priority are ready here or known to be on their way.
    pub(super) fn coming(&self, priority: u8) -> u64 {
        let Some(level) = self.levels.get(usize::from(priority)) else { return 0 };
        let stored = u64::from(!self.has_all(usize::from(priority)));
        let left = level.left.unwrap_or_default().max(stored);
        self.backlog.len_of(priority) + left.min(level.pulls.outstanding())
    }

    /// Makes the consumers of priorities that have got their first message.
    pub(super) async fn open_levels(&mut self) -> Result<(), ApiError> {
        if self.is_remembered() {
            return Ok(());
        }
        for at in 1..self.levels.len() {
            let priority = u8::try_from(at).unwrap_or(u8::MAX);
            if !self.levels[at].is_open && self.queue.levels.last_stored(priority) > 0 {
                self.open_level(priority).await?;
            }
        }
        Ok(())
    }

    async fn open_level(&mut self, priority: u8) -> Result<Value, ApiError> {
        let info = self.queue.create_consumer(priority).await?;
        let level = self.level(priority);
        level.is_open = true;
        level.left = info["num_pending"].as_u64();
        level.received = info["delivered"]["consumer_seq"].as_u64().unwrap_or_default();
        self.queue.levels.set_open(priority);
        Ok(info)
    }

    /// Finds out what an earlier gateway has left: which priorities there are and what was delivered of them. Says
    /// whether anything of it was not settled.
    pub(super) async fn find_levels(&mut self) -> Result<bool, ApiError> {
        let mut unsettled = false;
        let mut priorities = vec![0];
        if self.has_priorities() {
            priorities.extend(self.queue.stored_priorities().await?);
        }
        for priority in priorities {
            let info = match priority {
                0 => self.queue.consumer_info(0).await?,
                _ => self.open_level(priority).await?,
            };
            let level = self.level(priority);
            level.highest = handed(&info);
            level.received = info["delivered"]["consumer_seq"].as_u64().unwrap_or_default();
            level.left = info["num_pending"].as_u64();
            unsettled |= info["num_ack_pending"].as_u64() != Some(0);
        }
        Ok(unsettled)
    }

    /// Asks the server about priorities of which something has not come.
    pub(super) async fn look_again(&mut self) {
        self.unsure_at = None;
        self.certain = self.newest.0;
        for at in 1..self.levels.len() {
            if self.has_all(at) {
                continue;
            }
            let priority = u8::try_from(at).unwrap_or(u8::MAX);
            let stored = self.queue.levels.last_stored(priority);
            let asked = match self.levels[at].is_open {
                true => self.queue.consumer_info(priority).await,
                false => self.open_level(priority).await,
            };
            match asked {
                Ok(info) => {
                    let left = info["num_pending"].as_u64();
                    self.level(priority).left = left;
                    let in_flight = info["delivered"]["consumer_seq"].as_u64() > Some(self.level(priority).received);
                    if left == Some(0) && !in_flight {
                        self.queue.levels.set_drained(priority, stored);
                    }
                }
                Err(error) => return self.recover_from(error).await,
            }
        }
    }
}
