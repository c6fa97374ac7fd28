//! Complaints about publishing: 4, 6, 11.

use std::time::{Duration, Instant};

use nats_bridge::{ErrorKind, Landed, Message, PublishConfig};
use test_support::eventually::eventually_some;
use test_support::fault_proxy::{FaultProxy, Weather};
use test_support::nats::NatsServer;

use super::{CAP, bridge, config, left, with};

#[tokio::test]
async fn complaint_04_no_publish_waits_for_ever() {
    let server = NatsServer::start();
    let proxy = FaultProxy::start(server.port(), 1).await;
    let bridge = with(&server, config(proxy.url())).await;
    let narrow = PublishConfig {
        max_in_flight: 1,
        ack_wait: Duration::from_millis(200),
        deadline: Duration::from_millis(600),
        ..PublishConfig::default()
    };
    for away in ["hung", "gone"] {
        let publisher = bridge.publisher(narrow.clone()).await.unwrap();
        match away {
            "hung" => server.pause(),
            _ => proxy.shut(),
        }
        let started = Instant::now();
        // The second waits for the first one's place in the window.
        let both = tokio::join!(publisher.publish(Message::new("orders.new", "1")), async {
            publisher.publish(Message::new("orders.new", "2")).await
        });
        assert!(started.elapsed() < CAP, "{away}");
        for error in [both.0.unwrap_err(), both.1.unwrap_err()] {
            assert_eq!((error.kind(), error.landed()), (ErrorKind::Timeout, Landed::Unknown), "{away}: {error}");
        }
        server.resume();
        proxy.open();
    }
}

#[tokio::test]
async fn complaint_06_what_is_not_confirmed_is_bounded_in_messages_and_bytes() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let bounds = PublishConfig { max_in_flight: 1000, max_in_flight_bytes: 64 * 1024, ..PublishConfig::default() };
    let publisher = bridge.publisher(bounds).await.unwrap();
    server.pause();
    let mut taken = Vec::new();
    let error = loop {
        match publisher.try_publish(Message::new("orders.new", vec![0u8; 1000])) {
            Ok(pending) => taken.push(pending),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), error.landed()), (ErrorKind::WindowFull, Landed::No));
    assert!(taken.len() <= 65, "{} KB are outstanding", taken.len());
    // Those who wait take no more, however many they are.
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let publisher = publisher.clone();
            tokio::spawn(async move { publisher.publish(Message::new("orders.new", vec![0u8; 1000])).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(publisher.outstanding(), taken.len());
    server.resume();
    let stored = taken.len() + waiting.len();
    for pending in taken {
        pending.await.unwrap();
    }
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(left(&bridge, "ORDERS").await, Some(stored as u64));
}

#[tokio::test]
async fn complaint_11_what_is_stored_is_not_reported_as_failed() {
    let server = NatsServer::start();
    let proxy = FaultProxy::start(server.port(), 1).await;
    let bridge = with(&server, config(proxy.url())).await;
    let patient = bridge
        .publisher(PublishConfig { ack_wait: Duration::from_millis(300), ..PublishConfig::default() })
        .await
        .unwrap();
    // The server stores it, and its word is lost.
    proxy.set(Weather::DeafClient);
    let pending = patient.publish_later(Message::new("orders.new", "1").id("o-1")).await.unwrap();
    eventually_some("it is stored", || {
        let stored = server.monitor("/jsz").ok().and_then(|text| text.contains("\"messages\": 1").then_some(()));
        async move { stored }
    })
    .await;
    proxy.set(Weather::Calm);
    let published = tokio::time::timeout(CAP, pending).await.unwrap().unwrap();
    assert_eq!((published.sequence, published.duplicate), (1, true));
    assert_eq!(left(&bridge, "ORDERS").await, Some(1));

    // A timeout is the one that was asked for.
    let hasty = PublishConfig {
        ack_wait: Duration::from_millis(100),
        deadline: Duration::from_millis(300),
        ..PublishConfig::default()
    };
    let hasty = bridge.publisher(hasty).await.unwrap();
    server.pause();
    let started = Instant::now();
    let error = hasty.publish(Message::new("orders.new", "2").id("o-2")).await.unwrap_err();
    assert_eq!(error.landed(), Landed::Unknown);
    assert!(started.elapsed() >= Duration::from_millis(300) && started.elapsed() < Duration::from_secs(4));
    server.resume();
}
