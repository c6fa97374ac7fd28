//! The tools for dead letters, on a real server.

#![allow(clippy::unwrap_used)]

mod orders;

use std::time::Duration;

use nats_bridge::dead_letter::{Filter, GroupBy, Letter, Redrive};
use nats_bridge::{
    Bridge, ConsumeConfig, Consumer, ErrorKind, Failure, Message, Reason, RetryPolicy, Settled, StreamSpec,
};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

use orders::bridge;

async fn consumer(bridge: &Bridge) -> Consumer {
    let retry =
        RetryPolicy { attempts: 2, first_pause: Duration::from_millis(10), jitter: false, ..RetryPolicy::default() };
    let config =
        ConsumeConfig { retry, heartbeat: Duration::from_millis(500), ..ConsumeConfig::new("ORDERS", "billing") };
    bridge.consume(config).await.unwrap()
}

// Publishes messages 0 to `n` and lets each become a dead letter: of class `Even` or `Odd`.
async fn with_letters(bridge: &Bridge, n: usize) -> Consumer {
    for i in 0..n {
        let message = Message::new("orders.new", format!("order {i}")).id(format!("o-{i}")).header("tenant", "acme");
        bridge.publish(message).await.unwrap();
    }
    let mut consumer = consumer(bridge).await;
    let mut letters = 0;
    while letters < n {
        let delivery = consumer.next().await.unwrap().unwrap();
        let class = if delivery.sequence() % 2 == 1 { "Even" } else { "Odd" };
        let settled = delivery.retry(Failure::of(class, "no such customer")).await.unwrap();
        letters += usize::from(matches!(settled, Settled::DeadLettered { .. }));
    }
    consumer
}

async fn messages(bridge: &Bridge, stream: &str) -> u64 {
    bridge.jetstream().get_stream(stream).await.unwrap().cached_info().state.messages
}

#[tokio::test]
async fn letters_are_grouped_peeked_and_shown_and_stay_where_they_are() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let _consumer = with_letters(&bridge, 5).await;
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    let groups = letters.list(GroupBy::Reason, &Filter::default()).await.unwrap();
    assert_eq!(groups.len(), 1);
    let group = &groups[0];
    assert_eq!((group.key.as_str(), group.letters, group.payload_bytes), ("handler_error", 5, 35));
    assert_eq!((group.consumer.as_str(), group.detail.as_str()), ("billing", "no such customer"));
    assert_eq!((group.first_sequence, group.last_sequence), (1, 5));

    let by_class = letters.list(GroupBy::Fingerprint, &Filter::default()).await.unwrap();
    assert_eq!(by_class.iter().map(|group| group.letters).collect::<Vec<_>>(), [3, 2]);
    let odd = Filter { fingerprint: Some(by_class[1].key.clone()), ..Filter::default() };
    let peeked = letters.peek(&odd, 10).await.unwrap();
    assert_eq!(peeked.iter().map(|letter| &letter.payload[..]).collect::<Vec<_>>(), [b"order 1", b"order 3"]);
    assert_eq!(letters.peek(&Filter::default(), 2).await.unwrap().len(), 2);

    let one = letters.show(4).await.unwrap();
    assert_eq!((one.original_subject(), one.stream(), one.attempts()), ("orders.new", "ORDERS", 2));
    assert!(one.original_headers().contains(&("tenant".into(), "acme".into())));
    assert!(one.original_headers().contains(&("Nats-Msg-Id".into(), "o-3".into())));
    assert_eq!(letters.show(17).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bridge.dead_letters("NONE_DLQ").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(letters.count().await.unwrap(), 5);
}

#[tokio::test]
async fn a_redrive_brings_letters_back_with_fresh_ids_and_leaves_none_behind() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let mut consumer = with_letters(&bridge, 4).await;
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    let fast = Redrive { rate_per_second: 1000.0, ..Redrive::default() };

    let would = letters.redrive(&Redrive { dry_run: true, ..fast.clone() }, |_| true).await.unwrap();
    assert_eq!((would.redriven, letters.count().await.unwrap(), messages(&bridge, "ORDERS").await), (4, 4, 0));

    // Stopped in between, and carried on by another call.
    let some = letters.redrive(&fast, |done| done.redriven < 3).await.unwrap();
    assert_eq!((some.redriven, some.stopped.as_deref()), (3, Some("cancelled")));
    assert_eq!(letters.count().await.unwrap(), 1);
    let rest = letters.redrive(&fast, |_| true).await.unwrap();
    assert_eq!((rest.redriven, rest.stopped, letters.count().await.unwrap()), (1, None, 0));

    for i in 0..4 {
        let delivery = consumer.next().await.unwrap().unwrap();
        assert_eq!(delivery.payload(), format!("order {i}").as_bytes());
        assert_eq!((delivery.id(), delivery.attempt()), (Some(format!("o-{i}#r1").as_str()), 1));
        assert_eq!(delivery.header("tenant"), Some("acme"));
        assert_eq!(delivery.header("Dead-Letter-Reason"), None);
        match i {
            // Fails again: a letter that knows that it was redriven.
            0 => drop(delivery.reject("still no such customer").await.unwrap()),
            _ => drop(delivery.ack().await.unwrap()),
        }
    }
    let again = letters.peek(&Filter::default(), 1).await.unwrap().remove(0);
    assert_eq!((again.redrives(), again.redrive_id().as_str()), (1, "o-0#r2"));
}

