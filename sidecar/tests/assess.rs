//! `nats-bridge assess`, as the binary, on a real RabbitMQ and on files.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::{Value, json};
use test_support::eventually::eventually;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nats-bridge"))
        .arg("assess")
        .args(arguments)
        .env_remove("NATS_BRIDGE_RABBIT_MANAGEMENT")
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

/// Runs, expects this exit code, and gives stdout.
fn expect(code: i32, arguments: &[&str]) -> String {
    let output = run(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    out.into_owned()
}

fn json(code: i32, arguments: &[&str]) -> Value {
    let out = expect(code, &[arguments, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

/// Codes with the names of what they are about.
fn found(document: &Value) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = document["findings"].as_array().expect("findings");
    findings.iter().map(|finding| (text(&finding["code"]), text(&finding["entity"]["name"]))).collect()
}

fn has(document: &Value, code: &str, name: &str) -> bool {
    found(document).contains(&(code.to_owned(), name.to_owned()))
}

/// Everything that a RabbitMQ without further plug-ins can have.
fn declare_all(rabbit: &RabbitMq, vhost: &str) {
    let put = |path: &str, body: Value| {
        let (status, said) = rabbit.api("PUT", &format!("/api/{path}"), &body.to_string()).expect("answers");
        assert!((200..300).contains(&status), "{path}: {status} {said}");
    };
    let bind = |source: &str, kind: &str, destination: &str, body: Value| {
        let path = format!("/api/bindings/{vhost}/e/{source}/{kind}/{destination}");
        let (status, said) = rabbit.api("POST", &path, &body.to_string()).expect("answers");
        assert!((200..300).contains(&status), "{path}: {status} {said}");
    };
    for (name, kind) in
        [("orders", "topic"), ("news", "fanout"), ("by-header", "headers"), ("spread", "x-consistent-hash")]
    {
        put(&format!("exchanges/{vhost}/{name}"), json!({ "type": kind, "durable": true }));
    }
    put(
        &format!("exchanges/{vhost}/front"),
        json!({ "type": "direct", "durable": true, "arguments": { "alternate-exchange": "news" } }),
    );
    put(&format!("exchanges/{vhost}/inner"), json!({ "type": "topic", "durable": true, "internal": true }));
    let queues = [
        ("plain", json!({})),
        ("short", json!({ "x-message-ttl": 60_000, "x-dead-letter-exchange": "news", "x-max-length": 10 })),
        ("safe", json!({ "x-queue-type": "quorum", "x-delivery-limit": 5 })),
        ("log", json!({ "x-queue-type": "stream" })),
        ("single", json!({ "x-single-active-consumer": true })),
        ("urgent", json!({ "x-max-priority": 5, "x-queue-mode": "lazy" })),
    ];
    for (name, arguments) in queues {
        put(&format!("queues/{vhost}/{name}"), json!({ "durable": true, "arguments": arguments }));
    }
    bind("orders", "q", "plain", json!({ "routing_key": "order.#" }));
    bind("by-header", "q", "short", json!({ "arguments": { "x-match": "any", "kind": "a" } }));
    bind("by-header", "q", "short", json!({ "arguments": { "x-match": "any", "kind": "b" } }));
    bind("orders", "e", "inner", json!({ "routing_key": "#" }));
    bind("inner", "q", "plain", json!({ "routing_key": "audit" }));
    bind("spread", "q", "plain", json!({ "routing_key": "1" }));
    let policy = |pattern: &str, definition: Value| json!({ "pattern": pattern, "apply-to": "queues", "definition": definition });
    put(&format!("policies/{vhost}/expire"), policy("^plain", json!({ "message-ttl": 1000 })));
    put(&format!("policies/{vhost}/mirror"), policy("^urgent", json!({ "ha-mode": "all" })));
    put(&format!("operator-policies/{vhost}/ceiling"), policy("^plain", json!({ "max-length": 1000 })));
    put(&format!("vhost-limits/{vhost}/max-connections"), json!({ "value": 100 }));
    rabbit.create_user("clerk", "secret");
    put(&format!("permissions/{vhost}/clerk"), json!({ "configure": "^$", "write": ".*", "read": "^plain$" }));
    put(&format!("topic-permissions/{vhost}/clerk"), json!({ "exchange": "orders", "write": "^order", "read": ".*" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_rabbitmq_is_assessed_over_its_management_api_and_from_its_export() {
    let rabbit = RabbitMq::shared();
    let vhost = rabbit.fresh_vhost();
    declare_all(rabbit, &vhost);
    let nats = NatsServer::start();
    let connection =
        Connection::connect(&rabbit.url_for(&vhost), ConnectionProperties::default()).await.expect("connects");
    let channel = connection.create_channel().await.expect("a channel");
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let own = channel.queue_declare("own".into(), exclusive, FieldTable::default()).await.expect("declared");
    let consume = BasicConsumeOptions::default();
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongInt(3));
    let _consumer =
        channel.basic_consume(own.name().clone(), "greedy".into(), consume, arguments).await.expect("consumes");
    for _ in 0..3 {
        let publish = BasicPublishOptions::default();
        let large = vec![0; 400_000];
        channel
            .basic_publish("".into(), "urgent".into(), publish, &large, BasicProperties::default())
            .await
            .expect("sent");
    }

    let url = rabbit.management_url().replace("http://", "http://guest:guest@");
    let live = ["--rabbit-management", &url, "--nats", &nats.url(), "--vhost", &vhost];
    // RabbitMQ counts every five seconds.
    let mut document = Value::Null;
    eventually("the backlog is counted", || {
        document = json(1, &live);
        has(&document, "S-BACKLOG", "backlog") && has(&document, "K-PREFETCH", "greedy of queue own")
    });
    for (code, name) in [
        ("Q-BESIDE", "log"),
        ("Q-BESIDE", "single"),
        ("Q-KIND", "safe"),
        ("Q-KIND", "own"),
        ("Q-DIFFERS", "short"),
        ("Q-DIFFERS", "safe"),
        ("Q-DIFFERS", "urgent"),
        ("Q-HINT", "urgent"),
        ("X-BESIDE", "spread"),
        ("B-END", "spread -> queue plain, key '1'"),
        ("P-KEY", "expire"),
        ("P-KEY", "ceiling"),
        ("P-MIRROR", "mirror"),
        ("R-LIMIT", "vhost-limits limits"),
        ("U-PERMISSION", "clerk"),
        ("U-TOPIC", "clerk"),
        ("U-TAG", "guest"),
        ("K-PREFETCH", "greedy of queue own"),
        ("K-NONE", "urgent"),
        ("S-LARGE", "urgent"),
        ("S-REPLICAS", "cluster"),
        ("S-SYNC", "durability"),
    ] {
        assert!(has(&document, code, name), "{code} {name}: {:?}", found(&document));
    }
    assert!(!found(&document).iter().any(|(code, _)| code == "V-UNREAD" || code.ends_with("-REFUSED")), "{document}");
    let maps = |name: &str| {
        let entities = document["entities"].as_array().expect("entities");
        entities.iter().find(|entity| entity["name"] == name).map(|entity| entity["maps"].clone()).unwrap_or_default()
    };
    for exact in [
        "plain",
        "orders",
        "front",
        "inner",
        "orders -> queue plain, key 'order.#'",
        "inner -> queue plain, key 'audit'",
    ] {
        assert_eq!(maps(exact), "exact", "{exact}");
    }
    assert_eq!((maps("short"), maps("log")), (json!("caveat"), json!("no")));
    assert_eq!(document["rabbitmq"]["live"]["messages"], 3);
    // The exclusive queue has no stream, the stream queue no consumer; this NATS is one server.
    let sizes = &document["sizes"];
    assert_eq!((&sizes["streams"], &sizes["consumers"], &sizes["stream_copies"]), (&json!(6), &json!(5), &json!(6)));
    assert!(sizes["disk_bytes_now"].as_u64().is_some_and(|bytes| (1_200_000..1_300_000).contains(&bytes)), "{sizes}");
    assert!(document["rabbitmq"]["version"].as_str().is_some_and(|version| version.starts_with("3.10.")));
    assert!(
        !document.to_string().contains("guest:guest") && !document.to_string().contains("secret"),
        "a password is shown"
    );

    // The export of the same broker: the same topology and digest, without what lives in connections.
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("definitions.json");
    let (_, export) = rabbit.api("GET", "/api/definitions", "").expect("answers");
    std::fs::write(&file, &export).expect("written");
    let file = file.to_str().expect("UTF-8");
    let from_file = json(1, &["--definitions", file, "--vhost", &vhost]);
    assert_eq!(from_file["rabbitmq"]["digest"], document["rabbitmq"]["digest"]);
    assert_eq!(
        (&from_file["sizes"]["stream_copies"], &from_file["sizes"]["disk_bytes_now"]),
        (&json!(10), &Value::Null)
    );
    assert!(
        has(&from_file, "Q-BESIDE", "log") && has(&from_file, "P-KEY", "ceiling") && !has(&from_file, "Q-KIND", "own")
    );

    // What only the sidecar refuses does not stand in the way of `serve`.
    let alone = json(1, &["--definitions", file, "--vhost", &vhost, "--way", "serve"]);
    assert!(
        !has(&alone, "Q-BESIDE", "single") && !has(&alone, "X-BESIDE", "spread") && has(&alone, "X-DIFFERS", "spread")
    );

    let text = expect(1, &live);
    assert!(text.starts_with("RabbitMQ 3.10.") && text.contains("\n  Q-BESIDE    queue 'log' in vhost"), "{text}");
    assert!(text.contains("digest: sha256:") && text.contains("\nnext: mend what blocks"), "{text}");

    let wrong = rabbit.management_url().replace("http://", "http://guest:nope@");
    let err = |arguments: &[&str]| {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let refused = err(&["--rabbit-management", &wrong]);
    assert!(refused.contains("--rabbit-management: ") && refused.contains("refused the user"), "{refused}");
    let unknown = err(&["--rabbit-management", &url, "--vhost", "nope"]);
    assert!(unknown.starts_with("error: --vhost 'nope': there is no such vhost; there are: /"), "{unknown}");
}

#[test]
fn what_fits_ends_with_0_and_the_next_command_and_what_is_no_input_with_2() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let good = json!({
        "rabbit_version": "3.10.8", "vhosts": [{ "name": "/" }],
        "queues": [{ "vhost": "/", "name": "q", "durable": true, "auto_delete": false, "arguments": {} }],
    });
    let good = write("good.json", &good.to_string());
    let text = expect(0, &["--definitions", &good]);
    assert!(text.contains("Nothing blocks") && text.contains("next: nats-bridge sidecar --rabbit amqp://"), "{text}");
    let text = expect(0, &["--definitions", &good, "--way", "serve"]);
    assert!(text.contains("next: nats-bridge serve --nats nats://"), "{text}");
    assert!(text.ends_with(" --user NAME:PASSWORD\n"), "{text}");
    let two = json!({ "rabbit_version": "3.10.8", "vhosts": [{ "name": "/" }, { "name": "shop" }] });
    let text = expect(0, &["--definitions", &write("two.json", &two.to_string()), "--way", "serve"]);
    assert!(text.ends_with(" --user NAME:PASSWORD --vhost '/' --vhost 'shop'\n"), "{text}");
    assert_eq!(json(0, &["--definitions", &good])["can_begin"], true);

    let (broken, list, old) =
        (write("a", "{\"queues\":"), write("b", "[1]"), write("c", r#"{"rabbit_version":"2.8.7"}"#));
    for (arguments, words) in [
        (&["--definitions", "/no/such/file"][..], ["--definitions /no/such/file: ", "No such file"]),
        (&["--definitions", &broken], ["--definitions ", "not JSON"]),
        (&["--definitions", &list], ["--definitions ", "not an export of definitions"]),
        (&["--definitions", &old], ["--definitions ", "'2.8.7': only RabbitMQ 3 and 4"]),
        (&["--definitions", &good, "--vhost", "x"], ["--vhost 'x'", "there are: /"]),
        (&["--definitions", &good, "--nats", "nats://127.0.0.1:1"], ["--nats nats://127.0.0.1:1", "no NATS server"]),
        (&["--definitions", &good, "--nats-creds", &good], ["--nats-creds: ", "without --nats URL"]),
        (&["--rabbit-management", "http://guest:guest@127.0.0.1:1"], ["--rabbit-management: ", "does not answer"]),
        (&["--rabbit-management", "amqp://x"], ["--rabbit-management: ", "only http://"]),
        (&["--way", "serve"], ["--definitions FILE", "--rabbit-management"]),
    ] {
        let output = run(arguments);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(words.iter().all(|word| err.contains(word)), "{arguments:?}: {err}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    assert!(expect(0, &["--help"]).contains("Example:\n  rabbitmqctl export_definitions"));
}
