//! Signals to the processes that were started here.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to stand still.
const CAP: Duration = Duration::from_secs(10);

/// Sends a signal by its name, such as `TERM`; to one that is gone it does nothing.
pub(crate) fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status();
}

/// Sends SIGSTOP and waits until every thread stands still: one after another takes the signal in.
pub(crate) fn freeze(pid: u32) {
    signal(pid, "STOP");
    let is_stopped = |task: &Path| {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with(['T', 't']) || rest.is_empty())
    };
    let tasks = format!("/proc/{pid}/task");
    let deadline = Instant::now() + CAP;
    while let Ok(tasks) = std::fs::read_dir(&tasks)
        && !tasks.flatten().all(|task| is_stopped(&task.path()))
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(1));
    }
}
