//! A process to measure, mostly `nats-bridge`, in a directory of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// The running program; it is stopped when this is dropped.
pub struct Program {
    child: Child,
    ready: Value,
    dir: TempDir,
}

impl Program {
    /// Starts `nats-bridge serve --embedded`; `sync` is nats-server's `sync_interval`.
    ///
    /// # Errors
    /// When the binary is missing, exits, or is not ready within 30 s.
    pub fn serve(sync: Option<&str>) -> Result<Self, AnyError> {
        let dir = TempDir::new()?;
        let mut command = Command::new(binary()?);
        command.args(["serve", "--listen", "127.0.0.1:0", "--embedded"]).arg(dir.path().join("data"));
        if let Some(sync) = sync {
            command.args(["--sync", sync]);
        }
        Self::start(command, dir)
    }

    /// Starts `nats-bridge serve` on a NATS that runs; `nats` is its URL, or those of its servers.
    ///
    /// # Errors
    /// As [`Program::serve`].
    pub fn serve_on(nats: &str) -> Result<Self, AnyError> {
        let mut command = Command::new(binary()?);
        command.args(["serve", "--listen", "127.0.0.1:0", "--nats", nats]);
        Self::start(command, TempDir::new()?)
    }

    /// Starts `nats-bridge sidecar` between two brokers.
    ///
    /// # Errors
    /// As [`Program::serve`].
    pub fn sidecar(rabbit: &str, nats: &str) -> Result<Self, AnyError> {
        let mut command = Command::new(binary()?);
        command.args(["sidecar", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--trust-declared"]);
        command.args(["--rabbit", rabbit, "--nats", nats]);
        Self::start(command, TempDir::new()?)
    }

    /// Starts `bench forward` before a broker; `to` is its HOST:PORT.
    ///
    /// # Errors
    /// As [`Program::serve`].
    pub fn forward(to: &str) -> Result<Self, AnyError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["forward", "--to", to]);
        Self::start(command, TempDir::new()?)
    }

    fn start(mut command: Command, dir: TempDir) -> Result<Self, AnyError> {
        let ready = dir.path().join("ready.json");
        command.arg("--ready-file").arg(&ready).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.env("RUST_LOG", "error").spawn()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(text) = std::fs::read_to_string(&ready)
                && let Ok(ready) = serde_json::from_str(&text)
            {
                return Ok(Self { child, ready, dir });
            }
            if let Some(status) = child.try_wait()? {
                return Err(format!("{command:?} ended with {status} before it was ready").into());
            }
            if Instant::now() > deadline {
                child.kill()?;
                return Err(format!("{command:?} was not ready within 30 s").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it by a verb of the command line.
    ///
    /// # Errors
    /// What the command wrote, when it failed.
    pub fn verb(&self, verb: &str) -> Result<(), AnyError> {
        let mut command = Command::new(binary()?);
        let done = command.arg(verb).arg("--ready-file").arg(self.dir.path().join("ready.json")).output()?;
        match done.status.success() {
            true => Ok(()),
            false => Err(format!("nats-bridge {verb}: {}", String::from_utf8_lossy(&done.stderr)).into()),
        }
    }

    /// The URL of its nats-server, where it has one.
    pub fn nats_url(&self) -> Option<String> {
        Some(self.ready["nats"].as_str()?.to_owned())
    }

    /// Its process; an embedded nats-server is its child.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The AMQP URL of a vhost of it.
    pub fn url_for(&self, vhost: &str) -> String {
        let address = self.ready["listen"].as_str().unwrap_or_default();
        format!("amqp://guest:guest@{address}/{}", vhost.replace('/', "%2f"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SIGTERM lets it stop its nats-server; the kill is for one that does not listen.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> Result<PathBuf, AnyError> {
    let here = std::env::current_exe()?;
    let path = here.with_file_name("nats-bridge");
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is missing: `cargo xtask bench` builds it", path.display()).into())
    }
}
