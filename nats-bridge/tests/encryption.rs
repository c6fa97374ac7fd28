//! Encrypted messages, from a publisher to a consumer and as dead letters, on a real server.

#![allow(clippy::unwrap_used)]

mod orders;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use futures::FutureExt;
use futures::future::BoxFuture;
use nats_bridge::dead_letter::{Filter, Redrive};
use nats_bridge::encryption::{DataKey, ENCRYPTED, KeyError, KeyProvider, Keyring, Keys, Wrapped};
use nats_bridge::{
    Bridge, ConsumeConfig, Consumer, ConsumerState, ErrorKind, Landed, Message, MessageId, PublishConfig, Retention,
    RetryPolicy, StreamSpec,
};
use tempfile::TempDir;
use test_support::eventually::{eventually, eventually_true};
use test_support::nats::NatsServer;

use orders::bridge;

const KEY: [&str; 2] =
    ["AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n", "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n"];

fn put(directory: &Path, name: &str, key: usize) {
    std::fs::write(directory.join(name), KEY[key]).unwrap();
}

fn keys(names: &[(&str, usize)]) -> (TempDir, Keys) {
    let directory = tempfile::tempdir().unwrap();
    names.iter().for_each(|(name, key)| put(directory.path(), name, *key));
    let keys = Keys::from(Keyring::from_directory(directory.path()).unwrap());
    (directory, keys)
}

async fn publisher(bridge: &Bridge, keys: &Keys) -> nats_bridge::publish::Publisher {
    bridge.publisher(PublishConfig { encrypt: Some(keys.clone()), ..PublishConfig::default() }).await.unwrap()
}

fn config(keys: Option<&Keys>) -> ConsumeConfig {
    let retry =
        RetryPolicy { attempts: 3, first_pause: Duration::from_millis(10), jitter: false, ..RetryPolicy::default() };
    ConsumeConfig {
        retry,
        heartbeat: Duration::from_millis(500),
        decrypt: keys.cloned(),
        ..ConsumeConfig::new("ORDERS", "billing")
    }
}

async fn stored(bridge: &Bridge, sequence: u64) -> StreamMessage {
    let stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    stream.get_raw_message(sequence).await.unwrap()
}

// Puts a message into the stream as somebody could who may write to it, once the stream has forgotten its id.
async fn forged(bridge: &Bridge, subject: &str, message: &StreamMessage, headers: &[(&str, &str)]) {
    let mut map = message.headers.clone();
    headers.iter().for_each(|(name, value)| map.insert(*name, *value));
    let (js, payload) = (bridge.jetstream(), &message.payload);
    eventually_true("it is stored", || {
        let map = map.clone();
        async move {
            let answer = js.publish_with_headers(subject.to_owned(), map, payload.clone()).await.unwrap();
            !answer.await.unwrap().duplicate
        }
    })
    .await;
}

