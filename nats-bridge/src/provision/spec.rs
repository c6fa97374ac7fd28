//! What streams and consumers should be. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::subjects;
use crate::consume::HEADROOM;
use crate::dead_letter;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Fsync;
use crate::retry::RetryPolicy;

/// One stream.
/// ```no_run
/// # async fn example(bridge: nats_bridge::Bridge) -> nats_bridge::Result<()> {
/// use std::time::Duration;
/// use nats_bridge::provision::{Retention, StreamSpec};
///
/// // Made, changed in place, or left as it is; what cannot be changed in place is a `Conflict`.
/// bridge
///     .ensure_stream(&StreamSpec {
///         retention: Retention::WorkQueue,
///         max_bytes: Some(10 << 30),
///         replicas: 3,
///         duplicate_window: Duration::from_secs(600),
///         ..StreamSpec::new("ORDERS", ["orders.>"])
///     })
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamSpec {
    /// Its name: no spaces, dots, `*`, `>`, `/`, `\`; at most 255 bytes.
    pub name: String,
    /// The subjects that it stores, with wildcards; default `{name in lower case}.>`.
    pub subjects: Vec<String>,
    /// When a message leaves the stream; default [`Retention::Limits`]. It cannot be changed later.
    pub retention: Retention,
    /// Where it is kept; default [`Storage::File`]. It cannot be changed later.
    pub storage: Storage,
    /// Copies on different servers; default 1.
    pub replicas: u8,
    /// The most bytes it may hold.
    pub max_bytes: Option<u64>,
    /// The most messages it may hold.
    pub max_messages: Option<u64>,
    /// The longest a message is kept.
    #[serde(rename = "max_age_ms", with = "millis_option")]
    pub max_age: Option<Duration>,
    /// What happens at a limit; default [`Discard::New`].
    pub discard: Discard,
    /// How long an id is remembered; default 120 s. At most `max_age`.
    #[serde(rename = "duplicate_window_ms", with = "millis")]
    pub duplicate_window: Duration,
    /// Allows a stream without the limits that are otherwise demanded: `max_bytes`, and `max_age` with
    /// [`Retention::Limits`].
    pub unbounded: bool,
    /// Demands that a confirmed message survives the loss of a machine: three replicas, or a server that is known to sync
    /// before it confirms ([`Fsync::Always`](crate::Fsync)); default false.
    pub durable: bool,
}

/// When a message leaves a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// At the stream's limits; consumers read without removing.
    Limits,
    /// When its consumer has acked or terminated it; each message is for one consumer.
    WorkQueue,
    /// When all consumers have; without consumers nothing is kept.
    Interest,
}

/// Where a stream is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// On disk. How soon it is really there is the server's `sync_interval`, two minutes by default.
    File,
    /// In memory: lost when the server stops.
    Memory,
}

/// What happens when a stream is at a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Discard {
    /// New messages are refused; publishing says `Rejected`. Nothing that was stored is lost.
    New,
    /// The oldest messages are dropped, delivered or not.
    Old,
}

/// One durable pull consumer with explicit acks.
/// ```no_run
/// # async fn example(bridge: nats_bridge::Bridge) -> nats_bridge::Result<()> {
/// use nats_bridge::provision::ConsumerSpec;
///
/// // `Bridge::consume` makes its own; this is for set-up beforehand, with other rights.
/// let spec = ConsumerSpec {
///     stream: "ORDERS".into(),
///     name: "billing".into(),
///     filter_subjects: vec!["orders.new".into()],
///     ..ConsumerSpec::default()
/// };
/// bridge.ensure_consumer(&spec).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsumerSpec {
    /// The stream that it reads.
    pub stream: String,
    /// Its name, which all instances of a service share.
    pub name: String,
    /// Which subjects it reads; default all.
    pub filter_subjects: Vec<String>,
    /// How long a delivery may stay without a sign of life; default 30 s.
    #[serde(rename = "ack_wait_ms", with = "millis")]
    pub ack_wait: Duration,
    /// How often the server delivers a message at most: a net below the retry policy, not the policy. Default 1 005; none:
    /// without end.
    pub max_deliver: Option<u32>,
}

impl Default for StreamSpec {
    fn default() -> Self {
        StreamSpec {
            name: String::new(),
            subjects: Vec::new(),
            retention: Retention::Limits,
            storage: Storage::File,
            replicas: 1,
            max_bytes: None,
            max_messages: None,
            max_age: None,
            discard: Discard::New,
            duplicate_window: Duration::from_secs(120),
            unbounded: false,
            durable: false,
        }
    }
}

impl Default for ConsumerSpec {
    fn default() -> Self {
        ConsumerSpec {
            stream: String::new(),
            name: String::new(),
            filter_subjects: Vec::new(),
            ack_wait: Duration::from_secs(30),
            max_deliver: Some(RetryPolicy::default().attempts + HEADROOM),
        }
    }
}

