//! Provisioning against a real server.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use nats_bridge::provision::{Action, ApplyConfig, Removal};
use nats_bridge::{
    Bridge, BucketSpec, ConsumerSpec, Discard, ErrorKind, Fsync, Manifest, Message, Monitor, Retention, StreamSpec,
};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

fn manifest() -> Manifest {
    let orders = StreamSpec {
        retention: Retention::WorkQueue,
        max_bytes: Some(1 << 20),
        ..StreamSpec::new("ORDERS", ["orders.>"])
    };
    let billing = ConsumerSpec { stream: "ORDERS".into(), name: "billing".into(), ..Default::default() };
    Manifest {
        streams: vec![orders, StreamSpec::dead_letters_of("ORDERS")],
        consumers: vec![billing],
        ..Manifest::default()
    }
}

#[tokio::test]
async fn applying_twice_changes_nothing_the_second_time() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    // The consumer's stream does not exist yet: that is part of the plan and not an error.
    let done = bridge.apply(&manifest()).await.unwrap();
    assert!(done.changes.iter().all(|change| change.action == Action::Create));
    assert_eq!(done.changes.len(), 3);
    let again = bridge.apply(&manifest()).await.unwrap();
    assert!(again.is_empty(), "{again:?}");
}

#[tokio::test]
async fn what_can_be_changed_in_place_is_and_what_we_do_not_decide_stays() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    bridge.apply(&manifest()).await.unwrap();
    let mut stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.description = Some("by hand".into());
    bridge.jetstream().update_stream(config).await.unwrap();

    let mut changed = manifest();
    changed.streams[0].max_bytes = Some(1 << 21);
    changed.consumers[0].ack_wait = Duration::from_secs(60);
    changed.consumers[0].filter_subjects = vec!["orders.eu".into(), "orders.us".into()];
    let plan = bridge.plan(&changed).await.unwrap();
    assert!(plan.changes.iter().all(|change| matches!(change.action, Action::Update(_))), "{plan:?}");
    bridge.apply(&changed).await.unwrap();
    assert!(bridge.plan(&changed).await.unwrap().is_empty());
    let info = stream.info().await.unwrap();
    assert_eq!((info.config.max_bytes, info.config.description.as_deref()), (1 << 21, Some("by hand")));

    changed.consumers[0].filter_subjects = Vec::new();
    bridge.apply(&changed).await.unwrap();
    assert!(bridge.plan(&changed).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_cannot_be_changed_in_place_is_refused_and_nothing_is_touched() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    bridge.apply(&manifest()).await.unwrap();
    let mut changed = manifest();
    changed.streams[0].retention = Retention::Limits;
    changed.streams[0].max_age = Some(Duration::from_secs(3600));
    changed.streams[1].max_bytes = Some(1 << 20);
    let error = bridge.apply(&changed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("retention is \"work_queue\" and should be \"limits\""), "{error}");
    assert!(bridge.plan(&manifest()).await.unwrap().is_empty());

    changed.streams[0].max_bytes = None;
    assert_eq!(bridge.plan(&changed).await.unwrap_err().kind(), ErrorKind::Config);
    let orphan = ConsumerSpec { stream: "NOWHERE".into(), name: "x".into(), ..Default::default() };
    assert_eq!(bridge.ensure_consumer(&orphan).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_second_reader_of_a_work_queue_is_a_conflict_that_names_both_and_what_to_do() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    bridge.ensure_stream(&manifest().streams[0]).await.unwrap();
    let reads = |name: &str, subjects: &[&str]| ConsumerSpec {
        stream: "ORDERS".into(),
        name: name.into(),
        filter_subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
        ..Default::default()
    };
    bridge.ensure_consumer(&reads("eu", &["orders.eu.>"])).await.unwrap();
    bridge.ensure_consumer(&reads("us", &["orders.us.>", "orders.ca.>"])).await.unwrap();
    // By one filter of several, and without any, which is another code of the server.
    for (subjects, other) in [(&["orders.ca.new", "orders.mx.>"][..], "us"), (&[], "eu")] {
        let error = bridge.ensure_consumer(&reads("audit", subjects)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        let said = ["stream=ORDERS", "consumer=audit", &format!("other={other}"), "`filter_subjects`", "retention"];
        assert!(said.iter().all(|said| error.to_string().contains(said)), "{error}");
    }
    bridge.jetstream().delete_stream("ORDERS").await.unwrap();
    bridge.ensure_stream(&manifest().streams[0]).await.unwrap();
    bridge.ensure_consumer(&reads("all", &[])).await.unwrap();
    let error = bridge.consume(nats_bridge::ConsumeConfig::new("ORDERS", "audit")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.to_string().contains("other=all"), "{error}");
}

const FILE: &str = r#"
    naming = "versioned"

    [[streams]]
    name = "INGEST_V1"
    subjects = ["ingest.v1.>"]
    max_bytes = 1_000_000
    max_age_ms = 3_600_000

    [[dead_letters]]
    of = "INGEST_V1"

    [[consumers]]
    stream = "INGEST_V1"
    name = "loader"
    ack_wait_ms = 10_000

    [[buckets]]
    name = "sessions"
    history = 5
    ttl_ms = 60_000
    max_bytes = 1_000_000
"#;

#[tokio::test]
async fn a_file_of_streams_consumers_dead_letters_and_buckets_is_applied_once_and_drift_is_seen() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let manifest = Manifest::from_toml(FILE).unwrap();
    let done = bridge.apply(&manifest).await.unwrap();
    let objects: Vec<&str> = done.changes.iter().map(|change| change.object.as_str()).collect();
    assert_eq!(objects, ["stream INGEST_V1", "stream INGEST_V1_DLQ", "consumer INGEST_V1/loader", "bucket sessions"]);
    let again = bridge.apply(&manifest).await.unwrap();
    assert!(again.is_empty(), "{again:?}");

    // The bucket is one to every client.
    let bucket = bridge.jetstream().get_key_value("sessions").await.unwrap();
    bucket.put("u1", "x".into()).await.unwrap();
    assert_eq!(bucket.get("u1").await.unwrap().unwrap(), "x");
    assert_eq!(bucket.status().await.unwrap().history(), 5);

    // Somebody changes things by hand.
    let mut stream = bridge.jetstream().get_stream("INGEST_V1").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_bytes = 5_000_000;
    bridge.jetstream().update_stream(config).await.unwrap();
    let mut loader: async_nats::jetstream::consumer::PullConsumer = stream.get_consumer("loader").await.unwrap();
    let config = loader.info().await.unwrap().config.clone();
    let config = async_nats::jetstream::consumer::pull::Config {
        durable_name: config.durable_name.clone(),
        backoff: vec![Duration::from_millis(50), Duration::from_secs(60)],
        max_deliver: 15,
        max_ack_pending: -1,
        ..Default::default()
    };
    stream.update_consumer(config).await.unwrap();
    bridge.publish(nats_bridge::Message::new("ingest.v1.raw", vec![0u8; 100])).await.unwrap();
    let drift = bridge.plan(&manifest).await.unwrap();
    assert_eq!(drift.changes.len(), 2, "{drift:?}");
    // Full, it takes nothing more and keeps what it has: nothing goes.
    assert!(drift.changes[0].cost.starts_with("nothing"), "{drift:?}");
    let warning = drift.warnings.iter().find(|warning| warning.contains("backoff")).expect("a warning");
    assert!(warning.contains("again after 50 ms"), "{warning}");
    bridge.apply(&manifest).await.unwrap();
    assert!(bridge.plan(&manifest).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_example_of_a_file_is_applied() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let manifest = Manifest::from_toml(include_str!("../../examples/streams.toml")).unwrap();
    assert_eq!(bridge.apply(&manifest).await.unwrap().changes.len(), 4);
    assert!(bridge.plan(&manifest).await.unwrap().is_empty());
}

#[tokio::test]
async fn durable_asks_for_replicas_or_for_a_server_that_syncs_first() {
    let lazy = NatsServer::start();
    let monitor = Monitor::new(&lazy.monitor_url()).unwrap();
    assert_eq!(monitor.fsync().await.unwrap(), Fsync::Every(Duration::from_secs(120)));
    assert!(monitor.is_healthy().await.unwrap());
    assert!(monitor.varz().await.unwrap()["version"].is_string());
    let bridge = Bridge::connect(lazy.url()).await.unwrap();
    let connections = monitor.connz("limit=10").await.unwrap();
    assert_eq!(connections["connections"][0]["name"], "nats-bridge");
    let mut manifest = manifest();
    manifest.streams[0].durable = true;
    let fsync = monitor.fsync().await.unwrap();
    let error = bridge.apply_with(&manifest, ApplyConfig { fsync, ..Default::default() }).await.unwrap_err();
    assert!(error.to_string().contains("three replicas"), "{error}");
    assert!(error.to_string().contains("stream=ORDERS"), "{error}");
    assert_eq!(monitor.jsz("streams=true").await.unwrap()["streams"], 0, "nothing was made");

    let dir = tempfile::tempdir().unwrap();
    let store = format!("jetstream {{ sync_interval: always, store_dir: {:?} }}", dir.path().display().to_string());
    let eager = NatsServer::builder().config_line(store).start();
    let monitor = Monitor::new(&eager.monitor_url()).unwrap();
    assert_eq!(monitor.fsync().await.unwrap(), Fsync::Always);
    let bridge = Bridge::connect(eager.url()).await.unwrap();
    let plan = bridge.apply_with(&manifest, ApplyConfig { fsync: Fsync::Always, ..Default::default() }).await.unwrap();
    assert_eq!(plan.warnings, Vec::<String>::new());

    let nobody = Monitor::new("http://127.0.0.1:1").unwrap();
    assert_eq!(nobody.varz().await.unwrap_err().kind(), ErrorKind::Unreachable);
}

fn bounded() -> StreamSpec {
    StreamSpec {
        max_bytes: Some(1 << 20),
        max_age: Some(Duration::from_secs(3600)),
        ..StreamSpec::new("ORDERS", ["orders.>"])
    }
}

#[tokio::test]
async fn no_stored_message_is_removed_by_a_lower_limit_unless_that_is_allowed() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let spec = bounded();
    let of = |stream: &StreamSpec| Manifest { streams: vec![stream.clone()], ..Manifest::default() };
    let state = || async { bridge.jetstream().get_stream("ORDERS").await.unwrap().cached_info().state.clone() };
    let allowed = ApplyConfig { allow_removal: true, ..ApplyConfig::default() };
    for limit in ["max_messages", "max_bytes", "max_age_ms"] {
        bridge.apply(&of(&spec)).await.unwrap();
        while state().await.messages < 10 {
            bridge.publish(Message::new("orders.new", vec![0u8; 20])).await.unwrap();
        }
        let mut lower = spec.clone();
        let (is, should, messages) = match limit {
            "max_messages" => (None, 3, 7),
            "max_bytes" => (Some(1 << 20), state().await.bytes / 2, 5),
            _ => (Some(3_600_000), 200, 10),
        };
        match limit {
            "max_messages" => (lower.max_messages, lower.discard) = (Some(should), Discard::Old),
            "max_bytes" => (lower.max_bytes, lower.discard) = (Some(should), Discard::Old),
            _ => {
                lower.max_age = Some(Duration::from_millis(should));
                lower.duplicate_window = Duration::from_millis(100);
            }
        }
        let wanted = Removal { limit: limit.into(), is: is.into(), should: should.into(), messages, of: 10 };
        eventually_true("the plan tells what would go", || async {
            bridge.plan(&of(&lower)).await.unwrap().changes[0].removes == [wanted.clone()]
        })
        .await;
        let refused =
            [bridge.apply(&of(&lower)).await.map(drop).unwrap_err(), bridge.ensure_stream(&lower).await.unwrap_err()];
        let is = is.map_or("none".to_owned(), |is| is.to_string());
        let told = format!("stream=ORDERS limit={limit} is={is} should={should} messages={messages} ");
        for error in refused {
            assert_eq!(error.kind(), ErrorKind::WouldRemove);
            assert!(error.to_string().contains(&told), "{told}: {error}");
        }
        assert_eq!(state().await.messages, 10, "nothing was changed");
        assert!(bridge.plan(&of(&spec)).await.unwrap().is_empty(), "nothing was changed");
        bridge.apply_with(&of(&lower), allowed).await.unwrap();
        eventually_true("what was told of is gone", || async { state().await.messages == 10 - messages }).await;
    }
}

#[tokio::test]
async fn a_limit_that_nothing_is_beyond_is_lowered_unasked_and_so_is_one_that_keeps_what_is_there() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let spec = bounded();
    bridge.ensure_stream(&spec).await.unwrap();
    for _ in 0..5 {
        bridge.publish(Message::new("orders.new", "kept")).await.unwrap();
    }
    let roomy = StreamSpec { discard: Discard::Old, max_messages: Some(5), max_bytes: Some(1 << 19), ..spec.clone() };
    bridge.ensure_stream(&roomy).await.unwrap();
    // With `new` it takes nothing more, and that is all.
    let full =
        StreamSpec { max_messages: Some(1), max_bytes: Some(50), max_age: Some(Duration::from_secs(600)), ..spec };
    bridge.ensure_stream(&full).await.unwrap();
    let info = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    assert_eq!(info.cached_info().state.messages, 5);
    // From there `old` alone would drop four.
    let error = bridge.ensure_stream(&StreamSpec { discard: Discard::Old, ..full }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldRemove);
}

