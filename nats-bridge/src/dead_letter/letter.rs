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
    let mut message = Message::new(to, payload).id(format!("dlq:{stream}:{consumer}:{sequence}:{stored_at}"));
    let mut redrives = "0".to_owned();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        for value in values {
            if name == REDRIVES {
                redrives = value.as_str().to_owned();
                continue;
            }
            message.headers.push((kept_name(name), value.as_str().to_owned()));
        }
    }
    let class = &facts.failure.class;
    let own = [
        (REASON, facts.reason.name().to_owned()),
        (DETAIL, detail(&facts.failure.detail)),
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
    match starts("Nats-") || starts("Dead-Letter-") {
        true => format!("{ORIGINAL_PREFIX}{name}"),
        false => name.to_owned(),
    }
}

/// The name that a header of a dead letter had on the original message; none for a header that the dead letter added.
pub fn original_name(name: &str) -> Option<&str> {
    match name.strip_prefix(ORIGINAL_PREFIX) {
        Some(original) => Some(original),
        None if name.starts_with("Dead-Letter-") => None,
        None => Some(name),
    }
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
        assert_eq!(get("Dead-Letter-Original-Nats-Msg-Id"), Some("order-17"));
        assert_eq!(letter.id, crate::MessageId::Given("dlq:ORDERS:billing:7:12".into()));
    }

    proptest! {
        #[test]
        fn original_headers_come_back_under_their_own_names(name in "(Nats-|NATS-|Dead-Letter-|Dead-Letter-Original-)?[!-9;-~]{1,12}", value in "[ -~]{0,20}") {
            prop_assume!(name != REDRIVES);
            let mut headers = HeaderMap::new();
            headers.insert(name.as_str(), value.as_str());
            let letter = letter("dlq.a.b", &facts(&Failure::new("x")), Some(&headers), Bytes::new());
            prop_assert!(letter.check().is_ok());
            let found: Vec<_> = letter.headers.iter().filter_map(|(n, v)| Some((original_name(n)?, v.as_str()))).collect();
            prop_assert_eq!(found, [(name.as_str(), value.as_str())]);
        }
    }
}
