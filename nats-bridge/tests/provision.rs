//! Provisioning against a real server.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use nats_bridge::provision::Action;
use nats_bridge::{Bridge, ConsumerSpec, ErrorKind, Manifest, Retention, StreamSpec};
use test_support::nats::NatsServer;

fn manifest() -> Manifest {
    let orders = StreamSpec {
        retention: Retention::WorkQueue,
        max_bytes: Some(1 << 20),
        ..StreamSpec::new("ORDERS", ["orders.>"])
    };
    let billing = ConsumerSpec { stream: "ORDERS".into(), name: "billing".into(), ..Default::default() };
    Manifest { streams: vec![orders, StreamSpec::dead_letters_of("ORDERS")], consumers: vec![billing] }
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
