//! Bad input on the Rust surface: a typed error that names the field, before anything was sent or made.

#![allow(clippy::unwrap_used)]

mod orders;

use std::time::Duration;

use nats_bridge::dead_letter::Redrive;
use nats_bridge::{
    BreakerConfig, Bridge, BucketSpec, Config, ConsumeConfig, ConsumerSpec, Error, ErrorKind, Landed, Manifest,
    Message, Monitor, PublishConfig, RetryPolicy, StreamSpec,
};
use test_support::nats::NatsServer;

use orders::bridge;

// Said with its field, and nothing landed.
#[track_caller]
fn refused<T: std::fmt::Debug>(kind: ErrorKind, field: &str, outcome: Result<T, Error>) {
    let error = outcome.expect_err(field);
    assert_eq!((error.kind(), error.landed()), (kind, Landed::No), "{field}: {error}");
    assert!(error.to_string().contains(field), "{field} is not named: {error}");
}

#[tokio::test]
async fn a_message_that_cannot_be_sent_is_refused_by_every_call_and_names_what_is_wrong() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let message = || Message::new("orders.new", "17");
    let table = [
        ("subject", Message::new("", "17")),
        ("subject", Message::new("orders new", "17")),
        ("subject", Message::new("orders.*", "17")),
        ("subject", Message::new("orders.>", "17")),
        ("subject", Message::new("orders..new", "17")),
        ("subject", Message::new("orders.new\r\nPUB x 0", "17")),
        ("id", message().id("")),
        ("id", message().id("a\nb")),
        ("header", message().header("", "v")),
        ("header", message().header("a b", "v")),
        ("header", message().header("tenant:", "v")),
        ("header", message().header("tenant", "a\r\nb: c")),
        ("header", message().header("Nats-Expected-Stream", "v")),
        ("header", message().header("nats-ttl", "v")),
        ("header", message().header("tenant", "Nats-Msg-Id")),
    ];
    for (field, message) in table {
        refused(ErrorKind::InvalidMessage, field, bridge.publish(message.clone()).await);
        refused(ErrorKind::InvalidMessage, field, bridge.publish_later(message.clone()).await);
        refused(ErrorKind::InvalidMessage, field, bridge.try_publish(message.clone()));
        refused(ErrorKind::InvalidMessage, field, bridge.publish_many([message]).await.remove(0));
    }
    let large = || Message::new("orders.new", vec![0; 2 << 20]);
    refused(ErrorKind::TooLarge, "orders.new", bridge.publish(large()).await);
    refused(ErrorKind::TooLarge, "max_payload", bridge.publish(large()).await);
    refused(ErrorKind::TooLarge, "orders.new", bridge.try_publish(large()));
    let stored = bridge.jetstream().get_stream("ORDERS").await.unwrap().cached_info().state.last_sequence;
    assert_eq!((stored, bridge.outstanding()), (0, 0));
}

#[tokio::test]
async fn settings_of_a_connection_are_refused_before_it_is_made() {
    let table = [
        ("servers", Config { servers: vec![], ..Config::default() }),
        ("servers", Config { servers: vec![" ".into()], ..Config::default() }),
        ("server", Config { servers: vec!["nats://a b".into()], ..Config::default() }),
        ("region", Config { region: Some("eu west".into()), ..Config::default() }),
        ("region", Config { region: Some(String::new()), ..Config::default() }),
        ("connect_timeout", Config { connect_timeout: Duration::ZERO, ..Config::default() }),
        ("request_timeout", Config { request_timeout: Duration::ZERO, ..Config::default() }),
        ("ping_interval", Config { ping_interval: Duration::ZERO, ..Config::default() }),
    ];
    for (field, config) in table {
        refused(ErrorKind::Config, field, Bridge::connect_with(config).await.map(drop));
    }
    refused(ErrorKind::Config, "monitor", Monitor::new("http://a b").map(drop));
    refused(ErrorKind::Config, "TOML", Manifest::from_toml("[[streams]").map(drop));
    refused(ErrorKind::Config, "max_byts", Manifest::from_toml("[[streams]]\nname = \"A\"\nmax_byts = 1").map(drop));
}

