//! The benchmarks. `cargo xtask bench` builds this and the `nats-bridge` binary in release and runs it.

mod amqp;
mod bindings;
mod core;
mod forward;
mod processes;
mod program;
mod report;
mod sidecar;
mod topic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures ours beside a peer in the same run, and prints the ratio.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    /// One JSON object on stdout instead of a table.
    #[arg(long, global = true)]
    json: bool,
    /// A few messages only: shows that it works, not how fast it is.
    #[arg(long, global = true)]
    quick: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The AMQP listener beside RabbitMQ, driven by the same unmodified client.
    Amqp(amqp::AmqpArgs),
    /// The Python and Node packages beside nats-py, pika, nats.js and amqplib.
    Bindings(bindings::BindingsArgs),
    /// The core beside raw async-nats, doing the same work.
    Core(core::CoreArgs),
    /// Passes bytes on: the least that a process in between costs.
    #[command(hide = true)]
    Forward(forward::ForwardArgs),
    /// RabbitMQ through the sidecar, in observe and shadow, beside RabbitMQ itself.
    Sidecar(sidecar::SidecarArgs),
    /// Topic routing in memory beside a scan over all patterns.
    Topic(topic::TopicArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.what {
        What::Amqp(args) => amqp::run(args, cli.quick).await,
        What::Bindings(args) => bindings::run(args, cli.quick).await,
        What::Core(args) => core::run(args, cli.quick).await,
        What::Forward(args) => forward::run(args).await.map(|()| Vec::new()).map_err(Into::into),
        What::Sidecar(args) => sidecar::run(args, cli.quick).await,
        What::Topic(args) => topic::run(args, cli.quick),
    };
    match result {
        Ok(figures) if cli.json => println!("{}", serde_json::json!({ "figures": figures })),
        Ok(figures) => report::print_table(&figures),
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
