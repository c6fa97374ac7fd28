//! Copies that nobody waits for, held back for a moment: most messages are settled before their copies would be stored, and need none. Pure.
//!
//! In `shadow` no confirm waits for a copy, so that a copy may be made later. Where consumers keep up, this spares JetStream a write, a read
//! and a removal of nearly every message. What is held is lost with the sidecar's process, as what is on its way to the keeper is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amqp_compat::backend::Message;

use super::UnderWay;
use super::store::{self, Keep};
use crate::dual::stamp;

/// A message of one queue whose copy is not made yet.
#[derive(Clone)]
pub(super) struct Fresh {
    pub epoch: u64,
    /// Without stamp; the same for all queues that it is in.
    pub message: Arc<Message>,
    pub waiter: Arc<UnderWay>,
}

/// What is held back of one vhost.
#[derive(Default)]
pub(super) struct Held {
    /// Ids grow, so that the oldest is first.
    fresh: BTreeMap<(u128, Arc<str>), (Instant, Fresh)>,
    bytes: usize,
    /// Whether somebody looks after it.
    looked_after: bool,
}

impl Held {
    /// How long a copy is held back.
    pub(super) const HOLD: Duration = Duration::from_millis(100);
    /// How much of bodies is held back; the oldest are let go of beyond it.
    pub(super) const BYTES_MOST: usize = 16 << 20;

    /// Holds one back; whether [`Held::due`] is to be asked now, and then every while until it is empty.
    pub(super) fn hold(&mut self, queue: Arc<str>, id: u128, fresh: Fresh, now: Instant) -> bool {
        self.bytes += weight(&fresh);
        if let Some((_, former)) = self.fresh.insert((id, queue), (now, fresh)) {
            self.bytes -= weight(&former);
        }
        !std::mem::replace(&mut self.looked_after, true) || self.bytes > Self::BYTES_MOST
    }

    /// A message needs no copy any more: whether its copy was held back, and is not made at all.
    pub(super) fn settled(&mut self, queue: &Arc<str>, id: u128) -> bool {
        let held = self.fresh.remove(&(id, Arc::clone(queue)));
        if let Some((_, fresh)) = &held {
            self.bytes -= weight(fresh);
        }
        held.is_some()
    }

    /// All of a queue with ids below `before` need none any more.
    pub(super) fn over(&mut self, queue: &str, before: u128) {
        let bytes = &mut self.bytes;
        self.fresh.retain(|(id, of), (_, fresh)| {
            let stays = **of != *queue || *id >= before;
            if !stays {
                *bytes -= weight(fresh);
            }
            stays
        });
    }

    /// The copies to make now. When nothing is held after it, it need not be asked until [`Held::hold`] says so.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Keep> {
        let mut due = Vec::new();
        while let Some(first) = self.fresh.first_entry()
            && (self.bytes > Self::BYTES_MOST || first.get().0 + Self::HOLD <= now)
        {
            let ((id, queue), (_, fresh)) = first.remove_entry();
            self.bytes -= weight(&fresh);
            due.push(made(queue, id, fresh));
        }
        self.looked_after = !self.fresh.is_empty();
        due
    }

    /// All of them, to be made now.
    pub(super) fn all(&mut self) -> Vec<Keep> {
        (self.bytes, self.looked_after) = (0, false);
        std::mem::take(&mut self.fresh).into_iter().map(|((id, queue), (_, fresh))| made(queue, id, fresh)).collect()
    }

    /// Whose copies of a queue are held back.
    pub(super) fn of(&self, queue: &str) -> impl Iterator<Item = u128> {
        self.fresh.keys().filter(move |(_, of)| **of == *queue).map(|(id, _)| *id)
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len()
    }
}

fn weight(fresh: &Fresh) -> usize {
    fresh.message.body.len()
}