#[tokio::test]
async fn a_redrive_goes_elsewhere_keeps_to_its_rate_and_stops_when_too_many_fail_again() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let consumer = with_letters(&bridge, 60).await;
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    let elsewhere = StreamSpec { max_bytes: Some(1 << 20), unbounded: true, ..StreamSpec::new("REPAIR", ["repair"]) };
    bridge.ensure_stream(&elsewhere).await.unwrap();
    let some = Redrive {
        to: Some("repair".into()),
        limit: Some(10),
        rate_per_second: 100.0,
        filter: Filter { sequences: Some(51..=100), ..Filter::default() },
        ..Redrive::default()
    };
    let started = std::time::Instant::now();
    assert_eq!(letters.redrive(&some, |_| true).await.unwrap().redriven, 10);
    assert!(started.elapsed() >= Duration::from_millis(85), "{:?}", started.elapsed());
    assert_eq!((messages(&bridge, "REPAIR").await, letters.count().await.unwrap()), (10, 50));
    let nowhere = Redrive { to: Some("nobody.listens".into()), ..some.clone() };
    let outside = Redrive { filter: Filter::default(), ..nowhere };
    assert_eq!(letters.redrive(&outside, |_| true).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(letters.count().await.unwrap(), 50, "what cannot be stored stays");
    let wrong = Redrive { rate_per_second: 0.0, ..Redrive::default() };
    assert_eq!(letters.redrive(&wrong, |_| true).await.unwrap_err().kind(), ErrorKind::Config);

    // The handler has not been repaired.
    let handle = consumer.handle();
    let broken = tokio::spawn(consumer.run(4, |_| async { Err(Failure::of("Even", "still broken")) }));
    let slow = Redrive { rate_per_second: 40.0, ..Redrive::default() };
    let done = letters.redrive(&slow, |_| true).await.unwrap();
    assert!(done.stopped.as_deref().unwrap().ends_with("% of what was redriven failed again"), "{done:?}");
    assert!(done.redriven >= 10 && done.redriven < 50 && done.failed_again * 5 > done.redriven, "{done:?}");
    eventually_true("none is lost", || async { letters.count().await.unwrap() == 50 }).await;
    handle.drain(Duration::from_secs(5)).await.unwrap();
    broken.await.unwrap().unwrap();
}

#[tokio::test]
async fn letters_are_parked_exported_purged_and_imported_whole() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let _consumer = with_letters(&bridge, 6).await;
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    let before = letters.peek(&Filter::default(), 10).await.unwrap();

    let first_two = Filter { sequences: Some(1..=2), ..Filter::default() };
    assert_eq!(letters.park(&first_two, |_| true).await.unwrap(), 2);
    let parked = bridge.dead_letters("ORDERS_DLQ_PARKED").await.unwrap();
    let kept = parked.peek(&Filter::default(), 10).await.unwrap();
    assert_eq!((&kept[0].headers, &kept[0].payload), (&before[0].headers, &before[0].payload));
    assert_eq!((kept.len(), letters.count().await.unwrap()), (2, 4));

    let (mut exported, mut purged) = (Vec::new(), Vec::new());
    assert_eq!(letters.export(&Filter::default(), &mut exported, |_| true).await.unwrap(), 4);
    assert_eq!(letters.count().await.unwrap(), 4);
    assert_eq!(letters.purge(&Filter::default(), &mut purged, |_| true).await.unwrap(), 4);
    assert_eq!((letters.count().await.unwrap(), &exported), (0, &purged));
    assert_eq!(Letter::from_json(std::str::from_utf8(&purged).unwrap().lines().next().unwrap()).unwrap(), before[2]);

    // What the writer could not take is not removed.
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Err(std::io::Error::other("no space left"))
        }
    }
    // The stream still knows the ids of what was removed.
    let done = letters.import(&mut &purged[..], |_| true).await.unwrap();
    assert_eq!((done.stored, done.duplicates), (4, 0));
    let again = letters.import(&mut &purged[..], |_| true).await.unwrap();
    assert_eq!((again.stored, again.duplicates), (0, 4));
    let back = letters.peek(&Filter::default(), 10).await.unwrap();
    let whole = |letter: &Letter| {
        let headers: Vec<_> = letter.headers.iter().filter(|(name, _)| name != "Nats-Msg-Id").cloned().collect();
        (headers, letter.payload.clone())
    };
    assert_eq!(whole(&back[0]), whole(&before[2]));
    let error = letters.purge(&Filter::default(), &mut Full, |_| true).await.unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(letters.count().await.unwrap(), 4);
    let error = letters.import(&mut &b"\nnot json\n"[..], |_| true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidMessage);
    assert!(error.context().contains(&("line", "2".into())), "{error}");
}

#[tokio::test]
async fn every_value_of_a_header_is_shown_kept_in_a_file_and_redriven() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    bridge.publish(Message::new("orders.new", "x").header("via", "a").header("via", "b")).await.unwrap();
    let mut consumer = consumer(&bridge).await;
    let failed = consumer.next().await.unwrap().unwrap();
    failed.dead_letter(Reason::HandlerError, Failure::new("no")).await.unwrap();
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    let vias = |headers: &[(String, String)]| {
        headers.iter().filter(|(name, _)| name == "via").map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(vias(&letters.show(1).await.unwrap().original_headers()), ["a", "b"]);
    let mut file = Vec::new();
    letters.purge(&Filter::default(), &mut file, |_| true).await.unwrap();
    letters.import(&mut &file[..], |_| true).await.unwrap();
    letters.redrive(&Redrive::default(), |_| true).await.unwrap();
    let again = consumer.next().await.unwrap().unwrap();
    let all = again.headers().unwrap().get_all("via").map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(all, ["a", "b"]);
    again.ack().await.unwrap();
}
