use proptest::prelude::*;

use super::*;

const A: Digest = Digest { payload: 1, properties: 1, routing: 1 };
const B: Digest = Digest { properties: 2, ..A };

fn name(queue: &str) -> QueueName {
    QueueName { vhost: "/".into(), queue: queue.into() }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One queue that keeps all, with messages of one channel and routing key.
struct One(Integrity);

impl One {
    fn new() -> Self {
        Self::with(Limits { messages: 100, queues: 3, flows: 3, patience: s(30) })
    }

    fn with(limits: Limits) -> Self {
        let mut integrity = Integrity::new(limits);
        integrity.declared(&name("q"), true);
        Self(integrity)
    }

    fn stored(&mut self, ids: impl IntoIterator<Item = u128>) -> &mut Self {
        for id in ids {
            self.0.published(id, A, 7, &[name("q")], false);
            self.0.confirmed(id, true, s(0));
        }
        self
    }

    fn comes(&mut self, id: u128) -> &mut Self {
        self.seen(Seen { id, digest: A, redelivered: false, consumer: Some(1) })
    }

    fn again(&mut self, id: u128) -> &mut Self {
        self.seen(Seen { id, digest: A, redelivered: true, consumer: Some(1) })
    }

    fn seen(&mut self, seen: Seen) -> &mut Self {
        self.0.delivered(&name("q"), seen);
        self
    }

    fn empty(&mut self, at: u64) -> &mut Self {
        self.0.emptied(&name("q"), s(at));
        self
    }

    #[track_caller]
    fn check(&self, words: Option<&str>) {
        assert_eq!(self.0.faults().words().as_deref(), words, "{:?}", self.0.samples());
    }
}

#[test]
fn what_comes_as_it_was_published_once_and_in_order_is_no_fault() {
    let mut one = One::new();
    one.stored(1..=5).comes(1).comes(2).comes(3).comes(4).comes(5).empty(100).empty(200);
    one.check(None);
    assert_eq!(one.0.looked_at(), (5, 0));
    assert!(one.0.waiting().is_empty());
}

#[test]
fn another_payload_or_property_is_corrupted_however_often_it_was_delivered() {
    let mut one = One::new();
    one.stored(1..=2).seen(Seen { id: 1, digest: B, redelivered: false, consumer: None });
    one.check(Some("1 corrupted"));
    one.seen(Seen { id: 2, digest: B, redelivered: true, consumer: None });
    one.check(Some("2 corrupted"));
    assert_eq!(one.0.samples()[0], Sample { fault: "corrupted", queue: name("q"), id: Ulid(1).to_string() });
}

#[test]
fn a_second_delivery_is_a_fault_unless_it_says_that_it_is_one() {
    let mut one = One::new();
    one.stored(1..=2).comes(1).again(1).again(1);
    one.check(None);
    one.comes(1);
    one.check(Some("1 duplicated"));
    // Each queue has its own copy.
    one.0.published(9, A, 7, &[name("q"), name("r")], false);
    one.comes(9);
    one.0.delivered(&name("r"), Seen { id: 9, digest: A, redelivered: false, consumer: Some(1) });
    one.check(Some("1 duplicated"));
}

#[test]
fn order_is_judged_for_one_consumer_and_within_one_flow() {
    let mut one = One::new();
    one.stored(1..=4).comes(2).comes(1);
    one.check(Some("1 reordered"));
    // A redelivery may come late, and another flow has an order of its own.
    let mut one = One::new();
    one.stored(1..=4).comes(1).comes(3).again(2);
    one.0.published(5, A, 7, &[name("q")], false);
    one.0.published(6, A, 8, &[name("q")], false);
    one.comes(6).comes(5);
    one.check(None);
    // With another consumer beside it nobody can tell; with one after it, it begins anew.
    let mut one = One::new();
    one.stored(1..=4).comes(3);
    one.seen(Seen { id: 1, digest: A, redelivered: false, consumer: None });
    one.seen(Seen { id: 2, digest: A, redelivered: false, consumer: Some(2) });
    one.check(None);
}

#[test]
fn a_confirmed_message_is_dropped_when_its_queue_was_seen_empty_twice_after_a_while() {
    let mut one = One::new();
    one.stored(1..=3).comes(1).comes(3).empty(29);
    assert_eq!(one.0.waiting(), [name("q")]);
    one.empty(30);
    one.check(None);
    one.empty(31);
    one.check(Some("1 dropped"));
    one.empty(32).empty(33);
    one.check(Some("1 dropped"));
    // It comes nevertheless: it was late, and out of order.
    one.comes(2);
    one.check(Some("1 reordered"));
}

#[test]
fn what_may_go_by_itself_or_was_never_confirmed_is_not_dropped() {
    let mut one = One::new();
    one.0.published(1, A, 7, &[name("q")], true);
    one.0.confirmed(1, true, s(0));
    one.0.published(2, A, 7, &[name("q")], false);
    one.0.published(3, A, 7, &[name("q")], false);
    one.0.confirmed(3, false, s(0));
    one.stored(4..=4);
    one.0.discarded(&name("q"));
    one.0.declared(&name("limited"), false);
    one.0.published(5, A, 7, &[name("limited"), name("unknown")], false);
    one.0.confirmed(5, true, s(0));
    for at in [100, 200, 300] {
        one.empty(at);
        one.0.emptied(&name("limited"), s(at));
        one.0.emptied(&name("unknown"), s(at));
    }
    one.check(None);
    // Of unknown fate: it may have been stored twice, and late.
    one.comes(4).comes(3).comes(3);
    one.check(None);
}

#[test]
fn what_is_not_known_is_not_judged_and_all_is_bounded() {
    let mut one = One::with(Limits { messages: 2, queues: 1, flows: 1, patience: s(30) });
    one.stored(1..=4).comes(1).comes(2);
    one.check(None);
    assert_eq!(one.0.looked_at(), (0, 2));
    assert_eq!((one.0.messages.len(), one.0.ages.len(), one.0.queues[0].undelivered.len()), (2, 2, 2));
    one.0.delivered(&name("another"), Seen { id: 3, digest: B, redelivered: false, consumer: Some(1) });
    one.0.not_judged(&name("q"), 3);
    one.check(None);
    assert_eq!(one.0.looked_at(), (0, 4));
    for flow in 0..10 {
        one.0.published(10 + flow, A, flow as u64, &[name("q")], false);
        one.comes(10 + flow);
    }
    assert_eq!(one.0.queues[0].last.len(), 1);
}

/// Messages 1 to 9 of the queue, at ten times their number in its stream.
fn in_a_stream() -> One {
    let mut one = One::new();
    one.stored(1..=9);
    for id in 1..=9 {
        one.0.stored("/", "q", id, 10 * id as u64);
    }
    one
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

impl One {
    /// The stream has everything from `first` to `last`, but for `gone`.
    fn look(&mut self, first: u64, last: u64, gone: &[u64], at: u64) -> &mut Self {
        for asked in self.0.lookups(10) {
            self.0.looked_up(&asked, first, last, gone, ms(at));
        }
        self
    }
}

#[test]
fn a_stored_message_is_dropped_when_its_stream_has_lacked_it_for_a_while() {
    let mut one = in_a_stream();
    one.look(10, 90, &[30], 0).look(10, 90, &[30], 800);
    one.check(None);
    one.look(10, 90, &[30], 1_000);
    one.check(Some("1 dropped"));
    assert_eq!(one.0.samples(), [Sample { fault: "dropped", queue: name("q"), id: Ulid(3).to_string() }]);
    // Before the first and behind the last as well; and each is counted once.
    one.look(20, 80, &[30], 2_000).look(20, 80, &[30], 3_000).look(20, 80, &[30], 4_000).empty(100).empty(200);
    assert_eq!(one.0.faults().dropped, 9, "an empty queue lacks the others as well");
    let mut one = in_a_stream();
    one.look(20, 80, &[], 2_000).look(20, 80, &[], 3_000);
    one.check(Some("2 dropped"));
    // All of it: the stream is empty, and begins behind its last.
    one.look(91, 90, &[], 4_000).look(91, 90, &[], 5_000);
    one.check(Some("9 dropped"));
}

#[test]
fn what_was_delivered_discarded_or_is_there_after_all_is_not_missed_by_a_look() {
    let mut one = in_a_stream();
    one.comes(1).comes(2).look(40, 90, &[50], 0).comes(3).comes(5).look(60, 90, &[], 1_000);
    one.comes(4).look(60, 90, &[], 5_000);
    // A server that has just begun to lead did not know of the newest.
    one.look(60, 70, &[], 6_000).look(60, 90, &[], 7_000).look(60, 70, &[], 8_000);
    one.check(Some("1 reordered"));
    one.0.discarded(&name("q"));
    one.look(91, 90, &[], 9_000).look(91, 90, &[], 10_000);
    one.check(Some("1 reordered"));
    // What was stored after the question is not in the answer.
    one.stored(10..=10);
    one.0.stored("/", "q", 10, 100);
    let asked = one.0.lookups(10);
    one.stored(11..=11);
    one.0.stored("/", "q", 11, 110);
    for at in [20_000, 30_000] {
        asked.iter().for_each(|asked| one.0.looked_up(asked, 100, 100, &[], ms(at)));
    }
    one.check(Some("1 reordered"));
}

#[test]
fn what_may_go_by_itself_is_not_looked_up() {
    let mut one = One::new();
    one.0.published(1, A, 7, &[name("q")], true);
    one.0.declared(&name("limited"), false);
    one.0.published(2, A, 7, &[name("limited")], false);
    for (queue, id) in [("q", 1), ("limited", 2), ("unknown", 1), ("q", 99)] {
        one.0.stored("/", queue, id, 5);
    }
    assert_eq!(one.0.lookups(10), []);
    // Its limit came later.
    one.stored(3..=3);
    one.0.stored("/", "q", 3, 30);
    assert_eq!(one.0.lookups(10).len(), 1);
    one.0.declared(&name("q"), false);
    assert_eq!(one.0.lookups(10), []);
}

#[test]
fn queues_and_single_messages_take_turns_and_those_in_doubt_come_first() {
    let mut one = One(Integrity::new(Limits { queues: 5, ..Limits::default() }));
    let names: Vec<QueueName> = ["a", "b", "c", "d", "e"].map(name).into();
    for (at, name) in names.iter().enumerate() {
        one.0.declared(name, true);
        for n in 1..=40 {
            let id = (100 * at + n) as u128;
            one.0.published(id, A, 7, std::slice::from_ref(name), false);
            one.0.stored("/", &name.queue, id, n as u64);
        }
    }
    let asked = |one: &mut One| -> Vec<QueueName> { one.0.lookups(2).into_iter().map(|asked| asked.queue).collect() };
    assert_eq!([asked(&mut one), asked(&mut one)].concat(), names[..4]);
    assert_eq!(asked(&mut one), [name("e"), name("a")]);
    let doubt = Lookup { queue: name("d"), newest: 40, single: Vec::new() };
    one.0.looked_up(&doubt, 1, 40, &[40], ms(0));
    let next = one.0.lookups(2);
    assert_eq!((&next[0].queue, next[0].single.len(), next[0].single[0]), (&name("d"), 16, 40));
    assert_eq!(next[1].queue, name("b"));
    // All of a queue within a few looks.
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        seen.extend(one.0.lookups(5).into_iter().find(|asked| asked.queue == name("e")).expect("it waits").single);
    }
    assert_eq!(seen, (1..=40).collect());
}

#[derive(Debug, Clone, Copy)]
enum Deed {
    Publish,
    Deliver,
    Lose(usize),
    Look,
    Purge,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => Just(Deed::Publish),
        4 => Just(Deed::Deliver),
        1 => (0_usize..50).prop_map(Deed::Lose),
        4 => Just(Deed::Look),
        1 => Just(Deed::Purge),
    ]
}

