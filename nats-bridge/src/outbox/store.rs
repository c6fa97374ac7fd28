//! The file: entries that wait, entries that were refused, and up to which number entries may have been sent.

use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, TableHandle};

use super::record::{self, Record, Refusal};
use crate::error::{Error, ErrorKind, Result};

const META: TableDefinition<&str, u64> = TableDefinition::new("nats-bridge.outbox.meta");
const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("nats-bridge.outbox.entries");
const REFUSED: TableDefinition<u64, &[u8]> = TableDefinition::new("nats-bridge.outbox.refused");
const REFUSALS: TableDefinition<u64, &[u8]> = TableDefinition::new("nats-bridge.outbox.refusals");

const FORMAT: &str = "format";
const NEXT: &str = "next";
const SENT_BELOW: &str = "sent_below";
const FORMAT_1: u64 = 1;
/// redb's default is 1 GiB.
const CACHE: usize = 16 << 20;

/// What one transaction does.
#[derive(Debug)]
pub(super) enum Change {
    Put {
        number: u64,
        bytes: Vec<u8>,
    },
    /// It is stored in JetStream.
    Remove {
        number: u64,
    },
    Refuse {
        number: u64,
        refusal: Refusal,
    },
    /// A refused one waits again, at the end.
    Requeue {
        from: u64,
        to: u64,
    },
    Discard {
        number: u64,
    },
    /// Entries with a smaller number may have been sent.
    SentBelow(u64),
}

/// What the file holds when it is opened.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Number, subject and time of what waits, in order.
    pub waiting: Vec<(u64, String, u64)>,
    pub refused: u64,
    pub bytes: u64,
    pub next: u64,
    pub sent_below: u64,
}

pub(super) struct Store {
    path: PathBuf,
    database: Database,
}

impl Store {
    /// Opens the file, which is made if it does not exist, and looks all of it through.
    pub fn open(path: &Path) -> Result<(Store, Found)> {
        let is_new = !path.exists();
        let mut database =
            Database::builder().set_cache_size(CACHE).create(path).map_err(|e| error(path, "open", e.into()))?;
        let read = |e: redb::Error| error(path, "read", e);
        if is_new {
            sync_directory(path)?;
        } else if !database.check_integrity().map_err(|e| read(e.into()))? {
            tracing::warn!(path = %path.display(), "the outbox's file was not closed in order and has been repaired");
        }
        let found = begin(&database, path)?;
        if found.bytes == 0 {
            // The file does not shrink by itself.
            database.compact().map_err(|e| error(path, "compact", e.into()))?;
        }
        Ok((Store { path: path.to_owned(), database }, found))
    }

    /// Does all of it in one transaction, and has it on disk when it returns; on an error nothing of it was done.
    pub fn apply(&self, changes: &[Change]) -> Result<()> {
        self.transact(changes).map_err(|e| error(&self.path, "write", e))
    }

    fn transact(&self, changes: &[Change]) -> std::result::Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let mut entries = transaction.open_table(ENTRIES)?;
            let mut refused = transaction.open_table(REFUSED)?;
            let mut refusals = transaction.open_table(REFUSALS)?;
            for change in changes {
                match change {
                    Change::Put { number, bytes } => {
                        entries.insert(number, &bytes[..])?;
                        meta.insert(NEXT, number + 1)?;
                    }
                    Change::Remove { number } => drop(entries.remove(number)?),
                    Change::Refuse { number, refusal } => {
                        let bytes = entries.remove(number)?.map(|found| found.value().to_vec());
                        if let Some(bytes) = bytes {
                            refused.insert(number, &bytes[..])?;
                            refusals.insert(number, &record::encode_refusal(refusal)[..])?;
                        }
                    }
                    Change::Requeue { from, to } => {
                        let bytes = refused.remove(from)?.map(|found| found.value().to_vec());
                        refusals.remove(from)?;
                        if let Some(bytes) = bytes {
                            entries.insert(to, &bytes[..])?;
                            meta.insert(NEXT, to + 1)?;
                        }
                    }
                    Change::Discard { number } => {
                        refused.remove(number)?;
                        refusals.remove(number)?;
                    }
                    Change::SentBelow(number) => drop(meta.insert(SENT_BELOW, number)?),
                }
            }
        }
        // Durability is `Immediate` unless said otherwise: fsync.
        transaction.commit()?;
        Ok(())
    }

    /// The entries with these numbers, as far as they are there.
    pub fn read(&self, numbers: &[u64]) -> Result<Vec<(u64, Record)>> {
        let bytes = self.bytes_of(ENTRIES, numbers).map_err(|e| error(&self.path, "read", e))?;
        let whole = |(number, bytes): (u64, Vec<u8>)| Ok((number, decoded(&self.path, number, &bytes)?));
        bytes.into_iter().map(whole).collect()
    }

    /// One that was refused.
    pub fn read_refused(&self, number: u64) -> Result<Option<(Record, Refusal, u64)>> {
        let failed = |e| error(&self.path, "read", e);
        let record = self.bytes_of(REFUSED, &[number]).map_err(failed)?.pop();
        let refusal = self.bytes_of(REFUSALS, &[number]).map_err(failed)?.pop();
        let (Some((_, record)), Some((_, refusal))) = (record, refusal) else { return Ok(None) };
        let refusal = record::decode_refusal(&refusal).ok_or_else(|| damaged(&self.path, number))?;
        Ok(Some((decoded(&self.path, number, &record)?, refusal, record.len() as u64)))
    }

    /// The numbers of at most `limit` refused ones, in order, from `from` on.
    pub fn refused(&self, from: u64, limit: usize) -> Result<Vec<u64>> {
        let numbers = || -> std::result::Result<Vec<u64>, redb::Error> {
            let table = self.database.begin_read()?.open_table(REFUSED)?;
            let mut numbers = Vec::new();
            for entry in table.range(from..)?.take(limit) {
                numbers.push(entry?.0.value());
            }
            Ok(numbers)
        };
        numbers().map_err(|e| error(&self.path, "read", e))
    }

    fn bytes_of(
        &self,
        table: TableDefinition<u64, &'static [u8]>,
        numbers: &[u64],
    ) -> std::result::Result<Vec<(u64, Vec<u8>)>, redb::Error> {
        let table = self.database.begin_read()?.open_table(table)?;
        let mut found = Vec::with_capacity(numbers.len());
        for number in numbers {
            if let Some(bytes) = table.get(number)? {
                found.push((*number, bytes.value().to_vec()));
            }
        }
        Ok(found)
    }
}

