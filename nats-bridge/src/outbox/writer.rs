//! The one thread that writes the file: what came meanwhile goes into one transaction, so that many share one fsync.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::record::{self, Refusal};
use super::shared::{Shared, Totals};
use super::store::{Change, Store};
use crate::error::{Error, ErrorKind, Result};

/// How many commands one transaction takes.
const BATCH: usize = 512;

pub(super) enum Command {
    /// Entries that are put together, or none of them.
    Put {
        entries: Vec<Entry>,
        done: oneshot::Sender<Result<Vec<u64>>>,
    },
    Remove {
        number: u64,
        size: u64,
    },
    Refuse {
        number: u64,
        refusal: Refusal,
    },
    Requeue {
        number: u64,
        done: oneshot::Sender<Result<u64>>,
    },
    Discard {
        number: u64,
        done: oneshot::Sender<Result<()>>,
    },
    SentBelow {
        number: u64,
        done: oneshot::Sender<Result<()>>,
    },
    /// Does what could not be done before, if there is something.
    Again,
    /// Closes the file.
    Close {
        done: oneshot::Sender<()>,
    },
}

pub(super) struct Entry {
    pub subject: String,
    pub put_ms: u64,
    pub bytes: Vec<u8>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    path: PathBuf,
    next: u64,
    // What nobody waits for and could not be written yet; at most one for each entry.
    owed: Vec<Owed>,
}

enum Owed {
    Remove { number: u64, size: u64 },
    Refuse { number: u64, refusal: Refusal },
}

// What a transaction will have done for those who wait.
enum Waiting {
    Put { entries: Vec<(u64, String, u64)>, done: oneshot::Sender<Result<Vec<u64>>> },
    Requeue { to: u64, subject: String, put_ms: u64, done: oneshot::Sender<Result<u64>> },
    Done(oneshot::Sender<Result<()>>),
}

impl Writer {
    pub fn new(shared: Arc<Shared>, path: PathBuf, next: u64) -> Self {
        Writer { shared, path, next, owed: Vec::new() }
    }

    /// Runs until it is told to close, or nobody can tell it anything any more.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut closing = None;
        while closing.is_none()
            && let Some(first) = commands.blocking_recv()
        {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = commands.try_recv()
            {
                batch.push(next);
            }
            closing = self.batch(batch);
        }
        if !self.owed.is_empty() {
            drop(self.batch(vec![Command::Again]));
        }
        self.shared.store().take();
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    fn batch(&mut self, commands: Vec<Command>) -> Option<oneshot::Sender<()>> {
        let mut closing = None;
        let mut totals = self.shared.totals();
        let mut next = self.next;
        let mut changes = Vec::new();
        let mut waiting = Vec::new();
        for command in commands {
            match command {
                Command::Remove { number, size } => self.owed.push(Owed::Remove { number, size }),
                Command::Refuse { number, refusal } => self.owed.push(Owed::Refuse { number, refusal }),
                Command::Again => {}
                Command::Close { done } => closing = Some(done),
                Command::SentBelow { number, done } => {
                    changes.push(Change::SentBelow(number));
                    waiting.push(Waiting::Done(done));
                }
                Command::Put { entries, done } => {
                    let size = entries.iter().map(|entry| entry.bytes.len() as u64).sum();
                    if let Err(error) = self.shared.room(&totals, entries.len() as u64, size) {
                        let _ = done.send(Err(error));
                        continue;
                    }
                    totals.waiting += entries.len() as u64;
                    totals.bytes += size;
                    let mut put = Vec::with_capacity(entries.len());
                    for Entry { subject, put_ms, bytes } in entries {
                        changes.push(Change::Put { number: next, bytes });
                        put.push((next, subject, put_ms));
                        next += 1;
                    }
                    waiting.push(Waiting::Put { entries: put, done });
                }
                Command::Requeue { number, done } => match self.refused(number) {
                    Ok((subject, put_ms, _)) => {
                        changes.push(Change::Requeue { from: number, to: next });
                        waiting.push(Waiting::Requeue { to: next, subject, put_ms, done });
                        totals.refused = totals.refused.saturating_sub(1);
                        totals.waiting += 1;
                        next += 1;
                    }
                    Err(error) => drop(done.send(Err(error))),
                },
                Command::Discard { number, done } => match self.refused(number) {
                    Ok((_, _, size)) => {
                        changes.push(Change::Discard { number });
                        waiting.push(Waiting::Done(done));
                        totals.refused = totals.refused.saturating_sub(1);
                        totals.bytes = totals.bytes.saturating_sub(size);
                    }
                    Err(error) => drop(done.send(Err(error))),
                },
            }
        }
        for owed in &self.owed {
            totals.waiting = totals.waiting.saturating_sub(1);
            match owed {
                Owed::Remove { number, size } => {
                    totals.bytes = totals.bytes.saturating_sub(*size);
                    changes.push(Change::Remove { number: *number });
                }
                Owed::Refuse { number, refusal } => {
                    totals.refused += 1;
                    changes.push(Change::Refuse { number: *number, refusal: refusal.clone() });
                }
            }
        }
        match self.write(&changes) {
            Ok(()) => {
                self.next = next;
                self.owed.clear();
                self.written(totals, waiting);
            }
            Err(error) => {
                tracing::error!(%error, "the outbox cannot be written");
                metrics::counter!("natsbridge_outbox_write_errors_total", "reason" => error.kind().name()).increment(1);
                for waiting in waiting {
                    waiting.failed(&error);
                }
            }
        }
        closing
    }

