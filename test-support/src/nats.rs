//! A real nats-server with JetStream: free loopback ports, a directory of its own, stopped when dropped.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::ports;
use crate::signal::{freeze, signal};

/// A running nats-server. Dropping it stops the process and removes its directory (unless the directory was given).
pub struct NatsServer {
    plan: Builder,
    child: Option<Child>,
    dir: PathBuf,
    port: u16,
    monitor_port: u16,
    starts: u32,
    // Removes the directory when the server is dropped; `None` when the caller gave the directory.
    _temp: Option<tempfile::TempDir>,
}

/// How a server is to be started; see [`NatsServer::builder`].
#[derive(Debug, Clone, Default)]
pub struct Builder {
    binary: Option<PathBuf>,
    dir: Option<PathBuf>,
    port: Option<u16>,
    lines: Vec<String>,
    jetstream: String,
}

impl Builder {
    /// Uses this binary instead of searching (`$NATS_SERVER`, `.tools/nats-server`, `PATH`).
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Keeps configuration, log and JetStream store in this directory, which is created and never removed.
    pub fn dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.dir = Some(path.into());
        self
    }

    /// Listens for clients on this port instead of a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Adds one line (or block) to the configuration file, such as `max_payload: 8MB`.
    pub fn config_line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Adds to the block `jetstream` of the configuration, such as `max_file_store: 8MB`.
    pub fn jetstream(mut self, setting: &str) -> Self {
        self.jetstream.push_str(", ");
        self.jetstream.push_str(setting);
        self
    }

    /// Starts the server and waits (at most 60 s) until it answers with JetStream enabled.
    ///
    /// # Panics
    /// With the server's log when it does not come up; see [`Builder::try_start`].
    pub fn start(self) -> NatsServer {
        self.try_start().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts the server and waits (at most 60 s) until it answers with JetStream enabled.
    ///
    /// # Errors
    /// A text for people: no binary was found, or the end of the server's log.
    pub fn try_start(self) -> Result<NatsServer, String> {
        let (dir, temp) = match &self.dir {
            Some(dir) => {
                fs::create_dir_all(dir).map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
                (dir.clone(), None)
            }
            None => {
                let temp = tempfile::Builder::new()
                    .prefix("nats-server-")
                    .tempdir()
                    .map_err(|e| format!("cannot create a temporary directory: {e}"))?;
                (temp.path().to_path_buf(), Some(temp))
            }
        };
        let ports = ports::free(2).map_err(|e| format!("no free ports: {e}"))?;
        let (port, monitor_port) = (self.port.unwrap_or(ports[0]), ports[1]);
        let mut server = NatsServer { plan: self, child: None, dir, port, monitor_port, starts: 0, _temp: temp };
        server.spawn()?;
        Ok(server)
    }
}

impl NatsServer {
    /// Starts a server with JetStream in a temporary directory, on free ports of 127.0.0.1.
    ///
    /// # Panics
    /// When no binary is found or the server does not come up within 60 s.
    pub fn start() -> NatsServer {
        Builder::default().start()
    }

