//! Each code from a small export; and what is called exact is taken by the gateway's model.

use std::collections::BTreeSet;

use amqp_compat::model::queue::Owner;
use amqp_compat::model::vhost::{Change, QueuePlan, Vhost};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::live::{Answers, Live};
use super::*;

mod coverage;

/// An export with one vhost and these lists besides.
pub(crate) fn export(lists: Value) -> Value {
    let mut document = json!({ "rabbit_version": "3.10.8", "vhosts": [{ "name": "/" }] });
    for (name, list) in lists.as_object().expect("lists") {
        document[name] = list.clone();
    }
    document
}

pub(crate) fn read(document: Value) -> Inventory {
    Inventory::read(document, &[]).expect("understood")
}

fn assessed(inventory: &Inventory, nats: Option<&NatsLimits>, way: Way) -> Assessment {
    let sizes = Sizes::of(inventory, 1, nats.is_none_or(|nats| nats.is_clustered));
    assess(inventory, nats, way, &sizes)
}

/// Codes and severities of what is found, in the order of the report, without those of every broker with queues.
fn found(inventory: &Inventory, nats: Option<&NatsLimits>, way: Way) -> Vec<(&'static str, &'static str)> {
    let assessment = assessed(inventory, nats, way);
    let each = assessment.findings.iter().map(|finding| (finding.code.name, finding.severity.name()));
    each.filter(|(code, _)| !["S-SYNC", "C-UNSEEN"].contains(code)).collect()
}

pub(crate) fn queue(name: &str, arguments: Value) -> Value {
    json!({ "vhost": "/", "name": name, "durable": true, "auto_delete": false, "arguments": arguments })
}

pub(crate) fn exchange(name: &str, kind: &str, arguments: Value) -> Value {
    json!({
        "vhost": "/", "name": name, "type": kind, "durable": true, "auto_delete": false, "internal": false,
        "arguments": arguments
    })
}

pub(crate) fn binding(source: &str, destination: &str, key: &str) -> Value {
    json!({
        "vhost": "/", "source": source, "destination": destination, "destination_type": "queue", "routing_key": key,
        "arguments": {}
    })
}

pub(crate) fn policy(definition: Value) -> Value {
    json!({ "policies": [{ "vhost": "/", "name": "p", "pattern": "^q", "apply-to": "queues", "priority": 0,
        "definition": definition }], "queues": [queue("q", json!({}))] })
}

fn parameter(component: &str, value: Value) -> Value {
    json!({ "parameters": [{ "vhost": "/", "component": component, "name": "p", "value": value }] })
}

fn check(lists: Value, way: Way, expected: &[(&'static str, &'static str)]) {
    let document = export(lists);
    assert_eq!(found(&read(document.clone()), None, way), expected, "{document}");
}

fn both(lists: Value, expected: &[(&'static str, &'static str)]) {
    check(lists.clone(), Way::Sidecar, expected);
    check(lists, Way::Serve, expected);
}

