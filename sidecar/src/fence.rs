//! Order across a change of weight: epochs, holds and fences. Pure: events in, actions out, time as an argument.
//!
//! At a change, keys move from the *losing* side to the *gaining* one. Until all that the losing side has of them is
//! settled, the gaining side's deliveries of those keys wait:
//!
//! 1. [`Fences::begin`] sets a hold on every known queue and puts the new epoch in force, in one step.
//! 2. When every publish of an older epoch on the losing side is confirmed, [`Action::PublishFence`] asks for a marked
//!    message in each of its queues. All that was published before lies before it.
//! 3. The fence comes out of the queue ([`Fences::fence_out`]). The hold is lifted when every delivery that was
//!    received from that side before it has ended; a requeue is not an end. But what went back into its queue long ago, and has not come
//!    when something younger comes out of it, is gone: when nothing else is left to wait for, another fence is asked for, to see that.
//! 4. A hold that has kept something waiting for longer than the time limit is lifted all the same, and says so.
//!
//! Changes may overlap. A queue then has several holds, and a delivery waits while any of them covers it. A hold
//! covers deliveries of its own epoch and later ones only: what an older epoch left on the gaining side comes first.
//! [`Fences::can_begin`] tells when a further change can begin without two holds being able to wait for each other.
//!
//! Order is kept for one consumer of a queue, as RabbitMQ does. It rests on each side being first in, first out per
//! queue, with a requeued message coming back before later ones.

use std::collections::BTreeMap;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};

pub use names::{Action, FenceId, MessageKey, QueueName, QueueView, Received, Shift, Stamp};
use queue::{Entry, Hold, Outstanding, Queue, Stage};

use crate::control_api::{FenceState, Weight};
use crate::ownership::{Bucket, Side};

mod names;
mod queue;
#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
mod tests;

/// The order keeper: one for a sidecar.
#[derive(Debug)]
pub struct Fences {
    limit: Duration,
    life: u64,
    fences: u64,
    epoch: u64,
    weight: Weight,
    in_flight: BTreeMap<u64, [u64; 2]>,
    shifts: Vec<Shift>,
    resumed: Option<(Vec<Shift>, Duration)>,
    queues: HashMap<QueueName, Queue>,
    lifted: u64,
    holds: bool,
}

impl Fences {
    /// The longest time that requeued messages are remembered for a later change, if they do not come back.
    const REQUEUED_FOR: Duration = Duration::from_secs(1);
    /// How many requeued messages of one queue and side are remembered; the oldest are taken as ended beyond it.
    const REQUEUED_MOST: usize = 65_536;
    /// How long after the start a queue that is seen for the first time is given the hold of the resumed change.
    pub const RESUME_FOR: Duration = Duration::from_secs(120);

    /// An order keeper at this epoch and weight. `life` is a number that no other run of the sidecar has used; `limit`
    /// is how long a hold may keep something waiting.
    pub fn new(life: u64, epoch: u64, weight: Weight, limit: Duration) -> Self {
        Self {
            limit,
            life,
            fences: 0,
            epoch,
            weight,
            in_flight: BTreeMap::new(),
            shifts: Vec::new(),
            resumed: None,
            queues: HashMap::new(),
            lifted: 0,
            holds: true,
        }
    }

    /// Takes up changes that were made in an earlier life of the sidecar, oldest first, and may not have been drained: every queue
    /// that is registered in the next two minutes gets their holds and new fences.
    ///
    /// The new fences of all of them lie at the ends of the queues, also behind messages that the next change holds back. So what is
    /// delivered from the losing side with the epoch of the next change tells as much as the fence: it was
    /// published after the fence of the earlier life was stored.
    pub fn resume(&mut self, shifts: Vec<Shift>, now: Duration) {
        if !shifts.is_empty() {
            self.resumed = Some((shifts, now + Self::RESUME_FOR));
        }
    }

