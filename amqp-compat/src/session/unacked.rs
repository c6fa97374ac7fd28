//! Delivery tags that wait for their settlement.

use std::collections::VecDeque;

use super::overdue::Due;
use crate::backend::DeliveryId;

/// What a channel has sent and the client has not settled, in order of delivery tag.
#[derive(Debug, Default)]
pub(super) struct Unacked {
    /// The last delivery tag given out.
    last: u64,
    /// Ascending by tag. Settled out of turn: `None`, taken out when it comes first or by [`Unacked::compact`].
    entries: VecDeque<(u64, Option<Entry>)>,
    live: usize,
}

/// One delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The backend's name for it.
    pub(super) id: DeliveryId,
    /// The number of the consumer it went to; `None` for `basic.get`.
    pub(super) consumer: Option<u32>,
    /// Until when the client is to settle it.
    pub(super) due: Option<Due>,
}

/// No such delivery tag.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown;

impl Unacked {
    /// Gives out the next tag for something that the client need not settle.
    pub(super) fn tag(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The tag that is given out next.
    pub(super) fn next_tag(&self) -> u64 {
        self.last + 1
    }

    /// Gives out the next tag and remembers the delivery.
    pub(super) fn add(&mut self, entry: Entry) -> u64 {
        let tag = self.tag();
        self.entries.push_back((tag, Some(entry)));
        self.live += 1;
        tag
    }

    /// How many deliveries are not settled.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// The one whose time is over first.
    pub(super) fn earliest(&self) -> Option<Due> {
        let live = self.entries.iter().filter_map(|(_, entry)| entry.as_ref());
        live.filter_map(|entry| entry.due).min_by_key(|due| due.at)
    }

    /// Settles one delivery, or with `multiple` all up to and including `tag` (0: all there are), oldest first.
    ///
    /// # Errors
    /// [`Unknown`] when `tag` was never given out or is settled, also with `multiple`, as in RabbitMQ. Nothing is
    /// settled then.
    pub(super) fn settle(&mut self, tag: u64, multiple: bool, mut each: impl FnMut(u64, Entry)) -> Result<(), Unknown> {
        if multiple && tag == 0 {
            self.drain(each);
            return Ok(());
        }
        let index = self.entries.binary_search_by_key(&tag, |(tag, _)| *tag).map_err(|_| Unknown)?;
        if self.entries[index].1.is_none() {
            return Err(Unknown);
        }
        if multiple {
            for (tag, entry) in self.entries.drain(..=index) {
                if let Some(entry) = entry {
                    self.live -= 1;
                    each(tag, entry);
                }
            }
        } else if let Some(entry) = self.entries[index].1.take() {
            self.live -= 1;
            each(tag, entry);
        }
        self.compact();
        Ok(())
    }

    /// Settles everything, oldest first.
    pub(super) fn drain(&mut self, mut each: impl FnMut(u64, Entry)) {
        for (tag, entry) in self.entries.drain(..) {
            if let Some(entry) = entry {
                each(tag, entry);
            }
        }
        self.live = 0;
    }

    /// Takes settlements back: these deliveries are unsettled again.
    pub(super) fn restore(&mut self, settled: impl IntoIterator<Item = (u64, Entry)>) {
        self.entries.retain(|(_, entry)| entry.is_some());
        self.entries.extend(settled.into_iter().map(|(tag, entry)| (tag, Some(entry))));
        self.entries.make_contiguous().sort_unstable_by_key(|(tag, _)| *tag);
        self.live = self.entries.len();
    }

    /// One old delivery that stays must not keep the places of all later ones.
    fn compact(&mut self) {
        while let Some((_, None)) = self.entries.front() {
            self.entries.pop_front();
        }
        if self.entries.len() > 64 && self.entries.len() > self.live * 2 {
            self.entries.retain(|(_, entry)| entry.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(id: u64) -> Entry {
        Entry { id: DeliveryId(id), consumer: None, due: None }
    }

    proptest! {
        #[test]
        fn settling_is_what_a_plain_map_would_do(
            steps in proptest::collection::vec((any::<bool>(), 0u64..40, any::<bool>()), 1..200),
        ) {
            let mut unacked = Unacked::default();
            let mut model: BTreeMap<u64, DeliveryId> = BTreeMap::new();
            for (add, tag, multiple) in steps {
                if add {
                    let tag = unacked.add(entry(unacked.last + 1000));
                    model.insert(tag, DeliveryId(tag + 999));
                    continue;
                }
                let mut settled = Vec::new();
                let answer = unacked.settle(tag, multiple, |_, entry| settled.push(entry.id));
                let expected: Vec<u64> = match (tag, multiple) {
                    (0, true) => model.keys().copied().collect(),
                    (tag, _) if !model.contains_key(&tag) => {
                        prop_assert_eq!(answer, Err(Unknown));
                        prop_assert!(settled.is_empty());
                        continue;
                    }
                    (tag, true) => model.range(..=tag).map(|(tag, _)| *tag).collect(),
                    (tag, false) => vec![tag],
                };
                prop_assert_eq!(answer, Ok(()));
                let expected: Vec<DeliveryId> =
                    expected.iter().filter_map(|tag| model.remove(tag)).collect();
                prop_assert_eq!(settled, expected);
                prop_assert_eq!(unacked.len(), model.len());
            }
        }
    }

    #[test]
    fn restored_deliveries_are_back_in_their_places() {
        let mut unacked = Unacked::default();
        for id in 1..=5 {
            unacked.add(entry(id));
        }
        let mut settled = Vec::new();
        for tag in [4, 2] {
            unacked.settle(tag, false, |tag, entry| settled.push((tag, entry))).expect("known");
        }
        unacked.restore(settled);
        assert_eq!(unacked.len(), 5);
        let mut order = Vec::new();
        unacked.drain(|tag, _| order.push(tag));
        assert_eq!(order, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn one_stuck_delivery_does_not_keep_room_for_the_others() {
        let mut unacked = Unacked::default();
        unacked.add(entry(1));
        for _ in 0..10_000 {
            let tag = unacked.add(entry(2));
            unacked.settle(tag, false, |_, _| ()).expect("known");
        }
        assert!(unacked.entries.len() <= 65, "{} places for one delivery", unacked.entries.len());
    }
}
