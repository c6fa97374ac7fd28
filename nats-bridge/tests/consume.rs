//! Consuming against a real server: settled once, retried by policy, then exactly one dead letter.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nats_bridge::consume::ConsumeConfig;
use nats_bridge::{
    Bridge, Config, Consumer, ConsumerState, Delivery, ErrorKind, Failure, Landed, Message, Retention, RetryPolicy,
    Settled, StreamSpec, dead_letter,
};
use test_support::eventually::{eventually_some, eventually_true};
use test_support::fault_proxy::{FaultProxy, Weather};
use test_support::nats::NatsServer;

async fn bridge(server: &NatsServer) -> Bridge {
    let config =
        Config { servers: vec![server.url()], reconnect_pause_max: Duration::from_millis(200), ..Config::default() };
    let bridge = Bridge::connect_with(config).await.unwrap();
    bridge.ensure_stream(&orders()).await.unwrap();
    bridge
}

fn orders() -> StreamSpec {
    StreamSpec { retention: Retention::WorkQueue, max_bytes: Some(1 << 26), ..StreamSpec::new("ORDERS", ["orders.>"]) }
}

fn quick() -> ConsumeConfig {
    let retry =
        RetryPolicy { attempts: 3, first_pause: Duration::from_millis(50), jitter: false, ..Default::default() };
    ConsumeConfig {
        retry,
        heartbeat: Duration::from_millis(500),
        stalled_after: Duration::from_secs(2),
        ..ConsumeConfig::new("ORDERS", "billing")
    }
}

async fn publish(bridge: &Bridge, n: usize) {
    let mut pending = Vec::new();
    for i in 0..n {
        pending.push(bridge.publish_later(Message::new("orders.new", i.to_string())).await.unwrap());
    }
    for confirm in pending {
        confirm.await.unwrap();
    }
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(Duration::from_secs(15), consumer.next());
    next.await.expect("a delivery within 15 s").unwrap().expect("the consumer goes on")
}

// An absent stream has none; a server that is away is asked again.
async fn messages(bridge: &Bridge, stream: &str) -> u64 {
    use async_nats::jetstream::context::GetStreamErrorKind;
    eventually_some("the server answers", || async {
        match bridge.jetstream().get_stream(stream).await {
            Ok(stream) => Some(stream.cached_info().state.messages),
            Err(e) if matches!(e.kind(), GetStreamErrorKind::JetStream(_)) => Some(0),
            Err(_) => None,
        }
    })
    .await
}

fn number(delivery: &Delivery) -> usize {
    std::str::from_utf8(delivery.payload()).unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_is_acked_is_gone_and_comes_once() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 1000).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    for i in 0..1000 {
        let delivery = next(&mut consumer).await;
        assert_eq!((number(&delivery), delivery.attempt(), delivery.subject()), (i, 1, "orders.new"));
        assert!(delivery.id().unwrap().starts_with("msg_"));
        assert_eq!(delivery.ack().await.unwrap(), Settled::Acked);
    }
    eventually_true("the queue is empty", || async { messages(&bridge, "ORDERS").await == 0 }).await;
}

