//! Publishes that keep their order when their connection is lost, against a real server behind a proxy.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream;
use bytes::Bytes;
use nats_bridge::publish::{Confirms, OrderedInbox};
use nats_bridge::{Bridge, Config, ConnectionEvent, ErrorKind};
use test_support::eventually::eventually_true;
use test_support::fault_proxy::{FaultProxy, Weather};
use test_support::nats::NatsServer;

const PATIENCE: Duration = Duration::from_secs(30);

async fn with_stream(url: impl AsRef<str>) -> Bridge {
    let bridge = Bridge::connect(url).await.unwrap();
    let config = stream::Config { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..Default::default() };
    bridge.jetstream().create_stream(config).await.unwrap();
    bridge
}

async fn send(inbox: &OrderedInbox, token: u64, size: usize) -> bool {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("order-{token}"));
    inbox.publish(token, "orders.new".into(), Some(headers), Bytes::from(vec![0; size])).await.unwrap()
}

async fn confirmed(confirms: &mut Confirms, open: &mut BTreeSet<u64>) {
    let all = async {
        let mut some = Vec::new();
        while !open.is_empty() {
            assert_ne!(confirms.next_many(&mut some, 64).await, 0);
            for confirm in some.drain(..) {
                confirm.result.unwrap();
                open.remove(&confirm.token);
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("all confirms come");
}

fn connections(server: &NatsServer) -> u64 {
    let varz: serde_json::Value = serde_json::from_str(&server.monitor("/varz").unwrap()).unwrap();
    varz["connections"].as_u64().unwrap()
}

async fn renew(inbox: &mut OrderedInbox) {
    tokio::time::timeout(PATIENCE, inbox.available()).await.expect("another connection");
    assert!(inbox.renew().await);
    assert!(!inbox.renew().await, "there is one other");
}

/// What the client holds when the connection breaks must not come before what was lost in the network and is sent again.
#[tokio::test]
async fn what_lay_in_the_client_when_the_connection_broke_is_not_written_first_on_the_next_one() {
    const MESSAGES: u64 = 400;
    let server = NatsServer::start();
    let proxy = FaultProxy::start(server.port(), 7).await;
    let bridge = with_stream(proxy.url()).await;
    let (mut inbox, mut confirms) = bridge.ordered_inbox().await.unwrap();

    // The network takes little and then nothing: some are on their way, most are in the client.
    proxy.set(Weather::Slow(Duration::from_secs(600)));
    for token in 1..=MESSAGES {
        assert!(send(&inbox, token, 64 * 1024).await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.set(Weather::Calm);
    proxy.reset();

    eventually_true("the connection is over", || async { inbox.is_over() }).await;
    assert!(!send(&inbox, MESSAGES + 1, 1).await);
    renew(&mut inbox).await;
    let mut open: BTreeSet<u64> = (1..=MESSAGES + 1).collect();
    for token in open.iter().copied() {
        assert!(send(&inbox, token, 64 * 1024).await);
    }
    confirmed(&mut confirms, &mut open).await;

    let mut stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, MESSAGES + 1);
    for sequence in 1..=MESSAGES + 1 {
        let stored = stream.get_raw_message(sequence).await.unwrap();
        assert_eq!(stored.headers.get("Nats-Msg-Id").unwrap().as_str(), format!("order-{sequence}"));
    }
}

#[tokio::test]
async fn one_connection_is_shared_and_another_comes_when_the_server_is_back() {
    let mut server = NatsServer::start();
    let bridge = with_stream(server.url()).await;
    let (mut inbox, mut confirms) = bridge.ordered_inbox().await.unwrap();
    let (mut other, mut others) = bridge.ordered_inbox().await.unwrap();
    assert_eq!(connections(&server), 2);
    assert!(send(&inbox, 1, 1).await && send(&other, 2, 1).await);
    confirmed(&mut confirms, &mut BTreeSet::from([1])).await;
    confirmed(&mut others, &mut BTreeSet::from([2])).await;

    server.kill_9();
    eventually_true("it is away", || async { inbox.is_over() && other.is_over() }).await;
    assert!(!send(&inbox, 3, 1).await && !inbox.renew().await);
    server.restart();
    for (inbox, confirms, token) in [(&mut inbox, &mut confirms, 3), (&mut other, &mut others, 4)] {
        renew(inbox).await;
        assert!(send(inbox, token, 1).await);
        confirmed(confirms, &mut BTreeSet::from([token])).await;
    }

    bridge.close(Duration::from_secs(5)).await.unwrap();
    let none = tokio::time::timeout(PATIENCE, confirms.next_many(&mut Vec::new(), 1)).await;
    assert_eq!(none.expect("it is closed with its bridge"), 0);
    assert_eq!(bridge.ordered_inbox().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn what_the_server_does_not_take_is_refused_and_a_refusal_is_told() {
    let server = NatsServer::builder()
        .config_line("max_payload: 4096")
        .config_line(
            r#"authorization { users: [{ user: "orders", password: "s", permissions: { publish: { deny: ["orders.no"] } } }] }"#,
        )
        .start();
    let url = format!("nats://orders:s@127.0.0.1:{}", server.port());
    let bridge = with_stream(url).await;
    let (inbox, _confirms) = bridge.ordered_inbox().await.unwrap();
    let publish = |subject: &'static str, size| {
        let payload = Bytes::from(vec![0; size]);
        assert_eq!(inbox.is_too_large(None, &payload), size > 4096);
        inbox.publish(1, subject.into(), None, payload)
    };
    assert_eq!(publish("orders.new", 4097).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(publish("orders new", 1).await.unwrap_err().kind(), ErrorKind::InvalidMessage);

    let mut events = bridge.events();
    assert!(publish("orders.no", 1).await.unwrap());
    let denied = async {
        loop {
            if let ConnectionEvent::Denied(text) = events.recv().await.unwrap() {
                return text;
            }
        }
    };
    let text = tokio::time::timeout(PATIENCE, denied).await.expect("it is told");
    assert!(text.contains("orders.no"), "{text}");
}

/// A user that may have one connection has none for publishes: that is told, and nothing waits for ever.
#[tokio::test]
async fn without_a_second_connection_there_is_an_error() {
    let server = NatsServer::builder().config_line("max_connections: 1").start();
    let config = Config { servers: vec![server.url()], connect_timeout: Duration::from_secs(2), ..Config::default() };
    let bridge = Bridge::connect_with(config).await.unwrap();
    let error = bridge.ordered_inbox().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}
