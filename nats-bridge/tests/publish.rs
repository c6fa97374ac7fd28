//! Publishing against a real server: once, exactly once within the window, bounded, and honest about what landed.

#![allow(clippy::unwrap_used)]

mod outbox;

use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use futures::StreamExt;
use nats_bridge::{BreakerConfig, BreakerState, Bridge, Config, ErrorKind, Landed, Message, MessageId, PublishConfig};
use test_support::eventually::eventually_some;
use test_support::fault_proxy::{FaultProxy, Weather};
use test_support::nats::NatsServer;

async fn bridge_with(server: &NatsServer, publish: PublishConfig) -> Bridge {
    let config = Config {
        servers: vec![server.url()],
        reconnect_pause_max: Duration::from_millis(200),
        publish,
        ..Config::default()
    };
    let bridge = Bridge::connect_with(config).await.unwrap();
    let stream = stream::Config { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..Default::default() };
    bridge.jetstream().get_or_create_stream(stream).await.unwrap();
    bridge
}

async fn stored(bridge: &Bridge) -> u64 {
    bridge.jetstream().get_stream("ORDERS").await.unwrap().cached_info().state.messages
}

#[tokio::test]
async fn a_resend_with_the_same_id_is_stored_once() {
    let server = NatsServer::start();
    let bridge = bridge_with(&server, PublishConfig::default()).await;
    let first = bridge.publish(Message::new("orders.new", "17").id("order-17")).await.unwrap();
    let second = bridge.publish(Message::new("orders.new", "17").id("order-17")).await.unwrap();
    assert_eq!((first.sequence, first.duplicate), (1, false));
    assert_eq!((second.sequence, second.duplicate), (1, true));
    assert_eq!((&*first.stream, first.id.as_deref()), ("ORDERS", Some("order-17")));

    let derived = || Message::new("orders.new", "18").id_from(["order", "18"]);
    assert!(!bridge.publish(derived()).await.unwrap().duplicate);
    assert!(bridge.publish(derived()).await.unwrap().duplicate);
    let generated = bridge.publish(Message::new("orders.new", "19")).await.unwrap();
    assert!(generated.id.unwrap().starts_with("msg_"));
    assert_eq!(stored(&bridge).await, 3);
}

#[tokio::test]
async fn headers_and_payload_arrive_as_they_were_given() {
    let server = NatsServer::start();
    let bridge = bridge_with(&server, PublishConfig::default()).await;
    let mut seen = bridge.client().subscribe("orders.>").await.unwrap();
    let message = Message::new("orders.new", vec![0u8, 255, 10]).header("tenant", "acme").header("tenant", "ümlaut");
    let at = bridge.publish(message).await.unwrap();
    let raw = seen.next().await.unwrap();
    let headers = raw.headers.unwrap();
    assert_eq!(&raw.payload[..], [0u8, 255, 10]);
    let tenants: Vec<&str> = headers.get_all("tenant").map(|v| v.as_str()).collect();
    assert_eq!(tenants, ["acme", "ümlaut"]);
    assert_eq!(headers.get("Nats-Msg-Id").unwrap().as_str(), at.id.unwrap());
}

