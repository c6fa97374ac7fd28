use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use amqp_compat::backend::*;
use proptest::prelude::*;
use test_support::nats::NatsServer;

use crate::client::{Client, body, queue, table, text};
use crate::{backend, backend_with, one_lease};

fn limited(name: &str, arguments: &[(&str, AMQPValue)]) -> QueueDeclare {
    QueueDeclare { arguments: table(arguments), ..queue(name) }
}

fn number(number: i32) -> AMQPValue {
    AMQPValue::LongInt(number)
}

/// Everything in a queue, in order, got and acknowledged.
async fn drain(client: &mut Client, queue: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    while let Some(got) = client.get(queue).await {
        bodies.push(body(&got.delivery));
        client.settle(&[&got.delivery], Outcome::Ack).await;
    }
    bodies
}

async fn outcomes(client: &mut Client, count: usize) -> Vec<bool> {
    let mut outcomes = vec![false; count];
    let mut first = u64::MAX;
    let mut confirms = Vec::new();
    for _ in 0..count {
        let (seq, outcome) = client.confirm().await;
        first = first.min(seq);
        confirms.push((seq, outcome == PublishOutcome::Stored));
    }
    for (seq, stored) in confirms {
        outcomes[usize::try_from(seq - first).expect("small")] = stored;
    }
    outcomes
}

#[tokio::test]
async fn the_head_goes_when_the_queue_is_too_long_and_every_publish_is_confirmed() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("d")).await;
    let dead = [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text("d"))];
    client.declare(limited("q", &[("x-max-length", number(3)), dead[0].clone(), dead[1].clone()])).await;
    for n in 0..8 {
        client.publish("", "q", n.to_string()).await;
    }
    assert_eq!(outcomes(&mut client, 8).await, [true; 8]);
    assert_eq!(client.counts("q").await.0, 3);
    assert_eq!(drain(&mut client, "d").await, ["0", "1", "2", "3", "4"]);
    assert_eq!(drain(&mut client, "q").await, ["5", "6", "7"]);
}

#[tokio::test]
async fn what_clients_hold_does_not_count_and_what_comes_back_does() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(limited("q", &[("x-max-length", number(3))])).await;
    for n in 0..3 {
        client.store("", "q", n.to_string()).await;
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(client.get("q").await.expect("a message").delivery);
    }
    for n in 3..6 {
        client.store("", "q", n.to_string()).await;
    }
    assert_eq!(client.counts("q").await.0, 3);
    client.settle(&held.iter().collect::<Vec<_>>(), Outcome::Requeue).await;
    assert_eq!(client.counts("q").await.0, 3);
    assert_eq!(drain(&mut client, "q").await, ["3", "4", "5"], "what came back was at the head");
}

#[tokio::test]
async fn bytes_are_those_of_the_bodies() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(limited("q", &[("x-max-length-bytes", number(10))])).await;
    // As RabbitMQ 3.10 counts them.
    for (size, left) in [(4, 1), (4, 2), (4, 2), (11, 0), (1, 1), (9, 2), (0, 3), (0, 4), (0, 5)] {
        client.store("", "q", vec![b'x'; size]).await;
        assert_eq!(client.counts("q").await.0, left, "after {size}");
    }
}

#[tokio::test]
async fn a_full_queue_refuses_or_passes_on_as_it_was_declared() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("d")).await;
    let mut arguments = vec![
        ("x-max-length", number(3)),
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("d")),
    ];
    client.declare(limited("q", &arguments)).await;
    arguments[1].1 = text("reject-publish-dlx");
    client.declare(limited("p", &arguments)).await;
    for name in ["q", "p"] {
        for n in 0..6 {
            client.publish("", name, n.to_string()).await;
        }
        assert_eq!(outcomes(&mut client, 6).await, [true, true, true, false, false, false], "{name}");
        let dead = drain(&mut client, "d").await;
        assert_eq!(dead, if name == "q" { vec![] } else { vec!["3", "4", "5"] }, "{name}");
        let got = client.get(name).await.expect("a message").delivery;
        client.store("", name, "6").await;
        client.settle(&[&got], Outcome::Ack).await;
        client.publish("", name, "7").await;
        assert_eq!(outcomes(&mut client, 1).await, [false], "what was held took up no room");
        drain(&mut client, "d").await;
        assert_eq!(drain(&mut client, name).await, ["1", "2", "6"], "{name}");
    }
}

