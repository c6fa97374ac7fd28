use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use amqp_compat::backend::{Event, Outcome, PublishOutcome, QueueDeclare};
use test_support::nats::NatsServer;

use crate::client::{CAP, Client, body, queue};
use crate::{backend, backend_with, one_lease};

#[tokio::test]
async fn a_server_killed_in_mid_stream_loses_nothing_confirmed_and_repeats_nothing_unflagged() {
    let mut server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.consume("q", "c", 64).await;
    const TOTAL: u64 = 6000;
    let mut confirmed = BTreeSet::new();
    let mut delivered: BTreeMap<u64, u32> = BTreeMap::new();
    let mut published = 0u64;
    let mut killed = 0;
    let deadline = tokio::time::Instant::now() + CAP * 2;
    while confirmed.len() < TOTAL as usize || delivered.len() < TOTAL as usize {
        assert!(tokio::time::Instant::now() < deadline, "{} confirmed, {} delivered", confirmed.len(), delivered.len());
        // A window of 500 keeps publishes in flight at every kill.
        if published < TOTAL && published - (confirmed.len() as u64) < 500 {
            published += 1;
            client.publish("", "q", published.to_string()).await;
        }
        if killed < 3 && delivered.len() as u64 > TOTAL / 5 * (killed + 1) {
            killed += 1;
            server.kill_9();
            server.restart();
        }
        let timeout = std::time::Duration::from_millis(if published < TOTAL { 0 } else { 200 });
        let Ok(Some(event)) = tokio::time::timeout(timeout, client.link.events.recv()).await else { continue };
        match event {
            Event::Confirm { seq, outcome, .. } => {
                assert_eq!(outcome, PublishOutcome::Stored);
                assert!(confirmed.insert(seq), "{seq} was confirmed twice");
            }
            Event::Delivery { delivery, .. } => {
                let n: u64 = body(&delivery).parse().expect("a number");
                let times = delivered.entry(n).or_default();
                *times += 1;
                assert!(*times == 1 || delivery.redelivered, "{n} came again and did not say so");
                client.settle(&[&delivery], Outcome::Ack).await;
                client.credit("c", 1).await;
            }
            Event::Blocked { .. } | Event::Unblocked => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(killed, 3);
    assert_eq!(confirmed.len() as u64, TOTAL);
}

#[tokio::test]
async fn a_client_is_told_while_nothing_can_be_published() {
    let mut server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    server.kill_9();
    client.next("Blocked", |event| matches!(event, Event::Blocked { .. }), drop).await;
    server.restart();
    client.next("Unblocked", |event| matches!(event, Event::Unblocked), drop).await;
}

#[tokio::test]
async fn what_is_published_while_the_server_is_away_is_stored_behind_what_was_lost_on_the_way_to_it() {
    let mut server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    // Written to a server that reads no more, and lost with it.
    server.pause();
    for n in 0..50 {
        client.publish("", "q", n.to_string()).await;
    }
    tokio::time::timeout(Duration::from_millis(100), client.link.events.recv())
        .await
        .expect_err("nothing is confirmed");
    server.kill_9();
    client.next("Blocked", |event| matches!(event, Event::Blocked { .. }), drop).await;
    for n in 50..100 {
        client.publish("", "q", n.to_string()).await;
    }
    server.restart();
    for _ in 0..100 {
        assert_eq!(client.confirm().await.1, PublishOutcome::Stored);
    }
    client.consume("q", "c", 100).await;
    for n in 0..100 {
        assert_eq!(body(&client.delivery().await), n.to_string());
    }
}

#[tokio::test]
async fn a_transient_queue_goes_on_empty_after_its_server_restarts() {
    let mut server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(QueueDeclare { durable: false, ..queue("t") }).await;
    client.consume("t", "c", 10).await;
    client.store("", "t", "1").await;
    assert_eq!(body(&client.delivery().await), "1");
    server.kill_9();
    server.restart();
    client.store("", "t", "2").await;
    let delivery = client.delivery().await;
    assert_eq!((body(&delivery).as_str(), delivery.redelivered), ("2", false));
}

#[tokio::test]
async fn a_gateway_that_died_leaves_its_deliveries_ready_and_flagged() {
    let server = NatsServer::start();
    let config = one_lease(&server).await;
    let dead = backend_with(&server, config.clone()).await;
    let mut client = Client::open(&*dead).await;
    client.declare(queue("q")).await;
    for n in 0..5 {
        client.store("", "q", n.to_string()).await;
    }
    client.consume("q", "c", 2).await;
    client.delivery().await;
    client.delivery().await;
    // The old gateway is never told to stop: it keeps what it holds, as one that hangs would.
    let next = backend_with(&server, config).await;
    let mut heir = Client::open(&*next).await;
    heir.consume("q", "d", 10).await;
    // The others had been fetched by the gateway that died: nobody can tell any more whether a client had seen them.
    for text in ["0", "1", "2", "3", "4"] {
        let delivery = heir.delivery().await;
        assert_eq!((body(&delivery).as_str(), delivery.redelivered), (text, true));
    }
    drop(client);
}
