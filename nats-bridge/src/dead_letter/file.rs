//! Dead letters as lines of JSON, to keep elsewhere, to read, and to bring back.

use std::io::{self, BufRead, Write};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::kept::{Filter, Letter};
use super::redrive::{own_id, plain_headers};
use super::store::DeadLetters;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::publish::Published;

/// What an import did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Lines that are letters in the stream now.
    pub stored: u64,
    /// Lines whose letter is there already, as far as the stream's duplicate window reaches.
    pub duplicates: u64,
}

/// How many letters are written out before they are removed.
const BATCH: usize = 100;

#[derive(Serialize, Deserialize)]
struct Line {
    sequence: u64,
    stored_at: String,
    subject: String,
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl Letter {
    /// The letter as one line of JSON, without the line's end: `sequence`, `stored_at`, `subject`, `headers`, and `payload`
    /// if it is UTF-8 text, else `payload_base64`.
    pub fn to_json(&self) -> String {
        let text = std::str::from_utf8(&self.payload).ok();
        let line = Line {
            sequence: self.sequence,
            // Formatting fails only for years beyond 9999.
            stored_at: OffsetDateTime::from(self.stored_at).format(&Rfc3339).unwrap_or_default(),
            subject: self.subject.clone(),
            headers: self.headers.clone(),
            payload: text.map(str::to_owned),
            payload_base64: text.is_none().then(|| STANDARD.encode(&self.payload)),
        };
        // Strings and numbers always serialise.
        serde_json::to_string(&line).unwrap_or_default()
    }

    /// Reads what [`Letter::to_json`] wrote.
    ///
    /// # Errors
    /// `InvalidMessage`: it is not such a line; `why` says what is wrong.
    pub fn from_json(line: &str) -> Result<Letter> {
        let wrong = |why: String| Error::new(ErrorKind::InvalidMessage).with("why", why);
        let line: Line = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
        let payload = match (line.payload, line.payload_base64) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(text)) => STANDARD.decode(text).map_err(|e| wrong(format!("payload_base64: {e}")))?.into(),
            _ => return Err(wrong("one of payload and payload_base64 is needed".into())),
        };
        let stored_at =
            OffsetDateTime::parse(&line.stored_at, &Rfc3339).map_err(|e| wrong(format!("stored_at: {e}")))?;
        Ok(Letter {
            sequence: line.sequence,
            stored_at: SystemTime::from(stored_at),
            subject: line.subject,
            payload,
            headers: line.headers,
        })
    }
}

impl DeadLetters {
    /// Writes letters as lines of JSON, and leaves them where they are. Gives how many.
    ///
    /// # Errors
    /// `Rejected`: the writer failed. Else as JetStream answers.
    pub async fn export(
        &self,
        filter: &Filter,
        to: &mut impl Write,
        mut progress: impl FnMut(u64) -> bool,
    ) -> Result<u64> {
        let mut letters = self.scan(filter).await?;
        let mut written = 0;
        while let Some(letter) = letters.next().await? {
            self.write(to, &letter)?;
            written += 1;
            if !progress(written) {
                break;
            }
        }
        to.flush().map_err(|e| self.unwritten(e))?;
        Ok(written)
    }

