//! Seeded schedules of one queue and the store of its copies: publishes, settlements out of order, readers and sidecars that are lost at
//! every step, and then the owner of the queue. Checked against a record that the ledger does not see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::backlog;
use super::ledger::{Ledger, Place};

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A copy is removed when its message is delivered, not when it is settled.
    SettledEarly,
    /// What lies behind the window is not replayed.
    WindowOnly,
    /// What was replayed before an interruption is replayed again.
    ReplayedTwice,
    /// Copies are replayed as they lie in the store.
    NotInOrder,
    /// Of two copies of a message that come out of the store, both are removed.
    BothRemoved,
}

const WINDOW: usize = 6;

/// splitmix64: the same schedule for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn percent(&mut self, of: usize) -> bool {
        self.below(100) < of
    }
}

struct World {
    random: Random,
    broken: Broken,
    ledger: Ledger,
    /// The store: copies that nobody has read, and those that a reader has.
    store: VecDeque<u128>,
    read: BTreeMap<Place, u128>,
    places: Place,
    /// The real queue of the owner.
    queue: Vec<u128>,
    next: u128,
    /// Settlements on their way to the ledger.
    told: Vec<u128>,
    /// The record: settlements that a crash may have lost.
    forgotten: BTreeSet<u128>,
}

impl World {
    fn new(seed: u64, broken: Broken) -> Self {
        Self {
            random: Random(seed),
            broken,
            ledger: Ledger::with_window(WINDOW),
            store: VecDeque::new(),
            read: BTreeMap::new(),
            places: 0,
            queue: Vec::new(),
            next: 1,
            told: Vec::new(),
            forgotten: BTreeSet::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => {
                self.queue.push(self.next);
                self.store.push_back(self.next);
                self.ledger.stored();
                self.next += 1;
            }
            30..55 if !self.queue.is_empty() => {
                let reach = self.queue.len().min(3 * WINDOW);
                let at = self.random.below(reach);
                if self.broken == Broken::SettledEarly {
                    // Delivered; whether it is settled as well is another throw.
                    let id = self.queue[at];
                    self.hears(id);
                }
                if self.broken != Broken::SettledEarly || self.random.percent(50) {
                    self.told.push(self.queue.remove(at));
                }
            }
            55..75 if !self.told.is_empty() => {
                let at = self.random.below(self.told.len());
                let id = self.told.swap_remove(at);
                self.hears(id);
            }
            75..93 => self.reads(),
            93..95 => self.ledger.tick(),
            95..97 => self.reader_is_lost(),
            97..98 => {
                self.reader_is_lost();
                // What it knew of settlements goes with the sidecar.
                let settled = (1..self.next).filter(|id| !self.queue.contains(id));
                self.forgotten.extend(settled);
                self.told.clear();
                self.ledger = Ledger::with_window(WINDOW);
                self.ledger.attached(self.store.len() as u64);
            }
            98..99 if self.queue.is_empty() => {
                for place in self.ledger.over(self.next) {
                    self.read.remove(&place);
                }
            }
            _ => {}
        }
    }

    fn hears(&mut self, id: u128) {
        if let Some(place) = self.ledger.settled(id) {
            self.removes(place);
        }
        let moved = self.ledger.turn();
        for place in moved {
            let Some(id) = self.read.get(&place).copied() else { continue };
            self.store.push_back(id);
            self.ledger.stored();
            if self.random.percent(40) {
                // It is in the store twice.
                self.reader_is_lost();
                return;
            }
            self.ledger.turned();
            self.removes(place);
        }
    }

    fn removes(&mut self, place: Place) {
        // One in twenty is not heard before the reader is lost.
        if !self.random.percent(5) {
            self.read.remove(&place);
        }
    }

    fn reads(&mut self) {
        while self.read.len() < WINDOW
            && let Some(id) = self.store.pop_front()
        {
            self.places += 1;
            self.read.insert(self.places, id);
            let twice = self.read.values().filter(|other| **other == id).count() > 1;
            if self.ledger.arrived(self.places, id) {
                self.read.remove(&self.places);
                if twice && self.broken == Broken::BothRemoved {
                    self.read.retain(|_, other| *other != id);
                }
            }
        }
    }

    fn reader_is_lost(&mut self) {
        for (_, id) in std::mem::take(&mut self.read).into_iter().rev() {
            self.store.push_front(id);
        }
        self.ledger.attached(self.store.len() as u64);
    }

