//! Queues with `x-max-priority`.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use amqp_compat::backend::{Command, Outcome, QueueDeclare, Reply, Topology};
use test_support::nats::NatsServer;

use crate::client::{Client, body, queue, table};
use crate::{backend, backend_with, one_lease};

fn with_priorities(name: &str, highest: u8) -> QueueDeclare {
    let arguments = table(&[("x-max-priority", AMQPValue::ShortShortUInt(highest))]);
    QueueDeclare { arguments, ..queue(name) }
}

/// Stores messages whose bodies are their priority and their number.
async fn store(client: &mut Client, priorities: &[u8]) {
    for (number, priority) in priorities.iter().enumerate() {
        let properties = AMQPProperties::default().with_priority(*priority);
        client.publish_with("", "q", format!("{priority}-{number}"), properties, false).await;
    }
    for _ in priorities {
        client.confirm().await;
    }
}

/// What a consumer is given next, acknowledged one by one.
async fn take(client: &mut Client, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    for _ in 0..count {
        let delivery = client.delivery().await;
        client.settle(&[&delivery], Outcome::Ack).await;
        client.credit("c", 1).await;
        bodies.push(body(&delivery));
    }
    bodies
}

#[tokio::test]
async fn the_highest_priority_comes_first_and_equal_ones_in_order() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(with_priorities("q", 5)).await;
    // No priority is 0; one above the highest is the highest.
    client.store("", "q", "none").await;
    store(&mut client, &[1, 5, 3, 200, 0, 3, 1, 9]).await;
    assert_eq!(client.counts("q").await, (9, 0));
    client.consume("q", "c", 1).await;
    let order = ["5-1", "200-3", "9-7", "3-2", "3-5", "1-0", "1-6", "none", "0-4"];
    assert_eq!(take(&mut client, 9).await, order);
    assert_eq!(client.counts("q").await, (0, 1));
}

#[tokio::test]
async fn a_message_that_is_stored_overtakes_those_that_nobody_has() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(with_priorities("q", 9)).await;
    client.consume("q", "c", 2).await;
    store(&mut client, &[0; 30]).await;
    let held = [client.delivery().await, client.delivery().await];
    // Confirmed before there is credit again: each is the first then, although lower ones are already in the gateway.
    for priority in [4, 9, 7, 9, 1] {
        store(&mut client, &[priority]).await;
    }
    assert_eq!(client.counts("q").await, (33, 1));
    client.settle(&[&held[0], &held[1]], Outcome::Ack).await;
    client.credit("c", 2).await;
    assert_eq!(take(&mut client, 6).await, ["9-0", "9-0", "7-0", "4-0", "1-0", "0-2"]);
}

#[tokio::test]
async fn what_is_requeued_returns_to_its_place_among_the_priorities() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(with_priorities("q", 3)).await;
    store(&mut client, &[0, 2, 2, 1, 3]).await;
    client.consume("q", "c", 3).await;
    let held = [client.delivery().await, client.delivery().await, client.delivery().await];
    assert_eq!(held.each_ref().map(body), ["3-4", "2-1", "2-2"]);
    store(&mut client, &[3, 1]).await;
    client.settle(&[&held[0], &held[1], &held[2]], Outcome::Requeue).await;
    client.credit("c", 3).await;
    assert_eq!(take(&mut client, 7).await, ["3-4", "3-0", "2-1", "2-2", "1-3", "1-1", "0-0"]);
}

#[tokio::test]
async fn a_get_takes_the_highest_and_counts_the_rest() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(with_priorities("q", 255)).await;
    assert!(client.get("q").await.is_none());
    store(&mut client, &[1, 255, 0, 17]).await;
    for (expected, left) in [("255-1", 3), ("17-3", 2), ("1-0", 1), ("0-2", 0)] {
        let got = client.get("q").await.expect("a message");
        assert_eq!((body(&got.delivery).as_str(), got.message_count), (expected, left));
        client.settle(&[&got.delivery], Outcome::Ack).await;
    }
    assert!(client.get("q").await.is_none());
    assert_eq!(client.counts("q").await, (0, 0));
}

