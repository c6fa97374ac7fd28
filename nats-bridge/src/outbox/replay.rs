//! The task that publishes what waits, and takes out what JetStream has.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::record::{Record, Refusal};
use super::send::Sender;
use super::shared::{Shared, now_ms};
use super::verdict::{Verdict, verdict};
use super::writer::Command;
use crate::bridge::Bridge;
use crate::error::{Error, Landed, Result};
use crate::publish::Publisher;

/// By how many numbers the mark on disk, up to which entries may have been sent, goes ahead of what is sent.
const MARK_AHEAD: u64 = 1_024;

pub(super) struct Replay {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    bridge: Bridge,
    sender: Arc<Sender>,
    // On disk: whoever opens the file next knows that what has a smaller number may have been sent.
    marked_below: u64,
    // Of entries that failed and wait.
    troubles: HashMap<u64, Trouble>,
    sending: JoinSet<Sent>,
    // Which entries those are.
    out: HashMap<u64, Arc<str>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    // When it was sent first, in milliseconds since 1970, if that may have been stored.
    sent_ms: Option<u64>,
    no_stream_since: Option<Instant>,
}

struct Sent {
    subject: Arc<str>,
    number: u64,
    size: u64,
    started_ms: u64,
    outcome: Result<&'static str>,
}

impl Replay {
    pub fn new(shared: Arc<Shared>, commands: mpsc::Sender<Command>, bridge: Bridge, publisher: Publisher) -> Self {
        let (marked_below, name) = (shared.sent_before.load(Ordering::Relaxed), shared.name.clone());
        let sender = Arc::new(Sender::new(bridge.clone(), publisher, name));
        Replay {
            shared,
            commands,
            bridge,
            sender,
            marked_below,
            troubles: HashMap::new(),
            sending: JoinSet::new(),
            out: HashMap::new(),
        }
    }

