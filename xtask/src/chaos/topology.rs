//! The applications of a run and their queues: ordered ones with a single consumer, competing consumers, messages that are given back,
//! rejected, and that expire, and one that reads the dead letters.

use serde_json::json;

use crate::demo::random::Random;
use crate::demo::topology::Queue;

/// The exchange that everything is published to.
const WORK: &str = "chaos.work";
/// The exchange of dead letters.
const DEAD: &str = "chaos.dead";
/// How long a message may wait in the queue `brief`.
pub const BRIEF_MS: u64 = 1_000;

struct Spec {
    name: &'static str,
    binding: Option<&'static str>,
    arguments: serde_json::Value,
    consumers: usize,
    /// How its applications work.
    options: &'static [&'static str],
}

fn specs() -> Vec<Spec> {
    let none = || json!({});
    let spec = |name, binding, arguments, consumers, options| Spec { name, binding, arguments, consumers, options };
    vec![
        spec("orders.eu", Some("order.eu.#"), none(), 1, &["--requeue-every", "500"]),
        spec("orders.us", Some("order.us.#"), none(), 1, &[]),
        spec("orders.ap", Some("order.ap.#"), none(), 1, &["--prefetch", "1"]),
        spec("audit", Some("order.*.*.audited"), none(), 1, &["--prefetch", "500"]),
        spec("tasks", Some("task.*"), json!({ "x-queue-type": "quorum" }), 2, &["--requeue-every", "200"]),
        spec("jobs", Some("job.*"), json!({ "x-dead-letter-exchange": DEAD }), 2, &["--reject-every", "20"]),
        spec(
            "brief",
            Some("brief.*"),
            json!({ "x-dead-letter-exchange": DEAD, "x-message-ttl": BRIEF_MS }),
            1,
            &["--prefetch", "2", "--work-ms", "5"],
        ),
        spec("dead", None, none(), 1, &[]),
    ]
}

/// The queues, for the verdict.
pub fn queues() -> Vec<Queue> {
    let queue = |spec: Spec| Queue {
        name: spec.name.to_owned(),
        exchange: Some(WORK.to_owned()),
        bindings: spec.binding.map(str::to_owned).into_iter().collect(),
        consumers: spec.consumers,
        of_dead_letters: spec.binding.is_none(),
    };
    specs().into_iter().map(queue).collect()
}

/// What every application declares.
pub fn declared() -> serde_json::Value {
    let queue = |spec: Spec| {
        let (exchange, key) = spec.binding.map_or((DEAD, ""), |key| (WORK, key));
        json!({ "name": spec.name, "arguments": spec.arguments, "bindings": [{ "exchange": exchange, "key": key }] })
    };
    json!({
        "exchanges": [{ "name": WORK, "kind": "topic" }, { "name": DEAD, "kind": "fanout" }],
        "queues": specs().into_iter().map(queue).collect::<Vec<_>>(),
    })
}

/// The consumers: name, and arguments of `application consume`.
pub fn consumers() -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    for spec in specs() {
        for number in 1..=spec.consumers {
            let mut args = vec!["--queue".to_owned(), spec.name.to_owned()];
            args.extend(spec.options.iter().map(|option| (*option).to_owned()));
            all.push((format!("worker-{}-{number}", spec.name), args));
        }
    }
    all
}

/// The publishers, which together publish `rate` messages a second: name, and arguments of `application publish`.
pub fn publishers(rate: f64, seed: u64) -> Vec<(String, Vec<String>)> {
    let mut random = Random::new(seed);
    let mut orders = |name: &str| {
        let keys: Vec<String> = (0..100)
            .map(|_| {
                let region = ["eu", "us", "ap"][random.below(3) as usize];
                let audited = if random.below(5) == 0 { ".audited" } else { "" };
                // Each customer orders at one publisher only: two publishers never had an order between them.
                format!("order.{region}.{name}c{:05x}{audited}", random.below(1 << 20))
            })
            .collect();
        (name.to_owned(), keys, rate * 0.35)
    };
    let (first, second) = (orders("orders-1"), orders("orders-2"));
    let keys = [("task", 60), ("job", 30), ("brief", 10)];
    let keys = keys.into_iter().flat_map(|(kind, count)| (0..count).map(move |number| format!("{kind}.c{number}")));
    [first, second, ("others".to_owned(), keys.collect(), rate * 0.3)]
        .into_iter()
        .map(|(name, keys, rate)| {
            let mut args = vec!["--exchange".to_owned(), WORK.to_owned(), "--rate".to_owned(), format!("{rate:.1}")];
            args.extend(["--seed".to_owned(), seed.to_string()]);
            args.extend(keys.into_iter().flat_map(|key| ["--key".to_owned(), key]));
            (name, args)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_belongs_in_a_queue_and_no_two_publishers_share_one() {
        let queues = queues();
        assert_eq!(queues.len(), 8);
        let mut owner = std::collections::HashMap::new();
        for (name, args) in publishers(5_000.0, 7) {
            for key in args.windows(2).filter(|pair| pair[0] == "--key").map(|pair| &pair[1]) {
                let homes = queues.iter().filter(|queue| queue.takes(WORK, key)).count();
                assert_eq!(homes, if key.ends_with(".audited") { 2 } else { 1 }, "{key}");
                assert!(owner.insert(key.clone(), name.clone()).is_none_or(|other| other == name), "{key}");
            }
        }
    }
}
