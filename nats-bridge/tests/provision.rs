//! Provisioning against a real server.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use nats_bridge::provision::Action;
use nats_bridge::{Bridge, ConsumerSpec, ErrorKind, Fsync, Manifest, Monitor, Retention, StreamSpec};
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
    assert!(error.to_string().contains("retention is \"workqueue\" and should be \"limits\""), "{error}");
    assert!(bridge.plan(&manifest()).await.unwrap().is_empty());

    changed.streams[0].max_bytes = None;
    assert_eq!(bridge.plan(&changed).await.unwrap_err().kind(), ErrorKind::Config);
    let orphan = ConsumerSpec { stream: "NOWHERE".into(), name: "x".into(), ..Default::default() };
    assert_eq!(bridge.ensure_consumer(&orphan).await.unwrap_err().kind(), ErrorKind::NotFound);
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
    assert!(drift.changes[0].cost.starts_with("max_bytes would be lower"), "{drift:?}");
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
    let error = bridge.apply_on(&manifest, fsync).await.unwrap_err();
    assert!(error.to_string().contains("three replicas"), "{error}");
    assert!(error.to_string().contains("stream=ORDERS"), "{error}");
    assert_eq!(monitor.jsz("streams=true").await.unwrap()["streams"], 0, "nothing was made");

    let dir = tempfile::tempdir().unwrap();
    let store = format!("jetstream {{ sync_interval: always, store_dir: {:?} }}", dir.path().display().to_string());
    let eager = NatsServer::builder().config_line(store).start();
    let monitor = Monitor::new(&eager.monitor_url()).unwrap();
    assert_eq!(monitor.fsync().await.unwrap(), Fsync::Always);
    let bridge = Bridge::connect(eager.url()).await.unwrap();
    let plan = bridge.apply_on(&manifest, Fsync::Always).await.unwrap();
    assert_eq!(plan.warnings, Vec::<String>::new());

    let nobody = Monitor::new("http://127.0.0.1:1").unwrap();
    assert_eq!(nobody.varz().await.unwrap_err().kind(), ErrorKind::Unreachable);
}
