//! `cargo xtask chaos`: `kill -9` of RabbitMQ, nats-server, the sidecar and applications while weights change under load, run after run.
//!
//! The applications are lapin programs (`tests/application`) that know an AMQP URL; they write down what they do, and the verdict is
//! computed from that by the same code as the demo's. The plan of a run comes from its seed ([`schedule`]); when it meets which
//! message is up to the machine.

mod outstanding;
mod programs;
mod report;
mod run;
mod schedule;
mod server;
mod topology;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use test_support::rabbit::RabbitMq;

use crate::demo::{SIDECAR, build, now_unix_ns, run_directory};
use crate::failure::{Doing, Failure};
use crate::stop;
use crate::tools::Tools;
use report::{Report, heads};
use run::{Setting, run as run_one};
use schedule::{KINDS, Kind};
use server::Server;

/// Arguments of `chaos`.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// How many runs.
    #[arg(long, value_name = "N", default_value_t = 50)]
    runs: u64,
    /// The first run's seed; the next ones follow. A seed repeats changes, kills, keys and sizes [default: another one each time].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Messages a second that the applications publish together.
    #[arg(long, value_name = "N", default_value_t = 5_000.0)]
    rate: f64,
    /// How long weights are changed and programs killed in each run; the end, when everything has to come up and out, comes on top.
    #[arg(long, value_name = "N", default_value_t = 8.0)]
    seconds: f64,
    /// What is killed [default: all of them].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT,...")]
    kill: Vec<Kind>,
    /// How many sidecars share one NATS account; each has half of the applications [1: one that is alone].
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=4))]
    sidecars: u8,
    /// Go on after a run that was wrong, instead of stopping at it.
    #[arg(long)]
    keep_going: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
    /// This nats-bridge binary, instead of building one.
    #[arg(long, value_name = "FILE", requires = "application")]
    binary: Option<PathBuf>,
    /// This application, instead of building one: the binary `application` of the package `end-to-end`.
    #[arg(long, value_name = "FILE", requires = "binary")]
    application: Option<PathBuf>,
}

/// Runs them.
///
/// # Errors
/// When it cannot begin, or RabbitMQ does not come back. Whatever goes wrong in a run is part of the report, and of the exit code: 1.
pub fn run(args: &ChaosArgs) -> Result<ExitCode, Failure> {
    if !(args.rate.is_finite() && (10.0..=50_000.0).contains(&args.rate)) {
        return Err(Failure::new("--rate must be between 10 and 50000"));
    }
    if !(args.seconds.is_finite() && (1.0..=3_600.0).contains(&args.seconds)) {
        return Err(Failure::new("--seconds must be between 1 and 3600"));
    }
    let first = args.seed.unwrap_or_else(|| now_unix_ns() / 1_000_000 % 1_000_000);
    let mut tools = Tools::open(None)?;
    let nats_server = tools.nats_server()?;
    tools.rabbitmq()?;
    drop(tools);
    let (sidecar, application) = match (&args.binary, &args.application) {
        (Some(sidecar), Some(application)) => (found(sidecar)?, found(application)?),
        _ => {
            let mut built = build(&[SIDECAR, ("end-to-end", "application")])?;
            (built.swap_remove(0), built.remove(0))
        }
    };
    stop::listen()?;
    let kinds = if args.kill.is_empty() { KINDS.to_vec() } else { args.kill.clone() };
    let length = Duration::from_secs_f64(args.seconds);
    let sidecars = usize::from(args.sidecars);
    let setting = Setting { sidecar, application, nats_server, rate: args.rate, length, kinds, sidecars };
    let dir = run_directory()?;
    let bar = bar(args.runs);
    bar.set_message("RabbitMQ is starting");
    let mut rabbit = Server::Up(RabbitMq::try_start().map_err(Failure::new)?);
    eprintln!("{} runs from seed {first} on, {:.0} messages/s offered\n{}", args.runs, args.rate, heads());
    let mut runs = Vec::new();
    for seed in (first..).take(usize::try_from(args.runs).unwrap_or(usize::MAX)) {
        let files = dir.join(format!("seed-{seed}"));
        std::fs::create_dir_all(&files).doing(format_args!("cannot make {}", files.display()))?;
        let say = |what: &str| bar.set_message(format!("seed {seed}: {what}"));
        let row = run_one(&setting, seed, &files, &mut rabbit, &say)?;
        if stop::asked() {
            return Err(Failure::new(format_args!("interrupted; files are in {}", dir.display())));
        }
        let line = row.line();
        bar.suspend(|| eprintln!("{line}"));
        bar.inc(1);
        if row.wrong.is_empty() {
            std::fs::remove_dir_all(&files).doing(format_args!("cannot remove {}", files.display()))?;
        } else {
            bar.suspend(|| {
                row.wrong.iter().for_each(|wrong| eprintln!("       wrong: {wrong}"));
                eprintln!("       its files are in {}; again: {}", files.display(), args.again(seed));
            });
        }
        let wrong = !row.wrong.is_empty();
        runs.push(row);
        if wrong && !args.keep_going {
            break;
        }
    }
    bar.finish_and_clear();
    let report = Report { right: runs.iter().all(|run| run.wrong.is_empty()) && !runs.is_empty(), runs };
    if args.json {
        println!("{}", serde_json::to_string(&report).doing("cannot write the report")?);
    } else {
        print!("{}", report.text());
    }
    if report.right {
        std::fs::remove_dir_all(&dir).doing(format_args!("cannot remove {}", dir.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("the applications' files and all logs of what went wrong are in {}", dir.display());
    Ok(ExitCode::FAILURE)
}

impl ChaosArgs {
    /// The command that does the run of a seed again.
    fn again(&self, seed: u64) -> String {
        let mut command =
            format!("cargo xtask chaos --runs 1 --seed {seed} --rate {} --seconds {}", self.rate, self.seconds);
        if self.sidecars != 2 {
            command.push_str(&format!(" --sidecars {}", self.sidecars));
        }
        let kinds: Vec<String> =
            self.kill.iter().filter_map(|kind| Some(kind.to_possible_value()?.get_name().to_owned())).collect();
        if !kinds.is_empty() {
            command.push_str(&format!(" --kill {}", kinds.join(",")));
        }
        command
    }
}

fn found(file: &std::path::Path) -> Result<PathBuf, Failure> {
    file.canonicalize().doing(format_args!("cannot find {}", file.display()))
}

fn bar(runs: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(runs), ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} runs, {elapsed} gone, {eta} to go  {msg}");
    bar.set_style(style.expect("the template is valid").progress_chars("=> "));
    bar
}

/// Waits a moment before the next look.
///
/// # Errors
/// When somebody asked us to stop.
fn pause() -> Result<(), Failure> {
    if stop::asked() {
        return Err(Failure::new("interrupted"));
    }
    std::thread::sleep(Duration::from_millis(5));
    Ok(())
}
