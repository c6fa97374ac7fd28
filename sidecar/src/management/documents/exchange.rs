//! Exchanges.

use amqp_compat::backend::ExchangeDeclare;
use amqp_compat::backend::jetstream::Applied;
use amqp_compat::model::exchange::ExchangeDefinition;
use serde_json::{Value, json};

use super::fields::{Fields, short};
use super::refusal::Refusal;
use super::table;

/// The name of the default exchange in paths.
const DEFAULT: &str = "amq.default";

/// The exchange that a path names.
pub(in crate::management) fn name_in_path(name: &str) -> &str {
    if name == DEFAULT { "" } else { name }
}

/// An exchange's document.
pub(in crate::management) fn document(vhost: &str, exchange: &ExchangeDefinition, applied: &Applied) -> Value {
    let mut document = definition(exchange);
    document["vhost"] = json!(vhost);
    for (field, policy) in [("policy", &applied.policy), ("operator_policy", &applied.operator)] {
        if let Some(policy) = policy {
            document[field] = json!(&**policy);
        }
    }
    document
}

/// An exchange as definitions have it, without its vhost.
pub(crate) fn definition(exchange: &ExchangeDefinition) -> Value {
    json!({
        "name": &*exchange.name,
        "type": exchange.kind.name(),
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        "internal": exchange.internal,
        "arguments": table::to_json(&exchange.arguments),
    })
}

/// The declaration that a body asks for.
pub(crate) fn declare(name: &str, body: &Fields) -> Result<ExchangeDeclare, Refusal> {
    let kind = match body.text("type")? {
        "" => "direct",
        kind => kind,
    };
    Ok(ExchangeDeclare {
        exchange: short("name", name)?,
        kind: short("type", kind)?,
        passive: false,
        durable: body.flag("durable", false)?,
        auto_delete: body.flag("auto_delete", false)?,
        internal: body.flag("internal", false)?,
        arguments: body.table("arguments")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_a_declaration_with_rabbitmqs_defaults() {
        let body = |text: &str| Fields::read(text.as_bytes()).expect("an object");
        let plain = declare("x", &body("{}")).expect("valid");
        assert_eq!((plain.kind.as_str(), plain.durable, plain.internal), ("direct", false, false));
        let full = declare("x", &body(r#"{"type":"topic","durable":"true","internal":true,"arguments":{"a":1}}"#));
        let full = full.expect("valid");
        assert_eq!((full.kind.as_str(), full.durable, full.internal), ("topic", true, true));
        assert!(full.arguments.inner().contains_key("a"));
        assert!(declare("x", &body(r#"{"internal":7}"#)).expect_err("refused").reason.contains("'internal'"));
    }

    #[test]
    fn the_default_exchange_has_a_name_in_paths() {
        assert_eq!((name_in_path("amq.default"), name_in_path("x")), ("", "x"));
        let default = ExchangeDefinition::predeclared().into_iter().find(|exchange| exchange.name.is_empty());
        let document = document("/", &default.expect("is there"), &Applied::default());
        assert_eq!(
            (&document["name"], &document["type"], &document["vhost"]),
            (&json!(""), &json!("direct"), &json!("/"))
        );
    }
}
