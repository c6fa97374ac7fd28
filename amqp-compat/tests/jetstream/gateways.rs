//! Several gateways over one NATS account: what one of them promises, they promise together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use amqp_compat::backend::jetstream::{Gateways, JetStreamBackend, JetStreamConfig, Lease};
use amqp_compat::backend::*;
use amqp_compat::error::ReplyCode;
use nats_bridge::Bridge;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

use crate::client::{CAP, Client, body, exchange, login, queue, table, text, until_counts};

/// Long enough for a crowded machine, short enough to wait for.
const LEASE: Duration = Duration::from_secs(4);

/// One gateway among several.
struct Gateway {
    backend: Arc<JetStreamBackend>,
    place: Gateways,
}

impl Gateway {
    async fn start(url: &str) -> Self {
        Self::start_for(url, Duration::from_secs(10)).await
    }

    async fn start_for(url: &str, lease: Duration) -> Self {
        let bridge = Bridge::connect(url).await.expect("connected");
        let place = Gateways::join_for(&bridge, lease).await.expect("a place");
        let config = JetStreamConfig { gateways: Some(place.clone()), ..JetStreamConfig::default() };
        let backend = JetStreamBackend::connect(bridge, config).await.expect("taken up");
        Self { backend, place }
    }

    async fn client(&self) -> Client {
        Client::open(&*self.backend).await
    }
}

/// The one that leads, and one that follows.
async fn two(server: &NatsServer) -> (Gateway, Gateway) {
    let first = Gateway::start(&server.url()).await;
    let second = Gateway::start(&server.url()).await;
    assert!(first.place.is_leading() && !second.place.is_leading());
    (first, second)
}

/// A gateway in a runtime of its own, which can be killed.
struct Killable {
    backend: Arc<JetStreamBackend>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Killable {
    fn start(url: &str) -> Self {
        let url = url.to_owned();
        let started = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let gateway = runtime.block_on(Gateway::start_for(&url, LEASE));
            Self { backend: gateway.backend, runtime: Some(runtime) }
        });
        started.join().expect("started")
    }

    async fn client(&self) -> Client {
        // Its tasks are to end with the gateway.
        let (backend, runtime) = (self.backend.clone(), self.runtime.as_ref().expect("it lives"));
        runtime.spawn(async move { Client::open(&*backend).await }).await.expect("opened")
    }

    /// Everything that it would do ends; nothing is given back.
    fn kill(self) {}
}

