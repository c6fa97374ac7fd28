//! Key-value buckets as data. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Storage;
use super::spec::{check_name, check_replicas, millis_option, nanos, object};
use crate::error::{Error, Result};

/// One key-value bucket.
///
/// Source: NATS ADR-8 "JetStream based Key-Value Stores".
/// ```no_run
/// # async fn example(bridge: nats_bridge::Bridge) -> nats_bridge::Result<()> {
/// use std::time::Duration;
/// use nats_bridge::provision::BucketSpec;
///
/// let sessions = BucketSpec {
///     name: "sessions".into(),
///     ttl: Some(Duration::from_secs(3600)),
///     max_bytes: Some(64 << 20),
///     ..BucketSpec::default()
/// };
/// bridge.ensure_bucket(&sessions).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketSpec {
    /// Its name: letters, digits, `-`, `_`.
    pub name: String,
    /// How many values of each key are kept, 1 to 64; default 1.
    pub history: u8,
    /// How long a value lives; default without end.
    #[serde(rename = "ttl_ms", with = "millis_option")]
    pub ttl: Option<Duration>,
    /// The most bytes it may hold.
    pub max_bytes: Option<u64>,
    /// Where it is kept; default [`Storage::File`]. It cannot be changed later.
    pub storage: Storage,
    /// Copies on different servers; default 1.
    pub replicas: u8,
    /// Allows a bucket without `max_bytes`, which is otherwise demanded.
    pub unbounded: bool,
}

impl Default for BucketSpec {
    fn default() -> Self {
        BucketSpec {
            name: String::new(),
            history: 1,
            ttl: None,
            max_bytes: None,
            storage: Storage::File,
            replicas: 1,
            unbounded: false,
        }
    }
}

impl BucketSpec {
    /// The stream that the bucket is.
    pub fn stream(&self) -> String {
        format!("KV_{}", self.name)
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_name("bucket", &self.name)?;
        let wrong = |field: &'static str, why: &str| Err(Error::setting(field, why).within("bucket", &self.name));
        match self {
            b if !b.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') => {
                wrong("name", "a bucket's name has letters, digits, `-`, `_`")
            }
            b if b.history == 0 || b.history > 64 => wrong("history", "it is 1 to 64"),
            b if b.max_bytes.is_none() && !b.unbounded => {
                wrong("max_bytes", "there is none: give one, or say `unbounded`")
            }
            b if b.max_bytes == Some(0) => wrong("max_bytes", "it is at least 1; leave it out for no limit"),
            b if b.ttl.is_some_and(|ttl| ttl < Duration::from_millis(100)) => wrong("ttl_ms", "it is at least 100 ms"),
            b => check_replicas(b.replicas).or_else(|why| wrong("replicas", &why)),
        }
    }

    pub(super) fn config(&self) -> Map<String, Value> {
        let window = Duration::from_secs(120);
        object(json!({
            "name": self.stream(),
            "subjects": [format!("$KV.{}.>", self.name)],
            "retention": "limits",
            "storage": match self.storage { Storage::File => "file", Storage::Memory => "memory" },
            "num_replicas": self.replicas,
            "max_msgs_per_subject": self.history,
            "max_bytes": self.max_bytes.map_or(json!(-1), |n| json!(n)),
            "max_age": self.ttl.map_or(0, nanos),
            "duplicate_window": nanos(self.ttl.map_or(window, |ttl| ttl.min(window))),
            "discard": "new",
            "allow_rollup_hdrs": true,
            "deny_delete": true,
            "allow_direct": true,
            "max_msgs": -1,
            "max_msg_size": -1,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_bounded_and_has_a_legal_name() {
        let bounded = BucketSpec { name: "sessions".into(), max_bytes: Some(1), ..BucketSpec::default() };
        assert!(bounded.check().is_ok());
        assert!(BucketSpec { max_bytes: None, ..bounded.clone() }.check().is_err());
        assert!(BucketSpec { max_bytes: None, unbounded: true, ..bounded.clone() }.check().is_ok());
        for name in ["", "a.b", "a b", "ä"] {
            assert!(BucketSpec { name: name.into(), ..bounded.clone() }.check().is_err(), "{name:?}");
        }
        assert!(BucketSpec { history: 65, ..bounded }.check().is_err());
    }
}
