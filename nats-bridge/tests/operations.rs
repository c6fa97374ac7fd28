//! Health, traces and the net below the retry policy, on a real server.

#![allow(clippy::unwrap_used)]

mod orders;

use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt;
use nats_bridge::dead_letter::Filter;
use nats_bridge::health::{HealthCheck, Required};
use nats_bridge::{ConsumeConfig, Message, RetryPolicy, TraceContext};
use test_support::eventually::{eventually_some, eventually_true};
use test_support::nats::NatsServer;

use orders::bridge;

fn billing() -> ConsumeConfig {
    let retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    ConsumeConfig { retry, heartbeat: Duration::from_millis(500), ..ConsumeConfig::new("ORDERS", "billing") }
}

#[tokio::test]
async fn health_names_what_is_missing_full_or_behind() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let required = Required {
        streams: vec!["ORDERS".into(), "MISSING".into()],
        consumers: vec![("ORDERS".into(), "billing".into()), ("ORDERS".into(), "nobody".into())],
        dead_letters: vec!["ORDERS_DLQ".into()],
        max_pending: Some(10),
        max_mirror_lag: None,
    };
    let _consumer = bridge.consume(ConsumeConfig { max_messages: 1, ..billing() }).await.unwrap();
    let check = HealthCheck::new(&bridge, required.clone());
    let health = check.look().await;
    assert!(!health.ready);
    assert_eq!(health.problems, ["stream MISSING does not exist", "consumer ORDERS/nobody does not exist"]);
    assert_eq!((health.consumers[0].pending, health.consumers[0].pending_per_second), (0, None));

    let possible =
        Required { streams: vec!["ORDERS".into()], consumers: vec![("ORDERS".into(), "billing".into())], ..required };
    let check = HealthCheck::new(&bridge, possible);
    assert!(check.look().await.ready);
    for i in 0..50 {
        bridge.publish(Message::new("orders.new", i.to_string())).await.unwrap();
    }
    let health = eventually_some("it lags", || async {
        let health = check.look().await;
        (health.consumers[0].pending > 40).then_some(health)
    })
    .await;
    assert!(health.problems[0].ends_with("messages waiting"), "{health:?}");
    assert!(health.consumers[0].pending_per_second.unwrap() > 0.0, "{health:?}");

    // A dead-letter stream without room.
    bridge.publish(Message::new("dlq.ORDERS.x", vec![0u8; 200])).await.unwrap();
    let mut letters = bridge.jetstream().get_stream("ORDERS_DLQ").await.unwrap();
    let mut config = letters.info().await.unwrap().config.clone();
    config.max_bytes = 1;
    config.discard = async_nats::jetstream::stream::DiscardPolicy::New;
    bridge.jetstream().update_stream(config).await.unwrap();
    let health = check.look().await;
    // The server either keeps what is above the new limit, and then refuses more, or removed it.
    let full = letters.info().await.unwrap().state.bytes >= 1;
    assert_eq!(health.problems.iter().any(|problem| problem.contains("ORDERS_DLQ is full")), full, "{health:?}");
}

#[tokio::test]
async fn a_trace_goes_on_through_a_message() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let mut span = TraceContext::root(true);
    span.state = Some("vendor=1".into());
    bridge.publish(Message::new("orders.new", "1").trace(&span)).await.unwrap();
    bridge.publish(Message::new("orders.new", "2").header("traceparent", "what")).await.unwrap();
    let mut consumer = bridge.consume(billing()).await.unwrap();
    let delivery = consumer.next().await.unwrap().unwrap();
    assert_eq!(delivery.trace(), Some(span));
    delivery.ack().await.unwrap();
    assert_eq!(consumer.next().await.unwrap().unwrap().trace(), None);
}

#[tokio::test]
async fn what_the_server_gave_up_while_nobody_listened_is_a_dead_letter() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let consumer = bridge.consume(billing()).await.unwrap();
    consumer.handle().drain(Duration::from_secs(10)).await.unwrap();
    drop(consumer);
    bridge.publish(Message::new("orders.new", "poison").id("o-1")).await.unwrap();
    // Workers that know nothing of a policy: each gets it, and none settles it.
    let stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    let mut raw: PullConsumer = stream.get_consumer("billing").await.unwrap();
    let most = raw.info().await.unwrap().config.max_deliver;
    for _ in 0..most {
        let mut batch = raw.batch().max_messages(1).expires(Duration::from_secs(10)).messages().await.unwrap();
        let message = tokio::time::timeout(Duration::from_secs(10), batch.next()).await.unwrap().unwrap().unwrap();
        message.ack_with(AckKind::Nak(None)).await.unwrap();
    }
    // Gone for every consumer, and still stored.
    eventually_true("the server gave it up", || async {
        // It notices when somebody asks.
        let mut none = raw.batch().max_messages(1).expires(Duration::from_millis(300)).messages().await.unwrap();
        assert!(none.next().await.is_none());
        let info = stream.consumer_info("billing").await.unwrap();
        let mut advisories = bridge.jetstream().get_stream("ORDERS_ADVISORIES").await.unwrap();
        info.num_ack_pending == 0 && advisories.info().await.unwrap().state.messages == 1
    })
    .await;
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    assert_eq!(letters.count().await.unwrap(), 0);

    let _consumer = bridge.consume(billing()).await.unwrap();
    eventually_true("it is a dead letter", || async { letters.count().await.unwrap() == 1 }).await;
    let letter = letters.peek(&Filter::default(), 1).await.unwrap().remove(0);
    assert_eq!((letter.reason(), letter.attempts()), ("max_deliver", most as u64));
    assert_eq!((&letter.payload[..], letter.redrive_id().as_str()), (&b"poison"[..], "o-1#r1"));
    eventually_true("and nowhere else", || async {
        bridge.jetstream().get_stream("ORDERS").await.unwrap().cached_info().state.messages == 0
    })
    .await;
}
