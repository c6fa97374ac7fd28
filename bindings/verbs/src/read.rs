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
                None if error.starts_with("invalid type") => {
                    Fault::Type { option: name.clone(), why: Some(plainly(&error)) }
                }
                None => Fault::argument(name, plainly(&error)),
            })
        });
        culprit.unwrap_or_else(|| Fault::argument("options", error))
    })
}

/// What serde says of a value, without the words of Rust, and without a text that was given, which may be a secret.
fn plainly(error: &str) -> String {
    let said = |start: &str| error.strip_prefix(start)?.split_once(", expected ");
    if let Some((given, known)) = said("unknown variant ") {
        return format!(
            "it is {}, not {}",
            known.trim_start_matches("one of ").replace('`', ""),
            given.replace('`', "")
        );
    }
    let (given, wanted) = match said("invalid type: ").or_else(|| said("invalid value: ")) {
        Some(said) => said,
        None => return error.to_owned(),
    };
    let shown = given.split('`').nth(1);
    let given = match given.split_once(' ').map_or(given, |(kind, _)| kind) {
        "string" => "a text",
        "sequence" => "a list",
        "map" => "names and values",
        "integer" | "floating" | "boolean" => shown.unwrap_or(given),
        other => other,
    };
    let wanted = match wanted {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" | "i64" => "a whole number that is not negative",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "a borrowed string" | "path string" => "a text",
        "a sequence" => "a list",
        other => other,
    };
    format!("{wanted} is wanted, not {given}")
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
            Err(Fault::Type { option, why }) => type_text("option", &option, why.as_deref()),
            other => panic!("{other:?}"),
        };
        let replicas = |value: &str| fault(&format!(r#"{{"name":"A","replicas":{value}}}"#));
        let wanted = "option 'replicas': a whole number from 0 to 255 is wanted, not";
        assert_eq!(replicas(r#""three""#), format!("{wanted} a text"));
        assert_eq!(replicas("1.5"), format!("{wanted} 1.5"));
        assert_eq!(fault(r#"{"name":"A","subject":"x"}"#), "there is no option 'subject'");
        assert_eq!(fault(r#"{"name":"A","storage":"paper"}"#), "storage");
        assert_eq!(fault("[]"), "options");
        assert!(read::<StreamSpec>(r#"{"name":"A","replicas":3}"#).is_ok());
        let why = |json: &str| match read::<StreamSpec>(json) {
            Err(Fault::Argument { why, .. }) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why(r#"{"name":"A","storage":"paper"}"#), "it is file or memory, not paper");
        assert_eq!(why(r#"{"name":"A","replicas":-1}"#), "a whole number from 0 to 255 is wanted, not -1");
    }
}
