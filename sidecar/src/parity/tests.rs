use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const A: Digest = Digest { payload: 1, properties: 1, routing: 1 };
const OTHER_PAYLOAD: Digest = Digest { payload: 2, properties: 2, routing: 2 };
const OTHER_PROPERTIES: Digest = Digest { properties: 2, ..A };
const OTHER_ROUTING: Digest = Digest { routing: 2, ..A };

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One queue, and what is counted on it.
struct One {
    parity: Parity,
    queue: QueueId,
}

impl One {
    fn new() -> Self {
        Self::with(Limits { unclaimed: s(10), entries: 1000, queues: 10, ..Limits::default() })
    }

    fn with(limits: Limits) -> Self {
        let mut parity = Parity::new(limits);
        let queue = parity.queue("/", "q");
        Self { parity, queue }
    }

    fn copy(&mut self, id: u128, digest: Digest, at: u64) -> &mut Self {
        self.parity.copy_stored(self.queue, id, digest, false, s(at));
        self
    }

    fn delivered(&mut self, id: u128, digest: Digest, at: u64) -> &mut Self {
        self.parity.delivered(self.queue, id, digest, false, s(at));
        self
    }

    fn redelivered(&mut self, id: u128, digest: Digest, at: u64) -> &mut Self {
        self.parity.delivered(self.queue, id, digest, true, s(at));
        self
    }

    /// Time passes, and every copy that was taken so far has been read back.
    fn tick(&mut self, at: u64) -> &mut Self {
        self.tick_behind(at, at)
    }

    /// Time passes, and only copies that were taken before `complete` have been read back.
    fn tick_behind(&mut self, at: u64, complete: u64) -> &mut Self {
        self.parity.tick(s(at), s(complete));
        self
    }

    fn empty(&mut self, at: u64) -> &mut Self {
        self.parity.emptied(self.queue, s(at));
        self
    }

    #[track_caller]
    fn check(&self, expected: ParityCounts) {
        assert_eq!(self.parity.queues[self.queue.0 as usize].counts, expected);
    }
}

fn none() -> ParityCounts {
    ParityCounts::default()
}

#[test]
fn a_copy_and_its_delivery_are_compared_in_whatever_order_they_come() {
    let mut one = One::new();
    one.copy(1, A, 0).delivered(1, A, 1).delivered(2, A, 1).copy(2, A, 2);
    one.check(ParityCounts { matched: 2, ..none() });
    one.copy(3, A, 2).delivered(3, OTHER_PAYLOAD, 2);
    one.copy(4, A, 2).delivered(4, OTHER_PROPERTIES, 2);
    one.delivered(5, OTHER_ROUTING, 2).copy(5, A, 2);
    let mismatched = ParityCounts { mismatched_payload: 1, mismatched_properties: 1, mismatched_routing: 1, ..none() };
    one.check(ParityCounts { matched: 2, ..mismatched });
    let samples = &one.parity.snapshot()[0].samples;
    assert_eq!(samples.len(), 3);
    assert_eq!(samples[0], ParitySample { class: ParityClass::MismatchedPayload, id: Ulid(3).to_string() });
}

#[test]
fn what_waits_is_pending_and_never_a_match() {
    let mut one = One::new();
    one.copy(1, A, 0).delivered(2, A, 0).tick(4);
    one.check(ParityCounts { pending: 2, ..none() });
}

#[test]
fn a_delivery_without_a_copy_is_missing_after_the_window_and_late_when_it_comes_nevertheless() {
    let mut one = One::new();
    one.delivered(1, A, 0).delivered(2, A, 0).tick(4);
    one.check(ParityCounts { pending: 2, ..none() });
    one.tick(5);
    one.check(ParityCounts { missing: 2, ..none() });
    one.copy(1, A, 20);
    one.check(ParityCounts { missing: 1, matched: 1, late: 1, ..none() });
    one.tick(65).copy(2, A, 70);
    one.check(ParityCounts { missing: 1, matched: 1, late: 1, ..none() });
    assert_eq!(one.parity.next_tick(), None);
}

#[test]
fn a_redelivery_is_not_compared_again() {
    let mut one = One::new();
    one.copy(1, A, 0).delivered(1, A, 0).redelivered(1, A, 1);
    one.check(ParityCounts { matched: 1, ..none() });
    one.parity.settled(one.queue, 1);
    assert!(one.parity.is_empty());
    // One of which the first time is not known cannot be judged.
    one.redelivered(2, A, 1).redelivered(2, A, 2).tick(100);
    one.check(ParityCounts { matched: 1, unverified: 1, ..none() });
}