#[test]
fn each_thing_of_a_topology_has_its_code() {
    both(json!({ "queues": [queue("q", json!({}))] }), &[]);
    let of = |arguments| json!({ "queues": [queue("q", arguments)] });
    check(of(json!({ "x-queue-type": "stream" })), Way::Sidecar, &[("Q-BESIDE", "blocker")]);
    check(of(json!({ "x-queue-type": "stream" })), Way::Serve, &[("Q-KIND", "caveat")]);
    both(of(json!({ "x-message-deduplication": true })), &[("Q-ARG", "blocker")]);
    both(of(json!({ "x-consumer-timeout": 5 })), &[("Q-DIFFERS", "caveat")]);
    both(of(json!({ "x-message-ttl": -1 })), &[("Q-REFUSED", "blocker")]);
    both(of(json!({ "x-queue-type": "quorum" })), &[("Q-KIND", "caveat")]);
    both(of(json!({ "x-message-ttl": 5 })), &[("Q-DIFFERS", "caveat")]);
    both(of(json!({ "x-queue-mode": "lazy" })), &[("Q-HINT", "info")]);
    both(of(json!({ "x-of-my-own": 1 })), &[("Q-UNKNOWN", "info")]);
    both(of(json!({ "x-dead-letter-exchange": "gone" })), &[("Q-DIFFERS", "caveat"), ("Q-DLX", "info")]);
    both(of(json!({ "x-message-ttl": null })), &[("V-UNREAD", "caveat")]);
    check(of(json!({ "x-single-active-consumer": true })), Way::Sidecar, &[("Q-BESIDE", "blocker")]);
    check(of(json!({ "x-single-active-consumer": true })), Way::Serve, &[]);
    both(json!({ "queues": [queue("amq.gen-abc", json!({}))] }), &[("Q-NAMED", "info")]);
    both(json!({ "queues": [queue("amq.mine", json!({}))] }), &[("Q-REFUSED", "blocker")]);
    both(json!({ "queues": [queue(&"ü".repeat(100), json!({}))] }), &[("Q-HASHED", "info")]);

    let of = |kind, arguments| json!({ "exchanges": [exchange("x", kind, arguments)] });
    both(of("topic", json!({})), &[]);
    both(of("x-random", json!({})), &[("X-TYPE", "blocker")]);
    both(of("direct", json!({ "alternate-exchange": 5 })), &[("X-REFUSED", "blocker")]);
    both(of("direct", json!({ "alternate-exchange": "gone" })), &[("X-ALTERNATE", "info")]);
    for (kind, arguments) in
        [("x-consistent-hash", json!({})), ("x-delayed-message", json!({ "x-delayed-type": "topic" }))]
    {
        check(of(kind, arguments.clone()), Way::Sidecar, &[("X-BESIDE", "blocker")]);
        let found = found(&read(export(of(kind, arguments))), None, Way::Serve);
        assert!(!found.is_empty() && found.iter().all(|found| *found == ("X-DIFFERS", "caveat")), "{found:?}");
    }
    let mut transient = exchange("x", "topic", json!({}));
    transient["durable"] = json!(false);
    both(json!({ "exchanges": [transient] }), &[("X-TRANSIENT", "info")]);
    both(json!({ "vhosts": [{ "name": "/", "default_queue_type": "quorum" }] }), &[("V-TYPE", "caveat")]);
}

#[test]
fn each_binding_has_its_code() {
    both(
        json!({ "queues": [queue("q", json!({}))], "bindings": [binding("amq.topic", "q", "k"), binding("", "q", "q")] }),
        &[],
    );
    both(json!({ "bindings": [binding("amq.topic", "gone", "k")] }), &[("B-REFUSED", "blocker")]);
    let stream = json!({
        "queues": [queue("s", json!({ "x-queue-type": "stream" }))], "bindings": [binding("amq.topic", "s", "k")],
    });
    check(stream.clone(), Way::Sidecar, &[("B-END", "blocker"), ("Q-BESIDE", "blocker")]);
    check(stream, Way::Serve, &[("Q-KIND", "caveat")]);
    let names: Vec<String> = (0..100).map(|index| format!("q{index}")).collect();
    both(
        json!({
            "queues": names.iter().map(|name| queue(name, json!({}))).collect::<Vec<_>>(),
            "bindings": names.iter().map(|name| binding("amq.fanout", name, name)).collect::<Vec<_>>(),
        }),
        &[("B-FANOUT", "caveat")],
    );
}