    /// Runs until it is stopped, or the connection is closed.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut connection = self.bridge.connection();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = *connection.borrow_and_update();
            if now.closed {
                tracing::warn!(outbox = self.shared.name, "the connection was closed; what waits stays on disk");
                return self.put_back().await;
            }
            // While nobody is connected nothing is sent, so that what waits is known not to be stored.
            if now.connected {
                self.send_more().await;
            }
            let due = self.shared.lanes().due();
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.put_back().await,
                Some(sent) = self.sending.join_next() => match sent {
                    Ok(sent) => self.sent(sent).await,
                    Err(error) => tracing::error!(%error, "an entry of the outbox was given up; it goes when it is opened again"),
                },
                () = self.shared.changed.notified() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                _ = connection.changed() => {}
                _ = tick.tick() => {
                    self.shared.show_age();
                    // Full: the writer has something to do anyway.
                    let _ = self.commands.try_send(Command::Again);
                }
            }
        }
    }

    async fn send_more(&mut self) {
        let room = self.shared.config.max_in_flight.saturating_sub(self.sending.len());
        let mut next = Vec::new();
        {
            let mut lanes = self.shared.lanes();
            let now = Instant::now();
            while next.len() < room
                && let Some(entry) = lanes.next(now)
            {
                next.push(entry);
            }
        }
        if next.is_empty() {
            return;
        }
        match self.records(&next).await {
            Ok(mut records) => {
                for (subject, number) in next {
                    match records.remove(&number) {
                        Some(record) => self.send(subject, number, record),
                        // It was taken out before; numbers come from what is in the file.
                        None => self.shared.lanes().settled(&subject),
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, outbox = self.shared.name, "the outbox cannot be read");
                for (subject, _) in next {
                    self.pause(&subject);
                }
            }
        }
    }

    // Says on disk that these may have been sent, then reads them.
    async fn records(&mut self, next: &[(Arc<str>, u64)]) -> Result<HashMap<u64, Record>> {
        let numbers: Vec<u64> = next.iter().map(|(_, number)| *number).collect();
        let end = numbers.iter().max().map_or(0, |last| last + 1);
        if end > self.marked_below {
            let mark = end + MARK_AHEAD;
            self.mark(mark).await?;
        }
        let store = self.shared.store().clone().ok_or_else(|| Error::new(crate::ErrorKind::Disk))?;
        let read = tokio::task::spawn_blocking(move || store.read(&numbers)).await;
        let read = read.unwrap_or_else(|e| Err(Error::new(crate::ErrorKind::Corrupt).because(e)))?;
        Ok(read.into_iter().collect())
    }

    async fn mark(&mut self, number: u64) -> Result<()> {
        let (done, marked) = oneshot::channel();
        let closed = || Error::new(crate::ErrorKind::Closed);
        self.commands.send(Command::SentBelow { number, done }).await.map_err(|_| closed())?;
        marked.await.unwrap_or_else(|_| Err(closed()))?;
        self.marked_below = number;
        Ok(())
    }

    fn send(&mut self, subject: Arc<str>, number: u64, record: Record) {
        let sent_ms = match self.troubles.get(&number).and_then(|trouble| trouble.sent_ms) {
            Some(sent_ms) => Some(sent_ms),
            None => (number < self.sent_before()).then_some(record.put_ms),
        };
        let sender = self.sender.clone();
        self.out.insert(number, subject.clone());
        let size = size(&record);
        self.sending.spawn(async move {
            let started_ms = now_ms();
            let outcome = sender.send(&record, sent_ms).await;
            Sent { subject, number, size, started_ms, outcome }
        });
    }

    async fn sent(&mut self, sent: Sent) {
        let Sent { subject, number, size, started_ms, outcome } = sent;
        self.out.remove(&number);
        let count = |name: &'static str, label: &'static str, value: &'static str| {
            metrics::counter!(name, "outbox" => self.shared.name.clone(), label => value).increment(1);
        };
        let error = match outcome {
            Ok(result) => {
                count("natsbridge_outbox_sent_total", "result", result);
                self.troubles.remove(&number);
                self.shared.lanes().settled(&subject);
                self.tell(Command::Remove { number, size }).await;
                return;
            }
            Err(error) => error,
        };
        let sent_before = number < self.sent_before();
        let trouble = self.troubles.entry(number).or_default();
        if error.landed() == Landed::Unknown {
            trouble.sent_ms.get_or_insert(started_ms);
        }
        let mut verdict = verdict(&error);
        match verdict {
            Verdict::NoStream => {
                let since = *trouble.no_stream_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.shared.config.no_stream_wait {
                    verdict = Verdict::Refused;
                }
            }
            _ => trouble.no_stream_since = None,
        }
        if verdict == Verdict::Refused {
            let unknown = trouble.sent_ms.is_some() || sent_before;
            tracing::error!(%error, outbox = self.shared.name, number, "an entry of the outbox is refused; it is kept, and listed");
            count("natsbridge_outbox_refused_total", "reason", error.kind().name());
            let refusal =
                Refusal { at_ms: now_ms(), reason: error.kind().name().to_owned(), why: error.to_string(), unknown };
            self.troubles.remove(&number);
            self.shared.lanes().settled(&subject);
            self.tell(Command::Refuse { number, refusal }).await;
            return;
        }
        tracing::warn!(%error, outbox = self.shared.name, number, "an entry of the outbox waits");
        count("natsbridge_outbox_retries_total", "reason", error.kind().name());
        self.pause(&subject);
    }

    fn sent_before(&self) -> u64 {
        self.shared.sent_before.load(Ordering::Relaxed)
    }

    fn pause(&self, subject: &Arc<str>) {
        let config = &self.shared.config;
        self.shared.lanes().failed(subject, |failures| {
            let grown =
                config.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(config.max_pause);
            Instant::now() + grown.mul_f64(rand::random())
        });
    }

    // The writer is gone only when the outbox is.
    async fn tell(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    // What is under way is not waited for: it may have been sent, which the file says. The rest was not.
    async fn put_back(mut self) {
        // Those that are done already are taken out; the others would be sent again for nothing.
        while let Some(sent) = self.sending.try_join_next() {
            if let Ok(sent) = sent {
                self.sent(sent).await;
            }
        }
        self.sending.abort_all();
        while let Some(sent) = self.sending.join_next().await {
            if let Ok(sent) = sent {
                self.sent(sent).await;
            }
        }
        // For who starts it again.
        self.shared.sent_before.fetch_max(self.marked_below, Ordering::Relaxed);
        for (_, subject) in self.out.drain() {
            self.shared.lanes().failed(&subject, |_| Instant::now());
        }
    }
}

fn size(record: &Record) -> u64 {
    super::record::encode(&record.message, &record.id, record.put_ms).len() as u64
}
