//! `nats-bridge dlq`, `nats-bridge provision` and `nats-bridge schema`, as the binary, on a real server.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nats_bridge::encryption::Keys;
use nats_bridge::{Bridge, ConsumeConfig, Failure, Message, PublishConfig, RetryPolicy, StreamSpec};
use serde_json::Value;
use test_support::nats::NatsServer;

const MANIFEST: &str = r#"
[[streams]]
name = "ORDERS"
subjects = ["orders.>"]
retention = "work_queue"
max_bytes = 1_000_000

[[dead_letters]]
of = "ORDERS"

[[consumers]]
stream = "ORDERS"
name = "billing"

[[buckets]]
name = "sessions"
max_bytes = 1_000_000
"#;

struct Cli {
    server: NatsServer,
    dir: tempfile::TempDir,
}

impl Cli {
    fn start() -> Cli {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("m.toml"), MANIFEST).expect("a file");
        Cli { server: NatsServer::start(), dir }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_nats-bridge"))
            .args(arguments)
            .env("NATS_URL", self.server.url())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("runs")
    }

    /// Runs, expects this exit code, and gives stdout.
    fn expect(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
        assert_eq!(code == 0, !err.contains("error: "), "{arguments:?}: {err}");
        out.into_owned()
    }

    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let out = self.expect(code, &[arguments, &["--json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }
}

async fn with_letters(url: &str, n: usize) {
    let bridge = Bridge::connect(url).await.expect("connects");
    for i in 0..n {
        let message = Message::new("orders.new", format!("order {i}")).id(format!("o-{i}"));
        bridge.publish(message).await.expect("stored");
    }
    let retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    let config = ConsumeConfig { retry, ..ConsumeConfig::new("ORDERS", "billing") };
    let mut consumer = bridge.consume(config).await.expect("consumes");
    for i in 0..n {
        let delivery = consumer.next().await.expect("goes on").expect("a delivery");
        let class = if i == 0 { "First" } else { "Other" };
        delivery.retry(Failure::of(class, "no such customer")).await.expect("a dead letter");
    }
    consumer.handle().drain(Duration::from_secs(5)).await.expect("drained");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_planned_applied_and_verified_and_drift_ends_with_1() {
    let cli = Cli::start();
    let plan = cli.expect(0, &["provision", "plan", "m.toml", "--monitor", &cli.server.monitor_url()]);
    assert!(plan.contains("create    stream ORDERS\n") && plan.contains("bucket sessions"), "{plan}");
    assert!(plan.contains("fsync: at the latest 120s after the confirm"), "{plan}");
    assert!(plan.contains("warning: stream ORDERS: replicas = 1"), "{plan}");
    cli.expect(1, &["provision", "verify", "m.toml"]);
    assert!(cli.expect(0, &["provision", "apply", "m.toml"]).contains("created   consumer ORDERS/billing"));
    assert!(cli.expect(0, &["provision", "verify", "m.toml"]).contains("everything is as the file says"));
    assert_eq!(cli.json(0, &["provision", "apply", "m.toml"])["changes"], serde_json::json!([]));

    let write = |name: &str, text: &str| std::fs::write(cli.dir.path().join(name), text).expect("a file");
    write("m.toml", &MANIFEST.replace("max_bytes = 1_000_000\n\n[[dead", "max_bytes = 2_000_000\n\n[[dead"));
    let drift = cli.json(1, &["provision", "verify", "m.toml"]);
    assert_eq!(drift["changes"][0]["action"]["update"][0]["field"], "max_bytes");
    // A limit below what is stored removes nothing unasked.
    let bridge = Bridge::connect(cli.server.url()).await.expect("connected");
    bridge.publish(Message::new("orders.new", "kept")).await.expect("stored");
    let lower = "max_bytes = 10\nmax_age_ms = 600_000\ndiscard = \"old\"\n\n[[dead";
    write("m.toml", &MANIFEST.replace("max_bytes = 1_000_000\n\n[[dead", lower));
    // The plan speaks as the file does.
    let plan = cli.expect(0, &["provision", "plan", "m.toml"]);
    for line in [
        "max_age_ms: none -> 600000\n",
        "max_bytes: 1000000 -> 10\n",
        "cost: max_bytes is 1000000 and should be 10, which removes about 1 of 1",
    ] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    let refused = cli.run(&["provision", "apply", "m.toml"]);
    let err = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{err}");
    let told = "m.toml: would remove: stream=ORDERS limit=max_bytes is=1000000 should=10 messages=1 ";
    assert!(err.contains(told) && err.contains("--allow-removal"), "{err}");
    let stream = bridge.jetstream().get_stream("ORDERS").await.expect("it is there");
    assert_eq!((stream.cached_info().state.messages, stream.cached_info().config.max_bytes), (1, 1_000_000));
    cli.expect(0, &["provision", "apply", "m.toml", "--allow-removal"]);
    write("m.toml", &MANIFEST.replace("work_queue", "interest"));
    let conflict = cli.expect(1, &["provision", "plan", "m.toml"]);
    assert!(
        conflict.contains("CONFLICT  stream ORDERS\n          retention: \"work_queue\" -> \"interest\""),
        "{conflict}"
    );
    cli.expect(1, &["provision", "apply", "m.toml"]);
    for (text, why) in [
        ("[[streams]]\nname = \"A\"\n", "field=max_bytes"),
        ("[[streams]]\nnmae = \"A\"\n", "nmae"),
        ("[[streams]]\nname = \"A\"\nmax_bytes = 5\nmax_age_ms = 500_000\ndurable = true\n", "three replicas"),
    ] {
        write("wrong.toml", text);
        let output = cli.run(&["provision", "apply", "wrong.toml"]);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert!(err.contains("wrong.toml") && err.contains(why), "{err}");
    }
    // What apply would be refused, plan refuses.
    let stream = "[[streams]]\nname = \"B\"\nunbounded = true\n";
    for (code, text, told) in [
        (2, format!("{stream}subjects = [\"a b\"]"), "table=streams stream=B field=subjects"),
        (2, format!("{stream}replicas = 3"), "table=streams stream=B field=replicas"),
        (
            1,
            format!("{stream}subjects = [\"orders.eu\"]"),
            "table=streams stream=B field=subjects why=`orders.eu` overlaps",
        ),
        (1, "[[dead_letters]]\nof = \"LATE\"".to_owned(), "table=dead_letters stream=LATE_DLQ field=of why="),
        (2, "[[dead_letters]]\nof = \"\"".to_owned(), "table=dead_letters of="),
        (
            1,
            "[[consumers]]\nstream = \"NONE\"\nname = \"c\"".to_owned(),
            "table=consumers consumer=c field=stream why=there is no stream NONE",
        ),
    ] {
        if told.contains("LATE_DLQ") {
            let late = StreamSpec { unbounded: true, ..StreamSpec::new("LATE_LETTERS", ["dlq.LATE.*"]) };
            bridge.ensure_stream(&late).await.expect("made");
        }
        write("wrong.toml", &text);
        for verb in ["plan", "apply"] {
            let output = cli.run(&["provision", verb, "wrong.toml"]);
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{text}: {err}");
            assert!(err.contains("wrong.toml: ") && err.contains(told), "{told}: {err}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_redriven_parked_purged_and_brought_back() {
    let cli = Cli::start();
    cli.expect(0, &["provision", "apply", "m.toml"]);
    cli.expect(1, &["dlq", "list", "NONE_DLQ"]);
    let dotted = cli.run(&["dlq", "list", "orders.dead"]);
    assert!(String::from_utf8_lossy(&dotted.stderr).contains("without spaces, dots"), "{dotted:?}");
    assert_eq!(cli.expect(0, &["dlq", "list", "ORDERS_DLQ"]), "no dead letters\n");
    // A stream of something else is refused; one that has both says so.
    let bridge = Bridge::connect(cli.server.url()).await.expect("connected");
    let stream = |name: &str, subjects: &[&str]| StreamSpec {
        unbounded: true,
        ..StreamSpec::new(name, subjects.iter().copied())
    };
    bridge.ensure_stream(&stream("EVENTS", &["events.>"])).await.expect("made");
    for verb in ["list", "peek"] {
        let refused = cli.run(&["dlq", verb, "EVENTS"]);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{why}");
        assert!(why.contains("stream=EVENTS") && why.contains("stores no dead letters"), "{why}");
    }
    bridge.ensure_stream(&stream("LOGS", &["logs.>", "dlq.LOGS.>"])).await.expect("made");
    bridge.publish(Message::new("logs.new", "a line")).await.expect("stored");
    for verb in ["list", "peek"] {
        let told = cli.expect(0, &["dlq", verb, "LOGS"]);
        assert!(told.starts_with("no dead letters: the 1 message") && told.contains("LOGS_DLQ"), "{told}");
    }
    let logs = cli.json(0, &["dlq", "list", "LOGS"]);
    assert_eq!((&logs["letters"], &logs["others"]), (&Value::from(0), &Value::from(1)));
    with_letters(&cli.server.url(), 6).await;

    let list = cli.expect(0, &["dlq", "list", "ORDERS_DLQ"]);
    assert!(list.contains("handler_error") && list.ends_with("6 dead letters\n"), "{list}");
    let groups = cli.json(0, &["dlq", "list", "ORDERS_DLQ", "--by", "fingerprint"]);
    assert_eq!((&groups["letters"], &groups["groups"][0]["letters"]), (&Value::from(6), &Value::from(5)));
    let first = groups["groups"][1]["key"].as_str().expect("a fingerprint").to_owned();

    let peek = cli.expect(0, &["dlq", "peek", "ORDERS_DLQ", "--limit", "2"]);
    assert!(peek.contains("order 0") && peek.contains("order 1") && !peek.contains("order 2"), "{peek}");
    let show = cli.expect(0, &["dlq", "show", "ORDERS_DLQ", "3"]);
    assert!(show.contains("detail:       no such customer\n") && show.contains("Nats-Msg-Id: o-2"), "{show}");
    cli.expect(1, &["dlq", "show", "ORDERS_DLQ", "99"]);

    let some = ["dlq", "redrive", "ORDERS_DLQ", "--sequences", "2-3"];
    assert_eq!(cli.expect(0, &[&some[..], &["--dry-run"]].concat()), "2 would be redriven\n");
    assert_eq!(cli.expect(0, &some), "2 redriven, 0 of them failed again\n");
    assert_eq!(
        cli.expect(0, &["dlq", "park", "ORDERS_DLQ", "--fingerprint", &first]),
        "1 parked in ORDERS_DLQ_PARKED\n"
    );
    assert!(cli.expect(0, &["dlq", "peek", "ORDERS_DLQ_PARKED"]).contains("order 0"));

    let lines = cli.expect(0, &["dlq", "export", "ORDERS_DLQ"]);
    assert_eq!(lines.lines().count(), 3);
    let purge = ["dlq", "purge", "ORDERS_DLQ", "--export", "gone.jsonl"];
    assert_eq!(cli.expect(0, &purge), "3 purged, and kept in gone.jsonl\n");
    assert_eq!(std::fs::read_to_string(cli.dir.path().join("gone.jsonl")).expect("a file"), lines);
    // What is there is not overwritten.
    cli.expect(2, &purge);
    assert_eq!(cli.expect(0, &["dlq", "list", "ORDERS_DLQ"]), "no dead letters\n");
    let import = ["dlq", "import", "ORDERS_DLQ", "gone.jsonl"];
    assert_eq!(cli.json(0, &import), serde_json::json!({ "stored": 3, "duplicates": 0 }));
    assert_eq!(cli.expect(0, &import), "0 imported, 3 were there already\n");
    let elsewhere = Cli::start();
    elsewhere.expect(0, &["provision", "apply", "m.toml"]);
    let file = cli.dir.path().join("gone.jsonl");
    let file = file.to_str().expect("UTF-8");
    assert_eq!(elsewhere.json(0, &["dlq", "import", "ORDERS_DLQ", file])["stored"], 3);
    assert!(elsewhere.expect(0, &["dlq", "peek", "ORDERS_DLQ"]).contains("order 5"));
    assert!(Path::new(file).exists());
}

#[test]
fn help_has_an_example_for_each_verb() {
    for verb in ["list", "peek", "show", "redrive", "park", "purge", "export", "import"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_nats-bridge")).args(["dlq", verb, "--help"]).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("Example:\n  nats-bridge dlq {verb} ")), "{text}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_nats-bridge"))
        .args(["dlq", "list", "X", "--nats", "nats://127.0.0.1:1"])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(2));
}

/// An nkey of NATS's documentation: its seed, and its public part.
const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
const NKEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

#[test]
fn a_login_by_nkey_gets_in_and_none_is_told_what_to_give() {
    let line = format!("authorization {{ users: [ {{ nkey: {NKEY} }} ] }}");
    let server = NatsServer::builder().config_line(line).start();
    let cli = Cli { server, dir: tempfile::tempdir().expect("a directory") };
    let seed = cli.dir.path().join("seed");
    std::fs::write(&seed, format!("{SEED}\n")).expect("a file");
    let seed = seed.to_str().expect("a path");
    // In, and what is asked for is not there.
    cli.expect(1, &["dlq", "list", "NONE_DLQ", "--nats-nkey", seed]);
    let text = |output: Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let without = text(cli.run(&["dlq", "list", "NONE_DLQ"]));
    assert!(without.contains("or with --nats-creds or --nats-nkey"), "{without}");
    let serve = text(cli.run(&["serve", "--embedded", "there", "--listen", "127.0.0.1:0", "--nats-nkey", seed]));
    assert!(serve.contains("--nats-nkey: the nats-server that --embedded starts asks for no login"), "{serve}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_letter_is_shown_to_who_has_the_key() {
    let cli = Cli::start();
    cli.expect(0, &["provision", "apply", "m.toml"]);
    for (directory, name, key) in [("keys", "2026-11", "AQEB"), ("others", "2026-12", "AgIC")] {
        std::fs::create_dir(cli.dir.path().join(directory)).expect("a directory");
        let key = format!("{}{}=", key.repeat(10), &key[..3]);
        std::fs::write(cli.dir.path().join(directory).join(name), key).expect("a file");
    }
    let keys = cli.dir.path().join("keys");
    let encrypt = Some(Keys::from_source(keys.to_str().expect("Unicode")).expect("keys"));
    let bridge = Bridge::connect(cli.server.url()).await.expect("connects");
    let publisher = bridge.publisher(PublishConfig { encrypt, ..PublishConfig::default() }).await.expect("a publisher");
    publisher.publish(Message::new("orders.new", "one tea").id("o-1")).await.expect("stored");
    let mut consumer = bridge.consume(ConsumeConfig::new("ORDERS", "billing")).await.expect("consumes");
    // Whoever has no keys gets it as it is.
    let delivery = consumer.next().await.expect("goes on").expect("a delivery");
    assert_ne!(&delivery.payload()[..], b"one tea");
    delivery.reject("cannot read it").await.expect("a dead letter");

    let show = ["dlq", "show", "ORDERS_DLQ", "1"];
    let shown = cli.expect(0, &show);
    assert!(shown.contains("encrypted:    under 2026-11\n") && !shown.contains("one tea"), "{shown}");
    let read = cli.expect(0, &[&show[..], &["--decrypt", "keys"]].concat());
    assert!(read.contains("encrypted:    under 2026-11\n") && read.ends_with("one tea\n"), "{read}");
    let refused = cli.run(&[&show[..], &["--decrypt", "others"]].concat());
    let err = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && err.contains("unknown key") && err.contains("key=2026-11"), "{err}");
}

#[test]
fn schemas_are_checked_and_registered_from_files() {
    let cli = Cli::start();
    let write = |name: &str, text: &str| std::fs::write(cli.dir.path().join(name), text).expect("a file");
    write("order.json", r#"{"type": "integer", "maximum": 9}"#);
    write("item.proto", "syntax = \"proto3\"; message Item { int32 n = 1; }");
    write("customer.avsc", r#"{"type": "record", "name": "C", "fields": [{"name": "id", "type": "int"}]}"#);
    // Nobody has made the registry, and nothing is made by looking.
    for arguments in [&["schema", "list"][..], &["schema", "check", "order.json"], &["schema", "show", "order"]] {
        let output = cli.run(arguments);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {err}");
        assert!(err.contains("no registry in bucket SCHEMAS") && err.contains("schema register"), "{err}");
    }
    let out =
        cli.expect(0, &["schema", "register", "order.json", "item.proto", "customer.avsc", "--subject", "orders.>"]);
    assert!(out.contains("item.proto: item is version 1"), "{out}");
    assert!(cli.expect(0, &["schema", "register", "order.json"]).contains("version 1, as before"));
    let listed = cli.json(0, &["schema", "list"]);
    let row = |index: usize| (listed[index]["name"].as_str(), listed[index]["format"].as_str());
    assert_eq!([row(0), row(1)], [(Some("customer"), Some("avro")), (Some("item"), Some("protobuf"))]);
    assert_eq!(listed[2]["subjects"][0], "orders.>");

    write("order.json", r#"{"type": "integer", "maximum": 8}"#);
    write("item.proto", "syntax = \"proto3\"; message Item { string n = 1; }");
    write("fine.json", "true");
    let out = cli.expect(1, &["schema", "check", "order.json", "item.proto", "fine.json"]);
    for part in
        ["order.json: /: MAXIMUM_DECREASED", "item.proto: /Item/n: FIELD_SAME_TYPE", "fine.json: fine is compatible"]
    {
        assert!(out.contains(part), "{part}: {out}");
    }
    let checked = cli.json(1, &["schema", "register", "fine.json", "order.json"]);
    assert_eq!(
        (&checked[0]["compatible"], &checked[1]["differences"][0]["rule"]),
        (&true.into(), &"MAXIMUM_DECREASED".into())
    );
    // One of them cannot be, so none is.
    assert_eq!(cli.json(0, &["schema", "list"]).as_array().map(Vec::len), Some(3));
    cli.expect(0, &["schema", "check", "order.json", "--compatibility", "none"]);
    assert!(cli.expect(0, &["schema", "show", "order"]).contains("\"maximum\": 9"));
    assert_eq!(cli.json(0, &["schema", "show", "item/1"])["format"], "protobuf");
    cli.expect(1, &["schema", "show", "order/7"]);

    write("old.json", r#"{"type": "integer", "maximum": 7}"#);
    cli.expect(0, &["schema", "check", "order.json", "--against", "old.json", "--nats", "nats://127.0.0.1:1"]);
    cli.expect(1, &["schema", "check", "order.json", "--against", "old.json", "--compatibility", "FULL"]);
    write("broken.proto", "syntax = \"proto3\";\nmessage A { B b = 1; }");
    for (arguments, part) in [
        (&["schema", "check", "broken.proto"][..], "broken.proto: "),
        (&["schema", "check", "gone.json"], "gone.json: "),
        (&["schema", "check", "m.toml"], "m.toml: --format"),
        (&["schema", "check", "order.json", "--against", "broken.proto"], "broken.proto: "),
        (&["schema", "show", "order/0"], "order/0"),
        (&["schema", "list", "--nats-creds", "a", "--nats-token-file", "b"], "--nats-token-file"),
        (&["schema", "list", "--nats-user", "a"], "--nats-password-file"),
        (&["schema", "list", "--nats-user", "a", "--nats-password-file", "gone"], "--nats-password-file gone"),
        (&["schema", "check", "order.json", "fine.json", "--name", "x"], "--name"),
        (&["schema", "check", "order.json", "--compatibility", "SIDEWAYS"], "SIDEWAYS"),
    ] {
        let output = cli.run(arguments);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(err.contains(part), "{arguments:?}: {err}");
    }
}

#[test]
fn settings_come_from_a_file_and_say_where_they_come_from() {
    let cli = Cli::start();
    let write = |text: &str| std::fs::write(cli.dir.path().join("c.toml"), text).expect("a file");
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_nats-bridge"))
            .args(arguments)
            .env_remove("NATS_URL")
            .envs(variables.iter().copied())
            .current_dir(cli.dir.path())
            .output()
            .expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let url = cli.server.url();
    write(&format!("nats = {url:?}\n\n[schema]\nbucket = \"MINE\"\njson = true\n"));
    std::fs::write(cli.dir.path().join("order.json"), "true").expect("a file");
    let (code, out, err) = run(&["--config", "c.toml", "schema", "register", "order.json"], &[]);
    assert_eq!(code, Some(0), "{err}");
    // The verb's own table, with its --json.
    assert!(out.contains("\"version\": 1") || out.contains("\"version\":1"), "{out}");
    let variable = [("NATS_BRIDGE_CONFIG", "c.toml")];
    let (code, out, _) = run(&["schema", "list"], &variable);
    assert!(code == Some(0) && out.contains("order"), "{out}");
    // The environment comes before the file, and a flag before both.
    let elsewhere = [("NATS_BRIDGE_CONFIG", "c.toml"), ("NATS_BRIDGE_SCHEMAS", "NONE")];
    let (code, _, err) = run(&["schema", "list"], &elsewhere);
    assert!(code == Some(1) && err.contains("NONE"), "{err}");
    assert_eq!(run(&["schema", "list", "--bucket", "MINE"], &elsewhere).0, Some(0));

    write("nats = \"nats://app:s3cret@a:1\"\n[serve]\nuser = [\"app:s3cret\"]\nconsumer_timeout = \"10m\"\n");
    let show = ["config", "show", "--origin", "serve", "--listen", "0.0.0.0:1"];
    let (code, out, err) = run(&show, &[("NATS_BRIDGE_CONFIG", "c.toml"), ("NATS_BRIDGE_VHOST", "v")]);
    assert_eq!(code, Some(0), "{err}");
    let row = |flag: &str| {
        let line = out.lines().find(|line| line.split_whitespace().next() == Some(flag)).expect(flag);
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!([row("listen"), row("vhost"), row("consumer_timeout")], ["0.0.0.0:1 flag", "v environment", "10m file"]);
    assert_eq!([row("user"), row("replicas")], ["app:*** file", "1 default"]);
    assert!(row("nats").ends_with(" file") && !out.contains("s3cret"), "{out}");
    let (_, out, _) = run(&["config", "show", "--redact=false", "--json", "serve"], &variable);
    assert!(out.contains("app:s3cret"), "{out}");
    let (code, out, err) = run(&["config", "check"], &variable);
    assert!(code == Some(0) && out.contains("c.toml is legal (serve)"), "{out}{err}");
    for (text, part) in [
        ("[serve]\nlisen = 1", "serve.lisen: the verb has no such flag"),
        ("[serve]\nconsumer_timeout = \"10\"", "serve.consumer_timeout: "),
        ("[serve]\nlisten = 5672", "serve.listen: invalid value '5672'"),
        ("[sidecar]\nhttp = \":1\"", "sidecar.http: invalid value ':1'"),
        ("listen = 5672", "c.toml: listen: invalid value '5672'"),
        ("log_format = \"xml\"", "c.toml: log_format: invalid value 'xml'"),
        ("[dlq]\nlimit = \"few\"", "dlq.limit: invalid value 'few'"),
        ("[serve]\nuser = \"app\"", "serve: --user: NAME:PASSWORD is expected"),
        ("[serve]\nuser_file = \"gone\"", "--user-file gone"),
        ("[serve]\nnats_creds = \"a\"\nnats_nkey = \"b\"", "--nats-"),
        ("[serve]\nshared = \"maybe\"", "shared: true or false"),
        ("[serve\n", "c.toml: "),
    ] {
        write(text);
        let (code, out, err) = run(&["config", "check"], &variable);
        assert!(code == Some(2) && err.contains("c.toml: ") && err.contains(part), "{text}: {out}{err}");
    }
    write("[serve]\nreplicas = 1\n");
    for (name, value, told) in [
        ("NATS_BRIDGE_REPLICAS", "9", "$NATS_BRIDGE_REPLICAS, for serve: invalid value '9'"),
        ("NATS_BRIDGE_LOG_FORMAT", "xml", "$NATS_BRIDGE_LOG_FORMAT, for "),
    ] {
        for verb in [&["config", "check"][..], &["serve", "--embedded", "there"]] {
            let (code, _, err) = run(&[verb, &["--config", "c.toml"]].concat(), &[(name, value)]);
            assert!(code == Some(2) && err.contains(told), "{told}: {err}");
        }
    }
    assert_eq!(run(&["config", "check"], &variable).0, Some(0));
    // Before the verb and behind it.
    for show in [&["config", "show", "--json", "serve"][..], &["config", "show", "serve", "--json", "--origin"]] {
        let (code, out, err) = run(show, &variable);
        let all: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{show:?}: {e}: {out}{err}"));
        let replicas = all.as_array().and_then(|all| all.iter().find(|one| one["flag"] == "replicas")).expect("a flag");
        assert_eq!((code, &replicas["value"]), (Some(0), &Value::from("1")), "{show:?}");
        assert_eq!(replicas["origin"] == "file", show.contains(&"--origin"), "{replicas}");
    }
    let (code, _, err) = run(&["config", "show", "serve", "--lisen", "a:1"], &variable);
    assert!(code == Some(2) && err.contains("serve has no flag --lisen"), "{err}");
    assert!(run(&["config", "check", "--config", "gone.toml"], &[]).2.contains("gone.toml: "));
    assert!(run(&["config", "check"], &[]).2.contains("--config is needed"));
}
