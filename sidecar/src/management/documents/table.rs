//! AMQP tables as JSON, and back: integers become 64 bits, texts long strings, as RabbitMQ does it.

use amq_protocol::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde_json::{Map, Number, Value, json};

use super::refusal::Refusal;

/// How deep tables may be nested; serde_json reads at most 128 levels itself.
const DEEPEST: usize = 32;

/// A table as JSON.
pub(crate) fn to_json(table: &FieldTable) -> Value {
    let entries = table.inner().iter().map(|(name, value)| (name.to_string(), value_to_json(value)));
    Value::Object(entries.collect())
}

fn value_to_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(value) => json!(value),
        AMQPValue::ShortShortUInt(value) => json!(value),
        AMQPValue::ShortInt(value) => json!(value),
        AMQPValue::ShortUInt(value) => json!(value),
        AMQPValue::LongInt(value) => json!(value),
        AMQPValue::LongUInt(value) => json!(value),
        AMQPValue::LongLongInt(value) => json!(value),
        AMQPValue::Float(value) => float(f64::from(*value)),
        AMQPValue::Double(value) => float(*value),
        AMQPValue::DecimalValue(value) => json!({ "scale": value.scale, "value": value.value }),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(value_to_json).collect(),
        AMQPValue::Timestamp(value) => json!(value),
        AMQPValue::FieldTable(table) => to_json(table),
        AMQPValue::ByteArray(bytes) => json!(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::Void => Value::Null,
    }
}

/// Infinity and NaN have no number in JSON.
fn float(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| json!(value.to_string()), Value::Number)
}

/// A table that JSON describes; `place` names it.
pub(in crate::management) fn from_json(entries: &Map<String, Value>, place: &str) -> Result<FieldTable, Refusal> {
    table(entries, place, DEEPEST)
}

fn table(entries: &Map<String, Value>, place: &str, depth: usize) -> Result<FieldTable, Refusal> {
    let mut table = FieldTable::default();
    for (name, entry) in entries {
        let place = format!("{place}.{name}");
        let name = ShortString::try_new(name.as_str())
            .map_err(|_| Refusal::bad_request(format!("field '{place}': a name has at most 255 bytes")))?;
        table.insert(name, value(entry, &place, depth)?);
    }
    Ok(table)
}

fn value(value: &Value, place: &str, depth: usize) -> Result<AMQPValue, Refusal> {
    let refused = |why: &str| Err(Refusal::bad_request(format!("field '{place}': {why}")));
    let Some(deeper) = depth.checked_sub(1) else { return refused("nested too deep") };
    match value {
        Value::Null => refused("null_not_allowed"),
        Value::Bool(flag) => Ok(AMQPValue::Boolean(*flag)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Ok(AMQPValue::LongLongInt(integer)),
            (None, Some(float)) if number.is_f64() => Ok(AMQPValue::Double(float)),
            _ => refused("the number does not fit 64 bits with a sign"),
        },
        Value::String(text) => Ok(AMQPValue::LongString(text.as_str().into())),
        Value::Array(items) => {
            let mut array = FieldArray::default();
            for (index, item) in items.iter().enumerate() {
                array.push(self::value(item, &format!("{place}[{index}]"), deeper)?);
            }
            Ok(AMQPValue::FieldArray(array))
        }
        Value::Object(entries) => table(entries, place, deeper).map(AMQPValue::FieldTable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<FieldTable, Refusal> {
        from_json(value.as_object().expect("an object"), "arguments")
    }

    #[test]
    fn what_json_can_say_comes_back_as_it_was() {
        let said = json!({
            "flag": true, "n": -5, "x": 1.5, "text": "ö", "list": [1, "two", [3]], "table": { "a": { "b": 1 } }
        });
        let table = read(said.clone()).expect("read");
        assert_eq!(table.inner().get("n"), Some(&AMQPValue::LongLongInt(-5)));
        assert_eq!(table.inner().get("text"), Some(&AMQPValue::LongString("ö".into())));
        assert_eq!(to_json(&table), said);
    }

    #[test]
    fn what_amqp_cannot_say_is_refused_with_its_place() {
        let reason = |value| read(value).expect_err("refused").reason;
        assert_eq!(reason(json!({ "a": [1, { "b": null }] })), "field 'arguments.a[1].b': null_not_allowed");
        assert!(reason(json!({ "n": u64::MAX })).starts_with("field 'arguments.n': the number"));
        let deep = (0..DEEPEST + 1).fold(json!(1), |inner, _| json!([inner]));
        assert!(reason(json!({ "a": deep })).ends_with("nested too deep"));
        assert!(reason(json!({ "n".repeat(256): 1 })).ends_with("at most 255 bytes"));
    }

    #[test]
    fn every_type_of_amqp_has_a_form() {
        let mut table = FieldTable::default();
        table.insert("t".into(), AMQPValue::Timestamp(7));
        table.insert("v".into(), AMQPValue::Void);
        table.insert("f".into(), AMQPValue::Float(f32::INFINITY));
        table.insert("b".into(), AMQPValue::LongString(vec![0xff].into()));
        assert_eq!(to_json(&table), json!({ "t": 7, "v": null, "f": "inf", "b": "\u{fffd}" }));
    }
}
