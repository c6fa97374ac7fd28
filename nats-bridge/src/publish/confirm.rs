//! What JetStream answers to one publish, read from the bytes of its answer.

use std::sync::Arc;

use async_nats::{Message, StatusCode};
use foldhash::HashMap;

/// JetStream has stored the message (or had stored it before, under the same id).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The stream that holds it.
    pub stream: Arc<str>,
    /// Its sequence in that stream; for a duplicate, the sequence of the first one.
    pub sequence: u64,
    /// Whether the id was already seen inside the stream's duplicate window.
    pub duplicate: bool,
}

/// JetStream, or the server in its place, did not store the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// HTTP-like code: 400, 404, 429, 503.
    pub code: u16,
    /// JetStream's own error code, such as 10077 (a limit of the stream is reached); 0 when there is none, as for
    /// "no responders" (no stream listens on the subject, or its leader is away).
    pub err_code: u32,
    /// The server's text.
    pub text: String,
}

impl Rejection {
    /// Whether nobody listens on the subject: no such stream, or JetStream has no leader for it at present.
    pub fn no_responders(&self) -> bool {
        self.code == 503 && self.err_code == 0
    }

    /// Whether a limit of the account or of the server on what may be stored is reached. The same publish is stored once there
    /// is room.
    ///
    /// Codes from the server's `errors.json`: 10002 the account's limits, 10023 the server's, 10028 its memory, 10047 its
    /// storage.
    pub fn is_out_of_room(&self) -> bool {
        matches!(self.err_code, 10002 | 10023 | 10028 | 10047)
    }

    /// Whether the same publish may be stored a little later: no leader, the server is busy or short of resources.
    ///
    /// Codes from the server's `errors.json`: 10008 cluster not available, 10009 not leader, 10023 insufficient
    /// resources, 10158 the same id is being stored (a resend that came before the first one's end), 10167 too many
    /// requests; and 429.
    pub fn is_temporary(&self) -> bool {
        self.no_responders() || self.code == 429 || matches!(self.err_code, 10008 | 10009 | 10023 | 10158 | 10167)
    }
}

/// Names of streams that were seen, so that a confirm costs no allocation. At most [`NAMES`] are kept.
#[derive(Debug, Default)]
pub(crate) struct StreamNames {
    last: Option<Arc<str>>,
    seen: HashMap<Box<str>, Arc<str>>,
}

const NAMES: usize = 1024;

impl StreamNames {
    fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(last) = self.last.as_ref().filter(|last| ***last == *name) {
            return last.clone();
        }
        let name = match self.seen.get(name) {
            Some(known) => known.clone(),
            None => {
                if self.seen.len() == NAMES {
                    self.seen.clear();
                }
                let fresh: Arc<str> = name.into();
                self.seen.insert(name.into(), fresh.clone());
                fresh
            }
        };
        self.last = Some(name.clone());
        name
    }
}

/// Reads an answer. Bytes that are not a JetStream answer give a rejection with code 0, never a panic.
pub(crate) fn read(message: &Message, names: &mut StreamNames) -> Result<Stored, Rejection> {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(Rejection { code: 503, err_code: 0, text: "no responders".into() });
    }
    match read_plain(&message.payload) {
        Some((stream, sequence, duplicate)) => Ok(Stored { stream: names.intern(stream), sequence, duplicate }),
        None => read_any(&message.payload, names),
    }
}

// The two shapes that nats-server writes by hand on its hot path (`stream.go`, `pubAck`), spaces tolerated:
// {"stream":"S", "seq":17} and {"stream":"S", "seq":17,"duplicate": true}. A name with an escape, a domain or a batch
// is left to serde.
fn read_plain(bytes: &[u8]) -> Option<(&str, u64, bool)> {
    let rest = bytes.strip_prefix(b"{\"stream\":")?;
    let rest = spaces(rest).strip_prefix(b"\"")?;
    let end = rest.iter().position(|b| *b == b'"' || *b == b'\\')?;
    let (name, rest) = rest.split_at(end);
    let rest = spaces(rest.strip_prefix(b"\"")?).strip_prefix(b",")?;
    let rest = spaces(spaces(rest).strip_prefix(b"\"seq\":")?);
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits == 0 || digits > 19 {
        return None;
    }
    let (number, rest) = rest.split_at(digits);
    let sequence = number.iter().fold(0u64, |n, b| n * 10 + u64::from(b - b'0'));
    let rest = spaces(rest);
    let (duplicate, rest) = match rest.strip_prefix(b",") {
        Some(rest) => {
            let rest = spaces(rest).strip_prefix(b"\"duplicate\":")?;
            (true, spaces(rest).strip_prefix(b"true")?)
        }
        None => (false, rest),
    };
    (spaces(rest) == b"}").then_some(())?;
    // A sequence of 0 is not a place in a stream: an error answer carries it.
    (sequence > 0).then_some(())?;
    Some((std::str::from_utf8(name).ok()?, sequence, duplicate))
}