impl StreamSpec {
    /// A stream that keeps messages up to its limits.
    pub fn new(name: impl Into<String>, subjects: impl IntoIterator<Item = impl Into<String>>) -> StreamSpec {
        let subjects = subjects.into_iter().map(Into::into).collect();
        StreamSpec { name: name.into(), subjects, ..StreamSpec::default() }
    }

    /// The dead-letter stream of a stream: `{stream}_DLQ` on `dlq.{stream}.>`, 30 days, 1 GiB, full means that new
    /// letters are refused and consumers pause.
    pub fn dead_letters_of(stream: &str) -> StreamSpec {
        StreamSpec {
            name: dead_letter::default_stream(stream),
            subjects: vec![dead_letter::subject(stream, ">")],
            max_bytes: Some(1 << 30),
            max_age: Some(Duration::from_secs(30 * 24 * 3600)),
            ..StreamSpec::default()
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_name("stream", &self.name)?;
        let wrong = |field: &'static str, why: String| Err(Error::setting(field, why).within("stream", &self.name));
        if !self.unbounded {
            if self.max_bytes.is_none() {
                return wrong("max_bytes", "there is none: give one, or say `unbounded`".into());
            }
            if self.retention == Retention::Limits && self.max_age.is_none() {
                return wrong("max_age_ms", "there is none: give one, or say `unbounded`".into());
            }
        }
        // 0 is no limit to the server.
        for (field, limit) in [("max_bytes", self.max_bytes), ("max_messages", self.max_messages)] {
            if limit == Some(0) {
                return wrong(field, "it is at least 1; leave it out for no limit".into());
            }
        }
        let shortest = Duration::from_millis(100);
        for (field, time) in [("max_age_ms", self.max_age), ("duplicate_window_ms", Some(self.duplicate_window))] {
            if time.is_some_and(|time| time < shortest) {
                return wrong(field, "it is at least 100 ms".into());
            }
        }
        if self.max_age.is_some_and(|age| age < self.duplicate_window) {
            return wrong("duplicate_window_ms", "it is longer than messages are kept".into());
        }
        check_replicas(self.replicas).or_else(|why| wrong("replicas", why))?;
        let all = self.subjects();
        if let Some((subject, why)) = all.iter().find_map(|subject| Some((subject, subjects::refused(subject)?))) {
            return wrong("subjects", format!("`{}`: {why}", subject.escape_debug()));
        }
        match subjects::pair(&all) {
            Some((one, other)) => wrong("subjects", format!("`{one}` and `{other}` overlap")),
            None => Ok(()),
        }
    }

    pub(super) fn check_durable(&self, fsync: Fsync) -> Result<()> {
        let kept = self.storage == Storage::File && (self.replicas >= 3 || fsync == Fsync::Always);
        match self.durable && !kept {
            true => Err(Error::new(ErrorKind::Config).with("stream", &self.name).with("fsync", fsync).with(
                "why",
                "durable asks for file storage and three replicas, or a server that syncs before it confirms",
            )),
            false => Ok(()),
        }
    }

    pub(crate) fn warnings(&self, longest_publish: Duration, fsync: Fsync) -> Vec<String> {
        let mut warnings = Vec::new();
        match (self.storage, fsync) {
            (Storage::File, Fsync::Always) => {}
            (Storage::File, fsync) if self.replicas <= 1 => warnings.push(format!(
                "stream {}: replicas = 1, and a confirmed message is on disk {}: a power cut may lose it",
                self.name,
                match fsync {
                    Fsync::Unknown => "only after the server's sync_interval (2 minutes by default)".to_owned(),
                    fsync => fsync.to_string(),
                }
            )),
            (Storage::Memory, _) if self.replicas <= 1 => {
                warnings.push(format!("stream {}: in the memory of one server: lost when it stops", self.name));
            }
            _ => {}
        }
        if self.duplicate_window < longest_publish {
            warnings.push(format!(
                "stream {}: duplicate_window {:?} is shorter than the publish deadline {longest_publish:?}: resends stop at the window",
                self.name, self.duplicate_window
            ));
        }
        if self.discard == Discard::Old && (self.max_bytes.is_some() || self.max_messages.is_some()) {
            warnings.push(format!("stream {}: at a limit it drops its oldest messages, delivered or not", self.name));
        }
        warnings
    }

    pub(super) fn subjects(&self) -> Vec<String> {
        match self.subjects.is_empty() {
            true => vec![format!("{}.>", self.name.to_ascii_lowercase())],
            false => self.subjects.clone(),
        }
    }

    // The fields of the server's stream configuration that we decide.
    pub(crate) fn config(&self) -> Map<String, Value> {
        let limit = |limit: Option<u64>| limit.map_or(json!(-1), |n| json!(n));
        object(json!({
            "name": self.name,
            "subjects": self.subjects(),
            "retention": match self.retention {
                Retention::Limits => "limits",
                Retention::WorkQueue => "workqueue",
                Retention::Interest => "interest",
            },
            "storage": match self.storage { Storage::File => "file", Storage::Memory => "memory" },
            "num_replicas": self.replicas,
            "max_bytes": limit(self.max_bytes),
            "max_msgs": limit(self.max_messages),
            "max_age": self.max_age.map_or(0, nanos),
            "discard": match self.discard { Discard::New => "new", Discard::Old => "old" },
            "duplicate_window": nanos(self.duplicate_window),
        }))
    }
}

impl ConsumerSpec {
    pub(crate) fn check(&self) -> Result<()> {
        check_name("stream", &self.stream)?;
        check_name("consumer", &self.name)?;
        let wrong = |field: &'static str, why: String| Err(Error::setting(field, why).within("consumer", &self.name));
        let illegal = |subject: &&String| subjects::malformed(subject).is_some();
        match self {
            c if c.ack_wait < Duration::from_millis(100) => wrong("ack_wait_ms", "it is at least 100 ms".into()),
            c if c.max_deliver == Some(0) => wrong("max_deliver", "it is at least 1".into()),
            c => match (c.filter_subjects.iter().find(illegal), subjects::pair(&c.filter_subjects)) {
                (Some(subject), _) => wrong("filter_subjects", format!("`{}` is no subject", subject.escape_debug())),
                (None, Some((one, other))) => wrong("filter_subjects", format!("`{one}` and `{other}` overlap")),
                (None, None) => Ok(()),
            },
        }
    }

