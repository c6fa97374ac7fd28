//! The outbox on disk: what was put arrives, in order and once, whatever dies.

mod file;
mod kill;
mod postgres;
mod window;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::{consumer, stream};
use futures::StreamExt;
use nats_bridge::outbox::{Outbox, OutboxConfig};
use nats_bridge::{Bridge, Config, ErrorKind, Landed, Message, PublishConfig};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

const SOON: Duration = Duration::from_secs(60);

fn config(path: &Path) -> OutboxConfig {
    OutboxConfig {
        first_pause: Duration::from_millis(20),
        max_pause: Duration::from_millis(200),
        ..OutboxConfig::new(path)
    }
}

async fn open(path: &Path) -> Outbox {
    Outbox::open(config(path)).await.unwrap()
}

async fn bridge(server: &NatsServer) -> Bridge {
    let config = Config {
        servers: vec![server.url()],
        reconnect_pause_max: Duration::from_millis(200),
        publish: PublishConfig {
            ack_wait: Duration::from_secs(1),
            deadline: Duration::from_secs(20),
            no_stream_wait: Duration::from_millis(300),
            ..PublishConfig::default()
        },
        ..Config::default()
    };
    Bridge::connect_with(config).await.unwrap()
}

async fn make_stream(bridge: &Bridge, change: impl FnOnce(&mut stream::Config)) {
    let mut orders = stream::Config { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..Default::default() };
    change(&mut orders);
    bridge.jetstream().get_or_create_stream(orders).await.unwrap();
}

/// Subject, id and payload of all that is stored, in its order.
async fn stored(bridge: &Bridge) -> Vec<(String, String, String)> {
    let orders = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    let count = orders.cached_info().state.messages as usize;
    let config = consumer::pull::OrderedConfig::default();
    let messages = orders.create_consumer(config).await.unwrap().messages().await.unwrap();
    let read = messages.take(count).map(|message| {
        let message = message.unwrap();
        let id = message.headers.as_ref().and_then(|h| h.get("Nats-Msg-Id")).map(|id| id.to_string());
        let payload = String::from_utf8(message.payload.to_vec()).unwrap();
        (message.subject.to_string(), id.unwrap_or_default(), payload)
    });
    read.collect().await
}

/// That each id is stored once, and the numbers of each subject rise.
fn assert_once_and_in_order(stored: &[(String, String, String)]) {
    let mut ids = std::collections::HashSet::new();
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (subject, id, payload) in stored {
        assert!(ids.insert(id), "{id} is stored twice");
        let number: u64 = payload.parse().unwrap();
        if let Some(before) = last.insert(subject, number) {
            assert!(before < number, "{subject}: {number} came after {before}");
        }
    }
}