#[test]
fn each_policy_parameter_and_user_has_its_code() {
    let mirrored = policy(json!({ "message-ttl": 60000, "ha-mode": "all" }));
    both(mirrored, &[("P-KEY", "blocker"), ("P-MIRROR", "caveat")]);
    both(policy(json!({ "ha-mode": "all", "ha-sync-mode": "automatic" })), &[("P-MIRROR", "caveat")]);
    check(policy(json!({ "expires": 60000 })), Way::Sidecar, &[("P-KEY", "blocker")]);
    check(policy(json!({ "expires": 60000 })), Way::Serve, &[]);
    check(policy(json!({ "message-ttl": 60000 })), Way::Serve, &[("P-DIFFERS", "caveat")]);
    both(policy(json!({ "federation-upstream": "x" })), &[("P-KEY", "blocker")]);
    both(policy(json!({ "message-ttl": "soon" })), &[("P-KEY", "blocker")]);
    check(policy(json!({ "queue-mode": "lazy" })), Way::Serve, &[("P-HINT", "info")]);
    check(policy(json!({ "queue-mode": "lazy" })), Way::Sidecar, &[("P-HINT", "info")]);
    let mut idle = policy(json!({ "queue-mode": "lazy" }));
    idle["queues"] = json!([]);
    both(idle, &[("P-HINT", "info"), ("P-IDLE", "info")]);
    let mut look_around = policy(json!({ "expires": 5 }));
    look_around["policies"][0]["pattern"] = json!("^(?!a)");
    both(look_around, &[("P-KEY", "blocker")]);
    let operator = json!({ "pattern": "", "apply-to": "queues", "priority": 0, "definition": { "expires": 5 } });
    let mut lists = parameter("operator_policy", operator);
    lists["queues"] = json!([queue("q", json!({}))]);
    check(lists.clone(), Way::Sidecar, &[("P-KEY", "blocker")]);
    check(lists, Way::Serve, &[]);

    both(parameter("shovel", json!({})), &[("R-SHOVEL", "blocker")]);
    both(parameter("federation-upstream", json!({})), &[("R-FEDERATION", "blocker")]);
    both(parameter("vhost-limits", json!({ "max-queues": 5 })), &[("R-LIMIT", "caveat")]);
    both(parameter("novelty", json!({})), &[("R-OTHER", "caveat")]);
    both(
        json!({ "global_parameters": [{ "name": "cluster_name", "value": "x" }, { "name": "mine", "value": 1 }] }),
        &[("R-GLOBAL", "info")],
    );
    both(json!({ "rabbit_version": "3.12.1" }), &[("V-VERSION", "caveat")]);
    both(json!({ "novelties": [1], "nothing": [], "product_name": "RabbitMQ" }), &[("V-UNREAD", "caveat")]);

    let may = |configure| {
        json!({ "permissions": [{ "user": "u", "vhost": "/", "configure": configure, "write": ".*",
        "read": ".*" }] })
    };
    both(may(".*"), &[]);
    check(may("^$"), Way::Sidecar, &[("U-PERMISSION", "caveat")]);
    check(may("^$"), Way::Serve, &[]);
    check(may("(?=x)"), Way::Serve, &[("U-PERMISSION", "blocker")]);
    let topic = json!({ "topic_permissions": [{ "user": "u", "vhost": "/", "exchange": "amq.topic", "write": "^a",
        "read": ".*" }] });
    check(topic.clone(), Way::Sidecar, &[("U-TOPIC", "caveat")]);
    check(topic, Way::Serve, &[("U-TOPIC", "blocker")]);
    let limited = json!({ "users": [{ "name": "u", "tags": ["administrator"], "limits": { "max-connections": 5 } }] });
    check(limited.clone(), Way::Sidecar, &[("R-LIMIT", "caveat"), ("U-PASSWORD", "info"), ("U-TAG", "info")]);
    check(limited, Way::Serve, &[("R-LIMIT", "caveat"), ("U-PASSWORD", "info")]);
    both(json!({ "users": [{ "name": "u", "tags": "", "limits": {} }] }), &[("U-PASSWORD", "info")]);
}

