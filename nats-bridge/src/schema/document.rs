//! What the registry keeps of one schema. Pure.

use serde::{Deserialize, Serialize};

use super::compatibility::{Compatibility, Pair};
use super::contains::Difference;
use super::language::Language;
use crate::error::{Error, ErrorKind, Result};

/// A schema that is to be registered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// Its text.
    pub schema: String,
    /// What language it is in; default [`Format::Json`].
    #[serde(default)]
    pub format: Format,
    /// What new versions owe to older ones from now on; default: as it was, or [`Compatibility::Backward`] for the first one.
    #[serde(default)]
    pub compatibility: Option<Compatibility>,
    /// Subjects on which messages may have it from now on, with wildcards; default: as it was, or everywhere for the first one.
    #[serde(default)]
    pub subjects: Option<Vec<String>>,
}

/// A schema language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Format {
    /// JSON Schema; the draft is what `$schema` says, else 2020-12.
    #[default]
    Json,
    /// Apache Avro; a payload is one datum in its binary encoding, without a header. With the feature `avro`; else refused.
    Avro,
    /// Protocol Buffers: the text of one `.proto` file, `proto2` or `proto3`, that imports nothing but `google/protobuf/*`; a payload is its first
    /// message. With the feature `protobuf`; else refused.
    Protobuf,
}

/// One version of a schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schema {
    /// Its name.
    pub name: String,
    /// Its version, from 1.
    pub version: u32,
    /// What language it is in.
    pub format: Format,
    /// Its text, as it was registered.
    pub schema: String,
    /// What new versions owe to older ones.
    pub compatibility: Compatibility,
    /// Subjects on which messages may have it; none: everywhere.
    pub subjects: Vec<String>,
}

/// All versions of one schema.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Document {
    pub format: Format,
    pub compatibility: Compatibility,
    pub subjects: Vec<String>,
    /// The first one is version 1.
    pub versions: Vec<String>,
}

/// Versions of one schema; the newest cannot become incomparable with too many.
const VERSIONS: usize = 1000;

impl Draft {
    /// A JSON Schema with this text.
    pub fn json(schema: impl Into<String>) -> Draft {
        Draft { schema: schema.into(), format: Format::Json, compatibility: None, subjects: None }
    }

    /// What would not be compatible, if this came behind these versions, the oldest first. No registry is asked.
    ///
    /// ```
    /// use nats_bridge::schema::Draft;
    ///
    /// let old = Draft::json(r#"{"type": "integer", "maximum": 9}"#);
    /// let new = Draft::json(r#"{"type": "integer", "maximum": 8}"#);
    /// assert_eq!(new.differences(&[old]).unwrap()[0].rule, "MAXIMUM_DECREASED");
    /// ```
    ///
    /// # Errors
    /// `Config`: one of them is not a schema. `Conflict`: they are in several languages. `Unsupported`: a language was left out.
    pub fn differences(&self, before: &[Draft]) -> Result<Vec<Difference>> {
        let new = Language::read(self.format, &self.schema)?;
        if let Some(other) = before.iter().find(|old| old.format != self.format) {
            let why = format!("it is {}, and was {}", self.format.name(), other.format.name());
            return Err(Error::new(ErrorKind::Conflict).with("why", why));
        }
        let versions = before.iter().map(|old| old.schema.clone()).collect();
        let document = Document { versions, ..Document::new(self.format) };
        let found = document.differences(self.compatibility.unwrap_or_default(), &new)?;
        Ok(found.into_iter().map(|(_, difference)| difference).collect())
    }

    /// Reads it.
    ///
    /// # Errors
    /// `Config`: it is not a schema. `Unsupported`: its language.
    pub(super) fn read(&self, name: &str) -> Result<Language> {
        if let Some(subject) = self.subjects.iter().flatten().find(|subject| !is_pattern(subject)) {
            return Err(Error::new(ErrorKind::Config)
                .with("schema", name)
                .with("subjects", subject.escape_debug())
                .with("why", "a subject is words joined by dots; `*` is any word, `>` at the end any words"));
        }
        Language::read(self.format, &self.schema).map_err(|error| error.with("schema", name))
    }
}

impl Format {
    /// Its name: `json`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Avro => "avro",
            Format::Protobuf => "protobuf",
        }
    }
}

impl Document {
    pub fn new(format: Format) -> Document {
        let compatibility = Compatibility::default();
        Document { format, compatibility, subjects: Vec::new(), versions: Vec::new() }
    }

    /// This document with a further version, and its number; or the number of a version with the same text.
    ///
    /// # Errors
    /// `Conflict`: it is in another language, or not compatible; the first difference is named.
    pub fn with(&self, name: &str, draft: &Draft, new: &Language) -> Result<(Document, u32)> {
        let conflict = || Error::new(ErrorKind::Conflict).with("schema", name);
        let mut next = self.clone();
        if let Some(compatibility) = draft.compatibility {
            next.compatibility = compatibility;
        }
        if let Some(subjects) = &draft.subjects {
            next.subjects.clone_from(subjects);
        }
        if let Some(index) = self.versions.iter().position(|text| same(text, &draft.schema)) {
            return Ok((next, index as u32 + 1));
        }
        if self.format != draft.format && !self.versions.is_empty() {
            return Err(conflict().with("why", format!("it is {} so far", self.format.name())));
        }
        if self.versions.len() >= VERSIONS {
            return Err(conflict().with("why", "it has 1000 versions; give it another name"));
        }
        let incompatible = self.differences(next.compatibility, new)?;
        if let Some((pair, difference)) = incompatible.first() {
            return Err(conflict()
                .with("compatibility", next.compatibility.name())
                .with("reader", version(pair.reader))
                .with("writer", version(pair.writer))
                .with("path", if difference.path.is_empty() { "/" } else { &difference.path })
                .with("rule", difference.rule)
                .with("why", &difference.detail));
        }
        next.versions.push(draft.schema.clone());
        let number = next.versions.len() as u32;
        Ok((next, number))
    }

