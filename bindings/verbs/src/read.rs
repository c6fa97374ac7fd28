//! Arguments, read so that what is wrong is named.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Fault;

/// Reads an object of JSON.
///
/// # Errors
/// `Type`: a field does not exist, or its value is of another type. `Argument`: it has another value than it may. Both name the field as
/// far as that can be told.
pub fn read<T: DeserializeOwned>(json: &str) -> Result<T, Fault> {
    let given: Map<String, Value> = serde_json::from_str(json).map_err(|error| Fault::argument("options", error))?;
    let whole = Value::Object(given.clone());
    serde_json::from_value(whole).map_err(|error| {
        // The error of a whole does not say which value it was: each is tried alone.
        let culprit = given.iter().find_map(|(name, value)| {
            let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
            let error = serde_json::from_value::<T>(alone).err()?.to_string();
            // Alone it may miss the others, which is not its fault.
            if error.starts_with("missing field") {
                return None;
            }
            let unknown = error.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
            Some(match unknown {
                Some((unknown, _)) => Fault::Type { option: unknown.to_owned(), why: None },
                None if error.starts_with("invalid type") => Fault::Type { option: name.clone(), why: Some(error) },
                None => Fault::argument(name, error),
            })
        });
        culprit.unwrap_or_else(|| Fault::argument("options", error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::type_text;
    use nats_bridge::provision::StreamSpec;

    #[test]
    fn the_field_at_fault_is_named() {
        let fault = |json: &str| match read::<StreamSpec>(json) {
            Err(Fault::Argument { field, .. }) => field,
            Err(Fault::Type { option, why }) => type_text(&option, why.as_deref()),
            other => panic!("{other:?}"),
        };
        assert!(fault(r#"{"name":"A","replicas":"three"}"#).starts_with("option 'replicas': invalid type: string"));
        assert_eq!(fault(r#"{"name":"A","subject":"x"}"#), "there is no option 'subject'");
        assert_eq!(fault(r#"{"name":"A","storage":"paper"}"#), "storage");
        assert_eq!(fault("[]"), "options");
        assert!(read::<StreamSpec>(r#"{"name":"A","replicas":3}"#).is_ok());
    }
}
