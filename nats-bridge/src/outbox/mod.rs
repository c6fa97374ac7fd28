//! Messages that wait on disk until NATS has them.
//!
//! [`Outbox::put`] returns when a message is on disk (fsync), whether NATS is there or not. What was put is published in the
//! order of its subject, with the id that it was given there, and is removed once JetStream has confirmed it. After a crash of
//! the process or of the machine the next one goes on with the same file and the same ids.
//!
//! - *Order*: of one subject one message is under way at a time, and the next follows its confirm, whatever happens between;
//!   several subjects go at once. One subject therefore does one message for each round trip.
//! - *Bounds*: [`OutboxConfig::max_entries`] and [`OutboxConfig::max_bytes`], of what waits and what was refused together. At a
//!   bound `put` fails with `OutboxFull`, and nothing of it was accepted.
//! - *What passes by itself* (no connection, no leader, no answer, a full stream) is tried again for ever, after pauses that grow
//!   to [`OutboxConfig::max_pause`]; it keeps its place, and its subject waits.
//! - *What does not* (too large, no stream for [`OutboxConfig::no_stream_wait`], no permission, does not fit its schema) is
//!   **refused**: it is kept in the file, listed by [`Outbox::refused`], counted, and the next one of its subject goes on. It leaves by
//!   [`Outbox::retry`] (to the end of its subject) or [`Outbox::discard`], and by nothing else.
//! - *Once*: a message that may have been stored is sent again with its id, which its stream drops within its duplicate window (2
//!   minutes unless set otherwise). Is the window over, as after an outage in which a confirm was lost, the stream is searched for
//!   the id first. Where that cannot tell (a work queue or interest stream, from which handled messages are gone), the message is
//!   published, a warning names it, and `natsbridge_outbox_possible_duplicates_total` counts it: consumers that must not handle
//!   it twice need a [ledger](crate::ledger).
//!
//! Payloads lie in the file as they were put: with [`PublishConfig::encrypt`](crate::PublishConfig::encrypt) they are encrypted when they
//! are sent, and checked against their schemas then as well.
//!
//! ```no_run
//! # async fn example() -> nats_bridge::Result<()> {
//! use std::time::Duration;
//! use nats_bridge::outbox::{Outbox, OutboxConfig};
//! use nats_bridge::{Bridge, Message};
//!
//! let outbox = Outbox::open(OutboxConfig::new("orders.outbox")).await?;
//! outbox.put(Message::new("orders.new", "17").id("order-17")).await?; // on disk
//! let bridge = Bridge::connect("nats://127.0.0.1:4222").await?;
//! outbox.start(&bridge).await?; // from now on it is published
//! outbox.close(Duration::from_secs(5)).await
//! # }
//! ```

mod lanes;
mod lookup;
#[cfg(feature = "postgres")]
pub mod postgres;
mod record;
mod replay;
mod send;
mod shared;
mod store;
mod verdict;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Landed, Result};
use crate::message::Message;
use crate::message_id::{Generator, MessageId, check_region};
use replay::Replay;
use shared::Shared;
use store::Store;
use writer::{Command, Writer};

/// Where the outbox is and how much it may hold. All fields but the path have defaults; see each.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxConfig {
    /// The file; it is made if it does not exist, in a directory that does. Of one process at a time.
    pub path: PathBuf,
    /// The most entries, waiting and refused together; default 100 000. Some 100 bytes of memory for each.
    pub max_entries: u64,
    /// The most bytes of those; default 256 MiB. The file itself is larger: pages that are not full, and space that is reused and not
    /// given back before the outbox is opened empty.
    pub max_bytes: u64,
    /// How many messages are under way at once, of as many subjects; 1 to 32 768; default 256.
    pub max_in_flight: usize,
    /// The pause after the first failure of a message that may pass; doubled for each further one and drawn evenly from zero to
    /// that; default 200 ms.
    pub first_pause: Duration,
    /// The longest pause; default 15 s.
    pub max_pause: Duration,
    /// For how long "no stream takes the subject" is taken for something that passes; default 60 s.
    pub no_stream_wait: Duration,
    /// A word that generated ids start with, as [`Config::region`](crate::Config::region); default none.
    pub region: Option<String>,
}

