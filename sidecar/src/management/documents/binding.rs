//! Bindings, and the key that names one among those between the same two ends.

use amq_protocol::types::FieldTable;
use amqp_compat::model::vhost::{BindingDefinition, Destination};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::table;

/// What a key keeps as it is; a space becomes `+`.
const QUOTED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b' ');

/// A binding's document.
pub(in crate::management) fn document(vhost: &str, binding: &BindingDefinition) -> Value {
    let mut document = definition(binding);
    document["vhost"] = json!(vhost);
    document["properties_key"] = json!(properties_key(&binding.routing_key, &binding.arguments));
    document
}

/// A binding as definitions have it, without its vhost.
pub(crate) fn definition(binding: &BindingDefinition) -> Value {
    let (kind, destination) = end(&binding.destination);
    json!({
        "source": &*binding.source,
        "destination": destination,
        "destination_type": kind,
        "routing_key": &*binding.routing_key,
        "arguments": table::to_json(&binding.arguments),
    })
}

/// The binding that every queue has to the default exchange.
pub(in crate::management) fn default_binding(vhost: &str, queue: &str) -> Value {
    json!({
        "source": "",
        "vhost": vhost,
        "destination": queue,
        "destination_type": "queue",
        "routing_key": queue,
        "arguments": {},
        "properties_key": properties_key(queue, &FieldTable::default()),
    })
}

/// A destination's type and name.
pub(in crate::management) fn end(destination: &Destination) -> (&'static str, &str) {
    match destination {
        Destination::Queue(name) => ("queue", name),
        Destination::Exchange(name) => ("exchange", name),
    }
}

/// The key of a binding: its routing key, quoted, and a hash of its arguments if it has any; `~` for neither.
///
/// RabbitMQ's own hash is that of Erlang terms; a client takes a key from a list and gives it back.
pub(in crate::management) fn properties_key(routing_key: &str, arguments: &FieldTable) -> String {
    if routing_key.is_empty() && arguments.inner().is_empty() {
        return "~".to_owned();
    }
    let quoted = utf8_percent_encode(routing_key, &QUOTED).to_string().replace(' ', "+");
    if arguments.inner().is_empty() {
        return quoted;
    }
    // A table is sorted by name: the same arguments in another order are the same.
    let hash = xxh3_64(table::to_json(arguments).to_string().as_bytes());
    format!("{quoted}~{}", URL_SAFE_NO_PAD.encode(hash.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use amq_protocol::types::AMQPValue;

    use super::*;

    fn arguments(value: i32) -> FieldTable {
        let mut table = FieldTable::default();
        table.insert("x".into(), AMQPValue::LongInt(value));
        table
    }

    #[test]
    fn keys_are_quoted_as_rabbitmq_quotes_them() {
        let key = |routing_key| properties_key(routing_key, &FieldTable::default());
        assert_eq!(key(""), "~");
        assert_eq!(key("a b~/c"), "a+b%7E%2Fc");
        assert_eq!(key("#.ö"), "%23.%C3%B6");
    }

    #[test]
    fn arguments_tell_bindings_of_one_key_apart() {
        let none = FieldTable::default();
        let keys = [properties_key("", &none), properties_key("", &arguments(1)), properties_key("", &arguments(2))];
        assert!(keys[1].starts_with('~') && keys[1].len() > 1);
        assert!(keys[0] != keys[1] && keys[1] != keys[2]);
        assert_eq!(keys[1], properties_key("", &arguments(1)));
    }

    #[test]
    fn a_document_names_both_ends() {
        let binding = BindingDefinition {
            source: "x".into(),
            destination: Destination::Exchange("y".into()),
            routing_key: "k".into(),
            arguments: FieldTable::default(),
        };
        assert_eq!(
            document("/", &binding),
            json!({
                "source": "x", "vhost": "/", "destination": "y", "destination_type": "exchange", "routing_key": "k",
                "arguments": {}, "properties_key": "k"
            })
        );
        assert_eq!(default_binding("/", "q")["properties_key"], "q");
    }
}
