//! Complaints about consuming: 1, 5, 7, 9, 10, 12, 13, 14, 17.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nats_bridge::dead_letter::Filter;
use nats_bridge::{ConsumeConfig, Message, RetryPolicy};
use test_support::eventually::eventually_true;
use test_support::fault_proxy::{FaultProxy, Weather};
use test_support::nats::NatsServer;

use super::{CAP, billing, bridge, config, left, next, number, publish, with};

#[tokio::test]
async fn complaint_01_a_consumer_is_never_silently_dead_after_a_reconnect() {
    let mut server = NatsServer::start();
    let proxy = FaultProxy::start(server.port(), 1).await;
    let bridge = with(&server, config(proxy.url())).await;
    let direct = super::bridge(&server).await;
    // What was on its way when a connection ended comes again after `ack_wait`, and counts as an attempt.
    let retry = RetryPolicy { attempts: 30, ..billing().retry };
    let config = ConsumeConfig { ack_wait: Duration::from_millis(500), retry, ..billing() };
    let mut consumer = bridge.consume(config).await.unwrap();
    for round in 0..6 {
        match round % 6 {
            0 => proxy.reset(),
            1 => proxy.cut(),
            2 => proxy.set(Weather::DeafClient),
            3 => proxy.set(Weather::MuteClient),
            4 => {
                server.kill_9();
                server.restart();
            }
            _ => proxy.set(Weather::HalfOpen),
        }
        eventually_true("it is published", || async {
            direct.publish(Message::new("orders.new", round.to_string())).await.is_ok()
        })
        .await;
        // What is dead in the old connection stays dead; a new one is needed to get this.
        let delivery = match tokio::time::timeout(Duration::from_millis(700), consumer.next()).await {
            Ok(delivery) => delivery.unwrap().unwrap(),
            Err(_) => {
                proxy.set(Weather::Calm);
                next(&mut consumer).await
            }
        };
        assert_eq!(number(&delivery), round);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complaint_05_a_long_handler_does_not_cost_the_connection_or_the_message() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 0..1).await;
    let consumer = bridge.consume(ConsumeConfig { ack_wait: Duration::from_millis(300), ..billing() }).await.unwrap();
    let handle = consumer.handle();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let running = tokio::spawn(consumer.run(4, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {
            // As bad as it gets: it blocks a thread of the runtime.
            std::thread::sleep(Duration::from_millis(2_000));
            Ok(())
        }
    }));
    eventually_true("it is done", || async { left(&bridge, "ORDERS").await == Some(0) }).await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(bridge.connection().borrow().disconnects, 0);
    handle.drain(CAP).await.unwrap();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn complaint_07_a_stalled_consumer_takes_no_more_than_its_credit() {
    let server = NatsServer::start();
    let worker = bridge(&server).await;
    let direct = bridge(&server).await;
    let publisher = direct.publisher(Default::default()).await.unwrap();
    for _ in 0..20_000 {
        publisher.publish_later(Message::new("orders.new", vec![0u8; 1024])).await.unwrap();
    }
    publisher.flush(CAP).await.unwrap();
    let before = worker.client().statistics().in_bytes.load(Ordering::Relaxed);
    let config = ConsumeConfig { max_bytes: 64 * 1024, max_messages: 10_000, ..billing() };
    let mut consumer = worker.consume(config).await.unwrap();
    let held = next(&mut consumer).await;
    let handle = consumer.handle();
    eventually_true("its credit is used", || async { handle.held() >= 50 }).await;
    // Signs of life come and go meanwhile; nothing else.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let taken = worker.client().statistics().in_bytes.load(Ordering::Relaxed) - before;
    assert!(handle.held() <= 64 && taken < 128 * 1024, "{} held, {taken} bytes of 20 MB came", handle.held());
    held.ack().await.unwrap();
}

#[tokio::test]
async fn complaint_09_what_waits_in_the_client_does_not_run_out_of_time() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 0..20).await;
    let config = ConsumeConfig { ack_wait: Duration::from_millis(400), max_messages: 20, ..billing() };
    let mut consumer = bridge.consume(config).await.unwrap();
    for i in 0..20 {
        let delivery = next(&mut consumer).await;
        // Together five times as long as the server waits for a sign of life.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!((number(&delivery), delivery.attempt()), (i, 1));
        delivery.ack().await.unwrap();
    }
    let stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    let info = stream.consumer_info("billing").await.unwrap();
    assert_eq!((info.num_redelivered, info.delivered.consumer_sequence), (0, 20));
}

#[tokio::test]
async fn complaint_10_nothing_there_is_an_empty_batch_and_no_error() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let mut consumer = bridge.consume(billing()).await.unwrap();
    for _ in 0..3 {
        assert!(consumer.next_batch(10, Duration::from_millis(200)).await.unwrap().is_empty());
    }
    publish(&bridge, 0..3).await;
    let batch = consumer.next_batch(10, CAP).await.unwrap();
    assert!((1..=3).contains(&batch.len()));
    for delivery in batch {
        delivery.ack().await.unwrap();
    }
}

