//! `nats-bridge serve`: AMQP 0-9-1 on JetStream alone.

use std::path::PathBuf;

use clap::Args;

use super::Failure;

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("broker").required(true).args(["embedded", "nats"]))]
pub struct ServeArgs {
    /// Start and supervise a local nats-server with JetStream that stores in DIR.
    #[arg(long, value_name = "DIR")]
    pub embedded: Option<PathBuf>,
    /// Use this NATS, which has JetStream.
    #[arg(long, env = "NATS_BRIDGE_NATS", value_name = "URL")]
    pub nats: Option<String>,
    /// The nats-server program for --embedded; else $NATS_SERVER, a `.tools` folder, or PATH.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
    /// Where AMQP clients connect to; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:5672", value_name = "HOST:PORT")]
    pub listen: String,
    /// Who may log in; may be given more than once. Without it: guest:guest, from this machine only.
    #[arg(long = "user", value_name = "NAME:PASSWORD")]
    pub users: Vec<String>,
    /// File that gets the real addresses as JSON once connections are accepted.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// `cannot_run`, naming the flag at fault.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    Err(Failure::cannot_run(format!("serve {}: not built yet", args.listen)))
}