#[tokio::test]
async fn a_killed_server_loses_no_confirmed_message_and_stores_none_twice() {
    let mut server = NatsServer::start();
    let bridge = bridge_with(&server, PublishConfig { max_in_flight: 200, ..Default::default() }).await;
    const N: u64 = 3000;
    let publisher = tokio::spawn({
        let bridge = bridge.clone();
        async move {
            let mut pending = Vec::new();
            for i in 0..N {
                pending.push(bridge.publish_later(Message::new("orders.new", i.to_string())).await.unwrap());
            }
            let mut sequences = Vec::new();
            for (i, confirm) in pending.into_iter().enumerate() {
                sequences.push((i, confirm.await.unwrap().sequence));
            }
            sequences
        }
    });
    let before = bridge.clone();
    eventually_some("some are stored", || {
        let bridge = before.clone();
        async move { (stored(&bridge).await > 100).then_some(()) }
    })
    .await;
    server.kill_9();
    server.restart();
    let confirmed = publisher.await.unwrap();
    assert_eq!(confirmed.len() as u64, N);

    server.kill_9();
    server.restart();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    let mut seen = vec![0u32; N as usize];
    for sequence in 1..=stream.cached_info().state.last_sequence {
        let raw = stream.get_raw_message(sequence).await.unwrap();
        seen[std::str::from_utf8(&raw.payload).unwrap().parse::<usize>().unwrap()] += 1;
    }
    assert!(seen.iter().all(|n| *n == 1), "each is stored once");
    for (i, sequence) in confirmed {
        let raw = stream.get_raw_message(sequence).await.unwrap();
        assert_eq!(raw.payload, i.to_string());
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_reported_as_unknown_and_not_as_failed() {
    let server = NatsServer::start();
    let config = PublishConfig {
        ack_wait: Duration::from_millis(200),
        deadline: Duration::from_millis(900),
        ..Default::default()
    };
    let bridge = bridge_with(&server, config).await;
    server.pause();
    let started = Instant::now();
    let error = bridge.publish(Message::new("orders.new", "x").id("o-1")).await.unwrap_err();
    assert_eq!((error.kind(), error.landed()), (ErrorKind::Timeout, Landed::Unknown));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(error.to_string().ends_with("subject=orders.new msg_id=o-1 (the message may have been stored)"), "{error}");
    // Without an id nothing is sent again: the outcome is unknown after the first wait.
    let error = bridge.publish(Message::new("orders.new", "y").message_id(MessageId::None)).await.unwrap_err();
    assert_eq!(error.landed(), Landed::Unknown);
    assert!(error.context().contains(&("attempts", "1".into())), "{error}");
    server.resume();
    let patient = bridge_with(&server, PublishConfig::default()).await;
    assert!(patient.publish(Message::new("orders.new", "x").id("o-1")).await.unwrap().duplicate);
    assert_eq!(stored(&patient).await, 2);
}

#[tokio::test]
async fn a_server_that_hangs_for_a_moment_costs_a_resend_and_no_duplicate() {
    let server = NatsServer::start();
    let bridge =
        bridge_with(&server, PublishConfig { ack_wait: Duration::from_millis(200), ..Default::default() }).await;
    server.pause();
    let pending = bridge.publish_later(Message::new("orders.new", "x")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    server.resume();
    assert_eq!(pending.await.unwrap().sequence, 1);
    assert!(!bridge.publish(Message::new("orders.new", "y")).await.unwrap().duplicate);
    assert_eq!(stored(&bridge).await, 2);
}

#[tokio::test]
async fn the_window_is_bounded_in_messages_and_in_bytes() {
    let server = NatsServer::start();
    let bounds = PublishConfig { max_in_flight: 3, max_in_flight_bytes: 1000, ..Default::default() };
    let bridge = bridge_with(&server, bounds).await;
    server.pause();
    let small = || Message::new("orders.new", "x");
    let pending: Vec<_> = (0..3).map(|_| bridge.try_publish(small()).unwrap()).collect();
    assert_eq!(bridge.try_publish(small()).unwrap_err().kind(), ErrorKind::WindowFull);
    assert!(tokio::time::timeout(Duration::from_millis(50), bridge.publish_later(small())).await.is_err());
    server.resume();
    for confirm in pending {
        confirm.await.unwrap();
    }
    server.pause();
    let large = || Message::new("orders.new", vec![0u8; 600]);
    let first = bridge.try_publish(large()).unwrap();
    assert_eq!(bridge.try_publish(large()).unwrap_err().kind(), ErrorKind::WindowFull);
    server.resume();
    first.await.unwrap();
    // Larger than the whole window: alone, but not for ever blocked.
    assert_eq!(bridge.publish(Message::new("orders.new", vec![0u8; 5000])).await.unwrap().sequence, 5);
}

#[tokio::test]
async fn what_the_server_refuses_is_a_typed_error_and_nothing_landed() {
    let server = NatsServer::builder().config_line("max_payload: 4096").start();
    let bridge = bridge_with(&server, PublishConfig::default()).await;
    let full = stream::Config {
        name: "FULL".into(),
        subjects: vec!["full".into()],
        max_messages: 1,
        discard: stream::DiscardPolicy::New,
        ..Default::default()
    };
    bridge.jetstream().create_stream(full).await.unwrap();
    bridge.publish(Message::new("full", "1")).await.unwrap();

    let cases = [
        (Message::new("full", "2"), ErrorKind::Rejected),
        (Message::new("nobody.listens", "x"), ErrorKind::NotFound),
        (Message::new("orders.new", vec![0u8; 5000]), ErrorKind::TooLarge),
        (Message::new("orders.*", "x"), ErrorKind::InvalidMessage),
        (Message::new("orders.new", "x").header("Nats-TTL", "1s"), ErrorKind::InvalidMessage),
    ];
    for (message, kind) in cases {
        let error = bridge.publish(message).await.unwrap_err();
        assert_eq!((error.kind(), error.landed()), (kind, Landed::No), "{error}");
    }
    assert_eq!(stored(&bridge).await, 0);
}

#[tokio::test]
async fn a_forbidden_subject_fails_the_publish_that_named_it() {
    let users = r#"authorization { users: [ { user: a, password: b, permissions: { publish: { deny: ["orders.secret"] } } } ] }"#;
    let server = NatsServer::builder().config_line(users).start();
    let url = server.url().replace("nats://", "nats://a:b@");
    let bridge = Bridge::connect(url).await.unwrap();
    let stream = stream::Config { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..Default::default() };
    bridge.jetstream().create_stream(stream).await.unwrap();
    let error = bridge.publish(Message::new("orders.secret", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    bridge.publish(Message::new("orders.open", "x")).await.unwrap();
}

#[tokio::test]
async fn closing_waits_for_what_is_outstanding() {
    let server = NatsServer::start();
    let bridge = bridge_with(&server, PublishConfig::default()).await;
    let pending: Vec<_> = futures::future::try_join_all(
        (0..500).map(|i| bridge.publish_later(Message::new("orders.new", i.to_string()))),
    )
    .await
    .unwrap();
    bridge.close(Duration::from_secs(10)).await.unwrap();
    for confirm in pending {
        confirm.await.unwrap();
    }
    assert_eq!(bridge.publish(Message::new("orders.new", "x")).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn an_id_is_recognised_whatever_headers_stand_beside_it() {
    let server = NatsServer::start();
    let bridge = bridge_with(&server, PublishConfig::default()).await;
    // Header maps have a new random order each time.
    for i in 0..50 {
        let message = || {
            let kept = "Dead-Letter-Original-Nats_-Msg-Id";
            Message::new("orders.new", "x")
                .id(format!("o-{i}"))
                .header(kept, "o")
                .header("Msg-Id", "Nats")
                .header("a", "b")
        };
        assert!(!bridge.publish(message()).await.unwrap().duplicate);
        assert!(bridge.publish(message()).await.unwrap().duplicate);
    }
}

#[tokio::test]
async fn an_open_breaker_fails_at_once_and_closes_when_nats_is_back() {
    let server = NatsServer::start();
    let breaker = BreakerConfig { trip_after: Duration::from_millis(300), probe_every: Duration::from_millis(200) };
    let bridge = bridge_with(&server, PublishConfig { breaker: Some(breaker), ..Default::default() }).await;
    let mut state = bridge.breaker();
    assert_eq!(*state.borrow(), BreakerState::Closed);
    server.pause();
    let first = bridge.publish_later(Message::new("orders.new", "1")).await.unwrap();
    let cap = Duration::from_secs(15);
    tokio::time::timeout(cap, state.wait_for(|state| *state == BreakerState::Open)).await.unwrap().unwrap();
    let error = bridge.publish(Message::new("orders.new", "2").id("o-2")).await.unwrap_err();
    assert_eq!((error.kind(), error.landed()), (ErrorKind::BreakerOpen, Landed::No));
    assert_eq!(error.to_string(), "breaker open: subject=orders.new msg_id=o-2");
    assert!(error.is_temporary());
    // One at a time may see whether NATS is back; it counts as published.
    let probe = eventually_some("a probe is let through", || async {
        bridge.try_publish(Message::new("orders.new", "3")).ok()
    })
    .await;
    server.resume();
    tokio::time::timeout(cap, state.wait_for(|state| *state == BreakerState::Closed)).await.unwrap().unwrap();
    first.await.unwrap();
    probe.await.unwrap();
    bridge.publish(Message::new("orders.new", "4")).await.unwrap();
    assert_eq!(stored(&bridge).await, 3);
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_by_the_missing_confirm_and_made_anew() {
    let server = NatsServer::start();
    let proxy = FaultProxy::start(server.port(), 1).await;
    let config = Config {
        servers: vec![proxy.url()],
        // The client's own pings would take minutes.
        ping_interval: Duration::from_secs(60),
        publish: PublishConfig { ack_wait: Duration::from_millis(500), ..Default::default() },
        ..Config::default()
    };
    let bridge = Bridge::connect_with(config).await.unwrap();
    bridge_with(&server, PublishConfig::default()).await;
    bridge.publish(Message::new("orders.new", "1")).await.unwrap();
    proxy.set(Weather::DeafClient);
    let pending = bridge.publish_later(Message::new("orders.new", "2")).await.unwrap();
    eventually_some("the proxy swallows", || async { (proxy.swallowed() > 0).then_some(()) }).await;
    proxy.set(Weather::Calm);
    // The hole in the old connection stays: without a new one the confirm cannot come.
    let published = tokio::time::timeout(Duration::from_secs(15), pending).await.unwrap().unwrap();
    assert_eq!((published.sequence, published.duplicate), (2, true));
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn many_at_once_have_each_its_outcome_in_their_order() {
    let server = NatsServer::start();
    let bridge = bridge_with(&server, PublishConfig { max_in_flight: 16, ..Default::default() }).await;
    let messages = (0..500).map(|i| match i {
        7 => Message::new("orders.*", "not a subject"),
        9 => Message::new("orders.new", "again").id("o-8"),
        _ => Message::new("orders.new", i.to_string()).id(format!("o-{i}")),
    });
    let outcomes = bridge.publish_many(messages).await;
    assert_eq!(outcomes.len(), 500);
    let mut sequence = 0;
    for (i, outcome) in outcomes.into_iter().enumerate() {
        match (i, outcome) {
            (7, outcome) => {
                let error = outcome.unwrap_err();
                assert_eq!((error.kind(), error.landed()), (ErrorKind::InvalidMessage, Landed::No));
            }
            (9, outcome) => assert!(outcome.unwrap().duplicate),
            (_, outcome) => {
                sequence += 1;
                assert_eq!(outcome.unwrap().sequence, sequence);
            }
        }
    }
    assert_eq!((stored(&bridge).await, bridge.outstanding()), (498, 0));
}