#[test]
fn a_comparison_that_is_behind_is_waited_for_and_is_never_a_difference() {
    let mut one = One::new();
    // The copies lie in a queue that nobody has had time for.
    for id in 1..=100 {
        one.delivered(id, A, 10);
    }
    one.tick_behind(15, 9).tick_behind(16, 9).tick_behind(40, 9);
    one.check(ParityCounts { pending: 100, ..none() });
    for id in 1..=90 {
        one.copy(id, A, 41);
    }
    one.check(ParityCounts { matched: 90, late: 90, pending: 10, ..none() });
    // Nine more never come, and the comparison does not catch up: they are not compared.
    one.copy(91, A, 42).tick_behind(76, 9);
    one.check(ParityCounts { matched: 91, late: 91, unverified: 9, ..none() });
    assert_eq!(one.parity.snapshot()[0].unverified_by, [("not_read_back".to_owned(), 9)].into());
    // Had it caught up, one that is still not there would be missing.
    one.delivered(200, A, 80).tick_behind(85, 79).tick_behind(87, 80);
    one.check(ParityCounts { matched: 91, late: 91, unverified: 9, missing: 1, ..none() });
    // What comes after all takes it back.
    one.copy(200, A, 90).copy(92, A, 90);
    one.check(ParityCounts { matched: 92, late: 92, unverified: 9, ..none() });
}

#[test]
fn a_copy_that_an_emptied_queue_never_delivered_is_extra_until_it_is_delivered() {
    let mut one = One::new();
    one.copy(1, A, 0).copy(2, A, 8).empty(9).empty(9);
    one.check(ParityCounts { pending: 2, ..none() });
    one.empty(10);
    one.check(ParityCounts { pending: 2, ..none() });
    one.empty(12);
    one.check(ParityCounts { extra: 1, pending: 1, ..none() });
    one.delivered(1, A, 20);
    one.check(ParityCounts { matched: 1, late: 1, pending: 1, ..none() });
    one.parity.discarded(one.queue);
    one.check(ParityCounts { matched: 1, late: 1, unverified: 1, ..none() });
}

#[test]
fn a_copy_that_rabbitmq_may_have_dropped_is_not_extra() {
    let mut one = One::new();
    one.parity.copy_stored(one.queue, 1, A, true, s(0));
    one.empty(10).empty(20);
    one.check(ParityCounts { unverified: 1, ..none() });
    one.parity.loses(one.queue, true);
    one.copy(2, A, 20).empty(30).empty(40);
    one.check(ParityCounts { unverified: 2, ..none() });
}

#[test]
fn a_publish_that_failed_is_unverified_whichever_half_comes() {
    let mut one = One::new();
    one.copy(1, A, 0);
    for id in 1..=3 {
        one.parity.unverified(one.queue, id, Unverified::PublishFailed);
    }
    one.copy(2, A, 1).delivered(3, A, 1).tick(100).empty(200).empty(300);
    one.check(ParityCounts { unverified: 3, ..none() });
}

#[test]
fn what_has_no_copy_is_unverified_and_its_delivery_is_not_missing() {
    let mut one = One::new();
    one.parity.unverified(one.queue, 1, Unverified::CopyQueueFull);
    one.delivered(1, A, 0).delivered(2, A, 0);
    one.parity.unverified(one.queue, 2, Unverified::CopyFailed);
    one.tick(100);
    one.check(ParityCounts { unverified: 2, ..none() });
    let by: BTreeMap<String, u64> = [("copy_failed".to_owned(), 1), ("copy_queue_full".to_owned(), 1)].into();
    assert_eq!(one.parity.snapshot()[0].unverified_by, by);
}

#[test]
fn what_is_given_up_at_the_bound_is_unverified_and_its_other_half_is_not_counted() {
    let mut one = One::with(Limits { entries: 2, queues: 1, ..Limits::default() });
    one.copy(1, A, 0).copy(2, A, 0).copy(3, A, 0);
    assert_eq!(one.parity.len(), 2);
    one.check(ParityCounts { unverified: 1, pending: 2, ..none() });
    one.delivered(2, A, 1).delivered(3, A, 1);
    one.delivered(1, A, 1).tick(100);
    one.check(ParityCounts { matched: 2, unverified: 1, ..none() });
}

#[test]
fn queues_above_the_bound_share_a_name_and_are_unverified() {
    let mut one = One::with(Limits { queues: 1, ..Limits::default() });
    assert_eq!(one.parity.queue("/", "q"), one.queue);
    let more = one.parity.queue("/", "another");
    assert_eq!(one.parity.queue("v", "third"), more);
    one.parity.copy_stored(more, 1, A, false, s(0));
    one.parity.delivered(more, 1, A, false, s(0));
    let snapshot = one.parity.snapshot();
    assert_eq!(
        (snapshot[0].queue.as_str(), snapshot[0].counts.matched, snapshot[0].counts.unverified),
        ("(more)", 0, 2)
    );
    assert!(one.parity.is_empty());
}