#[tokio::test]
async fn what_is_put_while_nats_is_away_arrives_in_order_over_a_server_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&dir.path().join("orders.outbox")).await;
    let message = |i: u64| Message::new(format!("orders.{}", i % 5), i.to_string()).header("tenant", "acme");
    let mut ids = Vec::new();
    for i in 0..200 {
        ids.push(outbox.put(message(i)).await.unwrap().id);
    }
    let status = outbox.status();
    assert_eq!((status.waiting, status.refused), (200, 0));
    assert!(status.bytes > 200 * 10 && status.oldest.is_some());
    assert_eq!(outbox.drain(Duration::ZERO).await.unwrap_err().kind(), ErrorKind::Timeout);

    let mut server = NatsServer::start();
    let bridge = bridge(&server).await;
    make_stream(&bridge, |_| {}).await;
    outbox.start(&bridge).await.unwrap();
    assert_eq!(outbox.start(&bridge).await.unwrap_err().kind(), ErrorKind::Conflict);
    for round in 0..3 {
        let many = outbox.put_many((0..200).map(|i| message(200 + round * 200 + i))).await.unwrap();
        ids.extend(many.into_iter().map(|queued| queued.id));
        server.kill_9();
        ids.push(outbox.put(message(1_000 + round)).await.unwrap().id);
        server.restart();
    }
    outbox.drain(SOON).await.unwrap();
    let stored = stored(&bridge).await;
    let mut arrived: Vec<&String> = stored.iter().map(|(_, id, _)| id).collect();
    arrived.sort();
    let mut put: Vec<&String> = ids.iter().collect();
    put.sort();
    assert_eq!(arrived, put);
    // What was put last with a number out of the row is not judged.
    let in_a_row: Vec<_> = stored.into_iter().filter(|(_, _, payload)| payload.len() < 4).collect();
    assert_once_and_in_order(&in_a_row);
    assert_eq!(outbox.status().bytes, 0);
    outbox.close(SOON).await.unwrap();
    assert_eq!(outbox.put(message(1)).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn at_a_bound_nothing_is_accepted_and_what_left_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.outbox");
    let small = OutboxConfig { max_entries: 3, max_bytes: 1_000, ..config(&path) };
    let outbox = Outbox::open(small.clone()).await.unwrap();
    let message = || Message::new("orders.a", "1");
    outbox.put(message()).await.unwrap();
    let full = outbox.put_many([message(), message(), message()]).await.unwrap_err();
    assert_eq!((full.kind(), full.landed(), full.is_temporary()), (ErrorKind::OutboxFull, Landed::No, true));
    assert!(full.to_string().contains("max_entries"), "{full}");
    assert_eq!(outbox.status().waiting, 1);
    let large = outbox.put(Message::new("orders.a", vec![b'1'; 1_000])).await.unwrap_err();
    assert!(large.to_string().contains("max_bytes"), "{large}");
    outbox.put_many([message(), message()]).await.unwrap();
    assert_eq!(outbox.put(message()).await.unwrap_err().kind(), ErrorKind::OutboxFull);
    // The bound holds for what an earlier run has left, too.
    let error = outbox.close(Duration::ZERO).await.unwrap_err();
    assert_eq!((error.kind(), error.context()), (ErrorKind::Timeout, &[("waiting", "3".to_owned())][..]));
    let outbox = Outbox::open(small).await.unwrap();
    assert_eq!(outbox.put(message()).await.unwrap_err().kind(), ErrorKind::OutboxFull);

    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    make_stream(&bridge, |_| {}).await;
    outbox.start(&bridge).await.unwrap();
    outbox.drain(SOON).await.unwrap();
    outbox.put(message()).await.unwrap();
    outbox.close(SOON).await.unwrap();
    assert_eq!(stored(&bridge).await.len(), 4);
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(&dir.path().join("orders.outbox")).await;
    let wrong = [
        Message::new("orders.*", "1"),
        Message::new("orders.a", "1").header("Nats-TTL", "1"),
        Message::new("orders.a", "1").message_id(nats_bridge::MessageId::None),
    ];
    for message in wrong {
        assert_eq!(outbox.put(message.clone()).await.unwrap_err().kind(), ErrorKind::InvalidMessage, "{message:?}");
    }
    // All or nothing.
    let some = outbox.put_many([Message::new("orders.a", "1"), Message::new("", "1")]).await.unwrap_err();
    assert_eq!((some.kind(), outbox.status().waiting), (ErrorKind::InvalidMessage, 0));
    for (config, field) in [
        (OutboxConfig { max_entries: 0, ..config(dir.path()) }, "max_entries"),
        (OutboxConfig { max_in_flight: 40_000, ..config(dir.path()) }, "max_in_flight"),
        (OutboxConfig { first_pause: Duration::from_secs(60), ..config(dir.path()) }, "first_pause"),
        (OutboxConfig { region: Some("a b".into()), ..config(dir.path()) }, "region"),
        (OutboxConfig::new("/"), "path"),
    ] {
        let error = Outbox::open(config).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains(field), "{error}");
    }
}

