//! One rule of the order keeper at a time.

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

fn half() -> Weight {
    Weight::from_buckets(5_000).expect("at most 10 000")
}

fn queue() -> QueueName {
    QueueName { vhost: "/".into(), queue: "q".into() }
}

/// A bucket that NATS owns at 50 %.
fn moved() -> Bucket {
    (0u8..=255).map(|n| Bucket::of(1, &[n])).find(|b| b.owner(half()) == Side::Nats).expect("one of 256")
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fence(actions: &[Action]) -> FenceId {
    match actions {
        [Action::PublishFence { fence, .. }] => *fence,
        other => panic!("one fence expected: {other:?}"),
    }
}

fn lifted(actions: &[Action]) -> Option<bool> {
    match actions {
        [Action::Lifted { timed_out, .. }] => Some(*timed_out),
        _ => None,
    }
}

/// A queue with one message of RabbitMQ's delivered, just moved to 50 %.
fn keeper() -> (Fences, FenceId) {
    let mut fences = Fences::new(7, 1, Weight::NONE, LIMIT);
    fences.register(&queue(), at(0));
    fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(1), moved(), 1, at(0));
    let fence = fence(&fences.begin(2, half()));
    fences.fence_stored(&queue(), fence);
    (fences, fence)
}

fn waits(fences: &mut Fences, now: Duration) -> bool {
    fences.must_wait(&queue(), Side::Nats, moved(), 2, now)
}

#[test]
fn a_fence_is_published_only_when_the_older_publishes_of_the_losing_side_are_confirmed() {
    let mut fences = Fences::new(7, 1, Weight::NONE, LIMIT);
    fences.register(&queue(), at(0));
    let old = fences.publish(moved());
    assert_eq!(fences.begin(2, half()), []);
    assert!(!fences.can_begin());
    let new = fences.publish(moved());
    assert_eq!((old.owner, new.owner), (Side::Rabbit, Side::Nats));
    assert_eq!(fences.published(new), []);
    let fence = fence(&fences.published(old));
    assert!(fences.can_begin() && fences.awaits(&queue(), fence) && !fences.all_stored());
    fences.fence_stored(&queue(), fence);
    assert!(fences.all_stored());
}

#[test]
fn a_requeue_keeps_a_hold_and_an_ack_lifts_it() {
    let (mut fences, fence) = keeper();
    assert!(waits(&mut fences, at(0)));
    assert_eq!(fences.fence_out(&queue(), fence, at(0)), []);
    assert_eq!(fences.requeued(&queue(), Side::Rabbit, MessageKey::Stamped(1), at(1)), []);
    fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(1), moved(), 1, at(1));
    assert!(waits(&mut fences, at(1)));
    assert_eq!(lifted(&fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(1))), Some(false));
    assert!(!waits(&mut fences, at(1)));
    assert_eq!(fences.view(&queue()).expect("known").fence, FenceState::Passed);
}

#[test]
fn keys_that_did_not_move_and_older_epochs_and_the_losing_side_pass() {
    let (mut fences, _) = keeper();
    let stays = (0u8..=255).map(|n| Bucket::of(1, &[n])).find(|b| b.owner(half()) == Side::Rabbit).expect("one");
    assert!(!fences.must_wait(&queue(), Side::Nats, stays, 2, at(0)));
    assert!(!fences.must_wait(&queue(), Side::Nats, moved(), 1, at(0)));
    assert!(!fences.must_wait(&queue(), Side::Rabbit, moved(), 2, at(0)));
}

#[test]
fn the_time_limit_counts_from_the_first_delivery_that_waits() {
    let (mut fences, _) = keeper();
    assert_eq!(fences.tick(at(1000)), []);
    assert!(waits(&mut fences, at(1000)));
    assert_eq!(fences.tick(at(1029)), []);
    assert_eq!(lifted(&fences.tick(at(1030))), Some(true));
    assert!(!waits(&mut fences, at(1030)));
    assert_eq!(fences.view(&queue()).expect("known").fence, FenceState::TimedOut);
}

#[test]
fn a_fence_of_another_life_or_of_nobody_changes_nothing() {
    let (mut fences, _) = keeper();
    let stranger: FenceId = "00000000000000ff-1".parse().expect("a fence id");
    assert_eq!(fences.fence_out(&queue(), stranger, at(0)), []);
    assert!(waits(&mut fences, at(0)));
    let other = QueueName { vhost: "/".into(), queue: "other".into() };
    assert_eq!(fences.fence_out(&other, stranger, at(0)), []);
}

