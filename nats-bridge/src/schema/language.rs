//! One schema, in whichever language. Pure.

#[cfg(feature = "avro")]
use super::avro::AvroSchema;
use super::contains::Difference;
use super::document::Format;
use super::json::JsonSchema;
#[cfg(feature = "protobuf")]
use super::protobuf::ProtobufSchema;
use super::violation::Violation;
use crate::error::{Error, ErrorKind, Result};

/// A schema, ready to use.
#[derive(Debug)]
pub(super) enum Language {
    Json(JsonSchema),
    #[cfg(feature = "avro")]
    Avro(AvroSchema),
    #[cfg(feature = "protobuf")]
    Protobuf(ProtobufSchema),
}

impl Language {
    /// Reads a text in its language.
    ///
    /// # Errors
    /// `Config`: it is not a schema. `Unsupported`: the language was left out when this was built.
    pub fn read(format: Format, text: &str) -> Result<Language> {
        let read = match format {
            Format::Json => JsonSchema::read(text).map(Language::Json),
            #[cfg(feature = "avro")]
            Format::Avro => AvroSchema::read(text).map(Language::Avro),
            #[cfg(not(feature = "avro"))]
            Format::Avro => return Err(unsupported(format, "this was built without the feature `avro`")),
            #[cfg(feature = "protobuf")]
            Format::Protobuf => ProtobufSchema::read(text).map(Language::Protobuf),
            #[cfg(not(feature = "protobuf"))]
            Format::Protobuf => return Err(unsupported(format, "this was built without the feature `protobuf`")),
        };
        read.map_err(|why| Error::new(ErrorKind::Config).with("format", format.name()).with("why", why))
    }

    /// Whether a payload fits.
    pub fn check(&self, payload: &[u8]) -> std::result::Result<(), Violation> {
        match self {
            Language::Json(schema) => schema.check(payload),
            #[cfg(feature = "avro")]
            Language::Avro(schema) => schema.check(payload),
            #[cfg(feature = "protobuf")]
            Language::Protobuf(schema) => schema.check(payload),
        }
    }

    /// Why this newer schema is not compatible with an older one: whichever of them `new_reads` says does not read what the other
    /// one wrote.
    pub fn differences(&self, old: &Language, new_reads: bool) -> Vec<Difference> {
        match (self, old) {
            (Language::Json(new), Language::Json(old)) if new_reads => new.refuses_of(old),
            (Language::Json(new), Language::Json(old)) => old.refuses_of(new),
            #[cfg(feature = "avro")]
            (Language::Avro(new), Language::Avro(old)) if new_reads => new.refuses_of(old),
            #[cfg(feature = "avro")]
            (Language::Avro(new), Language::Avro(old)) => old.refuses_of(new),
            // Its rules look at both directions.
            #[cfg(feature = "protobuf")]
            (Language::Protobuf(new), Language::Protobuf(old)) => new.breaks(old),
            // A registry's entry has one language; see `Document::with`.
            #[cfg(any(feature = "avro", feature = "protobuf"))]
            _ => vec![Difference { path: String::new(), rule: "NOT_COMPARABLE", detail: "another language".into() }],
        }
    }
}

#[cfg(not(all(feature = "avro", feature = "protobuf")))]
fn unsupported(format: Format, why: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported).with("format", format.name()).with("why", why)
}