proptest! {
    #[test]
    fn looks_find_exactly_what_was_lost(deeds in proptest::collection::vec(deed(), 0..200), partly in any::<bool>()) {
        let mut one = One::with(Limits { messages: 10_000, ..Limits::default() });
        // By sequence, as the server has it; and what was taken from it unseen.
        let mut stream: BTreeMap<u64, u128> = BTreeMap::new();
        let mut lost: BTreeSet<u64> = BTreeSet::new();
        let (mut next, mut now, mut dropped) = (1_u64, 0, 0);
        let mut look = |one: &mut One, stream: &BTreeMap<u64, u128>, next: u64| {
            now += 1_000;
            for asked in one.0.lookups(10) {
                let first = stream.keys().next().copied().unwrap_or(next);
                let among: Vec<u64> = if partly { asked.single.clone() } else { (first..next).collect() };
                let gone: Vec<u64> = among.into_iter().filter(|s| *s >= first && !stream.contains_key(s)).collect();
                one.0.looked_up(&asked, first, next - 1, &gone, ms(now));
            }
        };
        for deed in deeds {
            match deed {
                Deed::Publish => {
                    one.stored([u128::from(next)]);
                    one.0.stored("/", "q", u128::from(next), next);
                    stream.insert(next, u128::from(next));
                    next += 1;
                }
                Deed::Deliver => {
                    if let Some((_, id)) = stream.pop_first() {
                        one.comes(id);
                    }
                }
                Deed::Lose(nth) => {
                    if let Some(sequence) = stream.keys().nth(nth).copied() {
                        stream.remove(&sequence);
                        lost.insert(sequence);
                    }
                }
                Deed::Look => look(&mut one, &stream, next),
                Deed::Purge => {
                    // What was not noticed before is not waited for after it.
                    dropped = one.0.faults().dropped;
                    prop_assert!(dropped as usize <= lost.len());
                    stream.clear();
                    one.0.discarded(&name("q"));
                    lost = lost.into_iter().take(dropped as usize).collect();
                }
            }
        }
        // Every sequence has its turn, and a second look.
        for _ in 0..40 {
            look(&mut one, &stream, next);
        }
        prop_assert_eq!(one.0.faults().dropped, lost.len() as u64, "{}", dropped);
        let (checked, _) = one.0.looked_at();
        prop_assert_eq!(one.0.faults().counts().iter().sum::<u64>(), lost.len() as u64, "of {}", checked);
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Publish,
    Deliver,
    Requeue,
    Empty,
    Lose,
    Double,
    Swap,
    Spoil,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Publish),
        6 => Just(Step::Deliver),
        1 => Just(Step::Requeue),
        2 => Just(Step::Empty),
        1 => Just(Step::Lose),
        1 => Just(Step::Double),
        1 => Just(Step::Swap),
        1 => Just(Step::Spoil),
    ]
}