#[test]
fn when_shadowing_ends_what_waits_is_unverified_and_forgotten() {
    let mut one = One::new();
    one.copy(1, A, 0).delivered(2, A, 0).copy(3, A, 0).delivered(3, A, 0);
    one.parity.stop();
    one.check(ParityCounts { matched: 1, unverified: 2, ..none() });
    assert!(one.parity.is_empty() && one.parity.next_tick().is_none());
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Copy(u8),
    WrongCopy(u8),
    Delivered(u8),
    Redelivered(u8),
    Settled(u8),
    Unverified(u8),
    Emptied,
    Pass(u8),
    PassBehind(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..40_u8;
    prop_oneof![
        4 => id.clone().prop_map(Step::Copy),
        1 => id.clone().prop_map(Step::WrongCopy),
        4 => id.clone().prop_map(Step::Delivered),
        1 => id.clone().prop_map(Step::Redelivered),
        2 => id.clone().prop_map(Step::Settled),
        1 => id.prop_map(Step::Unverified),
        1 => Just(Step::Emptied),
        2 => (0..4_u8).prop_map(Step::Pass),
        1 => (0..30_u8).prop_map(Step::PassBehind),
    ]
}

/// What really happened to one message.
#[derive(Debug, Default)]
struct Truth {
    copy: Option<Digest>,
    delivered: bool,
    settled: bool,
}

proptest! {
    #[test]
    fn a_match_was_compared_nothing_is_counted_twice_and_the_table_is_bounded(
        steps in proptest::collection::vec(step(), 0..400),
        entries in prop_oneof![Just(3_usize), Just(10), Just(1000)],
    ) {
        let mut one = One::with(Limits { grace: s(20), unclaimed: s(5), entries, queues: 1, ..Limits::default() });
        let mut truth: BTreeMap<u128, Truth> = BTreeMap::new();
        // Time begins at 1: what is complete up to 0 is nothing.
        let mut now = 1;
        let steps_are_behind = !steps.iter().any(|step| matches!(step, Step::Pass(_)));
        for step in steps {
            match step {
                // A message is copied once, and not after it was settled.
                Step::Copy(id) | Step::WrongCopy(id) => {
                    let digest = if matches!(step, Step::Copy(_)) { A } else { OTHER_PAYLOAD };
                    let known = truth.entry(id.into()).or_default();
                    if known.copy.is_none() && !known.settled {
                        known.copy = Some(digest);
                        one.copy(id.into(), digest, now);
                    }
                }
                Step::Delivered(id) => {
                    let known = truth.entry(id.into()).or_default();
                    if !known.settled {
                        let first = !known.delivered;
                        known.delivered = true;
                        if first { one.delivered(id.into(), A, now) } else { one.redelivered(id.into(), A, now) };
                    }
                }
                Step::Redelivered(id) => {
                    if truth.get(&id.into()).is_some_and(|known| known.delivered && !known.settled) {
                        one.redelivered(id.into(), A, now);
                    }
                }
                Step::Settled(id) => {
                    if let Some(known) = truth.get_mut(&id.into()).filter(|known| known.delivered) {
                        known.settled = true;
                        one.parity.settled(one.queue, id.into());
                    }
                }
                Step::Unverified(id) => one.parity.unverified(one.queue, id.into(), Unverified::CopyFailed),
                Step::Emptied => one.parity.emptied(one.queue, s(now)),
                Step::Pass(seconds) => {
                    now += u64::from(seconds);
                    one.tick(now);
                }
                Step::PassBehind(seconds) => {
                    now += u64::from(seconds);
                    one.tick_behind(now, 0);
                }
            }
            prop_assert!(one.parity.len() <= entries);
            prop_assert_eq!(one.parity.waiting.len() + one.parity.closed.len(), one.parity.entries.len());
        }
        let pending = one.parity.entries.values().filter(|entry| is_pending(entry.state)).count();
        let counts = one.parity.snapshot()[0].counts;
        prop_assert_eq!(counts.pending, pending as u64);
        let equal = truth.values().filter(|t| t.delivered && t.copy == Some(A)).count() as u64;
        let differ = truth.values().filter(|t| t.delivered && t.copy == Some(OTHER_PAYLOAD)).count() as u64;
        prop_assert!(counts.matched <= equal, "{} matches of {}", counts.matched, equal);
        prop_assert!(counts.mismatched_payload <= differ);
        if steps_are_behind {
            prop_assert_eq!(counts.missing, 0, "nothing is missing while the comparison is behind");
        }
        one.tick(now + 1000);
        one.parity.stop();
        prop_assert!(one.parity.is_empty());
        prop_assert_eq!(one.parity.deadlines.len(), 0);
    }
}
