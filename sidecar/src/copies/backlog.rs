//! What lay in a queue of RabbitMQ before there were copies: which of it has one, what a copy is known by, and in what order copies are
//! replayed. Pure.
//!
//! A message that was not published through the sidecar has no id, and nothing can be written on it where it lies. It is known by what it
//! looks like: its digest, and a number among those that look the same. Of two that look the same either may stand for the other, so that a
//! settlement ends the one with the lowest number. Such an id is below all ids of messages with a stamp.

use std::collections::BTreeMap;
use std::ops::Range;

use amqp_compat::backend::Message;
use foldhash::{HashMap, HashMapExt, HashSet};
use xxhash_rust::xxh3::xxh3_128;

use crate::dual::stamp;
use crate::parity::digest;

/// What a message without id looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Likeness(u128);

/// How many bits of an id number those that look the same.
const NUMBER: u32 = 32;
/// Of an id, those of the likeness.
const LIKENESS: u32 = 80;

impl Likeness {
    /// Of a message without stamp.
    pub fn of(message: &Message) -> Self {
        let of = match message.properties.headers() {
            Some(table) if table.contains_key("x-delivery-count") => {
                let mut message = message.clone();
                stamp::without_count(&mut message);
                digest(&message)
            }
            _ => digest(message),
        };
        let mut bytes = [0; 24];
        for (part, into) in [of.payload, of.properties, of.routing].into_iter().zip(bytes.chunks_exact_mut(8)) {
            into.copy_from_slice(&part.to_be_bytes());
        }
        Self(xxh3_128(&bytes) >> (128 - LIKENESS))
    }

    fn id(self, number: u32) -> u128 {
        self.0 << NUMBER | u128::from(number)
    }

    /// Of an id; `None` when it is a stamp's.
    fn of_id(id: u128) -> Option<(Self, u32)> {
        (id >> (LIKENESS + NUMBER) == 0).then_some((Self(id >> NUMBER), id as u32))
    }
}

/// Where a message lies in its queue, for the order of a replay: by its id when it has a stamp, else behind the last one that has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// The highest id before it, or its own.
    pub after: u128,
    /// Grows among those without stamp; 0 with one.
    pub number: u64,
}

impl Place {
    /// Of a message with a stamp.
    pub fn stamped(id: u128) -> Self {
        Self { after: id, number: 0 }
    }
}

/// The copies of a queue that are there.
#[derive(Debug, Default)]
pub struct Known {
    stamped: HashSet<u128>,
    alike: HashMap<Likeness, BTreeMap<u32, Place>>,
    /// Of those without stamp, the lowest and the highest number of a place.
    ends: Option<(u64, u64)>,
}

impl Known {
    /// A copy is there.
    pub fn add(&mut self, id: u128, place: Place) {
        match Likeness::of_id(id) {
            None => drop(self.stamped.insert(id)),
            Some((likeness, number)) => {
                self.alike.entry(likeness).or_default().insert(number, place);
                let (low, high) = self.ends.unwrap_or((place.number, place.number));
                self.ends = Some((low.min(place.number), high.max(place.number)));
            }
        }
    }

    /// How many copies of messages without stamp there are.
    pub fn anonymous(&self) -> usize {
        self.alike.values().map(BTreeMap::len).sum()
    }

    /// The numbers in use, by likeness.
    pub fn ranges(&self) -> HashMap<Likeness, Range<u32>> {
        let range = |numbers: &BTreeMap<u32, Place>| {
            let (first, last) = (numbers.first_key_value()?.0, numbers.last_key_value()?.0);
            Some(*first..last.saturating_add(1))
        };
        self.alike.iter().filter_map(|(likeness, numbers)| Some((*likeness, range(numbers)?))).collect()
    }
}

/// A queue that is read from its head to its end.
#[derive(Debug)]
pub struct Survey {
    known: Known,
    /// Messages with stamps from here on had copies when they were published.
    before: u128,
    seen: HashMap<Likeness, u32>,
    after: u128,
    last: Option<u64>,
}

