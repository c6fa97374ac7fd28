//! The log of changes: a stream that is only appended to, so that it is known who did what, also after restarts and long after.
//!
//! Whoever writes waits for JetStream for half a second; an entry that it does not take then waits, in order, until it does, as the changes
//! themselves do not wait for the log: `rollback` has to work while NATS is away. At the bound of what waits an entry is given up, with a warning.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use nats_bridge::Bridge;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use ulid::Ulid;

use crate::control_api::{LogEntry, Outcome};

/// The stream.
pub const STREAM: &str = "BRIDGE_LOG";
const SUBJECT: &str = "bridge.log";
/// Entries that are kept; the oldest go first.
const KEPT: i64 = 10_000;
/// Entries that wait for JetStream.
const WAITING: usize = 1_024;
/// How long a writer waits for its entry to be stored.
const STORED: Duration = Duration::from_millis(500);
/// How long JetStream may take for one thing.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that is read at once.
pub const READ_MOST: u64 = 1_000;

impl super::Cutover {
    /// Writes what became of something that was asked for.
    pub(super) async fn log(&self, what: &str, outcome: Outcome, by: &str, from: &str, reason: &str, detail: String) {
        let state = self.state.lock().await.state.clone();
        let changes = matches!(outcome, Outcome::Done);
        let entry = LogEntry {
            number: 0,
            at: super::now(),
            what: what.to_owned(),
            outcome,
            by: by.to_owned(),
            from: from.to_owned(),
            reason: reason.to_owned(),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            phase: state.phase,
            weight_percent: state.weight_percent,
            epoch: state.epoch,
            forced: changes && (state.forced && what.starts_with("weight") || detail == super::UNREHEARSED),
            automatic: by == super::watch::ITSELF,
            detail,
        };
        // Without NATS for good there is nobody to write it.
        if !self.shared.nats_is_lost() && !self.journal.note(entry).await {
            self.shared.warn("log_full", "an entry of the log was given up: NATS takes none".to_owned());
        }
    }
}

struct Job {
    entry: LogEntry,
    stored: oneshot::Sender<()>,
}

/// Writes and reads the log.
pub struct Journal {
    bridge: Bridge,
    jobs: mpsc::Sender<Job>,
}

impl Journal {
    /// Makes the stream where there is none, and begins to write; ends when it is dropped.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn open(bridge: Bridge) -> Result<Self, String> {
        let config = |num_replicas| Config {
            name: STREAM.to_owned(),
            description: Some("nats-bridge: who changed what, when and why".to_owned()),
            subjects: vec![SUBJECT.to_owned()],
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            max_messages: KEPT,
            storage: StorageType::File,
            deny_delete: true,
            deny_purge: true,
            num_replicas,
            ..Config::default()
        };
        let jetstream = bridge.jetstream();
        if jetstream.get_stream(STREAM).await.is_err() && jetstream.create_stream(config(3)).await.is_err() {
            let made = jetstream.create_stream(config(1)).await;
            made.map_err(|error| format!("the stream {STREAM} cannot be made: {error}"))?;
        }
        let (jobs, waiting) = mpsc::channel(WAITING);
        tokio::spawn(write(bridge.clone(), waiting));
        Ok(Self { bridge, jobs })
    }

    /// Appends an entry. False when so many wait already that it is given up.
    pub async fn note(&self, entry: LogEntry) -> bool {
        let (stored, heard) = oneshot::channel();
        if self.jobs.try_send(Job { entry, stored }).is_err() {
            return false;
        }
        let _ = timeout(STORED, heard).await;
        true
    }

    /// The last entries, newest first.
    ///
    /// # Errors
    /// A text for people: what JetStream said.
    pub async fn last(&self, most: u64) -> Result<Vec<LogEntry>, String> {
        let read = async {
            let stream = self.bridge.jetstream().get_stream(STREAM).await.map_err(|e| e.to_string())?;
            let state = &stream.cached_info().state;
            let first = state.first_sequence.max((state.last_sequence + 1).saturating_sub(most.min(READ_MOST)));
            let mut entries = Vec::new();
            for number in (first..=state.last_sequence).rev() {
                // One that has gone meanwhile.
                let Ok(message) = stream.get_raw_message(number).await else { continue };
                if let Ok(entry) = serde_json::from_slice::<LogEntry>(&message.payload) {
                    entries.push(LogEntry { number, ..entry });
                }
            }
            Ok(entries)
        };
        timeout(PATIENCE, read).await.unwrap_or_else(|_| Err("NATS did not answer in time".to_owned()))
    }
}

async fn write(bridge: Bridge, mut waiting: mpsc::Receiver<Job>) {
    while let Some(Job { entry, stored }) = waiting.recv().await {
        let Ok(payload) = serde_json::to_vec(&entry) else { continue };
        let mut headers = HeaderMap::new();
        // Sent again after a lost answer, it is stored once.
        headers.insert("Nats-Msg-Id", Ulid::new().to_string());
        let mut wait = Duration::from_millis(100);
        loop {
            let sent = async {
                let jetstream = bridge.jetstream();
                let sent = jetstream.publish_with_headers(SUBJECT, headers.clone(), payload.clone().into()).await;
                sent.map_err(|e| e.to_string())?.await.map_err(|e| e.to_string())
            };
            match timeout(PATIENCE, sent).await {
                Ok(Ok(_)) => break,
                Ok(Err(error)) => tracing::debug!(error, "an entry of the log waits"),
                Err(_) => tracing::debug!("an entry of the log waits"),
            }
            // The sidecar has ended.
            if waiting.is_closed() {
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(PATIENCE);
        }
        let _ = stored.send(());
    }
}
