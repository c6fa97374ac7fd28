use proptest::prelude::*;

use super::*;

fn queue(key: Option<&str>) -> QueueArguments {
    QueueArguments {
        dead_letter_exchange: Some("dlx".into()),
        dead_letter_routing_key: key.map(str::to_owned),
        ..Default::default()
    }
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    FieldTable::from(entries.iter().map(|(name, value)| ((*name).into(), value.clone())).collect::<Entry>())
}

fn array(values: Vec<AMQPValue>) -> AMQPValue {
    AMQPValue::FieldArray(values.into())
}

fn message(headers: Option<FieldTable>) -> Message {
    let mut properties = AMQPProperties::default();
    if let Some(headers) = headers {
        properties = properties.with_headers(headers);
    }
    Message { exchange: "x".into(), routing_key: "k".into(), properties, body: "body".into() }
}

fn die(message: Message, queue_name: &str, reason: Reason) -> Message {
    let death = Death { queue: queue_name, reason, at: 7 };
    DeadLetter::new(message, Vec::new(), &queue(None), death).expect("it has an exchange").message
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a AMQPValue> {
    message.properties.headers().as_ref()?.inner().get(name)
}

/// Queue, reason and count of each entry.
fn deaths(message: &Message) -> Vec<(String, String, i64)> {
    let Some(AMQPValue::FieldArray(deaths)) = header(message, X_DEATH) else { return Vec::new() };
    let read = |death: &AMQPValue| {
        let AMQPValue::FieldTable(table) = death else { panic!("a table, not {death:?}") };
        let name = |name| field(death, name).unwrap_or_default().to_owned();
        (name("queue"), name("reason"), integer(&table.inner()["count"]).expect("a count"))
    };
    deaths.as_slice().iter().map(read).collect()
}

#[test]
fn a_first_death_is_told_in_full() {
    let properties = AMQPProperties::default()
        .with_expiration("100".into())
        .with_message_id("m".into())
        .with_priority(3)
        .with_delivery_mode(2)
        .with_timestamp(9)
        .with_headers(table(&[("CC", array(vec![long("c")])), ("mine", AMQPValue::Boolean(true))]));
    let dead = die(Message { properties, ..message(None) }, "q", Reason::Expired);
    assert_eq!((dead.exchange.as_str(), dead.routing_key.as_str(), &dead.body[..]), ("dlx", "k", &b"body"[..]));
    let entry = table(&[
        ("count", AMQPValue::LongLongInt(1)),
        ("reason", long("expired")),
        ("queue", long("q")),
        ("time", AMQPValue::Timestamp(7)),
        ("exchange", long("x")),
        ("routing-keys", array(vec![long("k"), long("c")])),
        ("original-expiration", long("100")),
    ]);
    let expected = AMQPProperties::default()
        .with_message_id("m".into())
        .with_priority(3)
        .with_delivery_mode(2)
        .with_timestamp(9)
        .with_headers(table(&[
            ("CC", array(vec![long("c")])),
            ("mine", AMQPValue::Boolean(true)),
            (X_DEATH, array(vec![AMQPValue::FieldTable(entry)])),
            ("x-first-death-reason", long("expired")),
            ("x-first-death-queue", long("q")),
            ("x-first-death-exchange", long("x")),
        ]));
    assert_eq!(dead.properties, expected);
}

#[test]
fn deaths_are_counted_by_queue_and_reason_and_the_newest_comes_first_the_others_turned_round() {
    let mut message = message(None);
    for (name, reason) in [("q", Reason::Expired), ("d", Reason::Rejected), ("q", Reason::Rejected)] {
        message = die(message, name, reason);
    }
    message = die(message, "d", Reason::Rejected);
    let expected = [("d", "rejected", 2), ("q", "expired", 1), ("q", "rejected", 1)];
    assert_eq!(deaths(&message), expected.map(|(q, r, n)| (q.to_owned(), r.to_owned(), n)));
    assert_eq!(header(&message, "x-first-death-queue"), Some(&long("q")));
    assert_eq!(header(&message, "x-first-death-reason"), Some(&long("expired")));
}

#[test]
fn what_a_client_put_in_its_place_is_replaced_or_mended_as_rabbitmq_does() {
    let die_with = |value: AMQPValue| die(message(Some(table(&[(X_DEATH, value)]))), "q", Reason::Rejected);
    for no_list in [long("text"), AMQPValue::Void, array(Vec::new())] {
        let dead = die_with(no_list);
        assert_eq!(deaths(&dead), [("q".to_owned(), "rejected".to_owned(), 1)]);
        assert_eq!(header(&dead, "x-first-death-queue"), None);
    }
    let one = |queue: &str, reason: &str, count: Option<i64>| {
        let mut one = table(&[("queue", long(queue)), ("reason", long(reason))]);
        if let Some(count) = count {
            one.insert("count".into(), AMQPValue::LongLongInt(count));
        }
        AMQPValue::FieldTable(one)
    };
    // Each line was seen on a RabbitMQ 3.10.
    for (given, expected) in [
        (vec![("a", None), ("a", None), ("a", None), ("b", None)], vec![("b", 1), ("a", 3)]),
        (vec![("a", Some(4)), ("a", Some(5)), ("b", Some(6))], vec![("b", 6), ("a", 4)]),
        (vec![("a", None), ("a", Some(5)), ("b", Some(6))], vec![("b", 6), ("a", 2)]),
        (vec![("b", Some(1)), ("c", Some(1)), ("e", Some(1))], vec![("e", 1), ("c", 1), ("b", 1)]),
    ] {
        let given = given.into_iter().map(|(queue, count)| one(queue, "expired", count)).collect();
        let expected = expected.into_iter().map(|(queue, count)| (queue.to_owned(), "expired".to_owned(), count));
        let all: Vec<_> = std::iter::once(("q".to_owned(), "rejected".to_owned(), 1)).chain(expected).collect();
        assert_eq!(deaths(&die_with(array(given))), all);
    }
    for (given, count) in [(vec![None], 2), (vec![None, None, None], 4), (vec![Some(3)], 4), (vec![Some(-5)], -4)] {
        let given = given.into_iter().map(|count| one("q", "rejected", count)).collect();
        assert_eq!(deaths(&die_with(array(given))), [("q".to_owned(), "rejected".to_owned(), count)]);
    }
}

#[test]
fn a_new_routing_key_takes_the_place_of_all_others() {
    let headers = table(&[("CC", array(vec![long("c")]))]);
    let death = Death { queue: "q", reason: Reason::Rejected, at: 7 };
    let bcc = vec![ShortString::from("b")];
    let kept = DeadLetter::new(message(Some(headers.clone())), bcc.clone(), &queue(None), death).expect("dead");
    assert_eq!(kept.keys().as_slice(), ["k", "c", "b"]);
    assert!(header(&kept.message, "CC").is_some());
    let renamed = DeadLetter::new(message(Some(headers)), bcc, &queue(Some("new")), death).expect("dead");
    assert_eq!(renamed.keys().as_slice(), ["new"]);
    assert_eq!(header(&renamed.message, "CC"), None);
    assert_eq!(DeadLetter::new(message(None), Vec::new(), &QueueArguments::default(), death), None);
}

#[test]
fn bcc_is_taken_off_and_given_back() {
    let properties = message(Some(table(&[("BCC", array(vec![long("b"), AMQPValue::Void])), ("CC", array(vec![]))])));
    let (rest, keys) = split_bcc(&properties.properties).expect("it has BCC");
    assert_eq!(keys, [ShortString::from("b")]);
    assert_eq!(rest.headers().as_ref().map(|h| h.inner().len()), Some(1));
    assert_eq!(split_bcc(&rest), None);
}

#[test]
fn a_cycle_that_nobody_rejected_in_is_one() {
    let death = Death { queue: "q", reason: Reason::Expired, at: 7 };
    let dead = |message: Message, reason| {
        DeadLetter::new(message, Vec::new(), &queue(None), Death { reason, ..death }).expect("dead")
    };
    let once = dead(message(None), Reason::Expired);
    assert!(once.is_cycle("q", Reason::Expired));
    assert!(!once.is_cycle("other", Reason::Expired));
    assert!(!once.is_cycle("q", Reason::Rejected));
    let rejected = die(message(None), "d", Reason::Rejected);
    let twice = dead(rejected, Reason::Expired);
    assert!(twice.is_cycle("q", Reason::Expired), "the rejection is older than the last time in q");
    assert!(!twice.is_cycle("d", Reason::Expired));
    let forged = array(vec![AMQPValue::FieldTable(table(&[("queue", long("d"))])), AMQPValue::Boolean(true)]);
    let forged = dead(message(Some(table(&[(X_DEATH, forged)]))), Reason::Expired);
    assert!(!forged.is_cycle("d", Reason::Expired));
}

fn reason() -> impl Strategy<Value = Reason> {
    prop_oneof![Just(Reason::Rejected), Just(Reason::Expired), Just(Reason::MaxLength), Just(Reason::DeliveryLimit)]
}

proptest! {
    /// Against the plain meaning: a list of pairs, where the pair that dies moves to the front and the rest turns round.
    #[test]
    fn the_list_is_each_queue_and_reason_once_with_its_count(lives in prop::collection::vec((0u8..3, reason()), 1..40)) {
        let mut message = message(None);
        let mut expected: Vec<(String, String, i64)> = Vec::new();
        for (name, reason) in &lives {
            let name = format!("q{name}");
            message = die(message, &name, *reason);
            let at = expected.iter().position(|(q, r, _)| *q == name && r == reason.name());
            let count = at.map_or(0, |at| expected.remove(at).2);
            expected.reverse();
            expected.insert(0, (name, reason.name().to_owned(), count + 1));
        }
        prop_assert_eq!(deaths(&message), expected);
        let first = &lives[0];
        prop_assert_eq!(header(&message, "x-first-death-queue"), Some(&long(&format!("q{}", first.0))));
        prop_assert_eq!(header(&message, "x-first-death-reason"), Some(&long(first.1.name())));
    }

    /// A message that goes round without being rejected is stopped the first time that it would enter a queue again.
    #[test]
    fn without_a_rejection_no_queue_is_entered_twice(order in prop::collection::vec(0u8..4, 1..20)) {
        let mut message = message(None);
        let mut seen = Vec::new();
        for name in order {
            let name = format!("q{name}");
            let dead = DeadLetter { message: message.clone(), bcc: Vec::new() };
            prop_assert_eq!(dead.is_cycle(&name, Reason::MaxLength), seen.contains(&name));
            if !seen.contains(&name) {
                message = die(message, &name, Reason::MaxLength);
                seen.push(name);
            }
        }
    }
}
