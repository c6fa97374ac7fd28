//! What no handler has seen costs no message its attempts: processes that were drained or killed with it in their buffer.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use nats_bridge::{
    Bridge, ConsumeConfig, Consumer, Delivery, Discard, Message, Retention, RetryPolicy, Settled, StreamSpec,
    dead_letter,
};
use test_support::eventually::{eventually_some, eventually_true};
use test_support::nats::NatsServer;

const MESSAGES: u64 = 20;
const ATTEMPTS: u32 = 3;

async fn bridge(server: &NatsServer) -> Bridge {
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let orders = StreamSpec {
        retention: Retention::WorkQueue,
        max_bytes: Some(1 << 26),
        ..StreamSpec::new("ORDERS", ["orders.>"])
    };
    bridge.ensure_stream(&orders).await.unwrap();
    for i in 0..MESSAGES {
        bridge.publish(Message::new("orders.new", i.to_string())).await.unwrap();
    }
    bridge
}

fn config() -> ConsumeConfig {
    let retry = RetryPolicy {
        attempts: ATTEMPTS,
        first_pause: Duration::from_millis(50),
        jitter: false,
        ..RetryPolicy::default()
    };
    ConsumeConfig { retry, ack_wait: Duration::from_millis(300), ..ConsumeConfig::new("ORDERS", "billing") }
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(Duration::from_secs(15), consumer.next());
    next.await.expect("a delivery within 15 s").unwrap().expect("the consumer goes on")
}

/// A worker of its own connection.
async fn worker(server: &NatsServer) -> (Bridge, Consumer) {
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let consumer = bridge.consume(config()).await.unwrap();
    (bridge, consumer)
}

/// Ends a worker as `kill -9` does: nothing that it holds is settled or given back.
async fn kill(worker: Bridge, consumer: Consumer, in_hand: Option<Delivery>) {
    worker.client().drain().await.unwrap();
    std::mem::forget((consumer, in_hand));
}

async fn holds(consumer: &Consumer, count: u64) {
    let handle = consumer.handle();
    eventually_true("the worker has fetched all", || async { handle.held() as u64 == count }).await;
}

async fn stored(bridge: &Bridge, stream: &str) -> u64 {
    eventually_some("the server answers", || async {
        match bridge.jetstream().get_stream(stream).await {
            Ok(stream) => Some(stream.cached_info().state.messages),
            Err(_) => Some(0),
        }
    })
    .await
}

async fn the_rest(consumer: &mut Consumer, count: u64) -> BTreeMap<u64, u64> {
    let mut attempts = BTreeMap::new();
    for _ in 0..count {
        let delivery = next(consumer).await;
        let number = std::str::from_utf8(delivery.payload()).unwrap().parse().unwrap();
        assert!(delivery.redelivered());
        assert_eq!(attempts.insert(number, delivery.attempt()), None, "{number} came twice");
        delivery.ack_confirmed().await.unwrap();
    }
    attempts
}

#[tokio::test]
async fn what_is_given_back_by_a_drain_has_all_its_attempts() {
    let server = NatsServer::start();
    let first = bridge(&server).await;
    let short_lived = 8;
    for _ in 0..short_lived {
        let (_bridge, mut consumer) = worker(&server).await;
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.attempt(), 1);
        delivery.ack_confirmed().await.unwrap();
        consumer.handle().drain(Duration::from_secs(10)).await.unwrap();
    }
    let (_bridge, mut consumer) = worker(&server).await;
    let attempts = the_rest(&mut consumer, MESSAGES - short_lived).await;
    assert!(attempts.values().all(|attempt| *attempt == 1), "{attempts:?}");
    assert_eq!((stored(&first, "ORDERS").await, stored(&first, "ORDERS_DLQ").await), (0, 0));
}

#[tokio::test]
async fn what_is_given_back_is_the_next_one_in_its_order_and_costs_no_attempt() {
    let server = NatsServer::start();
    let (first, second) = (bridge(&server).await, worker(&server).await);
    let (leaving, mut consumer) = second;
    let (one, two) = (next(&mut consumer).await, next(&mut consumer).await);
    one.give_back();
    two.give_back();
    for expected in ["0", "1", "2"] {
        let delivery = next(&mut consumer).await;
        assert_eq!((delivery.payload().as_ref(), delivery.attempt()), (expected.as_bytes(), 1));
        delivery.ack_confirmed().await.unwrap();
    }
    // And of one whose connection is closed, another process's.
    next(&mut consumer).await.give_back();
    leaving.close(Duration::from_secs(10)).await.unwrap();
    let (_bridge, mut consumer) = worker(&server).await;
    let attempts = the_rest(&mut consumer, MESSAGES - 3).await;
    assert!(attempts.values().all(|attempt| *attempt == 1), "{attempts:?}");
    assert_eq!(stored(&first, "ORDERS_DLQ").await, 0);
}