    /// The changes that are not known to be drained, oldest first.
    pub fn open_shifts(&self, now: Duration) -> Vec<Shift> {
        let resumed = self.resumed.iter().filter(|(_, until)| now <= *until).flat_map(|(shifts, _)| shifts);
        let held = self.queues.values().flat_map(|queue| queue.holds.iter().map(|hold| &hold.shift));
        let mut open: Vec<Shift> = resumed.chain(held).copied().collect();
        open.sort_unstable_by_key(|shift| shift.epoch);
        open.dedup();
        open
    }

    /// The epoch in force.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The weight in force.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// How many holds were lifted so far. When it has grown, look again at what waits.
    pub fn lifted(&self) -> u64 {
        self.lifted
    }

    /// Whether any queue still has a hold.
    pub fn any_hold(&self) -> bool {
        self.queues.values().any(|q| !q.holds.is_empty())
    }

    /// Publishes that are not confirmed, RabbitMQ's first.
    pub fn in_flight(&self) -> [u64; 2] {
        self.in_flight.values().fold([0, 0], |sum, n| [sum[0] + n[0], sum[1] + n[1]])
    }

    /// Whether all that the earlier changes wait for is in its queue. What a change that begins before puts there, and holds back, may lie before
    /// it; both then wait until the time limit. What one that begins now puts there lies behind it, and shows that by its epoch, wherever the
    /// fences are.
    pub fn can_begin(&self) -> bool {
        self.queues.values().all(|q| q.holds.iter().all(|h| h.stage != Stage::Waiting))
    }

    /// Whether every fence is in its queue, or needed no more.
    pub fn all_stored(&self) -> bool {
        let is_due = |h: &Hold| matches!(h.stage, Stage::Waiting | Stage::Sending(_));
        !self.queues.values().any(|q| q.holds.iter().any(is_due))
    }

    /// Puts a new epoch and weight in force, and a hold on every queue when the weight is another.
    pub fn begin(&mut self, epoch: u64, to: Weight) -> Vec<Action> {
        let shift = Shift { epoch, from: self.weight, to };
        self.epoch = epoch;
        self.weight = to;
        self.resumed = None;
        self.in_flight.retain(|_, counts| *counts != [0, 0]);
        if shift.from != shift.to && self.holds {
            self.shifts.push(shift);
            for queue in self.queues.values_mut() {
                // A fence that is lost (the queue drops what is too much), or late, is not waited for when something younger comes.
                for hold in queue.holds.iter_mut().filter(|hold| hold.stage != Stage::Waiting) {
                    hold.next.get_or_insert(epoch);
                }
                queue.hold(shift, None);
            }
        }
        self.send_fences()
    }

    /// Makes a queue known. A new one is empty and needs no hold, except after a restart.
    pub fn register(&mut self, name: &QueueName, now: Duration) -> Vec<Action> {
        if self.queues.contains_key(name) {
            return Vec::new();
        }
        let mut queue = Queue::default();
        if let Some((shifts, until)) = &self.resumed
            && now <= *until
            && self.holds
        {
            for (index, shift) in shifts.iter().enumerate() {
                queue.hold(*shift, shifts.get(index + 1).map(|next| next.epoch));
                if !self.shifts.contains(shift) {
                    self.shifts.push(*shift);
                }
            }
        }
        self.queues.insert(name.clone(), queue);
        self.send_fences()
    }

