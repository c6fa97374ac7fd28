//! Child processes: each in a process group of its own, so that Ctrl-C reaches only us and we end them in order.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::failure::{Doing, Failure};

/// A running child. Dropping it kills its whole group.
pub struct Running {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Starts `command`, which `name` stands for in messages.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command) -> Result<Self, Failure> {
        let child = command.stdin(Stdio::null()).process_group(0).spawn().doing(format_args!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, ended: None })
    }

    /// The child's piped output, once.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// When the operating system cannot say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().doing(format_args!("waiting for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        if self.ended.is_none() {
            signal("-TERM", &self.child.id().to_string());
        }
    }

    /// Ends it at once and waits for it (SIGKILL to its group).
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            signal("-KILL", &format!("-{}", self.child.id()));
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// Waits for its end, at most `limit`, then kills it.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, Failure> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                self.kill();
                return Err(Failure::new(format_args!(
                    "{} did not end within {:.0} s and was killed",
                    self.name,
                    limit.as_secs_f64()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `command` to its end and answers its standard output.
///
/// # Errors
/// When it cannot be started or its exit status is not 0; the text carries what it wrote to standard error.
pub fn output(what: &str, command: &mut Command) -> Result<String, Failure> {
    let output = command.stdin(Stdio::null()).output().doing(format_args!("cannot run {what}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Failure::new(format_args!(
        "{what} failed ({}): {}",
        describe(output.status),
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

/// Runs `command` to its end, its output going where ours goes.
///
/// # Errors
/// When it cannot be started or its exit status is not 0.
pub fn run(what: &str, command: &mut Command) -> Result<(), Failure> {
    let status = command.status().doing(format_args!("cannot run {what}"))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format_args!("{what} failed ({})", describe(status)))) }
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown end".to_owned(),
    }
}

/// Whether a program of this name can be started from PATH.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| is_executable(&dir.join(program)).unwrap_or(false)))
}

fn is_executable(file: &std::path::Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(file)?;
    Ok(meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn signal(name: &str, target: &str) {
    // The process may be gone already: then there is nothing to end.
    let _ = Command::new("kill").args([name, "--", target]).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