#[tokio::test]
async fn a_failing_message_is_retried_by_policy_and_then_is_one_dead_letter() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let mut seen = bridge.client().subscribe("dlq.>").await.unwrap();
    bridge.publish(Message::new("orders.new", "7").id("order-7").header("tenant", "acme")).await.unwrap();
    let mut consumer = bridge.consume(quick()).await.unwrap();
    let mut at = Vec::new();
    for attempt in 1..=3 {
        let delivery = next(&mut consumer).await;
        at.push(Instant::now());
        assert_eq!(delivery.attempt(), attempt);
        let settled = delivery.retry(Failure::of("DbError", "postgres://u:pw@db is away")).await.unwrap();
        match attempt {
            1 => assert_eq!(settled, Settled::Retried { after: Duration::from_millis(50) }),
            2 => assert_eq!(settled, Settled::Retried { after: Duration::from_millis(100) }),
            _ => assert_eq!(settled, Settled::DeadLettered { stream: "ORDERS_DLQ".into(), sequence: 1 }),
        }
    }
    assert!(at[1] - at[0] >= Duration::from_millis(45) && at[2] - at[1] >= Duration::from_millis(95), "{at:?}");
    assert_eq!((messages(&bridge, "ORDERS").await, messages(&bridge, "ORDERS_DLQ").await), (0, 1));

    let letter = futures::StreamExt::next(&mut seen).await.unwrap();
    let headers = letter.headers.unwrap();
    let get = |name: &str| headers.get(name).map(|v| v.as_str().to_owned()).unwrap_or_default();
    assert_eq!(letter.payload, "7");
    assert_eq!(get(dead_letter::REASON), "handler_error");
    assert_eq!(get(dead_letter::DETAIL), "postgres://***@db is away");
    assert_eq!((get(dead_letter::STREAM), get(dead_letter::SUBJECT)), ("ORDERS".into(), "orders.new".into()));
    assert_eq!((get(dead_letter::SEQUENCE), get(dead_letter::ATTEMPTS)), ("1".into(), "3".into()));
    assert_eq!((get("tenant"), get("Dead-Letter-Original-Nats_-Msg-Id")), ("acme".into(), "order-7".into()));
    assert!(get(dead_letter::FIRST_FAILED_AT) < get(dead_letter::LAST_FAILED_AT));
}

#[tokio::test]
async fn a_rejected_message_is_a_dead_letter_at_once() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 2).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert!(matches!(delivery.reject("not ours").await.unwrap(), Settled::DeadLettered { sequence: 1, .. }));
    next(&mut consumer).await.ack_confirmed().await.unwrap();
    assert_eq!((messages(&bridge, "ORDERS").await, messages(&bridge, "ORDERS_DLQ").await), (0, 1));
}

#[tokio::test]
async fn a_dead_letter_that_cannot_be_stored_pauses_the_consumer_until_it_can() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 3).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    let handle = consumer.handle();
    bridge.jetstream().delete_stream("ORDERS_DLQ").await.unwrap();

    let error = next(&mut consumer).await.reject("bad").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(matches!(handle.state(), ConsumerState::Paused { .. }), "{:?}", handle.state());
    // Neither dead letter nor done, and nothing new is handed out.
    assert_eq!(messages(&bridge, "ORDERS").await, 3);
    assert!(tokio::time::timeout(Duration::from_millis(300), consumer.next()).await.is_err());

    bridge.ensure_stream(&StreamSpec::dead_letters_of("ORDERS")).await.unwrap();
    eventually_true("it goes on", || async { handle.state() == ConsumerState::Running }).await;
    assert_eq!((messages(&bridge, "ORDERS").await, messages(&bridge, "ORDERS_DLQ").await), (2, 1));
    for i in 1..3 {
        let delivery = next(&mut consumer).await;
        assert_eq!(number(&delivery), i);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_message_whose_workers_die_is_a_dead_letter_of_reason_crash_loop() {
    let server = NatsServer::start();
    let first = bridge(&server).await;
    let mut seen = first.client().subscribe("dlq.>").await.unwrap();
    publish(&first, 1).await;
    let config = ConsumeConfig { ack_wait: Duration::from_millis(300), ..quick() };
    for attempt in 1..=3 {
        // A worker with a connection of its own, which is cut without a word while it holds the message.
        let worker = Bridge::connect(server.url()).await.unwrap();
        let mut consumer = worker.consume(config.clone()).await.unwrap();
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.attempt(), attempt);
        worker.client().drain().await.unwrap();
        std::mem::forget(delivery);
    }
    let mut consumer = first.consume(config).await.unwrap();
    let letter = tokio::time::timeout(Duration::from_secs(15), futures::StreamExt::next(&mut seen)).await.unwrap();
    let headers = letter.unwrap().headers.unwrap();
    assert_eq!(headers.get(dead_letter::REASON).unwrap().as_str(), "crash_loop");
    assert_eq!(headers.get(dead_letter::ATTEMPTS).unwrap().as_str(), "3");
    eventually_true("the original is gone", || async { messages(&first, "ORDERS").await == 0 }).await;
    assert!(tokio::time::timeout(Duration::from_millis(200), consumer.next()).await.is_err());
}

