//! A message to publish.

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject};
use bytes::Bytes;

use crate::encryption::ENCRYPTED;
use crate::error::{Error, ErrorKind, Result};
use crate::message_id::MessageId;

/// A message to publish: a subject, a payload, headers and an id.
///
/// ```
/// # use nats_bridge::Message;
/// let message = Message::new("orders.v1.created", r#"{"order":17}"#).id("order-17").header("tenant", "acme");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub(crate) subject: Subject,
    pub(crate) payload: Bytes,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) id: MessageId,
    pub(crate) schema: Option<String>,
    // It was stored before and goes as it was: it is not encrypted again.
    pub(crate) stored_before: bool,
}

impl Message {
    /// A message without headers, with a generated id.
    pub fn new(subject: impl Into<Subject>, payload: impl Into<Bytes>) -> Message {
        Message {
            subject: subject.into(),
            payload: payload.into(),
            headers: Vec::new(),
            id: MessageId::Generated,
            schema: None,
            stored_before: false,
        }
    }

    /// Gives the id that the stream recognises duplicates by.
    pub fn id(mut self, id: impl Into<String>) -> Message {
        self.id = MessageId::Given(id.into());
        self
    }

    /// Derives the id from the fields that identify the event; see [`MessageId::derived`].
    pub fn id_from<F: AsRef<[u8]>>(mut self, fields: impl IntoIterator<Item = F>) -> Message {
        self.id = MessageId::derived(fields);
        self
    }

    /// Sets which id the message carries.
    pub fn message_id(mut self, id: MessageId) -> Message {
        self.id = id;
        self
    }

    /// Names the schema that the payload has to fit: `order` for the newest version (of the last 30 s), `order/3` for that one. For publishers that
    /// [check](crate::PublishConfig::schemas).
    pub fn schema(mut self, name: impl Into<String>) -> Message {
        self.schema = Some(name.into());
        self
    }

    /// Adds a header; a name may be added more than once.
    ///
    /// Names are visible ASCII without `:` and do not start with `Nats-` (any case), which is the server's; `Encrypted` is of
    /// messages that were encrypted. Values have no CR or LF. Publishing checks it.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Message {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The subject it will be published to.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The headers in the order in which they were added.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The bytes it counts for in windows: subject, headers and payload.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        self.subject.len() + self.payload.len() + headers
    }

    /// The same message, which was stored before and is published as it was.
    pub(crate) fn stored_before(mut self) -> Message {
        self.stored_before = true;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |why: &'static str| Error::new(ErrorKind::InvalidMessage).with("why", why);
        if !is_publish_subject(&self.subject) {
            return Err(invalid("a subject is words without spaces, `*` or `>`, joined by dots")
                .with("subject", self.subject.escape_debug()));
        }
        if let MessageId::Given(id) = &self.id
            && (id.is_empty() || id.bytes().any(|b| b.is_ascii_control()))
        {
            return Err(invalid("an id is not empty and has no control characters").with("id", id.escape_debug()));
        }
        for (name, value) in &self.headers {
            if !is_header_name(name) {
                return Err(invalid("a header name is visible ASCII without `:`").with("header", name.escape_debug()));
            }
            if name.len() >= 5 && name.as_bytes()[..5].eq_ignore_ascii_case(b"nats-") {
                return Err(invalid("headers that start with `Nats-` are the server's").with("header", name));
            }
            if !self.stored_before && name.eq_ignore_ascii_case(ENCRYPTED) {
                return Err(invalid("this header is of messages that were encrypted here").with("header", name));
            }
            // nats-server 2.10 looks for the first place where the name stands in all headers, and takes the message
            // for one without an id when that is not a header's start: duplicates would be stored.
            if name.contains("Nats-Msg-Id") || value.contains("Nats-Msg-Id") {
                return Err(
                    invalid("`Nats-Msg-Id` in a header hides the id from nats-server 2.10").with("header", name)
                );
            }
            if value.bytes().any(|b| b == b'\r' || b == b'\n') {
                return Err(invalid("a header value has no CR or LF").with("header", name));
            }
        }
        Ok(())
    }
}

/// The wire's headers: those of the message, which were checked, and the id.
pub(crate) fn header_map(headers: &[(String, String)], id: Option<&str>) -> Option<HeaderMap> {
    if headers.is_empty() && id.is_none() {
        return None;
    }
    let mut map = HeaderMap::new();
    if let Some(id) = id {
        map.insert(NATS_MESSAGE_ID, HeaderValue::from(id));
    }
    for (name, value) in headers {
        // `check` has refused what these refuse.
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            map.append(name, value);
        }
    }
    Some(map)
}

pub(crate) fn is_publish_subject(subject: &str) -> bool {
    !subject.is_empty()
        && subject.split('.').all(|word| !word.is_empty() && word != "*" && word != ">")
        && !subject.bytes().any(|b| b.is_ascii_whitespace() || b == 0)
}

fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_sent_is_refused_before_it_is_sent() {
        let ok = Message::new("orders.new", "x").header("tenant", "acme");
        assert!(ok.check().is_ok());
        for subject in ["", "a..b", ".a", "a.", "a b", "a.*", "a.>", "a\r\nPUB b 0"] {
            assert!(Message::new(subject, "x").check().is_err(), "{subject:?}");
        }
        for (name, value) in [
            ("", "v"),
            ("a b", "v"),
            ("a:b", "v"),
            ("ä", "v"),
            ("nats-ttl", "v"),
            ("a", "v\r\nb: c"),
            ("x-Nats-Msg-Id", "v"),
            ("a", "Nats-Msg-Id"),
            ("encrypted", "v"),
        ] {
            assert!(Message::new("a", "x").header(name, value).check().is_err(), "{name:?}");
        }
        assert!(Message::new("a", "x").id("").check().is_err());
        assert!(Message::new("a", "x").id("a\nb").check().is_err());
    }
}
