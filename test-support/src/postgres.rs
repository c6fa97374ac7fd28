//! A real PostgreSQL: a free loopback port, a directory of its own, stopped when dropped.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::ports;
use crate::signal::signal;
use crate::watchdog::Watchdog;

/// A running PostgreSQL with the database and the superuser `postgres`, without a password.
///
/// It refuses to run as root: then it runs as the user `postgres` of Debian's package. Dropping it kills it and removes its
/// directory; when the test process itself is killed, a watchdog does the same.
pub struct Postgres {
    dir: tempfile::TempDir,
    port: u16,
    bin: PathBuf,
    // The user that it runs as; none: the one that calls.
    user: Option<(u32, u32)>,
    server: Option<(Child, Watchdog)>,
}

impl Postgres {
    /// Makes a database cluster, starts it, and waits (at most 60 s) until it answers.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not come up; see [`Postgres::try_start`].
    pub fn start() -> Postgres {
        Self::try_start().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Makes a database cluster, starts it, and waits (at most 60 s) until it answers.
    ///
    /// # Errors
    /// A text for people: PostgreSQL is not installed and how to get it, or the end of its log.
    pub fn try_start() -> Result<Postgres, String> {
        let bin = find()?;
        let user = other_user()?;
        let dir = tempfile::Builder::new().prefix("postgres-").tempdir();
        let dir = dir.map_err(|e| format!("cannot create a temporary directory: {e}"))?;
        if let Some((uid, gid)) = user {
            chown(dir.path(), Some(uid), Some(gid)).map_err(|e| format!("cannot give the directory away: {e}"))?;
        }
        let port = *ports::free(1).map_err(|e| format!("no free port: {e}"))?.first().ok_or("no free port")?;
        let mut server = Postgres { dir, port, bin, user, server: None };
        let options = ["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"];
        let made = server.command("initdb").arg("-D").arg(server.data()).args(options).output();
        let made = made.map_err(|e| format!("cannot start initdb: {e}"))?;
        if !made.status.success() {
            return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr)));
        }
        server.spawn()?;
        Ok(server)
    }

    /// The URL of the database `postgres`: `postgresql://postgres@127.0.0.1:PORT/postgres`. It stays the same over a restart.
    pub fn url(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// What it has logged so far, all starts together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    /// Kills it at once (SIGKILL) and waits until it and its own processes are gone.
    pub fn kill_9(&mut self) {
        let Some((mut child, watchdog)) = self.server.take() else { return };
        watchdog.release();
        let _ = child.kill();
        let _ = child.wait();
        // They notice that it is gone; a start refuses while they use its memory.
    }

    /// Stops it, with its connections cut, and waits; SIGKILL after 10 s.
    pub fn stop(&mut self) {
        let Some((mut child, watchdog)) = self.server.take() else { return };
        watchdog.release();
        // PostgreSQL's "fast shutdown".
        signal(child.id(), "INT");
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Ok(None) = child.try_wait() {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again on the same port and the same data; stops it first if it runs.
    ///
    /// # Panics
    /// When it does not come up within 60 s.
    pub fn restart(&mut self) {
        self.stop();
        self.spawn().unwrap_or_else(|e| panic!("{e}"));
    }

    fn spawn(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let before = self.log().len();
            let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("server.log"));
            let log = log.map_err(|e| format!("cannot open the log: {e}"))?;
            let mut command = self.command("postgres");
            command.arg("-D").arg(self.data()).args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-k"]);
            // A test survives its death, not a power cut.
            command
                .arg(self.dir.path())
                .args(["-c", "fsync=off"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log);
            let mut child = command.spawn().map_err(|e| format!("cannot start postgres: {e}"))?;
            let ended = self.wait_until_ready(&mut child, deadline);
            match ended {
                Ok(()) => {
                    let watchdog = Watchdog::over(child.id(), self.dir.path());
                    self.server = Some((child, watchdog));
                    return Ok(());
                }
                // Killed before, its own processes may not have noticed yet.
                Err(_) if Instant::now() < deadline && is_in_use(&self.log(), before) => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(why) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    let log = self.log();
                    let lines: Vec<&str> = log.lines().collect();
                    return Err(format!("postgres: {why}\n{}", lines[lines.len().saturating_sub(15)..].join("\n")));
                }
            }
        }
    }

    fn wait_until_ready(&self, child: &mut Child, deadline: Instant) -> Result<(), String> {
        let port = self.port.to_string();
        while Instant::now() < deadline {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("it ended with {status}"));
            }
            let mut ask = Command::new(self.bin.join("pg_isready"));
            ask.args(["-q", "-h", "127.0.0.1", "-p", &port, "-U", "postgres"]);
            if ask.status().is_ok_and(|status| status.success()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("no answer within 60 s".into())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        // No setting of a developer's shell may reach it.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.current_dir(self.dir.path()).env("LC_ALL", "C");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Finds the directory with `initdb` and `postgres`, of the newest version where there are several.
///
/// # Errors
/// A text that says how to install PostgreSQL.
pub fn find() -> Result<PathBuf, String> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin): &(u32, PathBuf)| bin.join("initdb").is_file())
        .collect();
    found.sort();
    if let Some((_, bin)) = found.pop() {
        return Ok(bin);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).find(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file()).ok_or_else(
        || "no PostgreSQL found: run `cargo xtask tools`, or install it (`apt install postgresql`)".to_owned(),
    )
}

// Root's stand-in: user and group `postgres`, from /etc/passwd.
fn other_user() -> Result<Option<(u32, u32)>, String> {
    use std::os::unix::fs::MetadataExt;
    let own = fs::metadata("/proc/self").map_err(|e| format!("cannot tell who runs this: {e}"))?.uid();
    if own != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(|e| format!("cannot read /etc/passwd: {e}"))?;
    let ids = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == "postgres").then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    ids.map(Some).ok_or_else(|| "PostgreSQL refuses to run as root, and there is no user postgres".to_owned())
}

/// Whether a start said, in what was logged after `before`, that a server that was killed has not quite gone.
fn is_in_use(log: &str, before: usize) -> bool {
    log.get(before..).is_some_and(|said| said.contains("still in use"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_its_address_over_a_kill_and_leaves_nothing() {
        let mut postgres = Postgres::start();
        let (url, dir) = (postgres.url(), postgres.dir.path().to_owned());
        let ask = |sql: &str| {
            let output = Command::new(find().expect("it is installed").join("psql"))
                .args(["--no-psqlrc", "-At", "-c", sql, &url])
                .output()
                .expect("psql runs");
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        ask("CREATE TABLE kept (n INT); INSERT INTO kept VALUES (17)");
        postgres.kill_9();
        assert_eq!(ask("SELECT n FROM kept"), "");
        postgres.restart();
        assert_eq!(ask("SELECT n FROM kept"), "17");
        drop(postgres);
        assert_eq!((ask("SELECT 1"), dir.exists()), (String::new(), false));
    }
}