#[tokio::test]
async fn a_long_handler_is_not_delivered_twice_up_to_its_maximum_run_time() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 1).await;
    let config = ConsumeConfig { ack_wait: Duration::from_millis(300), max_run: Duration::from_secs(30), ..quick() };
    let mut consumer = bridge.consume(config.clone()).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert!(tokio::time::timeout(Duration::from_millis(1500), consumer.next()).await.is_err());
    delivery.ack_confirmed().await.unwrap();
    assert_eq!(messages(&bridge, "ORDERS").await, 0);
    consumer.handle().drain(Duration::from_secs(5)).await.unwrap();

    publish(&bridge, 1).await;
    let config = ConsumeConfig { max_run: Duration::from_millis(400), ..config };
    let mut consumer = bridge.consume(config).await.unwrap();
    let stuck = next(&mut consumer).await;
    let again = next(&mut consumer).await;
    assert_eq!((stuck.attempt(), again.attempt()), (1, 2));
    again.ack_confirmed().await.unwrap();
}

#[tokio::test]
async fn a_consumer_holds_no_more_than_its_credit() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 50).await;
    let mut consumer = bridge.consume(ConsumeConfig { max_messages: 5, ..quick() }).await.unwrap();
    let handle = consumer.handle();
    let mut deliveries = Vec::new();
    for _ in 0..5 {
        deliveries.push(next(&mut consumer).await);
    }
    assert!(tokio::time::timeout(Duration::from_millis(300), consumer.next()).await.is_err());
    assert_eq!(handle.held(), 5);
    for delivery in deliveries {
        delivery.ack().await.unwrap();
    }
    for _ in 5..50 {
        assert!(handle.held() <= 5);
        next(&mut consumer).await.ack().await.unwrap();
    }
    handle.drain(Duration::from_secs(5)).await.unwrap();

    // By bytes, and one that is larger than all of them.
    for size in [400, 400, 400, 5000, 400] {
        bridge.publish(Message::new("orders.new", vec![0u8; size])).await.unwrap();
    }
    let mut consumer = bridge.consume(ConsumeConfig { max_bytes: 1200, ..quick() }).await.unwrap();
    let first = next(&mut consumer).await;
    let second = next(&mut consumer).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), consumer.next()).await.is_err());
    first.ack().await.unwrap();
    second.ack().await.unwrap();
    for size in [400, 5000, 400] {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.payload().len(), size);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn draining_lets_handlers_finish_and_gives_the_rest_back() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 20).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    let handle = consumer.handle();
    let held = next(&mut consumer).await;
    let error = handle.drain(Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.context().contains(&("not_settled", "1".into())), "{error}");
    held.ack_confirmed().await.unwrap();
    handle.drain(Duration::from_secs(5)).await.unwrap();
    assert!(consumer.next().await.unwrap().is_none());
    assert_eq!(handle.state(), ConsumerState::Stopped);

    // At once, not after `ack_wait`.
    let started = Instant::now();
    let mut second = bridge.consume(quick()).await.unwrap();
    let mut seen: Vec<usize> = Vec::new();
    for _ in 0..19 {
        let delivery = next(&mut second).await;
        seen.push(number(&delivery));
        delivery.ack().await.unwrap();
    }
    seen.sort();
    assert_eq!(seen, (1..20).collect::<Vec<_>>());
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_consumer_survives_a_killed_server_and_everything_is_handled() {
    let mut server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 500).await;
    let config = ConsumeConfig { ack_wait: Duration::from_secs(1), max_messages: 50, ..quick() };
    let mut consumer = bridge.consume(config).await.unwrap();
    let mut handled: BTreeMap<usize, usize> = BTreeMap::new();
    while handled.len() < 100 {
        let delivery = next(&mut consumer).await;
        *handled.entry(number(&delivery)).or_default() += 1;
        delivery.ack().await.unwrap();
    }
    server.kill_9();
    server.restart();
    // Acks that were lost with the connection are deliveries again.
    while messages(&bridge, "ORDERS").await > 0 {
        if let Ok(delivery) = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await {
            let delivery = delivery.unwrap().unwrap();
            *handled.entry(number(&delivery)).or_default() += 1;
            delivery.ack().await.unwrap();
        }
    }
    assert_eq!(handled.len(), 500);
    assert_eq!(messages(&bridge, "ORDERS_DLQ").await, 0);
}

