//! Many keys at once, one key in order, on a real server.

#![allow(clippy::unwrap_used)]

mod orders;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nats_bridge::{Bridge, ConsumeConfig, Failure, Message, PublishConfig, Received, RetryPolicy, dead_letter};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

use orders::bridge;

fn config() -> ConsumeConfig {
    let retry =
        RetryPolicy { attempts: 3, first_pause: Duration::from_millis(20), jitter: false, ..RetryPolicy::default() };
    ConsumeConfig { retry, heartbeat: Duration::from_millis(500), ..ConsumeConfig::new("ORDERS", "billing") }
}

fn customer(message: &Received) -> String {
    message.subject().rsplit('.').next().unwrap_or_default().to_owned()
}

async fn left(bridge: &Bridge) -> u64 {
    bridge.jetstream().get_stream("ORDERS").await.unwrap().cached_info().state.messages
}

#[tokio::test]
async fn one_key_is_in_order_also_around_failures_and_many_keys_run_at_once() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let publisher = bridge.publisher(PublishConfig::default()).await.unwrap();
    for i in 0..300 {
        publisher.publish_later(Message::new(format!("orders.c{}", i % 10), i.to_string())).await.unwrap();
    }
    publisher.flush(Duration::from_secs(10)).await.unwrap();

    let seen: Arc<Mutex<BTreeMap<String, Vec<usize>>>> = Arc::default();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let consumer = bridge.consume(config()).await.unwrap();
    let handle = consumer.handle();
    let work = {
        let (seen, running, most) = (seen.clone(), running.clone(), most.clone());
        move |message: Received| {
            let (seen, running, most) = (seen.clone(), running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let number: usize = std::str::from_utf8(message.payload()).unwrap().parse().unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                match number % 7 {
                    // Fails once; what is behind it waits.
                    0 if message.attempt() == 1 => return Err(Failure::new("not yet")),
                    // Never works: a dead letter, and its key goes on.
                    1 => return Err(Failure::of("Broken", "never")),
                    2 if message.attempt() == 1 => panic!("a bug"),
                    _ => {}
                }
                seen.lock().unwrap().entry(customer(&message)).or_default().push(number);
                Ok(())
            }
        }
    };
    let ended = tokio::spawn(consumer.run_keyed(4, customer, work));
    eventually_true("all are handled", || async { left(&bridge).await == 0 }).await;
    handle.drain(Duration::from_secs(5)).await.unwrap();
    ended.await.unwrap().unwrap();

    let seen = std::mem::take(&mut *seen.lock().unwrap());
    for (key, numbers) in seen.iter() {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
    let handled: usize = seen.values().map(Vec::len).sum();
    let broken = (0..300).filter(|i| i % 7 == 1).count();
    assert_eq!(handled, 300 - broken);
    assert!((2..=4).contains(&most.load(Ordering::SeqCst)), "{most:?} at once");
    let mut letters = bridge.jetstream().get_stream("ORDERS_DLQ").await.unwrap();
    assert_eq!(letters.info().await.unwrap().state.messages as usize, broken);
    let letter = letters.get_raw_message(1).await.unwrap();
    assert_eq!(letter.headers.get(dead_letter::ATTEMPTS).unwrap().as_str(), "3");
}

#[tokio::test]
async fn a_key_that_waits_for_its_next_attempt_does_not_hold_up_a_drain() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    for i in 0..5 {
        bridge.publish(Message::new("orders.c1", i.to_string())).await.unwrap();
    }
    let patient = RetryPolicy { first_pause: Duration::from_secs(60), jitter: false, ..RetryPolicy::default() };
    let consumer = bridge.consume(ConsumeConfig { retry: patient, ..config() }).await.unwrap();
    let handle = consumer.handle();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let ended = tokio::spawn(consumer.run_keyed(4, customer, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err(Failure::new("later")) }
    }));
    eventually_true("the first one failed", || async { calls.load(Ordering::SeqCst) == 1 }).await;
    handle.drain(Duration::from_secs(5)).await.unwrap();
    ended.await.unwrap().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1, "the others waited behind it");

    let mut next = bridge.consume(config()).await.unwrap();
    let mut given_back = Vec::new();
    for _ in 0..5 {
        let delivery = tokio::time::timeout(Duration::from_secs(10), next.next()).await.unwrap().unwrap().unwrap();
        given_back.push(delivery.sequence());
        delivery.ack().await.unwrap();
    }
    given_back.sort();
    assert_eq!(given_back, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_drain_gives_back_what_waits_behind_another_and_it_comes_again_in_its_order() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    for i in 0..30 {
        bridge.publish(Message::new("orders.one", i.to_string())).await.unwrap();
    }
    let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
    for upto in [4, 9, 30] {
        let consumer = bridge.consume(config()).await.unwrap();
        let (handle, seen) = (consumer.handle(), seen.clone());
        let work = move |message: Received| {
            let mut seen = seen.lock().unwrap();
            seen.push(std::str::from_utf8(message.payload()).unwrap().parse().unwrap());
            if seen.len() == upto {
                handle.begin_to_drain();
            }
            std::future::ready(Ok(()))
        };
        consumer.run_keyed(4, customer, work).await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), (0..30).collect::<Vec<_>>());
}
