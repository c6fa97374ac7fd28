//! `serve --management` as a process, HTTP by hand, and RabbitMQ's own tool.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use test_support::rabbit::RabbitMq;

pub struct Serve {
    child: Child,
    pub ready: Value,
    pub dir: tempfile::TempDir,
}

impl Serve {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Started with more arguments.
    pub fn with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = dir.path().join("store");
        Self::of(dir, &store, arguments)
    }

    /// Started over a store that is there, or is made.
    pub fn of(dir: tempfile::TempDir, store: &Path, arguments: &[&str]) -> Self {
        let file = dir.path().join("ready.json");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_nats-bridge"))
            .args(["serve", "--listen", "127.0.0.1:0", "--management", "127.0.0.1:0", "--embedded"])
            .arg(store)
            .arg("--ready-file")
            .arg(&file)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("started");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(text) = std::fs::read(&file) {
                return Self { child, ready: serde_json::from_slice(&text).expect("written whole"), dir };
            }
            assert!(child.try_wait().expect("asked").is_none(), "it ended");
            assert!(Instant::now() < deadline, "not ready in time");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it, and leaves its files.
    pub fn stop(mut self) -> tempfile::TempDir {
        self.end();
        std::mem::replace(&mut self.dir, tempfile::tempdir().expect("a directory"))
    }

    fn end(&mut self) {
        let _ = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(self.dir.path().join("ready.json"));
    }

    pub fn port(&self) -> u16 {
        let address = self.ready["management"].as_str().expect("an address");
        address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    pub fn api(&self) -> Api {
        Api { port: self.port(), login: "guest:guest" }
    }

    pub fn amqp(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.ready["listen"].as_str().expect("an address"))
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.end();
        }
    }
}

/// An HTTP API, ours or RabbitMQ's.
#[derive(Clone, Copy)]
pub struct Api {
    pub port: u16,
    pub login: &'static str,
}

impl Api {
    pub fn of(rabbit: &RabbitMq) -> Self {
        let port = rabbit.management_url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        Self { port, login: "guest:guest" }
    }

    /// Status, head and body of an answer.
    pub fn raw(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, Vec<u8>) {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).expect("connected");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        let authorization = match self.login {
            "" => String::new(),
            login => format!("Authorization: Basic {}\r\n", STANDARD.encode(login)),
        };
        // HTTP/1.0: no chunks.
        let head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n{authorization}{headers}");
        let length = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        socket.write_all(format!("{head}{length}{body}").as_bytes()).expect("sent");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("an answer");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an end of the head");
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head, answer[end + 4..].to_vec())
    }

    pub fn text(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, _, body) = self.raw(method, &format!("/api{path}"), "", body);
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub fn send(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.text(method, path, &body.to_string())
    }

    pub fn get(&self, path: &str) -> Value {
        let (status, document) = self.text("GET", path, "");
        assert_eq!(status, 200, "{path}: {document}");
        document
    }
}

/// `rabbitmqadmin`, as RabbitMQ's own node gives it out.
pub struct Admin<'a> {
    pub script: &'a Path,
    pub api: Api,
}

impl Admin<'_> {
    pub fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new("python3")
            .arg(self.script)
            .args(["-H", "127.0.0.1", "-P", &self.api.port.to_string(), "-f", "tsv"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("python3 runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).expect("UTF-8"))
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let (ok, text) = self.run(arguments);
        assert!(ok, "{arguments:?}: {text}");
        text
    }
}

pub fn script(rabbit: &RabbitMq, dir: &Path) -> std::path::PathBuf {
    let (status, _, text) = Api::of(rabbit).raw("GET", "/cli/rabbitmqadmin", "", "");
    assert_eq!(status, 200);
    let file = dir.join("rabbitmqadmin");
    std::fs::write(&file, text).expect("written");
    file
}
