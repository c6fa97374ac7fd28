use amq_protocol::types::AMQPValue;
use amqp_compat::backend::jetstream::JetStreamConfig;
use amqp_compat::backend::{Command, Consume, Delivery, Event, Outcome, QueueDeclare, Reply, Topology};
use amqp_compat::{AmqpError, ReplyCode};
use test_support::nats::NatsServer;

use crate::client::{Client, body, queue, table, text, until_counts};
use crate::{backend, backend_with, one_lease};

fn stream(name: &str, more: &[(&str, AMQPValue)]) -> QueueDeclare {
    let arguments = [&[("x-queue-type", text("stream"))], more].concat();
    QueueDeclare { arguments: table(&arguments), ..queue(name) }
}

fn from(tag: &str, credit: u32, offset: AMQPValue) -> Consume {
    Consume { arguments: table(&[("x-stream-offset", offset)]), ..Client::consume_command("s", tag, credit) }
}

async fn start(client: &mut Client, consume: Consume) {
    client.done(Command::Consume { channel: 1, consume }).await;
}

fn offset(delivery: &Delivery) -> AMQPValue {
    let headers = delivery.message.properties.headers().as_ref().expect("headers");
    headers.inner().get("x-stream-offset").cloned().expect("an offset")
}

#[tokio::test]
async fn every_consumer_reads_everything_from_where_it_begins() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(stream("s", &[])).await;
    for n in 0..10 {
        client.store("", "s", n.to_string()).await;
    }
    assert_eq!(client.counts("s").await, (10, 0));
    let long = AMQPValue::LongLongInt;
    for (begins, first) in [
        (text("first"), 0),
        (text("last"), 9),
        (long(0), 0),
        (long(7), 7),
        (long(-3), 0),
        (text("1h"), 0),
        (AMQPValue::Timestamp(0), 0),
    ] {
        start(&mut client, from("c", 20, begins.clone())).await;
        for n in first..10 {
            let delivery = client.delivery().await;
            assert_eq!((body(&delivery), offset(&delivery)), (n.to_string(), long(n)), "{begins:?}");
            assert!(!delivery.redelivered);
            client.settle(&[&delivery], Outcome::Ack).await;
        }
        assert!(client.no_delivery().await, "{begins:?}");
        client.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    }
    // From now on: nothing that was there, everything that comes after the answer.
    let tomorrow = AMQPValue::Timestamp(4_000_000_000);
    start(&mut client, from("c", 20, text("next"))).await;
    start(&mut client, Client::consume_command("s", "d", 20)).await;
    client.store("", "s", "10").await;
    let mut tags = Vec::new();
    for _ in 0..2 {
        let (tag, delivery) = client.delivery_of().await;
        assert_eq!(body(&delivery), "10");
        tags.push(tag);
    }
    tags.sort();
    assert_eq!(tags, ["c", "d"]);
    // An offset that is not there yet is waited for; a time that has not come is now.
    start(&mut client, from("e", 20, tomorrow)).await;
    start(&mut client, from("f", 20, long(12))).await;
    assert!(client.no_delivery().await);
    client.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    client.done(Command::Cancel { channel: 1, consumer_tag: "d".into() }).await;
    client.store("", "s", "11").await;
    client.store("", "s", "12").await;
    let mut came = Vec::new();
    for _ in 0..3 {
        let (tag, delivery) = client.delivery_of().await;
        came.push((tag, body(&delivery)));
    }
    came.sort();
    let expected = [("e", "11"), ("e", "12"), ("f", "12")];
    assert_eq!(came, expected.map(|(tag, body)| (tag.to_owned(), body.to_owned())));
    assert_eq!(client.counts("s").await, (13, 2), "nothing was taken out");
}

#[tokio::test]
async fn credit_is_never_exceeded_and_an_ack_gives_it_back() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(stream("s", &[])).await;
    for n in 0..300 {
        client.store("", "s", n.to_string()).await;
    }
    start(&mut client, from("c", 3, text("first"))).await;
    for n in 0..3 {
        assert_eq!(body(&client.delivery().await), n.to_string());
    }
    assert!(client.no_delivery().await);
    for n in 3..300 {
        client.credit("c", 1).await;
        assert_eq!(body(&client.delivery().await), n.to_string());
    }
    assert!(client.no_delivery().await);
}

#[tokio::test]
async fn readers_go_on_where_they_were_after_a_killed_server_and_gateway() {
    let mut server = NatsServer::start();
    let config = one_lease(&server).await;
    let first = backend_with(&server, config.clone()).await;
    let mut client = Client::open(&*first).await;
    client.declare(stream("s", &[])).await;
    for n in 0..100 {
        client.store("", "s", n.to_string()).await;
    }
    start(&mut client, from("c", 50, text("first"))).await;
    for n in 0..50 {
        assert_eq!(body(&client.delivery().await), n.to_string());
    }
    server.kill_9();
    server.restart();
    client.credit("c", 100).await;
    for n in 50..100 {
        assert_eq!(body(&client.delivery().await), n.to_string());
    }
    client.store("", "s", "100").await;
    assert_eq!(body(&client.delivery().await), "100");
    client.close().await;
    drop(first);
    let second = backend_with(&server, config).await;
    let mut client = Client::open(&*second).await;
    client.declare(stream("s", &[])).await;
    start(&mut client, from("c", 10, AMQPValue::LongInt(99))).await;
    assert_eq!(body(&client.delivery().await), "99");
    assert_eq!(body(&client.delivery().await), "100");
}