#[tokio::test]
async fn a_server_that_hangs_costs_a_rebuild_and_the_consumer_goes_on() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    server.pause();
    // Longer than two heartbeats: the pull is taken for dead.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    server.resume();
    publish(&bridge, 10).await;
    for _ in 0..10 {
        next(&mut consumer).await.ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_deleted_consumer_is_an_error_and_not_silence() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    eventually_some("a pull waits", || async {
        let stream = bridge.jetstream().get_stream("ORDERS").await.ok()?;
        (stream.consumer_info("billing").await.ok()?.num_waiting > 0).then_some(())
    })
    .await;
    bridge.jetstream().delete_consumer_from_stream("billing", "ORDERS").await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(15), consumer.next()).await.expect("it is noticed");
    assert_eq!(next.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(matches!(consumer.handle().state(), ConsumerState::Failed { .. }));
}

#[tokio::test]
async fn a_stream_that_does_not_exist_is_an_error_and_nothing_is_made_for_it() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let error = bridge.consume(ConsumeConfig::new("NOPE", "billing")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    for stream in ["NOPE_DLQ", "NOPE_ADVISORIES"] {
        assert!(bridge.jetstream().get_stream(stream).await.is_err(), "{stream}");
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_ends_a_consumer_that_waits_for_what_is_held() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 1).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    let held = next(&mut consumer).await;
    let error = consumer.handle().drain(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    bridge.close(Duration::from_secs(5)).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(15), consumer.next()).await.expect("it ends");
    assert_eq!(next.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(held.ack_confirmed().await.unwrap_err().kind(), ErrorKind::Closed);

    let error = bridge.publish(Message::new("orders.new", "late")).await.unwrap_err();
    assert_eq!((error.kind(), error.landed()), (ErrorKind::Closed, Landed::No));
    let error = bridge.try_publish(Message::new("orders.new", "late")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    let error = bridge.ensure_stream(&orders()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_handler_that_panics_or_drops_costs_a_retry() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 3).await;
    let consumer = bridge.consume(quick()).await.unwrap();
    let handle = consumer.handle();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let running = tokio::spawn(consumer.run(2, move |message| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            match (&message.payload()[..], message.attempt()) {
                (b"0", 1) => panic!("a bug"),
                (b"1", 1) => Err("not yet".into()),
                _ => Ok(()),
            }
        }
    }));
    eventually_true("all are handled", || async { messages(&bridge, "ORDERS").await == 0 }).await;
    assert_eq!(calls.load(Ordering::SeqCst), 5);
    handle.drain(Duration::from_secs(5)).await.unwrap();
    running.await.unwrap().unwrap();

    publish(&bridge, 1).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    drop(next(&mut consumer).await);
    let again = next(&mut consumer).await;
    assert_eq!(again.attempt(), 2);
    again.ack().await.unwrap();
    assert_eq!(messages(&bridge, "ORDERS_DLQ").await, 0);
}

