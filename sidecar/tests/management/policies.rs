//! Policies, held against those of a real RabbitMQ.

use serde_json::{Value, json};
use test_support::eventually::eventually;
use test_support::rabbit::RabbitMq;

use crate::api::{Admin, Api, Serve, script};

/// A broker's HTTP API, and one vhost of it.
struct Side {
    api: Api,
    vhost: String,
}

impl Side {
    fn both(serve: &Serve) -> [Self; 2] {
        let rabbit = RabbitMq::shared();
        [Self { api: Api::of(rabbit), vhost: rabbit.fresh_vhost() }, Self { api: serve.api(), vhost: "%2F".to_owned() }]
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, mut answer) = self.api.send(method, &path.replace("{v}", &self.vhost), body.clone());
        unlike(&mut answer);
        (status, answer)
    }

    fn publish(&self, queue: &str, text: &str) -> (u16, Value) {
        let body = json!({ "properties": {}, "routing_key": queue, "payload": text, "payload_encoding": "string" });
        self.send("POST", "/exchanges/{v}/amq.default/publish", &body)
    }

    fn ready(&self, queue: &str) -> Vec<String> {
        let body = json!({ "count": 50, "ackmode": "ack_requeue_true", "encoding": "auto" });
        let path = format!("/queues/{}/{queue}/get", self.vhost);
        let (status, messages) = self.api.send("POST", &path, body);
        assert_eq!(status, 200, "{messages}");
        let text = |message: &Value| message["payload"].as_str().expect("a text").to_owned();
        messages.as_array().expect("a list").iter().map(text).collect()
    }
}

/// Takes out what differs by nature: names of vhosts, and that we name the key that is wrong.
fn unlike(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("vhost");
            if let Some(Value::String(reason)) = fields.get_mut("reason") {
                *reason = reason.replace("&lt;", "<").replace("&gt;", ">");
                if let (Some(from), Some(to)) = (reason.find(" (key '"), reason.find("')")) {
                    reason.replace_range(from..to + 2, "");
                }
            }
            fields.values_mut().for_each(unlike);
        }
        Value::Array(items) => {
            items.iter_mut().for_each(unlike);
            // RabbitMQ's lists are in no order.
            items.sort_by_key(Value::to_string);
        }
        _ => {}
    }
}

