//! The confirm inbox against a real server.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use nats_bridge::Bridge;
use nats_bridge::publish::{Confirm, ConfirmInbox};
use test_support::nats::NatsServer;

async fn collect(confirms: &mut nats_bridge::publish::Confirms, n: usize) -> Vec<Confirm> {
    let mut out = Vec::new();
    let all = async {
        while out.len() < n {
            assert_ne!(confirms.next_many(&mut out, 64).await, 0);
        }
    };
    tokio::time::timeout(Duration::from_secs(15), all).await.expect("all confirms come");
    out
}

fn stream(name: &str, subject: &str) -> async_nats::jetstream::stream::Config {
    async_nats::jetstream::stream::Config {
        name: name.into(),
        subjects: vec![subject.into()],
        max_messages: 100,
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        ..Default::default()
    }
}

#[tokio::test]
async fn every_token_gets_its_own_answer() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    bridge.jetstream().create_stream(stream("ORDERS", "orders.>")).await.unwrap();
    let (inbox, mut confirms) = ConfirmInbox::open(bridge.client()).await.unwrap();

    for token in 0..100u64 {
        inbox.publish(token * 7, "orders.new".into(), None, "x".into()).await.unwrap();
    }
    let mut out = collect(&mut confirms, 100).await;
    out.sort_by_key(|c| c.token);
    for (i, confirm) in out.iter().enumerate() {
        assert_eq!(confirm.token, i as u64 * 7);
        let stored = confirm.result.as_ref().unwrap();
        assert_eq!((&*stored.stream, stored.sequence, stored.duplicate), ("ORDERS", i as u64 + 1, false));
    }

    inbox.publish(u64::MAX, "orders.new".into(), None, "one too many".into()).await.unwrap();
    inbox.publish(1, "nobody.listens".into(), None, "x".into()).await.unwrap();
    let mut out = collect(&mut confirms, 2).await;
    out.sort_by_key(|c| c.token);
    let nobody = out[0].result.as_ref().unwrap_err();
    assert!(nobody.no_responders() && nobody.is_temporary());
    let full = out[1].result.as_ref().unwrap_err();
    assert_eq!((out[1].token, full.err_code), (u64::MAX, 10077));
    assert!(!full.is_temporary());
}

#[tokio::test]
async fn confirms_go_on_after_the_server_was_killed_and_the_reconnect_is_seen() {
    let mut server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    bridge.jetstream().create_stream(stream("ORDERS", "orders.>")).await.unwrap();
    let (inbox, mut confirms) = ConfirmInbox::open(bridge.client()).await.unwrap();
    let mut connection = bridge.connection();
    let first = connection.wait_for(|c| c.connected).await.unwrap().connects;

    server.kill_9();
    connection.wait_for(|c| !c.connected).await.unwrap();
    server.restart();
    let wait = connection.wait_for(|c| c.connects > first);
    tokio::time::timeout(Duration::from_secs(15), wait).await.expect("a reconnect").unwrap();

    inbox.publish(5, "orders.new".into(), None, "x".into()).await.unwrap();
    let out = collect(&mut confirms, 1).await;
    assert_eq!(out[0].token, 5);
    assert!(out[0].result.is_ok());
}
