//! Vhosts over the HTTP API, beside RabbitMQ's.

use serde_json::{Value, json};
use test_support::eventually::eventually;
use test_support::rabbit::RabbitMq;

use crate::api::{Admin, Api, Serve, script};
use crate::connect;

#[test]
fn vhosts_are_made_shown_and_deleted_as_rabbitmq_does() {
    let serve = Serve::start();
    let sides = [serve.api(), Api::of(RabbitMq::shared())];
    let both = |method: &str, path: &str, body: &Value| {
        let [ours, theirs] = sides.map(|api| api.send(method, path, body.clone()).0);
        assert_eq!(ours, theirs, "{method} {path} {body}");
        ours
    };
    let about = json!({ "description": "for tests", "tags": "one,two" });
    let shown = || {
        let [ours, theirs] = sides.map(|api| api.get("/vhosts/made%2Fhere"));
        for field in ["name", "description", "tags", "tracing"] {
            assert_eq!(ours[field], theirs[field], "{field}");
        }
        ours
    };
    assert_eq!(both("PUT", "/vhosts/made%2Fhere", &about), 201);
    assert_eq!((&shown()["description"], &shown()["tags"]), (&json!("for tests"), &json!(["one", "two"])));
    assert_eq!(both("PUT", "/vhosts/made%2Fhere", &json!({})), 204);
    assert_eq!(shown()["name"], "made/here");
    assert_eq!(both("PUT", "/vhosts/made%2Fhere", &json!({ "description": "another" })), 204);
    shown();
    let everything = json!({ "configure": ".*", "write": ".*", "read": ".*" });
    both("PUT", "/permissions/made%2Fhere/guest", &everything);
    assert_eq!(both("PUT", "/queues/made%2Fhere/q", &json!({ "durable": true })), 201);
    let letter = json!({ "properties": {}, "routing_key": "q", "payload": "p", "payload_encoding": "string" });
    assert_eq!(both("POST", "/exchanges/made%2Fhere/amq.default/publish", &letter), 200);
    assert_eq!(both("DELETE", "/vhosts/made%2Fhere", &Value::Null), 204);
    assert_eq!(both("DELETE", "/vhosts/made%2Fhere", &Value::Null), 404);
    assert_eq!(both("GET", "/vhosts/made%2Fhere", &Value::Null), 404);
    assert_eq!(both("PUT", "/queues/made%2Fhere/q", &json!({})), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmqadmin_and_definitions_make_vhosts_and_a_deleted_one_closes_its_connections() {
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let serve = Serve::start();
    let script = script(rabbit, serve.dir.path());
    let admin = Admin { script: &script, api: serve.api() };
    admin.ok(&["declare", "vhost", "name=team"]);
    assert!(admin.ok(&["list", "vhosts", "name"]).contains("team"));
    admin.ok(&["--vhost=team", "declare", "queue", "name=q"]);
    let (connection, _channel) = connect(&serve.amqp().replace("%2f", "team")).await;
    assert_eq!(serve.api().get("/connections")[0]["vhost"], "team");
    let exported = serve.api().get("/definitions");
    admin.ok(&["delete", "vhost", "name=team"]);
    eventually("the client has heard", || !connection.status().connected());
    assert!(!admin.ok(&["list", "vhosts", "name"]).contains("team"));

    assert_eq!(serve.api().send("POST", "/definitions", exported.clone()), (204, Value::Null));
    assert!(admin.ok(&["--vhost=team", "list", "queues", "name"]).contains('q'));
    let again = serve.api().get("/definitions");
    assert_eq!((&again["vhosts"], &again["queues"]), (&exported["vhosts"], &exported["queues"]));
}