    /// Writes letters as lines of JSON and then removes them. Gives how many.
    ///
    /// Letters are removed only after `to` has flushed them without an error: let its `flush` reach the disk.
    ///
    /// # Errors
    /// `Rejected`: the writer failed; what it had not flushed is still here. Else as JetStream answers.
    pub async fn purge(
        &self,
        filter: &Filter,
        to: &mut impl Write,
        mut progress: impl FnMut(u64) -> bool,
    ) -> Result<u64> {
        let mut letters = self.scan(filter).await?;
        let mut removed = 0;
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            while batch.len() < BATCH
                && let Some(letter) = letters.next().await?
            {
                self.write(to, &letter)?;
                batch.push(letter.sequence);
            }
            to.flush().map_err(|e| self.unwritten(e))?;
            for sequence in &batch {
                self.remove(*sequence).await?;
            }
            removed += batch.len() as u64;
            metrics::counter!("natsbridge_dead_letters_purged_total", "stream" => self.name.clone())
                .increment(batch.len() as u64);
            if batch.len() < BATCH || !progress(removed) {
                return Ok(removed);
            }
        }
    }

    /// Reads lines that an export or purge wrote and stores the letters here under fresh sequences, with their own ids
    /// or, where the stream remembers the id of a letter that is gone, with ids made from those.
    ///
    /// # Errors
    /// `InvalidMessage`: a line is not a letter; `line` says which, and the lines before it are stored. `Rejected`: reading
    /// failed. `Conflict`: another stream takes the letter's subject. Else as publishing answers.
    pub async fn import(
        &self,
        from: &mut impl BufRead,
        mut progress: impl FnMut(Imported) -> bool,
    ) -> Result<Imported> {
        let mut done = Imported::default();
        for (index, line) in from.lines().enumerate() {
            let number = index + 1;
            let line = line.map_err(|e| Error::new(ErrorKind::Rejected).with("line", number).because(e))?;
            if line.trim().is_empty() {
                continue;
            }
            let letter = Letter::from_json(&line).map_err(|error| error.with("line", number))?;
            let at = self.bring_back(&letter).await.map_err(|error| error.with("line", number))?;
            if *at.stream != *self.name {
                return Err(Error::new(ErrorKind::Conflict)
                    .with("line", number)
                    .with("subject", letter.subject)
                    .with("why", format!("stream {} takes it, not {}", at.stream, self.name)));
            }
            done.stored += u64::from(!at.duplicate);
            done.duplicates += u64::from(at.duplicate);
            if !progress(done) {
                break;
            }
        }
        Ok(done)
    }

    // The stream recognises the id of a letter that was removed a short time ago, too: then it needs another one. The same
    // line asks for the same ids in the same order, so that a letter is brought back once.
    async fn bring_back(&self, letter: &Letter) -> Result<Published> {
        let id = own_id(letter);
        let mut times = 0;
        loop {
            let id = if times == 0 { id.clone() } else { format!("{id}#i{times}") };
            let mut message = Message::new(letter.subject.clone(), letter.payload.clone()).id(id).stored_before();
            message.headers = plain_headers(letter);
            let at = self.bridge.publish(message).await?;
            if !at.duplicate || *at.stream != *self.name {
                return Ok(at);
            }
            match self.show(at.sequence).await {
                Err(error) if error.kind() == ErrorKind::NotFound => times += 1,
                Err(error) => return Err(error),
                Ok(_) => return Ok(at),
            }
        }
    }

    fn write(&self, to: &mut impl Write, letter: &Letter) -> Result<()> {
        writeln!(to, "{}", letter.to_json()).map_err(|e| self.unwritten(e))
    }

    fn unwritten(&self, error: io::Error) -> Error {
        Error::new(ErrorKind::Rejected).with("stream", &self.name).with("why", format!("writing failed: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_line_gives_the_letter_back(
            payload in proptest::collection::vec(any::<u8>(), 0..40), value in "\\PC{0,20}", sequence in 1u64..1 << 40
        ) {
            let letter = Letter {
                sequence,
                stored_at: SystemTime::UNIX_EPOCH,
                subject: "dlq.ORDERS.billing".into(),
                payload: payload.into(),
                headers: vec![("a".into(), value)],
            };
            let line = letter.to_json();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(Letter::from_json(&line).unwrap(), letter);
        }
    }

    #[test]
    fn a_bad_line_says_what_is_wrong() {
        for (line, why) in [
            ("x", "expected value"),
            (r#"{"sequence":1,"stored_at":"1970-01-01T00:00:00Z","subject":"a","headers":[]}"#, "one of payload"),
            (r#"{"sequence":1,"stored_at":"soon","subject":"a","headers":[],"payload":"x"}"#, "stored_at"),
        ] {
            let error = Letter::from_json(line).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
