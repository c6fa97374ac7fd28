//! The consistent-hash exchange: each message goes to one binding, chosen by a hash, in proportion to the bindings' weights.
//!
//! Source of the rules: the documentation of RabbitMQ's plug-in `rabbitmq_consistent_hash_exchange`, and RabbitMQ 3.10
//! observed. Which binding a key belongs to is our own choice (weighted rendezvous hashing: every binding draws a number
//! from its destination's name and the key, the best one wins): it needs no state, so that it is the same after a restart
//! and whatever the order of the bindings, and a binding that comes or goes moves only the keys that it gains or loses.

use std::borrow::Cow;
use std::sync::Arc;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::FieldTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::arguments::{display_value, text, type_name};
use super::vhost::{Destination, Target};
use crate::error::{AmqpError, ReplyCode};

/// The argument that names a header to hash instead of the routing key.
pub const HASH_HEADER: &str = "hash-header";
/// The argument that names a property to hash instead of the routing key.
pub const HASH_PROPERTY: &str = "hash-property";

/// What of a message is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum HashOn {
    #[default]
    RoutingKey,
    Header(Box<str>),
    MessageId,
    CorrelationId,
    Timestamp,
}

impl HashOn {
    fn read(arguments: &FieldTable) -> Result<Self, AmqpError> {
        let words = |name: &str| match arguments.inner().get(name) {
            None => Ok(None),
            Some(value) => match text(value) {
                Some(text) => Ok(Some(text)),
                None => Err(refused(format!("invalid type '{}' for arg '{name}'", type_name(value)))),
            },
        };
        match (words(HASH_HEADER)?, words(HASH_PROPERTY)?) {
            (None, None) => Ok(HashOn::RoutingKey),
            (Some(header), None) => Ok(HashOn::Header(header.into())),
            (None, Some("message_id")) => Ok(HashOn::MessageId),
            (None, Some("correlation_id")) => Ok(HashOn::CorrelationId),
            (None, Some("timestamp")) => Ok(HashOn::Timestamp),
            (None, Some(other)) => Err(refused(format!("Unsupported property: {other}"))),
            (Some(_), Some(_)) => Err(refused("hash-header and hash-property are mutually exclusive")),
        }
    }

    /// What is hashed of a message; a message without it counts as one whose value is empty.
    fn value<'a>(&self, key: &'a str, properties: Option<&'a AMQPProperties>) -> Cow<'a, str> {
        let found: Option<Cow<'a, str>> = match self {
            HashOn::RoutingKey => Some(key.into()),
            HashOn::Header(name) => properties
                .and_then(|properties| properties.headers().as_ref()?.inner().get(&**name))
                .map(|value| text(value).map_or_else(|| display_value(value, 0).into(), Cow::from)),
            HashOn::MessageId => {
                properties.and_then(|properties| Some(properties.message_id().as_ref()?.as_str().into()))
            }
            HashOn::CorrelationId => {
                properties.and_then(|properties| Some(properties.correlation_id().as_ref()?.as_str().into()))
            }
            HashOn::Timestamp => properties.and_then(|properties| Some((*properties.timestamp())?.to_string().into())),
        };
        found.unwrap_or_default()
    }
}

/// Checks the arguments of an `exchange.declare`.
///
/// # Errors
/// `PreconditionFailed` with the plug-in's text.
pub fn check_arguments(arguments: &FieldTable) -> Result<(), AmqpError> {
    HashOn::read(arguments).map(drop)
}

/// Checks a binding key: the weight, a whole number above 0.
///
/// # Errors
/// `PreconditionFailed` with the plug-in's text.
pub fn check_weight(key: &str) -> Result<(), AmqpError> {
    match weight(key) {
        None if key.is_empty() => Err(refused("The binding key must be an integer: <<>>")),
        None => Err(refused(format!("The binding key must be an integer: <<\"{key}\">>"))),
        Some(weight) if weight < 1.0 => Err(refused("The binding key must be greater than 0")),
        Some(_) => Ok(()),
    }
}

fn refused(text: impl Into<String>) -> AmqpError {
    AmqpError::new(ReplyCode::PreconditionFailed, text)
}

