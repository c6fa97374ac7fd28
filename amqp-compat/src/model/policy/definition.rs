//! What a policy sets: its keys, what RabbitMQ takes as their values, and which queues they suit.

use std::collections::BTreeMap;

use super::Scope;
use crate::model::features::{self, Area, Support};
use crate::model::queue::QueueKind;

/// A value of a policy's key, as given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyValue {
    /// A whole number.
    Integer(i64),
    /// A text.
    Text(String),
    /// Anything else, as JSON: no key takes it.
    Other(String),
}

/// Keys and values of a policy, or of all that are in force together.
pub type Settings = BTreeMap<String, PolicyValue>;

/// What a key takes.
#[derive(Debug, Clone, Copy)]
enum Takes {
    AtLeast(i64),
    Text,
    One(&'static [&'static str]),
    Version,
}

struct Key {
    name: &'static str,
    takes: Takes,
    /// RabbitMQ's text after the value.
    wrong: &'static str,
    suits_classic: bool,
    suits_quorum: bool,
    /// Whether an operator policy may set it: RabbitMQ lets it limit, and no more.
    is_limit: bool,
}

const fn key(name: &'static str, takes: Takes, wrong: &'static str) -> Key {
    Key { name, takes, wrong, suits_classic: true, suits_quorum: true, is_limit: false }
}

impl Key {
    const fn limit(self) -> Self {
        Self { is_limit: true, ..self }
    }

    const fn for_quorum(self) -> Self {
        Self { suits_classic: false, ..self }
    }

    const fn for_classic(self) -> Self {
        Self { suits_quorum: false, ..self }
    }
}

const MODES: &[&str] = &["default", "lazy"];
const OVERFLOWS: &[&str] = &["drop-head", "reject-publish", "reject-publish-dlx"];
const LEADERS: &[&str] = &["client-local", "balanced", "random", "least-leaders"];
const MASTERS: &[&str] = &["client-local", "min-masters", "random"];

/// The keys that are honoured, or are hints; [`features`] says which.
const KEYS: [Key; 16] = [
    key("alternate-exchange", Takes::Text, "is not a valid alternate exchange name"),
    key("dead-letter-exchange", Takes::Text, "is not a valid dead letter exchange name"),
    key("dead-letter-routing-key", Takes::Text, "is not a valid dead letter routing key"),
    key("message-ttl", Takes::AtLeast(0), "is not a valid message TTL").limit(),
    key("expires", Takes::AtLeast(1), "is not a valid queue expiry").limit(),
    key("max-length", Takes::AtLeast(0), "is not a valid maximum length").limit(),
    key("max-length-bytes", Takes::AtLeast(0), "is not a valid maximum length in bytes").limit(),
    key("overflow", Takes::One(OVERFLOWS), "is not a valid overflow value"),
    key("delivery-limit", Takes::AtLeast(0), "is not a valid delivery limit").limit().for_quorum(),
    key("consumer-timeout", Takes::AtLeast(1), "is not a valid consumer timeout").limit(),
    key("max-in-memory-length", Takes::AtLeast(0), "is not a valid maximum memory in bytes").limit(),
    key("max-in-memory-bytes", Takes::AtLeast(0), "is not a valid maximum memory in bytes").limit(),
    key("queue-mode", Takes::One(MODES), "is not a valid queue-mode value").for_classic(),
    key("queue-version", Takes::Version, "is not a valid queue-version value"),
    key("queue-leader-locator", Takes::One(LEADERS), "is not a valid queue leader locator value").for_quorum(),
    key("queue-master-locator", Takes::One(MASTERS), "invalid queue-master-locator value").for_classic(),
];

fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Checks what a policy sets.
///
/// # Errors
/// The reason, with the key's name, and RabbitMQ's words where RabbitMQ refuses it as well.
pub(super) fn check(scope: Scope, settings: &Settings) -> Result<(), String> {
    if settings.is_empty() {
        return Err("no policy provided".to_owned());
    }
    for (name, value) in settings {
        let Some(key) = find(name) else {
            let refused = features::find(Area::Policy, name).is_some_and(|row| row.support == Support::Refused);
            return Err(match refused {
                true => format!("'{name}' is not honoured by nats-bridge, see docs/mapping.md"),
                false => unknown(name, value),
            });
        };
        if scope == Scope::Operator && !key.is_limit {
            return Err(unknown(name, value));
        }
        if !takes(key.takes, value) {
            return Err(format!("{} {} (key '{name}')", erlang(value), key.wrong));
        }
    }
    Ok(())
}

fn unknown(name: &str, value: &PolicyValue) -> String {
    format!("[{{<<\"{name}\">>,{}}}] are not recognised policy settings", erlang(value))
}

fn takes(takes: Takes, value: &PolicyValue) -> bool {
    match (takes, value) {
        (Takes::AtLeast(least), PolicyValue::Integer(number)) => *number >= least,
        (Takes::Version, PolicyValue::Integer(number)) => [1, 2].contains(number),
        // Names of exchanges and keys: AMQP takes no longer ones.
        (Takes::Text, PolicyValue::Text(text)) => text.len() <= 255,
        (Takes::One(words), PolicyValue::Text(text)) => words.contains(&text.as_str()),
        _ => false,
    }
}

/// A value as RabbitMQ's texts show it.
fn erlang(value: &PolicyValue) -> String {
    match value {
        PolicyValue::Integer(number) => number.to_string(),
        PolicyValue::Text(text) => format!("<<\"{text}\">>"),
        PolicyValue::Other(json) => json.clone(),
    }
}

/// Whether a policy with these settings applies to queues of a type: RabbitMQ passes over one with a key that the type does
/// not know. A stream queue has its bounds from its arguments alone.
pub(super) fn suits(settings: &Settings, kind: QueueKind) -> bool {
    settings.keys().filter_map(|name| find(name)).all(|key| match kind {
        QueueKind::Classic => key.suits_classic,
        QueueKind::Quorum => key.suits_quorum,
        QueueKind::Stream => false,
    })
}

/// What a policy and an operator policy set together: of what both set, the lower one.
pub(super) fn merge(policy: &Settings, operator: &Settings) -> Settings {
    let mut merged = policy.clone();
    for (name, value) in operator {
        let lower = match (merged.get(name), value) {
            (Some(PolicyValue::Integer(ours)), PolicyValue::Integer(theirs)) => PolicyValue::Integer(*ours.min(theirs)),
            _ => value.clone(),
        };
        merged.insert(name.clone(), lower);
    }
    merged
}

/// A whole number that is set.
pub(super) fn number(settings: &Settings, name: &str) -> Option<u64> {
    match settings.get(name) {
        Some(PolicyValue::Integer(number)) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// A text that is set.
pub(super) fn text<'a>(settings: &'a Settings, name: &str) -> Option<&'a str> {
    match settings.get(name) {
        Some(PolicyValue::Text(text)) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_list_of_features_exactly_when_it_is_taken() {
        for feature in features::FEATURES.iter().filter(|feature| feature.area == Area::Policy) {
            assert_eq!(find(feature.name).is_none(), feature.support == Support::Refused, "{}", feature.name);
        }
        for key in &KEYS {
            assert!(features::find(Area::Policy, key.name).is_some(), "{} has no row", key.name);
        }
    }
}
