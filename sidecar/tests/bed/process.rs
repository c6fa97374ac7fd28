//! The sidecar as a process of its own, and its verbs.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use test_support::eventually::eventually;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// How long a verb may take; the longest waits of its own are of a minute.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running sidecar; killed when dropped.
pub struct Process {
    process: Child,
    pub ready: tempfile::TempDir,
}

impl Process {
    pub fn start(rabbit: &RabbitMq, nats: &NatsServer) -> Self {
        Self::start_with(rabbit, nats, &[])
    }

    pub fn start_with(rabbit: &RabbitMq, nats: &NatsServer, more: &[&str]) -> Self {
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

    /// What its ready file says.
    pub fn said(&self, name: &str) -> String {
        let text = std::fs::read(self.ready.path().join("ready.json")).expect("there");
        let value: Value = serde_json::from_slice(&text).expect("JSON");
        value[name].as_str().expect("said").to_owned()
    }

    /// `kill -9`.
    pub fn kill_9(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ended");
    }

    /// SIGTERM; waits for its end.
    pub fn terminate(mut self) {
        let status = Command::new("kill").arg("-TERM").arg(self.process.id().to_string()).status();
        assert!(status.expect("it runs").success());
        assert!(self.process.wait().expect("it ended").success());
    }

    /// Runs a verb, and gives its exit code and the JSON that it printed.
    pub fn verb(&self, words: &[&str]) -> (i32, Value) {
        let verb = nats_bridge()
            .args(words)
            .args(["--json", "--ready-file"])
            .arg(self.ready.path().join("ready.json"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let (id, (told, ended)) = (verb.id(), mpsc::channel());
        std::thread::spawn(move || told.send(verb.wait_with_output()));
        let Ok(output) = ended.recv_timeout(PATIENCE) else {
            let _ = Command::new("kill").arg(id.to_string()).status();
            panic!("{words:?} has not ended after {PATIENCE:?}");
        };
        let output = output.expect("it ended");
        let text = String::from_utf8_lossy(&output.stderr);
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{words:?}: {e}: {text}"));
        (output.status.code().expect("not killed"), value)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn nats_bridge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nats-bridge"));
    command.env_remove("NATS_BRIDGE_HTTP").env_remove("NATS_BRIDGE_HTTP_TOKEN");
    command
}
