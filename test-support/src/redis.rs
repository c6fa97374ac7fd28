//! A real Redis: a free loopback port, a directory of its own, stopped when dropped.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::ports;
use crate::watchdog::Watchdog;

/// A running Redis that writes everything it has confirmed to its file. Dropping it kills it and removes its directory; when the
/// test process itself is killed, a watchdog does the same.
pub struct Redis {
    dir: tempfile::TempDir,
    port: u16,
    server: Option<(Child, Watchdog)>,
}

impl Redis {
    /// Starts it with further settings, such as `["--maxmemory", "10mb"]`, and waits (at most 30 s) until it takes connections.
    ///
    /// # Panics
    /// When Redis is not installed or does not come up.
    pub fn start(settings: &[&str]) -> Redis {
        let dir = tempfile::Builder::new().prefix("redis-").tempdir().expect("a temporary directory");
        let port = *ports::free(1).expect("a free port").first().expect("a free port");
        let mut redis = Redis { dir, port, server: None };
        redis.spawn(settings);
        redis
    }

    /// Its URL: `redis://127.0.0.1:PORT/`. It stays the same over a restart.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Kills it at once (SIGKILL).
    pub fn kill_9(&mut self) {
        let Some((mut child, watchdog)) = self.server.take() else { return };
        watchdog.release();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Starts it again on the same port and the same data; kills it first if it runs.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.kill_9();
        self.spawn(&[]);
    }

    fn spawn(&mut self, settings: &[&str]) {
        let program = find().unwrap_or_else(|e| panic!("{e}"));
        let child = Command::new(program)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--appendonly", "yes"])
            .args(["--save", "", "--dir"])
            .arg(self.dir.path())
            .args(settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let watchdog = Watchdog::over(child.id(), self.dir.path());
        let (child, _) = self.server.insert((child, watchdog));
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = child.try_wait().expect("its state can be asked for");
            assert!(ended.is_none() && Instant::now() < deadline, "redis-server does not come up: {ended:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill_9();
    }
}

/// Finds `redis-server` on the `PATH`.
///
/// # Errors
/// A text that says how to install it.
pub fn find() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("redis-server"))
        .find(|program| program.is_file())
        .ok_or_else(|| "no Redis found: run `cargo xtask tools`, or install it (`apt install redis-server`)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_on_the_same_port_and_leaves_nothing() {
        let mut redis = Redis::start(&[]);
        let (port, dir) = (redis.port, redis.dir.path().to_owned());
        redis.kill_9();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        redis.restart();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
        drop(redis);
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err() && !dir.exists());
    }
}
