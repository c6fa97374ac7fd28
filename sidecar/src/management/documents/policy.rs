//! Policies, and what they set.

use amqp_compat::backend::jetstream::Applied;
use amqp_compat::model::policy::{ApplyTo, Policy, PolicyValue, Scope, Settings};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::refusal::Refusal;

/// The component of runtime parameters that operator policies are in definitions.
pub(crate) const OPERATOR: &str = "operator_policy";

/// A policy's document.
pub(crate) fn document(vhost: &str, policy: &Policy) -> Value {
    json!({
        "vhost": vhost,
        "name": &*policy.name,
        "pattern": &*policy.pattern,
        "apply-to": policy.apply_to.name(),
        "definition": settings(&policy.settings),
        "priority": policy.priority,
    })
}

/// An operator policy as definitions have it: a runtime parameter.
pub(in crate::management) fn parameter(vhost: &str, policy: &Policy) -> Value {
    json!({
        "vhost": vhost,
        "component": OPERATOR,
        "name": &*policy.name,
        "value": {
            "pattern": &*policy.pattern,
            "apply-to": policy.apply_to.name(),
            "definition": settings(&policy.settings),
            "priority": policy.priority,
        },
    })
}

/// What policies set.
pub(crate) fn settings(settings: &Settings) -> Value {
    let of = |value: &PolicyValue| match value {
        PolicyValue::Integer(number) => json!(number),
        PolicyValue::Text(text) | PolicyValue::Other(text) => json!(text),
    };
    Value::Object(settings.iter().map(|(name, value)| (name.clone(), of(value))).collect())
}

/// Adds to a queue's document which policies are in force for it.
pub(in crate::management) fn apply(document: &mut Value, applied: &Applied) {
    document["policy"] = json!(applied.policy.as_deref());
    document["operator_policy"] = json!(applied.operator.as_deref());
    document["effective_policy_definition"] = settings(&applied.settings);
}

/// The policy that a body describes.
///
/// # Errors
/// 400 naming the field or key, with RabbitMQ's texts.
pub(crate) fn read(scope: Scope, name: &str, body: &Fields) -> Result<Policy, Refusal> {
    let missing: Vec<String> = ["pattern", "definition"]
        .into_iter()
        .filter(|name| body.get(name).is_none())
        .map(|name| format!("{{key_missing,{name}}}"))
        .collect();
    if !missing.is_empty() {
        return Err(Refusal::bad_request(format!("[{}]", missing.join(","))));
    }
    let pattern = match body.need("pattern")? {
        Value::String(pattern) => pattern,
        other => return Err(invalid(&format!("pattern should be a binary but was {other}"))),
    };
    let priority = match body.get("priority") {
        None => 0,
        Some(Value::Number(number)) => number
            .as_i64()
            .ok_or_else(|| invalid(&format!("priority should be a whole number, actually was {number}")))?,
        Some(Value::String(text)) => {
            return Err(invalid(&format!("priority should be a number, actually was <<\"{text}\">>")));
        }
        Some(other) => return Err(invalid(&format!("priority should be a number, actually was {other}"))),
    };
    let apply_to = match body.get("apply-to") {
        None => ApplyTo::default(),
        Some(Value::String(name)) => ApplyTo::from_name(name).map_err(|text| invalid(&text))?,
        Some(other) => return Err(invalid(&format!("apply-to should be a binary but was {other}"))),
    };
    let Value::Object(definition) = body.need("definition")? else {
        return Err(invalid("definition should be an object"));
    };
    Policy::new(scope, name, pattern, apply_to, priority, values(definition)).map_err(|text| invalid(&text))
}

fn values(definition: &Map<String, Value>) -> Settings {
    let of = |value: &Value| match value {
        Value::String(text) => PolicyValue::Text(text.clone()),
        other => other.as_i64().map_or_else(|| PolicyValue::Other(other.to_string()), PolicyValue::Integer),
    };
    definition.iter().map(|(name, value)| (name.clone(), of(value))).collect()
}

fn invalid(reason: &str) -> Refusal {
    Refusal::bad_request(format!("Validation failed\n\n{reason}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(value: Value) -> Fields {
        Fields::of(value, "the body").expect("an object")
    }

    #[test]
    fn a_policy_comes_back_as_it_was_given() {
        let given = json!({
            "vhost": "/", "name": "p", "pattern": "^q\\.", "apply-to": "queues", "priority": -3,
            "definition": { "max-length": 5, "overflow": "reject-publish", "message-ttl": 4_000_000_000_000_i64 },
        });
        let policy = read(Scope::User, "p", &body(given.clone())).expect("valid");
        assert_eq!(document("/", &policy), given);
        let short = read(Scope::User, "p", &body(json!({ "pattern": "", "definition": { "expires": 1 } })));
        let short = document("/", &short.expect("valid"));
        assert_eq!((&short["apply-to"], &short["priority"]), (&json!("all"), &json!(0)));
        let operator = read(Scope::Operator, "o", &body(json!({ "pattern": "", "definition": { "expires": 1 } })));
        let operator = parameter("v", &operator.expect("valid"));
        assert_eq!((&operator["component"], &operator["vhost"]), (&json!("operator_policy"), &json!("v")));
        assert_eq!(operator["value"]["definition"], json!({ "expires": 1 }));
    }

    #[test]
    fn what_is_wrong_is_named_in_rabbitmqs_words() {
        let refused = |given: Value| read(Scope::User, "p", &body(given)).expect_err("refused").reason;
        let set = json!({ "max-length": 1 });
        assert_eq!(refused(json!({})), "[{key_missing,pattern},{key_missing,definition}]");
        assert_eq!(refused(json!({ "pattern": "" })), "[{key_missing,definition}]");
        assert_eq!(refused(json!({ "pattern": "", "definition": {} })), "Validation failed\n\nno policy provided\n");
        assert_eq!(
            refused(json!({ "pattern": 5, "definition": set })),
            "Validation failed\n\npattern should be a binary but was 5\n"
        );
        assert_eq!(
            refused(json!({ "pattern": "", "definition": set, "priority": "5" })),
            "Validation failed\n\npriority should be a number, actually was <<\"5\">>\n"
        );
        assert!(refused(json!({ "pattern": "", "definition": set, "priority": 1.5 })).contains("whole number"));
        assert!(refused(json!({ "pattern": "", "definition": [] })).contains("definition should be an object"));
        assert!(refused(json!({ "pattern": "", "definition": { "max-length": null } })).contains("'max-length'"));
        assert!(
            refused(json!({ "pattern": "", "definition": set, "apply-to": "nope" })).contains("'nope' unrecognised")
        );
    }
}
