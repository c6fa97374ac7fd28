//! Whether a message that may have been sent long ago is in its stream: by its id, where the stream no longer knows ids.

use std::time::{Duration, Instant};

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy};
use async_nats::jetstream::{Context, stream};
use foldhash::HashMap;
use futures::StreamExt;
use time::OffsetDateTime;

use crate::error::{Error, ErrorKind, Result};

/// How long what was learnt about a stream is believed.
const FRESH: Duration = Duration::from_secs(30);
/// How many subjects are remembered.
const SUBJECTS: usize = 1024;
/// How many messages of a subject are looked through.
const LOOKED_THROUGH: usize = 100_000;
/// By how much the clocks of this machine and the server's may differ.
const CLOCKS: Duration = Duration::from_secs(60);

/// Which stream takes a subject, and for how long it knows an id.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub stream: String,
    pub window: Duration,
}

/// What a look into the stream showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    Stored,
    /// It is not there, and what is stored stays.
    Absent,
    /// It is not there; but it may have been taken away, or there was too much to look through.
    Unclear,
}

#[derive(Debug, Default)]
pub(super) struct Places {
    known: HashMap<String, (Place, Instant)>,
}

impl Places {
    /// The stream that takes the subject; `None`: none does.
    pub async fn of(&mut self, jetstream: &Context, subject: &str) -> Result<Option<Place>> {
        if let Some((place, at)) = self.known.get(subject)
            && at.elapsed() < FRESH
        {
            return Ok(Some(place.clone()));
        }
        let of = serde_json::json!({ "subject": subject });
        let names = crate::api::call(jetstream, "STREAM.NAMES".into(), Some(&of)).await?;
        let Some(stream) = names.pointer("/streams/0").and_then(|name| name.as_str()) else { return Ok(None) };
        let info = crate::api::ask(jetstream, format!("STREAM.INFO.{stream}")).await?;
        let window = info.pointer("/config/duplicate_window").and_then(|window| window.as_u64()).unwrap_or(0);
        let place = Place { stream: stream.to_owned(), window: Duration::from_nanos(window) };
        if self.known.len() >= SUBJECTS {
            self.known.clear();
        }
        self.known.insert(subject.to_owned(), (place.clone(), Instant::now()));
        Ok(Some(place))
    }
}

/// Looks for a message with this id that was stored under this subject since `put_ms`.
pub(super) async fn look(jetstream: &Context, stream: &str, subject: &str, id: &str, put_ms: u64) -> Result<Sight> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Unreachable).with("stream", stream).with("why", &e).because(e)
    };
    let found = jetstream.get_stream(stream).await.map_err(|e| failed(e.into()))?;
    let keeps = found.cached_info().config.retention == stream::RetentionPolicy::Limits;
    let absent = if keeps { Sight::Absent } else { Sight::Unclear };
    // The last one is nearly always enough: of one subject, one message at a time is sent.
    use async_nats::jetstream::stream::LastRawMessageErrorKind as Kind;
    match found.get_last_raw_message_by_subject(subject).await {
        Ok(last) if last.headers.get(NATS_MESSAGE_ID).is_some_and(|found| found.as_str() == id) => {
            return Ok(Sight::Stored);
        }
        Ok(last) => {
            let since = i128::from(put_ms) * 1_000_000 - CLOCKS.as_nanos() as i128;
            if last.time.unix_timestamp_nanos() < since {
                return Ok(absent);
            }
        }
        Err(error) if error.kind() == Kind::NoMessageFound => return Ok(absent),
        Err(error) => return Err(failed(error.into())),
    }
    let since_ms = put_ms.saturating_sub(CLOCKS.as_millis() as u64);
    let since = OffsetDateTime::from_unix_timestamp_nanos(i128::from(since_ms) * 1_000_000);
    let config = consumer::pull::Config {
        deliver_policy: since.map_or(DeliverPolicy::All, |start_time| DeliverPolicy::ByStartTime { start_time }),
        ack_policy: AckPolicy::None,
        filter_subject: subject.to_owned(),
        headers_only: true,
        memory_storage: true,
        inactive_threshold: Duration::from_secs(30),
        ..Default::default()
    };
    // A work queue has no second consumer for a subject.
    let Ok(consumer) = found.create_consumer(config).await else { return Ok(Sight::Unclear) };
    let pending = consumer.cached_info().num_pending as usize;
    let limit = pending.min(LOOKED_THROUGH);
    let mut seen = 0;
    while seen < limit {
        let batch = consumer.fetch().max_messages((limit - seen).min(1_000)).expires(Duration::from_secs(5));
        let mut messages = batch.messages().await.map_err(|e| failed(e.into()))?;
        let before = seen;
        while let Some(message) = messages.next().await {
            let message = message.map_err(failed)?;
            seen += 1;
            let headers = message.headers.as_ref();
            if headers.and_then(|h| h.get(NATS_MESSAGE_ID)).is_some_and(|found| found.as_str() == id) {
                return Ok(Sight::Stored);
            }
        }
        if seen == before {
            return Ok(Sight::Unclear);
        }
    }
    Ok(if pending > LOOKED_THROUGH { Sight::Unclear } else { absent })
}
