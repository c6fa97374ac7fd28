//! Which stored messages a changed limit removes.
//!
//! A stream that discards new messages keeps what it has when `max_bytes` or `max_messages` fall below it, and only takes no more; one that
//! discards old messages removes them at once. Age and values of a key are enforced in either case.

use async_nats::jetstream;
use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::words::{Object, in_words};
use crate::api::call;

/// A limit that stored messages are beyond, so that the change removes them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Removal {
    /// The limit, by its name in a manifest: `max_bytes`, `max_messages`, `max_age_ms`; `ttl_ms` and `history` of a bucket.
    pub limit: String,
    /// What it is; `null`: none.
    pub is: Value,
    /// What it should be.
    pub should: Value,
    /// How many messages would go, as far as is known without reading them: exact for `max_messages`, by their mean size for
    /// `max_bytes`, by their mean distance where messages between others are gone.
    pub messages: u64,
    /// How many are stored.
    pub of: u64,
}

impl Removal {
    /// What the limit is, for people.
    pub(super) fn present(&self) -> String {
        if self.is.is_null() { "none".to_owned() } else { self.is.to_string() }
    }
}

impl std::fmt::Display for Removal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Removal { limit, should, messages, of, .. } = self;
        let is = self.present();
        write!(f, "{limit} is {is} and should be {should}, which removes about {messages} of {of} messages")
    }
}

/// What a change of a stream, or of a bucket, which is one, removes. `info`: what the server says of it; `should`: its new configuration.
pub(super) async fn removals(
    js: &jetstream::Context,
    object: Object,
    info: &Value,
    should: &Map<String, Value>,
) -> Vec<Removal> {
    let stored = info.pointer("/state/messages").and_then(Value::as_u64).unwrap_or(0);
    let is = info.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut found = Vec::new();
    if stored == 0 {
        return found;
    }
    for limit in ["max_bytes", "max_msgs", "max_age", "max_msgs_per_subject"] {
        let Some(wanted) = should.get(limit).and_then(Value::as_u64).filter(|wanted| *wanted > 0) else { continue };
        let present = is.get(limit).and_then(Value::as_u64).filter(|present| *present > 0);
        let lower = present.is_none_or(|present| wanted < present);
        let drops_old = should.get("discard").is_some_and(|discard| discard == "old");
        let messages = match limit {
            "max_msgs" if drops_old => stored.saturating_sub(wanted),
            "max_bytes" if drops_old => beyond_bytes(info, stored, wanted),
            "max_age" if lower => beyond_age(js, info, stored, wanted).await,
            "max_msgs_per_subject" if lower => beyond_history(js, info, stored, wanted).await,
            _ => 0,
        };
        if messages > 0 {
            let word = |value: u64| {
                in_words(object, &Map::from_iter([(limit.to_owned(), json!(value))]))
                    .into_iter()
                    .next()
                    .unwrap_or_default()
            };
            let ((limit, should), (_, is)) = (word(wanted), word(present.unwrap_or(0)));
            found.push(Removal { limit, is, should, messages, of: stored });
        }
    }
    found
}

fn beyond_bytes(info: &Value, stored: u64, wanted: u64) -> u64 {
    let bytes = info.pointer("/state/bytes").and_then(Value::as_u64).unwrap_or(0);
    let mean = (bytes / stored).max(1);
    bytes.saturating_sub(wanted).div_ceil(mean).min(stored)
}

// By the server's clock, and halving what lies between the oldest and the newest. What cannot be found out counts as beyond.
async fn beyond_age(js: &jetstream::Context, info: &Value, stored: u64, wanted: u64) -> u64 {
    let at = |pointer: &str| info.pointer(pointer).and_then(Value::as_str).and_then(moment);
    let number = |pointer: &str| info.pointer(pointer).and_then(Value::as_u64);
    let (Some(now), Some(oldest)) = (at("/ts"), at("/state/first_ts")) else { return stored };
    let kept_from = now - i128::from(wanted);
    let (Some(first), Some(last)) = (number("/state/first_seq"), number("/state/last_seq")) else { return stored };
    if oldest >= kept_from {
        return 0;
    }
    if at("/state/last_ts").is_some_and(|newest| newest < kept_from) {
        return stored;
    }
    let stream = info.pointer("/config/name").and_then(Value::as_str).unwrap_or_default();
    // `goes` is too old; `stays` is not.
    let (mut goes, mut stays) = (first, last);
    while stays - goes > 1 {
        let middle = goes + (stays - goes) / 2;
        let body = json!({ "seq": middle, "next_by_subj": ">" });
        let Ok(answer) = call(js, format!("STREAM.MSG.GET.{stream}"), Some(&body)).await else { return stored };
        let Some(time) = answer.pointer("/message/time").and_then(Value::as_str).and_then(moment) else {
            return stored;
        };
        match time < kept_from {
            true => goes = middle,
            false => stays = middle,
        }
    }
    let (span, share) = (u128::from(last - first) + 1, u128::from(stays - first));
    u64::try_from(u128::from(stored) * share / span).unwrap_or(stored).clamp(1, stored)
}

// The first page of subjects: a hundred thousand.
async fn beyond_history(js: &jetstream::Context, info: &Value, stored: u64, wanted: u64) -> u64 {
    let stream = info.pointer("/config/name").and_then(Value::as_str).unwrap_or_default();
    let body = json!({ "subjects_filter": ">" });
    let Ok(answer) = call(js, format!("STREAM.INFO.{stream}"), Some(&body)).await else { return stored };
    let Some(subjects) = answer.pointer("/state/subjects").and_then(Value::as_object) else { return 0 };
    subjects.values().filter_map(Value::as_u64).map(|messages| messages.saturating_sub(wanted)).sum()
}

fn moment(text: &str) -> Option<i128> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp_nanos)
}
