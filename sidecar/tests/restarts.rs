//! A sidecar that is stopped or killed goes on where it was.

mod bed;

use bed::{Ends, declare};
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use sidecar::control_api::{Phase, Target};
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

async fn publish(channel: &Channel, numbers: std::ops::Range<u32>) {
    for n in numbers {
        let body = n.to_string();
        let publish = channel.basic_publish(
            "orders".into(),
            format!("key.{}", n % 10).into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            BasicProperties::default(),
        );
        assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn phase_weight_epoch_and_owner_of_every_key_survive_a_restart() {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar().await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    let before = sidecar.weight(37.5).await;
    sidecar.stop().await;
    let sidecar = ends.sidecar().await;
    let status = sidecar.status().await;
    assert_eq!(
        (status.phase, status.weight_percent, status.epoch),
        (Phase::Canary, before.weight_percent, before.epoch)
    );
    assert_eq!((status.by.as_str(), status.at), ("test", before.at));
    let unchanged = sidecar.weight(37.5).await;
    assert!(!unchanged.changed);
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_killed_in_the_middle_of_a_change_still_delivers_in_order_and_all() {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar().await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    // A backlog on RabbitMQ, then one on JetStream behind it, and nobody has consumed any of it.
    publish(&channel, 0..100).await;
    sidecar.weight(100.0).await;
    publish(&channel, 100..200).await;
    sidecar.kill().await;

    let sidecar = ends.sidecar().await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.basic_qos(10, BasicQosOptions::default()).await.expect("qos");
    let consumer =
        channel.basic_consume("orders.all".into(), "c".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consumer.await.expect("consuming");
    let mut last = [None; 10];
    for _ in 0..200 {
        let delivery = consumer.next().await.expect("alive").expect("delivered");
        let n: u32 = std::str::from_utf8(&delivery.data).expect("text").parse().expect("a number");
        let key = (n % 10) as usize;
        assert_eq!(n, last[key].map_or(n % 10, |last| last + 10), "key {key}");
        last[key] = Some(n);
        delivery.ack(BasicAckOptions::default()).await.expect("acked");
    }
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}
