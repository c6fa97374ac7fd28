use amqp_compat::backend::{Command, Consume, Outcome};
use test_support::nats::NatsServer;

use crate::backend;
use crate::client::{Client, body, queue};

#[tokio::test]
async fn deliveries_come_in_the_order_of_the_publishes() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.consume("q", "c", 50).await;
    for n in 0..500 {
        client.publish("", "q", n.to_string()).await;
    }
    for n in 0..500 {
        let delivery = client.delivery().await;
        assert_eq!((body(&delivery), delivery.redelivered), (n.to_string(), false));
        assert_eq!(delivery.message.routing_key.as_str(), "q");
        client.settle(&[&delivery], Outcome::Ack).await;
        client.credit("c", 1).await;
    }
    client.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    assert_eq!(client.counts("q").await, (0, 0));
}

#[tokio::test]
async fn a_consumer_never_gets_more_than_its_credit() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    for n in 0..20 {
        client.store("", "q", n.to_string()).await;
    }
    client.consume("q", "c", 3).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(client.delivery().await);
    }
    assert!(client.no_delivery().await, "more than 3 came");
    assert_eq!(client.counts("q").await, (17, 1));
    client.credit("c", 2).await;
    for expected in ["3", "4"] {
        assert_eq!(body(&client.delivery().await), expected);
    }
    assert!(client.no_delivery().await, "more than 5 came");
    client.settle(&held.iter().collect::<Vec<_>>(), Outcome::Ack).await;
    assert!(client.no_delivery().await, "a settlement is no credit");
}

#[tokio::test]
async fn what_is_requeued_comes_again_first_in_order_and_says_so() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    for n in 0..10 {
        client.store("", "q", n.to_string()).await;
    }
    client.consume("q", "c", 4).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(client.delivery().await);
    }
    client.settle(&[&held[1], &held[2], &held[3]], Outcome::Requeue).await;
    client.credit("c", 5).await;
    let expected = [("1", true), ("2", true), ("3", true), ("4", false), ("5", false)];
    for (text, redelivered) in expected {
        let delivery = client.delivery().await;
        assert_eq!((body(&delivery).as_str(), delivery.redelivered), (text, redelivered));
    }
}

#[tokio::test]
async fn a_closed_channel_gives_back_what_it_held_and_never_got() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    for n in 0..6 {
        client.store("", "q", n.to_string()).await;
    }
    client.consume("q", "c", 3).await;
    let first = client.delivery().await;
    for _ in 0..2 {
        client.delivery().await;
    }
    client.settle(&[&first], Outcome::Ack).await;
    client.close_channel().await;
    client.done(Command::OpenChannel { channel: 1 }).await;
    assert_eq!(client.counts("q").await, (5, 0));
    client.consume("q", "d", 10).await;
    for (text, redelivered) in [("1", true), ("2", true), ("3", false), ("4", false), ("5", false)] {
        let delivery = client.delivery().await;
        assert_eq!((body(&delivery).as_str(), delivery.redelivered), (text, redelivered));
    }
}

#[tokio::test]
async fn a_dropped_link_gives_back_what_it_held() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let mut other = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    for n in 0..4 {
        client.store("", "q", n.to_string()).await;
    }
    client.consume("q", "c", 2).await;
    client.delivery().await;
    client.delivery().await;
    other.consume("q", "d", 10).await;
    for expected in ["2", "3"] {
        assert_eq!(body(&other.delivery().await), expected);
    }
    client.close().await;
    for expected in ["0", "1"] {
        let delivery = other.delivery().await;
        assert_eq!((body(&delivery).as_str(), delivery.redelivered), (expected, true));
    }
}

#[tokio::test]
async fn a_consumer_that_goes_with_unused_credit_loses_nothing() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    for round in 0..20 {
        client.consume("q", "c", 100).await;
        client.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
        client.store("", "q", round.to_string()).await;
        let got = client.get("q").await.expect("a message");
        assert_eq!((body(&got.delivery), got.delivery.redelivered), (round.to_string(), false));
        client.settle(&[&got.delivery], Outcome::Ack).await;
    }
    assert_eq!(client.counts("q").await, (0, 0));
}

#[tokio::test]
async fn two_consumers_share_a_queue_in_turn() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.consume("q", "a", 100).await;
    client.consume("q", "b", 100).await;
    for n in 0..20 {
        client.publish("", "q", n.to_string()).await;
    }
    let mut shares = [0, 0];
    for n in 0..20 {
        let (tag, delivery) = client.delivery_of().await;
        assert_eq!(body(&delivery), n.to_string());
        shares[usize::from(tag == "b")] += 1;
    }
    assert_eq!(shares, [10, 10]);
}

#[tokio::test]
async fn an_exclusive_consumer_is_alone() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    let consume = |tag: &str, exclusive| Command::Consume {
        channel: 1,
        consume: Consume { exclusive, ..Client::consume_command("q", tag, 1) },
    };
    client.done(consume("a", true)).await;
    let error = client.request(consume("b", false)).await.expect_err("refused");
    assert_eq!(error.to_string(), "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use");
    client.done(Command::Cancel { channel: 1, consumer_tag: "a".into() }).await;
    client.done(consume("b", false)).await;
    assert!(client.request(consume("c", true)).await.is_err());
}

#[tokio::test]
async fn get_takes_one_message_and_says_how_many_are_left() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    assert!(client.get("q").await.is_none());
    for n in 0..200 {
        client.publish("", "q", n.to_string()).await;
        let got = client.get("q").await.unwrap_or_else(|| panic!("message {n} was confirmed before the get"));
        assert_eq!((body(&got.delivery), got.message_count), (n.to_string(), 0));
        client.settle(&[&got.delivery], Outcome::Requeue).await;
        let again = client.get("q").await.unwrap_or_else(|| panic!("message {n} was requeued before the get"));
        assert_eq!((body(&again.delivery), again.delivery.redelivered), (n.to_string(), true));
        client.settle(&[&again.delivery], Outcome::Ack).await;
    }
    for n in 0..3 {
        client.publish("", "q", n.to_string()).await;
    }
    assert_eq!(client.get("q").await.expect("a message").message_count, 2);
}

#[tokio::test]
async fn a_rejected_message_is_dropped() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.store("", "q", "0").await;
    let got = client.get("q").await.expect("a message");
    client.settle(&[&got.delivery], Outcome::Reject).await;
    assert!(client.get("q").await.is_none());
    assert_eq!(client.counts("q").await, (0, 0));
}
