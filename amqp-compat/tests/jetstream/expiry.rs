use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use amqp_compat::backend::{Event, LINK_CAPACITY, Outcome, QueueDeclare, Topology};
use amqp_compat::{ReplyCode, backend::Command};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use tokio::sync::Mutex;

use crate::backend;
use crate::client::{Client, body, queue, table, text};

fn expiring(ms: &str) -> AMQPProperties {
    AMQPProperties::default().with_expiration(ms.into())
}

#[tokio::test]
async fn a_message_expires_at_the_head_of_a_queue_that_nobody_consumes() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.publish_with("", "q", "short", expiring("600"), false).await;
    client.publish_with("", "q", "long", expiring("60000"), false).await;
    client.publish_with("", "q", "behind", expiring("1"), false).await;
    assert_eq!(client.counts("q").await.0, 3);
    let client = Mutex::new(client);
    eventually_true("the head expires", || async { client.lock().await.counts("q").await.0 == 2 }).await;
    // What has not reached the head is still counted, and goes when it gets there.
    let mut client = client.into_inner();
    let got = client.get("q").await.expect("the long one").delivery;
    assert_eq!(body(&got), "long");
    assert_eq!(got.message.properties.expiration().as_ref().map(|e| e.as_str()), Some("60000"));
    assert!(client.get("q").await.is_none());
    client.settle(&[&got], Outcome::Ack).await;
    assert_eq!(client.counts("q").await.0, 0);
}

#[tokio::test]
async fn messages_behind_one_that_may_expire_are_got_in_order_and_counted() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.publish_with("", "q", "0", expiring("3600000"), false).await;
    client.confirm().await;
    for n in 1..20 {
        client.store("", "q", n.to_string()).await;
    }
    for n in 0..20 {
        let got = client.get("q").await.expect("a message");
        assert_eq!((body(&got.delivery), got.message_count), (n.to_string(), 19 - n));
        client.settle(&[&got.delivery], Outcome::Ack).await;
    }
    assert!(client.get("q").await.is_none());
}

#[tokio::test]
async fn messages_that_were_requeued_are_all_got_though_one_may_expire() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.publish_with("", "q", "0", expiring("3600000"), false).await;
    client.publish("", "q", "1").await;
    let mut other = Client::open(&*backend).await;
    other.consume("q", "c", 10).await;
    other.delivery().await;
    other.delivery().await;
    other.close().await;
    for n in 0..2 {
        let got = client.get("q").await.expect("a message");
        assert_eq!((body(&got.delivery), got.message_count), (n.to_string(), 1 - n));
    }
}

#[tokio::test]
async fn a_get_does_not_count_what_has_expired_behind_it() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.store("", "q", "stays").await;
    client.publish_with("", "q", "goes", expiring("0"), false).await;
    client.confirm().await;
    assert_eq!(client.counts("q").await.0, 2);
    assert_eq!(client.get("q").await.expect("a message").message_count, 0);
}

#[tokio::test]
async fn a_queues_time_to_live_counts_from_the_publish_and_spares_what_is_held() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let arguments = table(&[("x-message-ttl", AMQPValue::LongInt(200))]);
    client.declare(QueueDeclare { arguments, ..queue("q") }).await;
    for n in 0..5 {
        client.store("", "q", n.to_string()).await;
    }
    let held = client.get("q").await.expect("a message").delivery;
    let client = Mutex::new(client);
    eventually_true("all expire", || async { client.lock().await.counts("q").await.0 == 0 }).await;
    let mut client = client.into_inner();
    client.settle(&[&held], Outcome::Requeue).await;
    assert!(client.get("q").await.is_none(), "it is too old when it comes back");
    client.store("", "q", "fresh").await;
    assert_eq!(body(&client.get("q").await.expect("a message").delivery), "fresh");
}

#[tokio::test]
async fn a_get_finds_what_lies_behind_a_head_that_is_just_expiring() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    for round in 0..60 {
        client.declare(queue("q")).await;
        client.publish_with("", "q", "short", expiring("20"), false).await;
        client.publish_with("", "q", "long", expiring("60000"), false).await;
        client.publish_with("", "q", "behind", expiring("1"), false).await;
        let got = loop {
            let got = client.get("q").await.unwrap_or_else(|| panic!("round {round}: the long one is there"));
            if body(&got.delivery) == "long" {
                break got.delivery;
            }
            client.settle(&[&got.delivery], Outcome::Requeue).await;
        };
        client.settle(&[&got], Outcome::Ack).await;
        client.topology(Topology::QueuePurge { queue: "q".into() }).await.expect("purged");
    }
}