proptest! {
    #[test]
    fn exactly_what_was_done_to_messages_is_found(steps in proptest::collection::vec(step(), 0..200)) {
        let mut one = One::with(Limits { messages: 10_000, ..Limits::default() });
        let mut queue: VecDeque<(u128, bool)> = VecDeque::new();
        let (mut next, mut now, mut newest) = (1_u128, 0, 0_u128);
        let mut expected = Faults::default();
        for step in steps {
            now += 1;
            match step {
                Step::Publish => {
                    one.0.published(next, A, 7, &[name("q")], false);
                    one.0.confirmed(next, true, s(now));
                    queue.push_back((next, false));
                    next += 1;
                }
                Step::Deliver | Step::Double | Step::Spoil => {
                    let Some((id, redelivered)) = queue.pop_front() else { continue };
                    let digest = if matches!(step, Step::Spoil) { B } else { A };
                    one.seen(Seen { id, digest, redelivered, consumer: Some(1) });
                    expected.corrupted += u64::from(matches!(step, Step::Spoil));
                    expected.reordered += u64::from(!redelivered && id < newest);
                    if !redelivered {
                        newest = newest.max(id);
                    }
                    if matches!(step, Step::Double) {
                        one.comes(id);
                        expected.duplicated += 1;
                    }
                }
                Step::Requeue => {
                    let Some((id, redelivered)) = queue.pop_front() else { continue };
                    one.seen(Seen { id, digest: A, redelivered, consumer: Some(1) });
                    expected.reordered += u64::from(!redelivered && id < newest);
                    if !redelivered {
                        newest = newest.max(id);
                    }
                    queue.push_front((id, true));
                }
                Step::Swap => {
                    if queue.len() >= 2 && !queue[0].1 && !queue[1].1 {
                        queue.swap(0, 1);
                    }
                }
                Step::Lose => {
                    // One that was delivered before and is lost then is the application's.
                    if queue.front().is_some_and(|(_, redelivered)| !redelivered) && queue.pop_front().is_some() {
                        expected.dropped += 1;
                    }
                }
                Step::Empty => {
                    if queue.is_empty() {
                        one.empty(now);
                    }
                }
            }
        }
        prop_assert_eq!(Faults { dropped: 0, ..one.0.faults() }, Faults { dropped: 0, ..expected });
        while let Some((id, redelivered)) = queue.pop_front() {
            expected.reordered += u64::from(!redelivered && id < newest);
            newest = newest.max(id);
            one.seen(Seen { id, digest: A, redelivered, consumer: Some(1) });
        }
        one.empty(now + 1_000).empty(now + 2_000);
        prop_assert_eq!(one.0.faults(), expected);
    }
}
