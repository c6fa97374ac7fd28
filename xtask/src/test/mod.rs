//! `cargo xtask test`: every check and test of the project, one step after another.

mod plan;
mod runner;
mod tally;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use crate::failure::Failure;
use runner::Outcome;

/// Arguments of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Stop at the first step that fails; else all steps run.
    #[arg(long)]
    fail_fast: bool,
    /// Run only the steps whose name contains this text. May be given more than once.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Print the steps and stop.
    #[arg(long)]
    list: bool,
}

/// Brings what is missing, runs the steps, and prints what passed and failed.
///
/// # Errors
/// When a tool is missing or a step cannot be started at all.
pub fn run(args: &TestArgs) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    let steps = plan::steps(args.list)?;
    let steps: Vec<_> = steps
        .into_iter()
        .filter(|step| args.only.is_empty() || args.only.iter().any(|text| step.name.contains(text.as_str())))
        .collect();
    if steps.is_empty() {
        return Err(Failure::new("no step has such a name; --list prints them"));
    }
    if args.list {
        for step in &steps {
            println!("{:<22} {}", step.name, step.promise);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let count = steps.len();
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(count);
    for (number, step) in steps.into_iter().enumerate() {
        println!("\n== {}/{count} {}: {}", number + 1, step.name, step.promise);
        let outcome = runner::run(step)?;
        println!("== {}: {} in {}", outcome.name, outcome.verdict(), seconds(outcome.took));
        let failed = !outcome.passed();
        outcomes.push(outcome);
        if failed && args.fail_fast {
            break;
        }
    }
    report(&outcomes, count, start.elapsed());
    let code = outcomes.iter().find(|outcome| !outcome.passed()).map_or(0, Outcome::exit_code);
    Ok(ExitCode::from(code))
}

fn report(outcomes: &[Outcome], planned: usize, took: Duration) {
    println!("\n{:<22} {:>8} {:>8} {:>8} {:>9}  result", "step", "passed", "failed", "ignored", "time");
    for outcome in outcomes {
        println!(
            "{:<22} {:>8} {:>8} {:>8} {:>9}  {}",
            outcome.name,
            outcome.tally.passed,
            outcome.tally.failed,
            outcome.tally.ignored,
            seconds(outcome.took),
            outcome.verdict()
        );
    }
    if outcomes.len() < planned {
        println!("{} of {planned} steps did not run (--fail-fast)", planned - outcomes.len());
    }
    println!("total time: {}", seconds(took));
    let passed: u64 = outcomes.iter().map(|outcome| outcome.tally.passed).sum();
    let failed: u64 = outcomes.iter().map(|outcome| outcome.tally.failed).sum();
    println!("{passed} passed, {failed} failed");
}

fn seconds(time: Duration) -> String {
    if time.as_secs() >= 60 {
        format!("{} m {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
