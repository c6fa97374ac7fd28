//! Health, the ledger, traces and the net below the retry policy, on a real server.

#![allow(clippy::unwrap_used)]

mod orders;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt;
use nats_bridge::dead_letter::Filter;
use nats_bridge::health::{HealthCheck, Required};
use nats_bridge::ledger::Begun;
use nats_bridge::{Bridge, ConsumeConfig, ErrorKind, Message, RetryPolicy, TraceContext};
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
async fn an_effect_with_a_ledger_happens_once() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let lease = Duration::from_millis(300);
    let hour = Duration::from_secs(3600);
    let ledger = Arc::new(bridge.ledger("billing-done", hour, lease).await.unwrap());
    let effects = Arc::new(AtomicUsize::new(0));
    // Many at once: one has it.
    let racing: Vec<_> = (0..10)
        .map(|_| {
            let (ledger, effects) = (ledger.clone(), effects.clone());
            tokio::spawn(async move {
                if let Begun::First(entry) = ledger.begin("order 17 > *").await.unwrap() {
                    effects.fetch_add(1, Ordering::SeqCst);
                    entry.done().await.unwrap();
                }
            })
        })
        .collect();
    for task in racing {
        task.await.unwrap();
    }
    assert_eq!(effects.load(Ordering::SeqCst), 1);
    let other = Bridge::connect(server.url()).await.unwrap().ledger("billing-done", hour, lease).await.unwrap();
    assert!(matches!(other.begin("order 17 > *").await.unwrap(), Begun::Done));

    // A worker that dies leaves its entry for the lease, and may not finish after that.
    let Begun::First(dead) = ledger.begin("o-2").await.unwrap() else { panic!("nobody else has it") };
    assert!(matches!(other.begin("o-2").await.unwrap(), Begun::Elsewhere));
    let heir = eventually_some("the lease is over", || async {
        match other.begin("o-2").await.unwrap() {
            Begun::First(entry) => Some(entry),
            _ => None,
        }
    })
    .await;
    assert_eq!(dead.done().await.unwrap_err().kind(), ErrorKind::Conflict);
    heir.undo().await.unwrap();
    let Begun::First(entry) = ledger.begin("o-2").await.unwrap() else { panic!("it was undone") };
    entry.done().await.unwrap();
    assert_eq!(ledger.begin("").await.unwrap_err().kind(), ErrorKind::InvalidMessage);
    assert_eq!(bridge.ledger("no.dots", hour, lease).await.unwrap_err().kind(), ErrorKind::Config);
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
