//! JSON Schema: whether a payload fits, and whether one schema accepts what another does. Pure.

use serde_json::Value;

use super::contains::{Difference, differences};
use super::violation::Violation;

/// A JSON Schema, ready to use.
#[derive(Debug)]
pub(super) struct JsonSchema {
    schema: Value,
    validator: jsonschema::Validator,
}

impl JsonSchema {
    /// Reads a schema; the error says what is wrong with it.
    pub fn read(text: &str) -> Result<JsonSchema, String> {
        let schema: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
        if !schema.is_object() && !schema.is_boolean() {
            return Err("a JSON Schema is an object, or true or false".into());
        }
        let validator = jsonschema::validator_for(&schema).map_err(|e| e.to_string())?;
        Ok(JsonSchema { schema, validator })
    }

    /// Whether a payload is JSON that fits.
    pub fn check(&self, payload: &[u8]) -> Result<(), Violation> {
        let value: Value = serde_json::from_slice(payload).map_err(|e| Violation {
            path: String::new(),
            value: None,
            why: format!("it is not JSON: {}", without_text(&e)),
        })?;
        match self.validator.iter_errors(&value).next() {
            None => Ok(()),
            Some(error) => Err(Violation {
                path: error.instance_path().to_string(),
                value: Some(error.instance().to_string()),
                why: error.masked().to_string(),
            }),
        }
    }

    /// Why this schema, as the reader's, does not accept all that the writer's does; nothing when it does.
    pub fn refuses_of(&self, writer: &JsonSchema) -> Vec<Difference> {
        differences(&writer.schema, &self.schema)
    }
}

// Where it stops being JSON, and not what stands there.
fn without_text(error: &serde_json::Error) -> String {
    format!("line {} column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = r#"{
        "type": "object",
        "required": ["id", "items"],
        "properties": {
            "id": {"type": "integer", "minimum": 1},
            "items": {"type": "array", "items": {"type": "object", "properties": {"quantity": {"type": "integer", "minimum": 1}}}}
        }
    }"#;

    #[test]
    fn a_payload_that_does_not_fit_is_told_by_path_and_value() {
        let schema = JsonSchema::read(ORDER).unwrap();
        assert_eq!(schema.check(br#"{"id":1,"items":[]}"#), Ok(()));
        let violation = schema.check(br#"{"id":1,"items":[{"quantity":1},{"quantity":-3}]}"#).unwrap_err();
        assert_eq!((violation.path.as_str(), violation.value.as_deref()), ("/items/1/quantity", Some("-3")));
        assert!(violation.why.contains("less than the minimum"), "{violation:?}");
        assert!(!violation.why.contains("-3"), "{violation:?}");
        let missing = schema.check(br#"{"items":[]}"#).unwrap_err();
        assert!(missing.path.is_empty() && missing.why.contains("id"), "{missing:?}");
        let cut = schema.check(br#"{"id":1,"secret":"#).unwrap_err();
        assert!(cut.why.contains("line 1 column") && !cut.why.contains("secret"), "{cut:?}");
    }

    #[test]
    fn a_schema_that_is_not_one_is_refused() {
        for (text, why) in [
            ("x", "not JSON"),
            ("[]", "an object"),
            (r#"{"type":"colour"}"#, "colour"),
            (r#"{"$ref":"http://a/b"}"#, "http"),
        ] {
            let error = JsonSchema::read(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
