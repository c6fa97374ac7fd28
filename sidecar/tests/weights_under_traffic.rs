//! Traffic moves between RabbitMQ and JetStream while it flows.

mod bed;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bed::{Ends, Ledger, confirmed, consume, declare, delivered, produce};
use sidecar::control_api::{Phase, Target};
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_reordered_while_the_weight_goes_up_and_down_and_no_connection_drops() {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar().await;
    let setup = sidecar.connect().await;
    declare(&setup.create_channel().await.expect("channel"), "orders", "orders.all").await;

    let ledger = Arc::new(Ledger::default());
    let consumer = tokio::spawn(consume(sidecar.connect().await, "orders.all", 20, ledger.clone()));
    let pace = Duration::from_micros(200);
    let producer = tokio::spawn(produce(sidecar.connect().await, "orders", 50, pace, ledger.clone()));

    delivered(&ledger, 200).await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    for percent in [5.0, 25.0, 50.0, 100.0, 0.0, 100.0] {
        // A backlog on the losing side, and then on both: without a hold, it would come out of order.
        ledger.pause.store(true, Ordering::Relaxed);
        confirmed(&ledger, 100).await;
        let adopted = sidecar.weight(percent).await;
        assert!(adopted.took_ms < 1000, "{percent} % took {} ms", adopted.took_ms);
        confirmed(&ledger, 100).await;
        ledger.pause.store(false, Ordering::Relaxed);
        delivered(&ledger, 100).await;
    }
    delivered(&ledger, 500).await;
    assert_eq!(sidecar.status().await.phase, Phase::Cutover);

    ledger.stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(bed::CAP, producer).await.expect("in time").expect("the producer ended well");
    let ended = tokio::time::timeout(Duration::from_secs(15), consumer).await;
    let status = sidecar.status().await;
    println!("{ledger:?}\n{status:#?}");
    ended.expect("in time").expect("the consumer ended well");
    assert_eq!(ledger.duplicated.load(Ordering::Relaxed), 0);
    assert_eq!(ledger.reordered.load(Ordering::Relaxed), 0);
    assert!(status.sides.nats.delivered > 500 && status.sides.rabbit.delivered > 500, "both sides had a part");
    assert!(status.warnings.is_empty(), "{:?}", status.warnings);
    sidecar.stop().await;
}