#[tokio::test]
async fn messages_expire_though_their_consumer_has_just_gone() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let ttl = ("x-message-ttl", AMQPValue::LongInt(100));
    let dead = [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text("d"))];
    client.declare(QueueDeclare { arguments: table(&[ttl, dead[0].clone(), dead[1].clone()]), ..queue("q") }).await;
    client.declare(queue("d")).await;
    client.consume("d", "cd", 10).await;
    client.consume("q", "c", 10).await;
    client.store("", "q", "taken").await;
    let taken = client.delivery().await;
    client.settle(&[&taken], Outcome::Ack).await;
    client.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    // Nothing but its age looks at the queue from here on.
    client.store("", "q", "expires").await;
    assert_eq!(body(&client.delivery().await), "expires");
}

#[tokio::test]
async fn a_time_to_live_of_zero_reaches_a_waiting_consumer_only() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.consume("q", "c", 1).await;
    client.publish_with("", "q", "now", expiring("0"), false).await;
    client.confirm().await;
    assert_eq!(body(&client.delivery().await), "now");
    client.publish_with("", "q", "never", expiring("0"), false).await;
    client.confirm().await;
    let client = Mutex::new(client);
    eventually_true("it expires", || async { client.lock().await.counts("q").await.0 == 0 }).await;
    let mut client = client.into_inner();
    client.credit("c", 1).await;
    client.store("", "q", "later").await;
    assert_eq!(body(&client.delivery().await), "later");
    client.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
}

#[tokio::test]
async fn a_time_to_live_of_zero_reaches_a_consumer_whose_first_credit_is_still_under_way() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut publisher = Client::open(&*backend).await;
    publisher.declare(queue("q")).await;
    // A link whose client reads nothing cannot go on from the answer to a consumer to its credit.
    let mut slow = Client::open(&*backend).await;
    for _ in 0..LINK_CAPACITY {
        slow.publish("", "nowhere", "").await;
    }
    slow.send(Command::Consume { channel: 1, consume: Client::consume_command("q", "c", 1) }).await;
    let publisher = Mutex::new(publisher);
    eventually_true("the consumer is there", || async { publisher.lock().await.counts("q").await.1 == 1 }).await;
    let mut publisher = publisher.into_inner();
    publisher.publish_with("", "q", "now", expiring("0"), false).await;
    publisher.confirm().await;
    publisher.publish_with("", "q", "too much", expiring("0"), false).await;
    publisher.confirm().await;
    assert!(publisher.no_delivery().await);
    assert_eq!(body(&slow.delivery().await), "now");
    let publisher = Mutex::new(publisher);
    eventually_true("the second expires", || async { publisher.lock().await.counts("q").await.0 == 0 }).await;
    assert!(slow.no_delivery().await);
}

#[tokio::test]
async fn what_came_back_behind_another_and_has_expired_meanwhile_is_not_delivered_again() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.consume("q", "c", 2).await;
    client.publish("", "q", "kept").await;
    client.publish_with("", "q", "at once", expiring("0"), false).await;
    let (kept, at_once) = (client.delivery().await, client.delivery().await);
    assert_eq!((body(&kept), body(&at_once)), ("kept".to_owned(), "at once".to_owned()));
    client.settle(&[&kept, &at_once], Outcome::Requeue).await;
    client.credit("c", 2).await;
    let again = client.delivery().await;
    assert_eq!((body(&again), again.redelivered), ("kept".to_owned(), true));
    assert!(client.no_delivery().await);
    client.settle(&[&again], Outcome::Ack).await;
    assert_eq!(client.counts("q").await.0, 0);
}

#[tokio::test]
async fn a_queue_that_nobody_uses_expires() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let arguments = table(&[("x-expires", AMQPValue::LongInt(300))]);
    client.declare(QueueDeclare { arguments, ..queue("q") }).await;
    client.consume("q", "c", 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    client.store("", "q", "x").await;
    assert_eq!(body(&client.delivery().await), "x", "a queue with a consumer does not expire");
    client.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    // A passive declaration would count as use: the queue is watched from the side.
    eventually_true("it expires", || async { backend.durable_queues("/").is_empty() }).await;
    let passive = Topology::QueueDeclare(QueueDeclare { passive: true, ..queue("q") });
    assert_eq!(client.topology(passive).await.expect_err("gone").code, ReplyCode::NotFound);
}

#[tokio::test]
async fn an_expiration_that_is_none_fails_the_channel() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.publish_with("", "q", "x", expiring("soon"), false).await;
    let failed = |event: &Event| matches!(event, Event::ChannelFailed { .. });
    let text = client.next("the failure", failed, |event| format!("{event:?}")).await;
    assert!(text.contains("invalid expiration 'soon': no_integer"), "{text}");
}
