//! Every feature of the gateway's own list is told of as `docs/mapping.md` says, and no code is there for nothing.

use std::collections::BTreeSet;

use amqp_compat::model::features::{Area, FEATURES, Feature, Support};
use serde_json::{Value, json};

use super::super::live::{Answers, Live};
use super::super::{Assessment, Code, Inventory, NatsLimits, Severity, Way, code};
use super::{assessed, binding, exchange, export, nats, policy, queue, read};

/// A broker that uses one feature, and the features without which it cannot.
struct Sample {
    inventory: Inventory,
    uses: Vec<&'static str>,
}

fn of_queue(arguments: Value, uses: &[&'static str]) -> Sample {
    let mut arguments = arguments;
    for kind in ["quorum", "stream"] {
        if uses.contains(&kind) {
            arguments["x-queue-type"] = json!(kind);
        }
    }
    Sample { inventory: read(export(json!({ "queues": [queue("q", arguments)] }))), uses: uses.to_vec() }
}

fn of_exchange(kind: &str, arguments: Value, uses: &[&'static str]) -> Sample {
    Sample { inventory: read(export(json!({ "exchanges": [exchange("x", kind, arguments)] }))), uses: uses.to_vec() }
}

/// A queue that was declared with these flags besides.
fn flagged(name: &str, flags: Value, uses: &[&'static str]) -> Sample {
    let mut entry = queue(name, json!({}));
    for (flag, value) in flags.as_object().expect("flags") {
        entry[flag] = value.clone();
    }
    Sample { inventory: read(export(json!({ "queues": [entry] }))), uses: uses.to_vec() }
}

/// A consumer of a queue of this type.
fn consuming(kind: &str, arguments: Value, uses: &[&'static str]) -> Sample {
    let answers = Answers {
        definitions: export(json!({})),
        queues: vec![queue("q", json!({ "x-queue-type": kind }))],
        consumers: vec![json!({
            "queue": { "vhost": "/", "name": "q" }, "consumer_tag": "t", "prefetch_count": 1, "ack_required": true,
            "arguments": arguments,
        })],
        ..Answers::default()
    };
    let mut inventory = read(answers.definitions());
    inventory.live = Some(Live::read(&answers, |vhost| vhost == "/"));
    Sample { inventory, uses: uses.to_vec() }
}

/// A broker that uses the feature; `None` for what a topology does not show.
fn sample(feature: &Feature) -> Option<Sample> {
    let name = feature.name;
    Some(match feature.area {
        Area::Message | Area::Method => return None,
        Area::ExchangeType => match name {
            "default" => return None,
            "x-delayed-message" => of_exchange(name, json!({ "x-delayed-type": "topic" }), &[name]),
            kind => of_exchange(kind, json!({}), &[name]),
        },
        Area::ExchangeArgument => match name {
            "alternate-exchange" => of_exchange("direct", json!({ name: "amq.fanout" }), &[name]),
            "hash-header" => of_exchange("x-consistent-hash", json!({ name: "h" }), &[name, "x-consistent-hash"]),
            "hash-property" => {
                of_exchange("x-consistent-hash", json!({ name: "message_id" }), &[name, "x-consistent-hash"])
            }
            "x-delayed-type" => {
                of_exchange("x-delayed-message", json!({ name: "topic" }), &[name, "x-delayed-message"])
            }
            other => panic!("no sample for exchange argument '{other}'"),
        },
        Area::Queue => match name {
            "durable" => flagged("q", json!({}), &[name]),
            "transient" => flagged("q", json!({ "durable": false }), &[name]),
            "exclusive" => flagged("q", json!({ "exclusive": true }), &[name]),
            "auto-delete" => flagged("q", json!({ "auto_delete": true }), &[name]),
            "server-named" => flagged("amq.gen-1", json!({}), &[name]),
            "classic" => of_queue(json!({ "x-queue-type": "classic" }), &[name]),
            "quorum" | "stream" => of_queue(json!({}), &[name]),
            other => panic!("no sample for queue '{other}'"),
        },
        Area::QueueArgument => match name {
            "x-queue-type" => of_queue(json!({ name: "classic" }), &[name]),
            "x-dead-letter-exchange" => of_queue(json!({ name: "amq.fanout" }), &[name]),
            "x-dead-letter-routing-key" => {
                let with = json!({ name: "k", "x-dead-letter-exchange": "amq.fanout" });
                of_queue(with, &[name, "x-dead-letter-exchange"])
            }
            "x-overflow" => of_queue(json!({ name: "reject-publish" }), &[name]),
            "x-single-active-consumer" | "x-message-deduplication" => of_queue(json!({ name: true }), &[name]),
            "x-max-age" => of_queue(json!({ name: "1h" }), &[name, "stream"]),
            "x-stream-max-segment-size-bytes" | "x-initial-cluster-size" => {
                of_queue(json!({ name: 1 }), &[name, "stream"])
            }
            "x-delivery-limit" | "x-quorum-initial-group-size" | "x-max-in-memory-length" | "x-max-in-memory-bytes" => {
                of_queue(json!({ name: 1 }), &[name, "quorum"])
            }
            "x-queue-leader-locator" => of_queue(json!({ name: "client-local" }), &[name, "quorum"]),
            "x-dead-letter-strategy" => of_queue(json!({ name: "at-least-once" }), &[name, "quorum"]),
            "x-queue-master-locator" => of_queue(json!({ name: "client-local" }), &[name]),
            "x-queue-mode" => of_queue(json!({ name: "lazy" }), &[name]),
            _ => of_queue(json!({ name: 1 }), &[name]),
        },
        Area::ConsumerArgument => match name {
            "x-priority" => consuming("classic", json!({ name: 3 }), &[name]),
            "x-stream-offset" => consuming("stream", json!({ name: "first" }), &[name, "stream"]),
            "x-cancel-on-ha-failover" => consuming("classic", json!({ name: true }), &[name]),
            other => panic!("no sample for consumer argument '{other}'"),
        },
        Area::Policy => {
            let value = match name {
                "overflow" => json!("reject-publish"),
                "dead-letter-exchange" | "alternate-exchange" => json!("amq.fanout"),
                "dead-letter-routing-key" | "federation-upstream" | "federation-upstream-set" => json!("k"),
                "queue-mode" => json!("lazy"),
                "queue-leader-locator" | "queue-master-locator" => json!("client-local"),
                "ha-mode" => json!("all"),
                "max-age" => json!("1h"),
                "dead-letter-strategy" => json!("at-least-once"),
                _ => json!(1),
            };
            Sample { inventory: read(export(policy(json!({ name: value })))), uses: vec![name] }
        }
    })
}

/// The features that `docs/mapping.md` says are refused in a sidecar alone.
fn refused_beside() -> Vec<&'static str> {
    let rows = include_str!("../../../../docs/mapping.md").lines().filter(|line| line.contains("540 in a sidecar"));
    rows.filter_map(|row| row.split('|').map(str::trim).nth(1)).collect()
}

/// The worst finding about anything but the broker as a whole.
fn worst(assessment: &Assessment) -> Option<Severity> {
    let of_entities = assessment.findings.iter().filter(|finding| finding.entity.vhost.is_some());
    of_entities.map(|finding| finding.severity).min()
}

#[test]
fn every_feature_of_a_topology_is_told_of_as_the_mapping_document_says() {
    let beside = refused_beside();
    assert_eq!(beside, ["x-consistent-hash", "x-delayed-message", "stream", "x-single-active-consumer"]);
    for feature in FEATURES {
        let Some(Sample { inventory, uses }) = sample(feature) else { continue };
        let is_mirror = feature.area == Area::Policy && feature.name.starts_with("ha-");
        for way in [Way::Sidecar, Way::Serve] {
            let assessment = assessed(&inventory, None, way);
            let is_beside = way == Way::Sidecar && uses.iter().any(|name| beside.contains(name));
            // A sidecar has no policies at all.
            let is_no_policy = way == Way::Sidecar && feature.area == Area::Policy && feature.support != Support::Hint;
            let is_refused = feature.support == Support::Refused;
            let blocks = !is_mirror && (is_refused || is_beside || is_no_policy);
            let worst = worst(&assessment);
            let shown = format!("{feature:?}, {way:?}: {:?}", assessment.findings);
            assert_eq!(worst == Some(Severity::Blocker), blocks, "{shown}");
            if is_mirror {
                assert_eq!(worst, Some(Severity::Caveat), "{shown}");
            }
            let differs = super::super::differences::of(feature.area, feature.name, way).is_some();
            // S-SYNC says of all durable queues together what a confirm means.
            if !blocks && differs && feature.support == Support::Honoured && feature.name != "durable" {
                assert!(worst.is_some_and(|worst| worst <= Severity::Caveat), "{shown}");
            }
        }
    }
}

#[test]
fn what_a_topology_does_not_show_is_named() {
    let assessment = assessed(&read(export(json!({}))), None, Way::Serve);
    let unseen = assessment.findings.iter().find(|finding| finding.code == code::C_UNSEEN).expect("named");
    let refused = FEATURES.iter().filter(|feature| feature.support == Support::Refused && sample(feature).is_none());
    let mut count = 0;
    for feature in refused {
        count += 1;
        assert!(unseen.what.contains(feature.name), "{}: {}", feature.name, unseen.what);
    }
    assert!(count > 0);
}

/// Definitions that have what there is a code for, as far as one broker can.
fn everything() -> Value {
    let mut queues: Vec<Value> = [
        ("stream", json!({ "x-queue-type": "stream" })),
        ("timeout", json!({ "x-message-deduplication": true })),
        ("negative", json!({ "x-message-ttl": -1 })),
        ("short", json!({ "x-message-ttl": 5 })),
        ("lazy", json!({ "x-queue-mode": "lazy" })),
        ("mine", json!({ "x-of-my-own": 1 })),
        ("dead", json!({ "x-dead-letter-exchange": "gone" })),
        ("null", json!({ "x-message-ttl": null })),
        ("amq.gen-abc", json!({})),
    ]
    .into_iter()
    .map(|(name, arguments)| queue(name, arguments))
    .collect();
    queues.push(queue(&"ü".repeat(100), json!({})));
    queues.extend((0..1_001).map(|index| queue(&format!("q{index}"), json!({ "x-queue-type": "quorum" }))));
    let mut transient = exchange("transient", "topic", json!({}));
    transient["durable"] = json!(false);
    let exchanges = [
        exchange("random", "x-random", json!({})),
        exchange("hash", "x-consistent-hash", json!({})),
        exchange("wrong", "direct", json!({ "alternate-exchange": 5 })),
        exchange("front", "direct", json!({ "alternate-exchange": "gone" })),
        transient,
    ];
    let mut bindings = vec![binding("amq.topic", "gone", "k"), binding("amq.topic", "timeout", "k")];
    bindings.extend((0..100).map(|index| binding("amq.fanout", &format!("q{index}"), "")));
    let policy = |name: &str, pattern: &str, definition: Value| {
        json!({ "vhost": "/", "name": name, "pattern": pattern, "apply-to": "queues", "priority": 0,
            "definition": definition })
    };
    let parameter = |component: &str| json!({ "vhost": "/", "component": component, "name": "p", "value": {} });
    export(json!({
        "rabbit_version": "3.12.1",
        "vhosts": [{ "name": "/", "default_queue_type": "quorum" }],
        "queues": queues, "exchanges": exchanges, "bindings": bindings,
        "policies": [
            policy("ttl", "^q", json!({ "message-ttl": 5 })),
            policy("federated", "^q", json!({ "federation-upstream": "x" })),
            policy("mirrored", "^q", json!({ "ha-mode": "all" })),
            policy("lazy", "^nothing$", json!({ "queue-mode": "lazy" })),
        ],
        "parameters": [
            parameter("shovel"), parameter("federation-upstream"), parameter("vhost-limits"), parameter("novelty"),
        ],
        "global_parameters": [{ "name": "mine", "value": 1 }],
        "users": [{ "name": "u", "tags": ["administrator"] }],
        "permissions": [{ "user": "u", "vhost": "/", "configure": "^$", "write": ".*", "read": ".*" }],
        "topic_permissions": [{ "user": "u", "vhost": "/", "exchange": "amq.topic", "write": "a", "read": ".*" }],
    }))
}

/// What goes on at that broker.
fn traffic(definitions: &Value) -> Live {
    let connection = |protocol: &str, mechanism: &str| {
        json!({ "vhost": "/", "name": "c", "user": "u", "protocol": protocol, "auth_mechanism": mechanism, "ssl": true,
            "client_properties": { "product": "pika" } })
    };
    let holding = |name: &str, bytes: u64| json!({ "vhost": "/", "name": name, "messages": 1, "message_bytes": bytes, "consumers": 0 });
    let answers = Answers {
        definitions: definitions.clone(),
        queues: vec![holding("q0", 2_000_000), holding("q1", 500_000)],
        connections: vec![connection("MQTT 3.1.1", ""), connection("AMQP 0-9-1", "EXTERNAL")],
        consumers: vec![json!({
            "queue": { "vhost": "/", "name": "q0" }, "consumer_tag": "t", "prefetch_count": 0, "ack_required": true,
            "arguments": { "x-stream-offset": "first" },
        })],
        ..Answers::default()
    };
    Live::read(&answers, |vhost| vhost == "/")
}

#[test]
fn every_code_is_reached() {
    let document = everything();
    let live = traffic(&document);
    let inventory = Inventory { live: Some(live), ..read(document) };
    let nats = NatsLimits { is_clustered: false, ..nats() };
    let mut reached = BTreeSet::new();
    for way in [Way::Sidecar, Way::Serve] {
        reached.extend(assessed(&inventory, Some(&nats), way).findings.iter().map(|finding| finding.code.name));
    }
    let missing: Vec<&Code> = code::ALL.iter().copied().filter(|code| !reached.contains(code.name)).collect();
    assert!(missing.is_empty(), "nothing leads to {missing:?}");
}