#[test]
fn policies_are_put_shown_refused_and_deleted_as_rabbitmq_does() {
    let serve = Serve::start();
    let [theirs, ours] = Side::both(&serve);
    let policy = |definition: Value| json!({ "pattern": "^q", "definition": definition });
    let full = json!({
        "pattern": "^q\\.", "apply-to": "queues", "priority": -2,
        "definition": {
            "message-ttl": 60_000, "expires": 600_000, "max-length": 10, "max-length-bytes": 1000, "overflow": "reject-publish",
            "dead-letter-exchange": "", "dead-letter-routing-key": "d", "delivery-limit": 4, "alternate-exchange": "a",
        },
    });
    let mut requests = vec![
        ("PUT", "/policies/{v}/full", full.clone()),
        ("PUT", "/policies/{v}/full", full),
        ("GET", "/policies/{v}/full", Value::Null),
        ("PUT", "/policies/{v}/a%20%2F%20b", policy(json!({ "max-length": 1 }))),
        ("GET", "/policies/{v}/a%20%2F%20b", Value::Null),
        ("GET", "/policies/{v}/none", Value::Null),
        ("DELETE", "/policies/{v}/none", Value::Null),
        ("PUT", "/policies/nowhere/p", policy(json!({ "max-length": 1 }))),
        ("PUT", "/policies/{v}/p", json!({})),
        ("PUT", "/policies/{v}/p", json!({ "pattern": "" })),
        ("PUT", "/policies/{v}/p", json!({ "pattern": 5, "definition": { "max-length": 1 } })),
        ("PUT", "/policies/{v}/p", json!({ "pattern": "", "definition": { "max-length": 1 }, "apply-to": "streams" })),
        ("PUT", "/policies/{v}/p", json!({ "pattern": "", "definition": { "max-length": 1 }, "priority": "5" })),
        ("PUT", "/operator-policies/{v}/o", policy(json!({ "overflow": "drop-head" }))),
        ("PUT", "/operator-policies/{v}/o", policy(json!({ "max-length": 1, "message-ttl": 7 }))),
        ("GET", "/operator-policies/{v}", Value::Null),
        ("GET", "/operator-policies/{v}/o", Value::Null),
        ("GET", "/parameters/operator_policy/{v}", Value::Null),
        ("GET", "/parameters/operator_policy/{v}/o", Value::Null),
        ("GET", "/parameters/shovel/{v}", Value::Null),
        ("GET", "/parameters/shovel/{v}/s", Value::Null),
        ("PUT", "/parameters/shovel/{v}/s", json!({ "value": {} })),
        ("GET", "/definitions/{v}", Value::Null),
        ("DELETE", "/operator-policies/{v}/o", Value::Null),
        ("DELETE", "/operator-policies/{v}/o", Value::Null),
        ("DELETE", "/policies/{v}/full", Value::Null),
        ("GET", "/policies/{v}", Value::Null),
    ];
    for wrong in [
        json!({}),
        json!({ "nope": 1 }),
        json!({ "message-ttl": -1 }),
        json!({ "message-ttl": "soon" }),
        json!({ "message-ttl": null }),
        json!({ "expires": 0 }),
        json!({ "max-length": -1 }),
        json!({ "max-length-bytes": "1" }),
        json!({ "overflow": "x" }),
        json!({ "dead-letter-exchange": 1 }),
        json!({ "dead-letter-routing-key": 1 }),
        json!({ "alternate-exchange": 1 }),
        json!({ "delivery-limit": -1 }),
        json!({ "queue-mode": "x" }),
        json!({ "queue-version": 3 }),
        json!({ "queue-leader-locator": "min-masters" }),
        json!({ "queue-master-locator": "balanced" }),
        json!({ "max-priority": 5 }),
    ] {
        requests.push(("PUT", "/policies/{v}/p", policy(wrong)));
    }
    for (method, path, body) in requests {
        assert_eq!(ours.send(method, path, &body), theirs.send(method, path, &body), "{method} {path} {body}");
    }
    // What RabbitMQ takes and we do not: named.
    for key in ["ha-mode", "dead-letter-strategy"] {
        let value = if key == "ha-mode" { "all" } else { "at-least-once" };
        let (status, refused) = ours.send("PUT", "/policies/{v}/p", &policy(json!({ key: value })));
        let reason = refused["reason"].as_str().expect("a reason");
        assert!(status == 400 && reason.contains(&format!("'{key}' is not honoured")), "{reason}");
        assert_eq!(theirs.send("PUT", "/policies/{v}/p", &policy(json!({ key: value }))).0 / 100, 2);
    }
}