fn spaces(bytes: &[u8]) -> &[u8] {
    let n = bytes.iter().take_while(|b| **b == b' ').count();
    &bytes[n..]
}

#[derive(serde::Deserialize)]
struct Answer {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<AnswerError>,
}

#[derive(serde::Deserialize)]
struct AnswerError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

fn read_any(bytes: &[u8], names: &mut StreamNames) -> Result<Stored, Rejection> {
    match serde_json::from_slice::<Answer>(bytes) {
        Ok(Answer { error: Some(e), .. }) => Err(Rejection { code: e.code, err_code: e.err_code, text: e.description }),
        Ok(Answer { stream, seq, duplicate, error: None }) if seq > 0 && !stream.is_empty() => {
            Ok(Stored { stream: names.intern(&stream), sequence: seq, duplicate })
        }
        // A duplicate of what a cluster of nats-server 2.10 has proposed and not stored yet. Later ones answer 10158.
        Ok(Answer { stream, duplicate: true, error: None, .. }) if !stream.is_empty() => {
            Err(Rejection { code: 400, err_code: 10158, text: "the message with this id is still being stored".into() })
        }
        _ => Err(Rejection {
            code: 0,
            err_code: 0,
            text: "the answer is not JetStream's: does something else listen on this subject?".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_fast_path_reads_what_the_server_writes() {
        assert_eq!(read_plain(br#"{"stream":"ORDERS", "seq":17}"#), Some(("ORDERS", 17, false)));
        assert_eq!(read_plain(br#"{"stream":"S","seq":1,"duplicate": true}"#), Some(("S", 1, true)));
        assert_eq!(read_plain(br#"{"stream":"S", "domain":"hub", "seq":1}"#), None);
        assert_eq!(read_plain(br#"{"error":{"code":503},"stream":"S","seq":0}"#), None);
        assert_eq!(read_plain(br#"{"stream":"S","seq":0}"#), None);
        assert_eq!(read_plain(br#"{"stream":"a\"b","seq":1}"#), None);
    }

    #[test]
    fn errors_domains_and_foreign_answers_are_read_by_serde() {
        let mut names = StreamNames::default();
        let error = br#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"S","seq":0}"#;
        let rejection = read_any(error, &mut names).unwrap_err();
        assert_eq!((rejection.code, rejection.err_code), (503, 10077));
        assert!(!rejection.no_responders());
        let stored = read_any(br#"{"stream":"a\"b","domain":"hub","seq":4}"#, &mut names).unwrap();
        assert_eq!((&*stored.stream, stored.sequence), ("a\"b", 4));
        let proposed = read_any(br#"{"stream":"S", "seq":0,"duplicate": true}"#, &mut names).unwrap_err();
        assert!(proposed.is_temporary() && !proposed.no_responders(), "{proposed:?}");
        assert_eq!(read_any(b"pong", &mut names).unwrap_err().code, 0);
    }

    proptest! {
        #[test]
        fn whatever_the_fast_path_accepts_serde_reads_the_same(
            name in "[ -~]{0,12}", seq in any::<u64>(), duplicate in any::<bool>(), gap in "[ ]{0,2}", tail in "[ }x]{0,2}"
        ) {
            let dup = if duplicate { format!(",{gap}\"duplicate\":{gap}true") } else { String::new() };
            let text = format!("{{\"stream\":{gap}{},{gap}\"seq\":{gap}{seq}{gap}{dup}}}{tail}", serde_json::to_string(&name).unwrap());
            if let Some((stream, sequence, duplicate)) = read_plain(text.as_bytes()) {
                let answer: Answer = serde_json::from_str(&text).unwrap();
                prop_assert_eq!((stream, sequence, duplicate), (answer.stream.as_str(), answer.seq, answer.duplicate));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut names = StreamNames::default();
            let _ = (read_plain(&bytes), read_any(&bytes, &mut names));
        }
    }
}
