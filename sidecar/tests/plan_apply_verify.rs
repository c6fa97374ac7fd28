//! `nats-bridge plan`, `apply` and `verify`, as the binary, between a real RabbitMQ and a real nats-server; and a sidecar over what
//! they have made.

mod bed;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use amqp_compat::backend::jetstream::{JetStreamBackend, Lease};
use bed::{CAP, Ends, Ledger, consume, delivered, produce};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use nats_bridge::Bridge;
use serde_json::{Value, json};
use sidecar::control_api::{Target, Weight};
use test_support::cluster::NatsCluster;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nats-bridge"))
        .args(arguments)
        .env_remove("NATS_BRIDGE_RABBIT_MANAGEMENT")
        .env_remove("NATS_URL")
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

/// Runs, expects this exit code, and gives stdout and stderr.
fn expect(code: i32, arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    (out, err)
}

fn json(code: i32, arguments: &[&str]) -> Value {
    let (out, _) = expect(code, &[arguments, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

fn put(rabbit: &RabbitMq, path: &str, body: Value) {
    let (status, said) = rabbit.api("PUT", &format!("/api/{path}"), &body.to_string()).expect("answers");
    assert!((200..300).contains(&status), "{path}: {status} {said}");
}

fn bind(rabbit: &RabbitMq, vhost: &str, source: &str, destination: &str, body: Value) {
    let path = format!("/api/bindings/{vhost}/e/{source}/q/{destination}");
    let (status, said) = rabbit.api("POST", &path, &body.to_string()).expect("answers");
    assert!((200..300).contains(&status), "{path}: {status} {said}");
}

/// A topology that nobody declares through a sidecar.
fn declare_shop(rabbit: &RabbitMq, vhost: &str) {
    let durable = |kind: &str| json!({ "type": kind, "durable": true });
    put(rabbit, &format!("exchanges/{vhost}/orders"), durable("topic"));
    put(rabbit, &format!("exchanges/{vhost}/by-header"), durable("headers"));
    put(rabbit, &format!("exchanges/{vhost}/lost"), durable("fanout"));
    for (name, arguments) in [
        ("billing", json!({ "x-message-ttl": 600_000, "x-dead-letter-exchange": "lost" })),
        ("safe", json!({ "x-queue-type": "quorum" })),
        ("urgent", json!({ "x-max-priority": 3 })),
        ("dead", json!({})),
    ] {
        put(rabbit, &format!("queues/{vhost}/{name}"), json!({ "durable": true, "arguments": arguments }));
    }
    put(rabbit, &format!("queues/{vhost}/passing"), json!({ "durable": false }));
    bind(rabbit, vhost, "orders", "billing", json!({ "routing_key": "#" }));
    bind(rabbit, vhost, "orders", "passing", json!({ "routing_key": "a" }));
    bind(rabbit, vhost, "lost", "dead", json!({}));
    bind(rabbit, vhost, "by-header", "safe", json!({ "arguments": { "x-match": "any", "kind": "a" } }));
}

/// The names of what differs, by kind of difference.
fn differences(verified: &Value) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let each = verified["differences"].as_array().expect("a list").iter();
    each.map(|difference| (text(&difference["how"]), text(&difference["name"]))).collect()
}

fn one(how: &str, name: &str) -> BTreeSet<(String, String)> {
    BTreeSet::from([(how.to_owned(), name.to_owned())])
}

struct Verbs {
    management: String,
    nats: String,
    vhost: String,
    plan: String,
}

impl Verbs {
    fn new(rabbit: &RabbitMq, nats: &NatsServer, vhost: &str, dir: &Path) -> Self {
        Self {
            management: rabbit.management_url().replace("http://", "http://guest:guest@"),
            nats: nats.url(),
            vhost: vhost.to_owned(),
            plan: dir.join("plan.json").to_str().expect("UTF-8").to_owned(),
        }
    }

    fn plan(&self) -> Vec<&str> {
        vec!["plan", "--rabbit-management", &self.management, "--vhost", &self.vhost, "--out", &self.plan]
    }

    fn apply(&self) -> Vec<&str> {
        vec!["apply", &self.plan, "--rabbit-management", &self.management, "--nats", &self.nats]
    }

    fn execute(&self) -> Vec<&str> {
        [self.apply(), vec!["--execute"]].concat()
    }

    fn verify(&self) -> Vec<&str> {
        vec!["verify", "--rabbit-management", &self.management, "--nats", &self.nats, "--vhost", &self.vhost]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topology_is_planned_applied_once_and_verified_and_a_sidecar_goes_on_with_it() {
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let nats = NatsServer::start();
    let ends = Ends::new(rabbit, &nats);
    declare_shop(rabbit, &ends.vhost);
    let dir = tempfile::tempdir().expect("a directory");
    let verbs = Verbs::new(rabbit, &nats, &ends.vhost, dir.path());

    let (text, _) = expect(0, &verbs.plan());
    assert!(text.contains("makes:    4 streams, 4 consumers; 6 copies"), "{text}");
    assert!(text.contains("left out: queue 'passing'") && text.contains("digest: sha256:"), "{text}");
    let file = std::fs::read_to_string(&verbs.plan).expect("written");
    assert!(!file.contains("guest:guest"), "a password is written down");
    expect(0, &verbs.plan());
    assert_eq!(std::fs::read_to_string(&verbs.plan).expect("written"), file, "the same again is another plan");

    // What does not last is no part of it.
    rabbit.api("DELETE", &format!("/api/queues/{}/passing", ends.vhost), "").expect("answers");

    // Only said.
    let said = json(0, &verbs.apply());
    assert_eq!((&said["executed"], &said["there_already"], &said["in_plan"]), (&json!(false), &json!(0), &json!(10)));
    assert_eq!(said["would_declare"].as_array().map(Vec::len), Some(10));
    let before = json(1, &verbs.verify());
    assert!(
        differences(&before).len() == 10 && differences(&before).iter().all(|(how, _)| how == "missing"),
        "{before}"
    );

    // Done, and done again.
    let (text, _) = expect(0, &verbs.execute());
    assert!(text.contains("declared 10 of 10; 0 there already"), "{text}");
    assert_eq!(json(0, &verbs.execute())["there_already"], 10);
    let same = json(0, &verbs.verify());
    assert_eq!((&same["same"], &same["compared"]), (&json!(true), &json!(10)));
    // One server, and a quorum queue.
    assert_eq!(same["with_fewer_replicas"], 1);

    // Applications that declare nothing: one publishes, one consumes, and JetStream may own their keys.
    let sidecar = ends.sidecar().await;
    let ledger = Arc::new(Ledger::default());
    let producer =
        tokio::spawn(produce(sidecar.connect().await, "orders", 8, Duration::from_millis(2), ledger.clone()));
    let consumer = tokio::spawn(consume(sidecar.connect().await, "billing", 20, ledger.clone()));
    delivered(&ledger, 50).await;
    sidecar.change(Target::Shadow).await.expect("allowed");
    let half = Target::Weight(Weight::from_percent(50.0).expect("a weight"));
    tokio::time::timeout(CAP, sidecar.change(half)).await.expect("in time").expect("nothing is unmapped");
    delivered(&ledger, 200).await;
    let status = sidecar.status().await;
    assert!(status.unmapped.is_empty(), "{:?}", status.unmapped);
    // Beside a sidecar, which has the lease, verify may look and apply may not declare.
    assert_eq!(json(0, &verbs.verify())["same"], true);
    let (_, err) = expect(2, &verbs.execute());
    assert!(err.contains("another gateway serves this NATS account"), "{err}");
    ledger.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    tokio::time::timeout(CAP, producer).await.expect("in time").expect("published");
    tokio::time::timeout(CAP, consumer).await.expect("in time").expect("consumed");
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((count(&ledger.duplicated), count(&ledger.reordered)), (0, 0));
    assert_eq!(count(&ledger.delivered), count(&ledger.published));
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_was_changed_or_that_rabbitmq_no_longer_agrees_with_is_refused_and_what_differs_is_named() {
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let nats = NatsServer::start();
    let vhost = rabbit.fresh_vhost();
    declare_shop(rabbit, &vhost);
    let dir = tempfile::tempdir().expect("a directory");
    let verbs = Verbs::new(rabbit, &nats, &vhost, dir.path());
    expect(0, &verbs.plan());

    // Somebody has changed the file.
    let good = std::fs::read_to_string(&verbs.plan).expect("written");
    std::fs::write(&verbs.plan, good.replace("600000", "5")).expect("written");
    let (_, err) = expect(1, &verbs.execute());
    assert!(err.contains("changed after it was made") && err.contains("plan.json"), "{err}");
    std::fs::write(&verbs.plan, "{").expect("written");
    assert!(expect(2, &verbs.execute()).1.contains("not JSON"));
    std::fs::write(&verbs.plan, &good).expect("written");

    // Somebody has changed RabbitMQ, and then nothing is declared.
    put(rabbit, &format!("queues/{vhost}/new"), json!({ "durable": true }));
    let (_, err) = expect(1, &verbs.execute());
    assert!(err.contains("extra    queue 'new'") && err.contains("not as it was when the plan was made"), "{err}");
    assert_eq!(differences(&json(1, &verbs.verify())).len(), 11);
    expect(0, &verbs.plan());
    expect(0, &verbs.execute());
    expect(0, &verbs.verify());

    // From an export as from the management API.
    let export = dir.path().join("definitions.json");
    std::fs::write(&export, rabbit.api("GET", "/api/definitions", "").expect("answers").1).expect("written");
    let export = export.to_str().expect("UTF-8");
    let from_file = ["verify", "--definitions", export, "--nats", &verbs.nats, "--vhost", &vhost];
    assert_eq!(json(0, &from_file)["compared"], 11);
    expect(0, &["apply", &verbs.plan, "--definitions", export, "--nats", &verbs.nats]);

    // What is gone there, what is another one here, and what has lost its stream.
    rabbit.api("DELETE", &format!("/api/queues/{vhost}/new"), "").expect("answers");
    assert_eq!(differences(&json(1, &verbs.verify())), one("extra", "new"));
    put(rabbit, &format!("queues/{vhost}/new"), json!({ "durable": true, "arguments": { "x-expires": 60_000 } }));
    let other = json(1, &verbs.verify());
    assert_eq!(differences(&other), one("differs", "new"));
    assert_eq!(
        other["differences"][0]["fields"],
        json!([{ "field": "arguments.x-expires", "wanted": 60_000, "found": null }])
    );
    expect(0, &verbs.plan());
    let (_, err) = expect(1, &verbs.execute());
    assert!(err.contains("differs  queue 'new'") && err.contains("are on JetStream already"), "{err}");
    rabbit.api("DELETE", &format!("/api/queues/{vhost}/new"), "").expect("answers");
    put(rabbit, &format!("queues/{vhost}/new"), json!({ "durable": true }));
    let bridge = Bridge::connect(&nats.url()).await.expect("connected");
    let stored = JetStreamBackend::stored(&bridge, &vhost).await.expect("answers");
    let (_, stream) = stored.queues.iter().find(|(queue, _)| &*queue.name == "new").expect("stored");
    bridge.jetstream().delete_stream(stream).await.expect("deleted");
    let (text, _) = expect(1, &verbs.verify());
    assert!(text.contains("differs  queue 'new'") && text.contains("\n         stream: "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sidecar_would_refuse_is_left_out_and_named_and_serve_gets_it_with_its_policies() {
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let nats = NatsServer::start();
    let vhost = rabbit.fresh_vhost();
    put(rabbit, &format!("queues/{vhost}/log"), json!({ "durable": true, "arguments": { "x-queue-type": "stream" } }));
    put(rabbit, &format!("queues/{vhost}/plain"), json!({ "durable": true }));
    let policy = json!({ "pattern": "^plain$", "apply-to": "queues", "definition": { "max-length": 5 } });
    put(rabbit, &format!("policies/{vhost}/short"), policy);
    let operator = json!({ "pattern": ".*", "apply-to": "queues", "definition": { "expires": 3_600_000 } });
    put(rabbit, &format!("operator-policies/{vhost}/ceiling"), operator);
    let dir = tempfile::tempdir().expect("a directory");
    let verbs = Verbs::new(rabbit, &nats, &vhost, dir.path());

    let (text, err) = expect(1, &verbs.plan());
    assert!(text.contains("REFUSED:  queue 'log'") && text.contains("REFUSED:  policy 'short'"), "{text}");
    assert!(err.contains("3 things would be refused"), "{err}");

    let serve = ["--way", "serve"];
    expect(0, &[&verbs.plan()[..], &serve].concat());
    let done = json(0, &verbs.execute());
    assert_eq!(done["declared"].as_array().map(Vec::len), Some(4), "{done}");
    expect(0, &[&verbs.verify()[..], &serve].concat());
    let bridge = Bridge::connect(&nats.url()).await.expect("connected");
    let stored = JetStreamBackend::stored(&bridge, &vhost).await.expect("answers");
    assert_eq!((stored.policies.len(), stored.queues.len()), (2, 2));
    // The lease was given back.
    drop(Lease::acquire(&bridge).await.expect("free"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_with_numbers_is_left_to_its_application_and_found_once_it_has_made_it() {
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let nats = NatsServer::start();
    let ends = Ends::new(rabbit, &nats);
    put(rabbit, &format!("queues/{}/q", ends.vhost), json!({ "durable": true }));
    let sized = json!({ "arguments": { "x-match": "all", "size": 5 } });
    bind(rabbit, &ends.vhost, "amq.headers", "q", sized);
    let dir = tempfile::tempdir().expect("a directory");
    let verbs = Verbs::new(rabbit, &nats, &ends.vhost, dir.path());
    let (text, _) = expect(0, &verbs.plan());
    assert!(text.contains("left to its application: binding 'amq.headers -> queue q"), "{text}");
    expect(0, &verbs.execute());
    let missing = json(1, &verbs.verify());
    assert_eq!(differences(&missing).len(), 1, "{missing}");

    let sidecar = ends.sidecar().await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("a channel");
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("q".into(), durable, FieldTable::default()).await.expect("the queue that is there");
    let mut arguments = FieldTable::default();
    arguments.insert("x-match".into(), lapin::types::AMQPValue::LongString("all".into()));
    // What the management API has made is 64 bits wide.
    arguments.insert("size".into(), lapin::types::AMQPValue::LongLongInt(5));
    channel
        .queue_bind("q".into(), "amq.headers".into(), "".into(), Default::default(), arguments)
        .await
        .expect("bound");
    assert_eq!(json(0, &verbs.verify())["same"], true);
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}

/// Starts `apply --execute` and ends it with this signal once some queues are there; gives its exit code and stderr.
async fn interrupted(signal: &str, arguments: &[&str], bridge: &Bridge, queues: usize) -> (Option<i32>, String) {
    let child = Command::new(env!("CARGO_BIN_EXE_nats-bridge"))
        .args(arguments)
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    eventually_true("some queues are there", || async {
        JetStreamBackend::stored(bridge, "/").await.is_ok_and(|stored| stored.queues.len() >= queues)
    })
    .await;
    let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().expect("sent");
    assert!(sent.success(), "it has ended before");
    let output = child.wait_with_output().expect("ended");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_was_stopped_or_killed_in_the_middle_is_finished_by_the_next_one() {
    let nats = NatsServer::start();
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (export, plan) = (path("definitions.json"), path("plan.json"));
    let queues: Vec<Value> =
        (0..400).map(|index| json!({ "vhost": "/", "name": format!("q{index:03}"), "durable": true })).collect();
    let bindings: Vec<Value> = (0..400)
        .map(|index| {
            json!({ "vhost": "/", "source": "amq.topic", "destination": format!("q{index:03}"), "destination_type": "queue",
                "routing_key": "#", "arguments": {} })
        })
        .collect();
    let document =
        json!({ "rabbit_version": "3.10.8", "vhosts": [{ "name": "/" }], "queues": queues, "bindings": bindings });
    std::fs::write(&export, document.to_string()).expect("written");
    expect(0, &["plan", "--definitions", &export, "--out", &plan]);
    let url = nats.url();
    let apply = ["apply", &plan, "--definitions", &export, "--nats", &url, "--execute"];
    let bridge = Bridge::connect(&url).await.expect("connected");

    let (code, err) = interrupted("TERM", &apply, &bridge, 20).await;
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("stopped: ") && err.contains("of 800 are declared; running it again is safe"), "{err}");
    let there = JetStreamBackend::stored(&bridge, "/").await.expect("answers").queues.len();
    let (code, err) = interrupted("KILL", &apply, &bridge, there + 20).await;
    assert_eq!(code, None, "{err}");

    let rest = json(0, &apply);
    let declared = rest["declared"].as_array().map_or(0, Vec::len);
    assert!(declared > 0, "it had ended before it was killed");
    assert_eq!(declared as u64 + rest["there_already"].as_u64().unwrap_or_default(), 800);
    assert_eq!(json(0, &["verify", "--definitions", &export, "--nats", &url])["same"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_three_servers_queues_are_on_as_many_as_they_ask_for() {
    let cluster = NatsCluster::start();
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (export, plan) = (path("definitions.json"), path("plan.json"));
    let queue = |name: &str, kind: &str| json!({ "vhost": "/", "name": name, "durable": true, "arguments": { "x-queue-type": kind } });
    let queues = [queue("classic", "classic"), queue("quorum", "quorum")];
    let document = json!({ "rabbit_version": "3.10.8", "vhosts": [{ "name": "/" }], "queues": queues });
    std::fs::write(&export, document.to_string()).expect("written");
    let url = cluster.urls();
    let verify = ["verify", "--definitions", &export, "--nats", &url];
    for replicas in ["1", "3"] {
        expect(0, &["plan", "--definitions", &export, "--out", &plan, "--replicas", replicas]);
        let apply = ["apply", &plan, "--definitions", &export, "--nats", &url, "--execute"];
        let done = json(0, &apply);
        let declared = done["declared"].as_array().map_or(0, Vec::len);
        let others = done["other_streams"].as_array().map_or(0, Vec::len);
        // As when a gateway starts with another number, an empty queue's stream is made anew.
        assert_eq!((declared, others), if replicas == "1" { (2, 0) } else { (0, 1) }, "{done}");
        assert_eq!(done["with_fewer_replicas"], 0);
        assert_eq!(json(0, &[&verify[..], &["--replicas", replicas]].concat())["same"], true);
    }
    let other = json(1, &verify);
    assert_eq!(differences(&other), one("differs", "classic"));
    assert_eq!(other["differences"][0]["fields"], json!([{ "field": "stream.num_replicas", "wanted": 1, "found": 3 }]));
}

#[test]
fn what_cannot_be_run_says_why_with_2_and_help_has_an_example() {
    let dir = tempfile::tempdir().expect("a directory");
    let export = dir.path().join("definitions.json");
    let text =
        r#"{"rabbit_version":"3.10.8","vhosts":[{"name":"/"}],"queues":[{"vhost":"/","name":"q","durable":true}]}"#;
    std::fs::write(&export, text).expect("written");
    let export = export.to_str().expect("UTF-8");
    let plan = dir.path().join("plan.json");
    let plan = plan.to_str().expect("UTF-8");
    expect(0, &["plan", "--definitions", export, "--out", plan]);
    for (arguments, words) in [
        (&["plan"][..], "--definitions FILE"),
        (&["plan", "--definitions", export, "--out", "/no/such/dir/plan.json"], "--out /no/such/dir/plan.json: "),
        (&["apply", "/no/such/plan"], "/no/such/plan: "),
        (&["apply", plan], "--definitions FILE"),
        (&["apply", plan, "--definitions", export, "--nats", "nats://127.0.0.1:1"], "no NATS server answers there"),
        (&["verify", "--definitions", export, "--nats", "nats://127.0.0.1:1"], "no NATS server answers there"),
        (&["verify", "--definitions", export, "--vhost", "x"], "--vhost 'x'"),
    ] {
        let (_, err) = expect(2, arguments);
        assert!(err.contains(words), "{arguments:?}: {err}");
    }
    for verb in ["plan", "apply", "verify"] {
        assert!(expect(0, &[verb, "--help"]).0.contains("Example:\n  nats-bridge "), "{verb}");
    }
}
