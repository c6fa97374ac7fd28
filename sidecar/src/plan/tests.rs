//! What is planned is taken by the gateway's model and is then found; what is changed on the way is noticed.

use std::collections::BTreeMap;

use amqp_compat::backend::Topology;
use amqp_compat::backend::jetstream::{Stored, StoredStream};
use amqp_compat::model::policy::Scope;
use amqp_compat::model::queue::Owner;
use amqp_compat::model::vhost::{Change, QueuePlan, Vhost};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::assess::Way;
use crate::assess::tests::{binding, exchange, export, policy, queue, read, some_topology};
use crate::management::documents::definitions::Action;

const SIDECAR: Settings = Settings { way: Way::Sidecar, replicas: 1 };
const SERVE: Settings = Settings { way: Way::Serve, replicas: 1 };

fn wanted(lists: Value, settings: Settings) -> Wanted {
    Wanted::of(&read(export(lists)), settings)
}

fn plan(wanted: &Wanted, settings: Settings) -> Plan {
    Plan::new(wanted, vec!["/".to_owned()], settings)
}

/// A broker with something of everything.
fn shop() -> Value {
    let with = |mut entry: Value, field: &str, value: Value| {
        entry[field] = value;
        entry
    };
    json!({
        "exchanges": [
            exchange("orders", "topic", json!({ "alternate-exchange": "lost" })),
            with(exchange("passing", "fanout", json!({})), "durable", json!(false)),
            exchange("hash", "x-consistent-hash", json!({})),
        ],
        "queues": [
            queue("billing", json!({ "x-message-ttl": 60_000, "x-dead-letter-exchange": "lost" })),
            queue("safe", json!({ "x-queue-type": "quorum" })),
            queue("urgent", json!({ "x-max-priority": 3 })),
            queue("log", json!({ "x-queue-type": "stream", "x-max-age": "1h" })),
            with(queue("passing", json!({})), "durable", json!(false)),
            with(queue("own", json!({})), "exclusive", json!(true)),
            queue("amq.gen-1", json!({})),
        ],
        "bindings": [
            binding("orders", "billing", "order.#"),
            binding("orders", "log", "#"),
            binding("passing", "billing", ""),
            binding("orders", "passing", "a"),
            binding("orders", "amq.gen-1", "b"),
            with(binding("amq.headers", "safe", ""), "arguments", json!({ "x-match": "any", "size": 5 })),
            with(binding("amq.headers", "safe", ""), "arguments", json!({ "x-match": "any", "kind": "a" })),
        ],
        "policies": [
            { "vhost": "/", "name": "short", "pattern": "^billing$", "apply-to": "queues", "priority": 1,
              "definition": { "max-length": 10 } },
            { "vhost": "/", "name": "mirror", "pattern": ".*", "apply-to": "queues", "priority": 0,
              "definition": { "ha-mode": "all" } },
        ],
    })
}

fn names(things: &Things, kind: Kind) -> Vec<&str> {
    things.keys().filter(|key| key.kind == kind).map(|key| key.name.as_str()).collect()
}

/// Names of what is left out, with whether it would be refused.
fn left_out(wanted: &Wanted) -> BTreeMap<&str, bool> {
    wanted.left_out.iter().map(|left| (left.key.name.as_str(), left.is_refused)).collect()
}

#[test]
fn what_lasts_and_maps_is_planned_and_the_rest_is_named() {
    let beside = wanted(shop(), SIDECAR);
    assert_eq!(names(&beside.things, Kind::Exchange), ["orders"]);
    assert_eq!(names(&beside.things, Kind::Queue), ["billing", "safe", "urgent"]);
    assert_eq!(
        names(&beside.things, Kind::Binding),
        [
            "amq.headers -> queue safe, key '', arguments {\"kind\":\"a\",\"x-match\":\"any\"}",
            "orders -> queue billing, key 'order.#'"
        ]
    );
    assert_eq!(beside.by_applications.len(), 1, "{:?}", beside.by_applications);
    assert_eq!(
        left_out(&beside),
        BTreeMap::from([
            ("hash", true),
            ("log", true),
            ("orders -> queue log, key '#'", true),
            ("short", true),
            ("passing", false),
            ("own", false),
            ("amq.gen-1", false),
            ("mirror", false),
            ("passing -> queue billing, key ''", false),
            ("orders -> queue passing, key 'a'", false),
            ("orders -> queue amq.gen-1, key 'b'", false),
        ])
    );
    assert_eq!(beside.refused(), 4);

    let alone = wanted(shop(), SERVE);
    assert_eq!(names(&alone.things, Kind::Exchange), ["hash", "orders"]);
    assert_eq!(names(&alone.things, Kind::Queue), ["billing", "log", "safe", "urgent"]);
    assert_eq!(names(&alone.things, Kind::Policy), ["short"]);
    assert_eq!(alone.refused(), 0);
}

