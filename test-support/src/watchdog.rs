//! Ends a server that a test has started when the test process itself ends in whatever way.

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Watches over a server until it is released. Its stdin is closed when this process ends: then it kills the server.
pub(crate) struct Watchdog(Option<Child>);

impl Watchdog {
    /// SIGINT, a second later SIGKILL; then `dir` is removed.
    pub fn over(pid: u32, dir: &Path) -> Watchdog {
        let script = "read line; kill -INT $1 2>/dev/null; sleep 1; kill -9 $1 2>/dev/null; rm -rf \"$2\"";
        let watchdog = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(pid.to_string())
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Watchdog(watchdog.ok())
    }

    /// Before the server is gone: its id may belong to another process afterwards.
    pub fn release(self) {
        if let Some(mut watchdog) = self.0 {
            let _ = watchdog.kill();
            let _ = watchdog.wait();
        }
    }
}
