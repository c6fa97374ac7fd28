//! Everything that an application needs on the server, as one document. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::spec::{millis, millis_option};
use super::{BucketSpec, ConsumerSpec, StreamSpec};
use crate::error::{Error, ErrorKind, Result};

/// What an application needs on the server. In a file, durations are milliseconds (`max_age_ms`).
///
/// ```
/// let manifest = nats_bridge::Manifest::from_toml(r#"
///     [[streams]]
///     name = "ORDERS"
///     subjects = ["orders.>"]
///     retention = "work_queue"
///     max_bytes = 1_073_741_824
///
///     [[dead_letters]]
///     of = "ORDERS"
///
///     [[consumers]]
///     stream = "ORDERS"
///     name = "billing"
///
///     [[buckets]]
///     name = "sessions"
///     max_bytes = 10_000_000
///     ttl_ms = 3_600_000
/// "#)?;
/// assert_eq!(manifest.streams[0].name, "ORDERS");
/// # Ok::<(), nats_bridge::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Manifest {
    /// Demands subjects of a certain form; default none.
    pub naming: Naming,
    /// Streams, made before the consumers.
    pub streams: Vec<StreamSpec>,
    /// Dead-letter streams.
    pub dead_letters: Vec<DeadLetterSpec>,
    /// Durable pull consumers.
    pub consumers: Vec<ConsumerSpec>,
    /// Key-value buckets.
    pub buckets: Vec<BucketSpec>,
}

/// How subjects must look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// As they like.
    #[default]
    Free,
    /// `<domain>.v<major>.<entity>[.<action>]`, with one major version for each stream, so that a new major version is a
    /// stream of its own beside the old one.
    Versioned,
}

/// The dead-letter stream of a stream: `{of}_DLQ` on `dlq.{of}.>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetterSpec {
    /// The stream whose messages are given up.
    pub of: String,
    /// Copies on different servers; default 1.
    pub replicas: u8,
    /// The most bytes it may hold; default 1 GiB. Full, it refuses letters, and consumers pause.
    pub max_bytes: u64,
    /// The longest a letter is kept; default 30 days.
    #[serde(rename = "max_age_ms", with = "millis")]
    pub max_age: Duration,
    /// How long an id is remembered, so that a letter that is handed over twice is stored once; default 120 s.
    #[serde(rename = "duplicate_window_ms", with = "millis_option", skip_serializing_if = "Option::is_none")]
    pub duplicate_window: Option<Duration>,
}

impl Default for DeadLetterSpec {
    fn default() -> Self {
        DeadLetterSpec {
            of: String::new(),
            replicas: 1,
            max_bytes: 1 << 30,
            max_age: Duration::from_secs(30 * 24 * 3600),
            duplicate_window: None,
        }
    }
}

impl DeadLetterSpec {
    /// The stream that it means.
    pub fn stream(&self) -> StreamSpec {
        let default = StreamSpec::dead_letters_of(&self.of);
        StreamSpec {
            replicas: self.replicas,
            max_bytes: Some(self.max_bytes),
            max_age: Some(self.max_age),
            duplicate_window: self.duplicate_window.unwrap_or(default.duplicate_window),
            ..default
        }
    }
}

impl Manifest {
    /// Reads a manifest from TOML.
    ///
    /// # Errors
    /// `Config`: it is not TOML, names a field that there is not, or a value does not fit; `why` says where.
    pub fn from_toml(text: &str) -> Result<Manifest> {
        toml::from_str(text).map_err(|e| Error::new(ErrorKind::Config).with("manifest", "TOML").with("why", e))
    }

    /// All streams: those that are named, those of dead letters, and those below the buckets.
    pub(super) fn all_streams(&self) -> impl Iterator<Item = StreamSpec> {
        self.streams.iter().cloned().chain(self.dead_letters.iter().map(DeadLetterSpec::stream))
    }

    /// Checks what can be checked without a server.
    ///
    /// # Errors
    /// `Config`: a spec is wrong, a name is given twice, or a subject is not as `naming` demands.
    pub fn check(&self) -> Result<()> {
        let mut names: Vec<String> = Vec::new();
        for spec in self.all_streams() {
            spec.check()?;
            names.push(format!("stream {}", spec.name));
        }
        for spec in &self.consumers {
            spec.check()?;
            names.push(format!("consumer {}/{}", spec.stream, spec.name));
        }
        for spec in &self.buckets {
            spec.check()?;
            names.push(format!("bucket {}", spec.name));
        }
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::new(ErrorKind::Config).with("object", &twice[0]).with("why", "it is named twice"));
        }
        match self.naming {
            Naming::Free => Ok(()),
            Naming::Versioned => self.streams.iter().try_for_each(check_versions),
        }
    }
}

fn check_versions(spec: &StreamSpec) -> Result<()> {
    let wrong = |subject: &str, why: &str| {
        Err(Error::new(ErrorKind::Config).with("stream", &spec.name).with("subject", subject).with("why", why))
    };
    let mut majors = Vec::new();
    for subject in spec.subjects() {
        let words: Vec<&str> = subject.split('.').collect();
        let [domain, version, entity, ..] = words[..] else {
            return wrong(&subject, "<domain>.v<major>.<entity>[.<action>] is demanded");
        };
        let named = |word: &str| !word.is_empty() && !word.contains(['*', '>']);
        let major = version.strip_prefix('v').and_then(|digits| digits.parse::<u32>().ok()).filter(|major| *major > 0);
        match major {
            Some(major) if named(domain) && !entity.is_empty() && words.len() <= 4 => majors.push(major),
            _ => return wrong(&subject, "<domain>.v<major>.<entity>[.<action>] is demanded"),
        }
    }
    match majors.windows(2).all(|pair| pair[0] == pair[1]) {
        true => Ok(()),
        false => wrong(&spec.subjects().join(", "), "one stream for each major version is demanded"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_a_file_is_named_with_its_place() {
        let error = |text| Manifest::from_toml(text).unwrap_err().to_string();
        let unknown = error("[[streams]]\nname = \"A\"\nmax_byte = 5\n");
        assert!(unknown.contains("max_byte") && unknown.contains("line 3"), "{unknown}");
        assert!(error("[[consumers]]\nstream = 5\n").contains("line 2"));
        assert!(error("[[streams]\n").contains("line 1"));
    }

    #[test]
    fn a_name_is_given_once() {
        let manifest = Manifest {
            dead_letters: vec![DeadLetterSpec { of: "A".into(), ..Default::default() }; 2],
            ..Default::default()
        };
        assert!(manifest.check().unwrap_err().to_string().contains("stream A_DLQ"));
    }

    #[test]
    fn versions_have_streams_of_their_own() {
        let check = |subjects: &[&str]| {
            let stream = StreamSpec { unbounded: true, ..StreamSpec::new("A", subjects.to_vec()) };
            Manifest { naming: Naming::Versioned, streams: vec![stream], ..Default::default() }.check()
        };
        assert!(check(&["ingest.v1.raw"]).is_ok() && check(&["ingest.v2.raw.>", "ingest.v2.clean.done"]).is_ok());
        for wrong in [
            &["ingest.raw"][..],
            &["ingest.1.raw"],
            &["*.v1.raw"],
            &["ingest.v0.raw"],
            &["ingest.v1.raw", "ingest.v2.raw"],
        ] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
    }
}
