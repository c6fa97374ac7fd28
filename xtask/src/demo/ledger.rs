//! The applications' own records: what each of them wrote down while it ran, read back from its file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::{Doing, Failure};

/// One line of an application's file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Record {
    /// When, in nanoseconds of a clock that all applications on the machine share and that never jumps.
    pub t: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What an application did, or what happened to it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Event {
    /// It began; the same moment on the wall clock, in nanoseconds since 1970.
    Started { app: String, unix_ns: u64 },
    /// Its connection is open and it publishes or consumes.
    Connected,
    /// It could not connect; it tries again.
    ConnectFailed { why: String },
    /// It lost its connection.
    Disconnected { why: String },
    /// It lost its channel.
    ChannelClosed { why: String },
    /// The broker took its consumer away.
    Cancelled,
    /// It is about to publish a message; `attempt` is 1 for the first time.
    Published { id: String, exchange: String, key: String, seq: u64, attempt: u32 },
    /// The broker took the message.
    Confirmed { id: String },
    /// The broker refused the message.
    Nacked { id: String },
    /// The broker found no queue for the message.
    Returned { id: String, why: String },
    /// It was given a message, and ended the delivery next.
    Delivered {
        queue: String,
        id: String,
        key: String,
        seq: u64,
        redelivered: bool,
        intact: bool,
        #[serde(default)]
        outcome: Outcome,
        /// Where the message died before it came to this queue, as its `x-death` says.
        #[serde(default)]
        died: Option<Died>,
    },
    /// It ended in order.
    Stopped,
}

/// How an application ended a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It acknowledged it.
    #[default]
    Ack,
    /// It rejected it for good.
    Reject,
    /// It gave it back.
    Requeue,
}

/// Where a dead letter comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Died {
    /// The queue where it died.
    pub queue: String,
    /// Why, in RabbitMQ's words.
    pub reason: String,
}

/// Everything one application wrote down, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// The application.
    pub app: String,
    /// Whether it was killed: it then ended without a word, and nobody knows what became of its last publishes.
    pub killed: bool,
    /// Its records.
    pub records: Vec<Record>,
}

/// A ledger file that is read while it grows.
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    partial: Vec<u8>,
}

impl Tail {
    /// A reader that begins at the start of the file, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, partial: Vec::new() }
    }

    /// The whole lines that were added since the last call.
    ///
    /// # Errors
    /// When the file cannot be read or a line is not a record.
    pub fn read(&mut self) -> Result<Vec<Record>, Failure> {
        let file = match &mut self.file {
            Some(file) => file,
            none => match File::open(&self.path) {
                Ok(file) => none.insert(file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(Failure::new(format_args!("cannot read {}: {error}", self.path.display()))),
            },
        };
        file.read_to_end(&mut self.partial).doing(format_args!("cannot read {}", self.path.display()))?;
        let whole = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.partial.drain(..whole).collect();
        lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| parse(&self.path, line)).collect()
    }
}

/// Reads a finished file from its start to its end. The last line of an application that was killed may be cut off.
///
/// # Errors
/// When it cannot be read, a line is not a record, or the last line is not whole.
pub fn read(app: &str, path: &Path, killed: bool) -> Result<Ledger, Failure> {
    let mut tail = Tail::new(path.to_owned());
    let records = tail.read()?;
    if !killed && !tail.partial.is_empty() {
        return Err(Failure::new(format_args!("the last line of {} is not whole", path.display())));
    }
    Ok(Ledger { app: app.to_owned(), killed, records })
}

fn parse(path: &Path, line: &[u8]) -> Result<Record, Failure> {
    serde_json::from_slice(line).doing(format_args!(
        "{}: not a record: {}",
        path.display(),
        String::from_utf8_lossy(line)
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_growing_file_is_read_by_whole_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("orders.jsonl");
        let mut tail = Tail::new(path.clone());
        assert_eq!(tail.read().expect("a missing file is empty"), []);
        let mut file = File::create(&path).expect("created");
        file.write_all(b"{\"t\":1,\"what\":\"connected\"}\n{\"t\":2,\"what\":\"conf").expect("written");
        assert_eq!(tail.read().expect("read"), [Record { t: 1, event: Event::Connected }]);
        file.write_all(b"irmed\",\"id\":\"o-1\"}\n").expect("written");
        assert_eq!(tail.read().expect("read"), [Record { t: 2, event: Event::Confirmed { id: "o-1".to_owned() } }]);
    }

    #[test]
    fn what_is_not_a_record_is_an_error_and_never_skipped() {
        let dir = tempfile::tempdir().expect("a directory");
        for bad in ["nonsense\n", "{\"t\":1,\"what\":\"invented\"}\n", "{\"t\":1,\"what\":\"connected\"}"] {
            let path = dir.path().join("bad.jsonl");
            std::fs::write(&path, bad).expect("written");
            assert!(read("bad", &path, false).is_err(), "{bad} was taken");
        }
    }
}
