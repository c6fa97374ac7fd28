//! One round of one workload on one broker, over lapin.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::try_join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ExchangeKind};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::AnyError;
use super::workload::Shape;

/// One round on one broker.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Round {
    /// Deliveries (round trips for RPC) a second, each published with a confirm and acknowledged.
    pub rate: f64,
    /// Publish to delivery (or to the reply, for RPC), in milliseconds: median.
    pub latency_p50_ms: f64,
    /// The same: 99th percentile.
    pub latency_p99_ms: f64,
    /// CPU time of the broker's processes for each delivery, in microseconds; not known for one that was not started here.
    pub broker_cpu_us: Option<f64>,
    /// CPU time of the client for each publish, in microseconds; of what runs in this process, it is added later.
    pub client_cpu_us: f64,
}

impl Round {
    /// From the latencies of all its deliveries, of which there is at least one.
    pub fn of(count: usize, elapsed: Duration, mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let rate = count as f64 / elapsed.as_secs_f64();
        let (latency_p50_ms, latency_p99_ms) = (at(0.5), at(0.99));
        Self { rate, latency_p50_ms, latency_p99_ms, broker_cpu_us: None, client_cpu_us: 0.0 }
    }
}

/// How a round is driven.
#[derive(Debug, Clone, Copy)]
pub struct Drive {
    /// Publishes, over all publishers.
    pub messages: usize,
    /// Bytes of a body.
    pub size: usize,
    /// Publishes in flight without a confirm, for each publisher.
    pub window: usize,
    /// Consumer prefetch.
    pub prefetch: u16,
}

const EXCHANGE: &str = "bench";
const TAG: &str = "bench";

/// Publishes, consumes and acknowledges all messages of a round; from the first publish to the last ack *and* confirm.
///
/// # Errors
/// When the broker refuses, loses, duplicates or reorders (one publisher's messages to one consumer) a message.
pub async fn drive(url: &str, shape: Shape, drive: Drive) -> Result<Round, AnyError> {
    let admin = Connection::connect(url, ConnectionProperties::default()).await?;
    let setup = admin.create_channel().await?;
    let queues: Vec<ShortString> = (0..shape.queues).map(|n| format!("bench-{n}").into()).collect();
    let exchange = declare(&setup, shape, &queues).await?;

    let start = Instant::now();
    let left: Vec<_> = queues.iter().map(|_| Arc::new(Semaphore::new(drive.messages))).collect();
    let mut connections = Vec::new();
    // A channel that is dropped is closed behind our back, and would be in the way of its connection's close.
    let mut channels = vec![setup.clone()];
    let mut readers = Vec::new();
    for (queue, left) in queues.iter().zip(&left) {
        for _ in 0..shape.consumers {
            let connection = Connection::connect(url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            connections.push(connection);
            channels.push(channel.clone());
            channel.basic_qos(drive.prefetch, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            let deliveries = channel.basic_consume(queue.clone(), TAG.into(), options, FieldTable::default()).await?;
            readers.push(tokio::spawn(read(deliveries, channel, shape, Arc::clone(left), start)));
        }
    }
    let mut writers = Vec::new();
    for number in 0..shape.publishers {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        connections.push(connection);
        channels.push(channel.clone());
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let share = drive.messages / shape.publishers + usize::from(number < drive.messages % shape.publishers);
        let part = Drive { messages: share, ..drive };
        writers.push((channel, number, part));
    }
    let begun = start.elapsed();
    let route = if exchange.as_str().is_empty() { queues[0].clone() } else { ShortString::default() };
    try_join_all(writers.into_iter().map(|(channel, number, part)| {
        let (exchange, route) = (exchange.clone(), route.clone());
        async move { write(&channel, number, part, shape, &exchange, &route, start).await }
    }))
    .await?;
    let mut latencies = Vec::with_capacity(drive.messages * shape.queues);
    for reader in readers {
        latencies.extend(reader.await??);
    }
    let elapsed = start.elapsed().saturating_sub(begun);
    if latencies.len() != drive.messages * shape.queues {
        return Err(format!("{} deliveries where {} were due", latencies.len(), drive.messages * shape.queues).into());
    }

    // The consumers first: RabbitMQ fails a connection that acknowledges to a quorum queue in the moment it is deleted.
    for connection in connections {
        connection.close(200, "done".into()).await?;
    }
    for queue in queues {
        setup.queue_delete(queue, QueueDeleteOptions::default()).await?;
    }
    if !exchange.as_str().is_empty() {
        setup.exchange_delete(exchange, ExchangeDeleteOptions::default()).await?;
    }
    admin.close(200, "done".into()).await?;
    drop(channels);
    Ok(Round::of(latencies.len(), elapsed, latencies))
}

/// Makes the queues of a shape, and its exchange; answers that exchange's name.
///
/// # Errors
/// When the broker refuses it.
pub async fn declare(channel: &Channel, shape: Shape, queues: &[ShortString]) -> Result<ShortString, AnyError> {
    for queue in queues {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(shape.kind.name().into()));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.clone(), options, arguments).await?;
    }
    let is_topic = shape.topic_bindings > 0;
    if !is_topic && !shape.is_fanout {
        return Ok(ShortString::default());
    }
    let kind = if is_topic { ExchangeKind::Topic } else { ExchangeKind::Fanout };
    channel.exchange_declare(EXCHANGE.into(), kind, ExchangeDeclareOptions::default(), FieldTable::default()).await?;
    for queue in queues {
        for number in 0..shape.topic_bindings.max(1) {
            // A third each with no wildcard, `*` and `#`.
            let key = match number % 3 {
                0 => format!("site.{number}.order.paid"),
                1 => format!("site.{number}.*.paid"),
                _ => format!("site.{number}.#"),
            };
            let nowait = number % 100 != 99;
            let options = QueueBindOptions { nowait };
            channel.queue_bind(queue.clone(), EXCHANGE.into(), key.into(), options, FieldTable::default()).await?;
        }
    }
    // An answered request behind the bindings: they are in force.
    let again = QueueDeclareOptions { passive: true, ..Default::default() };
    channel.queue_declare(queues[0].clone(), again, FieldTable::default()).await?;
    Ok(EXCHANGE.into())
}

