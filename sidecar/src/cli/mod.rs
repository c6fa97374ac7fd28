//! The command line: one subcommand a verb, one file a subcommand.
//!
//! Exit codes: 0 done, 1 done but the answer is "no" (a refused change, for example), 2 could not run.

mod detach;
mod dlq;
mod lease;
mod logging;
mod native;
mod observe;
mod provision;
mod rabbit_gate;
mod remedy;
mod request;
mod rollback;
pub mod serve;
mod shadow;
pub mod sidecar;
mod signals;
mod status;
mod tls;
mod weight;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Runs the command line of this process and answers its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.log_format);
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(cli.command.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

/// Half of the cores and at least two, unless `TOKIO_WORKER_THREADS` says otherwise: nats-server or RabbitMQ, and mostly the application,
/// are on the same machine, and each message that changes threads costs two switches more (docs/benchmarks.md).
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        builder.worker_threads((cores / 2).max(2));
    }
    builder.enable_all().build()
}

/// RabbitMQ applications on NATS JetStream.
#[derive(Debug, Parser)]
#[command(name = "nats-bridge", version, propagate_version = true)]
pub struct Cli {
    /// How log lines are written to stderr. `RUST_LOG` chooses what is logged (default `info`).
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve AMQP 0-9-1 clients on JetStream alone; no RabbitMQ anywhere.
    Serve(serve::ServeArgs),
    /// Stand between AMQP clients and RabbitMQ, and move their traffic to JetStream step by step.
    Sidecar(sidecar::SidecarArgs),
    /// Show a sidecar's phase, weight, depths and parity.
    Status(status::StatusArgs),
    /// Give JetStream this share of the traffic, in percent.
    Weight(weight::WeightArgs),
    /// Give all traffic back to RabbitMQ.
    Rollback(rollback::RollbackArgs),
    /// Copy all traffic to JetStream and compare, while RabbitMQ stays the owner.
    Shadow(shadow::ShadowArgs),
    /// Stop copying; only look at the traffic.
    Observe(observe::ObserveArgs),
    /// Let go of RabbitMQ once JetStream owns everything and RabbitMQ's queues are empty.
    Detach(detach::DetachArgs),
    /// Look at dead letters, put them back to work, set them aside.
    Dlq(dlq::DlqArgs),
    /// Make streams, consumers, dead-letter streams and buckets as a file says, or compare.
    Provision(provision::ProvisionArgs),
}

impl Command {
    /// Runs the verb to its end.
    async fn run(self) -> Result<(), Failure> {
        match self {
            Command::Serve(args) => serve::run(args).await,
            Command::Sidecar(args) => sidecar::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Weight(args) => weight::run(args).await,
            Command::Rollback(args) => rollback::run(args).await,
            Command::Shadow(args) => shadow::run(args).await,
            Command::Observe(args) => observe::run(args).await,
            Command::Detach(args) => detach::run(args).await,
            Command::Dlq(args) => dlq::run(args).await,
            Command::Provision(args) => provision::run(args).await,
        }
    }
}

/// Which running sidecar a verb talks to, and how it prints what it says.
#[derive(Debug, Clone, Args)]
pub struct Control {
    /// The sidecar's HTTP address, `HOST:PORT` or a URL.
    #[arg(long, env = "NATS_BRIDGE_HTTP", default_value = "127.0.0.1:8222", value_name = "ADDR")]
    pub http: String,
    /// Take the address from this ready file of the sidecar instead.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// The token the sidecar was started with, if it was.
    #[arg(long, env = "NATS_BRIDGE_HTTP_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Who makes the change; default: $USER.
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Why a verb did not succeed: what is printed, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code: 1 for a "no", 2 for "could not run".
    pub code: u8,
    /// What is printed after `error: `; it names the flag at fault where one is.
    pub text: String,
}

impl Failure {
    /// A request that was understood and refused: exit code 1.
    pub fn refused(text: impl fmt::Display) -> Self {
        Self { code: 1, text: text.to_string() }
    }

    /// A verb that could not run: exit code 2.
    pub fn cannot_run(text: impl fmt::Display) -> Self {
        Self { code: 2, text: text.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}
