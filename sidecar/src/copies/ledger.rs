//! The standby copies of one queue: which of them are over, and which are replayed, in what order. Pure.
//!
//! The store is a queue: copies go in at its end and come out at its head, and what came out and was not removed comes again when its
//! reader is gone. So the ledger sees a *window* of copies, the oldest ones. A settlement removes its copy at once when that is in the
//! window, and is remembered until its copy comes into it when it is not. A window that is full of copies that are still needed, while
//! settled ones lie behind it, is turned over: its older half goes back to the end of the store. That is work for who keeps the store, so a
//! settlement buys no more than [`Ledger::TURNS`] copies of it, and each tick half a window; and when the whole store has passed since the last
//! settlement, what is remembered has no copies, and nothing is turned until there is another.
//!
//! What is forgotten (a settlement at a crash, or beyond the bound) leaves a copy too many, which a failover delivers again, as
//! redelivered. Nothing forgets a copy that is needed.

use std::collections::{BTreeMap, VecDeque};

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::backlog;

/// A place in the store: what the store calls a copy that came out of it. Grows.
pub type Place = u64;

/// The standby copies of one queue.
#[derive(Debug)]
pub struct Ledger {
    most: usize,
    /// Came out of the store and are needed.
    window: BTreeMap<Place, u128>,
    places: HashMap<u128, Place>,
    /// Settled, and not come out of the store yet.
    settled: Remembered,
    /// Removed: the store may not have heard it when its reader is lost.
    removed: Remembered,
    /// Ids below it are over.
    over: u128,
    /// Copies that are in the store. One that comes out before the store has confirmed it is counted late.
    stored: i64,
    /// Copies that may be turned over now.
    credit: usize,
    /// Copies that may hide a settled one, as they have not been turned over since it was settled.
    unseen: u64,
}

/// A set with a bound; the oldest goes first.
#[derive(Debug, Default)]
struct Remembered {
    ids: HashSet<u128>,
    order: VecDeque<u128>,
}

impl Remembered {
    fn insert(&mut self, id: u128, most: usize) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        while self.ids.len() > most
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        // What was taken out again is still in the order.
        if self.order.len() > self.ids.len().max(most.min(Ledger::SETTLED_MOST)).saturating_mul(2) {
            self.order.retain(|id| self.ids.contains(id));
        }
    }

    fn take(&mut self, id: u128) -> bool {
        self.ids.remove(&id)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::with_window(Self::WINDOW)
    }
}

impl Ledger {
    /// Copies that may be in the window at once.
    pub const WINDOW: usize = 512;
    /// Settlements that are remembered until their copies come out of the store.
    pub const SETTLED_MOST: usize = 262_144;
    /// Copies that are turned over for one settlement, at most. As long as there are settlements, what is not needed is so a third of a store at most.
    const TURNS: usize = 2;
    /// Removals that are remembered for a reader that is lost.
    const REMOVED_MOST: usize = 16_384;

    /// A ledger whose window has room for `most` copies.
    pub fn with_window(most: usize) -> Self {
        Self {
            most,
            window: BTreeMap::new(),
            places: HashMap::new(),
            settled: Remembered::default(),
            removed: Remembered::default(),
            over: 0,
            stored: 0,
            credit: 0,
            unseen: 0,
        }
    }

    /// The reader of the store begins, or begins again: it holds this many copies, and all of them come out once more.
    pub fn attached(&mut self, stored: u64) {
        self.window.clear();
        self.places.clear();
        self.stored = i64::try_from(stored).unwrap_or(i64::MAX);
    }

    /// A copy was put into the store.
    pub fn stored(&mut self) {
        self.stored += 1;
    }

    /// How many copies the store holds.
    pub fn copies(&self) -> u64 {
        u64::try_from(self.stored).unwrap_or(0)
    }

    /// Settlements whose copies are still in the store.
    pub fn lag(&self) -> u64 {
        // Of a message that never had a copy nothing will come.
        (self.settled.ids.len() as u64).min(self.copies())
    }

