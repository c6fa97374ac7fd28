//! What was made in RabbitMQ past the sidecar would silently miss what NATS owns: the weight is not raised.

mod bed;

use bed::{CAP, Ends, declare};
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use sidecar::control_api::{RefusedCode, Target, Weight};
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_or_a_policy_that_jetstream_does_not_have_refuses_a_weight_until_it_is_gone() {
    let nats = NatsServer::start();
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let ends = Ends::new(rabbit, &nats);
    let sidecar = ends.sidecar().await;
    let through = sidecar.connect().await;
    let channel = through.create_channel().await.expect("a channel");
    declare(&channel, "orders", "known").await;
    sidecar.change(Target::Shadow).await.expect("allowed");

    let url = rabbit.url_for(&ends.vhost);
    let past = Connection::connect(&url, ConnectionProperties::default()).await.expect("connected");
    let direct = past.create_channel().await.expect("a channel");
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    direct.queue_declare("ledger".into(), durable, FieldTable::default()).await.expect("declared");
    let bind = QueueBindOptions::default();
    direct.queue_bind("ledger".into(), "orders".into(), "#".into(), bind, FieldTable::default()).await.expect("bound");

    let five = Target::Weight(Weight::from_percent(5.0).expect("a weight"));
    let refused = sidecar.change(five).await.expect_err("a queue would miss what NATS owns");
    assert_eq!(refused.code, RefusedCode::Unmapped);
    assert!(refused.reason.contains("orders -> queue ledger, key '#'"), "{}", refused.reason);

    // Its application declares it through the sidecar: now JetStream has it too.
    channel.queue_declare("ledger".into(), durable, FieldTable::default()).await.expect("declared");
    channel.queue_bind("ledger".into(), "orders".into(), "#".into(), bind, FieldTable::default()).await.expect("bound");

    let vhost = ends.vhost.replace('/', "%2f");
    let (path, body) = (format!("/api/policies/{vhost}/short"), r#"{"pattern":".*","definition":{"max-length":5}}"#);
    assert_eq!(rabbit.api("PUT", &path, body).expect("answers").0, 201);
    let refused = sidecar.change(five).await.expect_err("a limit would not be kept");
    assert!(refused.reason.contains("policy short") && refused.reason.contains("max-length"), "{}", refused.reason);
    assert_eq!(rabbit.api("DELETE", &path, "").expect("answers").0, 204);

    tokio::time::timeout(CAP, sidecar.change(five)).await.expect("in time").expect("nothing is in the way");
    sidecar.stop().await;
}