    /// Options for a server: binary, directory, port, extra configuration lines.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The client URL, `nats://127.0.0.1:PORT`. It stays the same over [`NatsServer::restart`].
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port for clients.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The monitoring URL, `http://127.0.0.1:PORT` (`/varz`, `/jsz`, `/connz`, `/healthz`).
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor_port)
    }

    /// The directory with configuration, log (`server.log`) and JetStream store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The process id of the running server.
    ///
    /// # Panics
    /// When it was stopped or killed and not restarted.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server is running").id()
    }

    /// What the server has logged so far, all starts together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("server.log")).unwrap_or_default()
    }

    /// Reads one path of the monitoring endpoint, such as `/jsz?streams=true`, and gives the body.
    ///
    /// # Errors
    /// When the server does not answer within 2 s, or not with 200.
    pub fn monitor(&self, path: &str) -> io::Result<String> {
        monitor(self.monitor_port, path)
    }

    /// Kills the server at once (SIGKILL) and waits until the process is gone.
    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Freezes the process (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&self) {
        freeze(self.pid());
    }

    /// Lets a frozen process go on (SIGCONT).
    pub fn resume(&self) {
        signal(self.pid(), "CONT");
    }

    /// Stops the server with SIGTERM and waits; SIGKILL after 10 s.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        signal(child.id(), "CONT");
        signal(child.id(), "TERM");
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Starts the server again on the same ports and the same store; stops it first if it runs.
    ///
    /// # Panics
    /// When it does not come up within 60 s.
    pub fn restart(&mut self) {
        self.stop();
        self.spawn().unwrap_or_else(|e| panic!("{e}"));
    }

    fn spawn(&mut self) -> Result<(), String> {
        let binary = match &self.plan.binary {
            Some(path) => path.clone(),
            None => find_binary()?,
        };
        self.starts += 1;
        let ports_dir = self.dir.join(format!("ports-{}", self.starts));
        fs::create_dir_all(&ports_dir).map_err(|e| format!("cannot create {}: {e}", ports_dir.display()))?;
        let config = self.dir.join("server.conf");
        self.write_config(&config, &ports_dir).map_err(|e| format!("cannot write {}: {e}", config.display()))?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("server.log"))
            .map_err(|e| format!("cannot open the log: {e}"))?;
        let child = Command::new(&binary)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", binary.display()))?;
        self.child = Some(child);
        let came_up = self.wait_until_ready(&ports_dir, Instant::now() + Duration::from_secs(60));
        let _ = fs::remove_dir_all(&ports_dir);
        came_up.map_err(|why| {
            self.kill_9();
            let log = self.log();
            let end: Vec<&str> = log.lines().rev().take(15).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            format!("{} did not come up: {why}\n{}", binary.display(), end.join("\n"))
        })
    }

    fn write_config(&self, path: &Path, ports_dir: &Path) -> io::Result<()> {
        let mut text = String::new();
        text.push_str("host: 127.0.0.1\n");
        text.push_str(&format!("port: {}\n", self.port));
        text.push_str(&format!("http: \"127.0.0.1:{}\"\n", self.monitor_port));
        text.push_str(&format!("ports_file_dir: {}\n", quoted(ports_dir)));
        // Else the server takes three quarters of what the disk has left, and refuses streams that reserve more.
        let most = if self.plan.jetstream.contains("max_file_store") { "" } else { ", max_file_store: 64GB" };
        text.push_str(&format!(
            "jetstream {{ store_dir: {}{most}{} }}\n",
            quoted(&self.dir.join("store")),
            self.plan.jetstream
        ));
        for line in &self.plan.lines {
            text.push_str(line);
            text.push('\n');
        }
        fs::write(path, text)
    }

    fn wait_until_ready(&mut self, ports_dir: &Path, deadline: Instant) -> Result<(), String> {
        let mut why = "its ports file was not written".to_owned();
        while Instant::now() < deadline {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                self.child = None;
                return Err(format!("it ended with {status}"));
            }
            // The file is not written atomically: a half-written one fails to parse and is read again.
            if let Some((port, monitor_port)) = read_ports(ports_dir) {
                self.port = port;
                self.monitor_port = monitor_port;
                match monitor(monitor_port, "/healthz?js-enabled-only=true") {
                    Ok(_) => return Ok(()),
                    Err(e) => why = format!("/healthz: {e}"),
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(why)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Finds the nats-server binary: `$NATS_SERVER`, then `.tools/nats-server` of the workspace, then `PATH`.
///
/// # Errors
/// A text that says how to get one.
pub fn find_binary() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("NATS_SERVER").filter(|v| !v.is_empty()) {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => Ok(path),
            false => Err(format!("NATS_SERVER={} is not a file", path.display())),
        };
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/nats-server");
    if tools.is_file() {
        return Ok(tools);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("nats-server"))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| "no nats-server found: run `cargo xtask tools`, or set NATS_SERVER=/path/to/nats-server".into())
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn read_ports(dir: &Path) -> Option<(u16, u16)> {
    #[derive(serde::Deserialize)]
    struct Ports {
        nats: Vec<String>,
        monitoring: Vec<String>,
    }
    let file = fs::read_dir(dir).ok()?.flatten().find(|e| e.path().extension().is_some_and(|x| x == "ports"))?;
    let ports: Ports = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    let port = |urls: &[String]| urls.first()?.rsplit(':').next()?.parse().ok();
    Some((port(&ports.nats)?, port(&ports.monitoring)?))
}

/// As [`NatsServer::monitor`], of a server that is known by its port, such as one that another thread may be starting again.
///
/// # Errors
/// As [`NatsServer::monitor`].
pub fn monitor(port: u16, path: &str) -> io::Result<String> {
    let timeout = Duration::from_secs(2);
    let mut socket = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), timeout)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    write!(socket, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("the answer has no end of headers"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_server_keeps_its_address_and_a_dropped_one_leaves_nothing() {
        let mut server = NatsServer::start();
        let (url, monitor, dir, first) = (server.url(), server.monitor_url(), server.dir().to_owned(), server.pid());
        assert!(server.monitor("/varz").expect("varz answers").contains("server_id"));
        server.kill_9();
        server.restart();
        assert_eq!((server.url(), server.monitor_url()), (url, monitor));
        assert_ne!(server.pid(), first);
        let pid = server.pid();
        drop(server);
        assert!(!dir.exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_broken_configuration_is_reported_with_the_servers_own_words() {
        let error = NatsServer::builder().config_line("port: what").try_start().err().expect("it cannot start");
        assert!(error.contains("did not come up"), "{error}");
    }

    #[test]
    fn a_paused_server_answers_again_after_resume() {
        let server = NatsServer::start();
        server.pause();
        assert!(server.monitor("/varz").is_err());
        server.resume();
        crate::eventually::eventually("varz answers", || server.monitor("/varz").is_ok());
    }
}
