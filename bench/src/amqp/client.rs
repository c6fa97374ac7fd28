//! Which client drives a round: lapin in this process, or rabbitmq-c in one of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use lapin::options::QueueDeleteOptions;
use lapin::types::ShortString;
use lapin::{Connection, ConnectionProperties};
use serde::Deserialize;
use tempfile::TempDir;

use super::AnyError;
use super::drive::{self, Drive, Round};
use super::workload::{Kind, Shape};

/// A client of both brokers, as its authors publish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Library {
    /// lapin, which takes as long for a message as a gateway does.
    Lapin,
    /// rabbitmq-c, which takes a fifth of that: more of the machine is left to what is measured. Needs a C compiler and its headers; queues
    /// only, without exchanges and RPC.
    RabbitmqC,
}

/// A client, ready to be used.
pub enum Client {
    /// In this process.
    Lapin,
    /// The program, and the directory that it lies in as long as this does.
    RabbitmqC(Compiled),
}

/// A program, and the directory that it lies in.
pub struct Compiled {
    program: PathBuf,
    _dir: TempDir,
}

/// What the program prints.
#[derive(Deserialize)]
struct Measured {
    elapsed_s: f64,
    latency_p50_ms: f64,
    latency_p99_ms: f64,
    cpu_s: f64,
}

impl Client {
    /// Makes it ready: what is written in C is compiled.
    ///
    /// # Errors
    /// When there is no C compiler, or it does not find rabbitmq-c.
    pub fn open(library: Library) -> Result<Self, AnyError> {
        if library == Library::Lapin {
            return Ok(Self::Lapin);
        }
        let dir = TempDir::new()?;
        let (source, program) = (dir.path().join("rabbitmq-c.c"), dir.path().join("rabbitmq-c"));
        std::fs::write(&source, include_str!("../../clients/rabbitmq-c.c"))?;
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&program)
            .arg(&source)
            .args(["-lrabbitmq", "-lpthread"]);
        let needs =
            "--client rabbitmq-c needs a C compiler and librabbitmq: apt-get install gcc libc6-dev librabbitmq-dev";
        let compiled = cc.output().map_err(|error| format!("{needs} (cc: {error})"))?;
        if !compiled.status.success() {
            return Err(format!("{needs}\n{}", String::from_utf8_lossy(&compiled.stderr)).into());
        }
        Ok(Self::RabbitmqC(Compiled { program, _dir: dir }))
    }

    /// Whether it can drive this.
    pub fn drives(&self, shape: Option<Shape>) -> bool {
        let is_queue = |shape: Shape| shape.queues == 1 && !shape.is_fanout && shape.topic_bindings == 0;
        matches!(self, Self::Lapin) || shape.is_some_and(is_queue)
    }

    /// Publishes, consumes and acknowledges all messages of a round; from the first publish to the last ack *and* confirm.
    ///
    /// # Errors
    /// When the broker refuses, loses, duplicates or reorders (one publisher's messages to one consumer) a message.
    pub async fn drive(&self, url: &str, shape: Shape, drive: Drive) -> Result<Round, AnyError> {
        match self {
            Self::Lapin => drive::drive(url, shape, drive).await,
            Self::RabbitmqC(compiled) => compiled.run(url, shape, drive).await,
        }
    }

    /// Publishes one at a time, each after the confirm of the one before; the latency is that of the confirm.
    ///
    /// # Errors
    /// When a publish is not confirmed.
    pub async fn confirms(&self, url: &str, count: usize, size: usize) -> Result<Round, AnyError> {
        match self {
            Self::Lapin => drive::confirms(url, count, size).await,
            Self::RabbitmqC(compiled) => {
                let shape = Shape { consumers: 0, ..Shape::single(Kind::Classic) };
                compiled.run(url, shape, Drive { messages: count, size, window: 1, prefetch: 0 }).await
            }
        }
    }
}

impl Compiled {
    /// Runs it on a queue that is made for it and deleted.
    async fn run(&self, url: &str, shape: Shape, drive: Drive) -> Result<Round, AnyError> {
        let admin = Connection::connect(url, ConnectionProperties::default()).await?;
        let setup = admin.create_channel().await?;
        let queue = ShortString::from("bench-0");
        drive::declare(&setup, shape, std::slice::from_ref(&queue)).await?;
        let numbers = [shape.publishers, shape.consumers, drive.messages, drive.size, drive.window];
        let mut command = Command::new(&self.program);
        command.arg(url).arg(queue.as_str()).args(numbers.map(|number| number.to_string()));
        command.args([drive.prefetch.to_string(), shape.ack_every.to_string(), shape.pace.unwrap_or(0.0).to_string()]);
        let run = tokio::task::spawn_blocking(move || command.output()).await??;
        setup.queue_delete(queue, QueueDeleteOptions::default()).await?;
        admin.close(200, "done".into()).await?;
        if !run.status.success() {
            return Err(String::from_utf8_lossy(&run.stderr).trim().into());
        }
        let measured: Measured = serde_json::from_slice(&run.stdout)?;
        let count = drive.messages as f64;
        Ok(Round {
            rate: count / measured.elapsed_s,
            latency_p50_ms: measured.latency_p50_ms,
            latency_p99_ms: measured.latency_p99_ms,
            broker_cpu_us: None,
            client_cpu_us: Duration::from_secs_f64(measured.cpu_s).as_secs_f64() * 1e6 / count,
        })
    }
}
