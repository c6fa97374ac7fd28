use futures::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::*;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Consumer};
use std::time::Duration;

use crate::servers::{Client, Failure, both, failure, table, text};

/// How long a delivery may take; and how long nothing has to come, before nothing counts as that.
const PATIENCE: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_millis(400);

fn stream(more: &[(&str, AMQPValue)]) -> FieldTable {
    table(&[&[("x-queue-type", text("stream"))], more].concat())
}

async fn consume(channel: &Channel, prefetch: u16, no_ack: bool, arguments: FieldTable) -> Result<Consumer, Failure> {
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.expect("set");
    let options = BasicConsumeOptions { no_ack, ..Default::default() };
    channel.basic_consume("s".into(), "c".into(), options, arguments).await.map_err(failure)
}

async fn publish(client: &Client, bodies: std::ops::Range<u32>) {
    let channel = client.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    for n in bodies {
        let options = BasicPublishOptions::default();
        let body = n.to_string();
        let sent = channel.basic_publish("".into(), "s".into(), options, body.as_bytes(), BasicProperties::default());
        assert!(sent.await.expect("sent").await.expect("confirmed").is_ack());
    }
}

fn shown(delivery: &Delivery) -> String {
    let headers = delivery.properties.headers().clone().unwrap_or_default();
    let (body, offset) = (String::from_utf8_lossy(&delivery.data), headers.inner().get("x-stream-offset").cloned());
    format!("{body} at {offset:?}, redelivered {}", delivery.redelivered)
}

/// Takes and acknowledges what comes, until nothing more does; the first one may take `wait`.
async fn take(consumer: &mut Consumer, mut wait: Duration) -> Vec<String> {
    let mut seen = Vec::new();
    while let Ok(Some(delivery)) = tokio::time::timeout(wait, consumer.next()).await {
        let delivery = delivery.expect("a delivery");
        seen.push(shown(&delivery));
        delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
        wait = SILENCE;
    }
    seen
}