#[test]
fn a_queue_says_which_stream_it_becomes() {
    let alone = wanted(shop(), Settings { replicas: 2, ..SERVE });
    let of = |name: &str| &alone.things[&Key::new("/", Kind::Queue, name)];
    let stream = |name: &str, field: &str| of(name)["stream"][field].clone();
    assert_eq!(stream("billing", "name"), "AQ_=2F_billing");
    assert_eq!(stream("urgent", "subjects"), json!(["aq.=2F.urgent", "aq.=2F.urgent.*"]));
    assert_eq!((stream("billing", "num_replicas"), stream("safe", "num_replicas")), (json!(2), json!(3)));
    assert_eq!((stream("log", "retention"), stream("log", "max_age")), (json!("limits"), json!(3_600_000_000_000_u64)));
    assert_eq!((&of("billing")["consumer"], &of("log")["consumer"]), (&json!("amqp"), &Value::Null));
    let totals = plan(&alone, Settings { replicas: 2, ..SERVE }).totals();
    assert_eq!(
        (&totals["streams"], &totals["consumers"], &totals["stream_copies"]),
        (&json!(4), &json!(3), &json!(10))
    );
    let mut here = alone.all();
    assert_eq!(found::on_one_server(&mut here, 1), 2);
    let copies = |name: &str| here[&Key::new("/", Kind::Queue, name)]["stream"]["num_replicas"].clone();
    assert_eq!((copies("safe"), copies("log")), (json!(1), json!(1)));
}

#[test]
fn a_plan_comes_back_as_it_was_and_a_changed_one_does_not() {
    let wanted = wanted(shop(), SIDECAR);
    let plan = plan(&wanted, SIDECAR);
    let document = plan.json(&json!({ "source": "here" }), &wanted.left_out);
    let text = serde_json::to_string_pretty(&document).expect("JSON");
    let mut again: Value = serde_json::from_str(&text).expect("JSON");
    let read = Plan::read(&again).expect("a plan");
    assert_eq!(
        (&read.things, &read.by_applications, &read.vhosts),
        (&plan.things, &plan.by_applications, &plan.vhosts)
    );
    assert_eq!((read.settings, &read.digest), (SIDECAR, &plan.digest));

    again["made_from"]["source"] = json!("elsewhere");
    Plan::read(&again).expect("where it comes from does not count");
    for (path, value) in [
        ("/vhosts/0/declare/queues/0/durable", json!(false)),
        ("/vhosts/0/declare/queues/0/arguments/x-message-ttl", json!(1)),
        ("/vhosts/0/declare/bindings", json!([])),
        ("/vhosts/0/name", json!("other")),
        ("/replicas", json!(3)),
        ("/way", json!("serve")),
        ("/digest", json!("sha256:0")),
    ] {
        let mut changed = again.clone();
        *changed.pointer_mut(path).expect(path) = value;
        let error = Plan::read(&changed).expect_err(path);
        assert!(error.contains("changed after it was made"), "{path}: {error}");
    }
    for (path, value, why) in [
        ("/plan", json!(2), "`plan` is 2"),
        ("/way", json!("back"), "`way` is \"back\""),
        ("/replicas", json!(9), "`replicas`"),
        ("/vhosts", json!(5), "`vhosts` is not a list"),
        ("/vhosts/0/declare/queues", json!(5), "'queues' is not a list"),
        ("/vhosts/0/declare/queues/0/name", json!(5), "queues[0] has no name"),
    ] {
        let mut wrong = again.clone();
        *wrong.pointer_mut(path).expect(path) = value;
        let error = Plan::read(&wrong).expect_err(path);
        assert!(error.contains(why), "{path}: {error}");
    }
    assert!(Plan::read(&json!([])).is_err());
}

#[test]
fn the_order_of_an_export_and_what_does_not_last_do_not_change_a_plan_and_what_lasts_does() {
    let digest = |lists: Value| plan(&wanted(lists, SIDECAR), SIDECAR).digest;
    let mut other = shop();
    for list in ["exchanges", "queues", "bindings"] {
        other[list].as_array_mut().expect("a list").reverse();
    }
    assert_eq!(digest(shop()), digest(other.clone()));
    let own = json!({ "vhost": "/", "name": "more", "durable": true, "exclusive": true, "arguments": {} });
    other["queues"].as_array_mut().expect("a list").push(own);
    assert_eq!(digest(shop()), digest(other.clone()));
    other["queues"].as_array_mut().expect("a list").push(queue("another", json!({})));
    assert_ne!(digest(shop()), digest(other));
}

