//! Arguments, read so that what is wrong is named.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Fault;

/// Reads an object of JSON.
///
/// # Errors
/// `Argument`, naming the field that is at fault as far as that can be told.
pub fn read<T: DeserializeOwned>(json: &str) -> Result<T, Fault> {
    let given: Map<String, Value> = serde_json::from_str(json).map_err(|error| Fault::argument("options", error))?;
    let whole = Value::Object(given.clone());
    serde_json::from_value(whole).map_err(|error| {
        // The error of a whole does not say which value it was: each is tried alone.
        let culprit = given.iter().find_map(|(name, value)| {
            let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
            let error = serde_json::from_value::<T>(alone).err()?.to_string();
            // Alone it may miss the others, which is not its fault.
            (!error.starts_with("missing field")).then(|| Fault::argument(name, error))
        });
        culprit.unwrap_or_else(|| Fault::argument("options", error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nats_bridge::provision::StreamSpec;

    #[test]
    fn the_field_at_fault_is_named() {
        let field = |json: &str| match read::<StreamSpec>(json) {
            Err(Fault::Argument { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(r#"{"name":"A","replicas":"three"}"#), "replicas");
        assert_eq!(field(r#"{"name":"A","subject":"x"}"#), "subject");
        assert_eq!(field("[]"), "options");
        assert!(read::<StreamSpec>(r#"{"name":"A","replicas":3}"#).is_ok());
    }
}
