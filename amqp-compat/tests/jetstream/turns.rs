//! Whose turn it is: consumer priorities and the single active consumer.

use amq_protocol::types::AMQPValue;
use amqp_compat::backend::{Command, Consume, Outcome, QueueDeclare, Reply};
use test_support::nats::NatsServer;

use crate::backend;
use crate::client::{Client, body, queue, table, text};

fn with_priority(queue: &str, tag: &str, credit: u32, priority: i64) -> Consume {
    let arguments = table(&[("x-priority", AMQPValue::LongLongInt(priority))]);
    Consume { arguments, ..Client::consume_command(queue, tag, credit) }
}

fn single_active(name: &str) -> QueueDeclare {
    let arguments = table(&[("x-single-active-consumer", AMQPValue::Boolean(true))]);
    QueueDeclare { arguments, ..queue(name) }
}

#[tokio::test]
async fn the_consumer_of_the_highest_priority_comes_first_while_it_has_credit() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    for consume in [
        Client::consume_command("q", "low", 2),
        with_priority("q", "high", 2, 5),
        with_priority("q", "lowest", 2, -1),
        with_priority("q", "high2", 2, 5),
    ] {
        client.done(Command::Consume { channel: 1, consume }).await;
    }
    for n in 0..8 {
        client.store("", "q", n.to_string()).await;
    }
    let mut tags = Vec::new();
    for n in 0..8 {
        let (tag, delivery) = client.delivery_of().await;
        assert_eq!(body(&delivery), n.to_string());
        tags.push(tag);
    }
    assert_eq!(tags, ["high", "high2", "high", "high2", "low", "low", "lowest", "lowest"]);
}

#[tokio::test]
async fn a_consumer_priority_that_is_no_integer_is_refused() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    let arguments = table(&[("x-priority", text("banana"))]);
    let consume = Consume { arguments, ..Client::consume_command("q", "c", 1) };
    let error = client.request(Command::Consume { channel: 1, consume }).await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost '/': \"expected integer, got longstr\""
    );
}

#[tokio::test]
async fn one_consumer_is_active_and_the_next_takes_over_when_it_goes() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut first = Client::open(&*backend).await;
    let mut second = Client::open(&*backend).await;
    first.declare(single_active("q")).await;
    first.consume("q", "one", 2).await;
    second.consume("q", "two", 10).await;
    first.consume("q", "three", 10).await;
    for n in 0..6 {
        first.store("", "q", n.to_string()).await;
    }
    let held = [first.delivery_of().await, first.delivery_of().await];
    assert_eq!(
        held.each_ref().map(|(tag, delivery)| (tag.as_str(), body(delivery))),
        [("one", "0".to_owned()), ("one", "1".to_owned())]
    );
    assert!(second.no_delivery().await && first.no_delivery().await, "the others wait although one has no credit");
    assert_eq!(first.counts("q").await, (4, 3));

    // A consumer that is cancelled keeps what it holds.
    first.done(Command::Cancel { channel: 1, consumer_tag: "one".into() }).await;
    for n in 2..6 {
        let (tag, delivery) = second.delivery_of().await;
        assert_eq!((tag.as_str(), body(&delivery)), ("two", n.to_string()));
    }
    first.settle(&[&held[0].1], Outcome::Ack).await;

    // A connection that is lost gives back what it holds, to the next in line.
    second.close().await;
    for n in 2..6 {
        let (tag, delivery) = first.delivery_of().await;
        assert_eq!((tag.as_str(), body(&delivery), delivery.redelivered), ("three", n.to_string(), true));
    }
    assert_eq!(first.counts("q").await, (0, 1));
}

#[tokio::test]
async fn nobody_can_be_alone_on_a_queue_with_a_single_active_consumer() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(single_active("q")).await;
    let consume = Consume { exclusive: true, ..Client::consume_command("q", "c", 1) };
    let error = client.request(Command::Consume { channel: 1, consume }).await.expect_err("refused");
    assert_eq!(error.to_string(), "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use");
    assert!(client.get("q").await.is_none());

    let arguments = table(&[("x-single-active-consumer", AMQPValue::Boolean(true)), ("x-queue-type", text("quorum"))]);
    client.declare(QueueDeclare { arguments, ..queue("quorum") }).await;
    let answer: Result<Reply, _> = client.request(Command::Get { channel: 1, queue: "quorum".into() }).await;
    assert_eq!(
        answer.expect_err("refused").to_string(),
        "RESOURCE_LOCKED - cannot obtain access to locked queue 'quorum' in vhost '/'. basic.get operations are not \
         supported by quorum queues with single active consumer"
    );
}
