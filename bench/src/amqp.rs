//! The AMQP listener beside RabbitMQ: the same unmodified lapin client drives both in one run.
//!
//! One workload is one number: N messages published with confirms (a window of them in flight), consumed with a
//! prefetch and acknowledged one by one, all at once, from the first publish to the last ack *and* the last confirm.
//! Rounds alternate between the brokers, so that a noisy machine slows both; the ratio is taken round by round.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clap::Args;
use futures::StreamExt;
use lapin::Confirmation;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde::Serialize;
use test_support::rabbit::RabbitMq;

use crate::gateway::Gateway;
use crate::report::{Figure, median};

/// What `bench amqp` takes.
#[derive(Debug, Clone, Args)]
pub struct AmqpArgs {
    /// Messages in each round.
    #[arg(long, default_value_t = 40_000)]
    pub messages: usize,
    /// Counted rounds of each broker; one more of each comes first and is not counted.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Body sizes, in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 1024])]
    pub sizes: Vec<usize>,
    /// Publishes in flight without a confirm.
    #[arg(long, default_value_t = 256)]
    pub window: usize,
    /// Consumer prefetch.
    #[arg(long, default_value_t = 256)]
    pub prefetch: u16,
    /// Measure this broker instead of a listener started here.
    #[arg(long, value_name = "AMQP_URL")]
    pub listener: Option<String>,
    /// Compare with this broker instead of a RabbitMQ node started here.
    #[arg(long, value_name = "AMQP_URL")]
    pub rabbit: Option<String>,
}

/// One round on one broker.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Round {
    /// Messages published, confirmed, consumed and acknowledged, a second.
    pub rate: f64,
    /// Publish to delivery, at this (full) load, in milliseconds: median.
    pub latency_p50_ms: f64,
    /// Publish to delivery, at this (full) load, in milliseconds: 99th percentile.
    pub latency_p99_ms: f64,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Runs the whole comparison and returns its figures. `quick` shows that it works, with one small round.
///
/// # Errors
/// When a server cannot be started, or a broker refuses, loses or duplicates a message.
pub async fn run(args: &AmqpArgs, quick: bool) -> Result<Vec<Figure>, AnyError> {
    let args = &if quick { AmqpArgs { messages: 2_000, rounds: 1, ..args.clone() } } else { args.clone() };
    let (node, rabbit) = match &args.rabbit {
        Some(url) => (None, url.clone()),
        None => {
            let node = tokio::task::spawn_blocking(RabbitMq::start).await?;
            let url = node.url();
            (Some(node), url)
        }
    };
    let (gateway, listener) = match &args.listener {
        Some(url) => (None, url.clone()),
        None => {
            let gateway = tokio::task::spawn_blocking(Gateway::start).await??;
            let url = gateway.url();
            (Some(gateway), url)
        }
    };

    let mut figures = Vec::new();
    for &size in &args.sizes {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=args.rounds {
            let here = load(&listener, args, size).await?;
            let there = load(&rabbit, args, size).await?;
            if round > 0 {
                eprintln!(
                    "amqp {size:>6} B round {round}: listener {:>7.0}/s  RabbitMQ {:>7.0}/s",
                    here.rate, there.rate
                );
                ours.push(here);
                theirs.push(there);
            }
        }
        figures.push(figure(size, args, &ours, &theirs));
    }
    drop(gateway);
    drop(node);
    Ok(figures)
}

fn figure(size: usize, args: &AmqpArgs, ours: &[Round], theirs: &[Round]) -> Figure {
    let pick = |rounds: &[Round], of: fn(&Round) -> f64| median(rounds.iter().map(of));
    Figure {
        name: format!("amqp publish+confirm+consume+ack, {size} B"),
        detail: format!(
            "{} messages, window {}, prefetch {}, ack each; listener on JetStream (file, default sync) beside RabbitMQ classic durable",
            args.messages, args.window, args.prefetch
        ),
        unit: "msg/s",
        ours: pick(ours, |r| r.rate),
        peer_name: "RabbitMQ".into(),
        peer: pick(theirs, |r| r.rate),
        ratio: median(ours.iter().zip(theirs).map(|(a, b)| a.rate / b.rate)),
        extra: vec![
            ("latency p50 ms (listener)".into(), pick(ours, |r| r.latency_p50_ms)),
            ("latency p50 ms (RabbitMQ)".into(), pick(theirs, |r| r.latency_p50_ms)),
            ("latency p99 ms (listener)".into(), pick(ours, |r| r.latency_p99_ms)),
            ("latency p99 ms (RabbitMQ)".into(), pick(theirs, |r| r.latency_p99_ms)),
        ],
    }
}

/// Drives one broker once: one publishing and one consuming connection on a durable classic queue of their own.
async fn load(url: &str, args: &AmqpArgs, size: usize) -> Result<Round, AnyError> {
    let publisher = Connection::connect(url, ConnectionProperties::default()).await?;
    let consumer = Connection::connect(url, ConnectionProperties::default()).await?;
    let out = publisher.create_channel().await?;
    let inward = consumer.create_channel().await?;
    let queue = format!("bench-{size}");
    out.queue_declare(
        queue.as_str().into(),
        QueueDeclareOptions { durable: true, ..Default::default() },
        FieldTable::default(),
    )
    .await?;
    out.confirm_select(ConfirmSelectOptions::default()).await?;
    inward.basic_qos(args.prefetch, BasicQosOptions::default()).await?;
    let mut deliveries = inward
        .basic_consume(queue.as_str().into(), "bench".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;

    let start = Instant::now();
    let count = args.messages;
    let reader = tokio::spawn(async move {
        let mut latencies = Vec::with_capacity(count);
        for expected in 0..count as u64 {
            let delivery = deliveries.next().await.ok_or("the consumer ended early")??;
            let number = u64::from_be_bytes(delivery.data[0..8].try_into()?);
            let sent = Duration::from_nanos(u64::from_be_bytes(delivery.data[8..16].try_into()?));
            if number != expected {
                return Err(format!("message {number} came where {expected} was due").into());
            }
            latencies.push(start.elapsed().saturating_sub(sent));
            delivery.ack(BasicAckOptions::default()).await?;
        }
        Ok::<_, AnyError>(latencies)
    });

    let mut body = vec![0x61_u8; size.max(16)];
    let properties =
        BasicProperties::default().with_delivery_mode(2).with_content_type("application/octet-stream".into());
    let mut window = VecDeque::with_capacity(args.window);
    for number in 0..count as u64 {
        body[0..8].copy_from_slice(&number.to_be_bytes());
        body[8..16].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_be_bytes());
        if window.len() == args.window
            && let Some(oldest) = window.pop_front()
        {
            confirmed(oldest).await?;
        }
        window.push_back(
            out.basic_publish(
                "".into(),
                queue.as_str().into(),
                BasicPublishOptions::default(),
                &body,
                properties.clone(),
            )
            .await?,
        );
    }
    for rest in window {
        confirmed(rest).await?;
    }
    let mut latencies = reader.await??;
    let elapsed = start.elapsed();

    out.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    publisher.close(200, "done".into()).await?;
    consumer.close(200, "done".into()).await?;
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    Ok(Round { rate: count as f64 / elapsed.as_secs_f64(), latency_p50_ms: at(0.5), latency_p99_ms: at(0.99) })
}

async fn confirmed(confirm: lapin::PublisherConfirm) -> Result<(), AnyError> {
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("a publish was not confirmed: {other:?}").into()),
    }
}
