//! The verbs against the real sidecar, between a real RabbitMQ and a real NATS.

use std::process::{Child, Command, Stdio};

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
        let ready = tempfile::tempdir().expect("created");
        let process = nats_bridge()
            .args(["sidecar", "--rabbit", &rabbit.url(), "--nats", &nats.url()])
            .args(["--rabbit-management", &rabbit.management_url()])
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ready-file"])
            .arg(ready.path().join("ready.json"))
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
        (&["weight", "5", "--by", "ann", "--reason", "first"], "canary", 5),
        (&["weight", "100"], "cutover", 100),
        (&["rollback"], "shadow", 0),
        (&["weight", "100"], "cutover", 100),
        (&["detach"], "native", 100),
    ] {
        let (code, adopted) = sidecar.verb(words);
        assert_eq!(code, 0, "{words:?}: {adopted}");
        assert_eq!((&adopted["phase"], &adopted["weight_percent"]), (&phase.into(), &weight.into()));
        assert!(adopted["took_ms"].as_u64().expect("a number") < 1000, "{words:?}: {adopted}");
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
