//! A stored message as JetStream's API gives it, with every value of a header: `async_nats` reads the same answer and keeps the last of each
//! name (`parse_headers` of its 0.51).

use std::str::FromStr;

use async_nats::jetstream;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::RawMessage;
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::api::call;
use crate::error::{Error, ErrorKind, Result};

/// The message at a sequence; `None` when there is none.
///
/// # Errors
/// As JetStream answers. `Rejected`: the answer cannot be read.
pub(crate) async fn at(js: &jetstream::Context, stream: &str, sequence: u64) -> Result<Option<StreamMessage>> {
    read(js, stream, json!({ "seq": sequence })).await
}

/// The first message at a sequence or behind it; `None` when there is none.
///
/// # Errors
/// As [`at`].
pub(crate) async fn from(js: &jetstream::Context, stream: &str, sequence: u64) -> Result<Option<StreamMessage>> {
    read(js, stream, json!({ "seq": sequence, "next_by_subj": ">" })).await
}

/// The last message with a subject; `None` when there is none.
///
/// # Errors
/// As [`at`].
pub(crate) async fn last_of(js: &jetstream::Context, stream: &str, subject: &str) -> Result<Option<StreamMessage>> {
    read(js, stream, json!({ "last_by_subj": subject })).await
}

async fn read(js: &jetstream::Context, stream: &str, request: Value) -> Result<Option<StreamMessage>> {
    let answer = match call(js, format!("STREAM.MSG.GET.{stream}"), Some(&request)).await {
        Ok(mut answer) => answer["message"].take(),
        // 10037: no message found.
        Err(error) if error.context().iter().any(|(key, value)| *key == "err_code" && value == "10037") => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let unread = |why: async_nats::Error| Error::new(ErrorKind::Rejected).with("stream", stream).with("why", why);
    let raw: RawMessage = serde_json::from_value(answer).map_err(|e| unread(e.into()))?;
    let headers = raw.headers.as_deref().map(|text| STANDARD.decode(text)).transpose().map_err(|e| unread(e.into()))?;
    let mut message = StreamMessage::try_from(raw).map_err(unread)?;
    message.headers = headers.as_deref().map_or(Ok(HeaderMap::new()), all_values).map_err(unread)?;
    Ok(Some(message))
}

// Source: NATS ADR-4. A line that begins with a space goes on with the value before it.
fn all_values(bytes: &[u8]) -> Result<HeaderMap, async_nats::Error> {
    let mut headers = HeaderMap::new();
    let mut lines = std::str::from_utf8(bytes)?.lines().skip(1).filter(|line| !line.is_empty()).peekable();
    while let Some(line) = lines.next() {
        let (name, value) = line.split_once(':').ok_or("a header line without a colon")?;
        let mut value = value.trim().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with([' ', '\t'])) {
            value.push(' ');
            value.push_str(more.trim());
        }
        headers.append(HeaderName::from_str(name)?, HeaderValue::from_str(&value)?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_header_is_kept_in_its_order() {
        let headers = all_values(b"NATS/1.0\r\nX: 1\r\nY: a: b\r\nX:2\r\n more\r\nempty:\r\n\r\n").unwrap();
        let of = |name: &str| headers.get_all(name).map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            (of("X"), of("Y"), of("empty")),
            (vec!["1".into(), "2 more".into()], vec!["a: b".into()], vec!["".into()])
        );
        assert!(all_values(b"NATS/1.0\r\nno colon\r\n\r\n").is_err());
        assert!(all_values(b"NATS/1.0\r\n\xff: 1\r\n\r\n").is_err());
        assert!(all_values(b"NATS/1.0\r\n\r\n").unwrap().is_empty());
    }
}
