//! The fields of a request's body. As with RabbitMQ, flags and numbers may come as text: `rabbitmqadmin` sends them so.

use amq_protocol::types::{FieldTable, ShortString};
use serde_json::{Map, Value};

use super::refusal::Refusal;
use super::table;

/// A body that is a JSON object, or part of one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body; an empty one is an empty object.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Refusal> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        match serde_json::from_slice(body) {
            Ok(value) => Self::of(value, "the body"),
            Err(error) => Err(Refusal::bad_request(format!("not_json: the body is not JSON: {error}"))),
        }
    }

    /// The fields of a value; `what` names it.
    pub(crate) fn of(value: Value, what: &str) -> Result<Self, Refusal> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(Refusal::bad_request(format!("not_json: {what} is not an object but {other}"))),
        }
    }

    /// A field that is there and not null.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A field that must be there; RabbitMQ's text when it is not.
    pub(crate) fn need(&self, name: &str) -> Result<&Value, Refusal> {
        self.get(name).ok_or_else(|| Refusal::bad_request(format!("[{{key_missing,{name}}}]")))
    }

    /// A flag; `default` when it is not there.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, Refusal> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if text == "true" => Ok(true),
            Some(Value::String(text)) if text == "false" => Ok(false),
            Some(other) => Err(wrong("not_boolean", name, other)),
        }
    }

    /// A text, empty when it is not there.
    pub(crate) fn text(&self, name: &str) -> Result<&str, Refusal> {
        match self.get(name) {
            None => Ok(""),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(wrong("not_a_string", name, other)),
        }
    }

    /// A text of at most 255 bytes, as names and keys are.
    pub(crate) fn short(&self, name: &str) -> Result<ShortString, Refusal> {
        short(name, self.text(name)?)
    }

    /// A number that must be there.
    pub(crate) fn number(&self, name: &str) -> Result<i64, Refusal> {
        let value = self.need(name)?;
        let number = match value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| wrong("not_integer", name, value))
    }

    /// An AMQP table, empty when it is not there.
    pub(crate) fn table(&self, name: &str) -> Result<FieldTable, Refusal> {
        match self.get(name) {
            None => Ok(FieldTable::default()),
            // What RabbitMQ's own documents show for an empty table in places.
            Some(Value::Array(items)) if items.is_empty() => Ok(FieldTable::default()),
            Some(Value::Object(entries)) => table::from_json(entries, name),
            Some(other) => Err(wrong("not_an_object", name, other)),
        }
    }

    /// A list of objects, empty when it is not there. Taken out.
    pub(crate) fn take_list(&mut self, name: &str) -> Result<Vec<Fields>, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                let each = items.into_iter().enumerate();
                each.map(|(index, item)| Fields::of(item, &format!("{name}[{index}]"))).collect()
            }
            Some(other) => Err(wrong("not_a_list", name, &other)),
        }
    }

    /// Takes a field out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// The names of all fields.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// A name or key of at most 255 bytes.
pub(crate) fn short(name: &str, text: &str) -> Result<ShortString, Refusal> {
    ShortString::try_new(text)
        .map_err(|_| Refusal::bad_request(format!("field '{name}' has {} bytes; AMQP takes at most 255", text.len())))
}

/// 400 for a field with a value that it cannot have.
pub(crate) fn wrong(kind: &str, name: &str, value: &Value) -> Refusal {
    let mut shown = value.to_string();
    if shown.len() > 200 {
        shown = format!("{}…", shown.chars().take(200).collect::<String>());
    }
    Refusal::bad_request(format!("{kind}: field '{name}' is {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_numbers_may_be_texts_and_what_is_wrong_is_named() {
        let fields =
            Fields::read(br#"{"a":"true","b":false,"c":"7","d":"banana","e":null,"f":[],"g":5}"#).expect("read");
        assert_eq!(fields.flag("a", false), Ok(true));
        assert_eq!(fields.flag("b", true), Ok(false));
        assert_eq!(fields.flag("e", true), Ok(true));
        assert_eq!(fields.number("c"), Ok(7));
        let reason = |refusal: Result<(), Refusal>| refusal.expect_err("refused").reason;
        assert_eq!(reason(fields.flag("d", false).map(drop)), "not_boolean: field 'd' is \"banana\"");
        assert_eq!(reason(fields.number("d").map(drop)), "not_integer: field 'd' is \"banana\"");
        assert_eq!(reason(fields.number("none").map(drop)), "[{key_missing,none}]");
        assert_eq!(reason(fields.text("g").map(drop)), "not_a_string: field 'g' is 5");
        assert_eq!(reason(fields.table("g").map(drop)), "not_an_object: field 'g' is 5");
        assert!(fields.table("f").expect("empty").inner().is_empty());
        let long = "x".repeat(256);
        assert!(reason(short("name", &long).map(drop)).starts_with("field 'name' has 256 bytes"));
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        assert!(Fields::read(b" \n").is_ok());
        for bad in [&b"{\"durable\":"[..], b"[]", b"5", b"\xff"] {
            let refusal = Fields::read(bad).expect_err("refused");
            assert!(refusal.status == 400 && refusal.reason.starts_with("not_json"), "{refusal:?}");
        }
        let mut fields = Fields::read(br#"{"queues":[{},5]}"#).expect("an object");
        assert!(fields.take_list("queues").expect_err("refused").reason.contains("queues[1]"));
    }
}