#[test]
fn policies_do_to_messages_what_they_do_in_rabbitmq() {
    let serve = Serve::start();
    let [theirs, ours] = Side::both(&serve);
    let done = |side: &Side| {
        let mut seen: Vec<Value> = Vec::new();
        let put = |definition: Value| {
            let policy = json!({ "pattern": "^q$", "definition": definition, "apply-to": "queues" });
            let status = side.send("PUT", "/policies/{v}/p", &policy).0;
            assert!([201, 204].contains(&status), "{policy}");
        };
        let drop = || assert_eq!(side.send("DELETE", "/policies/{v}/p", &Value::Null).0, 204);
        // RabbitMQ's queues hear of a policy a moment after it was put.
        let settles = |queue: &str, expected: &[&str]| eventually(queue, || side.ready(queue) == expected);
        for queue in ["q", "d"] {
            assert_eq!(side.send("PUT", &format!("/queues/{{v}}/{queue}"), &json!({ "durable": true })).0, 201);
        }
        for n in 0..6 {
            side.publish("q", &n.to_string());
        }
        put(json!({ "max-length": 3 }));
        settles("q", &["3", "4", "5"]);
        side.publish("q", "6");
        settles("q", &["4", "5", "6"]);
        put(json!({ "max-length": 3, "dead-letter-exchange": "", "dead-letter-routing-key": "d" }));
        eventually("a dead letter", || {
            side.publish("q", "x");
            !side.ready("d").is_empty()
        });
        drop();
        eventually("no limit", || {
            side.publish("q", "y");
            side.ready("q").len() > 3
        });
        assert_eq!(side.send("DELETE", "/queues/{v}/q/contents", &Value::Null).0, 204);
        side.publish("q", "before");
        put(json!({ "message-ttl": 1 }));
        eventually("a time to live", || {
            side.publish("q", "after");
            std::thread::sleep(std::time::Duration::from_millis(5));
            side.ready("q") == ["before"] || {
                side.send("DELETE", "/queues/{v}/q/contents", &Value::Null);
                side.publish("q", "before");
                false
            }
        });
        put(json!({ "max-length": 1, "overflow": "reject-publish" }));
        side.send("DELETE", "/queues/{v}/q/contents", &Value::Null);
        side.publish("q", "fits");
        eventually("a refusal", || side.publish("q", "more").0 == 400);
        seen.push(side.publish("q", "more").1);
        put(json!({ "expires": 100 }));
        eventually("the queue goes", || side.send("GET", "/queues/{v}/q", &Value::Null).0 == 404);
        seen
    };
    assert_eq!(done(&ours), done(&theirs));
}

#[test]
fn which_policy_is_in_force_is_what_rabbitmq_says() {
    let serve = Serve::start();
    let [theirs, ours] = Side::both(&serve);
    for side in [&theirs, &ours] {
        let queue = |name: &str, arguments: Value| {
            let body = json!({ "durable": true, "arguments": arguments });
            assert_eq!(side.send("PUT", &format!("/queues/{{v}}/{name}"), &body).0, 201);
        };
        let put = |path: &str, priority: i64, definition: Value| {
            let body = json!({ "pattern": "^q", "definition": definition, "priority": priority });
            assert_eq!(side.send("PUT", path, &body).0, 201, "{path}");
        };
        put("/policies/{v}/low", 1, json!({ "max-length": 9, "message-ttl": 60_000 }));
        put("/policies/{v}/quorum", 5, json!({ "delivery-limit": 2, "max-length": 8 }));
        put("/policies/{v}/lazy", 3, json!({ "queue-mode": "lazy", "dead-letter-exchange": "d", "max-length": 4 }));
        put("/operator-policies/{v}/o", 0, json!({ "max-length": 6, "max-length-bytes": 7 }));
        assert_eq!(side.send("PUT", "/exchanges/{v}/qx", &json!({ "type": "fanout" })).0, 201);
        queue("q", json!({ "x-max-length": 5 }));
        queue("qq", json!({ "x-queue-type": "quorum" }));
        queue("other", json!({}));
    }
    let shown = |side: &Side| {
        let of = |kind: &str, name: &str| {
            let document = side.send("GET", &format!("/{kind}/{{v}}/{name}"), &Value::Null).1;
            ["policy", "operator_policy", "effective_policy_definition"]
                .map(|field| document.get(field).cloned().unwrap_or_default())
        };
        let [exchange, ..] = of("exchanges", "qx");
        let [policy, operator, definition] = of("queues", "other");
        // RabbitMQ has no definition before its statistics have one.
        let none = definition.as_object().is_none_or(serde_json::Map::is_empty);
        json!([of("queues", "q"), of("queues", "qq"), exchange, policy, operator, none])
    };
    let expected = shown(&ours);
    assert_eq!(expected[0][0], "lazy");
    assert_eq!(expected[1][0], "quorum");
    assert_eq!(expected[1][2]["max-length"], 6);
    // RabbitMQ shows its queues as they were some seconds ago.
    eventually("what RabbitMQ shows", || shown(&theirs) == expected);
}

