//! One queue: what of it is in somebody's hands, and what waits for what.

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::HashMap;

use super::{Action, FenceId, MessageKey, QueueName, Shift};
use crate::control_api::FenceState;
use crate::ownership::{Bucket, Side};

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) places: u64,
    pub(super) sides: [Outstanding; 2],
    pub(super) holds: Vec<Hold>,
    pub(super) last: Option<FenceState>,
}

#[derive(Debug, Default)]
pub(super) struct Outstanding {
    pub(super) entries: HashMap<MessageKey, Entry>,
    pub(super) requeued: VecDeque<(Duration, MessageKey)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) place: u64,
    pub(super) epoch: u64,
    pub(super) requeued: bool,
}

#[derive(Debug)]
pub(super) struct Hold {
    pub(super) shift: Shift,
    /// The epoch of a change that began when its fence was in the queue: what was published since lies behind that. After a restart, the
    /// epoch of the change after it; see [`Fences::resume`](super::Fences::resume).
    pub(super) next: Option<u64>,
    pub(super) stage: Stage,
    pub(super) waiting_since: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Publishes of older epochs are not all confirmed.
    Waiting,
    /// The fence is on its way into the queue.
    Sending(FenceId),
    /// The fence is in the queue.
    Sent(FenceId),
    /// The fence was in the queue when its broker went away, which may have lost it: it is on its way into the queue once more.
    Again(FenceId),
    /// The fence has expired, as everything before it has; what was delivered before may still be on its way. Since when, once that is known.
    Expired(Option<Duration>),
    /// The fence came out when the queue was at `place`; `left` deliveries before it have not ended.
    Draining { place: u64, left: u64 },
}

impl Stage {
    /// Whether this fence is waited for.
    pub(super) fn awaits(self, fence: FenceId) -> bool {
        matches!(self, Self::Sending(sent) | Self::Sent(sent) | Self::Again(sent) if sent == fence)
    }

    /// Whether the fence was in the queue at some time, or is needed no more.
    pub(super) fn was_stored(self) -> bool {
        !matches!(self, Self::Waiting | Self::Sending(_))
    }
}

/// How long a delivery may be on its way that was made before a fence expired behind it.
const ON_THE_WAY: Duration = Duration::from_secs(1);

impl Queue {
    pub(super) fn hold(&mut self, shift: Shift, next: Option<u64>) {
        self.holds.push(Hold { shift, next, stage: Stage::Waiting, waiting_since: None });
        self.last = Some(FenceState::Waiting);
    }

    /// A delivery of this epoch shows that nothing of an earlier life is left before it of what was published before the change
    /// before it; answers how many holds that lifts.
    pub(super) fn witness(&mut self, side: Side, epoch: u64) -> u64 {
        let (place, outstanding) = (self.places, &self.sides[side.index()]);
        let mut lifted = 0;
        self.holds.retain_mut(|hold| {
            let shows = hold.shift.losing() == side && hold.next.is_some_and(|next| epoch >= next);
            if shows && !matches!(hold.stage, Stage::Draining { .. }) {
                hold.stage = Stage::Draining { place, left: outstanding.before(hold.shift.epoch) };
            }
            let drained = shows && matches!(hold.stage, Stage::Draining { left: 0, .. });
            lifted += u64::from(drained);
            !drained
        });
        if lifted > 0 {
            self.last = Some(FenceState::Passed);
        }
        lifted
    }

    /// Goes on without fences that have expired, when what was delivered before them has had the time to come.
    pub(super) fn expire(&mut self, name: &QueueName, now: Duration, actions: &mut Vec<Action>) {
        let place = self.places;
        for hold in &mut self.holds {
            let Stage::Expired(since) = &mut hold.stage else { continue };
            if now >= *since.get_or_insert(now) + ON_THE_WAY {
                let left = self.sides[hold.shift.losing().index()].before(hold.shift.epoch);
                hold.stage = Stage::Draining { place, left };
            }
        }
        self.lift_drained(name, actions);
    }

    pub(super) fn waits(&mut self, side: Side, bucket: Bucket, epoch: u64, now: Duration) -> bool {
        let mut waits = false;
        for hold in self.holds.iter_mut().filter(|h| h.shift.covers(side, bucket, epoch)) {
            hold.waiting_since.get_or_insert(now);
            waits = true;
        }
        waits
    }

    pub(super) fn end(&mut self, name: &QueueName, side: Side, key: MessageKey, actions: &mut Vec<Action>) {
        let Some(entry) = self.sides[side.index()].entries.remove(&key) else { return };
        for hold in self.holds.iter_mut().filter(|h| h.shift.losing() == side && entry.epoch < h.shift.epoch) {
            if let Stage::Draining { place, left } = &mut hold.stage
                && entry.place < *place
            {
                *left = left.saturating_sub(1);
            }
        }
        self.lift_drained(name, actions);
    }

    pub(super) fn end_requeued(&mut self, name: &QueueName, side: Side, key: MessageKey, actions: &mut Vec<Action>) {
        if self.sides[side.index()].entries.get(&key).is_some_and(|e| e.requeued) {
            self.end(name, side, key, actions);
        }
    }

    pub(super) fn lift_drained(&mut self, name: &QueueName, actions: &mut Vec<Action>) {
        let drained = |h: &Hold| matches!(h.stage, Stage::Draining { left: 0, .. });
        for hold in self.holds.extract_if(.., |h| drained(h)) {
            self.last = Some(FenceState::Passed);
            actions.push(Action::Lifted { queue: name.clone(), epoch: hold.shift.epoch, timed_out: false });
        }
    }
}

impl Outstanding {
    /// What has not ended of what was published before this epoch. What is of a later one was not there to be waited for.
    pub(super) fn before(&self, epoch: u64) -> u64 {
        self.entries.values().filter(|entry| entry.epoch < epoch).count() as u64
    }

    pub(super) fn open(&self) -> u64 {
        self.entries.values().filter(|e| !e.requeued).count() as u64
    }
}