fn made(queue: Arc<str>, id: u128, Fresh { epoch, message, waiter }: Fresh) -> Keep {
    let message = stamp::copy(&message, id, epoch, &store::name(&queue));
    Keep { queue, id, message, waiter }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use amq_protocol::protocol::basic::AMQPProperties;
    use proptest::prelude::*;

    use super::super::Waits;
    use super::*;

    fn fresh(ahead: &Arc<AtomicUsize>, size: usize) -> Fresh {
        let message = Message {
            exchange: "orders".into(),
            routing_key: "order.1".into(),
            properties: AMQPProperties::default(),
            body: vec![0; size].into(),
        };
        Fresh { epoch: 1, message: Arc::new(message), waiter: Arc::new(UnderWay::new(Waits::None, Arc::clone(ahead))) }
    }

    fn ids(due: &[Keep]) -> Vec<u128> {
        due.iter().map(|keep| keep.id).collect()
    }

    #[test]
    fn a_copy_is_made_when_it_is_due_and_not_at_all_when_its_message_is_settled() {
        let (mut held, ahead, now) = (Held::default(), Arc::default(), Instant::now());
        let queue: Arc<str> = "billing".into();
        assert!(held.hold(Arc::clone(&queue), 1, fresh(&ahead, 5), now));
        assert!(!held.hold(Arc::clone(&queue), 2, fresh(&ahead, 5), now));
        assert_eq!(ahead.load(std::sync::atomic::Ordering::Acquire), 2);
        assert!(held.settled(&queue, 1) && !held.settled(&queue, 1) && !held.settled(&"other".into(), 2));
        assert_eq!(ahead.load(std::sync::atomic::Ordering::Acquire), 1);
        assert!(held.due(now + Held::HOLD / 2).is_empty());
        let due = held.due(now + Held::HOLD);
        assert_eq!(ids(&due), [2]);
        assert_eq!(due[0].message.routing_key.as_str(), store::name(&queue));
        assert!(!held.settled(&queue, 2));
        assert!(held.hold(queue, 3, fresh(&ahead, 5), now), "nobody looks after it any more");
    }

    #[test]
    fn the_oldest_go_at_once_beyond_the_bound() {
        let (mut held, ahead, now) = (Held::default(), Arc::default(), Instant::now());
        let half = Held::BYTES_MOST / 2;
        held.hold("a".into(), 1, fresh(&ahead, half), now);
        assert!(!held.hold("a".into(), 2, fresh(&ahead, half), now));
        assert!(held.hold("a".into(), 3, fresh(&ahead, 1), now));
        assert_eq!(ids(&held.due(now)), [1]);
        assert_eq!(held.of("a").collect::<Vec<_>>(), [2, 3]);
        held.over("a", 3);
        assert_eq!(ids(&held.all()), [3]);
        assert_eq!((held.bytes, held.len()), (0, 0));
    }

    proptest! {
        /// Whatever happens, each message is settled, over, or its copy is made, once; and the bytes are those that are held.
        #[test]
        fn nothing_that_is_held_is_forgotten(steps in proptest::collection::vec((0u8..5, 0u128..40, 0usize..3), 1..200)) {
            let (mut held, ahead, mut now) = (Held::default(), Arc::default(), Instant::now());
            let queues: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
            let mut open = std::collections::BTreeSet::new();
            let mut next = 0;
            for (what, number, of) in steps {
                let queue = &queues[of];
                match what {
                    0 | 1 => {
                        next += 1;
                        held.hold(Arc::clone(queue), next, fresh(&ahead, number as usize), now);
                        open.insert((next, Arc::clone(queue)));
                    }
                    2 => {
                        let id = next.saturating_sub(number);
                        prop_assert_eq!(held.settled(queue, id), open.remove(&(id, Arc::clone(queue))));
                    }
                    3 => {
                        let before = next.saturating_sub(number);
                        held.over(queue, before);
                        open.retain(|(id, of)| of != queue || *id >= before);
                    }
                    _ => {
                        now += Held::HOLD / 3;
                        for keep in held.due(now) {
                            prop_assert!(open.remove(&(keep.id, keep.queue)), "made twice, or after its end");
                        }
                    }
                }
                prop_assert_eq!(held.len(), open.len());
                prop_assert_eq!(held.bytes, held.fresh.values().map(|(_, fresh)| weight(fresh)).sum::<usize>());
            }
            for keep in held.due(now + Held::HOLD) {
                prop_assert!(open.remove(&(keep.id, keep.queue)));
            }
            prop_assert!(open.is_empty());
        }
    }
}
