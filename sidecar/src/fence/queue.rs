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
    /// Since when it is back in its queue, if it is.
    pub(super) requeued: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Hold {
    pub(super) shift: Shift,
    /// The epoch of a change that began when all that the hold waits for was in the queue: what was published since lies behind that. After a
    /// restart, the epoch of the change after it; see [`Fences::resume`](super::Fences::resume).
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
    /// The fence came out when the queue was at `place`; `left` deliveries before it have not ended. All of them went back into the queue long
    /// ago if there is `another` fence, which shows whether they are still there.
    Draining { place: u64, left: u64, another: Option<FenceId> },
}

impl Hold {
    pub(super) fn drains(&self) -> bool {
        matches!(self.stage, Stage::Draining { .. })
    }
}

impl Stage {
    /// Whether this fence is waited for.
    pub(super) fn awaits(self, fence: FenceId) -> bool {
        self.fence() == Some(fence)
    }

    /// The fence that is in the queue, or on its way there.
    pub(super) fn fence(self) -> Option<FenceId> {
        match self {
            Self::Sending(fence) | Self::Sent(fence) | Self::Again(fence) => Some(fence),
            Self::Draining { another, .. } => another,
            Self::Waiting | Self::Expired(_) => None,
        }
    }

    /// The fence that is in the queue, as far as is known.
    pub(super) fn stored(self) -> Option<FenceId> {
        if matches!(self, Self::Sending(_)) { None } else { self.fence() }
    }
}

/// How long a delivery may be on its way that was made before a fence expired behind it.
const ON_THE_WAY: Duration = Duration::from_secs(1);

/// How long RabbitMQ, and JetStream, may keep what a sidecar has given back, or held when it was cut off, from its queue: as much longer as
/// RabbitMQ may take to miss heartbeats (20 s by the sidecar's interval, 30 s at most) than the sidecar does, and JetStream's wait for acks.
const KEPT_BACK: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(35)];

impl Queue {
    pub(super) fn hold(&mut self, shift: Shift, next: Option<u64>) {
        self.holds.push(Hold { shift, next, stage: Stage::Waiting, waiting_since: None });
        self.last = Some(FenceState::Waiting);
    }

    /// A delivery of this epoch came from a side. It shows that nothing of an earlier life is left before it of what was published before
    /// the change before it, and that what is older and should have come before it is gone.
    pub(super) fn witness(
        &mut self,
        name: &QueueName,
        side: Side,
        epoch: u64,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        if self.holds.is_empty() {
            return;
        }
        let shows = |hold: &Hold| hold.shift.losing() == side && hold.next.is_some_and(|next| epoch >= next);
        self.drain(shows);
        let behind = |h: &&Hold| h.shift.losing() == side && epoch >= h.shift.epoch && h.drains();
        if let Some(change) = self.holds.iter().filter(behind).map(|hold| hold.shift.epoch).max() {
            self.forget_gone(name, side, change, now, actions);
        }
        self.lift_drained(name, actions);
    }

    /// Its fence came out, or what does as well: what these holds wait for now is in somebody's hands, or in the queue once more.
    pub(super) fn drain(&mut self, of: impl Fn(&Hold) -> bool) {
        let place = self.places;
        for hold in self.holds.iter_mut().filter(|hold| of(hold)) {
            match &mut hold.stage {
                Stage::Draining { another, .. } => *another = None,
                stage => {
                    let left = self.sides[hold.shift.losing().index()].before(hold.shift.epoch);
                    *stage = Stage::Draining { place, left, another: None };
                }
            }
        }
    }

    /// Goes on without fences that have expired, when what was delivered before them has had the time to come.
    pub(super) fn expire(&mut self, name: &QueueName, now: Duration, actions: &mut Vec<Action>) {
        for hold in &mut self.holds {
            if let Stage::Expired(since) = &mut hold.stage {
                since.get_or_insert(now);
            }
        }
        let over = |hold: &Hold| matches!(hold.stage, Stage::Expired(Some(since)) if now >= since + ON_THE_WAY);
        let shifts: Vec<Shift> = self.holds.iter().filter(|hold| over(hold)).map(|hold| hold.shift).collect();
        self.drain(over);
        for shift in shifts {
            self.forget_gone(name, shift.losing(), shift.epoch, now, actions);
        }
        self.lift_drained(name, actions);
    }

    /// Something that is younger than this change came from a side. What was published before the change and has been back in its queue for
    /// so long lay before it: it has not come because its broker has lost it, it has expired, was dropped, or went to somebody else.
    pub(super) fn forget_gone(
        &mut self,
        name: &QueueName,
        side: Side,
        change: u64,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let outstanding = &self.sides[side.index()];
        let kept_back = KEPT_BACK[side.index()];
        let long_ago = outstanding.requeued.iter().take_while(|(at, _)| now >= *at + kept_back);
        let gone = |key: &MessageKey| outstanding.gone(key, change, now, kept_back);
        let gone: Vec<MessageKey> = long_ago.map(|(_, key)| *key).filter(gone).collect();
        for key in gone {
            self.end(name, side, key, actions);
        }
    }

    /// The changes whose fences are out, and for which all that is left went back into the queue long ago. Whether it is still there,
    /// another fence tells.
    pub(super) fn doubtful(&mut self, now: Duration) -> impl Iterator<Item = (Side, &mut Option<FenceId>)> {
        let sides = &self.sides;
        self.holds.iter_mut().filter_map(move |hold| {
            let (side, change) = (hold.shift.losing(), hold.shift.epoch);
            let Stage::Draining { another: another @ None, .. } = &mut hold.stage else { return None };
            let of = &sides[side.index()];
            let mut old = of.entries.iter().filter(|(_, entry)| entry.epoch < change);
            old.all(|(key, _)| of.gone(key, change, now, KEPT_BACK[side.index()])).then_some((side, another))
        })
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
            if let Stage::Draining { place, left, .. } = &mut hold.stage
                && entry.place < *place
            {
                *left = left.saturating_sub(1);
            }
        }
        self.lift_drained(name, actions);
    }

    pub(super) fn end_requeued(&mut self, name: &QueueName, side: Side, key: MessageKey, actions: &mut Vec<Action>) {
        if self.sides[side.index()].entries.get(&key).is_some_and(|e| e.requeued.is_some()) {
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

    /// Whether this was published before a change, and has been back in its queue for so long.
    fn gone(&self, key: &MessageKey, change: u64, now: Duration, kept_back: Duration) -> bool {
        let long_ago = |entry: &Entry| entry.requeued.is_some_and(|at| now >= at + kept_back);
        self.entries.get(key).is_some_and(|entry| entry.epoch < change && long_ago(entry))
    }

    pub(super) fn open(&self) -> u64 {
        self.entries.values().filter(|e| e.requeued.is_none()).count() as u64
    }
}