// That one delivery is not settled twice is the compiler's business: the example at `Delivery` does not compile.
#[tokio::test]
async fn complaint_12_a_late_ack_harms_no_later_one() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 0..20).await;
    let config =
        ConsumeConfig { ack_wait: Duration::from_millis(200), max_run: Duration::from_millis(300), ..billing() };
    let mut consumer = bridge.consume(config).await.unwrap();
    let late = next(&mut consumer).await;
    let mut again = None;
    let mut seen = 1;
    while again.is_none() || seen < 20 {
        let delivery = next(&mut consumer).await;
        match number(&delivery) == number(&late) {
            true => again = Some(delivery),
            false => {
                seen += 1;
                delivery.ack().await.unwrap();
            }
        }
    }
    // Both hands have it now, and both settle.
    again.unwrap().ack_confirmed().await.unwrap();
    late.ack().await.unwrap();
    publish(&bridge, 20..40).await;
    for i in 20..40 {
        let delivery = next(&mut consumer).await;
        assert_eq!(number(&delivery), i);
        delivery.ack_confirmed().await.unwrap();
    }
    assert_eq!(left(&bridge, "ORDERS").await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complaint_13_it_does_not_stall_under_load_however_narrow_the_credit() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    for (credit, messages) in [(1, 500), (7, 3_000), (256, 20_000)] {
        // A pull that is made anew on a crowded machine brings the rest of the old one again a little later.
        let retry = RetryPolicy { attempts: 30, ..billing().retry };
        let config = ConsumeConfig {
            max_messages: credit,
            ack_wait: Duration::from_secs(2),
            heartbeat: Duration::from_secs(2),
            retry,
            ..billing()
        };
        let mut consumer = bridge.consume(config).await.unwrap();
        let publishing = tokio::spawn({
            let bridge = bridge.clone();
            async move { publish(&bridge, 0..messages).await }
        });
        let mut seen = BTreeSet::new();
        while seen.len() < messages {
            let delivery = next(&mut consumer).await;
            seen.insert(number(&delivery));
            delivery.ack().await.unwrap();
        }
        publishing.await.unwrap();
        consumer.handle().drain(CAP).await.unwrap();
    }
}

#[tokio::test]
async fn complaint_14_a_poison_message_neither_loops_for_ever_nor_burns_its_attempts_at_once() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 0..1).await;
    let consumer = bridge.consume(billing()).await.unwrap();
    let handle = consumer.handle();
    let calls: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = calls.clone();
    let running = tokio::spawn(consumer.run(4, move |_| {
        noted.lock().unwrap().push(Instant::now());
        async { panic!("poison") }
    }));
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    eventually_true("it is a dead letter", || async { letters.count().await.unwrap() == 1 }).await;
    let calls = calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 3);
    for (pair, pause) in calls.windows(2).zip([50, 100]) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(pause - 2), "{calls:?}");
    }
    let letter = letters.peek(&Filter::default(), 1).await.unwrap().remove(0);
    assert_eq!((letter.reason(), letter.detail(), letter.attempts()), ("handler_error", "poison", 3));
    // It is taken off its stream once the dead letter is stored, not together with it.
    eventually_true("nothing is left in the stream", || async { left(&bridge, "ORDERS").await == Some(0) }).await;
    handle.drain(CAP).await.unwrap();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn complaint_17_more_instances_of_a_service_share_its_work() {
    let server = NatsServer::start();
    let bridges = [bridge(&server).await, bridge(&server).await, bridge(&server).await];
    let seen: Arc<Mutex<BTreeSet<(usize, usize)>>> = Arc::default();
    let mut running = Vec::new();
    let mut handles = Vec::new();
    for (instance, bridge) in bridges.iter().enumerate() {
        let consumer = bridge.consume(ConsumeConfig { max_messages: 10, ..billing() }).await.unwrap();
        handles.push(consumer.handle());
        let seen = seen.clone();
        running.push(tokio::spawn(consumer.run(2, move |message| {
            let number = std::str::from_utf8(message.payload()).unwrap().parse().unwrap();
            let fresh = seen.lock().unwrap().insert((number, instance));
            async move {
                tokio::time::sleep(Duration::from_millis(2)).await;
                assert!(fresh && !message.redelivered());
                Ok(())
            }
        })));
    }
    publish(&bridges[0], 0..600).await;
    eventually_true("all is done", || async { left(&bridges[0], "ORDERS").await == Some(0) }).await;
    for handle in handles {
        handle.drain(CAP).await.unwrap();
    }
    for task in running {
        task.await.unwrap().unwrap();
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 600, "each once");
    for instance in 0..3 {
        assert!(seen.iter().filter(|(_, by)| *by == instance).count() > 50, "instance {instance} has its share");
    }
}