#[test]
fn what_the_management_api_tells_has_its_codes() {
    let connection = |protocol: &str, mechanism: &str, tls: bool| {
        json!({ "vhost": "/", "name": "c", "user": "u", "protocol": protocol, "auth_mechanism": mechanism, "ssl": tls,
            "client_properties": { "product": "pika", "version": "1.3", "connection_name": "orders" } })
    };
    let consumer = |prefetch: u64, arguments: Value| {
        json!({ "queue": { "vhost": "/", "name": "q" }, "consumer_tag": "t", "prefetch_count": prefetch,
            "ack_required": true, "arguments": arguments })
    };
    let quiet = json!({ "vhost": "/", "name": "q", "durable": true, "arguments": {}, "messages": 0, "consumers": 1 });
    let check =
        |connections: Vec<Value>, consumers: Vec<Value>, queue: &Value, expected: &[(&'static str, &'static str)]| {
            let answers = Answers {
                definitions: export(json!({})),
                queues: vec![queue.clone()],
                connections,
                consumers,
                ..Answers::default()
            };
            let mut inventory = read(answers.definitions());
            inventory.live = Some(Live::read(&answers, |vhost| vhost == "/"));
            let nats = nats();
            assert_eq!(found(&inventory, Some(&nats), Way::Serve), expected);
        };
    let client = ("C-CLIENT", "info");
    check(vec![connection("AMQP 0-9-1", "PLAIN", false)], vec![consumer(10, json!([]))], &quiet, &[client]);
    check(vec![connection("MQTT 3.1.1", "", false)], vec![], &quiet, &[("C-PROTOCOL", "blocker")]);
    check(vec![connection("AMQP 0-9-1", "PLAIN", true)], vec![], &quiet, &[client, ("C-TLS", "info")]);
    check(vec![connection("AMQP 0-9-1", "EXTERNAL", false)], vec![], &quiet, &[("C-LOGIN", "caveat"), client]);
    check(vec![], vec![consumer(0, json!({}))], &quiet, &[("K-PREFETCH", "caveat")]);
    check(vec![], vec![consumer(1, json!({ "x-stream-offset": "first" }))], &quiet, &[("K-ARG", "blocker")]);
    let holding = |messages: u64, bytes: u64, consumers: u64| {
        json!({ "vhost": "/", "name": "q", "durable": true, "arguments": {}, "messages": messages,
            "message_bytes": bytes, "consumers": consumers })
    };
    let backlog = ("S-BACKLOG", "caveat");
    check(vec![], vec![], &holding(2, 2, 0), &[("K-NONE", "caveat"), backlog]);
    check(vec![], vec![], &holding(2, 2_000_001, 1), &[backlog, ("S-LARGE", "caveat")]);
    check(vec![], vec![], &holding(2, 4_000_000, 1), &[("S-PAYLOAD", "blocker"), backlog]);
    check(vec![], vec![], &holding(u64::MAX, 10_000_001, 1), &[("S-ACCOUNT", "blocker"), backlog]);
}

fn nats() -> NatsLimits {
    NatsLimits {
        version: "2.15.1".into(),
        max_payload: 1_048_576,
        free_storage: Some(10_000_000),
        free_streams: Some(10),
        free_consumers: None,
        max_bytes_required: false,
        is_clustered: false,
    }
}

#[test]
fn numbers_of_queues_are_held_against_what_is_recommended_and_allowed() {
    let many = |count: usize, arguments: Value| {
        let queues: Vec<Value> = (0..count).map(|index| queue(&format!("q{index}"), arguments.clone())).collect();
        read(export(json!({ "queues": queues })))
    };
    fn codes(inventory: &Inventory, nats: Option<&NatsLimits>) -> Vec<&'static str> {
        let codes: BTreeSet<&str> = found(inventory, nats, Way::Sidecar).into_iter().map(|(code, _)| code).collect();
        codes.into_iter().collect()
    }
    assert_eq!(codes(&many(10_000, json!({})), None), [""; 0]);
    assert_eq!(codes(&many(10_001, json!({})), None), ["S-QUEUES"]);
    assert_eq!(codes(&many(1_001, json!({ "x-queue-type": "quorum" })), None), ["Q-KIND", "S-QUEUES"]);
    assert_eq!(codes(&many(10, json!({})), Some(&nats())), [""; 0]);
    assert_eq!(codes(&many(11, json!({})), Some(&nats())), ["S-ACCOUNT"]);
    let strict = NatsLimits { max_bytes_required: true, ..nats() };
    assert_eq!(codes(&many(1, json!({})), Some(&strict)), ["S-ACCOUNT"]);
    let quorum = many(1, json!({ "x-queue-type": "quorum" }));
    assert_eq!(codes(&quorum, Some(&nats())), ["Q-KIND", "S-REPLICAS"]);
    assert_eq!(codes(&quorum, Some(&NatsLimits { is_clustered: true, ..nats() })), ["Q-KIND"]);
    assert!(assessed(&quorum, None, Way::Sidecar).findings.iter().any(|finding| finding.code.name == "S-SYNC"));
}

