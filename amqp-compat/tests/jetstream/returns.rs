//! What comes back right behind other settlements: what those gave credit for is handed out before, as by RabbitMQ.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use amqp_compat::backend::{Command, Delivery, Outcome, QueueDeclare};
use test_support::nats::NatsServer;

use crate::backend;
use crate::client::{Client, body, queue, table, text};

/// A queue of each kind that keeps its messages in another way.
fn every_kind() -> [QueueDeclare; 4] {
    let with =
        |name: &str, arguments: &[(&str, AMQPValue)]| QueueDeclare { arguments: table(arguments), ..queue(name) };
    [
        queue("plain"),
        with("priorities", &[("x-max-priority", AMQPValue::LongInt(5))]),
        with("quorum", &[("x-queue-type", text("quorum"))]),
        QueueDeclare { exclusive: true, durable: false, ..queue("exclusive") },
    ]
}

/// Stores numbered messages; gives those that a consumer gets with `credit`.
async fn filled(client: &mut Client, declare: QueueDeclare, count: usize, credit: u32) -> Vec<Delivery> {
    let name = declare.queue.to_string();
    client.declare(declare).await;
    for n in 0..count {
        client.store("", &name, n.to_string()).await;
    }
    client.consume(&name, &name, credit).await;
    let mut held = Vec::new();
    for _ in 0..credit {
        held.push(client.delivery().await);
    }
    held
}

/// What comes next: its number, and whether it had come before.
async fn next(client: &mut Client) -> (usize, bool) {
    let delivery = client.delivery().await;
    (body(&delivery).parse().expect("a number"), delivery.redelivered)
}

#[tokio::test]
async fn the_credit_of_an_ack_is_used_before_the_requeue_behind_it() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    for declare in every_kind() {
        let name = declare.queue.to_string();
        let held = filled(&mut client, declare, 4, 2).await;
        client.settle(&[&held[0]], Outcome::Ack).await;
        client.credit(&name, 1).await;
        client.settle(&[&held[1]], Outcome::Requeue).await;
        client.credit(&name, 1).await;
        assert_eq!([next(&mut client).await, next(&mut client).await], [(2, false), (1, true)], "{name}");
    }
}

#[tokio::test]
async fn each_requeue_is_handed_out_before_the_next_one() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    for declare in every_kind() {
        let name = declare.queue.to_string();
        let held = filled(&mut client, declare, 3, 2).await;
        for delivery in held.iter().rev() {
            client.settle(&[delivery], Outcome::Requeue).await;
            client.credit(&name, 1).await;
        }
        assert_eq!([next(&mut client).await, next(&mut client).await], [(1, true), (0, true)], "{name}");
    }
}

#[tokio::test]
async fn the_credit_of_an_ack_is_used_before_the_get_behind_it() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    for declare in every_kind() {
        let name = declare.queue.to_string();
        let held = filled(&mut client, declare, 4, 2).await;
        client.settle(&[&held[0]], Outcome::Ack).await;
        client.credit(&name, 1).await;
        let got = client.get(&name).await.expect("a message");
        assert_eq!((body(&got.delivery).as_str(), next(&mut client).await), ("3", (2, false)), "{name}");
    }
}

#[tokio::test]
async fn a_requeue_waits_for_what_is_still_with_the_server() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    // Of a queue with priorities nothing is here that there was no credit for.
    let arguments = table(&[("x-max-priority", AMQPValue::LongInt(5))]);
    let held = filled(&mut client, QueueDeclare { arguments, ..queue("q") }, 24, 10).await;
    let acked: Vec<&Delivery> = held[..9].iter().collect();
    client.settle(&acked, Outcome::Ack).await;
    client.credit("q", 9).await;
    client.settle(&[&held[9]], Outcome::Requeue).await;
    client.credit("q", 1).await;
    let mut come = Vec::new();
    for _ in 0..10 {
        come.push(next(&mut client).await);
    }
    let mut expected: Vec<_> = (10..19).map(|n| (n, false)).collect();
    expected.push((9, true));
    assert_eq!(come, expected);
}

#[tokio::test]
async fn what_comes_back_at_once_comes_back_consumer_by_consumer() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let arguments = table(&[("x-max-priority", AMQPValue::LongInt(5))]);
    client.declare(QueueDeclare { arguments, ..queue("q") }).await;
    client.consume("q", "b", 9).await;
    client.consume("q", "a", 9).await;
    let mut held = Vec::new();
    for priority in [1, 5] {
        client
            .publish_with("", "q", priority.to_string(), AMQPProperties::default().with_priority(priority), false)
            .await;
        client.confirm().await;
        held.push(client.delivery_of().await);
    }
    let told = |of: &(String, Delivery)| (of.0.clone(), body(&of.1));
    assert_eq!([told(&held[0]), told(&held[1])], [("b".into(), "1".into()), ("a".into(), "5".into())]);
    // That of "a" is given out before that of "b" is back, and it is the turn of "b".
    client.settle(&[&held[0].1, &held[1].1], Outcome::Requeue).await;
    let again = [client.delivery_of().await, client.delivery_of().await];
    assert_eq!([told(&again[0]), told(&again[1])], [("b".into(), "5".into()), ("a".into(), "1".into())]);
    client.settle(&[&again[0].1, &again[1].1], Outcome::Requeue).await;
    let again = [client.delivery_of().await, client.delivery_of().await];
    assert_eq!([told(&again[0]), told(&again[1])], [("b".into(), "1".into()), ("a".into(), "5".into())]);
}

#[tokio::test]
async fn a_quorum_queue_has_what_a_channel_had_consumer_by_consumer() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let arguments = table(&[("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongInt(9))]);
    client.declare(QueueDeclare { arguments, ..queue("q") }).await;
    client.consume("q", "b", 2).await;
    client.consume("q", "a", 2).await;
    for n in 0..4 {
        client.store("", "q", n.to_string()).await;
        assert_eq!(client.delivery_of().await.0, ["b", "a"][n % 2]);
    }
    client.close_channel().await;
    let mut client = Client::open(&*backend).await;
    client.consume("q", "c", 4).await;
    let mut come = Vec::new();
    for _ in 0..4 {
        come.push(next(&mut client).await.0);
    }
    assert_eq!(come, [1, 3, 0, 2]);
}

#[tokio::test]
async fn what_is_published_behind_a_requeue_stays_behind_it() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    // An exclusive queue hands it out at once: docs/mapping.md.
    for declare in every_kind().into_iter().filter(|declare| !declare.exclusive) {
        let name = declare.queue.to_string();
        client.declare(declare).await;
        for round in 0..10 {
            for n in 0..3 {
                client.store("", &name, n.to_string()).await;
            }
            let tag = format!("{name} {round}");
            client.consume(&name, &tag, 100).await;
            let held = [client.delivery().await, client.delivery().await, client.delivery().await];
            client.settle(&held.each_ref(), Outcome::Requeue).await;
            client.publish("", &name, "3").await;
            client.confirm().await;
            let again =
                [client.delivery().await, client.delivery().await, client.delivery().await, client.delivery().await];
            assert_eq!(again.each_ref().map(body), ["0", "1", "2", "3"], "{tag}");
            client.settle(&again.each_ref(), Outcome::Ack).await;
            client.done(Command::Cancel { channel: 1, consumer_tag: tag.as_str().into() }).await;
        }
    }
}
