//! The page in a real Chromium, over a real sidecar between a real RabbitMQ and a real JetStream: `tests/page`.

mod bed;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bed::traffic;
use serde_json::Value;
use test_support::eventually::eventually;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// A running sidecar; killed when dropped.
struct Sidecar {
    process: Child,
    http: String,
    amqp: String,
    _ready: tempfile::TempDir,
}

impl Sidecar {
    fn start(rabbit: &RabbitMq, nats: &NatsServer, more: &[&str]) -> Self {
        let ready = tempfile::tempdir().expect("created");
        let file = ready.path().join("ready.json");
        let process = Command::new(env!("CARGO_BIN_EXE_nats-bridge"))
            .args(["sidecar", "--rabbit", &rabbit.url(), "--nats", &nats.url(), "--trust-declared"])
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ready-file"])
            .arg(&file)
            .args(more)
            .env_remove("NATS_BRIDGE_HTTP_TOKEN")
            .env_remove("NATS_BRIDGE_RABBIT_MANAGEMENT")
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut sidecar = Self { process, http: String::new(), amqp: String::new(), _ready: ready };
        eventually("the sidecar is ready", || file.exists());
        let ready: Value = serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("JSON");
        sidecar.http = format!("http://{}/", ready["http"].as_str().expect("an address"));
        sidecar.amqp = format!("amqp://guest:guest@{}/%2f", ready["listen"].as_str().expect("an address"));
        sidecar
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Chromium, if the system has one.
fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|file| file.is_file())
}

/// Runs a file of `tests/page` with node.
fn browse(file: &str, sidecar: &Sidecar, token: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/page");
    static PACKAGES: std::sync::Once = std::sync::Once::new();
    PACKAGES.call_once(|| {
        let wanted = ["playwright-core", "axe-core"].map(|package| dir.join("node_modules").join(package));
        if !wanted.iter().all(|package| package.is_dir()) {
            let installed = Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&dir).status();
            assert!(installed.is_ok_and(|status| status.success()), "npm ci in {} failed", dir.display());
        }
    });
    let output = Command::new("node")
        .args(["--test", "--test-timeout=120000", file])
        .current_dir(&dir)
        .env("PAGE_URL", &sidecar.http)
        .env("PAGE_TOKEN", token)
        .env("CHROMIUM", chromium().expect("looked for before"))
        .output()
        .expect("node runs");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{file} failed:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn no_chromium() -> bool {
    let missing = chromium().is_none();
    if missing {
        eprintln!("SKIPPED: no chromium is installed (Debian: apt-get install chromium; or CHROMIUM=FILE)");
    }
    missing
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_an_open_sidecar_answers_changes_and_can_be_used_by_everybody() {
    if no_chromium() {
        return;
    }
    let (rabbit, nats) =
        tokio::task::spawn_blocking(|| (RabbitMq::start(), NatsServer::start())).await.expect("started");
    let sidecar = Sidecar::start(
        &rabbit,
        &nats,
        &["--gate-soak", "10s", "--gate-messages", "20", "--gate-latency-factor", "1000"],
    );
    let stop = Arc::new(AtomicBool::new(false));
    let flowing = tokio::spawn(traffic(sidecar.amqp.clone(), Arc::clone(&stop)));
    let sidecar = Arc::new(sidecar);
    let opened = Arc::clone(&sidecar);
    let browsed = tokio::task::spawn_blocking(move || browse("open.test.mjs", &opened, "")).await;
    stop.store(true, Ordering::Relaxed);
    browsed.expect("the page is right");
    flowing.await.expect("the applications noticed nothing");
}

#[test]
fn the_page_of_a_sidecar_with_a_token_is_read_only_without_it() {
    if no_chromium() {
        return;
    }
    let (rabbit, nats) = (RabbitMq::start(), NatsServer::start());
    let token = tempfile::NamedTempFile::new().expect("created");
    std::fs::write(token.path(), "s3cret\n").expect("written");
    let file = token.path().to_str().expect("text");
    let sidecar = Sidecar::start(&rabbit, &nats, &["--http-token-file", file]);
    browse("token.test.mjs", &sidecar, "s3cret");
}
