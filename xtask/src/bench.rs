//! `cargo xtask bench`: runs the `bench` crate in release, with the servers it needs at hand.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::failure::{Doing, Failure};
use crate::tools::Tools;
use crate::workspace;

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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Our core beside raw async-nats.
    Core,
    /// The AMQP listener beside RabbitMQ.
    Amqp,
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
    let mut tools = Tools::open(None)?;
    let nats_server = tools.nats_server()?;
    if matches!(args.what, What::Amqp | What::All) {
        tools.rabbitmq()?;
    }
    drop(tools);
    let each: &[&str] = match args.what {
        What::Core => &["core"],
        What::Amqp => &["amqp"],
        What::Topic => &["topic"],
        What::All => &["core", "amqp", "topic"],
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
        if args.json {
            cargo.arg("--json");
        }
        if args.quick {
            cargo.arg("--quick");
        }
        let status = cargo.status().doing("cannot start cargo")?;
        if !status.success() {
            return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
    }
    Ok(ExitCode::SUCCESS)
}