/// Publishes one publisher's part, with a window of confirms.
///
/// # Errors
/// When a publish is not confirmed.
pub async fn write(
    channel: &Channel,
    publisher: usize,
    drive: Drive,
    shape: Shape,
    exchange: &ShortString,
    queue: &ShortString,
    start: Instant,
) -> Result<(), AnyError> {
    let properties =
        BasicProperties::default().with_delivery_mode(2).with_content_type("application/octet-stream".into());
    let mut body = vec![0x61_u8; drive.size.max(24)];
    body[0..8].copy_from_slice(&(publisher as u64).to_be_bytes());
    let mut window = VecDeque::with_capacity(drive.window);
    let begun = Instant::now();
    for number in 0..drive.messages as u64 {
        if let Some(pace) = shape.pace {
            let due = begun + Duration::from_secs_f64(number as f64 / pace * shape.publishers as f64);
            // A timer is good for a millisecond: shorter waits are made up for by the next one.
            if due > Instant::now() + Duration::from_millis(1) {
                tokio::time::sleep_until(due.into()).await;
            }
        }
        body[8..16].copy_from_slice(&number.to_be_bytes());
        body[16..24].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_be_bytes());
        if window.len() == drive.window
            && let Some(oldest) = window.pop_front()
        {
            confirmed(oldest).await?;
        }
        let key = match shape.topic_bindings as u64 {
            0 => queue.clone(),
            bindings => format!("site.{}.order.paid", number * 7919 % bindings).into(),
        };
        let options = BasicPublishOptions::default();
        window.push_back(channel.basic_publish(exchange.clone(), key, options, &body, properties.clone()).await?);
    }
    for rest in window {
        confirmed(rest).await?;
    }
    Ok(())
}

/// Takes deliveries until the queue's share of `left` is used up; answers their latencies.
async fn read(
    mut deliveries: Consumer,
    channel: Channel,
    shape: Shape,
    left: Arc<Semaphore>,
    start: Instant,
) -> Result<Vec<Duration>, AnyError> {
    let mut latencies = Vec::new();
    let mut last = vec![None; shape.publishers];
    let mut unacked = 0;
    loop {
        let delivery = tokio::select! {
            biased;
            delivery = deliveries.next() => delivery.ok_or("the consumer ended early")??,
            () = used_up(&left) => return Ok(latencies),
        };
        let field =
            |at: usize| delivery.data.get(at..at + 8).and_then(|part| part.try_into().ok()).map(u64::from_be_bytes);
        let (Some(publisher), Some(number), Some(sent)) = (field(0), field(8), field(16)) else {
            return Err("a message that nobody sent".into());
        };
        let last = last.get_mut(publisher as usize).ok_or("a message of nobody")?;
        if last.is_some_and(|last| number <= last) {
            return Err(format!("message {number} came behind {last:?}").into());
        }
        *last = Some(number);
        latencies.push(start.elapsed().saturating_sub(Duration::from_nanos(sent)));
        left.try_acquire().map_err(|_| "more deliveries than messages")?.forget();
        unacked += 1;
        if unacked == shape.ack_every || left.available_permits() < shape.ack_every * shape.consumers {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: unacked > 1 }).await?;
            unacked = 0;
        }
    }
}

