//! A fence lies in a queue like any other message, and expires where those do: it comes as a dead letter then, and nothing waits for it.

mod bed;

use std::time::Duration;

use bed::Ends;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Consumer};
use sidecar::control_api::{Control, Target};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// How long a message may wait.
const TTL_MS: i32 = 500;

async fn publish(channel: &Channel, body: &[u8]) {
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default().with_delivery_mode(2));
    let confirm = channel.basic_publish("".into(), "brief".into(), options, body, properties).await.expect("published");
    assert!(confirm.await.expect("confirmed").is_ack());
}

async fn consume(channel: &Channel, queue: &str) -> Consumer {
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    channel.basic_consume(queue.into(), "".into(), options, none).await.expect("consuming")
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_moved_do_not_wait_for_a_fence_that_has_expired() {
    let (rabbit, nats) = (tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started"), NatsServer::start());
    let sidecar = Ends::new(rabbit, &nats).sidecar_with(Duration::from_secs(600)).await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let mut arguments = FieldTable::default();
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(TTL_MS));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
    arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString("dead".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("brief".into(), durable, arguments).await.expect("declared");
    channel.queue_declare("dead".into(), durable, FieldTable::default()).await.expect("declared");
    let reading = connection.create_channel().await.expect("channel");
    reading.basic_qos(1, BasicQosOptions::default()).await.expect("qos");
    let mut brief = consume(&reading, "brief").await;
    let _dead = consume(&channel, "dead").await;
    sidecar.change(Target::Shadow).await.expect("allowed");
    publish(&channel, b"before").await;
    let before = brief.next().await.expect("the consumer lives").expect("delivered");
    // Its fence cannot come out: the only consumer has its hands full.
    sidecar.weight(100.0).await;
    let fences = async || {
        let status = sidecar.cutover.status().await;
        status.queues.iter().filter(|q| q.name == "brief").map(|q| format!("{:?}", q.fence)).collect::<String>()
    };
    assert_eq!(fences().await, "Sent");
    eventually_true("the fence has expired, and RabbitMQ's queue holds nothing", || async {
        let url = rabbit.url_for(&sidecar.url.rsplit('/').next().expect("a vhost").replace("%2f", "/"));
        let direct = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.expect("connected");
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let direct = direct.create_channel().await.expect("channel");
        direct.queue_declare("brief".into(), passive, FieldTable::default()).await.expect("there").message_count() == 0
    })
    .await;
    publish(&channel, b"after").await;
    before.ack(BasicAckOptions::default()).await.expect("acked");
    let after = tokio::time::timeout(bed::CAP, brief.next()).await.expect("it does not wait for the time limit");
    assert_eq!(after.expect("the consumer lives").expect("delivered").data, b"after");
    eventually_true("nothing waits any more", || async { fences().await == "Passed" }).await;
}