#[tokio::test]
async fn old_messages_go_by_size_and_by_age() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(stream("s", &[("x-max-length-bytes", AMQPValue::LongInt(10_000))])).await;
    for n in 0..50u8 {
        client.store("", "s", vec![n; 1000]).await;
    }
    start(&mut client, from("c", 1, text("first"))).await;
    let delivery = client.delivery().await;
    let first = delivery.message.body[0];
    assert!((40..50).contains(&first), "{first}");
    assert_eq!(offset(&delivery), AMQPValue::LongLongInt(first.into()), "offsets count what has gone");
    client.declare(stream("aged", &[("x-max-age", text("1s"))])).await;
    client.store("", "aged", "x").await;
    until_counts(&mut client, "aged", (0, 0)).await;
}

#[tokio::test]
async fn a_deleted_stream_cancels_its_consumers() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(stream("s", &[])).await;
    start(&mut client, from("c", 1, text("first"))).await;
    let delete = Topology::QueueDelete { queue: "s".into(), if_unused: false, if_empty: false };
    client.topology(delete).await.expect("deleted");
    client.next("a cancel", |event| matches!(event, Event::ConsumerCancelled { .. }), drop).await;
    client.declare(stream("s", &[])).await;
    start(&mut client, from("c", 1, text("first"))).await;
    client.store("", "s", "new").await;
    let delivery = client.delivery().await;
    assert_eq!((body(&delivery), offset(&delivery)), ("new".to_owned(), AMQPValue::LongLongInt(0)));
}

#[tokio::test]
async fn what_a_stream_does_not_have_is_refused() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(stream("s", &[])).await;
    client.store("", "s", "1").await;
    let refused = |answer: Result<Reply, AmqpError>| answer.expect_err("refused").to_string();
    let consume = |consume| Command::Consume { channel: 1, consume };
    let none = Consume { prefetch: 0, ..Client::consume_command("s", "c", 5) };
    assert_eq!(
        refused(client.request(consume(none)).await),
        "PRECONDITION_FAILED - consumer prefetch count is not set for 'queue 's' in vhost '/''"
    );
    let automatic = Consume { no_ack: true, ..Client::consume_command("s", "c", 5) };
    let not = |what: &str| format!("NOT_IMPLEMENTED - {what} not supported by stream queues queue 's' in vhost '/'");
    assert_eq!(refused(client.request(consume(automatic)).await), not("automatic acknowledgement"));
    let get = Command::Get { channel: 1, queue: "s".into() };
    assert_eq!(refused(client.request(get).await), not("basic.get"));
    let purge = Topology::QueuePurge { queue: "s".into() };
    assert_eq!(refused(client.topology(purge).await), not("queue.purge"));
    for outcome in [Outcome::Requeue, Outcome::Reject] {
        let mut client = Client::open(&*backend).await;
        start(&mut client, from("c", 1, text("first"))).await;
        let delivery = client.delivery().await;
        client.settle(&[&delivery], outcome).await;
        let is_failed = |event: &Event| matches!(event, Event::ChannelFailed { .. });
        let failed = client.next("a failed channel", is_failed, |event| match event {
            Event::ChannelFailed { error, .. } => error.to_string(),
            _ => unreachable!("only failed channels are wanted"),
        });
        assert_eq!(failed.await, not("basic.nack and basic.reject"));
    }
    // A delivery that came too late for a cancelled consumer is given back by the session and disturbs nobody.
    start(&mut client, from("c", 1, text("first"))).await;
    let delivery = client.delivery().await;
    client.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    client.settle(&[&delivery], Outcome::Requeue).await;
    assert_eq!(client.counts("s").await, (1, 0));
}

#[tokio::test]
async fn beside_rabbitmq_a_stream_is_refused() {
    let server = NatsServer::start();
    let config = JetStreamConfig { behind_rabbitmq: true, ..JetStreamConfig::default() };
    let backend = backend_with(&server, config).await;
    let mut client = Client::open(&*backend).await;
    let error = client.topology(Topology::QueueDeclare(stream("s", &[]))).await.expect_err("refused");
    assert_eq!(error.code, ReplyCode::NotImplemented);
}

#[tokio::test]
async fn a_delivery_says_how_long_its_client_may_take() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(stream("s", &[("x-consumer-timeout", AMQPValue::LongInt(5000))])).await;
    client.store("", "s", "m").await;
    start(&mut client, from("c", 1, text("first"))).await;
    assert_eq!(client.delivery().await.ack_timeout, Some(std::time::Duration::from_secs(5)));
}