impl Drop for Killable {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn missing(client: &mut Client, name: &str) -> Option<ReplyCode> {
    let passive = QueueDeclare { passive: true, ..queue(name) };
    client.topology(Topology::QueueDeclare(passive)).await.err().map(|error| error.code)
}

/// Waits until a queue is not there any more.
async fn until_gone(client: &mut Client, name: &str) {
    let deadline = tokio::time::Instant::now() + CAP;
    while missing(client, name).await != Some(ReplyCode::NotFound) {
        assert!(tokio::time::Instant::now() < deadline, "queue {name} is there still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a gateway leads.
async fn until_leading(gateway: &Gateway) {
    eventually_true("it leads", || async { gateway.place.is_leading() }).await;
}

#[tokio::test]
async fn what_was_declared_and_bound_at_one_gateway_is_routed_by_the_other_as_soon_as_it_was_answered() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    let (mut one, mut other) = (first.client().await, second.client().await);
    for round in 0..40 {
        let (changes, publishes) = if round % 2 == 0 { (&mut one, &mut other) } else { (&mut other, &mut one) };
        let (source, name) = (format!("x{round}"), format!("q{round}"));
        changes.topology(Topology::ExchangeDeclare(exchange(&source, "topic"))).await.expect("declared");
        changes.declare(queue(&name)).await;
        changes.bind(&source, &name, "a.#").await;
        let seq = publishes.publish_with(&source, "a.b", "m", AMQPProperties::default(), true).await;
        assert_eq!(publishes.confirm().await, (seq, PublishOutcome::Stored));
        assert_eq!(changes.counts(&name).await, (1, 0), "round {round}");
        assert_eq!(publishes.counts(&name).await, (1, 0), "round {round}");
        let unbind = Binding {
            source: source.as_str().into(),
            destination: name.as_str().into(),
            routing_key: "a.#".into(),
            arguments: table(&[]),
        };
        changes.topology(Topology::QueueUnbind(unbind)).await.expect("unbound");
        publishes.publish_with(&source, "a.b", "m", AMQPProperties::default(), true).await;
        publishes.next("a return", |event| matches!(event, Event::Returned { .. }), drop).await;
        publishes.confirm().await;
    }
}

#[tokio::test]
async fn a_refusal_is_the_same_at_every_gateway() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    let (mut one, mut other) = (first.client().await, second.client().await);
    one.declare(queue("q")).await;
    let mut texts = Vec::new();
    for client in [&mut one, &mut other] {
        let different = QueueDeclare { auto_delete: true, ..queue("q") };
        let different = client.topology(Topology::QueueDeclare(different)).await.expect_err("not equivalent");
        let unknown = client.topology(Topology::QueuePurge { queue: "no".into() }).await.expect_err("not there");
        let get = client.request(Command::Get { channel: 1, queue: "no".into() }).await.expect_err("not there");
        texts.push((different.to_string(), unknown.to_string(), get.to_string()));
    }
    assert!(texts[0].0.contains("inequivalent arg 'auto_delete'"), "{texts:?}");
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test]
async fn messages_go_in_order_from_any_gateway_to_consumers_of_any_gateway() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    for (from, to) in [(&first, &second), (&second, &first), (&second, &second)] {
        let (mut publishes, mut consumes) = (from.client().await, to.client().await);
        consumes.declare(queue("q")).await;
        consumes.consume("q", "c", 16).await;
        for number in 0..300 {
            publishes.publish("", "q", number.to_string()).await;
        }
        for number in 0..300 {
            let delivery = consumes.delivery().await;
            assert_eq!((body(&delivery), delivery.redelivered), (number.to_string(), false));
            consumes.settle(&[&delivery], Outcome::Ack).await;
            consumes.credit("c", 1).await;
        }
        for _ in 0..300 {
            assert_eq!(publishes.confirm().await.1, PublishOutcome::Stored);
        }
        consumes.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
        assert_eq!(publishes.counts("q").await, (0, 0));
        assert!(publishes.get("q").await.is_none());
    }
}

#[tokio::test]
async fn a_consumer_of_another_gateway_has_credit_requeues_rejects_and_is_cancelled_as_one_of_its_own() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    let (mut one, mut other) = (first.client().await, second.client().await);
    one.declare(queue("dead")).await;
    let dead = [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text("dead"))];
    one.declare(QueueDeclare { arguments: table(&dead), ..queue("q") }).await;
    for number in 0..5 {
        one.store("", "q", number.to_string()).await;
    }
    other.consume("q", "c", 2).await;
    let (zero, second_one) = (other.delivery().await, other.delivery().await);
    assert_eq!((body(&zero), body(&second_one)), ("0".into(), "1".into()));
    assert!(other.no_delivery().await, "it has no credit for more");
    assert_eq!(one.counts("q").await, (3, 1));
    other.settle(&[&zero], Outcome::Requeue).await;
    other.credit("c", 1).await;
    let again = other.delivery().await;
    assert_eq!((body(&again), again.redelivered), ("0".into(), true));
    other.settle(&[&second_one], Outcome::Reject).await;
    other.settle(&[&again], Outcome::Ack).await;
    until_counts(&mut one, "dead", (1, 0)).await;
    other.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    assert_eq!(one.counts("q").await, (3, 0));
    let dead = other.get("dead").await.expect("a dead letter");
    assert_eq!(body(&dead.delivery), "1");
    let count = dead.delivery.message.properties.headers().as_ref().map(|headers| headers.contains_key("x-death"));
    assert_eq!(count, Some(true));

    // What a channel holds goes back with it.
    let got = other.get("q").await.expect("a message");
    assert_eq!((body(&got.delivery).as_str(), got.message_count), ("2", 2));
    assert_eq!(one.counts("q").await, (2, 0));
    other.close_channel().await;
    assert_eq!(one.counts("q").await, (3, 0));
    let got = one.get("q").await.expect("it is back");
    assert_eq!((body(&got.delivery).as_str(), got.delivery.redelivered), ("2", true));
}