/// The first number of a place, in the middle of all.
const FIRST: u64 = 1 << 60;
/// Between one and the next, so that a message that was in a consumer's hands fits between.
const STRIDE: u64 = 1 << 16;
/// Before the lowest that is there, for those that have come back before it.
const HEAD: u64 = 1 << 48;

impl Survey {
    /// Of a queue that has these copies. Messages with stamps from `before` on had theirs when they were published.
    pub fn new(known: Known, before: u128) -> Self {
        Self { known, before, seen: HashMap::new(), after: 0, last: None }
    }

    /// The next message of the queue: the copy to make, unless it has one. `id`: of its stamp.
    pub fn sees(&mut self, id: Option<u128>, message: &Message) -> Option<(u128, Place)> {
        if let Some(id) = id {
            self.after = self.after.max(id);
            let has = id >= self.before || !self.known.stamped.insert(id);
            return (!has).then(|| (id, Place::stamped(id)));
        }
        let likeness = Likeness::of(message);
        let seen = self.seen.entry(likeness).or_default();
        let nth = *seen as usize;
        *seen = seen.saturating_add(1);
        let numbers = self.known.alike.entry(likeness).or_default();
        if let Some(place) = numbers.values().nth(nth) {
            self.last = Some(place.number);
            return None;
        }
        let number = numbers.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
        let at = match (self.last, self.known.ends) {
            (None, None) => FIRST,
            (None, Some((low, _))) => low.saturating_sub(HEAD),
            (Some(last), Some((low, high))) if last >= low && last < high => last + 1,
            (Some(last), _) => last + STRIDE,
        };
        self.last = Some(at);
        let (id, place) = (likeness.id(number), Place { after: self.after, number: at });
        numbers.insert(number, place);
        // Not the ends: what is new does not say where the known ones lie.
        Some((id, place))
    }

    /// The copies that there are when those that were asked for are made.
    pub fn known(self) -> Known {
        self.known
    }
}

/// Which copies of messages without stamp are not settled, of one queue.
#[derive(Debug, Default)]
pub struct Unsettled {
    numbers: HashMap<Likeness, Range<u32>>,
    /// Settled before it was known which copies there are.
    early: HashMap<Likeness, u32>,
    loaded: bool,
}

/// How many settlements are remembered before it is known which copies there are.
const EARLY_MOST: usize = 262_144;

impl Unsettled {
    /// These copies are there; answers those that are settled already.
    pub fn load(&mut self, numbers: HashMap<Likeness, Range<u32>>) -> Vec<u128> {
        (self.numbers, self.loaded) = (numbers, true);
        let early = std::mem::take(&mut self.early);
        let mut over = Vec::new();
        for (likeness, count) in early {
            over.extend((0..count).filter_map(|_| self.settled(likeness)));
        }
        over
    }

    /// A copy is there.
    pub fn add(&mut self, id: u128) {
        let Some((likeness, number)) = Likeness::of_id(id) else { return };
        self.loaded = true;
        let numbers = self.numbers.entry(likeness).or_insert(number..number);
        numbers.end = numbers.end.max(number.saturating_add(1));
    }