#[test]
fn a_comparison_names_what_is_missing_extra_or_different_and_in_which_field() {
    let ours = wanted(shop(), SIDECAR).things;
    assert_eq!(compare(&ours, &ours), []);
    let key = |name: &str| Key::new("/", Kind::Queue, name);
    let mut theirs = ours.clone();
    theirs.remove(&key("safe"));
    theirs.insert(key("left"), json!({}));
    theirs.get_mut(&key("urgent")).expect("there")["stream"]["num_replicas"] = json!(3);
    theirs.get_mut(&key("billing")).expect("there")["arguments"]["x-message-ttl"] = json!(5);
    let found = compare(&ours, &theirs);
    let words: Vec<(&str, &str, bool)> =
        found.iter().map(|each| (each.key.name.as_str(), each.word(), each.is_conflict())).collect();
    assert_eq!(
        words,
        [
            ("billing", "differs", true),
            ("left", "extra", false),
            ("safe", "missing", false),
            ("urgent", "differs", false)
        ]
    );
    assert_eq!(
        found[0].to_string(),
        "differs  queue 'billing' in vhost '/'\n         arguments.x-message-ttl: 60000 is wanted, 5 is there"
    );
    assert_eq!(found[3].json()["fields"], json!([{ "field": "stream.num_replicas", "wanted": 1, "found": 3 }]));
    // Deleted and declared again: another stream.
    let mut renamed = ours.clone();
    renamed.get_mut(&key("safe")).expect("there")["stream"]["name"] = json!("AQ_=2F_safe=g1");
    assert_eq!(compare(&ours, &renamed), []);
}

#[test]
fn a_stream_or_consumer_that_is_gone_is_found_out() {
    let ours = wanted(json!({ "queues": [queue("q", json!({}))] }), SIDECAR).things;
    let (model, mut stored) = declared(&ours, SIDECAR);
    assert_eq!(model.queues().count(), 1);
    assert_eq!(compare(&ours, &found::of("/", &stored)), []);
    stored.streams.values_mut().for_each(|stream| stream.consumers = 0);
    let differences = compare(&ours, &found::of("/", &stored));
    assert!(differences.len() == 1 && !differences[0].is_conflict(), "{differences:?}");
    stored.streams.clear();
    let differences = compare(&ours, &found::of("/", &stored));
    assert!(differences[0].to_string().contains("stream: "), "{differences:?}");
}

/// Does what a plan says in a fresh model, and gives what would be stored.
fn declared(things: &Things, settings: Settings) -> (Vhost, Stored) {
    let mut model = Vhost::new("/");
    let mut stored = Stored::default();
    for (key, thing) in things {
        match steps::action(key, thing).expect("a thing of a plan can be declared") {
            Action::Policy(policy) => {
                model.apply(&Change::PutPolicy(policy.clone()));
                stored.policies.push(policy);
            }
            Action::Topology(Topology::ExchangeDeclare(asked)) => {
                model.apply(&model.plan_exchange_declare(&asked).expect("taken").expect("new"));
            }
            Action::Topology(Topology::QueueDeclare(asked)) => {
                let planned = model.plan_queue_declare(&asked, asked.queue.as_str(), Owner(9)).expect("taken");
                let QueuePlan::Create(definition) = planned else { panic!("{key} was there") };
                let shape = settings.config().shape("/", &definition).expect("no exclusive queue is planned");
                let name = shape.stream["name"].as_str().expect("a name").to_owned();
                let consumers = u64::from(shape.consumer.is_some());
                stored.streams.insert(name.clone(), StoredStream { config: shape.stream, consumers });
                stored.queues.push(((*definition).clone(), name));
                model.apply(&Change::PutQueue(*definition));
            }
            Action::Topology(Topology::QueueBind(asked)) => {
                let change = model.plan_bind(&asked, true, Owner(9)).expect("taken").expect("new");
                model.apply(&change);
            }
            Action::Topology(Topology::ExchangeBind(asked)) => {
                let change = model.plan_bind(&asked, false, Owner(9)).expect("taken").expect("new");
                model.apply(&change);
            }
            other => panic!("{other:?} is in no plan"),
        }
    }
    let made = |name: &str| !name.is_empty() && !name.starts_with("amq.");
    stored.exchanges = model.exchanges().filter(|exchange| made(&exchange.name)).cloned().collect();
    stored.bindings = model.bindings().cloned().collect();
    (model, stored)
}

#[test]
fn policies_are_put_as_they_were() {
    let ours = wanted(policy(json!({ "max-length": 5 })), SERVE).things;
    let (_, stored) = declared(&ours, SERVE);
    assert!(stored.policies.iter().any(|policy| policy.scope == Scope::User && &*policy.name == "p"));
    assert_eq!(compare(&ours, &found::of("/", &stored)), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever RabbitMQ has: each thing of its plan is taken by the gateway, in the plan's order, lasts, and is then found.
    #[test]
    fn what_is_planned_is_taken_and_then_found(
        document in some_topology(),
        settings in prop::sample::select(vec![SIDECAR, SERVE]),
    ) {
        let wanted = Wanted::of(&read(document), settings);
        let (model, stored) = declared(&wanted.things, settings);
        prop_assert!(model.bindings().all(|binding| model.is_persistent(binding)));
        prop_assert!(stored.queues.iter().all(|(queue, _)| queue.is_persistent()));
        prop_assert_eq!(compare(&wanted.things, &found::of("/", &stored)), []);
        let plan = plan(&wanted, settings);
        let file = plan.json(&Value::Null, &wanted.left_out);
        prop_assert_eq!(Plan::read(&file).map(|plan| plan.things), Ok(plan.things));
    }
}
