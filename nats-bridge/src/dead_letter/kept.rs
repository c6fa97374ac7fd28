//! A dead letter as it lies in its stream, and which ones are meant. Pure.

use std::ops::RangeInclusive;
use std::time::SystemTime;

use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use serde::Serialize;

use super::{
    ATTEMPTS, CONSUMER, DETAIL, FINGERPRINT, FIRST_FAILED_AT, HOST, LAST_FAILED_AT, ORIGINAL_PREFIX, REASON, REDRIVES,
    SEQUENCE, STREAM, SUBJECT, original_name,
};
use crate::encryption::{self, Decrypter, ENCRYPTED, Keys, Parts};
use crate::error::{Error, Result};

/// A dead letter that is kept in a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// Its sequence in the dead-letter stream, from 1.
    pub sequence: u64,
    /// When it became a dead letter.
    pub stored_at: SystemTime,
    /// Its subject in the dead-letter stream.
    pub subject: String,
    /// The original payload.
    pub payload: Bytes,
    /// All headers in no particular order: the dead letter's own and the kept originals.
    pub headers: Vec<(String, String)>,
}

/// Which dead letters are meant; the default means all. Given fields must all fit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// The reason's name, such as `handler_error`.
    pub reason: Option<String>,
    /// The fingerprint.
    pub fingerprint: Option<String>,
    /// The consumer that gave it up.
    pub consumer: Option<String>,
    /// The stream that it was in.
    pub stream: Option<String>,
    /// Its sequence in the dead-letter stream, from 1.
    pub sequences: Option<RangeInclusive<u64>>,
}

/// What [`DeadLetters::list`](super::DeadLetters::list) puts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBy {
    /// Letters of one reason.
    Reason,
    /// Letters of one consumer, reason and class of failure.
    Fingerprint,
    /// Letters of one consumer.
    Consumer,
}

/// Dead letters that have something in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// The reason, fingerprint or consumer that they share.
    pub key: String,
    /// How many they are.
    pub letters: u64,
    /// The bytes of their payloads.
    pub payload_bytes: u64,
    /// The sequence of the first one.
    pub first_sequence: u64,
    /// The sequence of the last one.
    pub last_sequence: u64,
    /// The last one's consumer.
    pub consumer: String,
    /// The last one's reason.
    pub reason: String,
    /// The last one's detail.
    pub detail: String,
    /// When the last one failed last, RFC 3339.
    pub last_failed_at: String,
}

impl Letter {
    /// The first value of a header of the dead letter itself, such as [`REASON`]; empty when it has none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// Why it was given up: a [`Reason`](super::Reason)'s name.
    pub fn reason(&self) -> &str {
        self.header(REASON)
    }

    /// What the last failure said.
    pub fn detail(&self) -> &str {
        self.header(DETAIL)
    }

    /// What it shares with failures of the same consumer, reason and class.
    pub fn fingerprint(&self) -> &str {
        self.header(FINGERPRINT)
    }

    /// The stream that it was in.
    pub fn stream(&self) -> &str {
        self.header(STREAM)
    }

    /// The subject that it was published to.
    pub fn original_subject(&self) -> &str {
        self.header(SUBJECT)
    }

    /// Its sequence in the stream that it was in.
    pub fn original_sequence(&self) -> u64 {
        self.header(SEQUENCE).parse().unwrap_or(0)
    }

    /// The consumer that gave it up.
    pub fn consumer(&self) -> &str {
        self.header(CONSUMER)
    }

    /// How often it was delivered to a handler.
    pub fn attempts(&self) -> u64 {
        self.header(ATTEMPTS).parse().unwrap_or(0)
    }

    /// When it failed first, RFC 3339.
    pub fn first_failed_at(&self) -> &str {
        self.header(FIRST_FAILED_AT)
    }

    /// When it failed last, RFC 3339.
    pub fn last_failed_at(&self) -> &str {
        self.header(LAST_FAILED_AT)
    }

    /// The host that gave it up.
    pub fn host(&self) -> &str {
        self.header(HOST)
    }

    /// How often it was redriven before.
    pub fn redrives(&self) -> u64 {
        self.header(REDRIVES).parse().unwrap_or(0)
    }

    /// The original message's headers under their own names, its id (`Nats-Msg-Id`) included.
    pub fn original_headers(&self) -> Vec<(String, String)> {
        let name_of = |(name, value): &(String, String)| Some((original_name(name)?, value.clone()));
        self.headers.iter().filter_map(name_of).collect()
    }

    /// The key that its payload is encrypted under; none when it is not encrypted.
    pub fn encrypted_with(&self) -> Option<String> {
        encryption::key_id(self.header(ENCRYPTED))
    }

    /// The payload as it was before it was encrypted.
    ///
    /// # Errors
    /// `Decrypt`, `UnknownKey`, `Unreachable`: as a consumer would refuse it.
    pub async fn decrypt(&self, keys: &Keys) -> Result<Bytes> {
        let headers = self.original_headers();
        let id = headers.iter().find(|(name, _)| name == "Nats-Msg-Id").map(|(_, id)| first_id(id, self.redrives()));
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let parts = Parts { subject: self.original_subject(), id, headers, payload: &self.payload };
        let decrypted = Decrypter::new(keys.clone()).decrypt_now(&parts).await;
        decrypted.map(|decrypted| decrypted.payload).map_err(|error| error.with("sequence", self.sequence))
    }

