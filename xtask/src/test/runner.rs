//! Runs one step: its output goes on to ours as it comes, and is read for counts.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::tally::{Reads, Tally, plain};
use crate::failure::{Doing, Failure};
use crate::process::{self, Running};
use crate::workspace;

/// One step of the plan.
pub struct Step {
    /// Its name, for `--only` and the report.
    pub name: String,
    /// What holds when it passes.
    pub promise: &'static str,
    /// What is run, one after another; the step ends at the first that fails. Asked for when the step begins, since
    /// a step may need what an earlier one built.
    pub commands: Commands,
    /// What counts.
    pub reads: Reads,
    /// After this long the step is killed and has failed.
    pub limit: Duration,
}

/// See [`Step::commands`].
pub type Commands = Box<dyn FnOnce() -> Result<Vec<Command>, Failure>>;

/// What became of a step.
pub struct Outcome {
    /// The step's name.
    pub name: String,
    /// Tests by result; a check is one test.
    pub tally: Tally,
    /// How long it ran.
    pub took: Duration,
    code: u8,
    why: Option<String>,
}

impl Outcome {
    /// Whether everything in it passed.
    pub fn passed(&self) -> bool {
        self.code == 0
    }

    /// The exit code of the command that failed, or 1 where it had none; 0 when the step passed.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// "ok", or why not.
    pub fn verdict(&self) -> &str {
        self.why.as_deref().unwrap_or("ok")
    }
}

/// Runs the commands of a step.
///
/// # Errors
/// When a command cannot be started. A command that fails is an [`Outcome`].
pub fn run(step: Step) -> Result<Outcome, Failure> {
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut failure: Option<(u8, String)> = None;
    let commands = match (step.commands)() {
        Ok(commands) => commands,
        Err(why) => {
            failure = Some((1, why.to_string()));
            Vec::new()
        }
    };
    for command in commands {
        if let Err(why) = run_command(&step.name, command, step.reads, &mut tally, start, step.limit)? {
            failure = Some(why);
            break;
        }
    }
    if failure.is_none() && tally.failed > 0 {
        failure = Some((1, "tests failed although the exit code is 0".to_owned()));
    }
    match (&failure, step.reads) {
        (None, Reads::Check) => tally.passed += 1,
        (None, _) if tally.passed == 0 => {
            tally.failed += 1;
            failure = Some((1, "ran no test".to_owned()));
        }
        (Some(_), _) if tally.failed == 0 => tally.failed += 1,
        _ => {}
    }
    let (code, why) = failure.map_or((0, None), |(code, why)| (code, Some(why)));
    Ok(Outcome { name: step.name, tally, took: start.elapsed(), code, why })
}

fn run_command(
    name: &str,
    mut command: Command,
    reads: Reads,
    tally: &mut Tally,
    start: Instant,
    limit: Duration,
) -> Result<Result<(), (u8, String)>, Failure> {
    println!("$ {}", shown(&command));
    std::io::stdout().flush().doing("cannot write to standard output")?;
    let mut running = Running::start(name, {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    })?;
    let stdout = running.child().stdout.take().expect("standard output was piped");
    let stderr = running.child().stderr.take().expect("standard error was piped");
    // Bounded: a slow terminal slows the step down and nothing piles up.
    let (lines, received) = mpsc::sync_channel(1024);
    let readers = [
        thread::spawn({
            let lines = lines.clone();
            move || forward(stdout, true, &lines)
        }),
        thread::spawn(move || forward(stderr, false, &lines)),
    ];
    let mut timed_out = false;
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match received.recv_timeout(left.min(Duration::from_secs(1))) {
            Ok((out, line)) => {
                if out {
                    tally.read(reads, &plain(&line));
                    println!("{line}");
                } else {
                    eprintln!("{line}");
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            // A child of a child may hold the pipes open after the command itself has ended.
            Err(mpsc::RecvTimeoutError::Timeout) if running.ended()?.is_some() => break,
            Err(mpsc::RecvTimeoutError::Timeout) if start.elapsed() >= limit => {
                timed_out = true;
                running.kill();
                break;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
    if timed_out {
        return Ok(Err((1, format!("killed after {} s", limit.as_secs()))));
    }
    let status = running.wait(limit.saturating_sub(start.elapsed()).max(Duration::from_secs(1)))?;
    if readers.iter().all(thread::JoinHandle::is_finished) {
        for reader in readers {
            reader.join().map_err(|_| Failure::new("reading a step's output failed"))?;
        }
    }
    if status.success() {
        return Ok(Ok(()));
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(Err((code, process::describe(status))))
}

fn forward(from: impl Read, out: bool, lines: &mpsc::SyncSender<(bool, String)>) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match from.read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
        if lines.send((out, line)).is_err() {
            return;
        }
    }
}

fn shown(command: &Command) -> String {
    let root = workspace::root();
    let mut words = Vec::new();
    if let Some(dir) = command.get_current_dir()
        && let Ok(dir) = dir.strip_prefix(root)
        && !dir.as_os_str().is_empty()
    {
        words.push(format!("cd {};", dir.display()));
    }
    let cargo = workspace::cargo();
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        let word = if word == cargo.get_program() { "cargo".into() } else { word.to_string_lossy() };
        words.push(word.strip_prefix(&format!("{}/", root.display())).unwrap_or(&word).to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, reads: Reads, limit: Duration) -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let step =
            Step { name: "shell".to_owned(), promise: "", commands: Box::new(|| Ok(vec![command])), reads, limit };
        run(step).expect("sh starts")
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_check_that_exits_0_is_one_pass_and_otherwise_one_failure_with_its_code() {
        let good = shell("exit 0", Reads::Check, LONG);
        assert_eq!((good.passed(), good.tally), (true, Tally { passed: 1, ..Tally::default() }));
        let bad = shell("exit 7", Reads::Check, LONG);
        assert_eq!((bad.exit_code(), bad.tally), (7, Tally { failed: 1, ..Tally::default() }));
    }

    #[test]
    fn a_step_of_tests_that_ran_none_has_failed() {
        let none = shell("echo '0 passed in 0.1s'", Reads::Pytest, LONG);
        assert_eq!((none.passed(), none.verdict()), (false, "ran no test"));
    }

    #[test]
    fn a_step_that_dies_before_its_tests_report_counts_one_failure() {
        let died = shell("echo 'compiling'; exit 101", Reads::Cargo, LONG);
        assert_eq!((died.exit_code(), died.tally.failed), (101, 1));
    }

    #[test]
    fn reported_failures_fail_a_step_even_with_exit_code_0() {
        let lying = shell("echo '1 failed, 2 passed in 0.1s'", Reads::Pytest, LONG);
        assert_eq!((lying.passed(), lying.tally), (false, Tally { passed: 2, failed: 1, ignored: 0 }));
    }

    #[test]
    fn a_step_that_hangs_is_killed_at_its_limit() {
        let hung = shell("sleep 600 & wait", Reads::Check, Duration::from_millis(300));
        assert!(!hung.passed());
        assert!(hung.took < Duration::from_secs(10), "took {:?}", hung.took);
    }
}