#[test]
fn a_purge_sends_the_fence_again_while_there_are_consumers_and_does_without_it_otherwise() {
    let (mut fences, first) = keeper();
    let again = fence(&fences.purged(&queue(), true));
    assert_ne!(first, again);
    assert!(waits(&mut fences, at(0)));
    assert_eq!(fences.purged(&queue(), false), []);
    assert_eq!(lifted(&fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(1))), Some(false));
}

#[test]
fn a_change_of_an_earlier_life_holds_the_queues_that_come_back_for_two_minutes() {
    let mut fences = Fences::new(8, 2, half(), LIMIT);
    fences.resume(vec![Shift { epoch: 2, from: Weight::NONE, to: half() }], at(0));
    fence(&fences.register(&queue(), at(10)));
    assert!(waits(&mut fences, at(10)));
    let late = QueueName { vhost: "/".into(), queue: "late".into() };
    assert_eq!(fences.register(&late, at(121)), []);
}

#[test]
fn all_changes_that_were_not_drained_are_taken_up_and_do_not_wait_for_each_other() {
    let shift = |epoch, from, to| Shift { epoch, from, to };
    let before = [shift(2, Weight::NONE, half()), shift(3, half(), Weight::NONE)];
    let mut fences = Fences::new(8, 3, Weight::NONE, LIMIT);
    fences.resume(before.to_vec(), at(0));
    fences.register(&queue(), at(0));
    assert_eq!(fences.open_shifts(at(1)), before);
    let mut receive =
        |side, number, epoch| fences.received(&queue(), side, MessageKey::Stamped(number), moved(), epoch, at(1));
    // NATS's of epoch 2 waits for RabbitMQ's of epoch 1, and RabbitMQ's of epoch 3 for NATS's: their new fences lie behind both.
    assert!(receive(Side::Nats, 1, 2).waits);
    let last = receive(Side::Rabbit, 2, 3);
    assert!(last.waits && last.lifts, "what was published after the next change shows that nothing older is left");
    assert!(!fences.must_wait(&queue(), Side::Nats, moved(), 2, at(1)));
    assert!(fences.must_wait(&queue(), Side::Rabbit, moved(), 3, at(1)));
    // A further change is kept with those that are not drained.
    fences.begin(4, half());
    assert_eq!(fences.open_shifts(at(1)), [before[1], shift(4, Weight::NONE, half())]);
}

#[test]
fn a_requeued_message_that_never_comes_back_is_not_waited_for_by_a_later_change() {
    let mut fences = Fences::new(7, 1, Weight::NONE, LIMIT);
    fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(1), moved(), 1, at(0));
    fences.requeued(&queue(), Side::Rabbit, MessageKey::Stamped(1), at(0));
    assert_eq!(fences.tick(at(2)), []);
    let fence = fence(&fences.begin(2, half()));
    assert_eq!(lifted(&fences.fence_out(&queue(), fence, at(0))), Some(false));
}

#[test]
fn what_went_back_long_ago_and_does_not_come_before_another_fence_is_gone() {
    let (mut fences, first) = keeper();
    assert!(waits(&mut fences, at(0)));
    fences.requeued(&queue(), Side::Rabbit, MessageKey::Stamped(1), at(1));
    assert_eq!(fences.fence_out(&queue(), first, at(1)), []);
    assert_eq!(fences.tick(at(10)), [], "its broker may yet put it back");
    let other = fence(&fences.tick(at(11)));
    assert_ne!(other, first);
    assert!(fences.can_begin() && fences.awaits_any(Side::Rabbit));
    assert_eq!(fences.tick(at(12)), [], "one at a time");
    fences.fence_stored(&queue(), other);
    assert_eq!(
        fences.returned(Side::Rabbit),
        [Action::PublishFence { queue: queue(), side: Side::Rabbit, fence: other }]
    );
    assert_eq!(lifted(&fences.fence_out(&queue(), other, at(13))), Some(false));
    assert!(!waits(&mut fences, at(13)));
}

