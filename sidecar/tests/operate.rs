//! The verbs against the real sidecar, between a real RabbitMQ and a real NATS.

mod bed;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use test_support::eventually::eventually;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// A running sidecar; killed when dropped.
struct Sidecar {
    process: Child,
    ready: tempfile::TempDir,
}

impl Sidecar {
    fn start(rabbit: &RabbitMq, nats: &NatsServer) -> Self {
        Self::start_with(rabbit, nats, &[])
    }

    fn start_with(rabbit: &RabbitMq, nats: &NatsServer, more: &[&str]) -> Self {
        let ready = tempfile::tempdir().expect("created");
        let process = nats_bridge()
            .args(["sidecar", "--rabbit", &rabbit.url(), "--nats", &nats.url()])
            .args(["--rabbit-management", &rabbit.management_url()])
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ready-file"])
            .arg(ready.path().join("ready.json"))
            .args(more)
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let sidecar = Self { process, ready };
        eventually("the sidecar is ready", || sidecar.ready.path().join("ready.json").exists());
        sidecar
    }

    /// Runs a verb, and gives its exit code and the JSON that it printed.
    fn verb(&self, words: &[&str]) -> (i32, Value) {
        let output = nats_bridge()
            .args(words)
            .args(["--json", "--ready-file"])
            .arg(self.ready.path().join("ready.json"))
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{words:?}: {e}: {text}"));
        (output.status.code().expect("not killed"), value)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn nats_bridge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nats-bridge"));
    command.env_remove("NATS_BRIDGE_HTTP").env_remove("NATS_BRIDGE_HTTP_TOKEN");
    command
}

#[test]
fn an_operator_goes_there_and_back_and_is_stopped_where_it_would_lose_something() {
    let (rabbit, nats) = (RabbitMq::start(), NatsServer::start());
    let sidecar = Sidecar::start(&rabbit, &nats);
    let (code, status) = sidecar.verb(&["status"]);
    assert_eq!((code, &status["phase"], &status["weight_percent"]), (0, &"observe".into(), &0.into()));
    for side in ["rabbit", "nats"] {
        assert_eq!(status["sides"][side]["connected"], true, "{status}");
        assert!(!status["sides"][side]["url"].as_str().expect("a text").contains("guest"), "{status}");
    }
    // Not before anything was compared.
    let (code, refused) = sidecar.verb(&["weight", "5"]);
    assert_eq!((code, &refused["code"]), (1, &"wrong_phase".into()));
    let mut epoch = status["epoch"].as_u64().expect("a number");
    for (words, phase, weight) in [
        (&["shadow"][..], "shadow", 0),
        (&["weight", "5", "--by", "ann", "--reason", "first", "--force"], "canary", 5),
        (&["weight", "100", "--force"], "cutover", 100),
        (&["rollback"], "shadow", 0),
        (&["weight", "100", "--force"], "cutover", 100),
        (&["detach"], "native", 100),
    ] {
        let (code, adopted) = sidecar.verb(words);
        assert_eq!(code, 0, "{words:?}: {adopted}");
        assert_eq!((&adopted["phase"], &adopted["weight_percent"]), (&phase.into(), &weight.into()));
        assert!(adopted["took_ms"].as_u64().expect("a number") < 1000, "{words:?}: {adopted}");
        if phase == "shadow" {
            // No data is not parity.
            let (code, gate) = sidecar.verb(&["gate"]);
            assert_eq!((code, &gate["may_go_on"]), (1, &false.into()), "{gate}");
            let (code, refused) = sidecar.verb(&["weight", "5"]);
            assert_eq!((code, &refused["code"]), (1, &"gate".into()), "{refused}");
            let codes: Vec<_> = refused["gate"].as_array().expect("reasons").iter().map(|r| &r["code"]).collect();
            assert_eq!(codes, ["too_soon", "too_few"], "{refused}");
        }
        let grown = adopted["epoch"].as_u64().expect("a number");
        assert!(grown > epoch, "{words:?}: {adopted}");
        epoch = grown;
        let (_, status) = sidecar.verb(&["status"]);
        assert_eq!((&status["phase"], &status["epoch"]), (&phase.into(), &epoch.into()));
        if phase == "canary" {
            assert_eq!((&status["by"], &status["reason"]), (&"ann".into(), &"first".into()));
        }
        // Said twice, it is done once.
        let (code, again) = sidecar.verb(words);
        assert_eq!((code, &again["changed"]), (0, &false.into()), "{words:?}");
    }
    let (code, refused) = sidecar.verb(&["rollback"]);
    assert_eq!((code, &refused["code"]), (1, &"wrong_phase".into()));
}

/// The traffic of two applications, until it is told to stop.
fn traffic(sidecar: &Sidecar) -> (Arc<AtomicBool>, std::thread::JoinHandle<()>) {
    let text = std::fs::read(sidecar.ready.path().join("ready.json")).expect("read");
    let ready: Value = serde_json::from_slice(&text).expect("JSON");
    let amqp = format!("amqp://guest:guest@{}/%2f", ready["listen"].as_str().expect("an address"));
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let flowing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(bed::traffic(amqp, told));
    });
    (stop, flowing)
}

