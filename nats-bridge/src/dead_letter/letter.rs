//! A failed message as a dead letter. Pure.

use std::time::SystemTime;

use async_nats::HeaderMap;
use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::text::{detail, fingerprint};
use super::{
    ATTEMPTS, CONSUMER, DETAIL, FINGERPRINT, FIRST_FAILED_AT, Failure, HOST, LAST_FAILED_AT, ORIGINAL_PREFIX, REASON,
    REDRIVES, Reason, SEQUENCE, STREAM, SUBJECT,
};
use crate::message::Message;

const MSG_ID: &str = "Nats-Msg-Id";

/// What is known about a message that is given up.
pub(crate) struct Facts<'a> {
    pub stream: &'a str,
    pub consumer: &'a str,
    pub subject: &'a str,
    pub sequence: u64,
    /// When the stream stored it, in nanoseconds since 1970: with the sequence it names the message also after a stream
    /// of the same name was made anew.
    pub stored_at: i128,
    pub attempts: u64,
    pub reason: Reason,
    pub failure: &'a Failure,
    pub first_failed: SystemTime,
    pub last_failed: SystemTime,
    pub host: &'a str,
}

/// The dead letter: the original payload and headers, why it failed, and an id of its own, which is the same each time
/// that this message is handed over.
pub(crate) fn letter(to: &str, facts: &Facts<'_>, headers: Option<&HeaderMap>, payload: Bytes) -> Message {
    let Facts { stream, consumer, sequence, stored_at, .. } = facts;
    let id = format!("dlq:{stream}:{consumer}:{sequence}:{stored_at}");
    let mut message = Message::new(to, payload).id(id).stored_before();
    let mut redrives = "0".to_owned();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        for value in values {
            if name == REDRIVES {
                redrives = value.as_str().to_owned();
                continue;
            }
            // For the same reason; such a value is hardly ever there.
            message.headers.push((kept_name(name), value.as_str().replace(MSG_ID, "Nats_-Msg-Id")));
        }
    }
    let class = &facts.failure.class;
    let own = [
        (REASON, facts.reason.name().to_owned()),
        (DETAIL, detail(&facts.failure.detail).replace(MSG_ID, "Nats Msg-Id")),
        (FINGERPRINT, fingerprint(&[consumer, facts.reason.name(), class])),
        (STREAM, (*stream).to_owned()),
        (SUBJECT, facts.subject.to_owned()),
        (SEQUENCE, sequence.to_string()),
        (CONSUMER, (*consumer).to_owned()),
        (ATTEMPTS, facts.attempts.to_string()),
        (FIRST_FAILED_AT, rfc3339(facts.first_failed)),
        (LAST_FAILED_AT, rfc3339(facts.last_failed)),
        (HOST, detail(facts.host)),
        (REDRIVES, redrives),
    ];
    message.headers.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
    message
}

fn kept_name(name: &str) -> String {
    let starts = |prefix: &str| {
        name.len() >= prefix.len() && name.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
    };
    match starts("Nats-") || starts("Dead-Letter-") || name.contains(MSG_ID) {
        true => format!("{ORIGINAL_PREFIX}{}", broken(name)),
        false => name.to_owned(),
    }
}

/// The name that a header of a dead letter had on the original message; none for a header that the dead letter added.
pub fn original_name(name: &str) -> Option<String> {
    match name.strip_prefix(ORIGINAL_PREFIX) {
        Some(original) => Some(mended(original)),
        // Whatever the original had under such a name was renamed: this one is the dead letter's own, such as its id.
        None if kept_name(name) != name => None,
        None => Some(name.to_owned()),
    }
}

// `Nats-` becomes `Nats_-`, `Nats_-` becomes `Nats__-`, and so on: nats-server 2.10 looks for the id by the first
// place where its header's name stands in the whole block, and finds none when that place is not a line's start.
fn broken(name: &str) -> String {
    rewrite(name, |underscores| underscores + 1)
}

fn mended(name: &str) -> String {
    rewrite(name, |underscores: usize| underscores.saturating_sub(1))
}

fn rewrite(name: &str, underscores: impl Fn(usize) -> usize) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    let mut rest = name;
    while let Some(at) = rest.find("Nats") {
        let (head, tail) = rest.split_at(at + 4);
        out.push_str(head);
        let count = tail.bytes().take_while(|b| *b == b'_').count();
        let new = if tail[count..].starts_with('-') { underscores(count) } else { count };
        out.extend(std::iter::repeat_n('_', new));
        rest = &tail[count..];
    }
    out.push_str(rest);
    out
}

fn rfc3339(at: SystemTime) -> String {
    // Formatting fails only for years beyond 9999.
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts(failure: &Failure) -> Facts<'_> {
        Facts {
            stream: "ORDERS",
            consumer: "billing",
            subject: "orders.new",
            sequence: 7,
            stored_at: 12,
            attempts: 5,
            reason: Reason::HandlerError,
            failure,
            first_failed: SystemTime::UNIX_EPOCH,
            last_failed: SystemTime::UNIX_EPOCH,
            host: "worker-1",
        }
    }

    #[test]
    fn a_dead_letter_says_why_and_keeps_the_original() {
        let mut headers = HeaderMap::new();
        headers.insert("tenant", "acme");
        headers.insert("Nats-Msg-Id", "order-17");
        let letter =
            letter("dlq.ORDERS.billing", &facts(&Failure::of("KeyError", "no\nsuch key")), Some(&headers), "x".into());
        assert!(letter.check().is_ok());
        let get = |name: &str| letter.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get(REASON), Some("handler_error"));
        assert_eq!(get(DETAIL), Some("no\\nsuch key"));
        assert_eq!(get(ATTEMPTS), Some("5"));
        assert_eq!(get(FIRST_FAILED_AT), Some("1970-01-01T00:00:00Z"));
        assert_eq!(get("tenant"), Some("acme"));
        assert_eq!(get("Dead-Letter-Original-Nats_-Msg-Id"), Some("order-17"));
        assert_eq!(letter.id, crate::MessageId::Given("dlq:ORDERS:billing:7:12".into()));
        assert_eq!(original_name("Nats-Msg-Id"), None, "the letter's own id is not the original's");
    }

    proptest! {
        #[test]
        fn original_headers_come_back_under_their_own_names(name in "(Nats-|Nats_-|NATS-|Nats-Msg-Id|X-Nats-Msg-Id|Dead-Letter-|Dead-Letter-Original-)?[!-9;-~]{1,12}", value in "[ -~]{0,20}") {
            prop_assume!(name != REDRIVES);
            let mut headers = HeaderMap::new();
            headers.insert(name.as_str(), value.as_str());
            let letter = letter("dlq.a.b", &facts(&Failure::new("x")), Some(&headers), Bytes::new());
            prop_assert!(letter.check().is_ok());
            let found: Vec<_> = letter.headers.iter().filter_map(|(n, v)| Some((original_name(n)?, v.as_str()))).collect();
            prop_assert_eq!(found, [(name.clone(), value.as_str())]);
            prop_assert!(!letter.headers.iter().any(|(n, v)| n.contains(MSG_ID) || v.contains(MSG_ID)));
        }
    }
}