    /// What is not compatible, with the versions that are compared; 0 is the new one.
    pub fn differences(&self, compatibility: Compatibility, new: &Language) -> Result<Vec<(Pair<usize>, Difference)>> {
        let before: Vec<usize> = (1..=self.versions.len()).collect();
        let mut found: Vec<(Pair<usize>, Difference)> = Vec::new();
        for pair in compatibility.pairs(0, &before) {
            let old = Language::read(self.format, &self.versions[pair.reader.max(pair.writer) - 1])?;
            for difference in new.differences(&old, pair.reader == 0) {
                // Rules without a direction say the same both ways.
                let known = |(with, one): &(Pair<usize>, Difference)| {
                    with.reader.max(with.writer) == pair.reader.max(pair.writer) && *one == difference
                };
                if !found.iter().any(known) {
                    found.push((pair, difference));
                }
            }
        }
        Ok(found)
    }

    /// One version; the newest when none is named.
    pub fn version(&self, name: &str, version: Option<u32>) -> Option<Schema> {
        let version = version.unwrap_or(self.versions.len() as u32);
        let schema = self.versions.get((version as usize).checked_sub(1)?)?.clone();
        Some(Schema {
            name: name.to_owned(),
            version,
            format: self.format,
            schema,
            compatibility: self.compatibility,
            subjects: self.subjects.clone(),
        })
    }
}

impl Schema {
    /// Whether a message on this subject may have it.
    pub(super) fn may_be_on(&self, subject: &str) -> bool {
        self.subjects.is_empty() || self.subjects.iter().any(|pattern| fits(pattern, subject))
    }
}

fn version(number: usize) -> String {
    if number == 0 { "new".to_owned() } else { number.to_string() }
}

// Text that differs in white space and the order of names is the same schema.
fn same(one: &str, other: &str) -> bool {
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    one == other || read(one).is_some_and(|one| Some(one) == read(other))
}

fn is_pattern(subject: &str) -> bool {
    let words: Vec<&str> = subject.split('.').collect();
    let whole = |word: &&str| !word.is_empty() && !word.contains(char::is_whitespace);
    words.iter().all(whole) && words.iter().rev().skip(1).all(|word| *word != ">")
}

fn fits(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(word), Some(other)) if word == "*" || word == other => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = r#"{"type":"object","properties":{"id":{"type":"integer","maximum":10}}}"#;
    const V2: &str = r#"{"type":"object","properties":{"id":{"type":"integer","maximum":20}}}"#;
    const V3: &str = r#"{"type":"object","properties":{"id":{"type":"integer","maximum":5}}}"#;

    fn added(document: &Document, draft: &Draft) -> Result<(Document, u32)> {
        document.with("order", draft, &draft.read("order")?)
    }

    #[test]
    fn a_version_that_is_not_compatible_is_refused_by_path_rule_and_value() {
        let (one, _) = added(&Document::new(Format::Json), &Draft::json(V1)).unwrap();
        let (two, number) = added(&one, &Draft::json(V2)).unwrap();
        assert_eq!(number, 2);
        let error = added(&two, &Draft::json(V3)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let text = error.to_string();
        for part in [
            "schema=order",
            "compatibility=BACKWARD",
            "reader=new",
            "writer=2",
            "path=/id",
            "rule=MAXIMUM_DECREASED",
            "maximum 5",
        ] {
            assert!(text.contains(part), "{text}");
        }
        // The same one, written otherwise, is the one that is there.
        let again = Draft::json(V1.replace(':', " : "));
        assert_eq!(added(&two, &again).unwrap().1, 1);
        let none = Draft { compatibility: Some(Compatibility::None), ..Draft::json(V3) };
        assert_eq!(added(&two, &none).unwrap().1, 3);
        // Forward: what is there has to read the new one.
        let forward = Draft { compatibility: Some(Compatibility::Forward), ..Draft::json(V3) };
        assert_eq!(added(&two, &forward).unwrap().1, 3);
    }

    #[test]
    fn subjects_that_are_none_are_refused() {
        for subject in ["", "a..b", "a.>.b", "a b"] {
            let draft = Draft { subjects: Some(vec![subject.into()]), ..Draft::json("{}") };
            assert_eq!(draft.read("order").unwrap_err().kind(), ErrorKind::Config, "{subject:?}");
        }
        assert!(fits("orders.*.created", "orders.v1.created") && fits("orders.>", "orders.a.b") && fits("a", "a"));
        assert!(!fits("orders.*", "orders.a.b") && !fits("orders.>", "orders") && !fits("a.b", "a"));
    }
}
