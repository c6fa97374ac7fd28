use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use amqp_compat::ReplyCode;
use amqp_compat::backend::jetstream::JetStreamConfig;
use amqp_compat::backend::{
    Binding, Delivery, Event, ExchangeDeclare, Outcome, PublishOutcome, QueueDeclare, Topology,
};
use test_support::nats::NatsServer;

use crate::client::{Client, body, exchange, queue, table, text};
use crate::{backend, backend_with, one_lease};

fn delayed(name: &str, kind: &str) -> ExchangeDeclare {
    ExchangeDeclare { arguments: table(&[("x-delayed-type", text(kind))]), ..exchange(name, "x-delayed-message") }
}

fn delay(milliseconds: i32) -> AMQPProperties {
    AMQPProperties::default().with_headers(table(&[("x-delay", AMQPValue::LongInt(milliseconds))]))
}

async fn declare(client: &mut Client, name: &str) {
    client.topology(Topology::ExchangeDeclare(delayed(name, "topic"))).await.expect("declared");
}

/// Publishes with a delay and waits until it is stored.
async fn store(client: &mut Client, name: &str, milliseconds: i32, text: &str) {
    let seq = client.publish_with(name, "a.b", text, delay(milliseconds), false).await;
    assert_eq!(client.confirm().await, (seq, PublishOutcome::Stored));
}

fn header(delivery: &Delivery) -> Option<AMQPValue> {
    delivery.message.properties.headers().as_ref()?.inner().get("x-delay").cloned()
}

#[tokio::test]
async fn messages_come_when_their_delay_is_over_in_the_order_of_their_time() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    declare(&mut client, "d").await;
    client.declare(queue("q")).await;
    client.bind("d", "q", "a.#").await;
    client.consume("q", "c", 10).await;
    let begin = Instant::now();
    store(&mut client, "d", 1500, "late").await;
    store(&mut client, "d", 600, "soon").await;
    client.store("d", "a.b", "now").await;
    store(&mut client, "d", -5, "never delayed").await;
    for (expected, after, value) in
        [("now", 0, None), ("never delayed", 0, Some(-5)), ("soon", 600, Some(-600)), ("late", 1500, Some(-1500))]
    {
        let delivery = client.delivery().await;
        assert_eq!(body(&delivery), expected);
        assert_eq!(header(&delivery), value.map(AMQPValue::LongInt));
        assert!(!delivery.redelivered);
        assert_eq!((delivery.message.exchange.as_str(), delivery.message.routing_key.as_str()), ("d", "a.b"));
        assert!(begin.elapsed() >= Duration::from_millis(after), "{expected} came after {:?}", begin.elapsed());
        client.settle(&[&delivery], Outcome::Ack).await;
    }
    assert!(client.no_delivery().await);
}

#[tokio::test]
async fn a_delayed_message_is_confirmed_when_it_is_stored_and_routed_when_it_is_due() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    declare(&mut client, "d").await;
    server.pause();
    let seq = client.publish_with("d", "a.b", "1", delay(2000), false).await;
    let early = tokio::time::timeout(Duration::from_millis(300), client.confirm()).await;
    server.resume();
    assert!(early.is_err(), "{early:?} came from a server that was stopped");
    assert_eq!(client.confirm().await, (seq, PublishOutcome::Stored));
    // Made and bound while it waits.
    client.declare(queue("q")).await;
    client.bind("d", "q", "*.b").await;
    client.consume("q", "c", 1).await;
    assert_eq!(body(&client.delivery().await), "1");
}

#[tokio::test]
async fn delayed_messages_survive_the_gateway_and_a_killed_server() {
    let mut server = NatsServer::start();
    let config = one_lease(&server).await;
    let first = backend_with(&server, config.clone()).await;
    let mut client = Client::open(&*first).await;
    declare(&mut client, "d").await;
    client.declare(queue("q")).await;
    client.bind("d", "q", "#").await;
    const COUNT: i32 = 200;
    for n in 0..COUNT {
        // None is under way when the server is killed: of one that is, the killed server may forget that it has it.
        let properties = delay(6000 + 10 * ((n * 37) % COUNT));
        client.publish_with("d", "a.b", n.to_string(), properties, false).await;
    }
    for _ in 0..COUNT {
        assert_eq!(client.confirm().await.1, PublishOutcome::Stored);
    }
    server.kill_9();
    client.close().await;
    drop(first);
    server.restart();
    let second = backend_with(&server, config).await;
    let mut client = Client::open(&*second).await;
    client.consume("q", "c", 50).await;
    let mut seen = BTreeSet::new();
    for _ in 0..COUNT / 2 {
        let delivery = client.delivery().await;
        assert!(seen.insert(body(&delivery)), "{} came twice", body(&delivery));
        client.settle(&[&delivery], Outcome::Ack).await;
        client.credit("c", 1).await;
    }
    server.kill_9();
    server.restart();
    while seen.len() < COUNT as usize {
        let delivery = client.delivery().await;
        seen.insert(body(&delivery));
        client.settle(&[&delivery], Outcome::Ack).await;
        client.credit("c", 1).await;
    }
}