#[tokio::test]
async fn older_values_of_a_bucket_are_not_removed_unless_that_is_allowed() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let spec = BucketSpec { name: "sessions".into(), history: 5, max_bytes: Some(1 << 20), ..BucketSpec::default() };
    bridge.ensure_bucket(&spec).await.unwrap();
    let bucket = bridge.jetstream().get_key_value("sessions").await.unwrap();
    for (key, values) in [("a", 4), ("b", 2), ("c", 1)] {
        for value in 0..values {
            bucket.put(key, value.to_string().into()).await.unwrap();
        }
    }
    let values = || async { bridge.jetstream().get_stream("KV_sessions").await.unwrap().cached_info().state.messages };
    let one = BucketSpec { history: 1, ..spec };
    let error = bridge.ensure_bucket(&one).await.unwrap_err();
    let told = "bucket=sessions limit=history is=5 should=1 messages=4";
    assert!(error.kind() == ErrorKind::WouldRemove && error.to_string().contains(told), "{error}");
    let manifest = Manifest { buckets: vec![one], ..Manifest::default() };
    assert_eq!(bridge.apply(&manifest).await.unwrap_err().kind(), ErrorKind::WouldRemove);
    assert_eq!(values().await, 7);
    let allowed = ApplyConfig { allow_removal: true, ..ApplyConfig::default() };
    bridge.apply_with(&manifest, allowed).await.unwrap();
    assert_eq!(values().await, 3);
}