async fn next(consumer: &mut Consumer) -> nats_bridge::Delivery {
    tokio::time::timeout(Duration::from_secs(15), consumer.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_payload_is_unreadable_in_the_stream_and_whole_for_who_has_the_key() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let (_directory, keys) = keys(&[("2026-11", 0)]);
    let publisher = publisher(&bridge, &keys).await;
    let message = || {
        Message::new("orders.new", r#"{"iban":"DE02"}"#)
            .id("o-1")
            .header("Content-Type", " application/json ")
            .header("tenant", "acme")
    };
    assert!(!publisher.publish(message()).await.unwrap().duplicate);
    // The id is the message's own: what differs is the ciphertext, and the stream has it already.
    assert!(publisher.publish(message()).await.unwrap().duplicate);
    assert!(publisher.try_publish(Message::new("orders.new", "")).unwrap().await.unwrap().id.is_some());
    let raw = stored(&bridge, 1).await;
    assert!(!raw.payload.windows(4).any(|part| part == b"DE02"));
    assert_eq!(raw.headers.get("tenant").unwrap().as_str(), "acme");
    let key = nats_bridge::encryption::key_id(raw.headers.get(ENCRYPTED).unwrap().as_str());
    assert_eq!(key.as_deref(), Some("2026-11"));

    let mut consumer = bridge.consume(config(Some(&keys))).await.unwrap();
    let first = next(&mut consumer).await;
    assert_eq!(
        (&first.payload()[..], first.id(), first.key_id()),
        (&br#"{"iban":"DE02"}"#[..], Some("o-1"), Some("2026-11"))
    );
    // It comes again as whole as before.
    first.retry("not yet").await.unwrap();
    let second = next(&mut consumer).await;
    assert!(second.payload().is_empty() && second.key_id().is_some());
    second.ack().await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((&again.payload()[..], again.attempt()), (&br#"{"iban":"DE02"}"#[..], 2));
    again.ack().await.unwrap();
}

#[tokio::test]
async fn after_a_rotation_new_messages_go_under_the_new_key_and_older_ones_open() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let (directory, keys) = keys(&[("2026-10", 0)]);
    let publisher = publisher(&bridge, &keys).await;
    // Has read its keys before the rotation.
    let mut consumer = {
        let keys = Keys::from(Keyring::from_directory(directory.path()).unwrap());
        bridge.consume(config(Some(&keys))).await.unwrap()
    };
    publisher.publish(Message::new("orders.new", "before")).await.unwrap();
    put(directory.path(), "2026-11", 1);
    let under = async |text: &str| {
        let at = publisher.publish(Message::new("orders.new", text.to_owned())).await.unwrap();
        let raw = stored(&bridge, at.sequence).await;
        nats_bridge::encryption::key_id(raw.headers.get(ENCRYPTED).unwrap().as_str()).unwrap()
    };
    eventually_true("a message goes under the new key", || async { under("meanwhile").await == "2026-11" }).await;
    let first = next(&mut consumer).await;
    assert_eq!((&first.payload()[..], first.key_id()), (&b"before"[..], Some("2026-10")));
    first.ack().await.unwrap();
    loop {
        let delivery = next(&mut consumer).await;
        assert_eq!(&delivery.payload()[..], b"meanwhile");
        let new = delivery.key_id() == Some("2026-11");
        delivery.ack().await.unwrap();
        if new {
            break;
        }
    }
}

#[tokio::test]
async fn a_message_under_a_key_that_is_not_there_is_a_dead_letter_that_opens_once_it_is() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let (_theirs, their_keys) = keys(&[("2026-12", 1)]);
    let (directory, our_keys) = keys(&[("2026-11", 0)]);
    let theirs = publisher(&bridge, &their_keys).await;
    theirs.publish(Message::new("orders.new", "17").id("o-17").header("content-type", "text/plain")).await.unwrap();
    publisher(&bridge, &our_keys).await.publish(Message::new("orders.new", "18")).await.unwrap();

    let mut consumer = bridge.consume(config(Some(&our_keys))).await.unwrap();
    // It holds nobody back.
    let other = next(&mut consumer).await;
    assert_eq!(&other.payload()[..], b"18");
    other.ack().await.unwrap();
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    eventually_true("it is a dead letter", || async { letters.count().await.unwrap() == 1 }).await;
    let letter = letters.show(1).await.unwrap();
    assert_eq!((letter.reason(), letter.attempts()), ("decrypt", 1));
    assert!(letter.detail().contains("unknown key: key=2026-12"), "{}", letter.detail());
    // As it was stored, and for those who have the key as it was published.
    assert_eq!(letter.encrypted_with().as_deref(), Some("2026-12"));
    assert_ne!(&letter.payload[..], b"17");
    assert_eq!(&letter.decrypt(&their_keys).await.unwrap()[..], b"17");
    let error = letter.decrypt(&our_keys).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownKey);
    assert!(error.context().contains(&("key", "2026-12".to_owned())));
    let filter = Filter { reason: Some("decrypt".into()), ..Filter::default() };
    assert_eq!(letters.peek(&filter, 10).await.unwrap().len(), 1);

    // To another subject it would never open again.
    let elsewhere = Redrive { to: Some("orders.repaired".into()), ..Redrive::default() };
    for dry_run in [true, false] {
        let error = letters.redrive(&Redrive { dry_run, ..elsewhere.clone() }, |_| true).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    // Without the key it is a dead letter again, and no less whole for it.
    letters.redrive(&Redrive::default(), |_| true).await.unwrap();
    while letters.count().await.unwrap() == 0 {
        // It is looked at when somebody wants it.
        assert!(tokio::time::timeout(Duration::from_millis(300), consumer.next()).await.is_err());
    }
    put(directory.path(), "2026-12", 1);
    letters.redrive(&Redrive::default(), |_| true).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!((&delivery.payload()[..], delivery.id()), (&b"17"[..], Some("o-17#r2")));
    assert_eq!(delivery.key_id(), Some("2026-12"));
    delivery.ack().await.unwrap();
}

#[tokio::test]
async fn what_was_swapped_or_altered_or_never_encrypted_is_not_handed_out() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let (_directory, keys) = keys(&[("2026-11", 0)]);
    let publisher = publisher(&bridge, &keys).await;
    let publish = |id: &'static str| publisher.publish(Message::new("orders.new", id).id(id).header("Schema", "a/1"));
    let forgetful = StreamSpec {
        retention: Retention::WorkQueue,
        max_bytes: Some(1 << 26),
        duplicate_window: Duration::from_millis(100),
        ..StreamSpec::new("ORDERS", ["orders.>"])
    };
    bridge.ensure_stream(&forgetful).await.unwrap();
    publish("o-1").await.unwrap();
    publish("o-2").await.unwrap();
    let (one, two) = (stored(&bridge, 1).await, stored(&bridge, 2).await);
    // The body of one in the other; under another id, subject, schema; with a header more; with a bit flipped; plain.
    let mut swapped = two.clone();
    swapped.payload = one.payload.clone();
    forged(&bridge, "orders.new", &swapped, &[]).await;
    forged(&bridge, "orders.new", &one, &[("Nats-Msg-Id", "o-3")]).await;
    forged(&bridge, "orders.other", &one, &[]).await;
    forged(&bridge, "orders.new", &one, &[("Schema", "a/2")]).await;
    forged(&bridge, "orders.new", &one, &[("Content-Encoding", "gzip")]).await;
    let mut flipped = one.clone();
    flipped.payload = one.payload.iter().enumerate().map(|(i, byte)| if i == 0 { byte ^ 1 } else { *byte }).collect();
    forged(&bridge, "orders.new", &flipped, &[]).await;
    bridge.publish(Message::new("orders.new", "plain")).await.unwrap();
    publish("o-9").await.unwrap();

    let mut consumer = bridge.consume(config(Some(&keys))).await.unwrap();
    for expected in ["o-1", "o-2", "o-9"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(&delivery.payload()[..], expected.as_bytes());
        delivery.ack().await.unwrap();
    }
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    eventually_true("each is a dead letter", || async { letters.count().await.unwrap() == 7 }).await;
    let all = letters.peek(&Filter::default(), 10).await.unwrap();
    assert!(all.iter().all(|letter| letter.reason() == "decrypt" && letter.attempts() == 1));
    let plain = all.iter().filter(|letter| letter.detail().contains("it is not encrypted"));
    assert_eq!(plain.count(), 1);
    // The tools move them as they are.
    assert_eq!(letters.park(&Filter::default(), |_| true).await.unwrap(), 7);
    let parked = bridge.dead_letters("ORDERS_DLQ_PARKED").await.unwrap().peek(&Filter::default(), 10).await.unwrap();
    assert_eq!(parked.iter().filter(|letter| letter.encrypted_with().is_some()).count(), 6);
}

#[tokio::test]
async fn older_messages_that_are_not_encrypted_are_handed_out_where_that_is_allowed() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let (_directory, keys) = keys(&[("2026-11", 0)]);
    bridge.publish(Message::new("orders.new", "older")).await.unwrap();
    publisher(&bridge, &keys).await.publish(Message::new("orders.new", "newer")).await.unwrap();
    let both = ConsumeConfig { accept_unencrypted: true, ..config(Some(&keys)) };
    let mut consumer = bridge.consume(both).await.unwrap();
    for (payload, key) in [("older", None), ("newer", Some("2026-11"))] {
        let delivery = next(&mut consumer).await;
        assert_eq!((&delivery.payload()[..], delivery.key_id()), (payload.as_bytes(), key));
        delivery.ack().await.unwrap();
    }
    let alone = ConsumeConfig { accept_unencrypted: true, ..config(None) };
    assert_eq!(bridge.consume(alone).await.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn what_cannot_be_encrypted_is_not_sent() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let (_directory, keys) = keys(&[("2026-11", 0)]);
    let publisher = publisher(&bridge, &keys).await;
    let error = publisher.publish(Message::new("orders.new", "x").message_id(MessageId::None)).await.unwrap_err();
    assert_eq!((error.kind(), error.landed()), (ErrorKind::InvalidMessage, Landed::No));
    let remote = Remote::new();
    remote.away.store(true, Ordering::Release);
    let away = Keys::new(remote);
    let publisher = crate::publisher(&bridge, &away).await;
    let error = publisher.publish(Message::new("orders.new", "x").id("o-1")).await.unwrap_err();
    assert_eq!((error.kind(), error.landed()), (ErrorKind::Unreachable, Landed::No));
    assert!(error.to_string().contains("msg_id=o-1"), "{error}");
    let mut stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 0);
}

/// A key management service that is away at times.
struct Remote {
    keys: Keyring,
    away: Arc<AtomicBool>,
    _directory: TempDir,
}

impl Remote {
    fn new() -> Remote {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), "2026-11", 0);
        Remote { keys: Keyring::from_directory(directory.path()).unwrap(), away: Arc::default(), _directory: directory }
    }

    async fn there(&self) -> Result<(), KeyError> {
        tokio::task::yield_now().await;
        match self.away.load(Ordering::Acquire) {
            true => Err(KeyError::Unavailable("it is away".into())),
            false => Ok(()),
        }
    }
}

