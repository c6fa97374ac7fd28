//! A real RabbitMQ node: free loopback ports, a home and an epmd of its own, stopped when dropped; and three of them as a cluster.

mod cluster;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::ports;
use crate::signal::{freeze, signal};

pub use self::cluster::RabbitCluster;

/// A running RabbitMQ node with the plugins for management and consistent hashing, and the user `guest` / `guest`.
///
/// It takes 5 to 10 s to start: give a suite one node ([`RabbitMq::shared`]) and each test a vhost
/// ([`RabbitMq::fresh_vhost`]). Dropping it kills the node and its epmd and removes its directory. When the test process
/// itself is killed, a watchdog does the same.
pub struct RabbitMq {
    node: String,
    ports: Ports,
    dir: tempfile::TempDir,
    // With the cookie that nodes of one cluster share.
    home: PathBuf,
    // Whether the epmd is another node's.
    is_guest: bool,
    epmd: Option<Child>,
    broker: Option<Broker>,
    vhosts: AtomicU32,
}

#[derive(Clone, Copy)]
struct Ports {
    amqp: u16,
    management: u16,
    dist: u16,
    epmd: u16,
}

struct Broker {
    // The start script; it becomes the Erlang VM, or waits for it where the script is an unusual one.
    script: Child,
    // The Erlang VM.
    pid: u32,
    watchdog: Option<Child>,
}

impl RabbitMq {
    /// Starts a node and waits (at most 180 s) until it takes AMQP connections and answers its management API.
    ///
    /// # Panics
    /// When RabbitMQ is not installed or does not come up; see [`RabbitMq::try_start`].
    pub fn start() -> RabbitMq {
        Self::try_start().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts a node and waits (at most 180 s) until it takes AMQP connections and answers its management API.
    ///
    /// # Errors
    /// A text for people: RabbitMQ is not installed and how to get it, or the end of the node's log.
    pub fn try_start() -> Result<RabbitMq, String> {
        Self::try_start_with(&[])
    }

    /// As [`RabbitMq::try_start`], with more lines for its `rabbitmq.conf`, such as `listeners.ssl.1 = 127.0.0.1:5671`.
    ///
    /// # Errors
    /// As [`RabbitMq::try_start`].
    pub fn try_start_with(config_lines: &[&str]) -> Result<RabbitMq, String> {
        let mut last = String::new();
        // The ports were free when they were chosen; somebody may have taken one since.
        for _ in 0..3 {
            let mut server = Self::prepare(config_lines)?;
            match server.spawn() {
                Ok(()) => return Ok(server),
                Err(why) if why.contains("eaddrinuse") || why.contains("in use") => last = why,
                Err(why) => return Err(why),
            }
        }
        Err(last)
    }

    /// The node of this test process, started by whoever asks first. It ends with the process.
    ///
    /// # Panics
    /// As [`RabbitMq::start`].
    pub fn shared() -> &'static RabbitMq {
        static SHARED: OnceLock<RabbitMq> = OnceLock::new();
        SHARED.get_or_init(RabbitMq::start)
    }

    /// The URL of the default vhost: `amqp://guest:guest@127.0.0.1:PORT/%2f`. It stays the same over a restart.
    pub fn url(&self) -> String {
        self.url_for("/")
    }

    /// The URL of this vhost, with its name percent-encoded.
    pub fn url_for(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{}", self.ports.amqp, encoded(vhost))
    }

