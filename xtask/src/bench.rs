//! `cargo xtask bench`: runs the `bench` crate in release, with the servers it needs at hand.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Args, ValueEnum};

use crate::failure::{Doing, Failure};
use crate::tools::{Packages, Tools};
use crate::{process, workspace};

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// Print one JSON object for each benchmark instead of tables.
    #[arg(long)]
    json: bool,
    /// Fewer messages: shows that it works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// With `bindings`: passes so many messages through each package and connects and closes 1 000 times, and says whether
    /// memory and handles stay what they are.
    #[arg(long, value_name = "MESSAGES")]
    memory: Option<u64>,
    /// For the benchmark itself, behind `--`: `cargo xtask bench amqp -- --profiles three --only memory`.
    #[arg(last = true)]
    more: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Our core beside raw async-nats.
    Core,
    /// The AMQP listener beside RabbitMQ.
    Amqp,
    /// The Python and Node packages beside nats-py, pika, nats.js and amqplib.
    Bindings,
    /// RabbitMQ through the sidecar beside RabbitMQ itself.
    Sidecar,
    /// Topic routing in memory.
    Topic,
    /// All of them.
    All,
}

/// Builds and runs the benchmarks.
///
/// # Errors
/// When a server is missing and cannot be brought, or cargo cannot be started.
pub fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    if args.what == What::All && !args.more.is_empty() {
        return Err(Failure::new(
            "what is behind `--` is for one benchmark: name it, as in `cargo xtask bench amqp -- ...`",
        ));
    }
    let mut tools = Tools::open(None)?;
    let nats_server = tools.nats_server()?;
    if matches!(args.what, What::Amqp | What::Bindings | What::Sidecar | What::All) {
        tools.rabbitmq()?;
    }
    if args.more.iter().any(|arg| arg.contains("rabbitmq-c")) {
        tools.rabbitmq_c()?;
    }
    let python = match args.what {
        What::Bindings | What::All => Some(packages(&mut tools)?),
        _ => None,
    };
    drop(tools);
    let each: &[&str] = match args.what {
        What::Core => &["core"],
        What::Amqp => &["amqp"],
        What::Bindings => &["bindings"],
        What::Sidecar => &["sidecar"],
        What::Topic => &["topic"],
        What::All => &["core", "amqp", "sidecar", "topic", "bindings"],
    };
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--release", "--package", "bench", "--package", "nats-bridge-sidecar"]);
    let status = build.status().doing("cannot start cargo")?;
    if !status.success() {
        return Ok(ExitCode::from(2));
    }
    for what in each {
        let mut cargo = workspace::cargo();
        cargo.args(["run", "--quiet", "--release", "--package", "bench", "--", what]).env("NATS_SERVER", &nats_server);
        if let Some(python) = &python {
            cargo.env("BENCH_PYTHON", python);
        }
        if args.json {
            cargo.arg("--json");
        }
        if args.quick {
            cargo.arg("--quick");
        }
        if let (Some(messages), &"bindings") = (args.memory, what) {
            cargo.args(["--memory", &messages.to_string()]);
        }
        cargo.args(&args.more);
        let status = cargo.status().doing("cannot start cargo")?;
        if !status.success() {
            return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds our packages in release, brings the clients that they are measured beside, and gives the Python that has them.
fn packages(tools: &mut Tools) -> Result<PathBuf, Failure> {
    tools.node()?;
    tools.python(Packages::Test)?;
    let python = tools.python(Packages::Bench)?;
    let venv = python.ancestors().nth(2).ok_or_else(|| Failure::new("an interpreter lies in VENV/bin"))?;
    let root = workspace::root();
    eprintln!("bench: building the Python and Node packages in release");
    let mut maturin = Command::new(&python);
    maturin.args(["-m", "maturin", "develop", "--release", "--quiet"]).current_dir(root.join("bindings/python"));
    maturin.env("VIRTUAL_ENV", venv).env("PYO3_PYTHON", &python).env_remove("CONDA_PREFIX");
    process::output("maturin develop", &mut maturin)?;
    let npm = |dir: &str, args: &[&str]| {
        process::output("npm", Command::new("npm").args(args).current_dir(root.join(dir)).env("PYO3_PYTHON", &python))
    };
    npm("bindings/node", &["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"])?;
    npm("bindings/node", &["run", "build:native", "--", "--release"])?;
    npm("bindings/node", &["run", "build:js"])?;
    npm("bench/bindings", &["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"])?;
    Ok(python)
}
