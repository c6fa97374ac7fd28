//! A broker is lost for good, with all that it held, in each phase: what was confirmed is delivered all the same. The verdict is computed from
//! what applications wrote down themselves.

mod applications;
mod backfill;
#[path = "../bed/mod.rs"]
mod bed;
mod rabbit;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use applications::{Record, consume, declare, produce, verdict};
use bed::{Ends, Likeness};
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use sidecar::control_api::{Control, Failover, FailoverReport, Phase, RefusedCode, Target};
use sidecar::ownership::Side;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

fn asked(execute: bool) -> Failover {
    Failover {
        lost: Side::Nats,
        execute,
        force: false,
        by: "test".into(),
        reason: "the disk is gone".into(),
        from: String::new(),
    }
}

async fn finished(cutover: &sidecar::control::Cutover) -> FailoverReport {
    eventually_true("the failover ends", || async {
        cutover.failover_status().await.is_some_and(|report| !report.running)
    })
    .await;
    cutover.failover_status().await.expect("begun")
}

/// NATS dies at this weight with a backlog, never to come back with what it held.
async fn nats_is_lost_at(percent: f64) {
    let mut nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar_like(Likeness::default()).await;
    let setup = sidecar.connect().await;
    declare(&setup.create_channel().await.expect("channel")).await;
    let record = Arc::new(Record::default());
    let consumer = tokio::spawn(consume(sidecar.url.clone(), record.clone()));
    let producer = tokio::spawn(produce(sidecar.url.clone(), record.clone()));
    record.more(100).await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    record.more(100).await;
    if percent > 0.0 {
        sidecar.weight(percent).await;
    }
    record.more(200).await;
    record.slow.store(true, Ordering::Relaxed);
    record.more(200).await;
    let refused = sidecar.cutover.clone().failover(asked(true)).await.expect_err("NATS answers");
    assert_eq!(refused.code, RefusedCode::Conflict);
    let before = sidecar.status().await.standby.expect("on");
    assert_eq!((before.no_copy_total, before.away), (0, false), "{before:?}");
    assert_eq!(before.copies > 0, percent > 0.0, "{before:?}");
    nats.kill_9();
    std::fs::remove_dir_all(nats.dir().join("store")).expect("removed");
    let look = sidecar.cutover.clone().failover(asked(false)).await.expect("a look");
    assert!(!look.executed && look.no_copy == 0, "{look:?}");
    sidecar.cutover.clone().failover(asked(true)).await.expect("begun");
    let report = finished(&sidecar.cutover).await;
    assert!(report.done && report.left == 0, "{report:?}");
    assert_eq!(report.replayed > 0, percent > 0.0, "{report:?}");
    // Again: nothing is done twice.
    let again = sidecar.cutover.clone().failover(asked(true)).await.expect("done");
    assert_eq!(again.replayed, report.replayed);
    record.more(200).await;
    record.slow.store(false, Ordering::Relaxed);
    record.stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(bed::CAP, producer).await.expect("in time").expect("ended well");
    eventually_true("all that was confirmed is done", || async { record.left() == 0 }).await;
    let status = sidecar.status().await;
    assert_eq!((status.phase, status.weight_percent.percent()), (Phase::Observe, 0.0));
    assert_eq!(status.sides.nats.error.as_deref(), Some("given up by a failover"));
    // A new application, and topology, as with RabbitMQ alone.
    let late = sidecar.connect().await;
    declare(&late.create_channel().await.expect("channel")).await;
    verdict(&record, true);
    assert_eq!(record.connected.load(Ordering::Relaxed), 2, "no connection was lost");
    consumer.abort();
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_that_was_given_up_is_refused_until_its_store_is_empty() {
    let mut nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar_like(Likeness::default()).await;
    let setup = sidecar.connect().await;
    let channel = setup.create_channel().await.expect("channel");
    declare(&channel).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    sidecar.change(Target::Shadow).await.expect("shadow");
    sidecar.weight(100.0).await;
    for n in 0..50 {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let publish = channel.basic_publish("orders".into(), format!("key.{n}").into(), options, b"1", properties);
        assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
    }
    nats.kill_9();
    sidecar.cutover.clone().failover(asked(true)).await.expect("begun");
    let report = finished(&sidecar.cutover).await;
    assert_eq!((report.replayed, report.left, report.done), (50, 0, true), "{report:?}");
    let refused = sidecar.change(Target::Shadow).await.expect_err("NATS is given up");
    assert_eq!(refused.code, RefusedCode::WrongPhase);
    sidecar.stop().await;
    // It was not lost after all, and has everything a second time.
    nats.restart();
    let why = ends.try_sidecar(Likeness::default()).await.err().expect("refused");
    assert!(why.contains("given up") && why.contains("empty its store"), "{why}");
    nats.kill_9();
    std::fs::remove_dir_all(nats.dir().join("store")).expect("removed");
    nats.restart();
    let sidecar = Ends { lease: Default::default(), ..ends }.sidecar_like(Likeness::default()).await;
    assert_eq!(sidecar.status().await.phase, Phase::Observe);
    sidecar.change(Target::Shadow).await.expect("it begins anew");
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_shadow_nothing_is_lost_with_nats() {
    nats_is_lost_at(0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_5_percent_nothing_is_lost_with_nats() {
    nats_is_lost_at(5.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_50_percent_nothing_is_lost_with_nats() {
    nats_is_lost_at(50.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_100_percent_nothing_is_lost_with_nats() {
    nats_is_lost_at(100.0).await;
}