#[test]
fn an_input_that_is_none_is_refused_with_the_field_or_the_flag() {
    for (document, why) in [
        (json!([]), "no JSON object"),
        (json!({ "queues": [] }), "no `rabbit_version`"),
        (json!({ "rabbit_version": "2.8.7" }), "'2.8.7'"),
        (json!({ "rabbit_version": "3.10.8", "queues": 5 }), "'queues'"),
        (json!({ "rabbit_version": "3.10.8", "queues": [5] }), "queues[0]"),
        (json!({ "rabbit_version": "3.10.8", "vhosts": [{ "name": 5 }] }), "vhosts[0]: not_a_string: field 'name'"),
    ] {
        let error = Inventory::read(document, &[]).expect_err(why);
        assert!(error.contains(why), "{error}");
    }
    let error = Inventory::read(export(json!({})), &["nope".to_owned()]).expect_err("unknown");
    assert_eq!(error, "--vhost 'nope': there is no such vhost; there are: /");
}

#[test]
fn a_vhost_can_be_looked_at_alone_and_an_export_of_one_names_none() {
    let mut elsewhere = queue("q", json!({ "x-queue-type": "stream" }));
    elsewhere["vhost"] = json!("other");
    let document = export(json!({
        "vhosts": [{ "name": "/" }, { "name": "other" }], "queues": [queue("q", json!({})), elsewhere],
    }));
    let only = |name: &str| Inventory::read(document.clone(), &[name.to_owned()]).expect("understood");
    assert!(assessed(&only("/"), None, Way::Sidecar).can_begin());
    assert!(!assessed(&only("other"), None, Way::Sidecar).can_begin());
    let one = json!({ "rabbit_version": "3.10.8", "queues": [{ "name": "q", "durable": true }] });
    let inventory = Inventory::read(one, &["mine".to_owned()]).expect("understood");
    let assessment = assessed(&inventory, None, Way::Sidecar);
    assert_eq!(assessment.entities, [(Entity::of("mine", "queue", "q"), Verdict::Exact)]);
}

#[test]
fn the_report_groups_what_is_the_same_and_ends_with_a_summary() {
    let queues: Vec<Value> =
        (0..6).map(|index| queue(&format!("q{index}"), json!({ "x-queue-mode": "lazy" }))).collect();
    let inventory = read(export(json!({ "queues": queues })));
    let text = report::text(&assessed(&inventory, None, Way::Sidecar));
    assert!(text.contains("7 infos\n  C-UNSEEN    client 'any'\n"), "{text}");
    assert!(text.contains("\n  Q-HINT      queue 'q0' in vhost '/'"), "{text}");
    assert_eq!(text.matches("x-queue-mode").count(), 1, "{text}");
    assert!(text.contains("and 2 more (--json names all)"), "{text}");
    assert!(
        text.contains("6 of 6 exchanges, queues, bindings and policies map exactly, 0 with a caveat, 0 not."),
        "{text}"
    );
    assert!(text.ends_with("Nothing blocks: the move with `sidecar` can begin.\n"), "{text}");
}

fn some_arguments() -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        any::<i8>().prop_map(|number| json!(number)),
        any::<bool>().prop_map(|flag| json!(flag)),
        prop::sample::select(vec!["classic", "quorum", "stream", "lazy", "reject-publish", "topic", "amq.direct", "x"])
            .prop_map(|text| json!(text)),
    ];
    let name = prop::sample::select(vec![
        "x-queue-type",
        "x-message-ttl",
        "x-expires",
        "x-max-length",
        "x-overflow",
        "x-max-priority",
        "x-single-active-consumer",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-delivery-limit",
        "x-queue-mode",
        "x-consumer-timeout",
        "alternate-exchange",
        "x-delayed-type",
        "hash-header",
        "x-match",
        "mine",
    ]);
    prop::collection::btree_map(name, value, 0..3).prop_map(|entries| json!(entries))
}