#[tokio::test]
async fn a_purge_takes_what_is_ready_of_every_priority() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(with_priorities("all", 255)).await;
    client.store("", "all", "x").await;
    let purge = Topology::QueuePurge { queue: "all".into() };
    assert!(matches!(client.topology(purge).await, Ok(Reply::MessageCount(1))));

    client.declare(with_priorities("q", 3)).await;
    let purge = || Topology::QueuePurge { queue: "q".into() };
    store(&mut client, &[0, 1, 2, 3, 3]).await;
    assert!(matches!(client.topology(purge()).await, Ok(Reply::MessageCount(5))));
    assert_eq!(client.counts("q").await, (0, 0));

    store(&mut client, &[0, 1, 2, 3, 3]).await;
    client.consume("q", "c", 1).await;
    let held = client.delivery().await;
    assert!(matches!(client.topology(purge()).await, Ok(Reply::MessageCount(4))));
    assert_eq!(client.counts("q").await, (0, 1));
    client.settle(&[&held], Outcome::Requeue).await;
    client.credit("c", 1).await;
    let again = client.delivery().await;
    assert_eq!((body(&again).as_str(), again.redelivered), ("3-3", true));
}

#[tokio::test]
async fn priorities_outlive_the_gateway_and_what_its_clients_held_says_so() {
    let server = NatsServer::start();
    let config = one_lease(&server).await;
    let first = backend_with(&server, config.clone()).await;
    let mut client = Client::open(&*first).await;
    client.declare(with_priorities("q", 7)).await;
    store(&mut client, &[2, 7, 0, 5]).await;
    client.consume("q", "c", 2).await;
    assert_eq!([body(&client.delivery().await), body(&client.delivery().await)], ["7-1", "5-3"]);
    // Its clients are still there: this is how a gateway that was killed leaves the queue.
    let second = backend_with(&server, config).await;
    let mut client = Client::open(&*second).await;
    assert_eq!(client.counts("q").await, (4, 0));
    client.consume("q", "c", 9).await;
    let mut come = Vec::new();
    for _ in 0..4 {
        let delivery = client.delivery().await;
        come.push((body(&delivery), delivery.redelivered));
    }
    let expected = [("7-1", true), ("5-3", true), ("2-0", false), ("0-2", false)];
    assert_eq!(come, expected.map(|(body, redelivered)| (body.to_owned(), redelivered)));
}

#[tokio::test]
async fn a_message_expires_at_the_head_of_the_queue_and_not_behind_a_higher_one() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(with_priorities("q", 3)).await;
    let low = AMQPProperties::default().with_priority(1).with_expiration("50".into());
    client.publish_with("", "q", "low", low, false).await;
    let high = AMQPProperties::default().with_priority(2);
    client.publish_with("", "q", "high", high, false).await;
    let brief = AMQPProperties::default().with_priority(3).with_expiration("50".into());
    client.publish_with("", "q", "brief", brief, false).await;
    for _ in 0..3 {
        client.confirm().await;
    }
    // The one at the head goes by itself.
    let until = tokio::time::Instant::now() + crate::client::CAP;
    while client.counts("q").await != (2, 0) {
        assert!(tokio::time::Instant::now() < until, "the head does not expire: {:?}", client.counts("q").await);
    }
    let got = client.get("q").await.expect("the one that does not expire");
    assert_eq!(body(&got.delivery), "high");
    client.settle(&[&got.delivery], Outcome::Ack).await;
    assert!(client.get("q").await.is_none(), "what waited behind it has expired");
}

#[tokio::test]
async fn many_messages_of_all_priorities_come_once_each_to_several_consumers() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut publisher = Client::open(&*backend).await;
    publisher.declare(with_priorities("q", 10)).await;
    let mut consumers = [Client::open(&*backend).await, Client::open(&*backend).await];
    for consumer in &mut consumers {
        consumer.consume("q", "c", 7).await;
    }
    let priorities: Vec<u8> = (0..600u32).map(|n| (n * 7 % 13) as u8).collect();
    store(&mut publisher, &priorities).await;
    let mut bodies = std::collections::BTreeSet::new();
    while bodies.len() < priorities.len() {
        for consumer in &mut consumers {
            while let Ok(event) = consumer.link.events.try_recv() {
                if let amqp_compat::backend::Event::Delivery { delivery, .. } = event {
                    consumer.settle(&[&delivery], Outcome::Ack).await;
                    consumer.credit("c", 1).await;
                    assert!(bodies.insert(body(&delivery)), "{} came twice", body(&delivery));
                }
            }
        }
        tokio::task::yield_now().await;
    }
    for consumer in &mut consumers {
        consumer.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    }
    assert_eq!(publisher.counts("q").await, (0, 0));
}