#[test]
fn what_comes_before_the_other_fence_or_went_back_again_since_is_not_gone() {
    let (mut fences, first) = keeper();
    fences.requeued(&queue(), Side::Rabbit, MessageKey::Stamped(1), at(1));
    fences.fence_out(&queue(), first, at(1));
    let other = fence(&fences.tick(at(20)));
    // It lay there for want of a consumer.
    fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(1), moved(), 1, at(30));
    assert_eq!(fences.fence_out(&queue(), other, at(30)), []);
    assert_eq!(fences.tick(at(50)), []);
    fences.requeued(&queue(), Side::Rabbit, MessageKey::Stamped(1), at(50));
    let other = fence(&fences.tick(at(60)));
    fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(1), moved(), 1, at(61));
    fences.requeued(&queue(), Side::Rabbit, MessageKey::Stamped(1), at(61));
    assert_eq!(fences.fence_out(&queue(), other, at(61)), []);
    assert!(waits(&mut fences, at(61)));
    assert_eq!(lifted(&fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(1))), Some(false));
}

#[test]
fn what_comes_and_ends_before_the_other_fence_does_not_wait_for_that() {
    let (mut fences, first) = keeper();
    assert!(waits(&mut fences, at(0)));
    fences.requeued(&queue(), Side::Rabbit, MessageKey::Stamped(1), at(1));
    fences.fence_out(&queue(), first, at(1));
    let other = fence(&fences.tick(at(20)));
    fences.fence_stored(&queue(), other);
    // The other one lies behind what the next change holds back.
    fences.begin(3, Weight::NONE);
    fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(1), moved(), 1, at(21));
    assert_eq!(lifted(&fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(1))), Some(false));
    assert!(!fences.awaits(&queue(), other) && !waits(&mut fences, at(21)));
}

#[test]
fn what_went_back_long_ago_and_does_not_come_before_something_younger_is_gone() {
    let (mut fences, first) = keeper();
    fences.requeued(&queue(), Side::Rabbit, MessageKey::Stamped(1), at(1));
    fences.fence_out(&queue(), first, at(1));
    let mut receive = |number, epoch, now| {
        fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(number), moved(), epoch, at(now)).lifts
    };
    assert!(!receive(2, 2, 10), "its broker may yet put it back");
    assert!(!receive(3, 1, 11), "as old as it is");
    fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(3));
    let received = fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(4), moved(), 2, at(11));
    assert!(received.lifts && !waits(&mut fences, at(11)));
}

#[test]
fn jetstream_gives_out_again_only_after_its_wait_for_acks() {
    let mut fences = Fences::new(7, 1, half(), LIMIT);
    fences.received(&queue(), Side::Nats, MessageKey::Stamped(1), moved(), 1, at(0));
    let first = fence(&fences.begin(2, Weight::NONE));
    fences.requeued(&queue(), Side::Nats, MessageKey::Stamped(1), at(0));
    fences.fence_out(&queue(), first, at(0));
    assert_eq!(fences.tick(at(34)), []);
    fence(&fences.tick(at(35)));
}

#[test]
fn a_fence_that_expired_and_comes_as_a_dead_letter_is_not_waited_for() {
    let (mut fences, fence) = keeper();
    let dead = QueueName { vhost: "/".into(), queue: "dead".into() };
    assert_eq!(fences.fence_out(&dead, fence, at(0)), []);
    assert!(waits(&mut fences, at(1)), "what was delivered before may be on its way");
    assert_eq!(fences.tick(at(1)), []);
    fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(2), moved(), 1, at(1));
    assert_eq!(fences.tick(at(2)), []);
    assert!(waits(&mut fences, at(2)));
    assert_eq!(fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(1)), []);
    assert_eq!(lifted(&fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(2))), Some(false));
    assert!(!waits(&mut fences, at(2)));
}