/// A bounded queue of messages on disk, in front of JetStream. Clones share it.
///
/// Dropped without [`Outbox::close`], it ends at once; what waits stays in the file.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    ids: Generator,
    replay: Mutex<Option<(DropGuard, tokio::task::JoinHandle<()>)>>,
    closed: CancellationToken,
}

/// A message that is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Its number in the outbox; numbers rise.
    pub number: u64,
    /// The id that it will be published with, also when it was generated.
    pub id: String,
}

/// A message that was refused for good, and stays until it is retried or discarded.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Its number in the outbox.
    pub number: u64,
    /// The message, with its id.
    pub message: Message,
    /// The id.
    pub id: String,
    /// When it was put.
    pub put_at: SystemTime,
    /// When it was refused.
    pub refused_at: SystemTime,
    /// The [kind](ErrorKind::name) of the error, such as `too_large`.
    pub reason: String,
    /// The error's text.
    pub why: String,
    /// Whether an earlier attempt may have been stored nevertheless.
    pub landed: Landed,
}

/// What an outbox holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxStatus {
    /// Entries that wait to be published or confirmed.
    pub waiting: u64,
    /// Entries that were refused.
    pub refused: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// How long ago the oldest that waits was put.
    pub oldest: Option<Duration>,
}

/// How many commands wait for the thread that writes; at the bound, callers wait.
const COMMANDS: usize = 1_024;

impl OutboxConfig {
    /// An outbox in this file, with default bounds.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        OutboxConfig {
            path: path.into(),
            max_entries: 100_000,
            max_bytes: 256 << 20,
            max_in_flight: 256,
            first_pause: Duration::from_millis(200),
            max_pause: Duration::from_secs(15),
            no_stream_wait: Duration::from_secs(60),
            region: None,
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |field: &'static str, why: &'static str| Err(Error::setting(field, why));
        match self {
            c if c.path.file_name().is_none() => wrong("path", "it names no file"),
            c if c.max_entries == 0 => wrong("max_entries", "it is at least 1"),
            c if c.max_bytes == 0 => wrong("max_bytes", "it is at least 1"),
            c if c.max_in_flight == 0 || c.max_in_flight > 32_768 => wrong("max_in_flight", "it is 1 to 32768"),
            c if c.first_pause.is_zero() => wrong("first_pause", "it is above 0"),
            c if c.first_pause > c.max_pause => wrong("first_pause", "it is longer than the longest pause"),
            c => check_region(c.region.as_deref()),
        }
    }
}

