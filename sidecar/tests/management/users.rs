//! Users and what they may do, over HTTP and over AMQP, beside RabbitMQ.

use std::collections::BTreeSet;

use lapin::message::BasicGetMessage;
use lapin::options::*;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use test_support::eventually::eventually;
use test_support::rabbit::RabbitMq;

use crate::api::{Admin, Api, Serve, script};

const LOGINS: [(&str, &str, &str); 5] = [
    ("acl-adm", "administrator", "acl-adm:p"),
    ("acl-mon", "monitoring", "acl-mon:p"),
    ("acl-pol", "policymaker", "acl-pol:p"),
    ("acl-man", "management", "acl-man:p"),
    ("acl-non", "", "acl-non:p"),
];

/// What is in a list, by name.
fn named(list: &Value) -> Option<BTreeSet<&str>> {
    let items = list.as_array()?;
    Some(items.iter().filter_map(|item| item["name"].as_str().or_else(|| item["user"].as_str())).collect())
}

#[test]
fn what_each_tag_allows_is_as_in_rabbitmq() {
    let serve = Serve::start();
    let sides = [serve.api(), Api::of(RabbitMq::shared())];
    for api in sides {
        api.send("PUT", "/vhosts/acl-http", json!({}));
        api.send("PUT", "/queues/acl-http/rq", json!({}));
        for (name, tags, _) in LOGINS {
            assert_eq!(api.send("PUT", &format!("/users/{name}"), json!({ "password": "p", "tags": tags })).0, 201);
            if name != "acl-non" {
                let some = json!({ "configure": "^c", "write": "^w", "read": "^r" });
                assert_eq!(api.send("PUT", &format!("/permissions/acl-http/{name}"), some).0, 201);
            }
        }
    }
    let policy = r#"{"pattern":"x","definition":{"max-length":1}}"#;
    let letter = r#"{"routing_key":"a","payload":"","payload_encoding":"string","properties":{}}"#;
    let get = r#"{"count":1,"ackmode":"ack_requeue_true","encoding":"auto"}"#;
    let requests = [
        ("GET", "/whoami", ""),
        ("GET", "/auth", ""),
        ("GET", "/overview", ""),
        ("GET", "/vhosts/acl-http", ""),
        ("GET", "/vhosts/none", ""),
        ("PUT", "/vhosts/acl-new", "{}"),
        ("GET", "/queues/%2F", ""),
        ("GET", "/queues/acl-http", ""),
        ("GET", "/queues/acl-http/rq", ""),
        ("GET", "/queues/none", ""),
        ("GET", "/bindings/%2F", ""),
        ("GET", "/nodes", ""),
        ("GET", "/users", ""),
        ("GET", "/users/acl-man", ""),
        ("GET", "/users/acl-man/permissions", ""),
        ("GET", "/vhosts/acl-http/permissions", ""),
        ("GET", "/permissions/acl-http/acl-man", ""),
        ("GET", "/policies/acl-http", ""),
        ("PUT", "/policies/acl-http/p", policy),
        ("DELETE", "/policies/acl-http/p", ""),
        ("PUT", "/operator-policies/acl-http/o", policy),
        ("DELETE", "/operator-policies/acl-http/o", ""),
        ("GET", "/connections", ""),
        ("GET", "/consumers/acl-http", ""),
        ("GET", "/vhosts/acl-http/connections", ""),
        ("GET", "/definitions", ""),
        ("GET", "/definitions/acl-http", ""),
        ("POST", "/definitions/acl-http", "{}"),
        ("GET", "/parameters", ""),
        ("GET", "/global-parameters", ""),
        ("GET", "/vhost-limits", ""),
        ("GET", "/topic-permissions", ""),
        ("GET", "/feature-flags", ""),
        ("GET", "/cluster-name", ""),
        ("GET", "/aliveness-test/acl-http", ""),
        ("GET", "/health/checks/alarms", ""),
        ("PUT", "/queues/acl-http/cq", "{}"),
        ("PUT", "/queues/acl-http/zz", "{}"),
        ("DELETE", "/queues/acl-http/rq/contents", ""),
        ("DELETE", "/queues/acl-http/cq/contents", ""),
        ("PUT", "/exchanges/acl-http/zz", r#"{"type":"direct"}"#),
        ("POST", "/exchanges/acl-http/amq.direct/publish", letter),
        ("POST", "/queues/acl-http/cq/get", get),
        ("POST", "/bindings/acl-http/e/amq.direct/q/rq", "{}"),
        ("PUT", "/queues/%2F/cq", "{}"),
        ("DELETE", "/vhosts/acl-new", ""),
        ("DELETE", "/permissions/acl-http/nobody", ""),
        ("PUT", "/users/acl-other", r#"{"tags":"","password":"x"}"#),
        ("DELETE", "/users/acl-other", ""),
        ("POST", "/users/bulk-delete", r#"{"users":["nobody"]}"#),
    ];
    for (_, _, login) in LOGINS.into_iter().chain([("", "", "acl-adm:wrong")]) {
        for (method, path, body) in requests {
            let [(ours, document), (theirs, expected)] = sides.map(|api| Api { login, ..api }.text(method, path, body));
            assert_eq!(ours, theirs, "{login} {method} {path}: {document}, and RabbitMQ: {expected}");
            assert_eq!(document["error"], expected["error"], "{login} {method} {path}");
        }
        let [ours, theirs] = sides.map(|api| Api { login, ..api }.text("GET", "/queues", "").1);
        let own = |list: &Value| {
            named(list).map(|names| {
                names.into_iter().filter(|name| ["rq", "cq"].contains(name)).map(str::to_owned).collect::<Vec<_>>()
            })
        };
        assert_eq!(own(&ours), own(&theirs), "{login}");
    }
    for (path, fields) in [
        ("/users/acl-man", &["name", "tags", "limits", "hashing_algorithm"][..]),
        ("/permissions/acl-http/acl-man", &["user", "vhost", "configure", "write", "read"][..]),
    ] {
        let [ours, theirs] = sides.map(|api| api.get(path));
        fields.iter().for_each(|field| assert_eq!(ours[field], theirs[field], "{path} {field}"));
    }
    for api in sides {
        api.send("DELETE", "/vhosts/acl-http", Value::Null);
        let users: Vec<&str> = LOGINS.iter().map(|(name, ..)| *name).collect();
        assert_eq!(api.send("POST", "/users/bulk-delete", json!({ "users": users })).0, 204);
    }
}

/// What became of something that a client did: `ok`, or the broker's words.
fn said<T>(result: Result<T, lapin::Error>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn table(name: &str, value: &str) -> FieldTable {
    let mut table = FieldTable::default();
    table.insert(name.into(), AMQPValue::LongString(value.into()));
    table
}

async fn publish(channel: &Channel, exchange: &str) -> String {
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    let (exchange, properties) = (ShortString::from(exchange), BasicProperties::default());
    let published = channel.basic_publish(exchange, "k".into(), BasicPublishOptions::default(), b"x", properties).await;
    match published {
        Ok(confirm) => said(confirm.await),
        Err(error) => error.to_string(),
    }
}

/// What is said to a message of `user`.
async fn publish_as(connection: &Connection, user: &str) -> String {
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    let properties = BasicProperties::default().with_user_id(user.into());
    let published =
        channel.basic_publish("".into(), "their.q".into(), BasicPublishOptions::default(), b"x", properties).await;
    match published {
        Ok(confirm) => said(confirm.await),
        Err(error) => error.to_string(),
    }
}

/// What a client is told that does one thing after another, each on a channel of its own.
async fn transcript(connection: &Connection) -> Vec<String> {
    let mut told = Vec::new();
    for step in 0.. {
        let channel = connection.create_channel().await.expect("a channel");
        let none = FieldTable::default;
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let bind = QueueBindOptions::default();
        let direct = ExchangeKind::Direct;
        let exchange = ExchangeDeclareOptions::default();
        told.push(match step {
            0 => said(channel.queue_declare("own.q".into(), durable, none()).await),
            1 => said(channel.queue_declare("their.new".into(), durable, none()).await),
            2 => said(channel.queue_declare("their.q".into(), passive, none()).await),
            3 => said(channel.queue_declare("own.d".into(), durable, table("x-dead-letter-exchange", "their.x")).await),
            4 => said(channel.queue_declare("own.d".into(), durable, table("x-dead-letter-exchange", "own.x")).await),
            5 => said(channel.exchange_declare("own.x".into(), direct, exchange, none()).await),
            6 => said(channel.exchange_declare("their.n".into(), direct, exchange, none()).await),
            7 => {
                let alternate = table("alternate-exchange", "their.x");
                said(channel.exchange_declare("own.a".into(), direct, exchange, alternate).await)
            }
            8 => said(channel.queue_bind("own.q".into(), "own.x".into(), "k".into(), bind, none()).await),
            9 => said(channel.queue_bind("own.q".into(), "their.x".into(), "k".into(), bind, none()).await),
            10 => said(channel.queue_bind("their.q".into(), "own.x".into(), "k".into(), bind, none()).await),
            11 => said(channel.queue_unbind("their.q".into(), "own.x".into(), "k".into(), none()).await),
            12 => {
                let options = ExchangeBindOptions::default();
                said(channel.exchange_bind("their.x".into(), "own.x".into(), "k".into(), options, none()).await)
            }
            13 => publish(&channel, "own.x").await,
            14 => publish(&channel, "their.x").await,
            15 => publish(&channel, "nothing").await,
            16 => publish(&channel, "").await,
            17 => {
                let options = BasicConsumeOptions::default();
                said(channel.basic_consume("their.q".into(), "t".into(), options, none()).await)
            }
            18 => said(channel.basic_get("their.q".into(), BasicGetOptions::default()).await),
            19 => {
                let got = channel.basic_get("own.q".into(), BasicGetOptions { no_ack: true }).await;
                said(got.map(|got: Option<BasicGetMessage>| assert!(got.is_some(), "what was published to own.x")))
            }
            20 => said(channel.queue_purge("their.q".into(), QueuePurgeOptions::default()).await),
            21 => said(channel.queue_delete("their.q".into(), QueueDeleteOptions::default()).await),
            22 => said(channel.exchange_delete("their.x".into(), ExchangeDeleteOptions::default()).await),
            23 => said(channel.queue_delete("own.q".into(), QueueDeleteOptions::default()).await),
            24 => {
                let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
                let refused = said(channel.queue_declare("".into(), exclusive, none()).await);
                let (before, after) = refused.split_once("amq.gen-").unwrap_or((&refused, "' "));
                format!("{before}{}", after.split_once('\'').map_or("", |(_, rest)| rest))
            }
            _ => return told,
        });
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_user_may_not_do_is_refused_in_rabbitmqs_words() {
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let serve = Serve::start();
    let amqp = |url: &str, login: &str, vhost: &str| {
        let place = url.rsplit('@').next().and_then(|rest| rest.split('/').next()).expect("a place").to_owned();
        format!("amqp://{login}@{place}/{vhost}")
    };
    let sides = [(serve.api(), serve.amqp()), (Api::of(rabbit), rabbit.url())];
    let mut told = Vec::new();
    for (api, url) in &sides {
        api.send("PUT", "/vhosts/acl-amqp", json!({}));
        api.send("PUT", "/queues/acl-amqp/their.q", json!({ "durable": true }));
        api.send("PUT", "/exchanges/acl-amqp/their.x", json!({ "type": "direct" }));
        api.send("PUT", "/users/acl-limited", json!({ "password": "p", "tags": "" }));
        let own = json!({ "configure": "^own\\.", "write": "^own\\.", "read": "^own\\." });
        api.send("PUT", "/permissions/acl-amqp/acl-limited", own);
        let open = async |login: &str, vhost: &str| {
            Connection::connect(&amqp(url, login, vhost), ConnectionProperties::default()).await
        };
        let limited = open("acl-limited:p", "acl-amqp").await.expect("connected");
        let mut steps = transcript(&limited).await;
        steps.push(said(open("acl-limited:wrong", "acl-amqp").await));
        // lapin shows what it was told with the connection's state around it; the text is what counts.
        let refused = said(open("acl-limited:p", "%2f").await);
        steps.push(refused.contains("access to vhost '/' refused for user 'acl-limited'").to_string());
        // More is allowed at once, less too.
        let more = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        assert_eq!(api.send("PUT", "/permissions/acl-amqp/acl-limited", more).0, 204);
        let channel = limited.create_channel().await.expect("a channel");
        steps.push(said(channel.queue_purge("their.q".into(), QueuePurgeOptions::default()).await));
        steps.push(publish_as(&limited, "guest").await);
        api.send("PUT", "/users/acl-limited", json!({ "password": "p", "tags": "impersonator" }));
        let impersonator = open("acl-limited:p", "acl-amqp").await.expect("connected");
        steps.push(publish_as(&impersonator, "guest").await);
        assert_eq!(api.send("DELETE", "/users/acl-limited", Value::Null).0, 204);
        eventually("the client has heard", || !limited.status().connected());
        assert!(open("acl-limited:p", "acl-amqp").await.is_err());
        api.send("DELETE", "/vhosts/acl-amqp", Value::Null);
        told.push(steps);
    }
    let (ours, theirs) = (&told[0], &told[1]);
    for (step, (our, their)) in ours.iter().zip(theirs).enumerate() {
        assert_eq!(our, their, "step {step}");
    }
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.iter().filter(|told| *told == "ok").count() > 5 && ours[1].contains("ACCESS_REFUSED"), "{ours:?}");
}

#[test]
fn users_come_back_with_the_next_gateway_and_with_definitions() {
    let rabbit = RabbitMq::shared();
    let first = Serve::start();
    let script = script(rabbit, first.dir.path());
    let admin = Admin { script: &script, api: first.api() };
    admin.ok(&["declare", "vhost", "name=team"]);
    admin.ok(&["declare", "user", "name=acl-kept", "password=secret", "tags=management,own"]);
    admin.ok(&["declare", "permission", "vhost=team", "user=acl-kept", "configure=^a", "write=^b", "read="]);
    let exported = first.api().get("/definitions");
    let store = first.dir.path().join("store");
    let kept = |api: Api| {
        let user = Api { login: "acl-kept:secret", ..api };
        assert_eq!(user.get("/whoami"), json!({ "name": "acl-kept", "tags": ["management", "own"] }));
        assert_eq!(
            api.get("/permissions/team/acl-kept"),
            json!({ "vhost": "team", "user": "acl-kept", "configure": "^a", "write": "^b", "read": "" })
        );
    };
    kept(first.api());
    let dir = first.stop();
    let again = Serve::of(dir, &store, &[]);
    kept(again.api());

    let another = Serve::start();
    // guest is there already, with the same password behind another salt.
    assert_eq!(another.api().send("POST", "/definitions", exported.clone()), (204, Value::Null));
    kept(another.api());
    let theirs = Api::of(rabbit);
    let users: Value =
        exported["users"].as_array().expect("a list").iter().filter(|user| user["name"] != "guest").cloned().collect();
    assert_eq!(theirs.send("POST", "/definitions", json!({ "users": users })).0, 204);
    assert_eq!(Api { login: "acl-kept:secret", ..theirs }.get("/whoami")["name"], "acl-kept");
    theirs.send("DELETE", "/users/acl-kept", Value::Null);

    // A vhost of the same name is another one.
    another.api().send("DELETE", "/vhosts/team", Value::Null);
    another.api().send("PUT", "/vhosts/team", json!({}));
    assert_eq!(another.api().text("GET", "/permissions/team/acl-kept", "").0, 404);
}
