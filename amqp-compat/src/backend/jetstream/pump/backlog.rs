//! What is ready here: by priority, and in the queue's order within one.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::{HashMap, HashMapExt};
use smallvec::SmallVec;

use super::{SEQUENCE_BITS, SEQUENCE_MASK};

/// Messages that nobody has, next to be handed out. A requeued message comes here, at its place, and not back to the
/// server: that would lose its place.
#[derive(Debug)]
pub(super) struct Backlog {
    /// Sequences, and above their bits how far a message's priority is from the highest. Without priorities, or at the
    /// highest one, a place is a sequence.
    places: BTreeSet<u64>,
    highest: u8,
    /// How many there are of each priority.
    lengths: SmallVec<[usize; 1]>,
    /// Those that are ahead of all others, in the order in which they came back, and each one's place among them.
    first: BTreeMap<u64, (u8, u64)>,
    turns: HashMap<u64, u64>,
    next_turn: u64,
}

impl Backlog {
    /// An empty one, for priorities from 0 to `highest`.
    pub(super) fn new(highest: u8) -> Self {
        Self {
            places: BTreeSet::new(),
            highest,
            lengths: smallvec::smallvec![0; usize::from(highest) + 1],
            first: BTreeMap::new(),
            turns: HashMap::new(),
            next_turn: 0,
        }
    }

    fn place(&self, priority: u8, sequence: u64) -> u64 {
        u64::from(self.highest.saturating_sub(priority)) << SEQUENCE_BITS | (sequence & SEQUENCE_MASK)
    }

    pub(super) fn insert(&mut self, priority: u8, sequence: u64) {
        let is_new = self.places.insert(self.place(priority, sequence));
        if let Some(length) = self.lengths.get_mut(usize::from(priority)) {
            *length += usize::from(is_new);
        }
    }

    /// Puts a message ahead of all others, behind those that were put there before.
    pub(super) fn insert_first(&mut self, priority: u8, sequence: u64) {
        self.remove(priority, sequence);
        self.first.insert(self.next_turn, (priority, sequence));
        self.turns.insert(sequence, self.next_turn);
        self.next_turn += 1;
        if let Some(length) = self.lengths.get_mut(usize::from(priority)) {
            *length += 1;
        }
    }

    /// Whether there are messages that are ahead of all others.
    pub(super) fn has_first(&self) -> bool {
        !self.first.is_empty()
    }

    pub(super) fn remove(&mut self, priority: u8, sequence: u64) {
        let was_there = match self.turns.remove(&sequence) {
            Some(turn) => self.first.remove(&turn).is_some(),
            None => self.places.remove(&self.place(priority, sequence)),
        };
        if let Some(length) = self.lengths.get_mut(usize::from(priority)) {
            *length -= usize::from(was_there);
        }
    }

    /// Priority and sequence of the first.
    pub(super) fn first(&self) -> Option<(u8, u64)> {
        if let Some((_, first)) = self.first.first_key_value() {
            return Some(*first);
        }
        let place = self.places.first()?;
        let below = u8::try_from(place >> SEQUENCE_BITS).unwrap_or(self.highest);
        Some((self.highest.saturating_sub(below), place & SEQUENCE_MASK))
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() + self.first.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.first.is_empty()
    }

    /// The sequences, in no order.
    pub(super) fn sequences(&self) -> impl Iterator<Item = u64> {
        self.turns.keys().copied().chain(self.places.iter().map(|place| place & SEQUENCE_MASK))
    }

    /// How many there are of this priority.
    pub(super) fn len_of(&self, priority: u8) -> u64 {
        self.lengths.get(usize::from(priority)).copied().unwrap_or_default() as u64
    }

    /// Empties it; gives the sequences in their order.
    pub(super) fn take(&mut self) -> impl Iterator<Item = u64> + use<> {
        self.lengths.fill(0);
        self.turns.clear();
        let first = std::mem::take(&mut self.first).into_values().map(|(_, sequence)| sequence);
        first.chain(std::mem::take(&mut self.places).into_iter().map(|place| place & SEQUENCE_MASK))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_put_first_stays_in_the_order_of_its_return() {
        let mut backlog = Backlog::new(0);
        [1, 2, 3, 4].into_iter().for_each(|sequence| backlog.insert(0, sequence));
        [3, 1].into_iter().for_each(|sequence| backlog.insert_first(0, sequence));
        assert_eq!((backlog.first(), backlog.len(), backlog.len_of(0)), (Some((0, 3)), 4, 4));
        backlog.remove(0, 3);
        assert_eq!((backlog.first(), backlog.len()), (Some((0, 1)), 3));
        backlog.insert_first(0, 3);
        assert_eq!(backlog.take().collect::<Vec<_>>(), [1, 3, 2, 4]);
        assert!(backlog.is_empty() && !backlog.has_first() && backlog.len_of(0) == 0);
    }

    proptest! {
        #[test]
        fn the_first_has_the_highest_priority_and_is_the_oldest_of_it(
            highest in 0u8..=255,
            steps in proptest::collection::vec((any::<bool>(), any::<u8>(), 1u64..40), 1..200),
        ) {
            let mut backlog = Backlog::new(highest);
            let mut model: Vec<(u8, u64)> = Vec::new();
            for (adds, priority, sequence) in steps {
                let priority = priority.min(highest);
                model.retain(|one| *one != (priority, sequence));
                if adds {
                    backlog.insert(priority, sequence);
                    model.push((priority, sequence));
                } else {
                    backlog.remove(priority, sequence);
                }
                let first = model.iter().min_by_key(|(priority, sequence)| (255 - priority, *sequence)).copied();
                prop_assert_eq!(backlog.first(), first);
                prop_assert_eq!(backlog.len(), model.len());
                let of = model.iter().filter(|one| one.0 == priority).count() as u64;
                prop_assert_eq!(backlog.len_of(priority), of);
            }
            model.sort_by_key(|(priority, sequence)| (255 - priority, *sequence));
            let order: Vec<u64> = model.into_iter().map(|(_, sequence)| sequence).collect();
            prop_assert_eq!(backlog.take().collect::<Vec<_>>(), order);
            prop_assert!(backlog.is_empty() && backlog.len_of(0) == 0);
        }
    }
}