    /// The id that the next redrive publishes with: the original's (or, if it had none, the dead letter's) and `#r1`, `#r2`
    /// and so on, since the stream would take a message with the original's own id for one that it has.
    pub fn redrive_id(&self) -> String {
        let original = self.header(&format!("{ORIGINAL_PREFIX}Nats_-Msg-Id"));
        let id = if original.is_empty() { self.header("Nats-Msg-Id") } else { original };
        match first_id(id, self.redrives()) {
            "" => format!("dlq:{}:{}#r{}", self.stream(), self.original_sequence(), self.redrives() + 1),
            id => format!("{id}#r{}", self.redrives() + 1),
        }
    }
}

/// The id that a message had before it was redriven so many times.
pub(crate) fn first_id(id: &str, redrives: u64) -> &str {
    match id.rsplit_once("#r") {
        Some((first, n)) if redrives > 0 && n.parse() == Ok(redrives) => first,
        _ => id,
    }
}

impl From<StreamMessage> for Letter {
    fn from(message: StreamMessage) -> Self {
        let mut headers = Vec::new();
        for (name, values) in message.headers.iter() {
            let name: &str = name.as_ref();
            headers.extend(values.iter().map(|value| (name.to_owned(), value.as_str().to_owned())));
        }
        headers.sort();
        Letter {
            sequence: message.sequence,
            stored_at: SystemTime::from(message.time),
            subject: message.subject.to_string(),
            payload: message.payload,
            headers,
        }
    }
}

impl Filter {
    /// Refuses sequences that no letter has.
    ///
    /// # Errors
    /// `Config`: the first one of [`sequences`](Filter::sequences) is 0, or later than the last one.
    pub fn check(&self) -> Result<()> {
        match &self.sequences {
            Some(wanted) if wanted.is_empty() || *wanted.start() == 0 => {
                let why = "the first one is at least 1, and not later than the last one";
                let given = format!("{}-{}", wanted.start(), wanted.end());
                Err(Error::setting("sequences", why).with("value", given))
            }
            _ => Ok(()),
        }
    }

    /// Whether this one is meant.
    pub fn fits(&self, letter: &Letter) -> bool {
        let is = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|wanted| wanted == has);
        is(&self.reason, letter.reason())
            && is(&self.fingerprint, letter.fingerprint())
            && is(&self.consumer, letter.consumer())
            && is(&self.stream, letter.stream())
            && self.sequences.as_ref().is_none_or(|sequences| sequences.contains(&letter.sequence))
    }
}

impl Group {
    pub(super) fn key(by: GroupBy, letter: &Letter) -> &str {
        match by {
            GroupBy::Reason => letter.reason(),
            GroupBy::Fingerprint => letter.fingerprint(),
            GroupBy::Consumer => letter.consumer(),
        }
    }

    pub(super) fn add(&mut self, letter: &Letter) {
        self.letters += 1;
        self.payload_bytes += letter.payload.len() as u64;
        self.last_sequence = letter.sequence;
        self.consumer = letter.consumer().to_owned();
        self.reason = letter.reason().to_owned();
        self.detail = letter.detail().to_owned();
        self.last_failed_at = letter.last_failed_at().to_owned();
    }

    pub(super) fn of(key: &str, letter: &Letter) -> Group {
        Group {
            key: key.to_owned(),
            letters: 0,
            payload_bytes: 0,
            first_sequence: letter.sequence,
            last_sequence: letter.sequence,
            consumer: String::new(),
            reason: String::new(),
            detail: String::new(),
            last_failed_at: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(headers: &[(&str, &str)]) -> Letter {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Letter {
            sequence: 7,
            stored_at: SystemTime::UNIX_EPOCH,
            subject: "dlq.ORDERS.billing".into(),
            payload: Bytes::new(),
            headers,
        }
    }

    #[test]
    fn each_redrive_has_a_fresh_id_made_from_the_first_one() {
        let kept = "Dead-Letter-Original-Nats_-Msg-Id";
        assert_eq!(letter(&[(kept, "o-17"), (REDRIVES, "0")]).redrive_id(), "o-17#r1");
        assert_eq!(letter(&[(kept, "o-17#r1"), (REDRIVES, "1")]).redrive_id(), "o-17#r2");
        assert_eq!(letter(&[(kept, "o#r5"), (REDRIVES, "0")]).redrive_id(), "o#r5#r1");
        assert_eq!(letter(&[("Nats-Msg-Id", "dlq:ORDERS:billing:7:12")]).redrive_id(), "dlq:ORDERS:billing:7:12#r1");
        assert_eq!(letter(&[(STREAM, "ORDERS"), (SEQUENCE, "7")]).redrive_id(), "dlq:ORDERS:7#r1");
    }

    #[test]
    fn a_filter_means_what_fits_in_all_that_is_given() {
        let one = letter(&[(REASON, "timeout"), (CONSUMER, "billing")]);
        let filter = |reason: Option<&str>, consumer: Option<&str>, sequences| Filter {
            reason: reason.map(str::to_owned),
            consumer: consumer.map(str::to_owned),
            sequences,
            ..Filter::default()
        };
        assert!(filter(None, None, None).fits(&one));
        assert!(filter(Some("timeout"), Some("billing"), Some(7..=7)).fits(&one));
        assert!(!filter(Some("timeout"), Some("other"), None).fits(&one));
        assert!(!filter(None, None, Some(8..=9)).fits(&one));
    }

    #[test]
    fn the_letters_own_headers_are_not_the_originals() {
        let one = letter(&[("tenant", "acme"), (REASON, "timeout"), (REDRIVES, "1"), ("Nats-Msg-Id", "dlq:x")]);
        assert_eq!(one.original_headers(), [("tenant".to_owned(), "acme".to_owned())]);
    }
}
