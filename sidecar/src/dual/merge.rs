//! One consumer over two sides: what the client may have at once, and what waits. Pure.

use std::collections::VecDeque;

use crate::ownership::Side;

/// The two halves of one consumer, merged into one under the client's credit.
///
/// Each side is given as much credit as the client's whole window, because it cannot be known where the next message
/// is. At most twice the window is therefore buffered or unsettled; what the client gets is bounded by its own credit.
#[derive(Debug)]
pub struct Merge<T> {
    credit: u64,
    // Whether what is unsettled fills the client's window.
    limited: bool,
    unsettled: [u64; 2],
    buffered: [u64; 2],
    granted: [u64; 2],
    attached: [bool; 2],
    ready: VecDeque<Waiting<T>>,
    held: VecDeque<Waiting<T>>,
}

#[derive(Debug)]
struct Waiting<T> {
    side: Side,
    place: u64,
    item: T,
}

impl<T> Merge<T> {
    /// A consumer with this much credit from its client, attached to no side yet. `limited` is false for one that may
    /// have any number of unsettled deliveries: its credit comes back when they are written.
    pub fn new(credit: u32, limited: bool) -> Self {
        Self {
            credit: credit.into(),
            limited,
            unsettled: [0, 0],
            buffered: [0, 0],
            granted: [0, 0],
            attached: [false, false],
            ready: VecDeque::new(),
            held: VecDeque::new(),
        }
    }

    /// The consumer begins on a side; answers the credit to begin with.
    pub fn attach(&mut self, side: Side) -> u32 {
        self.attached[side.index()] = true;
        self.granted[side.index()] = 0;
        self.grant(side)
    }

    /// The consumer's side is lost, with all that came from it and was not settled; answers what was buffered.
    pub fn detach(&mut self, side: Side) -> Vec<T> {
        let i = side.index();
        self.attached[i] = false;
        // What the client got of it and cannot settle any more still fills its window until it says that it is done.
        self.granted[i] = 0;
        self.buffered[i] = 0;
        let mut gone = Vec::new();
        for queue in [&mut self.ready, &mut self.held] {
            let (lost, kept): (Vec<_>, Vec<_>) = queue.drain(..).partition(|w| w.side == side);
            gone.extend(lost);
            queue.extend(kept);
        }
        gone.sort_by_key(|w| w.place);
        gone.into_iter().map(|w| w.item).collect()
    }

    /// The consumer gets nothing more from a side until it is attached again; what it has of it stays.
    pub fn pause(&mut self, side: Side) {
        self.attached[side.index()] = false;
        self.granted[side.index()] = 0;
    }

    /// Whether the consumer is attached to a side.
    pub fn attached(&self, side: Side) -> bool {
        self.attached[side.index()]
    }

    /// The client lets the consumer have `amount` more.
    pub fn credit(&mut self, amount: u32) {
        self.credit += u64::from(amount);
    }

    /// A fence came out: it used credit of its side, and is not buffered.
    pub fn fence(&mut self, side: Side) {
        let granted = &mut self.granted[side.index()];
        *granted = granted.saturating_sub(1);
    }

    /// A delivery came from a side. `place` is its place in the queue; one that comes again goes before what came
    /// after it.
    pub fn received(&mut self, side: Side, place: u64, waits: bool, item: T) {
        let i = side.index();
        self.granted[i] = self.granted[i].saturating_sub(1);
        self.buffered[i] += 1;
        let queue = if waits { &mut self.held } else { &mut self.ready };
        insert(queue, Waiting { side, place, item });
    }

    /// How many deliveries wait for a fence.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Looks again at what waits for a fence, after holds were lifted.
    pub fn release(&mut self, mut still_waits: impl FnMut(Side, &T) -> bool) {
        if self.held.is_empty() {
            return;
        }
        for waiting in std::mem::take(&mut self.held) {
            if still_waits(waiting.side, &waiting.item) {
                self.held.push_back(waiting);
            } else {
                insert(&mut self.ready, waiting);
            }
        }
    }

    /// The next delivery that the client may have now.
    pub fn pop(&mut self) -> Option<(Side, T)> {
        if self.credit == 0 {
            return None;
        }
        let Waiting { side, item, .. } = self.ready.pop_front()?;
        self.credit -= 1;
        self.buffered[side.index()] -= 1;
        self.unsettled[side.index()] += 1;
        Some((side, item))
    }

    /// The client settled a delivery of a side.
    pub fn settled(&mut self, side: Side) {
        let unsettled = &mut self.unsettled[side.index()];
        *unsettled = unsettled.saturating_sub(1);
    }