#[test]
fn a_delivery_from_after_the_next_change_does_instead_of_a_fence() {
    let (mut fences, _) = keeper();
    fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(1));
    // All back to RabbitMQ, whose fence of before is somewhere.
    fences.begin(3, Weight::NONE);
    assert!(waits(&mut fences, at(0)));
    let received = fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(2), moved(), 3, at(0));
    assert!(received.lifts && !waits(&mut fences, at(0)));

    // Nor is one waited for that is still to be stored: all that it is to be behind is in the queue.
    let mut fences = Fences::new(7, 1, Weight::NONE, LIMIT);
    fences.register(&queue(), at(0));
    fence(&fences.begin(2, half()));
    fences.begin(3, Weight::NONE);
    let received = fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(2), moved(), 3, at(0));
    assert!(received.lifts && !waits(&mut fences, at(0)));

    // Not so while that is still to be confirmed: it may lie behind.
    let mut fences = Fences::new(7, 1, Weight::NONE, LIMIT);
    fences.register(&queue(), at(0));
    fences.publish(moved());
    assert_eq!(fences.begin(2, half()), []);
    assert!(!fences.can_begin());
    fences.begin(3, Weight::NONE);
    let received = fences.received(&queue(), Side::Rabbit, MessageKey::Stamped(2), moved(), 3, at(0));
    assert!(!received.lifts && waits(&mut fences, at(0)));
}

fn again(fence: FenceId) -> [Action; 1] {
    [Action::PublishFence { queue: queue(), side: Side::Rabbit, fence }]
}

#[test]
fn a_fence_that_a_broker_may_have_lost_is_published_once_more_for_each_return_of_its_side() {
    let (mut fences, fence) = keeper();
    assert_eq!(fences.returned(Side::Nats), []);
    assert!(fences.awaits_any(Side::Rabbit) && !fences.awaits_any(Side::Nats));
    assert_eq!(fences.returned(Side::Rabbit), again(fence));
    // A change does not wait for it: what it holds back shows that the first one is past, too.
    assert!(fences.can_begin() && fences.awaits(&queue(), fence) && fences.awaits_any(Side::Rabbit));
    assert_eq!(fences.view(&queue()).expect("known").fences, [1, 0]);
    assert_eq!(fences.returned(Side::Rabbit), [], "it is on its way");
    fences.fence_stored(&queue(), fence);
    assert_eq!(fences.returned(Side::Rabbit), again(fence), "and was stored, and may be lost again");
    assert!(waits(&mut fences, at(0)));
    assert_eq!(fences.fence_out(&queue(), fence, at(0)), []);
    // Out: it is not needed once more, and a second one that was not lost changes nothing, however late it is known to be stored.
    assert_eq!(fences.returned(Side::Rabbit), []);
    fences.fence_stored(&queue(), fence);
    assert_eq!(fences.fence_out(&queue(), fence, at(0)), []);
    assert!(waits(&mut fences, at(0)));
    assert_eq!(lifted(&fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(1))), Some(false));
    assert_eq!(fences.returned(Side::Rabbit), []);
}

#[test]
fn a_fence_that_is_not_stored_yet_is_not_asked_for_twice() {
    let mut fences = Fences::new(7, 1, Weight::NONE, LIMIT);
    fences.register(&queue(), at(0));
    let old = fences.publish(moved());
    fences.begin(2, half());
    assert_eq!(fences.returned(Side::Rabbit), [], "it waits for a publish");
    let first = fence(&fences.published(old));
    assert_eq!(fences.returned(Side::Rabbit), [], "it is published until it is stored");
    fences.fence_stored(&queue(), first);
    assert_eq!(fences.returned(Side::Rabbit), again(first));
}

#[test]
fn a_dead_letter_of_either_of_two_fences_counts_and_a_purge_and_an_empty_queue_do_without_both() {
    let dead = QueueName { vhost: "/".into(), queue: "dead".into() };
    let (mut fences, lost) = keeper();
    fences.returned(Side::Rabbit);
    fences.fence_out(&dead, lost, at(0));
    assert_eq!(fences.returned(Side::Rabbit), []);
    assert_eq!(fences.fence_out(&queue(), lost, at(0)), []);
    fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(1));
    assert_eq!(fences.tick(at(1)), []);
    assert_eq!(lifted(&fences.tick(at(2))), Some(false));

    let (mut fences, first) = keeper();
    fences.returned(Side::Rabbit);
    let other = fence(&fences.purged(&queue(), true));
    assert!(!fences.awaits(&queue(), first) && fences.awaits(&queue(), other));

    let (mut fences, first) = keeper();
    fences.returned(Side::Rabbit);
    fences.settled(&queue(), Side::Rabbit, MessageKey::Stamped(1));
    assert_eq!(lifted(&fences.passed(&queue(), first, at(0))), Some(false));
}