/// An integer with an optional sign, of any length: a key has at most 255 digits, which a float holds well enough for a
/// proportion.
fn weight(key: &str) -> Option<f64> {
    let digits = key.strip_prefix(['-', '+']).unwrap_or(key);
    let is_integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_integer { key.parse().ok() } else { None }
}

/// The bindings of one consistent-hash exchange.
#[derive(Debug, Default)]
pub struct ConsistentHashTable {
    on: HashOn,
    bindings: Vec<Weighted>,
}

#[derive(Debug)]
struct Weighted {
    target: Target,
    key: Arc<str>,
    weight: f64,
    /// From the destination's name, so that a queue keeps its keys when it is bound with another weight.
    seed: u64,
}

impl ConsistentHashTable {
    /// For an exchange whose arguments [`check_arguments`] has accepted.
    pub fn new(arguments: &FieldTable) -> Self {
        Self { on: HashOn::read(arguments).unwrap_or_default(), bindings: Vec::new() }
    }

    /// Adds a binding whose key [`check_weight`] has accepted.
    pub fn insert(&mut self, key: &Arc<str>, destination: &Destination, target: Target) {
        let (kind, name) = match destination {
            Destination::Queue(name) => (0, name),
            Destination::Exchange(name) => (1, name),
        };
        let seed = xxh3_64_with_seed(name.as_bytes(), kind);
        self.bindings.push(Weighted { target, key: key.clone(), weight: weight(key).unwrap_or(1.0), seed });
    }

    /// Takes away one binding that was inserted.
    pub fn remove(&mut self, key: &str, target: Target) {
        if let Some(index) = self.bindings.iter().position(|b| b.target == target && *b.key == *key) {
            self.bindings.swap_remove(index);
        }
    }