    fn written(&self, totals: Totals, waiting: Vec<Waiting>) {
        let mut answers: Vec<Box<dyn FnOnce()>> = Vec::with_capacity(waiting.len());
        {
            let mut lanes = self.shared.lanes();
            for waiting in waiting {
                match waiting {
                    Waiting::Put { entries, done } => {
                        for (number, subject, put_ms) in &entries {
                            lanes.push(subject, *number, *put_ms);
                        }
                        let numbers = entries.into_iter().map(|(number, _, _)| number).collect();
                        answers.push(Box::new(move || drop(done.send(Ok(numbers)))));
                    }
                    Waiting::Requeue { to, subject, put_ms, done } => {
                        lanes.push(&subject, to, put_ms);
                        answers.push(Box::new(move || drop(done.send(Ok(to)))));
                    }
                    Waiting::Done(done) => answers.push(Box::new(move || drop(done.send(Ok(()))))),
                }
            }
        }
        self.shared.set_totals(totals);
        for answer in answers {
            answer();
        }
        self.shared.changed.notify_one();
    }

    // A file that could not be written is closed by redb; it is opened again when something is to be written next.
    fn write(&self, changes: &[Change]) -> Result<()> {
        // Opened again also for those who only read it.
        if changes.is_empty() && self.shared.store().is_some() {
            return Ok(());
        }
        let written = catch_unwind(AssertUnwindSafe(|| {
            let store = self.shared.store().clone();
            let store = match store {
                Some(store) => store,
                None => {
                    let store = Arc::new(Store::open(&self.path)?.0);
                    *self.shared.store() = Some(store.clone());
                    store
                }
            };
            if changes.is_empty() { Ok(()) } else { store.apply(changes) }
        }));
        let written = written.unwrap_or_else(|_| {
            let why = "the file's contents contradict each other";
            Err(Error::new(ErrorKind::Corrupt).with("path", self.path.display()).with("why", why))
        });
        if written.is_err() {
            self.shared.store().take();
        }
        written
    }

    fn refused(&self, number: u64) -> Result<(String, u64, u64)> {
        let store = self.shared.store().clone();
        let store = store.ok_or_else(|| Error::new(ErrorKind::Disk).with("path", self.path.display()))?;
        match store.read_refused(number)? {
            Some((record, _, size)) => Ok((record.message.subject.to_string(), record.put_ms, size)),
            None => Err(Error::new(ErrorKind::NotFound).with("entry", number).with("why", "none was refused under it")),
        }
    }
}

impl Waiting {
    fn failed(self, error: &Error) {
        match self {
            Waiting::Put { done, .. } => drop(done.send(Err(error.repeated()))),
            Waiting::Requeue { done, .. } => drop(done.send(Err(error.repeated()))),
            Waiting::Done(done) => drop(done.send(Err(error.repeated()))),
        }
    }
}

/// The entry of a message that has its id.
pub(super) fn entry(message: &crate::message::Message, id: &str, put_ms: u64) -> Entry {
    Entry { subject: message.subject.to_string(), put_ms, bytes: record::encode(message, id, put_ms) }
}
