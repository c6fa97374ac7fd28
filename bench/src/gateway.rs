//! A `nats-bridge serve --embedded` process to measure, in a directory of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The running listener; it is stopped when this is dropped.
pub struct Gateway {
    child: Child,
    address: String,
    nats: String,
    _dir: TempDir,
}

impl Gateway {
    /// Starts the `nats-bridge` binary that was built beside this one and waits until it accepts connections.
    ///
    /// `sync` is nats-server's `sync_interval`.
    ///
    /// # Errors
    /// When the binary is missing, exits, or is not ready within 30 s.
    pub fn start(sync: Option<&str>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let dir = TempDir::new()?;
        let ready = dir.path().join("ready.json");
        let mut command = Command::new(binary()?);
        if let Some(sync) = sync {
            command.args(["serve", "--sync", sync]);
        } else {
            command.arg("serve");
        }
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--embedded"])
            .arg(dir.path().join("data"))
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .env("RUST_LOG", "warn")
            .spawn()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(text) = std::fs::read_to_string(&ready)
                && let Ok(json) = serde_json::from_str::<serde_json::Value>(&text)
                && let (Some(address), Some(nats)) = (json["listen"].as_str(), json["nats"].as_str())
            {
                let (address, nats) = (address.to_owned(), nats.to_owned());
                return Ok(Self { child, address, nats, _dir: dir });
            }
            if let Some(status) = child.try_wait()? {
                return Err(format!("nats-bridge serve ended with {status} before it was ready").into());
            }
            if Instant::now() > deadline {
                child.kill()?;
                return Err("nats-bridge serve was not ready within 30 s".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The URL of its nats-server.
    pub fn nats_url(&self) -> String {
        self.nats.clone()
    }

    /// Its process; nats-server is its child.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its AMQP URL.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address)
    }
}

impl Drop for Gateway {
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

fn binary() -> Result<PathBuf, Box<dyn std::error::Error + Send + Sync>> {
    let here = std::env::current_exe()?;
    let path = here.with_file_name("nats-bridge");
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is missing: `cargo xtask bench` builds it", path.display()).into())
    }
}