    /// A message that looks like this is settled: the copy that is over.
    pub fn settled(&mut self, likeness: Likeness) -> Option<u128> {
        match self.numbers.get_mut(&likeness) {
            Some(numbers) => {
                let number = numbers.next();
                if numbers.start >= numbers.end {
                    self.numbers.remove(&likeness);
                }
                number.map(|number| likeness.id(number))
            }
            None => {
                if !self.loaded && (self.early.len() < EARLY_MOST || self.early.contains_key(&likeness)) {
                    *self.early.entry(likeness).or_default() += 1;
                }
                None
            }
        }
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.loaded && self.numbers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amq_protocol::protocol::basic::AMQPProperties;

    fn message(body: u32) -> Message {
        let properties = AMQPProperties::default();
        Message { exchange: "x".into(), routing_key: "k".into(), properties, body: body.to_string().into() }
    }

    const STAMP: u128 = 0x019A << 112;

    /// Reads a queue of bodies, all without stamp, and stores what is asked for, at most `most`.
    fn read(stored: &mut Vec<(u128, Place, u32)>, queue: &[u32], most: usize) -> usize {
        let mut known = Known::default();
        stored.iter().for_each(|(id, place, _)| known.add(*id, *place));
        let mut survey = Survey::new(known, STAMP);
        let mut made = 0;
        for body in queue {
            if let Some((id, place)) = survey.sees(None, &message(*body)) {
                if made == most {
                    break;
                }
                stored.push((id, place, *body));
                made += 1;
            }
        }
        made
    }

    fn replayed(stored: &[(u128, Place, u32)]) -> Vec<u32> {
        let mut all = stored.to_vec();
        all.sort_by_key(|(_, place, _)| *place);
        all.into_iter().map(|(_, _, body)| body).collect()
    }

    #[test]
    fn what_has_a_copy_gets_no_second_one_and_ids_without_stamp_are_below_all_stamps() {
        let (mut stored, queue) = (Vec::new(), [1, 2, 1, 1, 3]);
        assert_eq!(read(&mut stored, &queue, 2), 2);
        assert_eq!(read(&mut stored, &queue, 99), 3);
        assert_eq!(read(&mut stored, &queue, 99), 0);
        assert_eq!(replayed(&stored), queue);
        assert!(stored.iter().all(|(id, _, _)| *id < STAMP));
    }

    #[test]
    fn the_order_holds_when_it_is_read_again_after_some_were_settled_and_some_came_back() {
        let mut stored = Vec::new();
        // 1 to 3 are in a consumer's hands.
        read(&mut stored, &[4, 5, 6, 7, 8, 9], 3);
        read(&mut stored, &[1, 2, 3, 5, 6, 7, 8, 9], 99);
        assert_eq!(replayed(&stored), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        read(&mut stored, &[3, 6, 66, 7, 8, 9, 10], 99);
        assert_eq!(replayed(&stored), [1, 2, 3, 4, 5, 6, 66, 7, 8, 9, 10]);
    }

    #[test]
    fn stamped_messages_keep_their_place_among_the_others() {
        let mut survey = Survey::new(Known::default(), STAMP + 100);
        let seen = [(None, 1), (Some(STAMP), 2), (None, 3), (Some(STAMP + 1), 4), (Some(STAMP + 100), 5), (None, 6)];
        let copies: Vec<_> = seen.iter().map(|(id, body)| survey.sees(*id, &message(*body))).collect();
        assert_eq!(copies[1], Some((STAMP, Place::stamped(STAMP))));
        assert_eq!(copies[4], None, "it had its copy when it was published");
        let places: Vec<Place> = copies.iter().flatten().map(|(_, place)| *place).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(places[4].after, STAMP + 100);
        assert_eq!(survey.sees(Some(STAMP), &message(2)), None, "once");
    }

    #[test]
    fn a_settlement_ends_one_of_those_that_look_the_same() {
        let mut survey = Survey::new(Known::default(), STAMP);
        let ids: Vec<u128> = [1, 1, 2].iter().filter_map(|body| Some(survey.sees(None, &message(*body))?.0)).collect();
        let (one, two) = (Likeness::of(&message(1)), Likeness::of(&message(2)));
        let mut unsettled = Unsettled::default();
        assert_eq!(unsettled.settled(one), None, "not known yet");
        assert_eq!(unsettled.load(survey.known().ranges()), [ids[0]]);
        assert_eq!([unsettled.settled(one), unsettled.settled(one)], [Some(ids[1]), None]);
        assert_eq!((unsettled.is_empty(), unsettled.settled(two), unsettled.is_empty()), (false, Some(ids[2]), true));
    }
}
