//! A broker that is lost, in each phase.

mod bed;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bed::{Ends, Ledger, consume, declare, delivered, produce};
use lapin::{Connection, ConnectionProperties};
use sidecar::control_api::{Phase, RefusedCode, Target, Weight};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

const PACE: Duration = Duration::from_millis(1);

async fn finish(ledger: &Ledger, tasks: [tokio::task::JoinHandle<()>; 2]) {
    ledger.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(15), task).await.expect("in time").expect("ended well");
    }
    assert_eq!((ledger.duplicated.load(Ordering::Relaxed), ledger.reordered.load(Ordering::Relaxed)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_is_let_go_and_stopped_and_nobody_notices() {
    let nats = NatsServer::start();
    let mut rabbit = tokio::task::spawn_blocking(RabbitMq::start).await.expect("started");
    let ends = Ends::new(&rabbit, &nats);
    let sidecar = ends.sidecar().await;
    let setup = sidecar.connect().await;
    declare(&setup.create_channel().await.expect("channel"), "orders", "orders.all").await;
    let ledger = Arc::new(Ledger::default());
    let consumer = tokio::spawn(consume(sidecar.connect().await, "orders.all", 20, ledger.clone()));
    let producer = tokio::spawn(produce(sidecar.connect().await, "orders", 20, PACE, ledger.clone()));
    delivered(&ledger, 50).await;
    let refused = sidecar.change(Target::Detach).await.expect_err("refused");
    assert_eq!(refused.code, RefusedCode::WrongPhase);
    sidecar.change(Target::Shadow).await.expect("shadow");
    sidecar.weight(100.0).await;
    delivered(&ledger, 50).await;
    eventually_true("RabbitMQ is drained", || async { sidecar.change(Target::Detach).await.is_ok() }).await;
    assert_eq!(sidecar.status().await.phase, Phase::Native);
    tokio::task::spawn_blocking(move || rabbit.stop()).await.expect("stopped");
    delivered(&ledger, 100).await;
    // A new connection, too, with a login that RabbitMQ has accepted before; and not with another.
    let late = sidecar.connect().await;
    late.create_channel().await.expect("channel");
    let stranger = sidecar.url.replace("guest:guest", "guest:other");
    assert!(Connection::connect(&stranger, ConnectionProperties::default()).await.is_err());
    let refused = sidecar.change(Target::Rollback).await.expect_err("refused");
    assert_eq!(refused.code, RefusedCode::WrongPhase);
    finish(&ledger, [producer, consumer]).await;
    let sides = sidecar.status().await.sides;
    let published = ledger.published.load(Ordering::Relaxed);
    assert_eq!(sides.rabbit.published + sides.nats.published, published, "each is counted on one side, in native too");
    sidecar.stop().await;
}

// A RabbitMQ that is killed was seen to come back without a binding, about once in thirty times; here it always does.
fn forget_a_binding(rabbit: &RabbitMq, vhost: &str) {
    let list = format!("/api/bindings/{vhost}/e/orders/q/orders.all");
    let (_, bindings) = rabbit.api("GET", &list, "").expect("answers");
    let bindings: serde_json::Value = serde_json::from_str(&bindings).expect("JSON");
    for binding in bindings.as_array().expect("a list") {
        let key = binding["properties_key"].as_str().expect("a key");
        let (status, text) = rabbit.api("DELETE", &format!("{list}/{key}"), "").expect("answers");
        assert_eq!(status, 204, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rabbitmq_that_dies_at_full_weight_drops_no_connection_and_is_taken_back_when_it_returns() {
    let nats = NatsServer::start();
    let mut rabbit = tokio::task::spawn_blocking(RabbitMq::start).await.expect("started");
    let ends = Ends::new(&rabbit, &nats);
    let sidecar = ends.sidecar().await;
    let setup = sidecar.connect().await;
    declare(&setup.create_channel().await.expect("channel"), "orders", "orders.all").await;
    let ledger = Arc::new(Ledger { forgets_acks: true, ..Ledger::default() });
    let consumer = tokio::spawn(consume(sidecar.connect().await, "orders.all", 20, ledger.clone()));
    let producer = tokio::spawn(produce(sidecar.connect().await, "orders", 20, PACE, ledger.clone()));
    sidecar.change(Target::Shadow).await.expect("shadow");
    delivered(&ledger, 50).await;
    sidecar.weight(100.0).await;
    let drained = || async {
        let status = sidecar.status().await;
        let queue = &status.queues[0];
        queue.rabbit_ready == Some(0) && queue.rabbit_unsettled == 0 && queue.held == 0
    };
    eventually_true("RabbitMQ is drained", drained).await;
    let mut rabbit = tokio::task::spawn_blocking(move || {
        rabbit.kill_9();
        rabbit
    })
    .await
    .expect("killed");
    delivered(&ledger, 100).await;
    // Nothing is given back to a RabbitMQ that does not answer.
    let refused = sidecar.change(Target::Rollback).await.expect_err("refused");
    assert_eq!(refused.code, RefusedCode::SideDown);
    let vhost = ends.vhost.clone();
    let _rabbit = tokio::task::spawn_blocking(move || {
        rabbit.restart();
        forget_a_binding(&rabbit, &vhost);
        rabbit
    })
    .await
    .expect("restarted");
    eventually_true("keys are given back", || async { sidecar.change(Target::Rollback).await.is_ok() }).await;
    delivered(&ledger, 100).await;
    finish(&ledger, [producer, consumer]).await;
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_that_dies_in_shadow_does_not_touch_the_applications() {
    let mut nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar().await;
    let setup = sidecar.connect().await;
    declare(&setup.create_channel().await.expect("channel"), "orders", "orders.all").await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    let ledger = Arc::new(Ledger::default());
    let consumer = tokio::spawn(consume(sidecar.connect().await, "orders.all", 20, ledger.clone()));
    let producer = tokio::spawn(produce(sidecar.connect().await, "orders", 20, PACE, ledger.clone()));
    delivered(&ledger, 50).await;
    nats.kill_9();
    delivered(&ledger, 200).await;
    // Topology, new connections and closing them as well: nothing waits for NATS.
    let began = Instant::now();
    let other = sidecar.connect().await;
    let channel = other.create_channel().await.expect("channel");
    declare(&channel, "orders", "orders.late").await;
    channel.close(200, "done".into()).await.expect("closed");
    other.close(200, "done".into()).await.expect("closed");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let five = Weight::from_percent(5.0).expect("a weight");
    let refused = sidecar.change(Target::Weight(five)).await.expect_err("refused");
    assert_eq!(refused.code, RefusedCode::SideDown);
    // It comes back, every link catches up, and traffic can move.
    nats.restart();
    eventually_true("the weight can rise", || async { sidecar.change(Target::Weight(five)).await.is_ok() }).await;
    delivered(&ledger, 200).await;
    assert!(sidecar.status().await.unmapped.is_empty());
    finish(&ledger, [producer, consumer]).await;
    sidecar.stop().await;
}
