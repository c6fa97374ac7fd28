//! Everything that an application needs on the server, as one document. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::spec::{check_name, millis, millis_option};
use super::subjects::meet;
use super::{BucketSpec, ConsumerSpec, Retention, StreamSpec};
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
    /// `Config`: a spec is wrong, a name is given twice, subjects of two streams overlap, two consumers of a work queue would get the same
    /// messages, or a subject is not as `naming` demands; `table` and `field` say where in the file.
    pub fn check(&self) -> Result<()> {
        let mut names: Vec<String> = Vec::new();
        for spec in &self.streams {
            spec.check().map_err(|error| error.within("table", "streams"))?;
            names.push(format!("stream {}", spec.name));
        }
        for letters in &self.dead_letters {
            let placed = |error: Error| error.within("of", letters.of.escape_debug()).within("table", "dead_letters");
            check_name("stream", &letters.of).map_err(|error| placed(error.with("field", "of")))?;
            letters.stream().check().map_err(placed)?;
            names.push(format!("stream {}", letters.stream().name));
        }
        for spec in &self.consumers {
            spec.check().map_err(|error| error.within("table", "consumers"))?;
            names.push(format!("consumer {}/{}", spec.stream, spec.name));
        }
        for spec in &self.buckets {
            spec.check().map_err(|error| error.within("table", "buckets"))?;
            names.push(format!("bucket {}", spec.name));
            names.push(format!("stream {}", spec.stream()));
        }
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::new(ErrorKind::Config).with("object", &twice[0]).with("why", "it is named twice"));
        }
        self.check_subjects()?;
        self.check_work_queues()?;
        match self.naming {
            Naming::Free => Ok(()),
            Naming::Versioned => self.streams.iter().try_for_each(check_versions),
        }
    }

    // A subject is one stream's.
    fn check_subjects(&self) -> Result<()> {
        let mut taken: Vec<(String, String)> = Vec::new();
        let streams = self.streams.iter().map(|spec| ("streams", "subjects", spec.name.clone(), spec.subjects()));
        let letters = self.dead_letters.iter().map(|spec| {
            let stream = spec.stream();
            ("dead_letters", "of", stream.name.clone(), stream.subjects())
        });
        let buckets =
            self.buckets.iter().map(|spec| ("buckets", "name", spec.stream(), vec![format!("$KV.{}.>", spec.name)]));
        for (table, field, stream, subjects) in streams.chain(letters).chain(buckets) {
            for subject in &subjects {
                if let Some((other, its)) = taken.iter().find(|(_, its)| meet(its, subject)) {
                    return Err(Error::new(ErrorKind::Config)
                        .with("table", table)
                        .with("stream", stream)
                        .with("field", field)
                        .with("why", format!("`{subject}` overlaps `{its}` of stream {other}")));
                }
            }
            taken.extend(subjects.into_iter().map(|subject| (stream.clone(), subject)));
        }
        Ok(())
    }

    // A message of a work queue is for one consumer.
    fn check_work_queues(&self) -> Result<()> {
        let queues = self.streams.iter().filter(|spec| spec.retention == Retention::WorkQueue);
        for queue in queues {
            let all = [">".to_owned()];
            let filters = |spec: &ConsumerSpec| match spec.filter_subjects.is_empty() {
                true => all.to_vec(),
                false => spec.filter_subjects.clone(),
            };
            let its: Vec<&ConsumerSpec> = self.consumers.iter().filter(|spec| spec.stream == queue.name).collect();
            for (i, one) in its.iter().enumerate() {
                let same =
                    |other: &&&ConsumerSpec| filters(one).iter().any(|a| filters(other).iter().any(|b| meet(a, b)));
                if let Some(other) = its.iter().skip(i + 1).find(same) {
                    return Err(Error::new(ErrorKind::Config)
                        .with("table", "consumers")
                        .with("consumer", &other.name)
                        .with("field", "filter_subjects")
                        .with(
                            "why",
                            format!("it and {} would both get messages of work queue {}", one.name, queue.name),
                        ));
                }
            }
        }
        Ok(())
    }
}

fn check_versions(spec: &StreamSpec) -> Result<()> {
    let wrong = |subject: &str, why: &str| {
        Err(Error::new(ErrorKind::Config)
            .with("table", "streams")
            .with("stream", &spec.name)
            .with("field", "subjects")
            .with("subject", subject)
            .with("why", why))
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
    fn what_the_server_would_refuse_is_refused_with_its_table_and_field() {
        let error = |text: &str| Manifest::from_toml(text).unwrap().check().unwrap_err().to_string();
        let stream = |name: &str, more: &str| format!("[[streams]]\nname = \"{name}\"\nunbounded = true\n{more}\n");
        let queue = stream("A", "subjects = [\"a.>\"]\nretention = \"work_queue\"");
        let consumer = |name: &str, more: &str| format!("[[consumers]]\nstream = \"A\"\nname = \"{name}\"\n{more}\n");
        for (text, told) in [
            (stream("A", "subjects = [\"a b\"]"), "table=streams stream=A field=subjects why=`a b`"),
            (stream("A", "subjects = [\"a.>\", \"a.b\"]"), "table=streams stream=A field=subjects why=`a.>` and `a.b`"),
            (stream("A", "subjects = [\"$JS.API.X\"]"), "field=subjects"),
            (stream("A", "replicas = 7"), "table=streams stream=A field=replicas"),
            (stream("A", "max_messages = 0"), "table=streams stream=A field=max_messages"),
            (stream("A", "duplicate_window_ms = 0"), "table=streams stream=A field=duplicate_window_ms"),
            (
                stream("A", "subjects = [\"a.>\"]") + &stream("B", "subjects = [\"a.*.b\"]"),
                "table=streams stream=B field=subjects why=`a.*.b` overlaps `a.>` of stream A",
            ),
            (
                stream("A", "subjects = [\"dlq.>\"]") + "[[dead_letters]]\nof = \"A\"",
                "table=dead_letters stream=A_DLQ field=of why=`dlq.A.>` overlaps `dlq.>` of stream A",
            ),
            ("[[dead_letters]]\n".to_owned(), "table=dead_letters of= stream= why="),
            (
                "[[dead_letters]]\nof = \"A\"\nmax_bytes = 0".to_owned(),
                "table=dead_letters of=A stream=A_DLQ field=max_bytes",
            ),
            (consumer("c", "filter_subjects = [\"a..b\"]"), "table=consumers consumer=c field=filter_subjects"),
            (
                queue.clone() + &consumer("c", "") + &consumer("d", ""),
                "table=consumers consumer=d field=filter_subjects",
            ),
            ("[[buckets]]\nname = \"b\"".to_owned(), "table=buckets bucket=b field=max_bytes"),
        ] {
            assert!(error(&text).contains(told), "{told}: {}", error(&text));
        }
        let apart = |name: &str, subject: &str| consumer(name, &format!("filter_subjects = [\"{subject}\"]"));
        let apart = queue + &apart("c", "a.b") + &apart("d", "a.c");
        assert_eq!(Manifest::from_toml(&apart).unwrap().check().map_err(|e| e.to_string()), Ok(()));
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
