//! `nats-bridge sidecar`: in the path between AMQP clients and RabbitMQ.

use std::path::PathBuf;

use clap::Args;

use super::Failure;

/// Arguments of `sidecar`.
#[derive(Debug, Args)]
pub struct SidecarArgs {
    /// RabbitMQ, as an AMQP URL. Clients log in with their own user names.
    #[arg(long, env = "NATS_BRIDGE_RABBIT", value_name = "URL")]
    pub rabbit: String,
    /// NATS with JetStream.
    #[arg(long, env = "NATS_BRIDGE_NATS", value_name = "URL")]
    pub nats: String,
    /// Where AMQP clients connect to; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:5673", value_name = "HOST:PORT")]
    pub listen: String,
    /// Where status and control are served; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8222", value_name = "HOST:PORT")]
    pub http: String,
    /// File that gets the real addresses as JSON once connections are accepted.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// Runs the sidecar until SIGTERM or SIGINT.
///
/// # Errors
/// `cannot_run`, naming the flag at fault.
pub async fn run(args: SidecarArgs) -> Result<(), Failure> {
    Err(Failure::cannot_run(format!("sidecar {}: not built yet", args.listen)))
}
