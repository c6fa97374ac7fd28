//! The command line: one subcommand a verb, one file a subcommand.
//!
//! Exit codes: 0 done, 1 done but the answer is "no" (a refused change, for example), 2 could not run.

mod apply;
mod assess;
mod backfill;
mod config;
mod detach;
mod dlq;
mod drain;
mod failover;
mod gate;
mod lease;
mod log;
mod logging;
mod native;
mod nats;
mod observe;
mod plan;
mod promote;
mod provision;
mod remedy;
mod request;
mod rollback;
mod schema;
pub mod serve;
mod settings;
mod shadow;
pub mod sidecar;
mod signals;
mod source;
mod status;
mod tls;
mod topology;
mod verify;
mod weight;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, FromArgMatches, Parser, Subcommand};

use settings::Source;

/// Runs the command line of this process and answers its exit code.
pub fn main() -> ExitCode {
    let (cli, source) = match started_with(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(failure) => {
            eprintln!("error: {failure}");
            return ExitCode::from(failure.code);
        }
    };
    logging::start(cli.log_format);
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(cli.command.run(source.as_ref())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

/// The command line, with what the environment and the file of settings add to it. What clap refuses ends the process.
fn started_with(mut words: Vec<OsString>) -> Result<(Cli, Option<Source>), Failure> {
    let source = settings::file_of(&words, |name| std::env::var_os(name))?;
    let merged = settings::merged(&words, source.as_ref(), |name| std::env::var_os(name))?;
    // It is about the settings of others.
    if merged.verbs.first().is_none_or(|verb| verb != "config") {
        words.clone_from(&merged.words);
    }
    let matches = match settings::command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => match config::with_origin(&error, &merged, source.as_ref()) {
            Some((_, failure)) => return Err(failure),
            None => error.exit(),
        },
    };
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    Ok((cli, source))
}

/// Half of the cores, unless `TOKIO_WORKER_THREADS` says otherwise: nats-server or RabbitMQ, and mostly the application,
/// are on the same machine, and each message that changes threads costs two switches more (docs/benchmarks.md).
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        builder.worker_threads((cores / 2).max(1));
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
    /// A file (TOML) with settings, for what neither the command line nor the environment says; `nats-bridge config` tells more.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
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
    /// Tell what of a RabbitMQ maps to JetStream, with a caveat or not, and whether the move can begin. Changes nothing.
    Assess(assess::AssessArgs),
    /// Write down what is to be declared on JetStream so that it has what RabbitMQ has. Changes nothing.
    Plan(plan::PlanArgs),
    /// Declare on JetStream what a plan says.
    Apply(apply::ApplyArgs),
    /// Compare what JetStream has with what RabbitMQ has. Changes nothing.
    Verify(verify::VerifyArgs),
    /// Stand between AMQP clients and RabbitMQ, and move their traffic to JetStream step by step.
    Sidecar(sidecar::SidecarArgs),
    /// Show a sidecar's phase, weight, depths and parity.
    Status(status::StatusArgs),
    /// Give JetStream this share of the traffic, in percent.
    Weight(weight::WeightArgs),
    /// May I go on? Yes or no, and why.
    Gate(gate::GateArgs),
    /// Raise the weight step by step while the gate says yes, and roll back when it says no.
    Promote(promote::PromoteArgs),
    /// Give all traffic back to RabbitMQ, or rehearse that.
    Rollback(rollback::RollbackArgs),
    /// Copy all traffic to JetStream and compare, while RabbitMQ stays the owner.
    Shadow(shadow::ShadowArgs),
    /// Stop copying; only look at the traffic.
    Observe(observe::ObserveArgs),
    /// Let go of RabbitMQ once JetStream owns everything and RabbitMQ's queues are empty.
    Detach(detach::DetachArgs),
    /// Show what still has to drain after a change of weight or before `detach`, and wait until it has.
    Drain(drain::DrainArgs),
    /// Show who changed what, when and why.
    Log(log::LogArgs),
    /// A broker is lost for good: give the other one what was kept of it, and everything from then on.
    Failover(failover::FailoverArgs),
    /// Make standby copies of what lay in RabbitMQ's queues before there were any.
    Backfill(backfill::BackfillArgs),
    /// Look at dead letters, put them back to work, set them aside.
    Dlq(dlq::DlqArgs),
    /// Make streams, consumers, dead-letter streams and buckets as a file says, or compare.
    Provision(provision::ProvisionArgs),
    /// Check the file of settings; show what is set, and by what.
    Config(config::ConfigArgs),
    /// Check, register and show schemas of payloads.
    Schema(schema::SchemaArgs),
    /// Print the version, as --version does.
    Version,
}