#[tokio::test]
async fn a_failure_after_drains_is_tried_as_often_as_the_policy_says() {
    let server = NatsServer::start();
    let first = bridge(&server).await;
    for _ in 0..5 {
        let (_bridge, mut consumer) = worker(&server).await;
        // Waits for the first one, which it then gives back.
        let delivery = next(&mut consumer).await;
        consumer.handle().begin_to_drain();
        delivery.give_back();
        consumer.handle().drain(Duration::from_secs(10)).await.unwrap();
    }
    // Each attempt in another process.
    for attempt in 1..=u64::from(ATTEMPTS) {
        let (_bridge, mut consumer) = worker(&server).await;
        let delivery = loop {
            let delivery = next(&mut consumer).await;
            match delivery.payload().as_ref() {
                b"0" => break delivery,
                _ => drop(delivery.ack_confirmed().await.unwrap()),
            }
        };
        assert_eq!(delivery.attempt(), attempt);
        let settled = delivery.retry("it does not work").await.unwrap();
        let is_last = attempt == u64::from(ATTEMPTS);
        assert_eq!(matches!(settled, Settled::DeadLettered { .. }), is_last, "{settled:?}");
        consumer.handle().drain(Duration::from_secs(10)).await.unwrap();
    }
    assert_eq!(stored(&first, "ORDERS_DLQ").await, 1);
}

#[tokio::test]
async fn processes_that_die_cost_what_they_had_not_begun_no_last_attempt() {
    let server = NatsServer::start();
    let first = bridge(&server).await;
    let mut seen = first.client().subscribe("dlq.>").await.unwrap();
    for _ in 0..ATTEMPTS {
        let (bridge, mut consumer) = worker(&server).await;
        holds(&consumer, MESSAGES).await;
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.payload(), "0", "what came again comes first");
        kill(bridge, consumer, Some(delivery)).await;
    }
    // The first message has killed as many as its policy allows. The others have been in the buffer of each, and of three more.
    let (bridge, mut consumer) = worker(&server).await;
    let second = next(&mut consumer).await;
    assert_eq!((second.payload().as_ref(), second.attempt()), (&b"1"[..], u64::from(ATTEMPTS)));
    second.ack_confirmed().await.unwrap();
    let letter = tokio::time::timeout(Duration::from_secs(15), futures::StreamExt::next(&mut seen)).await.unwrap();
    let letter = letter.unwrap();
    let headers = letter.headers.unwrap();
    let header = |name| headers.get(name).unwrap().as_str().to_owned();
    assert_eq!((&letter.payload[..], header(dead_letter::REASON)), (&b"0"[..], "crash_loop".to_owned()));
    assert_eq!(header(dead_letter::ATTEMPTS), ATTEMPTS.to_string());
    kill(bridge, consumer, None).await;
    for _ in 0..2 {
        let (bridge, consumer) = worker(&server).await;
        holds(&consumer, MESSAGES - 2).await;
        kill(bridge, consumer, None).await;
    }
    let (_bridge, mut consumer) = worker(&server).await;
    let attempts = the_rest(&mut consumer, MESSAGES - 2).await;
    assert!(attempts.values().all(|attempt| *attempt == u64::from(ATTEMPTS)), "{attempts:?}");
    assert_eq!((stored(&first, "ORDERS").await, stored(&first, "ORDERS_DLQ").await), (0, 1));
}

#[tokio::test]
async fn where_it_cannot_be_kept_deliveries_count_and_nothing_is_lost() {
    let server = NatsServer::start();
    let first = bridge(&server).await;
    // Made by an operator, and full.
    let full = StreamSpec {
        max_messages: Some(1),
        max_bytes: Some(1 << 20),
        max_age: Some(Duration::from_secs(3600)),
        discard: Discard::New,
        ..StreamSpec::new("ORDERS_ATTEMPTS", ["attempts.ORDERS.>"])
    };
    first.ensure_stream(&full).await.unwrap();
    first.publish(Message::new("attempts.ORDERS.other.1", "{}")).await.unwrap();
    for _ in 0..=ATTEMPTS {
        let (_bridge, consumer) = worker(&server).await;
        holds(&consumer, MESSAGES).await;
        consumer.handle().drain(Duration::from_secs(10)).await.unwrap();
    }
    let (_bridge, mut consumer) = worker(&server).await;
    let handed_out = tokio::spawn(async move { consumer.next().await.map(|delivery| delivery.is_some()) });
    eventually_true("they are dead letters", || async { stored(&first, "ORDERS_DLQ").await == MESSAGES }).await;
    eventually_true("and no longer there", || async { stored(&first, "ORDERS").await == 0 }).await;
    assert!(!handed_out.is_finished(), "{handed_out:?}");
}

#[tokio::test]
async fn what_no_handler_has_seen_is_another_ones_at_once_when_the_connection_is_closed() {
    let server = NatsServer::start();
    let first = bridge(&server).await;
    let config = ConsumeConfig { ack_wait: Duration::from_secs(60), ..config() };
    let mut left = first.consume(config.clone()).await.unwrap();
    let held = next(&mut left).await;
    left.handle().give_back(Duration::from_secs(10)).await.unwrap();
    // The application has it still.
    assert_eq!(left.handle().held(), 1);
    held.ack_confirmed().await.unwrap();
    // One that is left where it is, in the middle of its work.
    let mut running = first.consume(config.clone()).await.unwrap();
    next(&mut running).await.ack_confirmed().await.unwrap();
    first.close(Duration::from_secs(10)).await.unwrap();
    assert_eq!(running.next().await.unwrap_err().kind(), nats_bridge::ErrorKind::Closed);

    let other = Bridge::connect(server.url()).await.unwrap();
    let mut consumer = other.consume(config).await.unwrap();
    for sequence in 3..=MESSAGES {
        let delivery = next(&mut consumer).await;
        assert_eq!((delivery.sequence(), delivery.attempt()), (sequence, 1));
        delivery.ack().await.unwrap();
    }
}
