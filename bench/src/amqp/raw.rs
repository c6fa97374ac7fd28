//! Raw JetStream doing the same work: publish with ids and a window of confirms, pull, acknowledge each message.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, AckKind, consumer, stream};
use futures::StreamExt;

use super::AnyError;
use super::drive::{Drive, Round};

/// One round on a work-queue stream of its own, with one connection that publishes and one that consumes; the stream is on so many servers.
///
/// # Errors
/// When JetStream refuses or loses a message.
pub async fn drive(urls: &str, replicas: usize, drive: Drive) -> Result<Round, AnyError> {
    let url = urls.split(',').next().unwrap_or(urls);
    let publisher = jetstream::new(async_nats::connect(url).await?);
    let reader = jetstream::new(async_nats::connect(url).await?);
    let config = stream::Config {
        name: "RAW".into(),
        subjects: vec!["raw".into()],
        retention: stream::RetentionPolicy::WorkQueue,
        num_replicas: replicas,
        ..Default::default()
    };
    let stream = reader.create_stream(config).await?;
    let config = consumer::pull::Config { durable_name: Some("raw".into()), max_ack_pending: -1, ..Default::default() };
    let consumer = stream.create_consumer(config).await?;
    let mut deliveries = consumer.stream().max_messages_per_batch(usize::from(drive.prefetch)).messages().await?;
    let start = Instant::now();
    let reading = tokio::spawn(async move {
        let mut latencies = Vec::with_capacity(drive.messages);
        while latencies.len() < drive.messages {
            let delivery = deliveries.next().await.ok_or("the consumer ended early")??;
            let sent = delivery.payload.get(16..24).and_then(|part| part.try_into().ok()).ok_or("no time in it")?;
            latencies.push(start.elapsed().saturating_sub(Duration::from_nanos(u64::from_be_bytes(sent))));
            delivery.ack_with(AckKind::Ack).await?;
        }
        Ok::<_, AnyError>(latencies)
    });
    let mut window = VecDeque::with_capacity(drive.window);
    let mut body = vec![0x61_u8; drive.size.max(24)];
    for number in 0..drive.messages as u64 {
        body[16..24].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_be_bytes());
        if window.len() == drive.window
            && let Some(oldest) = window.pop_front()
        {
            oldest.await?;
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", number.to_string());
        headers.insert("Amqp-Content-Type", "application/octet-stream");
        window.push_back(publisher.publish_with_headers("raw", headers, body.clone().into()).await?);
    }
    for rest in window {
        rest.await?;
    }
    let latencies = reading.await??;
    let elapsed = start.elapsed();
    reader.delete_stream("RAW").await?;
    Ok(Round::of(drive.messages, elapsed, latencies))
}