    /// A copy came out of the store: whether it is to be removed.
    pub fn arrived(&mut self, place: Place, id: u128) -> bool {
        if self.places.contains_key(&id) {
            // A second copy of it: the first one stays.
            self.stored -= 1;
            return true;
        }
        if self.is_over(id) {
            self.settled.take(id);
            self.forget(id);
            return true;
        }
        self.window.insert(place, id);
        self.places.insert(id, place);
        false
    }

    /// Its message is settled: the copy to remove, when it came out already.
    pub fn settled(&mut self, id: u128) -> Option<Place> {
        match self.places.remove(&id) {
            Some(place) => {
                self.window.remove(&place);
                self.forget(id);
                Some(place)
            }
            None if self.removed.ids.contains(&id) || id < self.over => None,
            None => {
                self.settled.insert(id, Self::SETTLED_MOST);
                self.unseen = self.copies();
                self.credit = (self.credit + Self::TURNS).min(self.most);
                None
            }
        }
    }

    /// All messages with ids below this one are over: the copies to remove.
    pub fn over(&mut self, before: u128) -> Vec<Place> {
        self.over = self.over.max(before);
        let gone: Vec<(Place, u128)> =
            self.window.iter().filter(|(_, id)| **id < before).map(|(place, id)| (*place, *id)).collect();
        for (place, id) in &gone {
            self.window.remove(place);
            self.places.remove(id);
            self.forget(*id);
        }
        self.settled.ids.retain(|id| *id >= before);
        self.settled.order.retain(|id| *id >= before);
        gone.into_iter().map(|(place, _)| place).collect()
    }

    /// The copies to put back at the end of the store, and then to remove: none, unless the window is full and enough that is settled
    /// lies behind it to be worth the work.
    pub fn turn(&mut self) -> Vec<Place> {
        let pays = self.unseen > 0 && self.credit >= self.most / 2;
        if self.window.len() < self.most || self.settled.ids.len() < self.most || !pays {
            return Vec::new();
        }
        let moved: Vec<(Place, u128)> = self.window.iter().take(self.most / 2).map(|(p, id)| (*p, *id)).collect();
        for (place, id) in &moved {
            self.window.remove(place);
            self.places.remove(id);
        }
        self.credit -= moved.len();
        self.unseen = self.unseen.saturating_sub(moved.len() as u64);
        moved.into_iter().map(|(place, _)| place).collect()
    }

    /// Time has passed: what is still hidden is looked for, slowly.
    pub fn tick(&mut self) {
        self.credit = self.credit.max(self.most / 2);
    }

    /// What was put back is in the store twice until it is removed here.
    pub fn turned(&mut self) {
        self.stored -= 1;
    }

    /// Of what the store holds: what is replayed, each message once, in the order in which it was published, which `place` tells. `open`
    /// are those whose publisher has no answer yet: they are published anew by whoever has them in hand.
    pub fn replay<T>(
        &self,
        copies: Vec<(u128, T)>,
        open: impl Fn(u128) -> bool,
        place: impl Fn(u128, &T) -> backlog::Place,
    ) -> Vec<(u128, T)> {
        let mut seen = HashSet::new();
        let needed = |id: u128| !self.is_over(id) && !open(id);
        // Of two copies of one message the first is taken.
        let mut kept: Vec<(u128, T)> = copies.into_iter().filter(|(id, _)| needed(*id) && seen.insert(*id)).collect();
        kept.sort_by_key(|(id, copy)| place(*id, copy));
        kept
    }

    /// It was replayed: if it is met again, it is not needed.
    pub fn replayed(&mut self, id: u128) {
        self.settled.insert(id, usize::MAX);
    }

    fn is_over(&self, id: u128) -> bool {
        id < self.over || self.settled.ids.contains(&id) || self.removed.ids.contains(&id)
    }

    fn forget(&mut self, id: u128) {
        self.stored -= 1;
        self.removed.insert(id, Self::REMOVED_MOST);
    }
}