    // Credit bounds what one instance holds; a limit on the server (default 1000) would let one instance stall others.
    pub(crate) fn config(&self) -> Map<String, Value> {
        let mut config = object(json!({
            "durable_name": self.name,
            "name": self.name,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": nanos(self.ack_wait),
            "max_deliver": self.max_deliver.map_or(-1, i64::from),
            "max_ack_pending": -1,
            // It would replace `ack_wait` and leave plain NAKs alone: pauses are the retry policy's.
            "backoff": [],
            "replay_policy": "instant",
        }));
        // The server refuses both fields at once, and takes an empty one as absent.
        let (one, many) = match &self.filter_subjects[..] {
            [one] => (json!(one), json!([])),
            many => (json!(""), json!(many)),
        };
        config.insert("filter_subject".into(), one);
        config.insert("filter_subjects".into(), many);
        config
    }
}

/// How many copies of a stream there can be.
pub(super) fn check_replicas(replicas: u8) -> Result<(), String> {
    match replicas {
        1..=5 => Ok(()),
        _ => Err("it is 1 to 5".into()),
    }
}

pub(crate) fn check_name(what: &'static str, name: &str) -> Result<()> {
    let legal = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '.' | '*' | '>' | '/' | '\\');
    match !name.is_empty() && name.len() <= 255 && name.chars().all(legal) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Config)
            .with(what, name.escape_debug())
            .with("why", "a name is 1 to 255 bytes without spaces, dots, `*`, `>`, `/`, `\\`")),
    }
}

pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

pub(super) mod millis {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_millis)
    }
}

pub(super) mod millis_option {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        value.map(|v| u64::try_from(v.as_millis()).unwrap_or(u64::MAX)).serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(d)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Manifest;

    #[test]
    fn an_unbounded_stream_is_refused_unless_said() {
        let bare = StreamSpec::new("ORDERS", ["orders.>"]);
        assert!(bare.check().is_err());
        assert!(StreamSpec { unbounded: true, ..bare.clone() }.check().is_ok());
        assert!(StreamSpec { max_bytes: Some(1), ..bare.clone() }.check().is_err());
        let queue = StreamSpec { max_bytes: Some(1), retention: Retention::WorkQueue, ..bare };
        assert!(queue.check().is_ok());
        assert!(StreamSpec::dead_letters_of("ORDERS").check().is_ok());
    }

    #[test]
    fn illegal_names_are_refused() {
        for name in ["", "a b", "a.b", "a*", ">", "a/b", "a\\b", "a\n"] {
            assert!(check_name("stream", name).is_err(), "{name:?}");
        }
        assert!(check_name("stream", "ORDERS-eu_1=2").is_ok());
    }

    #[test]
    fn a_manifest_reads_durations_in_milliseconds() {
        let text = r#"{"streams":[{"name":"A","max_age_ms":1500,"max_bytes":10,"duplicate_window_ms":100}]}"#;
        let manifest: Manifest = serde_json::from_str(text).unwrap();
        assert_eq!(manifest.streams[0].max_age, Some(Duration::from_millis(1500)));
        assert!(serde_json::from_str::<Manifest>(r#"{"streams":[{"nmae":"A"}]}"#).is_err());
        let again: Manifest = serde_json::from_str(&serde_json::to_string(&manifest).unwrap()).unwrap();
        assert_eq!(again, manifest);
    }
}