#[tokio::test]
async fn a_queue_of_length_zero_hands_over_to_consumers_or_takes_nothing() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(limited("q", &[("x-max-length", number(0))])).await;
    client.store("", "q", "dropped").await;
    assert_eq!(client.counts("q").await.0, 0);
    client.consume("q", "c", 10).await;
    client.store("", "q", "handed over").await;
    assert_eq!(body(&client.delivery().await), "handed over");
    client.declare(limited("r", &[("x-max-length", number(0)), ("x-overflow", text("reject-publish"))])).await;
    client.consume("r", "cr", 10).await;
    client.publish("", "r", "refused").await;
    assert_eq!(outcomes(&mut client, 1).await, [false]);
}

#[tokio::test]
async fn of_a_burst_the_consumers_get_what_they_have_room_for_before_the_limit_takes_anything() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    // With priorities, the first message of each one takes longer on its way to the consumer than on its way into the queue.
    for (length, room, expected) in [(0, 1, ["9"].as_slice()), (0, 2, &["9", "8"]), (1, 1, &["9"])] {
        let name = format!("q{length}{room}");
        let arguments = [("x-max-length", number(length)), ("x-max-priority", number(9))];
        client.declare(limited(&name, &arguments)).await;
        client.consume(&name, &name, room).await;
        for priority in [9, 8, 7, 6] {
            let properties = AMQPProperties::default().with_priority(priority);
            client.publish_with("", &name, priority.to_string(), properties, false).await;
        }
        assert_eq!(outcomes(&mut client, 4).await, [true; 4]);
        for wanted in expected {
            assert_eq!(body(&client.delivery().await), *wanted, "length {length}, room for {room}");
        }
        assert_eq!(client.counts(&name).await.0, u32::try_from(length).expect("small"));
    }
}

#[tokio::test]
async fn the_head_that_goes_has_the_highest_priority() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("d")).await;
    let mut arguments = vec![
        ("x-max-length", number(3)),
        ("x-max-priority", number(5)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("d")),
        ("x-overflow", text("drop-head")),
    ];
    client.declare(limited("q", &arguments)).await;
    arguments[4].1 = text("reject-publish");
    client.declare(limited("r", &arguments)).await;
    // What is left and what goes was seen on a RabbitMQ 3.10.
    for (name, stored, left, dead) in [
        ("q", [true; 7], ["5/2", "0/1", "3/0"], vec!["1/5", "4/5", "2/3", "6/4"]),
        ("r", [true, true, true, false, false, false, false], ["1/5", "2/3", "0/1"], vec![]),
    ] {
        for (n, priority) in [1, 5, 3, 0, 5, 2, 4].into_iter().enumerate() {
            let properties = AMQPProperties::default().with_priority(priority);
            client.publish_with("", name, format!("{n}/{priority}"), properties, false).await;
            let one = outcomes(&mut client, 1).await;
            assert_eq!(one, [stored[n]], "{name} {n}");
            // Which one is the head is decided when the queue is looked at: see docs/mapping.md.
            client.counts(name).await;
        }
        assert_eq!(client.counts(name).await.0, 3);
        assert_eq!(drain(&mut client, name).await, left);
        assert_eq!(drain(&mut client, "d").await, dead);
    }
}

#[tokio::test]
async fn a_new_gateway_knows_how_full_its_queues_are() {
    let server = NatsServer::start();
    let config = one_lease(&server).await;
    let first = backend_with(&server, config.clone()).await;
    let mut client = Client::open(&*first).await;
    let bytes = [("x-max-length-bytes", number(10)), ("x-overflow", text("reject-publish"))];
    client.declare(limited("q", &bytes)).await;
    client.declare(limited("p", &[("x-max-length", number(2))])).await;
    client.store("", "q", "1234").await;
    client.store("", "q", "5678").await;
    for n in 0..3 {
        client.store("", "p", n.to_string()).await;
    }
    client.close().await;
    drop(first);
    let second = backend_with(&server, config).await;
    let mut client = Client::open(&*second).await;
    client.publish("", "q", "9ab").await;
    client.publish("", "q", "9a").await;
    assert_eq!(outcomes(&mut client, 2).await, [false, true]);
    client.store("", "p", "3").await;
    assert_eq!(drain(&mut client, "p").await, ["2", "3"]);
    let got = client.get("q").await.expect("a message").delivery;
    assert!(!got.redelivered, "looking at sizes is no delivery");
}