pub(crate) fn some_topology() -> impl Strategy<Value = Value> {
    let kind = prop::sample::select(vec![
        "direct",
        "fanout",
        "topic",
        "headers",
        "x-consistent-hash",
        "x-delayed-message",
        "x-random",
    ]);
    let name = prop::sample::select(vec!["a", "b", "c", "amq.gen-d", "amq.e"]);
    // A vhost has one of a name.
    let exchanges = prop::collection::btree_map(name.clone(), (kind, any::<bool>(), some_arguments()), 0..4);
    let queues = prop::collection::btree_map(name.clone(), (any::<[bool; 3]>(), some_arguments()), 0..5);
    let bindings = prop::collection::vec((name.clone(), name, any::<bool>(), "[0-9a#.]{0,3}", some_arguments()), 0..6);
    (exchanges, queues, bindings).prop_map(|(exchanges, queues, bindings)| {
        let exchanges = exchanges.into_iter().map(|(name, (kind, durable, arguments))| {
            let mut entry = exchange(name, kind, arguments);
            entry["durable"] = json!(durable);
            entry
        });
        let queues = queues.into_iter().map(|(name, ([durable, auto_delete, exclusive], arguments))| {
            let mut entry = queue(name, arguments);
            entry["durable"] = json!(durable);
            entry["auto_delete"] = json!(auto_delete);
            entry["exclusive"] = json!(exclusive);
            entry
        });
        let bindings = bindings.into_iter().map(|(source, destination, to_queue, key, arguments)| {
            let mut entry = binding(source, destination, &key);
            entry["destination_type"] = json!(if to_queue { "queue" } else { "exchange" });
            entry["arguments"] = arguments;
            entry
        });
        export(json!({
            "exchanges": exchanges.collect::<Vec<_>>(), "queues": queues.collect::<Vec<_>>(),
            "bindings": bindings.collect::<Vec<_>>(),
        }))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Everything that is not called refused is declared into a fresh model, which takes it; what is called refused it does not
    /// take, unless it is the sidecar alone that does not.
    #[test]
    fn what_is_called_exact_the_gateway_takes(document in some_topology(), way in prop::sample::select(vec![Way::Sidecar, Way::Serve])) {
        let inventory = read(document);
        let assessment = assessed(&inventory, None, way);
        let mut verdicts = assessment.entities.iter();
        let mut judged = || verdicts.next().expect("each entity has a verdict").clone();
        let beside = |entity: &Entity| assessment.findings.iter().any(|finding| {
            finding.entity == *entity && ["Q-BESIDE", "X-BESIDE"].contains(&finding.code.name)
        });
        let declared = &inventory.vhosts["/"];
        let mut model = Vhost::new("/");
        for asked in &declared.exchanges {
            let (entity, verdict) = judged();
            let planned = model.plan_exchange_declare(asked);
            prop_assert_eq!(planned.is_err() || beside(&entity), verdict == Verdict::No, "{:?}: {:?}", entity, planned);
            if let (Ok(Some(change)), false) = (planned, verdict == Verdict::No) {
                model.apply(&change);
            }
        }
        for asked in &declared.queues {
            let (entity, verdict) = judged();
            let mut named = asked.clone();
            if entity.name.starts_with("amq.gen-") {
                named.queue = Default::default();
            }
            let planned = model.plan_queue_declare(&named, &entity.name, Owner(7));
            prop_assert_eq!(planned.is_err() || beside(&entity), verdict == Verdict::No, "{:?}: {:?}", entity, planned);
            if let (Ok(QueuePlan::Create(definition)), false) = (planned, verdict == Verdict::No) {
                model.apply(&Change::PutQueue(*definition));
            }
        }
        for (asked, to_queue) in &declared.bindings {
            let (entity, verdict) = judged();
            let planned = model.plan_bind(asked, *to_queue, Owner(7));
            prop_assert_eq!(planned.is_err(), verdict == Verdict::No, "{:?}: {:?}", entity, planned);
            if let Ok(Some(change)) = planned {
                model.apply(&change);
            }
        }
    }
}