impl KeyProvider for Remote {
    fn current(&self) -> Result<Arc<str>, KeyError> {
        self.keys.current()
    }

    fn wrap_key<'a>(&'a self, data_key: &'a DataKey) -> BoxFuture<'a, Result<Wrapped, KeyError>> {
        async {
            self.there().await?;
            self.keys.wrap_key(data_key).await
        }
        .boxed()
    }

    fn unwrap_key<'a>(&'a self, wrapped: &'a Wrapped) -> BoxFuture<'a, Result<DataKey, KeyError>> {
        async {
            self.there().await?;
            self.keys.unwrap_key(wrapped).await
        }
        .boxed()
    }
}

#[tokio::test]
async fn while_the_keys_cannot_be_asked_for_the_consumer_waits_and_loses_nothing() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let (_directory, keys) = keys(&[("2026-11", 0)]);
    let publisher = publisher(&bridge, &keys).await;
    for n in 0..5 {
        publisher.publish(Message::new("orders.new", n.to_string())).await.unwrap();
    }
    let remote = Remote::new();
    let away = remote.away.clone();
    away.store(true, Ordering::Release);
    let mut consumer = bridge.consume(config(Some(&Keys::new(remote)))).await.unwrap();
    let handle = consumer.handle();
    assert!(tokio::time::timeout(Duration::from_millis(300), consumer.next()).await.is_err());
    eventually(
        "it is paused and says why",
        || matches!(handle.state(), ConsumerState::Paused { why } if why.contains("it is away")),
    );
    away.store(false, Ordering::Release);
    for n in 0..5 {
        let delivery = next(&mut consumer).await;
        assert_eq!((&delivery.payload()[..], delivery.attempt()), (n.to_string().as_bytes(), 1));
        delivery.ack().await.unwrap();
    }
    assert_eq!(handle.state(), ConsumerState::Running);
    assert_eq!(bridge.dead_letters("ORDERS_DLQ").await.unwrap().count().await.unwrap(), 0);
    handle.drain(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn a_consumer_that_waits_for_keys_drains_and_gives_everything_back() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let (_directory, keys) = keys(&[("2026-11", 0)]);
    let publisher = publisher(&bridge, &keys).await;
    for n in 0..3 {
        publisher.publish(Message::new("orders.new", n.to_string())).await.unwrap();
    }
    let remote = Remote::new();
    remote.away.store(true, Ordering::Release);
    let mut waits = bridge.consume(config(Some(&Keys::new(remote)))).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), waits.next()).await.is_err());
    waits.handle().drain(Duration::from_secs(10)).await.unwrap();
    let mut consumer = bridge.consume(config(Some(&keys))).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut consumer).await;
        seen.push(delivery.payload().to_vec());
        delivery.ack().await.unwrap();
    }
    seen.sort();
    assert_eq!(seen, [b"0", b"1", b"2"]);
}