#[tokio::test]
async fn a_purge_makes_room() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(limited("q", &[("x-max-length", number(2)), ("x-overflow", text("reject-publish"))])).await;
    for held in [false, true] {
        client.store("", "q", "1").await;
        client.store("", "q", "2").await;
        let got = if held { client.get("q").await } else { None };
        assert!(matches!(
            client.topology(Topology::QueuePurge { queue: "q".into() }).await,
            Ok(Reply::MessageCount(_))
        ));
        client.store("", "q", "3").await;
        client.store("", "q", "4").await;
        client.publish("", "q", "5").await;
        assert_eq!(outcomes(&mut client, 1).await, [false]);
        assert_eq!(drain(&mut client, "q").await, ["3", "4"]);
        if let Some(got) = got {
            client.settle(&[&got.delivery], Outcome::Ack).await;
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Publish(usize),
    Get,
    Ack,
    Requeue,
}

/// RabbitMQ's rule in its plainest form: ready bodies by age, held ones apart.
#[derive(Default)]
struct Reference {
    ready: std::collections::BTreeMap<usize, usize>,
    held: std::collections::BTreeMap<usize, usize>,
    next: usize,
}

impl Reference {
    fn over(&self, extra: Option<usize>) -> bool {
        let bytes: usize = self.ready.values().sum::<usize>() + extra.unwrap_or(0);
        self.ready.len() + usize::from(extra.is_some()) > 3 || bytes > 12
    }

    fn trim(&mut self) {
        while self.over(None) {
            self.ready.pop_first();
        }
    }
}

async fn compare(steps: Vec<Step>, rejects: bool) {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let overflow = if rejects { "reject-publish" } else { "drop-head" };
    let arguments = [("x-max-length", number(3)), ("x-max-length-bytes", number(12)), ("x-overflow", text(overflow))];
    client.declare(limited("q", &arguments)).await;
    let mut reference = Reference::default();
    let mut held = std::collections::BTreeMap::new();
    for step in steps {
        match step {
            Step::Publish(size) => {
                client.publish("", "q", vec![b'x'; size]).await;
                let stored = outcomes(&mut client, 1).await[0];
                let refused = rejects && reference.over(Some(size));
                assert_eq!(stored, !refused);
                if !refused {
                    reference.ready.insert(reference.next, size);
                    reference.next += 1;
                }
                if !rejects {
                    reference.trim();
                }
            }
            Step::Get => {
                let got = client.get("q").await;
                let expected = reference.ready.pop_first();
                assert_eq!(got.as_ref().map(|got| got.delivery.message.body.len()), expected.map(|(_, size)| size));
                if let (Some(got), Some((number, size))) = (got, expected) {
                    assert_eq!(got.message_count as usize, reference.ready.len());
                    held.insert(number, got.delivery);
                    reference.held.insert(number, size);
                }
            }
            Step::Ack => {
                if let (Some((_, delivery)), Some(_)) = (held.pop_first(), reference.held.pop_first()) {
                    client.settle(&[&delivery], Outcome::Ack).await;
                }
            }
            Step::Requeue => {
                if let (Some((_, delivery)), Some((number, size))) = (held.pop_first(), reference.held.pop_first()) {
                    client.settle(&[&delivery], Outcome::Requeue).await;
                    reference.ready.insert(number, size);
                    if !rejects {
                        reference.trim();
                    }
                }
            }
        }
        assert_eq!(client.counts("q").await.0 as usize, reference.ready.len());
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..14).prop_map(Step::Publish),
        2 => Just(Step::Get),
        1 => Just(Step::Ack),
        1 => Just(Step::Requeue),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 20, ..ProptestConfig::default() })]
    #[test]
    fn limits_agree_with_the_plain_rule(steps in prop::collection::vec(step(), 60), rejects in any::<bool>()) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(compare(steps, rejects));
    }
}