#[tokio::test]
async fn exclusive_consumers_and_a_single_active_one_are_so_among_all_gateways() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    let (mut one, mut other) = (first.client().await, second.client().await);
    one.declare(queue("q")).await;
    let alone = Consume { exclusive: true, ..Client::consume_command("q", "c", 1) };
    other.done(Command::Consume { channel: 1, consume: alone.clone() }).await;
    for consume in [alone, Client::consume_command("q", "d", 1)] {
        let refused = one.request(Command::Consume { channel: 1, consume }).await.expect_err("in exclusive use");
        assert_eq!(refused.code, ReplyCode::AccessRefused);
    }
    other.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    one.consume("q", "c", 1).await;

    let single = table(&[("x-single-active-consumer", AMQPValue::Boolean(true))]);
    one.declare(QueueDeclare { arguments: single, ..queue("s") }).await;
    other.consume("s", "active", 9).await;
    one.consume("s", "waits", 9).await;
    for number in 0..3 {
        one.store("", "s", number.to_string()).await;
        assert_eq!(other.delivery_of().await.0, "active");
    }
    assert!(one.no_delivery().await);
    other.close().await;
    for number in 0..3 {
        let (tag, delivery) = one.delivery_of().await;
        assert_eq!((tag.as_str(), body(&delivery), delivery.redelivered), ("waits", number.to_string(), true));
    }
}

#[tokio::test]
async fn a_queue_is_purged_deleted_and_goes_with_its_last_consumer_wherever_that_is() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    for (here, there) in [(&first, &second), (&second, &first)] {
        let (mut here, mut there) = (here.client().await, there.client().await);
        here.declare(queue("q")).await;
        for _ in 0..3 {
            there.store("", "q", "m").await;
        }
        match here.topology(Topology::QueuePurge { queue: "q".into() }).await {
            Ok(Reply::MessageCount(3)) => {}
            other => panic!("{other:?}"),
        }
        there.store("", "q", "m").await;
        there.consume("q", "c", 1).await;
        there.delivery().await;
        let delete = |if_unused| Topology::QueueDelete { queue: "q".into(), if_unused, if_empty: false };
        assert_eq!(here.topology(delete(true)).await.expect_err("in use").code, ReplyCode::PreconditionFailed);
        here.topology(delete(false)).await.expect("deleted");
        let told = |event: &Event| matches!(event, Event::ConsumerCancelled { .. });
        there.next("the end of the consumer", told, drop).await;
        assert_eq!(missing(&mut there, "q").await, Some(ReplyCode::NotFound));

        let goes = QueueDeclare { auto_delete: true, ..queue("goes") };
        here.declare(goes).await;
        there.consume("goes", "g", 1).await;
        here.consume("goes", "h", 1).await;
        here.done(Command::Cancel { channel: 1, consumer_tag: "h".into() }).await;
        assert_eq!(here.counts("goes").await, (0, 1));
        there.done(Command::Cancel { channel: 1, consumer_tag: "g".into() }).await;
        assert_eq!(missing(&mut there, "goes").await, Some(ReplyCode::NotFound));
        assert_eq!(missing(&mut here, "goes").await, Some(ReplyCode::NotFound));
    }
}

#[tokio::test]
async fn limits_and_priorities_hold_whoever_publishes() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    let (mut one, mut other) = (first.client().await, second.client().await);
    let limits = table(&[("x-max-length", AMQPValue::LongInt(3)), ("x-overflow", text("reject-publish"))]);
    other.declare(QueueDeclare { arguments: limits, ..queue("full") }).await;
    one.store("", "full", "0").await;
    other.store("", "full", "1").await;
    other.store("", "full", "2").await;
    for client in [&mut one, &mut other] {
        let seq = client.publish("", "full", "too much").await;
        assert_eq!(client.confirm().await, (seq, PublishOutcome::Failed));
    }
    let got = other.get("full").await.expect("the first");
    assert_eq!((body(&got.delivery).as_str(), got.message_count), ("0", 2));
    other.store("", "full", "3").await;

    let priorities = table(&[("x-max-priority", AMQPValue::LongInt(9))]);
    one.declare(QueueDeclare { arguments: priorities, ..queue("first") }).await;
    for priority in [3, 7, 5] {
        let client = if priority == 5 { &mut one } else { &mut other };
        let properties = AMQPProperties::default().with_priority(priority);
        client.publish_with("", "first", priority.to_string(), properties, false).await;
        assert_eq!(client.confirm().await.1, PublishOutcome::Stored);
    }
    other.consume("first", "c", 9).await;
    for priority in ["7", "5", "3"] {
        assert_eq!(body(&other.delivery().await), priority);
    }
}

