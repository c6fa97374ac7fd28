//! What the applications did and saw, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};

use super::QUEUES;
use super::brokers::{Message, routed};
use crate::ownership::Side;

/// The consumer of one queue: where it is connected, and what it has in hand.
#[derive(Default)]
pub(super) struct Application {
    pub(super) at: Option<usize>,
    /// Whether the sidecar that it is connected to has attached it.
    pub(super) attached: bool,
    pub(super) hand: Vec<(Side, u64, Message)>,
    /// First deliveries in order, by key.
    first: BTreeMap<u64, Vec<u64>>,
    seen: BTreeMap<u64, Side>,
    acked: BTreeSet<u64>,
}

pub(super) struct Record {
    pub(super) window: u32,
    /// Where the publisher is connected.
    pub(super) publisher: Option<usize>,
    pub(super) applications: [Application; QUEUES],
    /// The keys of what was published.
    published: Vec<u64>,
    confirmed: BTreeSet<u64>,
    /// Was in the hand of a connection that was lost, by queue: it may come late.
    disturbed: BTreeSet<(usize, u64)>,
    /// The highest epoch that was acted under; of each its weight, and whose it was: the sidecar and its life.
    highest: u64,
    epochs: BTreeMap<u64, (u16, (usize, u64))>,
    pub(super) leaders: u64,
    pub(super) changed: u64,
    pub(super) overtaken: u64,
}

impl Record {
    pub(super) fn new(window: u32) -> Self {
        Self {
            window,
            publisher: None,
            applications: Default::default(),
            published: Vec::new(),
            confirmed: BTreeSet::new(),
            disturbed: BTreeSet::new(),
            highest: 0,
            epochs: BTreeMap::new(),
            leaders: 0,
            changed: 0,
            overtaken: 0,
        }
    }

    pub(super) fn publishes(&mut self, key: u64) -> u64 {
        self.published.push(key);
        self.published.len() as u64 - 1
    }

    pub(super) fn published(&self) -> u64 {
        self.published.len() as u64
    }

    pub(super) fn confirmed(&mut self, number: u64) {
        self.confirmed.insert(number);
    }

    pub(super) fn disturbs(&mut self, queue: usize, number: u64) {
        self.disturbed.insert((queue, number));
    }

    /// Leaders, changes, takeovers from one that had not left, and first deliveries.
    pub(super) fn events(&self) -> [u64; 4] {
        let delivered = self.applications.iter().map(|application| application.seen.len() as u64).sum();
        [self.leaders, self.changed, self.overtaken, delivered]
    }

    /// I4: something was done under this epoch and weight. Nobody does anything under an older one afterwards.
    pub(super) fn acts(&mut self, of: (usize, u64), epoch: u64, weight: u16) -> Result<(), String> {
        if epoch < self.highest {
            return Err(format!("I4: {of:?} acted under epoch {epoch} after somebody had under {}", self.highest));
        }
        self.highest = epoch;
        let known = *self.epochs.entry(epoch).or_insert((weight, of));
        match known == (weight, of) {
            true => Ok(()),
            false => Err(format!("I4: epoch {epoch} was {known:?}, and {of:?} acted under it with {weight}")),
        }
    }

    /// The next one that leads has read this: what was acted under an epoch is what is known of it.
    pub(super) fn reads(&self, epoch: u64, weight: u16) -> Result<(), String> {
        match self.epochs.get(&epoch) {
            Some((acted, of)) if *acted != weight => {
                Err(format!("I4: {of:?} acted under epoch {epoch} with {acted}, and it is known as {weight}"))
            }
            _ => Ok(()),
        }
    }

    /// A client gets a delivery.
    pub(super) fn gets(
        &mut self,
        queue: usize,
        side: Side,
        place: u64,
        message: Message,
        again: bool,
    ) -> Result<(), String> {
        let application = &mut self.applications[queue];
        let Message { number, key, .. } = message;
        match application.seen.get(&number) {
            Some(before) if *before != side => return Err(format!("I2: queue {queue}: {number} came from both sides")),
            Some(_) if !again => return Err(format!("I2: queue {queue}: {number} came twice and did not say so")),
            Some(_) => {}
            None => {
                application.seen.insert(number, side);
                application.first.entry(key).or_default().push(number);
                let (disturbed, acked) = (&self.disturbed, &application.acked);
                // One that came again because its ack was lost is done.
                let is_open = |of: Side, m: &Message| {
                    let is_excused = disturbed.contains(&(queue, m.number)) || acked.contains(&m.number);
                    of != side && m.key == key && m.number < number && !is_excused
                };
                if let Some((_, _, open)) = application.hand.iter().find(|(of, _, m)| is_open(*of, m)) {
                    return Err(format!("I3: queue {queue} key {key}: {number} came while {} was open", open.number));
                }
            }
        }
        application.hand.push((side, place, message));
        Ok(())
    }

    pub(super) fn acks(&mut self, queue: usize, number: u64) {
        self.applications[queue].acked.insert(number);
    }

    fn open(&self, queue: usize) -> impl Iterator<Item = u64> {
        let is_open = move |number: &&u64| {
            let key = self.published[**number as usize];
            routed(queue, key) && !self.applications[queue].acked.contains(number)
        };
        self.confirmed.iter().filter(is_open).copied()
    }

    pub(super) fn is_done(&self) -> bool {
        (0..QUEUES).all(|queue| self.open(queue).next().is_none())
    }

    /// I1: what was confirmed and never settled.
    pub(super) fn left(&self) -> Vec<(usize, u64)> {
        (0..QUEUES).flat_map(|queue| self.open(queue).map(move |number| (queue, number))).collect()
    }

    /// I3: first deliveries of a key are in order, but for what a lost connection had in hand, and what was never confirmed.
    pub(super) fn verdict(&self) -> Result<(), String> {
        for (queue, application) in self.applications.iter().enumerate() {
            for (key, numbers) in &application.first {
                let mut highest = None;
                for number in numbers {
                    let excused = self.disturbed.contains(&(queue, *number)) || !self.confirmed.contains(number);
                    if highest.is_some_and(|highest| highest > *number) && !excused {
                        return Err(format!("I3: queue {queue} key {key}: {number} came after {highest:?}"));
                    }
                    highest = highest.max(Some(*number));
                }
            }
        }
        Ok(())
    }
}
