//! Runs one step: its output goes on to ours, as it comes or command by command, and is read for counts.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
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
    /// What is run. Asked for when the step begins, since a step may need what an earlier one built.
    pub commands: Commands,
    /// How the commands follow each other.
    pub order: Order,
    /// What counts.
    pub reads: Reads,
    /// After this long the step is killed and has failed.
    pub limit: Duration,
}

/// How the commands of a step follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One after another; the step ends at the first that fails, and output goes on as it comes.
    Chain,
    /// This many at the same time, begun in order; all run, also when one fails, and the output of each stays together.
    AtOnce(usize),
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
    let Step { name, commands, order, reads, limit, .. } = step;
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut failure: Option<(u8, String)> = None;
    let commands = match commands() {
        Ok(commands) => commands,
        Err(why) => {
            failure = Some((1, why.to_string()));
            Vec::new()
        }
    };
    let under = Under { name: &name, reads, start, limit };
    let failed = match order {
        Order::Chain => chain(under, commands, &mut tally)?,
        Order::AtOnce(count) => at_once(under, count, commands, &mut tally)?,
    };
    failure = failure.or(failed);
    if failure.is_none() && tally.failed > 0 {
        failure = Some((1, "tests failed although the exit code is 0".to_owned()));
    }
    match (&failure, reads) {
        (None, Reads::Check) => tally.passed += 1,
        (None, _) if tally.passed == 0 => {
            tally.failed += 1;
            failure = Some((1, "ran no test".to_owned()));
        }
        (Some(_), _) if tally.failed == 0 => tally.failed += 1,
        _ => {}
    }
    let (code, why) = failure.map_or((0, None), |(code, why)| (code, Some(why)));
    Ok(Outcome { name, tally, took: start.elapsed(), code, why })
}

/// What holds for every command of a step.
#[derive(Clone, Copy)]
struct Under<'a> {
    name: &'a str,
    reads: Reads,
    start: Instant,
    limit: Duration,
}

impl Under<'_> {
    fn left(self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed())
    }

    fn out_of_time(self) -> Why {
        (1, format!("killed after {} s", self.limit.as_secs()))
    }
}

/// Why a command failed, with the exit code that says so.
type Why = (u8, String);

fn chain(under: Under, commands: Vec<Command>, tally: &mut Tally) -> Result<Option<Why>, Failure> {
    for command in commands {
        println!("$ {}", shown(&command));
        std::io::stdout().flush().doing("cannot write to standard output")?;
        let (counted, why) = run_command(under, command, |line| line.print())?;
        tally.add(counted);
        if why.is_some() {
            return Ok(why);
        }
    }
    Ok(None)
}