#[tokio::test]
async fn subjects_are_refused_beforehand_as_the_server_refuses_them() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    for subjects in [
        &["orders.>"][..],
        &["a*.b"],
        &["$JSX.a"],
        &["*.b"],
        &["*.>"],
        &[">"],
        &["$JS.EVENT.ADVISORY.X"],
        &["$JS.API.X"],
        &["$JS.X"],
        &["$SYS.X"],
        &["$SYS.ACCOUNT.X"],
        &["a..b"],
        &["a b"],
        &["a.>.b"],
        &["a."],
        &["a.>", "a.b"],
        &["a.b", "a.b"],
        &["a.*", "*.b"],
        &["a.*", "a.b.>"],
    ] {
        let raw = async_nats::jetstream::stream::Config {
            name: "RAW".into(),
            subjects: subjects.iter().map(|subject| subject.to_string()).collect(),
            ..Default::default()
        };
        let taken = bridge.jetstream().create_stream(raw).await;
        if taken.is_ok() {
            // A stream that takes everything confirms what is asked of the server as well, and either answer may come first.
            eventually_true("RAW is gone", || async {
                let again = bridge.jetstream().delete_stream("RAW").await;
                again.is_err_and(|error| match error.kind() {
                    GetStreamErrorKind::JetStream(error) => error.error_code() == ErrorCode::STREAM_NOT_FOUND,
                    _ => false,
                })
            })
            .await;
        }
        let spec = StreamSpec { unbounded: true, ..StreamSpec::new("OURS", subjects.to_vec()) };
        let manifest = Manifest { streams: vec![spec], ..Manifest::default() };
        let planned = bridge.plan(&manifest).await;
        // Older servers draw the line around their own subjects elsewhere: there apply is told.
        let told_late = !bridge.client().is_server_compatible(2, 15, 0) && planned.is_ok();
        assert!(planned.is_ok() == taken.is_ok() || told_late, "{subjects:?}: {planned:?}, {taken:?}");
    }
}