/// The answers to declarations.
async fn declarations(client: &Client) -> Vec<Result<u32, Failure>> {
    let mut seen = Vec::new();
    let mut arguments: Vec<(&str, AMQPValue)> = vec![
        ("x-max-length-bytes", AMQPValue::LongInt(1000)),
        ("x-max-length-bytes", AMQPValue::LongInt(-1)),
        ("x-max-length-bytes", text("a")),
        ("x-max-age", AMQPValue::LongInt(5)),
        ("x-stream-max-segment-size-bytes", AMQPValue::LongInt(1000)),
        ("x-stream-max-segment-size-bytes", AMQPValue::LongInt(-1)),
        ("x-stream-max-segment-size-bytes", AMQPValue::LongLongInt(10_000_000_000)),
        ("x-initial-cluster-size", AMQPValue::LongInt(1)),
        ("x-initial-cluster-size", text("a")),
        ("x-queue-leader-locator", text("client-local")),
        ("x-queue-leader-locator", text("nope")),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-dead-letter-exchange", text("x")),
        ("x-overflow", text("drop-head")),
        ("x-queue-mode", text("lazy")),
        ("x-own", AMQPValue::LongInt(1)),
    ];
    for name in ["x-max-length", "x-expires", "x-message-ttl", "x-max-priority", "x-delivery-limit", "x-queue-version"]
    {
        arguments.push((name, AMQPValue::LongInt(2)));
    }
    // RabbitMQ answers an empty one, and one that is below 0, with 541.
    for age in ["10s", "5m", "1h", "1D", "2M", "3Y", "1x", "1", "0s", "1.5h"] {
        arguments.push(("x-max-age", text(age)));
    }
    for (index, argument) in arguments.iter().enumerate() {
        seen.push(client.queue(&format!("d{index}"), stream(std::slice::from_ref(argument))).await);
    }
    for (durable, exclusive, auto_delete) in [(false, false, false), (true, true, false), (true, false, true)] {
        let channel = client.channel().await;
        let options = QueueDeclareOptions { durable, exclusive, auto_delete, ..Default::default() };
        let declared = channel.queue_declare("flags".into(), options, stream(&[])).await;
        seen.push(declared.map(|queue| queue.message_count()).map_err(failure));
    }
    seen.push(client.queue("s", stream(&[])).await);
    seen.push(client.queue("s", FieldTable::default()).await);
    seen.push(client.queue("s", stream(&[("x-max-age", text("1h"))])).await);
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_declared_and_refused_as_by_rabbitmq() {
    let (rabbit, ours, _server) = both().await;
    let (expected, seen) = (declarations(&rabbit).await, declarations(&ours).await);
    assert_eq!(seen, expected);
    assert!(seen.iter().any(Result::is_ok) && seen.iter().any(Result::is_err));
}

/// What consumers get that begin at different places.
async fn readings(client: &Client) -> Vec<Result<Vec<String>, Failure>> {
    client.queue("s", stream(&[])).await.expect("declared");
    publish(client, 0..10).await;
    let mut seen = Vec::new();
    for offset in [
        text("first"),
        text("1h"),
        AMQPValue::LongLongInt(0),
        AMQPValue::LongInt(4),
        AMQPValue::LongLongInt(-1),
        AMQPValue::Timestamp(1_000_000_000),
        text("1x"),
        text("3"),
    ] {
        let channel = client.channel().await;
        seen.push(match consume(&channel, 3, false, table(&[("x-stream-offset", offset)])).await {
            Ok(mut consumer) => Ok(take(&mut consumer, PATIENCE).await),
            Err(failure) => Err(failure),
        });
    }
    // One begins at the end, and gets what comes then; so does one at a time that has not come; one waits for an offset that does not come.
    let (default, beyond, tomorrow) = (client.channel().await, client.channel().await, client.channel().await);
    let mut default = consume(&default, 3, false, FieldTable::default()).await.expect("consuming");
    let far = table(&[("x-stream-offset", AMQPValue::LongLongInt(1000))]);
    let mut beyond = consume(&beyond, 3, false, far).await.expect("consuming");
    let in_future = table(&[("x-stream-offset", AMQPValue::Timestamp(4_000_000_000))]);
    let mut tomorrow = consume(&tomorrow, 3, false, in_future).await.expect("consuming");
    publish(client, 10..15).await;
    seen.push(Ok(take(&mut default, PATIENCE).await));
    seen.push(Ok(take(&mut tomorrow, PATIENCE).await));
    seen.push(Ok(take(&mut beyond, SILENCE).await));
    for (prefetch, no_ack, arguments) in [
        (0, false, FieldTable::default()),
        (0, true, FieldTable::default()),
        (3, false, table(&[("x-priority", AMQPValue::LongInt(1))])),
        (3, false, table(&[("x-cancel-on-ha-failover", AMQPValue::Boolean(true))])),
    ] {
        let answer = consume(&client.channel().await, prefetch, no_ack, arguments).await;
        seen.push(answer.map(|_| Vec::new()));
    }
    client.queue("classic", FieldTable::default()).await.expect("declared");
    let offset = table(&[("x-stream-offset", text("first"))]);
    let channel = client.channel().await;
    let answer = channel.basic_consume("classic".into(), "".into(), BasicConsumeOptions::default(), offset).await;
    seen.push(answer.map(|_| Vec::new()).map_err(failure));
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_read_as_from_rabbitmq() {
    let (rabbit, ours, _server) = both().await;
    let (expected, seen) = (readings(&rabbit).await, readings(&ours).await);
    for (index, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
        assert_eq!(seen, expected, "reading {index}");
    }
    assert_eq!(seen.len(), expected.len());
}

/// What closes the whole connection, each on one of its own.
async fn fatal(url: &str) -> Vec<Failure> {
    let mut seen = Vec::new();
    for case in 0..5 {
        let client = Client::connect(url).await;
        let channel = client.channel().await;
        let first = table(&[("x-stream-offset", text("first"))]);
        seen.push(match case {
            0 => failure(channel.basic_get("s".into(), BasicGetOptions::default()).await.expect_err("refused")),
            1 => failure(channel.queue_purge("s".into(), QueuePurgeOptions::default()).await.expect_err("refused")),
            2 => consume(&channel, 3, true, first).await.expect_err("refused"),
            _ => {
                let mut consumer = consume(&channel, 3, false, first).await.expect("consuming");
                let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("in time");
                let delivery = next.expect("there").expect("a delivery");
                if case == 3 {
                    delivery.nack(BasicNackOptions::default()).await.expect("sent");
                } else {
                    delivery.reject(BasicRejectOptions { requeue: true }).await.expect("sent");
                }
                loop {
                    match tokio::time::timeout(PATIENCE, consumer.next()).await.expect("closed in time") {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => break failure(error),
                        None => panic!("closed without a word"),
                    }
                }
            }
        });
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_does_not_have_closes_the_connection_as_in_rabbitmq() {
    let (rabbit, ours, _server) = both().await;
    for client in [&rabbit, &ours] {
        client.queue("s", stream(&[])).await.expect("declared");
        publish(client, 0..3).await;
    }
    let (expected, seen) = (fatal(rabbit.url()).await, fatal(ours.url()).await);
    assert_eq!(seen, expected);
}