#[test]
fn rabbitmqadmin_declares_lists_and_deletes_policies() {
    // One of its own: the tool lists the policies of all vhosts.
    let rabbit = RabbitMq::start();
    let serve = Serve::start();
    let script = script(&rabbit, serve.dir.path());
    let ours = Admin { script: &script, api: serve.api() };
    let theirs = Admin { script: &script, api: Api::of(&rabbit) };
    let columns = ["name", "pattern", "apply-to", "definition", "priority"];
    let list = [&["list", "policies"][..], &columns].concat();
    let operators = [&["list", "operator_policies"][..], &columns].concat();
    let definition = r#"definition={"max-length":5,"overflow":"reject-publish"}"#;
    let steps: &[&[&str]] = &[
        &["declare", "policy", "name=p", "pattern=^q", definition],
        &[
            "declare",
            "policy",
            "name=x",
            "pattern=^x",
            r#"definition={"alternate-exchange":"a"}"#,
            "apply-to=exchanges",
        ],
        &["declare", "policy", "name=bad", "pattern=^q", r#"definition={"nope":1}"#],
        &["declare", "operator_policy", "name=o", "pattern=", r#"definition={"max-length":3}"#],
        &list,
        &operators,
        &["delete", "policy", "name=p"],
        &["delete", "policy", "name=p"],
        &["delete", "operator_policy", "name=o"],
        &list,
        &operators,
    ];
    for step in steps {
        let (said, expected) = (ours.run(step), theirs.run(step));
        assert_eq!(lines(&said.1), lines(&expected.1), "{step:?}");
    }
}

fn lines(text: &str) -> Vec<String> {
    let text = text.replace("&lt;", "<").replace("&gt;", ">");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    // RabbitMQ lists its policies in no order.
    if let Some(rows) = lines.get_mut(1..) {
        rows.sort();
    }
    lines
}

#[test]
fn definitions_with_policies_are_imported_and_come_back_exactly() {
    let serve = Serve::start();
    let [theirs, ours] = Side::both(&serve);
    for (path, body) in [
        ("/policies/{v}/p", json!({ "pattern": "^q", "definition": { "max-length": 2 }, "priority": 4 })),
        ("/operator-policies/{v}/o", json!({ "pattern": "", "definition": { "max-length": 9 }, "apply-to": "queues" })),
        ("/queues/{v}/q", json!({ "durable": true })),
    ] {
        assert_eq!(theirs.send("PUT", path, &body).0, 201, "{path}");
    }
    let exported = theirs.send("GET", "/definitions/{v}", &Value::Null).1;
    assert_eq!(ours.send("POST", "/definitions/{v}", &exported), (204, Value::Null));
    assert_eq!(ours.send("GET", "/definitions/{v}", &Value::Null).1["policies"], exported["policies"]);
    assert_eq!(ours.send("GET", "/definitions/{v}", &Value::Null).1["parameters"], exported["parameters"]);
    for n in 0..4 {
        ours.publish("q", &n.to_string());
    }
    assert_eq!(ours.ready("q"), ["2", "3"]);

    let (status, refused) = ours.send(
        "POST",
        "/definitions/{v}",
        &json!({
            "policies": [
                { "name": "fine", "pattern": "", "definition": { "max-length": 1 } },
                { "name": "mirrored", "pattern": "", "definition": { "ha-mode": "all" } },
            ],
            "queues": [{ "name": "new", "durable": true }],
        }),
    );
    let reason = refused["reason"].as_str().expect("a text");
    assert_eq!(status, 400, "{reason}");
    assert!(reason.contains("policy 'mirrored'") && reason.contains("'ha-mode' is not honoured"), "{reason}");
    assert_eq!(ours.send("GET", "/policies/{v}/fine", &Value::Null).0, 404, "nothing is imported");
    assert_eq!(ours.send("GET", "/queues/{v}/new", &Value::Null).0, 404);
}