impl Command {
    /// Runs the verb to its end.
    async fn run(self, source: Option<&Source>) -> Result<(), Failure> {
        match self {
            Command::Serve(args) => serve::run(args).await,
            Command::Assess(args) => assess::run(args).await,
            Command::Plan(args) => plan::run(args).await,
            Command::Apply(args) => apply::run(args).await,
            Command::Verify(args) => verify::run(args).await,
            Command::Sidecar(args) => sidecar::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Weight(args) => weight::run(args).await,
            Command::Gate(args) => gate::run(args).await,
            Command::Promote(args) => promote::run(args).await,
            Command::Rollback(args) => rollback::run(args).await,
            Command::Shadow(args) => shadow::run(args).await,
            Command::Observe(args) => observe::run(args).await,
            Command::Detach(args) => detach::run(args).await,
            Command::Drain(args) => drain::run(args).await,
            Command::Log(args) => log::run(args).await,
            Command::Failover(args) => failover::run(args).await,
            Command::Backfill(args) => backfill::run(args).await,
            Command::Dlq(args) => dlq::run(args).await,
            Command::Provision(args) => provision::run(args).await,
            Command::Config(args) => config::run(args, source),
            Command::Schema(args) => schema::run(args).await,
            Command::Version => {
                println!("nats-bridge {}", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
        }
    }
}

/// Which running sidecar a verb talks to, and how it prints what it says.
#[derive(Debug, Clone, Args)]
pub struct Control {
    /// The sidecar's HTTP address, `HOST:PORT` or a URL.
    #[arg(long, env = "NATS_BRIDGE_HTTP", default_value = "127.0.0.1:8223", value_name = "ADDR")]
    pub http: String,
    /// Take the address from this ready file of the sidecar instead.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// The token the sidecar was started with, if it was.
    #[arg(long, env = "NATS_BRIDGE_HTTP_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// The file that the sidecar's token is in, instead of --token.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Who makes the change; default: $USER.
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// An address to listen on, as the system takes it.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    let port = |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok();
    match text.rsplit_once(':') {
        Some((host, end)) if !host.is_empty() && port(end) => Ok(text.to_owned()),
        _ => Err("HOST:PORT is expected, such as 127.0.0.1:5672".to_owned()),
    }
}

/// A time such as `500ms`, `60s`, `5m` or `1h`.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a number with ms, s, m or h is expected, such as 60s".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a number with ms, s, m or h is expected, such as 60s".to_owned())?;
    number.checked_mul(ms).map(std::time::Duration::from_millis).ok_or_else(|| "that is too long".to_owned())
}

/// What is written on a command line line by line, from a file: without blank lines and those that begin with `#`, each
/// with where it stands.
pub(crate) fn lines_in(flag: &str, file: &std::path::Path) -> Result<Vec<(String, String)>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::cannot_run(format!("{flag} {}: {error}", file.display())))?;
    let numbered = text.lines().map(str::trim).zip(1..);
    let meant = numbered.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    Ok(meant.map(|(line, n)| (format!("{flag} {}, line {n}", file.display()), line.to_owned())).collect())
}

/// How long a client may take to settle a delivery; `None`: as long as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerTimeout(pub Option<std::time::Duration>);

/// A length of time as [`duration`] takes it, or `off` (or 0) for none.
pub(crate) fn consumer_timeout(text: &str) -> Result<ConsumerTimeout, String> {
    if ["off", "0"].contains(&text) {
        return Ok(ConsumerTimeout(None));
    }
    match duration(text) {
        Ok(time) => Ok(ConsumerTimeout((!time.is_zero()).then_some(time))),
        Err(why) => Err(format!("{why}, or off")),
    }
}

/// What `--user` and the lines of `--user-file` say, each with where it stands.
pub(crate) fn users_given(flags: &[String], file: Option<&std::path::Path>) -> Result<Vec<(String, String)>, Failure> {
    let mut given: Vec<_> = flags.iter().map(|user| ("--user".to_owned(), user.clone())).collect();
    if let Some(file) = file {
        given.extend(lines_in("--user-file", file)?);
    }
    Ok(given)
}

/// The token in a file; what surrounds it is not part of it.
pub(crate) fn token_in(file: &std::path::Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(format!("{}: one token is expected, without spaces", file.display()));
    }
    Ok(token.to_owned())
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        for (text, ms) in [("0s", 0), ("500ms", 500), ("60s", 60_000), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        for bad in ["", "60", "s", "1 s", "-1s", "1.5s", "1d", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["127.0.0.1:5672", "localhost:0", "[::1]:1", "0.0.0.0:65535"] {
            assert_eq!(host_port(good).as_deref(), Ok(good));
        }
        for bad in ["", "5672", ":5672", "a", "a:", "a:b", "a:+1", "a:65536", "a:-1"] {
            assert!(host_port(bad).is_err_and(|why| why.starts_with("HOST:PORT is expected")), "{bad}");
        }
    }

    #[test]
    fn a_consumer_timeout_is_a_time_or_off() {
        let minute = ConsumerTimeout(Some(Duration::from_secs(60)));
        for (text, expected) in [("60s", minute), ("off", ConsumerTimeout(None)), ("0", ConsumerTimeout(None))] {
            assert_eq!(consumer_timeout(text), Ok(expected));
        }
        assert!(consumer_timeout("1800000").expect_err("no unit").ends_with(", or off"));
    }

    #[test]
    fn a_token_file_has_one_token() {
        let file = tempfile::NamedTempFile::new().expect("created");
        for (text, token) in [("secret\n", Some("secret")), ("  s3 cret", None), ("\n", None)] {
            std::fs::write(file.path(), text).expect("written");
            assert_eq!(token_in(file.path()).ok().as_deref(), token);
        }
        assert!(token_in(std::path::Path::new("/does/not/exist")).expect_err("not there").contains("/does/not/exist"));
    }
}