#[tokio::test]
async fn an_exclusive_queue_gets_what_is_published_at_another_gateway_and_ends_with_its_connection() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    let mine = |name: &str| QueueDeclare { exclusive: true, durable: false, ..queue(name) };
    for (here, there) in [(&first, &second), (&second, &first)] {
        let (mut here, mut there) = (here.client().await, there.client().await);
        let (name, _, _) = here.declare(mine("")).await;
        here.bind("amq.fanout", &name, "").await;
        there.store("", &name, "direct").await;
        there.store("amq.fanout", "", "bound").await;
        here.store("amq.fanout", "", "own").await;
        assert_eq!(here.counts(&name).await, (3, 0));
        here.consume(&name, "c", 9).await;
        for expected in ["direct", "bound", "own"] {
            let delivery = here.delivery().await;
            assert_eq!((body(&delivery).as_str(), delivery.redelivered), (expected, false));
            here.settle(&[&delivery], Outcome::Ack).await;
        }
        let refused = there.request(Command::Get { channel: 1, queue: name.as_str().into() }).await;
        assert_eq!(refused.expect_err("another connection's").code, ReplyCode::ResourceLocked);
        assert_eq!(missing(&mut there, &name).await, Some(ReplyCode::ResourceLocked));
        here.close().await;
        until_gone(&mut there, &name).await;
        let seq = there.publish_with("amq.fanout", "", "m", AMQPProperties::default(), true).await;
        there.next("a return", |event| matches!(event, Event::Returned { .. }), drop).await;
        assert_eq!(there.confirm().await, (seq, PublishOutcome::Stored));
    }
}

#[tokio::test]
async fn a_direct_reply_finds_its_client_at_another_gateway() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    for (asks, answers) in [(&first, &second), (&second, &first)] {
        let (mut asks, mut answers) = (asks.client().await, answers.client().await);
        answers.declare(queue("requests")).await;
        let waits = Consume { no_ack: true, ..Client::consume_command("amq.rabbitmq.reply-to", "mine", 0) };
        asks.done(Command::Consume { channel: 1, consume: waits }).await;
        let request = AMQPProperties::default().with_reply_to("amq.rabbitmq.reply-to".into());
        asks.publish_with("", "requests", "ping", request, false).await;
        asks.confirm().await;
        let got = answers.get("requests").await.expect("a request");
        answers.settle(&[&got.delivery], Outcome::Ack).await;
        let name = got.delivery.message.properties.reply_to().as_ref().map(ToString::to_string).expect("a name");
        assert_eq!(answers.counts(&name).await, (0, 1));
        let properties = AMQPProperties::default().with_correlation_id("7".into());
        answers.publish_with("", &name, "pong", properties.clone(), false).await;
        answers.confirm().await;
        let (tag, reply) = asks.delivery_of().await;
        assert_eq!((tag.as_str(), body(&reply).as_str(), reply.id), ("mine", "pong", DeliveryId::DIRECT));
        assert_eq!(reply.message.properties, properties);
        asks.close().await;
        until_gone(&mut answers, &name).await;
    }
}

#[tokio::test]
async fn the_largest_message_that_nats_takes_goes_from_gateway_to_gateway() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    let (mut one, mut other) = (first.client().await, second.client().await);
    one.declare(queue("q")).await;
    let large = vec![7; (1 << 20) - 512];
    one.store("", "q", large.clone()).await;
    other.store("", "q", "small").await;
    other.consume("q", "c", 2).await;
    assert_eq!(&other.delivery().await.message.body[..], &large[..]);
    assert_eq!(body(&other.delivery().await), "small");
}

#[tokio::test]
async fn gateways_that_share_an_account_and_those_that_do_not_keep_each_other_out() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    let first = Gateway::start_for(&server.url(), LEASE).await;
    let alone = Lease::acquire_for(&bridge, LEASE).await.expect_err("shared");
    assert!(alone.to_string().contains("another gateway serves this NATS account"), "{alone}");
    first.place.leave().await;
    let lease = Lease::acquire_for(&bridge, LEASE).await.expect("free");
    Gateways::join_for(&bridge, LEASE).await.expect_err("served alone");
    lease.release().await;
    Gateways::join_for(&bridge, LEASE).await.expect("free").leave().await;
}

