//! `application`: an ordinary RabbitMQ application, for the runs of `cargo xtask chaos`. It is lapin, an AMQP URL and a file.
//!
//! It declares what it needs, publishes with confirms or consumes with manual acks, connects again when its connection is gone, and
//! writes down what it did and what happened to it, one JSON object a line, before it does the next thing. The verdict is
//! computed from these files. SIGTERM: a publisher waits for its last confirm, a consumer for what it holds.

mod consumer;
mod publisher;
mod record;
mod topology;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use lapin::{Connection, ConnectionProperties};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use record::Records;
use topology::Topology;

/// An ordinary RabbitMQ application that writes down what it does.
#[derive(Debug, Parser)]
#[command(name = "application")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Publishes persistent, mandatory, confirmed messages.
    Publish(publisher::PublishArgs),
    /// Works on one queue with manual acks.
    Consume(consumer::ConsumeArgs),
}

/// What every application is told.
#[derive(Debug, Args)]
struct Common {
    /// The AMQP URL.
    #[arg(long)]
    url: String,
    /// This application's name.
    #[arg(long)]
    name: String,
    /// The file that records what this application did.
    #[arg(long)]
    ledger: PathBuf,
    /// What to declare, as JSON.
    #[arg(long)]
    topology: PathBuf,
}

/// Why a program or a connection of it ended.
type Ended = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Ended> {
    let cli = Cli::parse();
    let stop = CancellationToken::new();
    let (mut terminate, asked) = (signal(SignalKind::terminate())?, stop.clone());
    tokio::spawn(async move {
        terminate.recv().await;
        asked.cancel();
    });
    match cli.role {
        Role::Publish(args) => publisher::run(args, stop).await,
        Role::Consume(args) => consumer::run(args, stop).await,
    }
}

/// Opens a connection, at most 20 s long; says so when it cannot.
async fn connect(common: &Common, records: &mut Records) -> Result<Option<Connection>, Ended> {
    let connecting = Connection::connect(&common.url, ConnectionProperties::default());
    let why = match tokio::time::timeout(Duration::from_secs(20), connecting).await {
        Ok(Ok(connection)) => return Ok(Some(connection)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer within 20 s".to_owned(),
    };
    records.write([record::Event::ConnectFailed { why }])?;
    Ok(None)
}

/// How long an application waits before it connects for the `failures`th time in a row.
fn delay(failures: usize) -> Duration {
    Duration::from_millis([100, 200, 500][failures.min(2)])
}