    /// The one target of a message, if there is any binding. A target that is bound twice counts with its greatest weight.
    pub fn route(&self, key: &str, properties: Option<&AMQPProperties>) -> Option<Target> {
        let value = self.on.value(key, properties);
        let score = |binding: &Weighted| {
            let drawn = xxh3_64_with_seed(value.as_bytes(), binding.seed);
            // Between 0 and 1, both excluded: its logarithm is finite and below 0.
            let uniform = ((drawn >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
            -binding.weight / uniform.ln()
        };
        let scored = self.bindings.iter().map(|binding| (score(binding), binding));
        let best = scored.max_by(|(a, one), (b, other)| a.total_cmp(b).then(one.seed.cmp(&other.seed)));
        best.map(|(_, binding)| binding.target)
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::types::AMQPValue;
    use foldhash::{HashMap, HashMapExt};
    use proptest::prelude::*;

    use super::*;

    const KEYS: usize = 20_000;

    fn table(weights: &[u32]) -> ConsistentHashTable {
        let mut table = ConsistentHashTable::default();
        weights.iter().enumerate().for_each(|(index, weight)| insert(&mut table, index, *weight));
        table
    }

    fn insert(table: &mut ConsistentHashTable, index: usize, weight: u32) {
        let queue = Destination::Queue(format!("queue-{index}").into());
        table.insert(&weight.to_string().into(), &queue, Target::Queue(index as u32));
    }

    fn routes(table: &ConsistentHashTable) -> Vec<Option<Target>> {
        (0..KEYS).map(|key| table.route(&format!("key.{key}"), None)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn keys_are_shared_in_proportion_to_the_weights(weights in proptest::collection::vec(1u32..20, 1..12)) {
            let mut counts: HashMap<Target, usize> = HashMap::new();
            for target in routes(&table(&weights)) {
                *counts.entry(target.expect("bound")).or_default() += 1;
            }
            let all: u32 = weights.iter().sum();
            for (index, weight) in weights.iter().enumerate() {
                let share = f64::from(*weight) / f64::from(all);
                let expected = share * KEYS as f64;
                let found = counts.get(&Target::Queue(index as u32)).copied().unwrap_or_default() as f64;
                // Six standard deviations of a fair draw.
                let slack = 6.0 * (expected * (1.0 - share)).sqrt() + 1.0;
                prop_assert!((found - expected).abs() <= slack, "{weights:?} [{index}]: {found}, expected {expected}");
            }
        }

        #[test]
        fn a_binding_that_comes_takes_keys_from_others_and_moves_no_other_key(
            weights in proptest::collection::vec(1u32..10, 1..8),
            new in 1u32..10,
        ) {
            let mut table = table(&weights);
            let before = routes(&table);
            let added = Target::Queue(weights.len() as u32);
            insert(&mut table, weights.len(), new);
            let during = routes(&table);
            for (before, during) in before.iter().zip(&during) {
                prop_assert!(during == before || *during == Some(added));
            }
            table.remove(&new.to_string(), added);
            prop_assert_eq!(routes(&table), before);
        }

        #[test]
        fn the_order_of_the_bindings_makes_no_difference(weights in proptest::collection::vec(1u32..10, 1..8)) {
            let mut reversed = ConsistentHashTable::default();
            weights.iter().enumerate().rev().for_each(|(index, weight)| insert(&mut reversed, index, *weight));
            prop_assert_eq!(routes(&reversed), routes(&table(&weights)));
        }
    }

    fn arguments(entries: &[(&str, &str)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        table
    }

    #[test]
    fn what_is_hashed_can_be_chosen() {
        let with = |entries: &[(&str, &str)]| {
            let mut table = ConsistentHashTable::new(&arguments(entries));
            (0..5).for_each(|index| insert(&mut table, index, 1));
            table
        };
        let by_header = with(&[("hash-header", "customer")]);
        let by_id = with(&[("hash-property", "message_id")]);
        let by_correlation = with(&[("hash-property", "correlation_id")]);
        let by_time = with(&[("hash-property", "timestamp")]);
        let mut seen = [const { Vec::new() }; 4];
        for n in 0u64..50 {
            let properties = AMQPProperties::default()
                .with_headers(arguments(&[("customer", &n.to_string())]))
                .with_message_id(n.to_string().as_str().into())
                .with_correlation_id(n.to_string().as_str().into())
                .with_timestamp(n);
            for (table, seen) in [&by_header, &by_id, &by_correlation, &by_time].into_iter().zip(&mut seen) {
                let first = table.route("a", Some(&properties)).expect("bound");
                assert_eq!(table.route("b", Some(&properties)), Some(first), "the routing key makes no difference");
                seen.push(first);
            }
        }
        for mut seen in seen {
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 5, "all queues get some");
        }
        assert_eq!(by_id.route("a", None), by_id.route("b", None), "messages without it belong together");
        assert_eq!(ConsistentHashTable::default().route("a", None), None);
    }

    #[test]
    fn what_the_plug_in_refuses_is_refused_in_its_words() {
        let text = |result: Result<(), AmqpError>| result.expect_err("refused").to_string();
        for good in ["1", "+2", "01", "1000000000000000000000"] {
            assert_eq!(check_weight(good), Ok(()));
        }
        for bad in ["abc", "1.5", " 1", "1 ", "é", "-", "inf", "1e3"] {
            let expected = format!("PRECONDITION_FAILED - The binding key must be an integer: <<\"{bad}\">>");
            assert_eq!(text(check_weight(bad)), expected);
        }
        assert_eq!(text(check_weight("")), "PRECONDITION_FAILED - The binding key must be an integer: <<>>");
        for low in ["0", "-1", "-0"] {
            assert_eq!(text(check_weight(low)), "PRECONDITION_FAILED - The binding key must be greater than 0");
        }
        assert_eq!(
            text(check_arguments(&arguments(&[("hash-property", "app_id")]))),
            "PRECONDITION_FAILED - Unsupported property: app_id"
        );
        assert_eq!(
            text(check_arguments(&arguments(&[("hash-property", "app_id"), ("hash-header", "h")]))),
            "PRECONDITION_FAILED - hash-header and hash-property are mutually exclusive"
        );
        let mut number = FieldTable::default();
        number.insert("hash-header".into(), AMQPValue::LongInt(5));
        assert!(text(check_arguments(&number)).starts_with("PRECONDITION_FAILED - invalid type 'signedint'"));
    }
}