#[tokio::test]
async fn a_mandatory_message_comes_back_at_once_and_is_delivered_all_the_same() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    declare(&mut client, "d").await;
    client.declare(queue("q")).await;
    client.bind("d", "q", "#").await;
    let seq = client.publish_with("d", "k", "1", delay(300), true).await;
    let returned = client.next("Returned", |event| matches!(event, Event::Returned { .. }), |event| event).await;
    assert!(matches!(returned, Event::Returned { error, .. } if error.code == ReplyCode::NoRoute));
    assert_eq!(client.confirm().await, (seq, PublishOutcome::Stored));
    client.consume("q", "c", 1).await;
    assert_eq!(body(&client.delivery().await), "1");
}

#[tokio::test]
async fn dead_letters_and_bindings_between_exchanges_lead_through_a_delay() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    declare(&mut client, "d").await;
    client.declare(queue("out")).await;
    client.bind("d", "out", "#").await;
    let dead = QueueDeclare { arguments: table(&[("x-dead-letter-exchange", text("d"))]), ..queue("in") };
    client.declare(dead).await;
    let binding = Binding {
        source: "amq.fanout".into(),
        destination: "d".into(),
        routing_key: "".into(),
        arguments: Default::default(),
    };
    client.topology(Topology::ExchangeBind(binding)).await.expect("bound");
    client.consume("out", "out", 5).await;

    let begin = Instant::now();
    client.publish_with("", "in", "rejected", delay(700), false).await;
    let got = client.get("in").await.expect("stored");
    assert_eq!(header(&got.delivery), Some(AMQPValue::LongInt(700)), "not the default exchange's business");
    client.settle(&[&got.delivery], Outcome::Reject).await;
    let delivery = client.delivery().await;
    assert_eq!((body(&delivery), header(&delivery)), ("rejected".to_owned(), Some(AMQPValue::LongInt(-700))));
    assert!(begin.elapsed() >= Duration::from_millis(700));

    let begin = Instant::now();
    client.publish_with("amq.fanout", "k", "through", delay(700), false).await;
    let delivery = client.delivery().await;
    assert_eq!((body(&delivery), delivery.message.exchange.as_str()), ("through".to_owned(), "amq.fanout"));
    assert!(begin.elapsed() >= Duration::from_millis(700));
}

#[tokio::test]
async fn what_cannot_be_delayed_is_refused() {
    let server = NatsServer::start();
    let config = JetStreamConfig { max_delayed: 2, ..JetStreamConfig::default() };
    let backend = backend_with(&server, config).await;
    let mut client = Client::open(&*backend).await;
    for (declare, code) in [
        (exchange("e", "x-delayed-message"), ReplyCode::PreconditionFailed),
        (delayed("e", "x-delayed-message"), ReplyCode::PreconditionFailed),
        (delayed("e", "nope"), ReplyCode::CommandInvalid),
    ] {
        let error = client.topology(Topology::ExchangeDeclare(declare)).await.expect_err("refused");
        assert_eq!(error.code, code, "{error}");
    }
    declare(&mut client, "d").await;
    store(&mut client, "d", 60_000, "1").await;
    store(&mut client, "d", 60_000, "2").await;
    let seq = client.publish_with("d", "k", "3", delay(60_000), false).await;
    assert_eq!(client.confirm().await, (seq, PublishOutcome::Failed), "as many as there may be");
    let soon = AMQPProperties::default().with_headers(table(&[("x-delay", text("soon"))]));
    client.publish_with("d", "k", "4", soon, false).await;
    let failed =
        client.next("a failed channel", |event| matches!(event, Event::ChannelFailed { .. }), |event| event).await;
    assert!(matches!(failed, Event::ChannelFailed { error, .. } if error.code == ReplyCode::PreconditionFailed));
}
