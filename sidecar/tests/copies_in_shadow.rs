//! In `shadow` a message has a standby copy on JetStream unless it is settled within a moment.

mod bed;

use bed::{Ends, declare, process};
use futures::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use sidecar::control_api::Target;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

async fn publish(channel: &Channel, number: u32) {
    let body = number.to_string();
    let publish = channel.basic_publish(
        "orders".into(),
        "order.1".into(),
        BasicPublishOptions::default(),
        body.as_bytes(),
        BasicProperties::default().with_delivery_mode(2),
    );
    assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
}

async fn channel(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    channel
}

/// The last sequence of the stream of copies, and how many it holds; 0 of one that is not there.
fn store(nats: &NatsServer) -> (u64, u64) {
    let answer = nats.monitor("/jsz?streams=true").expect("answers");
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let streams = answer["account_details"][0]["stream_detail"].as_array().cloned().unwrap_or_default();
    let is_store = |stream: &&serde_json::Value| stream["name"].as_str().is_some_and(|name| name.contains("standby"));
    let state = streams.iter().find(is_store).map(|stream| stream["state"].clone()).unwrap_or_default();
    (state["last_seq"].as_u64().unwrap_or(0), state["messages"].as_u64().unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_consumed_at_once_needs_no_copy_and_what_lies_gets_one() {
    let nats = NatsServer::start();
    let sidecar = Ends::new(RabbitMq::shared(), &nats).sidecar().await;
    let connection = sidecar.connect().await;
    let channel = channel(&connection).await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    let consume =
        channel.basic_consume("orders.all".into(), "c".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consume.await.expect("consuming");
    for number in 0..200 {
        publish(&channel, number).await;
        let delivery = consumer.next().await.expect("alive").expect("delivered");
        delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
    }
    let (stored, _) = store(&nats);
    assert!(stored < 100, "{stored} of 200 copies were stored of messages that were settled within milliseconds");

    channel.basic_cancel("c".into(), Default::default()).await.expect("cancelled");
    for number in 0..20 {
        publish(&channel, number).await;
    }
    eventually_true("what lies has its copies", || async {
        let copies = sidecar.status().await.standby_rabbit.expect("on");
        (copies.copies, copies.no_copy) == (20, 0)
    })
    .await;
    assert_eq!(store(&nats).1, 20);
    sidecar.stop().await;
}

#[test]
fn a_sidecar_that_is_told_to_stop_makes_the_copies_that_it_held_back() {
    let (rabbit, nats) = (RabbitMq::start(), NatsServer::start());
    let process = process::Process::start(&rabbit, &nats);
    let (exit, _) = process.verb(&["shadow", "--by", "test", "--reason", "test"]);
    assert_eq!(exit, 0);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let url = format!("amqp://guest:guest@{}/%2f", process.said("listen"));
    let copies = |what: &str| process.verb(&["status"]).1["standby_rabbit"][what].as_u64().expect("counted");
    let expected = runtime.block_on(async {
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.expect("connected");
        let channel = channel(&connection).await;
        let mut published = 0;
        // What is published before JetStream has the queue is counted, and has no copy.
        while copies("copies") == 0 {
            publish(&channel, published).await;
            published += 1;
        }
        let without = copies("no_copy_total");
        for number in 0..20 {
            publish(&channel, number).await;
        }
        connection.close(200, "bye".into()).await.expect("closed");
        u64::from(published) + 20 - without
    });
    process.terminate();
    assert_eq!(store(&nats).1, expected);
}