// Makes the tables of a fresh file; of another one, looks whether it is ours, and what it holds.
fn begin(database: &Database, path: &Path) -> Result<Found> {
    let failed = |e: redb::Error| error(path, "read", e);
    let is_ours = || -> std::result::Result<Option<bool>, redb::Error> {
        let transaction = database.begin_read()?;
        let names: Vec<String> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
        if names.is_empty() {
            return Ok(None);
        }
        if !names.iter().any(|name| name == META.name()) {
            return Ok(Some(false));
        }
        let format = transaction.open_table(META)?.get(FORMAT)?.map(|format| format.value());
        Ok(Some(format == Some(FORMAT_1)))
    };
    match is_ours().map_err(failed)? {
        Some(true) => look(database, path),
        Some(false) => {
            let why = "it is not an outbox, or one of a newer version";
            Err(Error::new(ErrorKind::Corrupt).with("path", path.display()).with("why", why))
        }
        None => {
            let make = || -> std::result::Result<(), redb::Error> {
                let transaction = database.begin_write()?;
                transaction.open_table(META)?.insert(FORMAT, FORMAT_1)?;
                transaction.open_table(ENTRIES)?;
                transaction.open_table(REFUSED)?;
                transaction.open_table(REFUSALS)?;
                transaction.commit()?;
                Ok(())
            };
            make().map_err(|e| error(path, "write", e))?;
            Ok(Found::default())
        }
    }
}

fn look(database: &Database, path: &Path) -> Result<Found> {
    let failed = |e: redb::Error| error(path, "read", e);
    let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
    let meta = transaction.open_table(META).map_err(|e| failed(e.into()))?;
    let number = |name: &str| -> Result<u64> {
        Ok(meta.get(name).map_err(|e| failed(e.into()))?.map(|number| number.value()).unwrap_or(0))
    };
    let mut found = Found { next: number(NEXT)?, sent_below: number(SENT_BELOW)?, ..Found::default() };
    let entries = transaction.open_table(ENTRIES).map_err(|e| failed(e.into()))?;
    for entry in entries.iter().map_err(|e| failed(e.into()))? {
        let (number, bytes) = entry.map_err(|e| failed(e.into()))?;
        let record = decoded(path, number.value(), bytes.value())?;
        found.bytes += bytes.value().len() as u64;
        found.waiting.push((number.value(), record.message.subject.to_string(), record.put_ms));
    }
    let refused = transaction.open_table(REFUSED).map_err(|e| failed(e.into()))?;
    found.refused = refused.len().map_err(|e| failed(e.into()))?;
    for entry in refused.iter().map_err(|e| failed(e.into()))? {
        found.bytes += entry.map_err(|e| failed(e.into()))?.1.value().len() as u64;
    }
    Ok(found)
}

fn decoded(path: &Path, number: u64, bytes: &[u8]) -> Result<Record> {
    record::decode(bytes).ok_or_else(|| damaged(path, number))
}

fn damaged(path: &Path, number: u64) -> Error {
    Error::new(ErrorKind::Corrupt).with("path", path.display()).with("entry", number).with("why", "an entry is damaged")
}

// A file that is made is there after a power cut only when its directory is on disk, too.
fn sync_directory(path: &Path) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    #[cfg(unix)]
    std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|e| error(path, "open", redb::Error::Io(e)))?;
    #[cfg(not(unix))]
    let _ = directory;
    Ok(())
}

fn error(path: &Path, call: &'static str, error: redb::Error) -> Error {
    let kind = match &error {
        redb::Error::DatabaseAlreadyOpen => ErrorKind::InUse,
        // redb's word for a file that is none of its own.
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => ErrorKind::Corrupt,
        redb::Error::Io(_) | redb::Error::PreviousIo => ErrorKind::Disk,
        _ => ErrorKind::Corrupt,
    };
    Error::new(kind).with("path", path.display()).with("call", call).with("why", &error).because(error)
}
