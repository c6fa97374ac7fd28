//! Avro: whether a payload is one datum of the schema in Avro's binary encoding, and whether one schema reads what another one wrote.
//! Pure.

mod datum;
mod model;
mod resolution;
#[cfg(test)]
mod rules;

use model::Model;

use super::contains::Difference;
use super::violation::Violation;

/// An Avro schema, ready to use.
#[derive(Debug)]
pub(super) struct AvroSchema(Model);

impl AvroSchema {
    /// Reads a schema; the error says what is wrong with it.
    pub fn read(text: &str) -> Result<AvroSchema, String> {
        // The crate knows names, defaults and logical types; what is left is to say what stands where.
        apache_avro::Schema::parse_str(text).map_err(|e| e.to_string())?;
        let json = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
        Model::read(&json).map(AvroSchema)
    }

    /// Whether a payload is exactly one datum, without a header before it and bytes behind it.
    pub fn check(&self, payload: &[u8]) -> Result<(), Violation> {
        datum::check(&self.0, payload)
    }

    /// Why this schema, as the reader's, does not read all that the writer's allows; nothing when it does.
    pub fn refuses_of(&self, writer: &AvroSchema) -> Vec<Difference> {
        resolution::differences(&writer.0, &self.0)
    }
}