impl Outbox {
    /// Opens the file, which is made if it does not exist, and looks all of it through. NATS is not needed for it.
    ///
    /// # Errors
    /// - `Config`: a setting is out of range.
    /// - `InUse`: another process has it open, or this one has already.
    /// - `Corrupt`: it is damaged, or is not an outbox. It is left as it is.
    /// - `Disk`: it cannot be read or written, or its directory is not there.
    pub async fn open(config: OutboxConfig) -> Result<Outbox> {
        config.check()?;
        let path = config.path.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&path)).await;
        let (store, found) = opened.unwrap_or_else(|_| {
            let why = "the file's contents contradict each other";
            Err(Error::new(ErrorKind::Corrupt).with("path", config.path.display()).with("why", why))
        })?;
        let ids = Generator::new(config.region.as_deref());
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let path = config.path.clone();
        let shared = Arc::new(Shared::new(config, store, &found));
        let writer = Writer::new(shared.clone(), path.clone(), found.next);
        std::thread::Builder::new()
            .name("nats-bridge-outbox".into())
            .spawn(move || writer.run(receiver))
            .map_err(|e| Error::new(ErrorKind::Disk).with("path", path.display()).with("why", &e).because(e))?;
        let inner = Inner { shared, commands, ids, replay: Mutex::new(None), closed: CancellationToken::new() };
        Ok(Outbox { inner: Arc::new(inner) })
    }

    /// Publishes what waits, and what is put from now on, over this connection, by a publisher with the bounds of
    /// [`Config::publish`](crate::Config::publish).
    ///
    /// # Errors
    /// `Conflict`: it was started before. `Closed`: the outbox or the connection was closed. Else as [`Bridge::publisher`].
    pub async fn start(&self, bridge: &Bridge) -> Result<()> {
        self.open_still()?;
        let publish = crate::PublishConfig {
            // It waits on disk instead.
            breaker: None,
            max_in_flight: self.inner.shared.config.max_in_flight,
            ..bridge.config().publish.clone()
        };
        let publisher = bridge.publisher(publish).await?;
        let mut running = self.inner.replay.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|(_, task)| !task.is_finished()) {
            return Err(Error::new(ErrorKind::Conflict).with("outbox", "it was started before"));
        }
        let stop = CancellationToken::new();
        let replay = Replay::new(self.inner.shared.clone(), self.inner.commands.clone(), bridge.clone(), publisher);
        let task = tokio::spawn(replay.run(stop.clone()));
        *running = Some((stop.drop_guard(), task));
        Ok(())
    }

    /// Takes one message: when this returns, it is on disk, and will be published. Calls that come together share one fsync.
    ///
    /// # Errors
    /// - `InvalidMessage`: it cannot be sent as it is, or says that it carries no id.
    /// - `OutboxFull`: the outbox holds as much as it may.
    /// - `Disk`, `Corrupt`: the file cannot be written.
    /// - `Closed`: the outbox was closed.
    ///
    /// Nothing was accepted in any of these cases.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped after its first poll, the message may or may not be taken.
    pub async fn put(&self, message: Message) -> Result<Queued> {
        let mut queued = self.put_many([message]).await?;
        queued.pop().ok_or_else(|| Error::new(ErrorKind::Closed))
    }

    /// Takes several messages in their order, all of them or none.
    ///
    /// # Errors
    /// As [`Outbox::put`].
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped after its first poll, all or none may be taken.
    pub async fn put_many(&self, messages: impl IntoIterator<Item = Message>) -> Result<Vec<Queued>> {
        self.open_still()?;
        let now = shared::now_ms();
        let (mut entries, mut ids) = (Vec::new(), Vec::new());
        for message in messages {
            message.check()?;
            let id = match &message.id {
                MessageId::Given(id) => id.clone(),
                MessageId::Generated => self.inner.ids.generate(),
                MessageId::None => {
                    let why = "an outbox needs ids: what was sent before a crash is sent again";
                    return Err(Error::new(ErrorKind::InvalidMessage)
                        .with("subject", &message.subject)
                        .with("why", why));
                }
            };
            entries.push(writer::entry(&message, &id, now));
            ids.push(id);
        }
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let put = self.ask(|done| Command::Put { entries, done }).await;
        let result = match &put {
            Ok(_) => "ok",
            Err(error) => error.kind().name(),
        };
        let name = self.inner.shared.name.clone();
        metrics::counter!("natsbridge_outbox_put_total", "outbox" => name, "result" => result)
            .increment(ids.len() as u64);
        Ok(put?.into_iter().zip(ids).map(|(number, id)| Queued { number, id }).collect())
    }

    /// What it holds at present.
    pub fn status(&self) -> OutboxStatus {
        self.inner.shared.status()
    }

    /// At most `limit` of those that were refused, the oldest first, from number `from` on.
    ///
    /// # Errors
    /// `Disk`, `Corrupt`: the file cannot be read. `Closed`: the outbox was closed.
    pub async fn refused(&self, from: u64, limit: usize) -> Result<Vec<Refused>> {
        self.open_still()?;
        let store = self.inner.shared.store().clone().ok_or_else(|| self.unreadable())?;
        let read = tokio::task::spawn_blocking(move || {
            let mut refused = Vec::new();
            for number in store.refused(from, limit)? {
                if let Some((record, refusal, _)) = store.read_refused(number)? {
                    refused.push(Refused {
                        number,
                        id: record.id,
                        message: record.message,
                        put_at: at(record.put_ms),
                        refused_at: at(refusal.at_ms),
                        reason: refusal.reason,
                        why: refusal.why,
                        landed: if refusal.unknown { Landed::Unknown } else { Landed::No },
                    });
                }
            }
            Ok(refused)
        });
        read.await.unwrap_or_else(|_| Err(self.unreadable()))
    }

    /// Lets one that was refused wait again, behind all others of its subject, with its id; gives its new number.
    ///
    /// # Errors
    /// `NotFound`: none was refused under that number. `Disk`, `Corrupt`, `Closed`: as [`Outbox::put`].
    pub async fn retry(&self, number: u64) -> Result<u64> {
        self.open_still()?;
        self.ask(|done| Command::Requeue { number, done }).await
    }

    /// Gives up one that was refused: it is in the file no longer. What it was, [`Outbox::refused`] told.
    ///
    /// # Errors
    /// As [`Outbox::retry`].
    pub async fn discard(&self, number: u64) -> Result<()> {
        self.open_still()?;
        self.ask(|done| Command::Discard { number, done }).await
    }

    /// Waits until nothing waits; what is put meanwhile counts too, what was refused does not.
    ///
    /// # Errors
    /// `Timeout`: something waits still after `budget`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn drain(&self, budget: Duration) -> Result<()> {
        let mut totals = self.inner.shared.watch();
        let empty = totals.wait_for(|totals| totals.waiting == 0);
        let drained = matches!(tokio::time::timeout(budget, empty).await, Ok(Ok(_)));
        match drained {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Timeout).with("waiting", self.status().waiting)),
        }
    }

    /// Takes nothing more, waits until nothing waits or `budget` is over, and closes the file. Whoever closes it again waits at most as
    /// long until it is closed, and is told nothing.
    ///
    /// # Errors
    /// `Timeout`: something waits still; it is in the file, and goes when that is opened and started again.
    pub async fn close(&self, budget: Duration) -> Result<()> {
        let again = self.inner.closed.is_cancelled();
        self.inner.closed.cancel();
        if again {
            let _ = tokio::time::timeout(budget, self.inner.commands.closed()).await;
        }
        let running = self.inner.replay.lock().unwrap_or_else(PoisonError::into_inner).take();
        let drained = match &running {
            _ if again => Ok(()),
            Some(_) => self.drain(budget).await,
            None if self.status().waiting == 0 => Ok(()),
            None => Err(Error::new(ErrorKind::Timeout).with("waiting", self.status().waiting)),
        };
        if let Some((stop, task)) = running {
            drop(stop);
            let _ = task.await;
        }
        let (done, closed) = oneshot::channel();
        if self.inner.commands.send(Command::Close { done }).await.is_ok() {
            let _ = closed.await;
        }
        drained
    }

    fn open_still(&self) -> Result<()> {
        match self.inner.closed.is_cancelled() {
            true => Err(self.closed()),
            false => Ok(()),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (done, answer) = oneshot::channel();
        self.inner.commands.send(command(done)).await.map_err(|_| self.closed())?;
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed).with("outbox", self.inner.shared.config.path.display())
    }

    fn unreadable(&self) -> Error {
        let why = "it could not be written, and is opened again by the next put";
        Error::new(ErrorKind::Disk).with("path", self.inner.shared.config.path.display()).with("why", why)
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = &self.inner.shared.config.path;
        f.debug_struct("Outbox").field("path", path).field("status", &self.status()).finish_non_exhaustive()
    }
}

fn at(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}