#[tokio::test]
async fn a_consumer_that_has_begun_keeps_its_subjects_and_one_that_pushes_is_no_consumer_of_ours() {
    use nats_bridge::{ConsumeConfig, Message};
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    bridge.ensure_stream(&bounded()).await.unwrap();
    bridge.publish(Message::new("orders.eu", "x")).await.unwrap();
    let of = |subject: &str| ConsumeConfig {
        filter_subjects: vec![subject.to_owned()],
        ..ConsumeConfig::new("ORDERS", "billing")
    };
    let mut consumer = bridge.consume(of("orders.eu")).await.unwrap();
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    let refused = bridge.consume(of("orders.us")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("filter_subjects"), "{refused}");
    bridge.consume(of("orders.eu")).await.unwrap();

    let config = async_nats::jetstream::consumer::push::Config {
        durable_name: Some("pushed".into()),
        deliver_subject: "somewhere".into(),
        ..Default::default()
    };
    let stream = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    let pushed = stream.create_consumer(config).await.unwrap();
    let refused = bridge.consume(ConsumeConfig::new("ORDERS", "pushed")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("deliver_subject is \"somewhere\""), "{refused}");
    let untouched = pushed.cached_info().config.ack_wait;
    let mut pushed = pushed;
    assert_eq!(pushed.info().await.unwrap().config.ack_wait, untouched);
}
