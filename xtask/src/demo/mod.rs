//! `cargo xtask demo`: unmodified RabbitMQ applications move to JetStream and back and there again while they run.
//!
//! The applications are `examples/demo/*.py`. They know an AMQP URL and nothing else, and write down what they do; the
//! verdict is computed from what they wrote, and from nothing else.

pub(crate) mod apps;
mod journey;
pub(crate) mod ledger;
mod progress;
pub(crate) mod random;
mod report;
mod script;
pub(crate) mod sidecar;
mod timeline;
pub(crate) mod topology;
pub(crate) mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::failure::{Doing, Failure};
use crate::tools::{Packages, Tools};
use crate::{process, stop, workspace};
use journey::Journey;
use report::{Report, StepReport};
use verdict::Promise;

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Fewer messages (20 000 unless --messages says otherwise): under a minute after the build.
    #[arg(long)]
    quick: bool,
    /// Repeats a run: the same customers, message sizes and kills [default: another one each time, which is printed].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many messages to publish, at least [default: 60 000].
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// Messages a second that the applications publish together.
    #[arg(long, value_name = "N", default_value_t = 900.0)]
    rate: f64,
    /// Kill the nats-server and the sidecar on the way (kill -9), each once, and start them again after a second.
    #[arg(long)]
    chaos: bool,
    /// Leave everything up at the end and print the URLs; Ctrl-C stops it.
    #[arg(long)]
    keep: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
    /// The applications on RabbitMQ alone, without a sidecar: what the ledger says of RabbitMQ itself.
    #[arg(long, conflicts_with = "chaos")]
    direct: bool,
    /// This nats-bridge binary, instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Runs the demo.
///
/// # Errors
/// When it cannot begin. Whatever goes wrong once messages flow is part of the report, and of the exit code: 1.
pub fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    if !(args.rate.is_finite() && (10.0..=20_000.0).contains(&args.rate)) {
        return Err(Failure::new("--rate must be between 10 and 20000"));
    }
    let seed = args.seed.unwrap_or_else(|| now_unix_ns() / 1_000_000 % 1_000_000);
    let mut tools = Tools::open(None)?;
    let nats_server = tools.nats_server()?;
    tools.rabbitmq()?;
    let python = tools.python(Packages::Apps)?;
    drop(tools);
    let binary = match &args.binary {
        Some(binary) => binary.canonicalize().doing(format_args!("cannot find {}", binary.display()))?,
        None if args.direct => PathBuf::new(),
        None => build(&[SIDECAR])?.swap_remove(0),
    };
    stop::listen()?;
    let dir = run_directory()?;
    let steps = match (args.direct, args.chaos) {
        (true, _) => script::baseline(),
        (false, false) => script::whole_way(),
        (false, true) => script::with_kills(script::whole_way(), seed),
    };
    let promise = if args.chaos { Promise::SurvivesKills } else { Promise::Unnoticed };
    let messages = args.messages.unwrap_or(if args.quick { 20_000 } else { 60_000 });

    let start = Instant::now();
    let mut journey =
        Journey::prepare(&dir, &python, &nats_server, (!args.direct).then_some(binary.as_path()), args.chaos)?;
    let travelled = journey.travel(&steps, messages.div_ceil(steps.len() as u64), args.rate, seed);
    let mut wrong: Vec<String> = travelled.err().map(|failure| failure.to_string()).into_iter().collect();
    wrong.extend(journey.finish_apps().err().map(|failure| failure.to_string()));
    let ledgers = journey.ledgers()?;
    let queues = topology::queues();
    let ledger = verdict::judge(&ledgers, &queues);
    wrong.extend(ledger.wrong(promise));
    let marks: Vec<_> = journey.passed().iter().map(|passed| passed.mark.clone()).collect();
    let steps = timeline::rows(&ledgers, &queues, &marks)
        .into_iter()
        .zip(journey.passed())
        .map(|(row, passed)| StepReport {
            row,
            rabbit_percent: passed.rabbit_percent,
            nats_percent: passed.rabbit_percent.map(|rabbit| 100.0 - rabbit),
            change_ms: report::in_ms(passed.change),
        })
        .collect();
    let kills = journey.kills().to_vec();
    let parity = journey.parity();
    // Nothing was lost or changed on RabbitMQ's side: whatever shadow calls a difference is one of its own. A kill may cost it copies.
    if let Some(differing) = parity.map(|parity| parity.differing).filter(|differing| *differing > 0 && !args.chaos) {
        wrong.push(format!("the sidecar reported {differing} differences in shadow"));
    }
    if !args.keep {
        wrong.extend(journey.finish_servers().err().map(|failure| failure.to_string()));
    }
    let seconds = start.elapsed().as_secs_f64();
    let right = wrong.is_empty();
    let report = Report { seed, right, wrong, ledger, kills, steps, parity, seconds, promise };
    if args.json {
        println!("{}", serde_json::to_string(&report).doing("cannot write the report")?);
    } else {
        print!("{}", report.text());
    }
    if args.keep {
        keep(&journey, &dir);
        journey.finish_servers()?;
    }
    if right && !args.keep {
        std::fs::remove_dir_all(&dir).doing(format_args!("cannot remove {}", dir.display()))?;
    } else {
        eprintln!("the applications' files and all logs are in {}", dir.display());
    }
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A package, and the binary of it.
pub(crate) type Program = (&'static str, &'static str);

/// The binary that is shipped.
pub(crate) const SIDECAR: Program = ("nats-bridge-sidecar", "nats-bridge");

/// Builds binaries as they would be shipped.
pub(crate) fn build(programs: &[Program]) -> Result<Vec<PathBuf>, Failure> {
    eprintln!(
        "building in release: 3 to 10 minutes the first time, depending on the machine; --binary FILE takes one that is there"
    );
    let mut cargo = workspace::cargo();
    // Not quiet: cargo shows what it compiles and how much is left.
    cargo.args(["build", "--release"]);
    for (package, binary) in programs {
        cargo.args(["--package", package, "--bin", binary]);
    }
    process::run("cargo build --release", &mut cargo)?;
    Ok(programs.iter().map(|(_, binary)| workspace::target().join("release").join(binary)).collect())
}

/// A new directory for this run's files; it is removed when all went well.
pub(crate) fn run_directory() -> Result<PathBuf, Failure> {
    let parent = workspace::target().join("demo");
    std::fs::create_dir_all(&parent).doing(format_args!("cannot make {}", parent.display()))?;
    let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&parent).doing("cannot make the run's directory")?;
    Ok(dir.keep())
}

fn keep(journey: &Journey, dir: &Path) {
    eprintln!("\neverything is up; Ctrl-C stops it");
    for (name, url) in journey.urls() {
        eprintln!("{name:<20} {url}");
    }
    eprintln!("{:<20} {}", "files", dir.display());
    while !stop::asked() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(crate) fn now_unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