#[tokio::test]
async fn settings_out_of_range_are_refused_before_anything_is_made() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let breaker = |trip_after, probe_every| {
        let breaker = BreakerConfig { trip_after, probe_every };
        PublishConfig { breaker: Some(breaker), ..PublishConfig::default() }
    };
    let second = Duration::from_secs(1);
    let table = [
        ("max_in_flight", PublishConfig { max_in_flight: 0, ..PublishConfig::default() }),
        ("max_in_flight", PublishConfig { max_in_flight: 32_769, ..PublishConfig::default() }),
        ("max_in_flight_bytes", PublishConfig { max_in_flight_bytes: 0, ..PublishConfig::default() }),
        ("ack_wait", PublishConfig { ack_wait: Duration::ZERO, ..PublishConfig::default() }),
        ("attempts", PublishConfig { attempts: 0, ..PublishConfig::default() }),
        ("breaker.trip_after", breaker(Duration::ZERO, second)),
        ("breaker.probe_every", breaker(second, Duration::ZERO)),
    ];
    for (field, config) in table {
        refused(ErrorKind::Config, field, bridge.publisher(config).await.map(drop));
    }
    let retry = |attempts, factor| RetryPolicy { attempts, factor, ..RetryPolicy::default() };
    let config = || ConsumeConfig::new("ORDERS", "billing");
    let table = [
        ("stream", ConsumeConfig::new("", "billing")),
        ("stream", ConsumeConfig::new("OR.DERS", "billing")),
        ("consumer", ConsumeConfig::new("ORDERS", "")),
        ("consumer", ConsumeConfig::new("ORDERS", "bill*")),
        ("dead_letter_stream", ConsumeConfig { dead_letter_stream: Some("a b".into()), ..config() }),
        ("filter_subjects", ConsumeConfig { filter_subjects: vec!["orders. new".into()], ..config() }),
        ("filter_subjects", ConsumeConfig { filter_subjects: vec!["orders.>.new".into()], ..config() }),
        ("filter_subjects", ConsumeConfig { filter_subjects: vec![String::new()], ..config() }),
        ("max_messages", ConsumeConfig { max_messages: 0, ..config() }),
        ("max_messages", ConsumeConfig { max_messages: 32_769, ..config() }),
        ("max_bytes", ConsumeConfig { max_bytes: 0, ..config() }),
        ("max_bytes", ConsumeConfig { max_bytes: usize::MAX, ..config() }),
        ("ack_wait", ConsumeConfig { ack_wait: Duration::ZERO, ..config() }),
        ("max_run", ConsumeConfig { max_run: Duration::ZERO, ..config() }),
        ("stalled_after", ConsumeConfig { stalled_after: Duration::ZERO, ..config() }),
        ("heartbeat", ConsumeConfig { heartbeat: Duration::from_millis(1), ..config() }),
        ("heartbeat", ConsumeConfig { heartbeat: Duration::from_secs(60), ..config() }),
        ("retry.attempts", ConsumeConfig { retry: retry(0, 2.0), ..config() }),
        ("retry.factor", ConsumeConfig { retry: retry(5, 0.5), ..config() }),
        ("retry.factor", ConsumeConfig { retry: retry(5, f64::NAN), ..config() }),
        ("accept_unencrypted", ConsumeConfig { accept_unencrypted: true, ..config() }),
        ("accept_without_schema", ConsumeConfig { accept_without_schema: true, ..config() }),
    ];
    for (field, config) in table {
        refused(ErrorKind::Config, field, bridge.consume(config).await.map(drop));
    }
    let stream = |name: &str| StreamSpec { unbounded: true, ..StreamSpec::new(name, ["more.>"]) };
    let short = StreamSpec { max_age: Some(second), ..stream("MORE") };
    let table = [
        ("stream", stream("")),
        ("stream", stream("MO RE")),
        ("max_bytes", StreamSpec::new("MORE", ["more.>"])),
        ("max_age", StreamSpec { max_bytes: Some(1), ..StreamSpec::new("MORE", ["more.>"]) }),
        ("duplicate_window", short),
    ];
    for (field, spec) in table {
        refused(ErrorKind::Config, field, bridge.ensure_stream(&spec).await);
    }
    let manifest = |consumer: Option<ConsumerSpec>, bucket: Option<BucketSpec>| Manifest {
        consumers: consumer.into_iter().collect(),
        buckets: bucket.into_iter().collect(),
        ..Manifest::default()
    };
    let consumer = || ConsumerSpec { stream: "ORDERS".into(), name: "billing".into(), ..ConsumerSpec::default() };
    let bucket = || BucketSpec { name: "keys".into(), unbounded: true, ..BucketSpec::default() };
    let table = [
        ("consumer", manifest(Some(ConsumerSpec { name: "a.b".into(), ..consumer() }), None)),
        ("ack_wait", manifest(Some(ConsumerSpec { ack_wait: Duration::ZERO, ..consumer() }), None)),
        ("max_deliver", manifest(Some(ConsumerSpec { max_deliver: Some(0), ..consumer() }), None)),
        ("bucket", manifest(None, Some(BucketSpec { name: "a b".into(), ..bucket() }))),
        ("history", manifest(None, Some(BucketSpec { history: 65, ..bucket() }))),
        ("max_bytes", manifest(None, Some(BucketSpec { unbounded: false, ..bucket() }))),
    ];
    for (field, manifest) in table {
        refused(ErrorKind::Config, field, bridge.apply(&manifest).await.map(drop));
    }
    // Nothing was made on the way.
    let all = bridge.jetstream().query_account().await.unwrap();
    assert_eq!((all.streams, all.consumers), (1, 0));

    bridge.ensure_stream(&StreamSpec::dead_letters_of("ORDERS")).await.unwrap();
    let letters = bridge.dead_letters("ORDERS_DLQ").await.unwrap();
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let redrive = Redrive { rate_per_second: rate, ..Redrive::default() };
        refused(ErrorKind::Config, "rate_per_second", letters.redrive(&redrive, |_| true).await);
    }
    for share in [-0.1, 1.1, f64::NAN] {
        let redrive = Redrive { max_failed_again: share, ..Redrive::default() };
        refused(ErrorKind::Config, "max_failed_again", letters.redrive(&redrive, |_| true).await);
    }
    refused(ErrorKind::Config, "stream", bridge.dead_letters("a b").await.map(drop));
    refused(ErrorKind::Config, "bucket", bridge.ledger("a b", second, second).await.map(drop));
}