    /// The owner is lost: replays, is interrupted, replays again, and compares.
    fn ends(mut self) -> Result<(), String> {
        let window: BTreeSet<u128> = self.read.values().copied().collect();
        self.reader_is_lost();
        let copies: Vec<(u128, ())> = self.store.iter().map(|id| (*id, ())).collect();
        let mut first: Vec<u128> = self
            .ledger
            .replay(copies.clone(), |_| false, |id, ()| backlog::Place::stamped(id))
            .into_iter()
            .map(|(id, ())| id)
            .collect();
        if self.broken == Broken::WindowOnly {
            first.retain(|id| window.contains(id));
        }
        if self.broken == Broken::NotInOrder {
            first = copies.iter().map(|(id, ())| *id).filter(|id| first.contains(id)).collect();
        }
        let some = self.random.below(first.len() + 1);
        let mut replayed: Vec<u128> = first[..some].to_vec();
        if self.broken != Broken::ReplayedTwice {
            replayed.iter().for_each(|id| self.ledger.replayed(*id));
        }
        match self.broken {
            Broken::WindowOnly | Broken::NotInOrder => replayed.extend(&first[some..]),
            _ => replayed.extend(
                self.ledger
                    .replay(copies, |_| false, |id, ()| backlog::Place::stamped(id))
                    .into_iter()
                    .map(|(id, ())| id),
            ),
        }
        let unique: BTreeSet<u128> = replayed.iter().copied().collect();
        if unique.len() < replayed.len() {
            return Err(format!("replayed twice: {replayed:?}"));
        }
        if !replayed.is_sorted() {
            return Err(format!("not in order: {replayed:?}"));
        }
        if let Some(lost) = self.queue.iter().find(|id| !unique.contains(id)) {
            return Err(format!("lost: {lost}"));
        }
        let too_many = |id: &&u128| !self.queue.contains(id) && !self.told.contains(id) && !self.forgotten.contains(id);
        match unique.iter().find(too_many) {
            Some(id) => Err(format!("settled, and replayed: {id}")),
            None => Ok(()),
        }
    }
}

fn run(seed: u64, broken: Broken) -> Result<(), String> {
    let mut world = World::new(seed, broken);
    for _ in 0..50 + world.random.below(350) {
        world.step();
    }
    world.ends()
}

#[test]
fn what_is_not_settled_is_replayed_once_in_order_whatever_is_lost_on_the_way() {
    let first: u64 = std::env::var("STANDBY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let seeds: u64 = std::env::var("STANDBY_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2_000);
    for seed in first..first + seeds {
        if let Err(why) = run(seed, Broken::Nothing) {
            panic!("STANDBY_SEED={seed} STANDBY_SEEDS=1: {why}");
        }
    }
}

#[test]
fn a_copy_that_comes_out_before_it_is_confirmed_is_counted_once() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.settled(1), None);
    assert!(ledger.arrived(7, 1));
    ledger.stored();
    assert_eq!((ledger.copies(), ledger.lag()), (0, 0));
}

/// A store of copies, its reader, and what was put back to its end.
struct Turning {
    ledger: Ledger,
    store: VecDeque<u128>,
    read: BTreeMap<Place, u128>,
    places: Place,
    turned: usize,
}

impl Turning {
    /// Reads and turns over for so long.
    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.ledger.tick();
            loop {
                while self.read.len() < WINDOW
                    && let Some(id) = self.store.pop_front()
                {
                    self.places += 1;
                    if !self.ledger.arrived(self.places, id) {
                        self.read.insert(self.places, id);
                    }
                }
                let moved = self.ledger.turn();
                if moved.is_empty() {
                    break;
                }
                self.turned += moved.len();
                for place in moved {
                    self.store.extend(self.read.remove(&place));
                    self.ledger.stored();
                    self.ledger.turned();
                }
            }
        }
    }
}

#[test]
fn settlements_without_copies_do_not_turn_the_store_over_for_ever() {
    const COPIES: usize = 100;
    let ledger = Ledger::with_window(WINDOW);
    let mut turning =
        Turning { ledger, store: (1..=COPIES as u128).collect(), read: BTreeMap::new(), places: 0, turned: 0 };
    (0..COPIES).for_each(|_| turning.ledger.stored());
    // Confirmed without a copy, as its keeper was away.
    (1_000..1_050).for_each(|id| assert_eq!(turning.ledger.settled(id), None));
    turning.ticks(1_000);
    assert!((COPIES..COPIES + WINDOW).contains(&turning.turned), "{} were turned over", turning.turned);
    // One that has a copy is found, wherever it lies.
    let last = *turning.store.back().expect("more than a window");
    assert_eq!(turning.ledger.settled(last), None);
    turning.ticks(1_000);
    assert_eq!(turning.ledger.copies(), COPIES as u64 - 1);
    assert!(turning.turned <= 2 * (COPIES + WINDOW), "{} were turned over", turning.turned);
    assert!(!turning.store.contains(&last) && !turning.read.values().any(|id| *id == last));
}

#[test]
fn each_broken_promise_is_found() {
    for broken in
        [Broken::SettledEarly, Broken::WindowOnly, Broken::ReplayedTwice, Broken::NotInOrder, Broken::BothRemoved]
    {
        let found = (1..=5_000).find(|seed| run(*seed, broken).is_err());
        assert!(found.is_some(), "{broken:?} is not found");
    }
}