#[tokio::test]
async fn a_gateway_that_leaves_is_followed_at_once_and_clients_of_the_other_notice_nothing() {
    let server = NatsServer::start();
    let (first, second) = two(&server).await;
    let mut client = second.client().await;
    client.declare(queue("q")).await;
    client.declare(QueueDeclare { durable: false, ..queue("transient") }).await;
    let own = QueueDeclare { exclusive: true, durable: false, ..queue("own") };
    client.declare(own).await;
    client.consume("q", "c", 4).await;
    client.consume("own", "o", 4).await;
    client.store("", "q", "before").await;
    let held = client.delivery().await;
    first.place.leave().await;
    until_leading(&second).await;
    // What it held has come again, and says so.
    let again = client.delivery().await;
    assert_eq!((body(&again), again.redelivered), ("before".into(), true));
    client.settle(&[&held, &again], Outcome::Ack).await;
    client.store("", "q", "after").await;
    client.store("", "own", "mine").await;
    let mut came = [client.delivery_of().await, client.delivery_of().await].map(|(tag, one)| (tag, body(&one)));
    came.sort();
    assert_eq!(came, [("c".into(), "after".into()), ("o".into(), "mine".into())]);
    assert_eq!(client.counts("transient").await, (0, 0));
    assert_eq!(client.counts("q").await, (0, 1));
    // And another one can come.
    let third = Gateway::start(&server.url()).await;
    assert_eq!(third.client().await.counts("transient").await, (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leading_gateway_dies_nothing_confirmed_is_lost_and_what_was_held_comes_again_flagged() {
    let server = NatsServer::start();
    let first = Killable::start(&server.url());
    let second = Gateway::start_for(&server.url(), LEASE).await;
    let mut lost = first.client().await;
    let mut client = second.client().await;
    client.declare(queue("q")).await;
    let theirs = QueueDeclare { exclusive: true, durable: false, ..queue("theirs") };
    lost.declare(theirs).await;
    lost.consume("q", "lost", 20).await;
    client.consume("q", "c", 20).await;
    let mut confirmed = 0;
    let mut published = 0;
    let mut delivered: BTreeMap<String, u32> = BTreeMap::new();
    let mut first = Some(first);
    let deadline = tokio::time::Instant::now() + CAP * 4;
    const TOTAL: usize = 2000;
    while confirmed < TOTAL || delivered.len() < TOTAL {
        assert!(tokio::time::Instant::now() < deadline, "{confirmed} confirmed, {} delivered", delivered.len());
        if published < TOTAL && published - confirmed < 100 {
            client.publish("", "q", published.to_string()).await;
            published += 1;
        }
        if delivered.len() > TOTAL / 4
            && let Some(first) = first.take()
        {
            first.kill();
        }
        let timeout = Duration::from_millis(if published < TOTAL { 0 } else { 200 });
        let Ok(Some(event)) = tokio::time::timeout(timeout, client.link.events.recv()).await else { continue };
        match event {
            Event::Confirm { outcome, .. } => {
                assert_eq!(outcome, PublishOutcome::Stored);
                confirmed += 1;
            }
            Event::Delivery { delivery, .. } => {
                let times = delivered.entry(body(&delivery)).or_default();
                *times += 1;
                assert!(*times == 1 || delivery.redelivered, "{} came again and did not say so", body(&delivery));
                client.settle(&[&delivery], Outcome::Ack).await;
                client.credit("c", 1).await;
            }
            Event::Blocked { .. } | Event::Unblocked => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(first.is_none() && second.place.is_leading());
    drop(lost);
    until_counts(&mut client, "q", (0, 1)).await;
    until_gone(&mut client, "theirs").await;
    assert_eq!(second.backend.open(login()).await.map(drop).map_err(|error| error.to_string()), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_of_a_dead_gateway_held_goes_to_others_and_its_exclusive_queues_go() {
    let server = NatsServer::start();
    let first = Gateway::start_for(&server.url(), LEASE).await;
    let second = Killable::start(&server.url());
    let (mut client, mut lost) = (first.client().await, second.client().await);
    client.declare(queue("q")).await;
    let own = QueueDeclare { exclusive: true, durable: false, ..queue("own") };
    lost.declare(own).await;
    lost.bind("amq.fanout", "own", "").await;
    lost.consume("q", "lost", 2).await;
    for number in 0..3 {
        client.store("", "q", number.to_string()).await;
    }
    lost.delivery().await;
    lost.delivery().await;
    client.consume("q", "c", 3).await;
    assert_eq!(body(&client.delivery().await), "2");
    second.kill();
    for number in ["0", "1"] {
        let delivery = client.delivery().await;
        assert_eq!((body(&delivery).as_str(), delivery.redelivered), (number, true));
    }
    until_gone(&mut client, "own").await;
    client.store("amq.fanout", "", "nobody").await;
    drop(lost);
}
