//! The server's configuration in the words of a manifest, so that what differs is told as the file says it. Pure.

use serde_json::{Map, Value, json};

/// What a configuration is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Object {
    Stream,
    Bucket,
    Consumer,
}

/// A configuration under the manifest's names and in its units; a limit that there is not is `null`. What a manifest has no word for
/// keeps the server's.
pub(super) fn in_words(object: Object, config: &Map<String, Value>) -> Map<String, Value> {
    let mut words = Map::new();
    for (field, value) in config {
        let (word, value) = match (field.as_str(), object) {
            ("num_replicas", _) => ("replicas", value.clone()),
            ("max_msgs", _) => ("max_messages", limit(value)),
            ("max_msgs_per_subject", Object::Bucket) => ("history", limit(value)),
            ("max_bytes" | "max_msgs_per_subject" | "max_msg_size" | "max_deliver" | "max_ack_pending", _) => {
                (field.as_str(), limit(value))
            }
            ("max_age", Object::Bucket) => ("ttl_ms", limit(&millis(value))),
            ("max_age", _) => ("max_age_ms", limit(&millis(value))),
            ("duplicate_window", _) => ("duplicate_window_ms", millis(value)),
            ("ack_wait", _) => ("ack_wait_ms", millis(value)),
            ("backoff", _) => ("backoff_ms", millis(value)),
            ("retention", _) if value == "workqueue" => ("retention", json!("work_queue")),
            // The server has one of two fields; an empty one is an absent one.
            ("filter_subject", _) if value.as_str().is_none_or(str::is_empty) => continue,
            ("filter_subject", _) => ("filter_subjects", json!([value])),
            ("filter_subjects", _) if words.contains_key("filter_subjects") => continue,
            _ => (field.as_str(), value.clone()),
        };
        words.insert(word.to_owned(), value);
    }
    words
}

fn limit(value: &Value) -> Value {
    match value.as_f64() {
        Some(number) if number <= 0.0 => Value::Null,
        _ => value.clone(),
    }
}

// Whole milliseconds where they are: a millisecond that was set by hand in parts is told in parts.
fn millis(nanos: &Value) -> Value {
    match nanos {
        Value::Array(all) => all.iter().map(millis).collect(),
        Value::Number(number) => match number.as_u64() {
            Some(nanos) if nanos % 1_000_000 == 0 => json!(nanos / 1_000_000),
            Some(nanos) => json!(nanos as f64 / 1e6),
            None => nanos.clone(),
        },
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(object: Object, config: Value) -> Value {
        json!(in_words(object, config.as_object().unwrap()))
    }

    #[test]
    fn names_units_and_absent_limits_are_those_of_the_file() {
        let stream = json!({"max_age": 1_500_000_000u64, "max_msgs": -1, "max_bytes": 5, "num_replicas": 3,
            "retention": "workqueue", "duplicate_window": 100_500_000, "compression": "s2"});
        let expected = json!({"max_age_ms": 1500, "max_messages": null, "max_bytes": 5, "replicas": 3,
            "retention": "work_queue", "duplicate_window_ms": 100.5, "compression": "s2"});
        assert_eq!(words(Object::Stream, stream), expected);
        let bucket = json!({"max_age": 0, "max_msgs_per_subject": 5});
        assert_eq!(words(Object::Bucket, bucket), json!({"ttl_ms": null, "history": 5}));
        let consumer = json!({"ack_wait": 2_000_000, "max_deliver": -1, "backoff": [50_000_000]});
        assert_eq!(
            words(Object::Consumer, consumer),
            json!({"ack_wait_ms": 2, "max_deliver": null, "backoff_ms": [50]})
        );
    }

    #[test]
    fn one_filter_and_several_are_one_word() {
        for (config, expected) in [
            (json!({"filter_subject": "a", "filter_subjects": []}), json!(["a"])),
            (json!({"filter_subject": "", "filter_subjects": ["a", "b"]}), json!(["a", "b"])),
            (json!({"filter_subject": "a"}), json!(["a"])),
        ] {
            assert_eq!(words(Object::Consumer, config)["filter_subjects"], expected);
        }
    }
}
