//! Avro's schema resolution: whether the reader's schema reads all that the writer's allows. Pure.
//!
//! The rules are those of the specification, "Schema Resolution", and have the names that Avro's own Java library and Confluent's Schema
//! Registry give them. Only what is read whatever the writer wrote is compatible: each branch of a writer's union counts.

use foldhash::{HashSet, HashSetExt};

use super::model::{Field, Kind, Model, Named, Type};
use crate::schema::contains::Difference;

/// Why the reader does not read all that the writer allows.
pub(super) fn differences(writer: &Model, reader: &Model) -> Vec<Difference> {
    let mut resolution = Resolution { writer, reader, assumed: HashSet::new(), steps: 0 };
    let mut found = Vec::new();
    resolution.schema(&writer.root, &reader.root, "", &mut found);
    found
}

struct Resolution<'a> {
    writer: &'a Model,
    reader: &'a Model,
    /// Pairs of named types that are being compared further up.
    assumed: HashSet<(String, String)>,
    steps: u32,
}

/// Comparisons after which it is given up.
const STEPS: u32 = 100_000;

impl Resolution<'_> {
    fn schema(&mut self, writer: &Type, reader: &Type, path: &str, found: &mut Vec<Difference>) {
        self.steps += 1;
        if self.steps > STEPS {
            found.push(difference(path, "NOT_COMPARABLE", "the schemas are too large to compare"));
            return;
        }
        match (writer, reader) {
            (Type::Union(branches), _) => {
                for branch in branches {
                    self.schema(branch, reader, path, found);
                }
            }
            (_, Type::Union(branches)) => {
                let read = branches.iter().any(|branch| {
                    let mut missing = Vec::new();
                    self.schema(writer, branch, path, &mut missing);
                    missing.is_empty()
                });
                if !read {
                    let detail = format!("the reader's union has no branch that reads {}", self.name(writer, true));
                    found.push(difference(path, "MISSING_UNION_BRANCH", detail));
                }
            }
            (Type::Array(writer), Type::Array(reader)) | (Type::Map(writer), Type::Map(reader)) => {
                self.schema(writer, reader, &format!("{path}/*"), found);
            }
            (Type::Named(writer), Type::Named(reader)) => self.named(writer, reader, path, found),
            (Type::Decimal(writer), Type::Decimal(reader)) if writer != reader => {
                found.push(difference(path, "TYPE_MISMATCH", "decimals differ in precision or scale"));
            }
            (writer, reader) if writer == reader || is_promoted(writer, reader) => {}
            _ => {
                let (from, to) = (self.name(writer, true), self.name(reader, false));
                found.push(difference(path, "TYPE_MISMATCH", format!("{to} does not read {from}")));
            }
        }
    }

    fn named(&mut self, writer: &str, reader: &str, path: &str, found: &mut Vec<Difference>) {
        let pair = (writer.to_owned(), reader.to_owned());
        let (Some(from), Some(to)) = (self.writer.named.get(writer), self.reader.named.get(reader)) else {
            found.push(difference(path, "NOT_COMPARABLE", "a name has no type"));
            return;
        };
        if !self.assumed.insert(pair.clone()) {
            return;
        }
        if from.name != to.name && !to.aliases.iter().any(|alias| alias == writer) {
            match std::mem::discriminant(&from.kind) == std::mem::discriminant(&to.kind) {
                true => found.push(difference(path, "NAME_MISMATCH", format!("{reader} has not been {writer}"))),
                false => found.push(difference(path, "TYPE_MISMATCH", format!("{reader} does not read {writer}"))),
            }
        } else {
            self.kinds(from, to, path, found);
        }
        self.assumed.remove(&pair);
    }

    fn kinds(&mut self, writer: &Named, reader: &Named, path: &str, found: &mut Vec<Difference>) {
        match (&writer.kind, &reader.kind) {
            (Kind::Record(writer), Kind::Record(reader)) => self.fields(writer, reader, path, found),
            (Kind::Enum { symbols, .. }, Kind::Enum { symbols: known, default }) => {
                let missing: Vec<&str> = symbols.iter().filter(|s| !known.contains(s)).map(String::as_str).collect();
                if !missing.is_empty() && default.is_none() {
                    let detail = format!("the reader's enum has no {} and no default", missing.join(", "));
                    found.push(difference(path, "MISSING_ENUM_SYMBOLS", detail));
                }
            }
            (Kind::Fixed { size, decimal }, Kind::Fixed { size: wanted, decimal: as_decimal }) => {
                if size != wanted {
                    found.push(difference(path, "FIXED_SIZE_MISMATCH", format!("{wanted} bytes are not {size}")));
                } else if decimal.is_some() && as_decimal.is_some() && decimal != as_decimal {
                    found.push(difference(path, "TYPE_MISMATCH", "decimals differ in precision or scale"));
                }
            }
            _ => {
                let detail = format!("{} is another kind of type", writer.name);
                found.push(difference(path, "TYPE_MISMATCH", detail));
            }
        }
    }

    fn fields(&mut self, writer: &[Field], reader: &[Field], path: &str, found: &mut Vec<Difference>) {
        for field in reader {
            let path = format!("{path}/{}", field.name.replace('~', "~0").replace('/', "~1"));
            let same = writer.iter().find(|one| one.name == field.name);
            match same.or_else(|| writer.iter().find(|one| field.aliases.contains(&one.name))) {
                Some(written) => self.schema(&written.schema, &field.schema, &path, found),
                None if field.has_default => {}
                None => {
                    let detail = format!("{} is not written, and has no default", field.name);
                    found.push(difference(&path, "READER_FIELD_MISSING_DEFAULT_VALUE", detail));
                }
            }
        }
    }

    fn name(&self, schema: &Type, writer: bool) -> String {
        match schema {
            Type::Named(name) => {
                let model = if writer { self.writer } else { self.reader };
                let kind = model.named.get(name).map(|named| match named.kind {
                    Kind::Record(_) => "record",
                    Kind::Enum { .. } => "enum",
                    Kind::Fixed { .. } => "fixed",
                });
                format!("{} {name}", kind.unwrap_or("type"))
            }
            Type::Array(_) => "array".into(),
            Type::Map(_) => "map".into(),
            Type::Union(_) => "union".into(),
            Type::Decimal(_) => "decimal".into(),
            plain => format!("{plain:?}").to_lowercase(),
        }
    }
}

// What the specification lets a reader widen.
fn is_promoted(writer: &Type, reader: &Type) -> bool {
    use Type::{Bytes, Decimal, Double, Float, Int, Long, String};
    matches!(
        (writer, reader),
        (Int, Long | Float | Double)
            | (Long, Float | Double)
            | (Float, Double)
            | (String, Bytes)
            | (Bytes, String)
            // The logical type is one side's alone: the bytes are the same.
            | (Decimal(_), Bytes)
            | (Bytes, Decimal(_))
    )
}

fn difference(path: &str, rule: &'static str, detail: impl Into<String>) -> Difference {
    Difference { path: path.to_owned(), rule, detail: detail.into() }
}