#[test]
fn promote_takes_real_traffic_to_the_end_while_the_gate_says_yes_and_back_when_it_says_no() {
    let (rabbit, nats) = (RabbitMq::start(), NatsServer::start());
    let more = ["--gate-soak", "1s", "--gate-messages", "20", "--gate-latency-factor", "1000"];
    let sidecar = Sidecar::start_with(&rabbit, &nats, &more);
    let (stop, flowing) = traffic(&sidecar);
    assert_eq!(sidecar.verb(&["promote"]).0, 1, "nothing was compared");
    assert_eq!(sidecar.verb(&["shadow"]).0, 0);
    let (code, ended) = sidecar.verb(&["promote", "--auto", "--steps", "25,50,100", "--soak", "1s"]);
    assert_eq!((code, &ended["arrived"], &ended["phase"]), (0, &true.into(), &"cutover".into()), "{ended}");
    let weights: Vec<_> = ended["steps"].as_array().expect("steps").iter().map(|s| &s["weight_percent"]).collect();
    assert_eq!(weights, [25, 50, 100], "{ended}");
    assert_eq!(ended["gate"]["may_go_on"], true, "{ended}");
    let (_, status) = sidecar.verb(&["status"]);
    assert_eq!(status["faults"], serde_json::json!({ "corrupted": 0, "dropped": 0, "reordered": 0, "duplicated": 0 }));

    // Something that JetStream does not have turns up on the way: back to RabbitMQ.
    assert_eq!(sidecar.verb(&["rollback"]).0, 0);
    let policy = r#"{"pattern":".*","definition":{"max-length":5000}}"#;
    let (code, ended) = {
        eventually("the gate says yes", || sidecar.verb(&["gate"]).0 == 0);
        assert_eq!(sidecar.verb(&["weight", "5"]).0, 0);
        assert_eq!(rabbit.api("PUT", "/api/policies/%2f/short", policy).expect("answers").0, 201);
        sidecar.verb(&["promote", "--auto", "--soak", "1s"])
    };
    assert_eq!((code, &ended["arrived"], &ended["rolled_back"]), (1, &false.into(), &true.into()), "{ended}");
    let because = ended["because"].as_str().expect("a reason");
    assert!(because.contains("policy short"), "{because}");
    let (_, status) = sidecar.verb(&["status"]);
    assert_eq!((&status["phase"], &status["weight_percent"]), (&"shadow".into(), &0.into()), "{status}");
    assert!(status["reason"].as_str().is_some_and(|reason| reason.starts_with("promote: ")), "{status}");
    stop.store(true, Ordering::Relaxed);
    flowing.join().expect("the applications noticed nothing");
}