/// Returns when every message of the queue was delivered to somebody.
async fn used_up(left: &Semaphore) {
    while left.available_permits() > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn confirmed(confirm: lapin::PublisherConfirm) -> Result<(), AnyError> {
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("a publish was not confirmed: {other:?}").into()),
    }
}

/// Publishes one at a time, each after the confirm of the one before; the latency is that of the confirm.
///
/// # Errors
/// When a publish is not confirmed.
pub async fn confirms(url: &str, count: usize, size: usize) -> Result<Round, AnyError> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("bench-0".into(), durable, FieldTable::default()).await?;
    let properties = BasicProperties::default().with_delivery_mode(2);
    let body = vec![0x61; size];
    let mut latencies = Vec::with_capacity(count);
    let begun = Instant::now();
    for _ in 0..count {
        let sent = Instant::now();
        let options = BasicPublishOptions::default();
        confirmed(
            channel.basic_publish(ShortString::default(), "bench-0".into(), options, &body, properties.clone()).await?,
        )
        .await?;
        latencies.push(sent.elapsed());
    }
    let elapsed = begun.elapsed();
    channel.queue_delete("bench-0".into(), QueueDeleteOptions::default()).await?;
    connection.close(200, "done".into()).await?;
    Ok(Round::of(count, elapsed, latencies))
}

/// Request and reply, one at a time: an exclusive reply queue, `reply_to` and `correlation_id`, no acks.
///
/// # Errors
/// When a reply is lost or not the one that was asked for.
pub async fn round_trips(url: &str, count: usize, size: usize) -> Result<Round, AnyError> {
    let server = Connection::connect(url, ConnectionProperties::default()).await?;
    let client = Connection::connect(url, ConnectionProperties::default()).await?;
    let (serving, asking) = (server.create_channel().await?, client.create_channel().await?);
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let transient = QueueDeclareOptions { exclusive: true, ..Default::default() };
    serving.queue_declare("bench-rpc".into(), transient, FieldTable::default()).await?;
    let mut requests = serving.basic_consume("bench-rpc".into(), TAG.into(), no_ack, FieldTable::default()).await?;
    let replies = asking.queue_declare(ShortString::default(), transient, FieldTable::default()).await?;
    let reply_to = replies.name().clone();
    let mut answers = asking.basic_consume(reply_to.clone(), TAG.into(), no_ack, FieldTable::default()).await?;
    let answering = tokio::spawn(async move {
        while let Some(Ok(request)) = requests.next().await {
            let Some(to) = request.properties.reply_to().clone() else { continue };
            let options = BasicPublishOptions::default();
            let answer = serving.basic_publish(ShortString::default(), to, options, &request.data, request.properties);
            if answer.await.is_err() {
                break;
            }
        }
    });
    let mut latencies = Vec::with_capacity(count);
    let begun = Instant::now();
    for number in 0..count {
        let properties =
            BasicProperties::default().with_reply_to(reply_to.clone()).with_correlation_id(number.to_string().into());
        let sent = Instant::now();
        let body = vec![0x61; size];
        let options = BasicPublishOptions::default();
        asking.basic_publish(ShortString::default(), "bench-rpc".into(), options, &body, properties).await?;
        let answer = answers.next().await.ok_or("the consumer ended early")??;
        if answer.properties.correlation_id().as_ref().map(ShortString::as_str) != Some(&number.to_string()) {
            return Err("a reply to another request".into());
        }
        latencies.push(sent.elapsed());
    }
    let elapsed = begun.elapsed();
    client.close(200, "done".into()).await?;
    server.close(200, "done".into()).await?;
    answering.abort();
    Ok(Round::of(count, elapsed, latencies))
}
