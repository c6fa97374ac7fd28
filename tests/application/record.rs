//! An application's own record of what it did; what `examples/demo/ledger.py` writes, and the same reader reads it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// What an application did, or what happened to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Event {
    /// It began; the moment in nanoseconds since 1970.
    Started { app: String, unix_ns: u64 },
    /// Its connection is open and it publishes or consumes.
    Connected,
    /// It could not connect; it tries again.
    ConnectFailed { why: String },
    /// It lost its connection.
    Disconnected { why: String },
    /// It is about to publish a message; `attempt` is 1 for the first time.
    Published { id: String, exchange: String, key: String, seq: u64, attempt: u32 },
    /// The broker took the message.
    Confirmed { id: String },
    /// The broker refused the message.
    Nacked { id: String },
    /// The broker found no queue for the message.
    Returned { id: String, why: String },
    /// It was given a message, and is about to end its delivery.
    Delivered {
        queue: String,
        id: String,
        key: String,
        seq: u64,
        redelivered: bool,
        intact: bool,
        outcome: Outcome,
        /// The queue where the message died before it came here, and why.
        #[serde(skip_serializing_if = "Option::is_none")]
        died: Option<Died>,
    },
    /// It ended in order.
    Stopped,
}

/// How an application ends a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Worked on.
    Ack,
    /// Rejected for good.
    Reject,
    /// Given back.
    Requeue,
}

/// The first entry of `x-death`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Died {
    pub queue: String,
    pub reason: String,
}

/// The file of one application.
pub struct Records(File);

impl Records {
    /// A new file, which begins with `started`.
    pub fn create(path: &Path, app: &str) -> std::io::Result<Self> {
        let mut records = Self(File::create(path)?);
        records.write([Event::Started { app: app.to_owned(), unix_ns: now() }])?;
        Ok(records)
    }

    /// Records events of one moment; they are with the operating system when this returns, so that `kill -9` takes none of them.
    pub fn write(&mut self, events: impl IntoIterator<Item = Event>) -> std::io::Result<()> {
        #[derive(Serialize)]
        struct Line {
            t: u64,
            #[serde(flatten)]
            event: Event,
        }
        let t = now();
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, &Line { t, event })?;
            lines.push(b'\n');
        }
        self.0.write_all(&lines)
    }
}

/// Nanoseconds since 1970: the clock that all programs of one machine share.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
