//! RabbitMQ's HTTP API of `serve`, held against that of a real RabbitMQ: the same `rabbitmqadmin`, the same requests.

mod api;
mod health;
mod policies;
mod users;
mod vhosts;

use std::path::Path;
use std::process::Command;

use lapin::options::{BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use test_support::eventually::eventually;
use test_support::rabbit::RabbitMq;

use api::{Admin, Api, Serve, script};

async fn connect(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

#[test]
fn rabbitmqadmin_says_the_same_of_both() {
    let rabbit = RabbitMq::shared();
    let serve = Serve::start();
    let script = script(rabbit, serve.dir.path());
    let ours = Admin { script: &script, api: serve.api() };
    let vhost = rabbit.fresh_vhost();
    let theirs = Admin { script: &script, api: Api::of(rabbit) };
    let queue_columns = ["list", "queues", "name", "durable", "auto_delete", "arguments", "type"];
    let binding_columns = ["list", "bindings", "source", "destination", "destination_type", "routing_key"];
    let properties = r#"properties={"delivery_mode":2,"headers":{"a":[1,true]},"type":"t","priority":3}"#;
    let steps: &[&[&str]] = &[
        &["declare", "queue", "name=a", "durable=true"],
        &["declare", "queue", "name=b c/d", "durable=false", "auto_delete=true"],
        &["declare", "queue", "name=quorum", "queue_type=quorum"],
        &["declare", "queue", "name=ttl", r#"arguments={"x-message-ttl":60000,"x-mine":"text"}"#],
        &["declare", "queue", "name=a", "durable=false"],
        &["declare", "queue", "name=bad", r#"arguments={"x-message-ttl":"soon"}"#],
        &["declare", "queue", "name=amq.mine"],
        &queue_columns,
        &["declare", "exchange", "name=x", "type=topic"],
        &["declare", "exchange", "name=y", "type=headers", "durable=false", "internal=true"],
        &["declare", "exchange", "name=x", "type=fanout"],
        &["declare", "exchange", "name=z", "type=banana"],
        &["list", "exchanges", "name", "type", "durable", "internal", "auto_delete"],
        &["declare", "binding", "source=x", "destination=a", "routing_key=k.#"],
        &["declare", "binding", "source=x", "destination=b c/d", "destination_type=queue", "routing_key=k.1"],
        &["declare", "binding", "source=x", "destination=y", "destination_type=exchange", "routing_key=to y"],
        &["declare", "binding", "source=x", "destination=nothing", "routing_key=k"],
        &binding_columns,
        &["publish", "exchange=x", "routing_key=k.1", "payload=first", properties],
        &["publish", "routing_key=a", "payload=second"],
        &["publish", "exchange=x", "routing_key=nowhere", "payload=lost"],
        &["publish", "exchange=none", "routing_key=a", "payload=lost"],
        &["publish", "routing_key=a", "payload=/wA=", "payload_encoding=base64"],
        &["get", "queue=a", "count=5"],
        &["get", "queue=a", "count=1", "ackmode=ack_requeue_false"],
        &["get", "queue=a", "count=1", "ackmode=reject_requeue_false"],
        &["get", "queue=a", "count=5", "encoding=base64"],
        &["get", "queue=nothing"],
        &["purge", "queue", "name=a"],
        &["get", "queue=a"],
        &["delete", "binding", "source=x", "destination_type=queue", "destination=a", "properties_key=k.%23"],
        &["delete", "binding", "source=x", "destination_type=queue", "destination=a", "properties_key=nope"],
        &["delete", "exchange", "name=y"],
        &["delete", "exchange", "name=amq.topic"],
        &binding_columns,
        &["delete", "queue", "name=b c/d"],
        &["delete", "queue", "name=nothing"],
        &queue_columns,
        &["list", "permissions", "user", "configure", "write", "read"],
        &["list", "vhost_limits"],
    ];
    for step in steps {
        let said = ours.run(&[&["-V", "/"], *step].concat());
        let expected = theirs.run(&[&["-V", vhost.as_str()], *step].concat());
        let (said, expected) = (comparable(said.1, "/"), comparable(expected.1, &vhost));
        assert_eq!(said, expected, "{step:?}");
    }
    let overview = ours.ok(&["show", "overview"]);
    assert!(overview.contains("3.10.8") && overview.contains("nats-bridge"), "{overview}");
    assert!(ours.ok(&["list", "nodes", "name", "type", "running"]).contains("disc\tTrue"));
    assert!(ours.ok(&["list", "users", "name", "tags"]).contains("guest"));
    assert!(ours.ok(&["list", "vhosts"]).contains('/'));
}

/// An output without what differs by nature: vhosts, and the names of permissions' vhosts.
fn comparable(text: String, vhost: &str) -> Vec<String> {
    let text = text.replace(&format!("vhost '{vhost}'"), "VHOST").replace(&urlencoded(vhost), "VHOST");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    // Lists of several vhosts: RabbitMQ's node has others, with the permissions of the same user.
    lines.dedup();
    lines
}

fn urlencoded(name: &str) -> String {
    format!("/{}/", name.replace('/', "%2F"))
}

#[test]
fn what_rabbitmq_exports_is_imported_and_what_cannot_be_honoured_is_named_and_nothing_done() {
    let rabbit = RabbitMq::shared();
    let serve = Serve::start();
    let script = script(rabbit, serve.dir.path());
    let (api, vhost) = (serve.api(), rabbit.fresh_vhost());
    let real = Api::of(rabbit);
    for (path, body) in [
        (format!("/queues/{vhost}/q"), json!({ "durable": true, "arguments": { "x-expires": 600_000 } })),
        (format!("/exchanges/{vhost}/x"), json!({ "type": "headers", "durable": true })),
    ] {
        assert_eq!(real.send("PUT", &path, body).0, 201, "{path}");
    }
    let bound = json!({ "routing_key": "k", "arguments": { "x-match": "any", "n": 1 } });
    assert_eq!(real.send("POST", &format!("/bindings/{vhost}/e/x/q/q"), bound).0, 201);
    let exported = real.get(&format!("/definitions/{vhost}"));
    assert_eq!(api.send("POST", "/definitions/%2F", exported.clone()), (204, Value::Null));
    assert_eq!(api.send("POST", "/definitions/%2F", exported.clone()), (204, Value::Null), "again");
    let ours = api.get("/definitions/%2F");
    for part in ["queues", "exchanges", "bindings"] {
        assert_eq!(ours[part], exported[part], "{part}");
    }

    let admin = Admin { script: &script, api };
    let file = serve.dir.path().join("definitions.json");
    let file = file.to_str().expect("UTF-8");
    admin.ok(&["export", file]);
    let before = api.get("/definitions");
    admin.ok(&["delete", "queue", "name=q"]);
    admin.ok(&["import", file]);
    assert_eq!(without_hashes(api.get("/definitions")), without_hashes(before.clone()));

    let (status, refused) = api.send(
        "POST",
        "/definitions",
        json!({
            "queues": [
                { "name": "good", "vhost": "/", "durable": true, "auto_delete": false, "arguments": {} },
                { "name": "tape", "vhost": "/", "durable": true, "auto_delete": false, "arguments": { "x-message-deduplication": 5 } },
                { "name": "q", "vhost": "/", "durable": false, "auto_delete": false, "arguments": {} },
                { "name": "far", "vhost": "elsewhere", "durable": true, "auto_delete": false, "arguments": {} },
            ],
            "users": [{ "name": "bob", "password_hash": "AAAA", "tags": [] }],
            "parameters": [{ "name": "moves", "component": "shovel", "vhost": "/", "value": {} }],
        }),
    );
    assert_eq!((status, &refused["error"]), (400, &json!("bad_request")));
    let reason = refused["reason"].as_str().expect("a text");
    for name in ["nothing was imported", "queue 'tape'", "queue 'q'", "queue 'far'", "user 'bob'", "parameter 'moves'"]
    {
        assert!(reason.contains(name), "no {name} in {reason}");
    }
    assert_eq!(refused["refused"].as_array().map(Vec::len), Some(5));
    assert_eq!(without_hashes(api.get("/definitions")), without_hashes(before));
    let (status, document) = api.text("POST", "/definitions", "{");
    assert!(
        status == 400 && document["reason"].as_str().is_some_and(|text| text.starts_with("not_json")),
        "{document}"
    );
    assert_eq!(api.send("POST", "/definitions/elsewhere", json!({})).0, 404);
    // Both take a form in a browser; here it is refused and not half read.
    let form = api.raw("POST", "/api/definitions", "Content-Type: multipart/form-data\r\n", "");
    assert_eq!(form.0, 415);
}

fn without_hashes(mut document: Value) -> Value {
    for user in document["users"].as_array_mut().into_iter().flatten() {
        user["password_hash"] = json!("");
    }
    document
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_have_rabbitmqs_names_and_types() {
    let rabbit = tokio::task::spawn_blocking(RabbitMq::start).await.expect("started");
    let serve = Serve::start();
    let mut open = Vec::new();
    for (api, url) in [(Api::of(&rabbit), rabbit.url()), (serve.api(), serve.amqp())] {
        assert_eq!(api.send("PUT", "/queues/%2F/q", json!({ "durable": true })).0, 201);
        assert_eq!(api.send("PUT", "/exchanges/%2F/x", json!({ "type": "direct" })).0, 201);
        let body = json!({ "routing_key": "a b", "arguments": {} });
        assert_eq!(api.send("POST", "/bindings/%2F/e/x/q/q", body).0, 201);
        let (connection, channel) = connect(&url).await;
        channel.basic_qos(7, BasicQosOptions::default()).await.expect("a prefetch");
        let mut arguments = FieldTable::default();
        arguments.insert("x-priority".into(), AMQPValue::LongInt(2));
        let consumer = channel.basic_consume("q".into(), "tag".into(), BasicConsumeOptions::default(), arguments).await;
        let second = connection.create_channel().await.expect("a channel");
        second.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm mode");
        for n in 0..2 {
            let body = json!({
                "properties": { "delivery_mode": 2 }, "routing_key": "a b", "payload": format!("m{n}"),
                "payload_encoding": "string"
            });
            assert_eq!(api.send("POST", "/exchanges/%2F/x/publish", body), (200, json!({ "routed": true })));
        }
        open.push((connection, channel, second, consumer.expect("consuming")));
    }
    let (real, ours) = (Api::of(&rabbit), serve.api());
    // RabbitMQ's figures come every five seconds.
    eventually("RabbitMQ has counted", || {
        let consumers = real.get("/consumers");
        real.get("/queues/%2F/q")["messages_unacknowledged"] == 2
            && consumers[0].get("consumer_tag").is_some()
            && real.get("/channels").as_array().is_some_and(|channels| channels.len() == 2)
            && real.get("/connections")[0].get("client_properties").is_some()
    });
    eventually("two messages are out", || ours.get("/queues/%2F/q")["messages_unacknowledged"] == 2);
    for path in [
        "/overview",
        "/nodes",
        "/vhosts",
        "/vhosts/%2F",
        "/whoami",
        "/users",
        "/users/guest",
        "/permissions",
        "/permissions/%2F/guest",
        "/exchanges/%2F",
        "/exchanges/%2F/x",
        "/exchanges/%2F/amq.default",
        "/exchanges/%2F/x/bindings/source",
        "/exchanges/%2F/x/bindings/destination",
        "/queues",
        "/queues/%2F",
        "/queues/%2F/q",
        "/queues/%2F/q/bindings",
        "/queues?page=1&page_size=1&name=q",
        "/queues?columns=name,messages&sort=name",
        "/bindings",
        "/bindings/%2F/e/x/q/q",
        "/bindings/%2F/e/x/q/q/a%2Bb",
        "/consumers",
        "/connections",
        "/channels",
        "/definitions",
        "/definitions/%2F",
        "/policies",
        "/parameters",
        "/topic-permissions",
        "/cluster-name",
        "/aliveness-test/%2F",
        "/health/checks/alarms",
        "/health/checks/local-alarms",
        "/health/checks/virtual-hosts",
        "/health/checks/node-is-quorum-critical",
        "/health/checks/protocol-listener/amqp",
    ] {
        fits(path, &ours.get(path), &real.get(path));
    }
    let name =
        |api: Api| api.get("/connections")[0]["name"].as_str().expect("a name").replace(' ', "%20").replace('>', "%3E");
    for path in ["/connections/NAME", "/connections/NAME/channels", "/channels/NAME%20(1)"] {
        let of = |api: Api| api.get(&path.replace("NAME", &name(api)));
        fits(path, &of(ours), &of(real));
    }
    let channel = ours.get(&format!("/channels/{}%20(1)", name(ours)));
    assert_eq!((&channel["prefetch_count"], &channel["messages_unacknowledged"]), (&json!(7), &json!(2)));
    let consumer = &ours.get("/queues/%2F/q")["consumer_details"][0];
    assert_eq!((&consumer["consumer_tag"], &consumer["arguments"]), (&json!("tag"), &json!({ "x-priority": 2 })));
    assert_eq!((&consumer["ack_required"], &consumer["active"]), (&json!(true), &json!(true)));
    assert_eq!(ours.get("/overview")["object_totals"]["channels"], 2);
    drop(open);
    tokio::task::spawn_blocking(move || drop(rabbit)).await.expect("stopped");
}

/// What ours says, RabbitMQ says as well, with the same types. RabbitMQ's texts for what is absent fit anything.
fn fits(at: &str, ours: &Value, theirs: &Value) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (name, value) in ours {
                // Names made of values: nodes, headers and arguments of clients.
                if ["cluster_state", "client_properties", "arguments"].contains(&name.as_str()) {
                    assert!(value.is_object(), "{at}.{name}");
                    continue;
                }
                let their = theirs.get(name).unwrap_or_else(|| panic!("{at}: RabbitMQ has no {name}: {theirs:?}"));
                fits(&format!("{at}.{name}"), value, their);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            if let (Some(our), Some(their)) = (ours.first(), theirs.first()) {
                fits(&format!("{at}[0]"), our, their);
            }
        }
        (Value::Null, Value::Null | Value::String(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_)) => {}
        (ours, theirs) => panic!("{at}: {ours} where RabbitMQ has {theirs}"),
    }
}

#[test]
fn bad_requests_get_rabbitmqs_statuses_and_name_what_is_wrong() {
    let rabbit = RabbitMq::shared();
    let serve = Serve::start();
    let (ours, real) = (serve.api(), Api::of(rabbit));
    for api in [ours, real] {
        assert!([201, 204].contains(&api.send("PUT", "/queues/%2F/bad", json!({ "durable": true })).0));
    }
    let message = |field: &str, value: Value| {
        let mut body = json!({ "properties": {}, "routing_key": "bad", "payload": "p", "payload_encoding": "string" });
        body[field] = value;
        body.to_string()
    };
    let asked = |field: &str, value: Value| {
        let mut body = json!({ "count": 1, "ackmode": "ack_requeue_true", "encoding": "auto" });
        body[field] = value;
        body.to_string()
    };
    let publish = "/exchanges/%2F/amq.default/publish";
    let rows: &[(&str, &str, String, &str)] = &[
        ("GET", "/nope", String::new(), "Not Found"),
        ("GET", "/queues/nov", String::new(), "Not Found"),
        ("GET", "/queues/%2F/nothing", String::new(), "Not Found"),
        ("GET", "/queues?page=0", String::new(), "page number 0"),
        ("GET", "/queues?page=x", String::new(), "Pagination parameters are invalid"),
        ("GET", "/queues?page=1&page_size=501", String::new(), "page size 501"),
        ("GET", "/queues?page=99", String::new(), "Page out of range"),
        ("GET", "/queues?page=1&name=%5B&use_regex=true", String::new(), "Pagination parameters are invalid"),
        ("PUT", "/queues/%2F/new", r#"{"durable":"#.into(), "not_json"),
        ("PUT", "/queues/%2F/new", "[]".into(), "not_json"),
        ("PUT", "/queues/%2F/new", r#"{"durable":"banana"}"#.into(), "durable"),
        ("PUT", "/queues/%2F/new", r#"{"arguments":{"x-expires":0}}"#.into(), "x-expires"),
        ("PUT", "/queues/%2F/bad", r#"{"durable":false}"#.into(), "inequivalent arg 'durable'"),
        ("PUT", "/queues/nov/new", "{}".into(), "vhost_not_found"),
        ("PUT", "/queues/%2F/amq.new", "{}".into(), ""),
        ("DELETE", "/queues/%2F/nothing", String::new(), "Not Found"),
        ("DELETE", "/queues/%2F/nothing/contents", String::new(), "Not Found"),
        ("POST", "/queues/%2F/nothing/get", asked("count", json!(1)), "nothing"),
        ("POST", "/queues/%2F/bad/get", asked("count", json!("x")), "not_integer"),
        ("POST", "/queues/%2F/bad/get", asked("encoding", json!("zz")), "encoding"),
        ("POST", "/queues/%2F/bad/get", r#"{"count":1,"encoding":"auto"}"#.into(), "{key_missing,ackmode}"),
        ("PUT", "/exchanges/%2F/new", r#"{"type":"banana"}"#.into(), "banana"),
        ("PUT", "/exchanges/%2F/amq.new", "{}".into(), ""),
        ("PUT", "/exchanges/nov/new", "{}".into(), "vhost_not_found"),
        ("DELETE", "/exchanges/%2F/amq.direct", String::new(), ""),
        ("DELETE", "/exchanges/%2F/nothing", String::new(), "Not Found"),
        (
            "POST",
            "/exchanges/%2F/nothing/publish",
            message("payload", json!("p")),
            "404 NOT_FOUND - no exchange 'nothing'",
        ),
        ("POST", publish, message("payload_encoding", json!("zz")), "unsupported_encoding"),
        ("POST", publish, message("properties", json!({ "delivery_mode": "x" })), "delivery_mode"),
        ("POST", publish, message("properties", json!({ "expiration": "abc" })), "invalid expiration 'abc'"),
        ("POST", publish, message("properties", json!({ "user_id": "bob" })), "user_id"),
        ("POST", publish, r#"{"properties":{},"routing_key":"bad","payload":"p"}"#.into(), "payload_encoding"),
        ("POST", "/bindings/%2F/e/nothing/q/bad", r#"{"routing_key":"k"}"#.into(), "no exchange 'nothing'"),
        ("POST", "/bindings/%2F/e/amq.direct/q/nothing", r#"{"routing_key":"k"}"#.into(), "no queue 'nothing'"),
        ("GET", "/bindings/nov", String::new(), "Not Found"),
        ("GET", "/bindings/%2F/e/amq.direct/q/bad/nothing", String::new(), "Not Found"),
        ("DELETE", "/bindings/%2F/e/amq.direct/q/bad/nothing", String::new(), "Not Found"),
        ("GET", "/connections/nothing", String::new(), "Not Found"),
        ("DELETE", "/connections/nothing", String::new(), "Not Found"),
        ("GET", "/channels/nothing", String::new(), "Not Found"),
        ("GET", "/vhosts/nov", String::new(), "Not Found"),
        ("GET", "/users/nobody", String::new(), "Not Found"),
        ("GET", "/permissions/%2F/nobody", String::new(), "Not Found"),
        ("GET", "/policies/%2F/nothing", String::new(), "Not Found"),
        ("DELETE", "/policies/%2F/nothing", String::new(), "Not Found"),
        ("GET", "/aliveness-test/nov", String::new(), "Not Found"),
        ("GET", "/health/checks/port-listener/1", String::new(), "No active listener"),
        ("GET", "/health/checks/port-listener/x", String::new(), "Invalid port"),
        ("GET", "/health/checks/protocol-listener/mqtt", String::new(), "No active listener"),
        ("DELETE", "/overview", String::new(), ""),
        ("POST", "/definitions/nov", "{}".into(), "vhost_not_found"),
    ];
    for (method, path, body, said) in rows {
        let (status, document) = ours.text(method, path, body);
        let (expected, their) = real.text(method, path, body);
        assert_eq!(status, expected, "{method} {path} {body}: {document}, and RabbitMQ: {their}");
        if let Some(error) = their.get("error") {
            assert_eq!(&document["error"], error, "{method} {path} {body}");
        }
        assert!(document["reason"].as_str().unwrap_or_default().contains(said), "{method} {path} {body}: {document}");
    }
    for login in ["", "guest:wrong", "nobody:guest"] {
        for path in ["/overview", "/queues", "/definitions", "/nope"] {
            let (status, head, _) = Api { login, ..ours }.raw("GET", &format!("/api{path}"), "", "");
            let (expected, _, _) = Api { login, ..real }.raw("GET", "/api/overview", "", "");
            assert_eq!((status, expected), (401, 401), "{login} {path}");
            assert!(head.to_ascii_lowercase().contains("www-authenticate: basic realm="), "{head}");
        }
    }
    // What RabbitMQ would do and this cannot: refused with the thing named.
    for (method, path, body, named) in [
        ("PUT", "/policies/%2F/p", r#"{"pattern":"^a","definition":{"ha-mode":"all"}}"#, "'ha-mode'"),
        ("PUT", "/vhosts/other", r#"{"tracing":true}"#, "'tracing'"),
        ("DELETE", "/vhosts/%2F", "", "vhost '/'"),
        ("PUT", "/users/bob", r#"{"password":"x","tags":"","hashing_algorithm":"md5"}"#, "'md5'"),
        ("PUT", "/users/guest", r#"{"password":"x","tags":""}"#, "user 'guest'"),
        ("DELETE", "/users/guest", "", "user 'guest'"),
        ("PUT", "/permissions/%2F/guest", r#"{"configure":"^$","write":".*","read":".*"}"#, "user 'guest'"),
        ("PUT", "/parameters/shovel/%2F/s", r#"{"value":{}}"#, "component shovel"),
        (
            "PUT",
            "/queues/%2F/tape",
            r#"{"durable":true,"arguments":{"x-message-deduplication":5}}"#,
            "'x-message-deduplication'",
        ),
        ("PUT", "/queues/%2F/own", r#"{"exclusive":true}"#, "'exclusive'"),
    ] {
        let (status, document) = ours.text(method, path, body);
        assert_eq!((status, &document["error"]), (400, &json!("bad_request")), "{method} {path}: {document}");
        assert!(document["reason"].as_str().unwrap_or_default().contains(named), "{document}");
    }
    // What is so already is done.
    assert_eq!(ours.send("PUT", "/vhosts/%2F", json!({})).0, 204);
    assert_eq!(ours.send("PUT", "/users/guest", json!({ "password": "guest", "tags": "administrator" })).0, 204);
    let everything = json!({ "configure": ".*", "write": ".*", "read": ".*" });
    assert_eq!(ours.send("PUT", "/permissions/%2F/guest", everything).0, 204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_listed_and_closed_for_a_reason_that_the_client_hears() {
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let serve = Serve::start();
    let script = script(rabbit, serve.dir.path());
    let admin = Admin { script: &script, api: serve.api() };
    assert_eq!(serve.api().get("/connections"), json!([]));
    let (first, channel) = connect(&serve.amqp()).await;
    let (second, _other) = connect(&serve.amqp()).await;
    assert_eq!(admin.ok(&["list", "connections", "user", "channels"]).matches("guest\t1").count(), 2);
    assert_eq!(admin.ok(&["list", "channels", "user", "number"]).matches("guest\t1").count(), 2);
    let mut names = connection_names(serve.api());
    assert_eq!(names.len(), 2);
    // The first one came first.
    let path = format!("/api/connections/{}", names[0].replace(' ', "%20").replace('>', "%3E"));
    let (status, _, _) = serve.api().raw("DELETE", &path, "X-Reason: moving day\r\n", "");
    assert_eq!(status, 204);
    eventually("the client has heard", || !first.status().connected());
    let error = channel.basic_qos(1, BasicQosOptions::default()).await.expect_err("it is closed").to_string();
    names.remove(0);
    assert_eq!(connection_names(serve.api()), names);
    assert!(error.contains("CONNECTION_FORCED - moving day") || !first.status().connected(), "{error}");

    admin.ok(&["close", "connection", &format!("name={}", names[0])]);
    eventually("the other one has heard", || !second.status().connected());
    assert_eq!(serve.api().get("/connections"), json!([]));
    let log = std::fs::read_to_string(serve.dir.path().join("log")).expect("a log");
    for reason in ["moving day", "Closed via management plugin"] {
        assert!(log.lines().any(|line| line.contains("for an operator") && line.contains(reason)), "{log}");
    }
}

fn connection_names(api: Api) -> Vec<String> {
    let connections = api.get("/connections");
    let name = |connection: &Value| connection["name"].as_str().expect("a name").to_owned();
    connections.as_array().expect("a list").iter().map(name).collect()
}

#[test]
fn a_place_that_others_can_reach_needs_a_user_and_one_that_is_taken_is_named() {
    let serve = Serve::start();
    let dir = serve.dir.path().join("other");
    let dir = dir.to_str().expect("UTF-8");
    let taken = serve.ready["management"].as_str().expect("an address");
    for (place, expected) in [
        ("0.0.0.0:0", "--management 0.0.0.0:0: other machines can reach this address, so give --user"),
        (taken, "choose another port"),
        ("banana", "invalid value 'banana' for '--management <HOST:PORT>'"),
    ] {
        let arguments = ["serve", "--embedded", dir, "--listen", "127.0.0.1:0", "--management", place];
        let output = Command::new(env!("CARGO_BIN_EXE_nats-bridge")).args(arguments).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{place}: {text}");
        assert!(text.contains(expected), "{place}: {text}");
    }
    assert!(!Path::new(dir).exists());
}