    /// The management URL, `http://127.0.0.1:PORT` (user and password `guest`).
    pub fn management_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.management)
    }

    /// The AMQP port.
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// The process id of the Erlang VM.
    ///
    /// # Panics
    /// When it was stopped or killed and not restarted.
    pub fn pid(&self) -> u32 {
        self.broker.as_ref().expect("the node is running").pid
    }

    /// The directory with the node's home, data and log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the node has logged so far, all starts together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("rabbit.log")).unwrap_or_default()
    }

    /// Creates a vhost (or leaves it as it is) and gives `guest` all permissions in it.
    ///
    /// # Panics
    /// When the management API refuses.
    pub fn create_vhost(&self, name: &str) {
        self.expect_api("PUT", &format!("/api/vhosts/{}", encoded(name)), "{}");
        self.set_permissions("guest", name);
    }

    /// Creates a vhost with a name that no other call gets, and returns the name.
    ///
    /// # Panics
    /// When the management API refuses.
    pub fn fresh_vhost(&self) -> String {
        let name = format!("test-{}", self.vhosts.fetch_add(1, Ordering::Relaxed));
        self.create_vhost(&name);
        name
    }

    /// Creates a user without tags, and without permissions anywhere.
    ///
    /// # Panics
    /// When the management API refuses.
    pub fn create_user(&self, name: &str, password: &str) {
        let body = format!("{{\"password\":{},\"tags\":\"\"}}", serde_json::Value::from(password));
        self.expect_api("PUT", &format!("/api/users/{}", encoded(name)), &body);
    }

    /// Gives a user all permissions in a vhost.
    ///
    /// # Panics
    /// When the management API refuses.
    pub fn set_permissions(&self, user: &str, vhost: &str) {
        let path = format!("/api/permissions/{}/{}", encoded(vhost), encoded(user));
        self.expect_api("PUT", &path, r#"{"configure":".*","write":".*","read":".*"}"#);
    }

    /// Calls the management API as `guest`; `path` begins with `/api/`. Gives the HTTP status and the body.
    ///
    /// # Errors
    /// When the node does not answer within 60 s.
    pub fn api(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        http(self.ports.management, method, path, body)
    }

    /// Runs `rabbitmqctl` on this node, for what the management API cannot do, and gives what it printed. Takes seconds.
    ///
    /// # Panics
    /// When it fails, with its own words.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let script = find_server().unwrap_or_else(|e| panic!("{e}")).with_file_name("rabbitmqctl");
        let mut command = Command::new(script);
        self.environment(&mut command);
        let output = command.args(arguments).output().expect("rabbitmqctl starts");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {said}");
        said.into_owned()
    }

    /// Kills the node at once (SIGKILL) and waits until the process is gone.
    pub fn kill_9(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.end("KILL", Duration::from_secs(60));
        }
    }

    /// Freezes the node (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&self) {
        freeze(self.pid());
    }

    /// Lets a frozen node go on (SIGCONT).
    pub fn resume(&self) {
        signal(self.pid(), "CONT");
    }

    /// Stops the node with SIGTERM, so that it closes its connections and writes its state, and waits; SIGKILL after 60 s.
    pub fn stop(&mut self) {
        if let Some(broker) = self.broker.take() {
            signal(broker.pid, "CONT");
            broker.end("TERM", Duration::from_secs(60));
        }
    }

    /// Starts the node again on the same ports and the same data; stops it first if it runs.
    ///
    /// # Panics
    /// When it does not come up within 180 s.
    pub fn restart(&mut self) {
        self.stop();
        self.spawn().unwrap_or_else(|e| panic!("{e}"));
    }

    fn prepare(config_lines: &[&str]) -> Result<RabbitMq, String> {
        static STARTS: AtomicU32 = AtomicU32::new(0);
        find_server()?;
        let dir = tempfile::Builder::new()
            .prefix("rabbitmq-")
            .tempdir()
            .map_err(|e| format!("cannot create a temporary directory: {e}"))?;
        let ports = ports::free(4).map_err(|e| format!("no free ports: {e}"))?;
        let [amqp, management, dist, epmd] = ports[..] else { return Err("four ports were asked for".into()) };
        let node = format!("t{}x{}@localhost", std::process::id(), STARTS.fetch_add(1, Ordering::Relaxed));
        let ports = Ports { amqp, management, dist, epmd };
        let home = dir.path().join("home");
        let vhosts = AtomicU32::new(0);
        let server = RabbitMq { node, ports, dir, home, is_guest: false, epmd: None, broker: None, vhosts };
        server.write_files(config_lines).map_err(|e| format!("cannot write the node's configuration: {e}"))?;
        Ok(server)
    }

    fn write_files(&self, config_lines: &[&str]) -> io::Result<()> {
        let dir = self.dir();
        let Ports { amqp, management, .. } = self.ports;
        fs::create_dir_all(&self.home)?;
        fs::write(dir.join("enabled_plugins"), "[rabbitmq_management,rabbitmq_consistent_hash_exchange].\n")?;
        fs::write(
            dir.join("rabbitmq.conf"),
            format!(
                "listeners.tcp.1 = 127.0.0.1:{amqp}\n\
                 loopback_users.guest = true\n\
                 management.tcp.ip = 127.0.0.1\n\
                 management.tcp.port = {management}\n\
                 disk_free_limit.absolute = 10MB\n\
                 log.file.level = info\n\
                 {}\n",
                config_lines.join("\n")
            ),
        )
    }

    fn spawn(&mut self) -> Result<(), String> {
        self.start_epmd()?;
        let dir = self.dir().to_path_buf();
        let output = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("output.log"))
            .map_err(|e| format!("cannot open the log: {e}"))?;
        let errors = output.try_clone().map_err(|e| format!("cannot open the log: {e}"))?;
        let pid_file = dir.join("rabbit.pid");
        let _ = fs::remove_file(&pid_file);
        let server = find_server()?;
        let mut command = Command::new(&server);
        self.environment(&mut command);
        let script = command
            .env("RABBITMQ_MNESIA_BASE", dir.join("data"))
            .env("RABBITMQ_LOG_BASE", &dir)
            .env("RABBITMQ_LOGS", dir.join("rabbit.log"))
            .env("RABBITMQ_PID_FILE", &pid_file)
            .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("enabled_plugins"))
            .env("RABBITMQ_DIST_PORT", self.ports.dist.to_string())
            // Schedulers that spin while idle would take the machine from the tests.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none +sbwtdcpu none +sbwtdio none")
            // Makes the script become the Erlang VM instead of waiting for it.
            .env("detached", "1")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", server.display()))?;
        let pid = script.id();
        let mut broker = Broker { script, pid, watchdog: None };
        broker.guard(self.epmd.as_ref().map(Child::id), &dir);
        self.broker = Some(broker);
        self.wait_until_ready(&pid_file, Instant::now() + Duration::from_secs(180)).map_err(|why| {
            self.kill_9();
            let log = self.log() + &fs::read_to_string(dir.join("output.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(25)..].join("\n");
            format!("{} did not come up: {why}\n{end}", server.display())
        })
    }

    fn environment(&self, command: &mut Command) {
        // No setting of an installed service, or of a developer's shell, may reach this node.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RABBITMQ_") {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", &self.home)
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_CONF_ENV_FILE", self.dir().join("no-such-file"))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.ports.epmd.to_string());
    }

    fn start_epmd(&mut self) -> Result<(), String> {
        if self.is_guest {
            return Ok(());
        }
        if let Some(epmd) = &mut self.epmd
            && matches!(epmd.try_wait(), Ok(None))
        {
            return Ok(());
        }
        // Started by us, in the foreground: the node would otherwise leave a daemon behind.
        let binary = find_epmd()?;
        let epmd = Command::new(&binary)
            .args(["-address", "127.0.0.1", "-port", &self.ports.epmd.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", binary.display()))?;
        self.epmd = Some(epmd);
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports.epmd));
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            if Instant::now() > deadline {
                return Err(format!("{} does not answer on port {}", binary.display(), self.ports.epmd));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn wait_until_ready(&mut self, pid_file: &Path, deadline: Instant) -> Result<(), String> {
        let mut why = String::from("no answer within 180 s");
        while Instant::now() < deadline {
            let broker = self.broker.as_mut().expect("it was just started");
            if let Ok(Some(status)) = broker.script.try_wait() {
                return Err(format!("it ended with {status}"));
            }
            match greeting(self.ports.amqp) {
                Err(e) => why = format!("AMQP: {e}"),
                Ok(()) => match self.api("GET", "/api/overview", "") {
                    Ok((200, _)) => {
                        let pid = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
                        let dir = self.dir.path().to_path_buf();
                        let epmd = self.epmd.as_ref().map(Child::id);
                        let broker = self.broker.as_mut().expect("it runs");
                        if let Some(pid) = pid.filter(|pid| *pid != broker.pid) {
                            broker.pid = pid;
                            broker.guard(epmd, &dir);
                        }
                        return Ok(());
                    }
                    Ok((status, _)) => why = format!("management: status {status}"),
                    Err(e) => why = format!("management: {e}"),
                },
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(why)
    }

    #[track_caller]
    fn expect_api(&self, method: &str, path: &str, body: &str) {
        match self.api(method, path, body) {
            Ok((status, _)) if (200..300).contains(&status) => {}
            other => panic!("{method} {path}: {other:?}"),
        }
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill_9();
        if let Some(mut epmd) = self.epmd.take() {
            let _ = epmd.kill();
            let _ = epmd.wait();
        }
    }
}

impl Broker {
    /// Has the node killed when this process ends in whatever way: the watchdog's stdin is then closed.
    fn guard(&mut self, epmd: Option<u32>, dir: &Path) {
        self.release();
        let epmd = epmd.map(|pid| pid.to_string()).unwrap_or_default();
        self.watchdog = Command::new("sh")
            .args(["-c", "read line; kill -9 $1 $2 2>/dev/null; rm -rf \"$3\"", "sh"])
            .args([self.pid.to_string(), epmd])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok();
    }

    // Before the processes are gone: their ids may belong to others afterwards.
    fn release(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            let _ = watchdog.kill();
            let _ = watchdog.wait();
        }
    }

    fn end(mut self, name: &str, patience: Duration) {
        self.release();
        signal(self.pid, name);
        if name == "KILL" {
            let _ = self.script.kill();
        }
        let deadline = Instant::now() + patience;
        while let Ok(None) = self.script.try_wait() {
            if Instant::now() > deadline {
                signal(self.pid, "KILL");
                let _ = self.script.kill();
                let _ = self.script.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Finds the `rabbitmq-server` script that runs as the calling user.
///
/// Debian's `/usr/sbin/rabbitmq-server` switches to the user `rabbitmq` and is left aside for the one that it wraps.
///
/// # Errors
/// A text that says how to install RabbitMQ.
pub fn find_server() -> Result<PathBuf, String> {
    let debian = PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server");
    if debian.is_file() {
        return Ok(debian);
    }
    on_path("rabbitmq-server").ok_or_else(|| {
        "no rabbitmq-server found: run `cargo xtask tools`, or install it (`apt install rabbitmq-server`)".to_owned()
    })
}

fn find_epmd() -> Result<PathBuf, String> {
    on_path("epmd")
        .or_else(|| {
            let releases = fs::read_dir("/usr/lib/erlang").ok()?;
            releases.flatten().map(|entry| entry.path().join("bin/epmd")).find(|path| path.is_file())
        })
        .ok_or_else(|| "no epmd found: it comes with Erlang (`apt install erlang-base`)".to_owned())
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| candidate.is_file())
}

fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

// Says the protocol header and waits for the first byte of `connection.start`.
fn greeting(port: u16) -> io::Result<()> {
    let mut socket = connect(port, Duration::from_secs(2))?;
    socket.write_all(b"AMQP\x00\x00\x09\x01")?;
    let mut first = [0];
    socket.read_exact(&mut first)?;
    if first == [1] { Ok(()) } else { Err(io::Error::other("no AMQP method frame")) }
}

fn http(port: u16, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut socket = connect(port, Duration::from_secs(60))?;
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("no end of headers"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("no status line"))?;
    match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => Ok((status, unchunked(body))),
        false => Ok((status, body.to_owned())),
    }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        whole.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}

fn connect(port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), timeout)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    // One node for all of it: starting one takes seconds.
    #[test]
    fn a_node_keeps_its_address_over_a_restart_can_be_frozen_and_leaves_nothing() {
        let mut rabbit = RabbitMq::start();
        let (url, first, dir) = (rabbit.url(), rabbit.pid(), rabbit.dir().to_owned());
        assert_eq!(fs::read_to_string(format!("/proc/{first}/comm")).expect("it runs").trim(), "beam.smp");
        rabbit.create_vhost("a/b c");
        assert!(rabbit.url_for("a/b c").ends_with("/a%2Fb%20c"));
        let (status, vhosts) = rabbit.api("GET", "/api/vhosts", "").expect("the API answers");
        assert_eq!(status, 200);
        assert!(vhosts.contains("\"a/b c\""), "{vhosts}");

        rabbit.pause();
        assert!(greeting(rabbit.port()).is_err());
        rabbit.resume();
        crate::eventually::eventually("it greets again", || greeting(rabbit.port()).is_ok());

        rabbit.kill_9();
        assert!(!alive(first));
        rabbit.restart();
        assert_eq!(rabbit.url(), url);
        assert!(rabbit.api("GET", "/api/vhosts", "").expect("the API answers").1.contains("\"a/b c\""));

        let epmd = rabbit.epmd.as_ref().expect("it runs").id();
        let pid = rabbit.pid();
        assert!(alive(pid) && alive(epmd));
        drop(rabbit);
        assert!(!alive(pid) && !alive(epmd) && !dir.exists());
    }

    #[test]
    fn chunked_bodies_are_put_together() {
        assert_eq!(unchunked("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
        assert_eq!(unchunked("0\r\n\r\n"), "");
    }
}