    /// A side is lost for good: nothing of it is waited for.
    pub fn give_up(&mut self, side: Side) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, queue) in &mut self.queues {
            queue.sides[side.index()] = Outstanding::default();
            for hold in queue.holds.extract_if(.., |hold| hold.shift.losing() == side) {
                queue.last = Some(FenceState::Passed);
                actions.push(Action::Lifted { queue: name.clone(), epoch: hold.shift.epoch, timed_out: false });
            }
        }
        self.count_lifted(&actions);
        actions
    }

    /// Whether a fence is waited for that is in a queue of this side.
    pub fn awaits_any(&self, side: Side) -> bool {
        let awaits = |h: &Hold| h.shift.losing() == side && h.stage.stored().is_some();
        self.queues.values().any(|q| q.holds.iter().any(awaits))
    }

    /// The broker of a side was away and is back. It may have lost fences that it had: one that expires is taken out of its queue before its
    /// dead letter is safe, and a queue that is not durable is gone. So they are asked for once more, those on their way already excepted.
    ///
    /// They are the same fences. One that was not lost comes out first, and that is right: what was before it still is. The other is one
    /// that nobody waits for then.
    pub fn returned(&mut self, side: Side) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, queue) in &mut self.queues {
            for hold in queue.holds.iter_mut().filter(|hold| hold.shift.losing() == side) {
                let fence = match hold.stage {
                    Stage::Sent(fence) => {
                        hold.stage = Stage::Again(fence);
                        fence
                    }
                    Stage::Draining { another: Some(fence), .. } => fence,
                    _ => continue,
                };
                actions.push(Action::PublishFence { queue: name.clone(), side, fence });
            }
        }
        actions
    }

    /// A queue was deleted: nothing of it is waited for.
    pub fn forget(&mut self, name: &QueueName) -> Vec<Action> {
        let Some(queue) = self.queues.remove(name) else { return Vec::new() };
        self.lifted += queue.holds.len() as u64;
        let lift = |h: Hold| Action::Lifted { queue: name.clone(), epoch: h.shift.epoch, timed_out: false };
        queue.holds.into_iter().map(lift).collect()
    }

    /// A queue was purged on both sides: requeued messages are gone. So are fences; they are sent again when the queue is
    /// `consumed`, because deliveries may be on their way, and are not needed any more otherwise.
    pub fn purged(&mut self, name: &QueueName, consumed: bool) -> Vec<Action> {
        let Some(queue) = self.queues.get_mut(name) else { return Vec::new() };
        let mut actions = Vec::new();
        for side in Side::BOTH {
            while let Some((_, key)) = queue.sides[side.index()].requeued.pop_front() {
                queue.end_requeued(name, side, key, &mut actions);
            }
        }
        if consumed {
            queue.holds.iter_mut().filter(|hold| !hold.drains()).for_each(|hold| hold.stage = Stage::Waiting);
        }
        queue.drain(|hold| hold.stage != Stage::Waiting);
        queue.lift_drained(name, &mut actions);
        self.count_lifted(&actions);
        actions.extend(self.send_fences());
        actions
    }

    /// Takes the stamp of a publish to whoever owns its bucket. End it with [`Fences::published`].
    pub fn publish(&mut self, bucket: Bucket) -> Stamp {
        self.publish_to(bucket.owner(self.weight))
    }

    /// Takes the stamp of a publish that goes to this side whatever its bucket.
    pub fn publish_to(&mut self, owner: Side) -> Stamp {
        self.in_flight.entry(self.epoch).or_default()[owner.index()] += 1;
        Stamp { epoch: self.epoch, owner }
    }

    /// A publish was confirmed, or failed, or its channel is gone.
    pub fn published(&mut self, stamp: Stamp) -> Vec<Action> {
        let Some(counts) = self.in_flight.get_mut(&stamp.epoch) else { return Vec::new() };
        let count = &mut counts[stamp.owner.index()];
        *count = count.saturating_sub(1);
        let side_done = *count == 0;
        if *counts == [0, 0] && stamp.epoch != self.epoch {
            self.in_flight.remove(&stamp.epoch);
        }
        if side_done && stamp.epoch != self.epoch { self.send_fences() } else { Vec::new() }
    }

    /// Whether anybody still waits for this fence.
    pub fn awaits(&self, name: &QueueName, fence: FenceId) -> bool {
        self.queues.get(name).is_some_and(|q| q.holds.iter().any(|h| h.stage.awaits(fence)))
    }

    /// The fence is stored in its queue.
    pub fn fence_stored(&mut self, name: &QueueName, fence: FenceId) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        for hold in &mut queue.holds {
            if hold.stage == Stage::Sending(fence) || hold.stage == Stage::Again(fence) {
                hold.stage = Stage::Sent(fence);
                queue.last = Some(FenceState::Sent);
            }
        }
    }

    /// A fence came out of a queue. One of an earlier life, or one that nobody waits for any more, changes nothing. One of another queue has
    /// expired there, or was dropped, and is a dead letter here.
    pub fn fence_out(&mut self, name: &QueueName, fence: FenceId, now: Duration) -> Vec<Action> {
        if self.awaits(name, fence) {
            return self.passed(name, fence, now);
        }
        let awaits = |hold: &&mut Hold| hold.stage.awaits(fence);
        if let Some(hold) = self.queues.values_mut().flat_map(|queue| &mut queue.holds).find(awaits) {
            hold.stage = Stage::Expired(None);
        }
        Vec::new()
    }

    /// There is nothing before this fence but what was received already: it came out, or the queue is not there, or it
    /// was seen empty with no consumer.
    pub fn passed(&mut self, name: &QueueName, fence: FenceId, now: Duration) -> Vec<Action> {
        let Some(queue) = self.queues.get_mut(name) else { return Vec::new() };
        let Some(shift) = queue.holds.iter().find(|hold| hold.stage.awaits(fence)).map(|hold| hold.shift) else {
            return Vec::new();
        };
        let mut actions = Vec::new();
        queue.drain(|hold| hold.shift == shift);
        queue.forget_gone(name, shift.losing(), shift.epoch, now, &mut actions);
        queue.lift_drained(name, &mut actions);
        self.count_lifted(&actions);
        actions
    }

    /// A delivery was received from a side. Its queue becomes known.
    pub fn received(
        &mut self,
        name: &QueueName,
        side: Side,
        key: MessageKey,
        bucket: Bucket,
        epoch: u64,
        now: Duration,
    ) -> Received {
        let queue = match self.queues.get_mut(name) {
            Some(queue) => queue,
            None => self.queues.entry(name.clone()).or_default(),
        };
        let next = queue.places;
        let entry =
            queue.sides[side.index()].entries.entry(key).or_insert(Entry { place: next, epoch, requeued: None });
        entry.requeued = None;
        let place = entry.place;
        if place == next {
            queue.places += 1;
        }
        let mut lifted = Vec::new();
        queue.witness(name, side, epoch, now, &mut lifted);
        let received = Received { place, waits: queue.waits(side, bucket, epoch, now), lifts: !lifted.is_empty() };
        self.count_lifted(&lifted);
        received
    }

    /// Whether such a delivery has to wait. The first one that does starts the hold's time.
    pub fn must_wait(&mut self, name: &QueueName, side: Side, bucket: Bucket, epoch: u64, now: Duration) -> bool {
        self.queues.get_mut(name).is_some_and(|q| q.waits(side, bucket, epoch, now))
    }

    /// Whether the queue waits for anything at all on this side; the losing side is asked first by a get.
    pub fn losing_side(&self, name: &QueueName) -> Option<Side> {
        self.queues.get(name).and_then(|q| q.holds.first()).map(|h| h.shift.losing())
    }

    /// A delivery ended for good: acked, or rejected without requeue.
    pub fn settled(&mut self, name: &QueueName, side: Side, key: MessageKey) -> Vec<Action> {
        let Some(queue) = self.queues.get_mut(name) else { return Vec::new() };
        let mut actions = Vec::new();
        queue.end(name, side, key, &mut actions);
        self.count_lifted(&actions);
        actions
    }

    /// A delivery went back into its queue: it stays before every fence that it was before.
    pub fn requeued(&mut self, name: &QueueName, side: Side, key: MessageKey, now: Duration) -> Vec<Action> {
        let Some(queue) = self.queues.get_mut(name) else { return Vec::new() };
        let mut actions = Vec::new();
        match key {
            MessageKey::Anonymous { .. } => queue.end(name, side, key, &mut actions),
            MessageKey::Stamped(_) => {
                let outstanding = &mut queue.sides[side.index()];
                if let Some(entry) = outstanding.entries.get_mut(&key) {
                    entry.requeued = Some(now);
                    outstanding.requeued.push_back((now, key));
                }
                if outstanding.requeued.len() > Self::REQUEUED_MOST
                    && let Some((_, oldest)) = outstanding.requeued.pop_front()
                {
                    queue.end_requeued(name, side, oldest, &mut actions);
                }
            }
        }
        self.count_lifted(&actions);
        actions
    }

    /// Time has come to `now`: lifts holds whose time is over, asks for another fence where all that is waited for went back into its queue long
    /// ago, and forgets requeued messages that did not come back to queues that wait for nothing (they may have expired, or gone to a consumer
    /// outside the sidecar).
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, queue) in &mut self.queues {
            queue.expire(name, now, &mut actions);
            for (side, another) in queue.doubtful(now) {
                self.fences += 1;
                let fence = FenceId { life: self.life, number: self.fences };
                *another = Some(fence);
                actions.push(Action::PublishFence { queue: name.clone(), side, fence });
            }
            let limit = self.limit;
            let over = |h: &Hold| h.waiting_since.is_some_and(|since| now >= since + limit);
            if queue.holds.iter().any(over) {
                for hold in queue.holds.extract_if(.., |h| over(h)) {
                    queue.last = Some(FenceState::TimedOut);
                    actions.push(Action::Lifted { queue: name.clone(), epoch: hold.shift.epoch, timed_out: true });
                }
            }
            if queue.holds.is_empty() {
                for side in Side::BOTH {
                    let outstanding = &mut queue.sides[side.index()];
                    while outstanding.requeued.front().is_some_and(|(at, _)| now >= *at + Self::REQUEUED_FOR) {
                        if let Some((_, key)) = outstanding.requeued.pop_front()
                            && outstanding.entries.get(&key).is_some_and(|e| e.requeued.is_some())
                        {
                            outstanding.entries.remove(&key);
                        }
                    }
                }
            }
        }
        self.count_lifted(&actions);
        actions
    }

    /// The queues that are known.
    pub fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.queues.keys()
    }

    /// What is known of a queue.
    pub fn view(&self, name: &QueueName) -> Option<QueueView> {
        let queue = self.queues.get(name)?;
        let mut fences = [0, 0];
        for hold in &queue.holds {
            fences[hold.shift.losing().index()] += u64::from(hold.stage.fence().is_some());
        }
        let fence = match queue.holds.last().map(|h| h.stage) {
            Some(Stage::Waiting | Stage::Sending(_)) => FenceState::Waiting,
            Some(Stage::Sent(_) | Stage::Again(_) | Stage::Expired(_) | Stage::Draining { .. }) => FenceState::Sent,
            None => queue.last.unwrap_or(FenceState::None),
        };
        let unsettled = Side::BOTH.map(|s| queue.sides[s.index()].open());
        Some(QueueView { unsettled, fence, fences })
    }

    /// Takes the holds out, to show that the tests notice.
    #[cfg(test)]
    pub(crate) fn without_holds(mut self) -> Self {
        self.holds = false;
        self
    }

    /// Asks for the fences of every shift whose older publishes on the losing side are all confirmed.
    fn send_fences(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let in_flight = &self.in_flight;
        let open = |shift: &Shift| in_flight.range(..shift.epoch).any(|(_, counts)| counts[shift.losing().index()] > 0);
        self.shifts.retain(|shift| {
            if open(shift) {
                return true;
            }
            let side = shift.losing();
            for (name, queue) in &mut self.queues {
                for hold in queue.holds.iter_mut().filter(|h| h.shift == *shift && h.stage == Stage::Waiting) {
                    self.fences += 1;
                    let fence = FenceId { life: self.life, number: self.fences };
                    hold.stage = Stage::Sending(fence);
                    actions.push(Action::PublishFence { queue: name.clone(), side, fence });
                }
            }
            // A purge, or a queue that is registered after a restart, asks again.
            self.queues.values().any(|q| q.holds.iter().any(|h| h.shift == *shift))
        });
        actions
    }

    fn count_lifted(&mut self, actions: &[Action]) {
        self.lifted += actions.iter().filter(|a| matches!(a, Action::Lifted { .. })).count() as u64;
    }
}