    /// How much more credit a side is to be given now; it counts as given.
    pub fn grant(&mut self, side: Side) -> u32 {
        let i = side.index();
        if !self.attached[i] {
            return 0;
        }
        let (mine, all) =
            if self.limited { (self.unsettled[i], self.unsettled[0] + self.unsettled[1]) } else { (0, 0) };
        let window = self.credit + all;
        let used = mine + self.buffered[i] + self.granted[i];
        let more = u32::try_from(window.saturating_sub(used)).unwrap_or(u32::MAX);
        self.granted[i] += u64::from(more);
        more
    }

    /// Takes out all that is buffered, each side's in its order.
    pub fn drain(&mut self) -> Vec<(Side, T)> {
        self.buffered = [0, 0];
        let mut all: Vec<_> = self.ready.drain(..).chain(self.held.drain(..)).collect();
        all.sort_by_key(|w| (w.side, w.place));
        all.into_iter().map(|w| (w.side, w.item)).collect()
    }
}

/// Puts `new` behind everything, or before the first of its own side that has a later place.
fn insert<T>(queue: &mut VecDeque<Waiting<T>>, new: Waiting<T>) {
    let last = queue.iter().rev().find(|w| w.side == new.side);
    if last.is_none_or(|w| w.place < new.place) {
        queue.push_back(new);
        return;
    }
    let at = queue.iter().position(|w| w.side == new.side && w.place > new.place).unwrap_or(queue.len());
    queue.insert(at, new);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_never_gets_more_than_its_credit_and_a_side_never_more_than_the_window() {
        let mut merge = Merge::new(2, true);
        assert_eq!((merge.attach(Side::Rabbit), merge.attach(Side::Nats)), (2, 2));
        for place in 0..2 {
            merge.received(Side::Rabbit, place, false, place);
            merge.received(Side::Nats, place + 10, false, place + 10);
        }
        assert_eq!(merge.pop(), Some((Side::Rabbit, 0)));
        assert_eq!(merge.pop(), Some((Side::Nats, 10)));
        assert_eq!(merge.pop(), None);
        assert_eq!((merge.grant(Side::Rabbit), merge.grant(Side::Nats)), (0, 0));
        merge.settled(Side::Nats);
        merge.credit(1);
        assert_eq!((merge.grant(Side::Rabbit), merge.grant(Side::Nats)), (0, 1));
        assert_eq!(merge.pop(), Some((Side::Rabbit, 1)));
        assert_eq!(merge.pop(), None);
    }

    #[test]
    fn a_consumer_without_a_limit_is_bounded_by_what_is_buffered_and_not_by_what_is_unsettled() {
        let mut merge = Merge::new(2, false);
        merge.attach(Side::Rabbit);
        for place in 0..100 {
            merge.received(Side::Rabbit, place, false, place);
            assert_eq!(merge.pop(), Some((Side::Rabbit, place)));
            merge.credit(1);
            assert_eq!(merge.grant(Side::Rabbit), 1);
        }
    }

    #[test]
    fn what_waits_is_passed_by_others_and_comes_in_order_when_it_is_released() {
        let mut merge = Merge::new(10, true);
        merge.attach(Side::Rabbit);
        merge.attach(Side::Nats);
        merge.received(Side::Nats, 0, true, "n0");
        merge.received(Side::Nats, 1, true, "n1");
        merge.received(Side::Rabbit, 2, false, "r2");
        assert_eq!(merge.pop(), Some((Side::Rabbit, "r2")));
        assert_eq!(merge.pop(), None);
        merge.release(|_, item| *item == "n1");
        assert_eq!(merge.pop(), Some((Side::Nats, "n0")));
        assert_eq!(merge.held(), 1);
        merge.release(|_, _| false);
        assert_eq!(merge.pop(), Some((Side::Nats, "n1")));
    }

    #[test]
    fn what_comes_again_goes_before_what_came_after_it() {
        let mut merge = Merge::new(10, true);
        merge.attach(Side::Rabbit);
        merge.received(Side::Rabbit, 6, false, 6);
        merge.received(Side::Nats, 3, false, 3);
        merge.received(Side::Rabbit, 7, false, 7);
        merge.received(Side::Rabbit, 5, false, 5);
        let order: Vec<_> = std::iter::from_fn(|| merge.pop()).map(|(_, n)| n).collect();
        assert_eq!(order, [5, 6, 3, 7]);
    }
}