#[tokio::test]
async fn what_the_server_refuses_is_kept_and_listed_and_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.outbox");
    let server = NatsServer::builder().config_line("max_payload: 64KB").start();
    let bridge = bridge(&server).await;
    make_stream(&bridge, |orders| orders.max_message_size = 10_000).await;
    let outbox =
        Outbox::open(OutboxConfig { no_stream_wait: Duration::from_millis(100), ..config(&path) }).await.unwrap();
    let large = Message::new("orders.a", vec![b'x'; 100_000]).id("large");
    let larger = Message::new("orders.a", vec![b'x'; 20_000]).id("larger");
    let nobody = Message::new("nobody.listens", "1").id("nobody");
    for message in [large, larger, nobody, Message::new("orders.a", "2"), Message::new("orders.b", "3")] {
        outbox.put(message).await.unwrap();
    }
    outbox.start(&bridge).await.unwrap();
    // Those behind it in the subject go on, in their order.
    outbox.drain(SOON).await.unwrap();
    let mut arrived: Vec<String> = stored(&bridge).await.into_iter().map(|(_, _, payload)| payload).collect();
    arrived.sort();
    assert_eq!(arrived, ["2", "3"]);
    outbox.close(SOON).await.unwrap();

    // They are kept over a restart.
    let outbox = open(&path).await;
    let refused = outbox.refused(0, 10).await.unwrap();
    let mut seen: Vec<_> = refused.iter().map(|one| (&one.id[..], &one.reason[..], one.landed)).collect();
    seen.sort_unstable_by_key(|(id, _, _)| *id);
    let expected =
        [("large", "too_large", Landed::No), ("larger", "rejected", Landed::No), ("nobody", "not_found", Landed::No)];
    assert_eq!(seen, expected);
    assert!(refused.iter().all(|one| one.refused_at >= one.put_at && !one.why.is_empty()));
    assert_eq!((outbox.status().waiting, outbox.status().refused), (0, 3));
    assert_eq!(outbox.refused(refused[1].number, 1).await.unwrap()[0].number, refused[1].number);

    // Once there is a stream, it goes.
    let nobody = refused.iter().find(|one| one.id == "nobody").unwrap();
    let elsewhere = stream::Config { name: "NOBODY".into(), subjects: vec!["nobody.>".into()], ..Default::default() };
    let elsewhere = bridge.jetstream().create_stream(elsewhere).await.unwrap();
    assert!(outbox.retry(nobody.number).await.unwrap() > nobody.number);
    assert_eq!(outbox.retry(nobody.number).await.unwrap_err().kind(), ErrorKind::NotFound);
    outbox.start(&bridge).await.unwrap();
    outbox.drain(SOON).await.unwrap();
    let raw = elsewhere.get_raw_message(1).await.unwrap();
    assert_eq!(raw.headers.get("Nats-Msg-Id").unwrap().as_str(), "nobody");
    for one in refused.iter().filter(|one| one.id != "nobody") {
        outbox.discard(one.number).await.unwrap();
        assert_eq!(outbox.discard(one.number).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!((outbox.status().refused, outbox.status().bytes), (0, 0));
}

#[tokio::test]
async fn a_full_stream_and_a_missing_one_hold_their_subjects_only() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    make_stream(&bridge, |orders| {
        orders.max_messages = 1;
        orders.discard = stream::DiscardPolicy::New;
    })
    .await;
    let other = stream::Config { name: "OTHER".into(), subjects: vec!["other.>".into()], ..Default::default() };
    let mut other = bridge.jetstream().create_stream(other).await.unwrap();
    let outbox = open(&dir.path().join("orders.outbox")).await;
    for i in 0..3 {
        outbox.put(Message::new("orders.a", i.to_string())).await.unwrap();
        outbox.put(Message::new("other.a", i.to_string())).await.unwrap();
        outbox.put(Message::new("later.a", i.to_string())).await.unwrap();
    }
    outbox.start(&bridge).await.unwrap();
    let all_that_can = async || outbox.status().waiting == 5;
    eventually_true("all of the other subject is there, and one of the full stream", all_that_can).await;
    assert_eq!(other.info().await.unwrap().state.messages, 3);
    assert_eq!(outbox.status().refused, 0);
    let later = stream::Config { name: "LATER".into(), subjects: vec!["later.>".into()], ..Default::default() };
    let mut later = bridge.jetstream().create_stream(later).await.unwrap();
    make_room(&bridge).await;
    outbox.drain(SOON).await.unwrap();
    assert_eq!(later.info().await.unwrap().state.messages, 3);
    assert_once_and_in_order(&stored(&bridge).await);
}

async fn make_room(bridge: &Bridge) {
    let mut orders = bridge.jetstream().get_stream("ORDERS").await.unwrap().cached_info().config.clone();
    orders.max_messages = 10;
    bridge.jetstream().update_stream(orders).await.unwrap();
}
