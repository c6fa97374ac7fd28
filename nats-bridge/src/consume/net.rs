//! The net below the retry policy: messages that the server gave up by itself.
//!
//! A message that was delivered `max_deliver` times stays in its stream, pending to nobody, and nobody hears of it but those
//! who listen for advisories. A stream keeps those, so that none is missed while no worker runs; each consumer takes its
//! own from there and makes dead letters of what they name.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt;
use serde::Deserialize;
use time::OffsetDateTime;

use super::ConsumeConfig;
use super::shared::Shared;
use crate::bridge::Bridge;
use crate::dead_letter::{self, Facts, Failure, Reason};
use crate::error::{Error, ErrorKind, Result};
use crate::provision::{ConsumerSpec, Discard, StreamSpec, ensure_consumer, make_stream_if_absent};
use crate::stored;

const MAX_DELIVERIES: &str = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES";
const TERMINATED: &str = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED";

/// The stream that keeps the advisories about a stream.
pub(crate) fn advisory_stream(stream: &str) -> String {
    format!("{stream}_ADVISORIES")
}

/// Makes the stream of advisories if it does not exist, and this consumer's part of it.
pub(super) async fn prepare(bridge: &Bridge, config: &ConsumeConfig) -> Result<()> {
    let js = bridge.jetstream();
    let name = advisory_stream(&config.stream);
    let subjects = [MAX_DELIVERIES, TERMINATED].map(|kind| format!("{kind}.{}.>", config.stream));
    let stream = StreamSpec {
        max_bytes: Some(64 << 20),
        max_age: Some(Duration::from_secs(7 * 24 * 3600)),
        // Old ones make room: refusing the newest would hide what happens now.
        discard: Discard::Old,
        ..StreamSpec::new(&name, subjects)
    };
    make_stream_if_absent(js, &stream).await?;
    let spec = ConsumerSpec {
        stream: name,
        name: config.name.clone(),
        filter_subjects: vec![format!("{MAX_DELIVERIES}.{}.{}", config.stream, config.name)],
        max_deliver: None,
        ..ConsumerSpec::default()
    };
    ensure_consumer(js, &spec).await
}

/// Makes dead letters of what the server gave up, until the consumer ends.
pub(super) async fn watch(shared: Arc<Shared>) {
    while !shared.end.is_cancelled() {
        if let Err(error) = sweep(&shared).await {
            tracing::debug!(%error, consumer = shared.config.name, "advisories cannot be read at present");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
                () = shared.end.cancelled() => {}
            }
        }
    }
}

#[derive(Deserialize)]
struct Advisory {
    stream_seq: u64,
    #[serde(default)]
    deliveries: u64,
}

async fn sweep(shared: &Arc<Shared>) -> Result<()> {
    let unreadable = |e: async_nats::Error| Error::new(ErrorKind::Unreachable).because(e);
    let stream = shared.jetstream.get_stream_no_info(advisory_stream(&shared.config.stream)).await;
    let stream = stream.map_err(|e| unreadable(e.into()))?;
    let consumer: PullConsumer = stream.get_consumer(&shared.config.name).await.map_err(unreadable)?;
    loop {
        let batch = consumer.fetch().max_messages(20).expires(Duration::from_secs(5)).messages();
        let mut batch = tokio::select! {
            batch = batch => batch.map_err(|e| unreadable(e.into()))?,
            () = shared.end.cancelled() => return Ok(()),
        };
        loop {
            let advisory = tokio::select! {
                advisory = batch.next() => advisory,
                () = shared.end.cancelled() => return Ok(()),
            };
            let Some(advisory) = advisory else { break };
            let advisory = advisory.map_err(unreadable)?;
            if let Ok(told) = serde_json::from_slice::<Advisory>(&advisory.payload) {
                rescue(shared, &told).await?;
            }
            advisory.ack().await.map_err(unreadable)?;
        }
    }
}

async fn rescue(shared: &Shared, told: &Advisory) -> Result<()> {
    let config = &shared.config;
    let unreadable = |e: async_nats::Error| {
        Error::new(ErrorKind::Unreachable).with("stream", &config.stream).with("sequence", told.stream_seq).because(e)
    };
    let mut stream = shared.jetstream.get_stream(&config.stream).await.map_err(|e| unreadable(e.into()))?;
    // None: it was settled after all, or its dead letter was made and the original ended.
    let Some(message) = stored::at(&shared.jetstream, &config.stream, told.stream_seq).await? else { return Ok(()) };
    let failure = Failure::of("max_deliver", format!("the server delivered it {} times and gave up", told.deliveries));
    let now = OffsetDateTime::now_utc().into();
    let facts = Facts {
        stream: &config.stream,
        consumer: &config.name,
        subject: &message.subject,
        sequence: told.stream_seq,
        stored_at: message.time.unix_timestamp_nanos(),
        attempts: told.deliveries,
        reason: Reason::MaxDeliver,
        failure: &failure,
        first_failed: now,
        last_failed: now,
        host: &shared.host,
    };
    let letter = dead_letter::letter(&shared.letter_subject, &facts, Some(&message.headers), message.payload.clone());
    let published = shared.letters.publish(letter).await?;
    shared.metrics.dead_lettered.increment(1);
    tracing::error!(
        stream = config.stream,
        consumer = config.name,
        sequence = told.stream_seq,
        deliveries = told.deliveries,
        dead_letter_sequence = published.sequence,
        "the server had given a message up; it is a dead letter now"
    );
    // In a work queue it would stay for ever; elsewhere the stream's limits remove it, and others may read it.
    let info = stream.info().await.map_err(|e| unreadable(e.into()))?;
    if info.config.retention == async_nats::jetstream::stream::RetentionPolicy::WorkQueue {
        stream.delete_message(told.stream_seq).await.map_err(|e| unreadable(e.into()))?;
    }
    Ok(())
}