fn at_once(under: Under, count: usize, commands: Vec<Command>, tally: &mut Tally) -> Result<Option<Why>, Failure> {
    let waiting = Mutex::new(commands.into_iter());
    // Held while a command's output is printed, so that it stays together.
    let total = Mutex::new((Tally::default(), Vec::new()));
    let run_some = || -> Result<(), Failure> {
        loop {
            let next = waiting.lock().expect("no thread panics with it").next();
            let Some(command) = next else { return Ok(()) };
            let (name, start) = (shown(&command), Instant::now());
            let mut lines = Vec::new();
            let (mut counted, why) = if under.left().is_zero() {
                (Tally::default(), Some((1, "not begun within the step's time".to_owned())))
            } else {
                run_command(under, command, |line| lines.push(line))?
            };
            let mut total = total.lock().expect("no thread panics with it");
            println!("$ {name}");
            lines.iter().for_each(Line::print);
            println!("# {:.1} s: {name}", start.elapsed().as_secs_f64());
            std::io::stdout().flush().doing("cannot write to standard output")?;
            if let Some((code, why)) = why {
                counted.failed = counted.failed.max(1);
                total.1.push((code, format!("{name}: {why}")));
            }
            total.0.add(counted);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(run_some)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| Failure::new("running a step's commands failed"))?)
    })?;
    let (counted, failed) = total.into_inner().expect("no thread panicked with it");
    tally.add(counted);
    let code = failed.first().map(|(code, _)| *code);
    Ok(code.map(|code| (code, failed.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; "))))
}

/// One line of a command's output.
struct Line {
    out: bool,
    text: String,
}

impl Line {
    fn print(&self) {
        if self.out {
            println!("{}", self.text);
        } else {
            eprintln!("{}", self.text);
        }
    }
}

/// Runs one command; `show` gets what it prints, line by line. Gives its counts, and why it failed if it did.
fn run_command(
    under: Under,
    mut command: Command,
    mut show: impl FnMut(Line),
) -> Result<(Tally, Option<Why>), Failure> {
    let mut tally = Tally::default();
    let mut running = Running::start(under.name, {
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
    loop {
        match received.recv_timeout(under.left().min(Duration::from_secs(1))) {
            Ok(line) => {
                if line.out {
                    tally.read(under.reads, &plain(&line.text));
                }
                show(line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            // A child of a child may hold the pipes open after the command itself has ended.
            Err(mpsc::RecvTimeoutError::Timeout) if running.ended()?.is_some() => break,
            Err(mpsc::RecvTimeoutError::Timeout) if under.left().is_zero() => {
                running.kill();
                return Ok((tally, Some(under.out_of_time())));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
    let status = running.wait(under.left().max(Duration::from_secs(1)))?;
    if readers.iter().all(thread::JoinHandle::is_finished) {
        for reader in readers {
            reader.join().map_err(|_| Failure::new("reading a step's output failed"))?;
        }
    }
    if status.success() {
        return Ok((tally, None));
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok((tally, Some((code, process::describe(status)))))
}

fn forward(from: impl Read, out: bool, lines: &mpsc::SyncSender<Line>) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match from.read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
        if lines.send(Line { out, text }).is_err() {
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
        run(step(vec![command], Order::Chain, reads, limit)).expect("sh starts")
    }

    fn step(commands: Vec<Command>, order: Order, reads: Reads, limit: Duration) -> Step {
        Step { name: "shell".to_owned(), promise: "", commands: Box::new(|| Ok(commands)), order, reads, limit }
    }

    fn two_at_once(scripts: &[&str], limit: Duration) -> Outcome {
        let commands = scripts.iter().map(|script| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        });
        run(step(commands.collect(), Order::AtOnce(2), Reads::Cargo, limit)).expect("sh starts")
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

    const PASS: &str = "echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured'";

    #[test]
    fn commands_at_once_overlap_and_their_counts_add_up() {
        let dir = tempfile::tempdir().expect("a directory");
        // Each ends only when the other has begun.
        let meet = |mine: &str, other: &str| {
            let dir = dir.path().display();
            format!("touch {dir}/{mine}; until [ -e {dir}/{other} ]; do sleep 0.01; done; {PASS}")
        };
        let both = two_at_once(&[&meet("a", "b"), &meet("b", "a"), PASS], LONG);
        assert_eq!((both.passed(), both.tally), (true, Tally { passed: 6, failed: 0, ignored: 3 }));
    }

    #[test]
    fn all_commands_at_once_run_and_each_that_fails_is_counted_and_named() {
        let fails = "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored'; exit 101";
        let some = two_at_once(&["kill -9 $$", fails, PASS, PASS], LONG);
        assert_eq!((some.passed(), some.tally), (false, Tally { passed: 5, failed: 3, ignored: 2 }));
        assert!(some.verdict().contains("signal 9") && some.verdict().contains("exit code 101"), "{}", some.verdict());
    }

    #[test]
    fn commands_at_once_are_killed_at_the_steps_limit_and_none_begins_after_it() {
        let hung = two_at_once(&["sleep 600", PASS, "sleep 600", PASS], Duration::from_secs(3));
        assert_eq!((hung.passed(), hung.tally.passed, hung.tally.failed), (false, 2, 3));
        assert!(hung.took < Duration::from_secs(60), "took {:?}", hung.took);
    }
}
