//! Which topology an assessment is about, as one number: it stays the same while nothing lasting is declared or deleted.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The lists that count, and the fields of their entries that do. Counts, passwords and rates do not.
const COUNTED: [(&str, &[&str]); 9] = [
    ("vhosts", &["name", "default_queue_type"]),
    ("users", &["name", "tags", "limits"]),
    ("permissions", &["user", "vhost", "configure", "write", "read"]),
    ("topic_permissions", &["user", "vhost", "exchange", "write", "read"]),
    ("parameters", &["vhost", "component", "name", "value"]),
    ("policies", &["vhost", "name", "pattern", "apply-to", "priority", "definition"]),
    ("exchanges", &["vhost", "name", "type", "durable", "auto_delete", "arguments"]),
    ("queues", &["vhost", "name", "durable", "auto_delete", "arguments"]),
    ("bindings", &["vhost", "source", "destination", "destination_type", "routing_key", "arguments"]),
];

/// The digest of a document of definitions, the same for an export and for the management API's lists, whatever their order.
pub fn of(document: &Value) -> String {
    let mut hash = Sha256::new();
    let ends = Ends { exchanges: lasting(document, "exchanges"), queues: lasting(document, "queues") };
    for (list, fields) in COUNTED {
        let entries =
            entries(document, list).filter(|entry| lasts(list, entry) && (list != "bindings" || ends.of(entry)));
        let mut lines: Vec<String> = entries.map(|entry| kept(entry, fields)).collect();
        lines.sort_unstable();
        hash.update(format!("{list} {}\n", lines.len()));
        for line in lines {
            hash.update(line);
            hash.update("\n");
        }
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn entries<'a>(document: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    document[list].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn text<'a>(entry: &'a Value, name: &str) -> &'a str {
    entry[name].as_str().unwrap_or_default()
}

/// What bindings may lead from and to.
struct Ends<'a> {
    exchanges: BTreeSet<(&'a str, &'a str)>,
    queues: BTreeSet<(&'a str, &'a str)>,
}

impl Ends<'_> {
    fn of(&self, binding: &Value) -> bool {
        let vhost = text(binding, "vhost");
        let exchange = |name: &str| name.starts_with("amq.") || self.exchanges.contains(&(vhost, name));
        let destination = text(binding, "destination");
        let ends_well = match text(binding, "destination_type") {
            "exchange" => exchange(destination),
            _ => self.queues.contains(&(vhost, destination)),
        };
        ends_well && exchange(text(binding, "source"))
    }
}

fn lasting<'a>(document: &'a Value, list: &str) -> BTreeSet<(&'a str, &'a str)> {
    let lasting = entries(document, list).filter(|entry| lasts(list, entry));
    lasting.map(|entry| (text(entry, "vhost"), text(entry, "name"))).collect()
}

fn kept(entry: &Value, fields: &[&str]) -> String {
    let mut kept = json!({});
    for field in fields.iter().filter(|field| !entry[**field].is_null()) {
        kept[*field] = entry[*field].clone();
    }
    kept.to_string()
}

/// How the names of queues begin that a sidecar has made for itself on RabbitMQ: no application's.
pub(crate) const OF_THE_SIDECAR: &str = "nats-bridge.";

/// What an export has as well: nothing that every vhost has or that goes with a connection.
fn lasts(list: &str, entry: &Value) -> bool {
    match list {
        "exchanges" => {
            let name = text(entry, "name");
            !name.is_empty() && !name.starts_with("amq.") && entry["internal"] != true
        }
        "queues" => {
            let name = text(entry, "name");
            entry["exclusive"] != true && !name.starts_with("amq.gen-") && !name.starts_with(OF_THE_SIDECAR)
        }
        "bindings" => !text(entry, "source").is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_counts_and_what_comes_and_goes_do_not_count_and_declarations_do() {
        let q = |name: &str, ttl: u64| {
            json!({ "vhost": "/", "name": name, "durable": true, "auto_delete": false,
            "arguments": { "x-message-ttl": ttl } })
        };
        let export = json!({ "queues": [q("a", 1), q("b", 1)] });
        let mut counted = q("a", 1);
        counted["messages"] = json!(7);
        let mut own = q("own", 1);
        own["exclusive"] = json!(true);
        let listed = json!({
            "queues": [q("b", 1), own, counted],
            "exchanges": [{ "vhost": "/", "name": "amq.topic" }, { "vhost": "/", "name": "" }],
            "bindings": [
                { "vhost": "/", "source": "", "destination": "a", "destination_type": "queue" },
                { "vhost": "/", "source": "amq.topic", "destination": "own", "destination_type": "queue" },
            ],
        });
        assert_eq!(of(&export), of(&listed));
        assert!(of(&export).starts_with("sha256:") && of(&export).len() == 7 + 64);
        assert_ne!(of(&export), of(&json!({ "queues": [q("a", 1), q("b", 2)] })));
        assert_ne!(of(&export), of(&json!({ "queues": [q("a", 1)] })));
        // `rabbitmqctl export_definitions` of 3.10 says of no exchange whether it is internal, and leaves those out that are.
        let exchange = json!({ "vhost": "/", "name": "x", "type": "topic", "durable": true, "auto_delete": false, "arguments": {} });
        let mut told = exchange.clone();
        told["internal"] = json!(false);
        assert_eq!(of(&json!({ "exchanges": [exchange] })), of(&json!({ "exchanges": [told] })));
    }
}