#[tokio::test]
async fn every_failed_message_is_in_exactly_one_place() {
    let mut server = NatsServer::start();
    let bridge = bridge(&server).await;
    const N: usize = 300;
    publish(&bridge, N).await;
    let config = ConsumeConfig { ack_wait: Duration::from_secs(1), ..quick() };
    let consumer = bridge.consume(config).await.unwrap();
    let handle = consumer.handle();
    let done = Arc::new(AtomicUsize::new(0));
    let counted = done.clone();
    let running = tokio::spawn(consumer.run(16, move |message| {
        let counted = counted.clone();
        async move {
            let number: usize = std::str::from_utf8(message.payload()).unwrap().parse().unwrap();
            match number % 3 {
                0 => Err("never works".into()),
                _ => {
                    counted.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
            }
        }
    }));
    eventually_true("some are dead letters", || async { messages(&bridge, "ORDERS_DLQ").await > 10 }).await;
    server.kill_9();
    server.restart();
    eventually_true("the queue is empty", || async { messages(&bridge, "ORDERS").await == 0 }).await;
    let mut letters = bridge.jetstream().get_stream("ORDERS_DLQ").await.unwrap();
    let mut places: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for sequence in 1..=letters.info().await.unwrap().state.last_sequence {
        let letter = letters.get_raw_message(sequence).await.unwrap();
        let number = std::str::from_utf8(&letter.payload).unwrap().parse().unwrap();
        let header = |name: &str| letter.headers.get(name).map(|v| v.as_str().to_owned()).unwrap_or_default();
        let what =
            format!("{} {} {}", header("Nats-Msg-Id"), header(dead_letter::REASON), header(dead_letter::ATTEMPTS));
        places.entry(number).or_default().push(what);
    }
    assert!(places.values().all(|letters| letters.len() == 1), "{places:#?}");
    assert!(places.keys().eq((0..N).step_by(3).collect::<Vec<_>>().iter()), "{places:#?}");
    assert!(done.load(Ordering::SeqCst) >= N - N / 3);
    handle.drain(Duration::from_secs(5)).await.unwrap();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn batches_give_what_is_there_and_an_empty_one_is_no_error() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    assert!(consumer.next_batch(10, Duration::from_millis(100)).await.unwrap().is_empty());
    publish(&bridge, 25).await;
    let mut seen = 0;
    while seen < 25 {
        let batch = consumer.next_batch(10, Duration::from_secs(10)).await.unwrap();
        assert!((1..=10).contains(&batch.len()));
        seen += batch.len();
        for delivery in batch {
            delivery.ack().await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_ack_that_was_lost_is_sent_again_and_the_message_is_not_handled_twice() {
    let server = NatsServer::start();
    let direct = bridge(&server).await;
    let proxy = FaultProxy::start(server.port(), 1).await;
    let config =
        Config { servers: vec![proxy.url()], reconnect_pause_max: Duration::from_millis(200), ..Config::default() };
    let worker = Bridge::connect_with(config).await.unwrap();
    let config = ConsumeConfig { ack_wait: Duration::from_millis(500), ..quick() };
    let mut consumer = worker.consume(config).await.unwrap();
    publish(&direct, 20).await;
    for i in 0..20 {
        let delivery = next(&mut consumer).await;
        if i == 10 {
            proxy.set(Weather::MuteClient);
        }
        delivery.ack().await.unwrap();
    }
    proxy.reset();
    proxy.set(Weather::Calm);
    // Nothing of it is handed out again, and the server learns of every ack.
    let quiet = tokio::spawn(async move { consumer.next().await });
    eventually_true("the queue is empty", || async { messages(&direct, "ORDERS").await == 0 }).await;
    assert!(!quiet.is_finished());
    assert_eq!(messages(&direct, "ORDERS_DLQ").await, 0);
}

#[tokio::test]
async fn a_confirmed_ack_that_went_into_a_dead_connection_is_sent_again() {
    let server = NatsServer::start();
    let direct = bridge(&server).await;
    publish(&direct, 1).await;
    let proxy = FaultProxy::start(server.port(), 1).await;
    let config =
        Config { servers: vec![proxy.url()], reconnect_pause_max: Duration::from_millis(200), ..Config::default() };
    let bridge = Bridge::connect_with(config).await.unwrap();
    let mut consumer = bridge.consume(ConsumeConfig { ack_wait: Duration::from_secs(60), ..quick() }).await.unwrap();
    let delivery = next(&mut consumer).await;
    let before = proxy.swallowed();
    proxy.set(Weather::MuteClient);
    let asked = tokio::spawn(delivery.ack_confirmed());
    eventually_true("the ack is swallowed", || async { proxy.swallowed() > before }).await;
    proxy.set(Weather::Calm);
    proxy.reset();
    assert_eq!(asked.await.unwrap().unwrap(), Settled::Acked);
    assert_eq!(messages(&direct, "ORDERS").await, 0);
}

#[tokio::test]
async fn retries_come_when_the_policy_says() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 10).await;
    let retry = RetryPolicy {
        attempts: 4,
        first_pause: Duration::from_millis(200),
        max_pause: Duration::from_millis(400),
        jitter: false,
        ..Default::default()
    };
    let mut consumer = bridge.consume(ConsumeConfig { retry, ..quick() }).await.unwrap();
    let mut failed: BTreeMap<usize, (Instant, Duration)> = BTreeMap::new();
    let mut over = Vec::new();
    let mut letters = 0;
    while letters < 10 {
        let delivery = next(&mut consumer).await;
        let (number, now) = (number(&delivery), Instant::now());
        if let Some((before, pause)) = failed.get(&number) {
            let waited = now - *before;
            assert!(waited + Duration::from_millis(5) >= *pause, "{number} came after {waited:?} instead of {pause:?}");
            over.push(waited.saturating_sub(*pause + *pause / 10));
        }
        let at = Instant::now();
        match delivery.retry("not yet").await.unwrap() {
            Settled::Retried { after } => drop(failed.insert(number, (at, after))),
            Settled::DeadLettered { .. } => letters += 1,
            Settled::Acked => panic!("it failed"),
        }
    }
    assert_eq!(over.len(), 30, "three retries each, and not one more");
    // A crowded machine delays some; not all.
    over.sort();
    assert!(over[over.len() / 2] <= Duration::from_millis(50), "{over:?}");
}

#[tokio::test]
async fn of_many_that_came_at_once_none_is_passed_over() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 2_000).await;
    let mut consumer = bridge.consume(ConsumeConfig { max_messages: 1_000, ..quick() }).await.unwrap();
    let sent = async || {
        let stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
        let mut billing: async_nats::jetstream::consumer::PullConsumer = stream.get_consumer("billing").await.unwrap();
        billing.info().await.unwrap().num_ack_pending
    };
    eventually_true("the whole credit was sent", || async { sent().await == 1_000 }).await;
    for i in 0..2_000 {
        // As a language's own thread asks for it, where Tokio's budget for one task does not end a read.
        let delivery = tokio::task::unconstrained(next(&mut consumer)).await;
        assert_eq!((number(&delivery), delivery.attempt()), (i, 1));
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn what_a_drain_gives_back_comes_again_in_its_order() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 40).await;
    let mut seen = Vec::new();
    for take in [3, 1, 7, 29] {
        let mut consumer = bridge
            .consume(ConsumeConfig { retry: RetryPolicy { attempts: 9, ..quick().retry }, ..quick() })
            .await
            .unwrap();
        for _ in 0..take {
            let delivery = next(&mut consumer).await;
            seen.push(number(&delivery));
            delivery.ack_confirmed().await.unwrap();
        }
        consumer.handle().drain(Duration::from_secs(10)).await.unwrap();
    }
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn close_ends_what_waits_while_nats_is_away() {
    let mut server = NatsServer::start();
    let bridge = bridge(&server).await;
    let mut consumer = bridge.consume(quick()).await.unwrap();
    let waits = tokio::spawn(async move { consumer.next().await.map(drop) });
    server.stop();
    let publishing = bridge.clone();
    let publishes = tokio::spawn(async move { publishing.publish(Message::new("orders.new", "x")).await.map(drop) });
    eventually_true("it is handed over", || async { bridge.outstanding() == 1 }).await;
    let closed = bridge.close(Duration::from_millis(100)).await.unwrap_err();
    assert_eq!((closed.kind(), closed.landed()), (ErrorKind::Timeout, Landed::Unknown));
    let limit = Duration::from_secs(10);
    let error = tokio::time::timeout(limit, publishes).await.unwrap().unwrap().unwrap_err();
    assert_eq!((error.kind(), error.landed()), (ErrorKind::Closed, Landed::Unknown));
    let error = tokio::time::timeout(limit, waits).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}
