//! The AMQP listener beside RabbitMQ: the same unmodified lapin client drives both in one run.
//!
//! Rounds alternate between the brokers, so that a noisy machine slows both; the ratio is taken round by round.

pub mod drive;
mod raw;
pub mod workload;

use std::time::Duration;

use clap::Args;
use test_support::rabbit::RabbitMq;

use self::drive::{Drive, Round};
use self::workload::{Shape, Workload};
use crate::cpu;
use crate::program::Program;
use crate::report::{Figure, median};

/// What `bench amqp` takes.
#[derive(Debug, Clone, Args)]
pub struct AmqpArgs {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [
        Workload::Single, Workload::Multiple, Workload::Quorum, Workload::Four, Workload::Fanout3, Workload::Fanout10,
        Workload::Topic, Workload::Raw, Workload::Paced, Workload::Rpc,
    ])]
    pub workloads: Vec<Workload>,
    /// Messages in each round; less where each is more work.
    #[arg(long, default_value_t = 40_000)]
    pub messages: usize,
    /// Counted rounds of each broker; one more of each comes first and is not counted.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Body sizes, in bytes. `single` is measured with each, the rest with the first.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 1024, 65_536])]
    pub sizes: Vec<usize>,
    /// Publishes in flight without a confirm.
    #[arg(long, default_value_t = 256)]
    pub window: usize,
    /// Consumer prefetch.
    #[arg(long, default_value_t = 256)]
    pub prefetch: u16,
    /// nats-server's `sync_interval` for the listener started here: `always` is what RabbitMQ's confirms mean.
    #[arg(long, value_name = "INTERVAL")]
    pub sync: Option<String>,
    /// Measure this broker instead of a listener started here.
    #[arg(long, value_name = "AMQP_URL")]
    pub listener: Option<String>,
    /// Compare with this broker instead of a RabbitMQ node started here.
    #[arg(long, value_name = "AMQP_URL")]
    pub rabbit: Option<String>,
}

const NO_NATS: &str = "`raw` needs the listener that is started here: leave --listener out";

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Runs the whole comparison and returns its figures. `quick` shows that it works, with one small round.
///
/// # Errors
/// When a server cannot be started, or a broker refuses, loses, duplicates or reorders a message.
pub async fn run(args: &AmqpArgs, quick: bool) -> Result<Vec<Figure>, AnyError> {
    let args = &if quick { AmqpArgs { messages: 2_000, rounds: 1, ..args.clone() } } else { args.clone() };
    let (node, rabbit) = match &args.rabbit {
        Some(url) => (None, url.clone()),
        None => {
            let node = tokio::task::spawn_blocking(RabbitMq::start).await?;
            let url = node.url();
            (Some(node), url)
        }
    };
    let (gateway, listener, nats) = match &args.listener {
        Some(url) => (None, url.clone(), None),
        None => {
            let sync = args.sync.clone();
            let gateway = tokio::task::spawn_blocking(move || Program::serve(sync.as_deref())).await??;
            let (url, nats) = (gateway.url_for("/"), gateway.nats_url());
            (Some(gateway), url, nats)
        }
    };

    let mut figures = Vec::new();
    let mut pace = 1_000.0;
    for &workload in &args.workloads {
        let sizes = match workload {
            Workload::Single => &args.sizes[..],
            _ => &args.sizes[..1],
        };
        for &size in sizes {
            let messages = match size {
                0..=4096 => workload.publishes(args.messages),
                _ => workload.publishes(args.messages) / 8,
            };
            let drive = Drive { messages, size, window: args.window, prefetch: args.prefetch };
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 0..=args.rounds {
                let here = load(&listener, workload, drive, pace);
                let here = with_cpu(gateway.as_ref().map(Program::pid), drive, here).await?;
                let there = match workload {
                    Workload::Raw => {
                        let there = raw::drive(nats.as_deref().ok_or(NO_NATS)?, drive);
                        with_cpu(gateway.as_ref().map(Program::pid), drive, there).await?
                    }
                    _ => {
                        let there = load(&rabbit, workload, drive, pace);
                        with_cpu(node.as_ref().map(RabbitMq::pid), drive, there).await?
                    }
                };
                if round > 0 {
                    eprintln!(
                        "{:<26} {size:>6} B round {round}: listener {:>7.0}/s  {} {:>7.0}/s",
                        workload.name(),
                        here.rate,
                        workload.peer(),
                        there.rate
                    );
                    ours.push(here);
                    theirs.push(there);
                }
            }
            let figure = figure(workload, drive, &ours, &theirs);
            if workload == Workload::Single && size == args.sizes[0] {
                pace = figure.ours.min(figure.peer) / 2.0;
            }
            figures.push(figure);
        }
    }
    drop(gateway);
    drop(node);
    Ok(figures)
}

/// Adds to a round what it cost: `broker` is the root of the broker's processes.
async fn with_cpu(
    broker: Option<u32>,
    drive: Drive,
    round: impl Future<Output = Result<Round, AnyError>>,
) -> Result<Round, AnyError> {
    let taken = || (broker.map(cpu::of_tree), cpu::of_process(std::process::id()));
    let before = taken();
    let round = round.await?;
    let after = taken();
    let each = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() * 1e6 / drive.messages as f64;
    let broker_cpu_us = before.0.zip(after.0).map(|(from, to)| each(from, to));
    Ok(Round { broker_cpu_us, client_cpu_us: each(before.1, after.1), ..round })
}

async fn load(url: &str, workload: Workload, drive: Drive, pace: f64) -> Result<Round, AnyError> {
    let Some(shape) = workload.shape() else { return drive::round_trips(url, drive.messages, drive.size).await };
    let pace = (workload == Workload::Paced).then_some(pace);
    let round = drive::drive(url, Shape { pace, ..shape }, drive).await;
    round.map_err(|error| format!("{}, on {url}: {error}", workload.name()).into())
}

fn figure(workload: Workload, drive: Drive, ours: &[Round], theirs: &[Round]) -> Figure {
    let pick = |rounds: &[Round], of: fn(&Round) -> f64| median(rounds.iter().map(of));
    let Drive { messages, size, window, prefetch } = drive;
    let mut extra = Vec::new();
    for (who, rounds) in [("listener", ours), (workload.peer(), theirs)] {
        extra.push((format!("latency p50 ms ({who})"), pick(rounds, |r| r.latency_p50_ms)));
        extra.push((format!("latency p99 ms ({who})"), pick(rounds, |r| r.latency_p99_ms)));
        extra.push((format!("CPU us a message, client ({who})"), pick(rounds, |r| r.client_cpu_us)));
        if rounds.iter().all(|round| round.broker_cpu_us.is_some()) {
            extra.push((
                format!("CPU us a message, broker ({who})"),
                pick(rounds, |r| r.broker_cpu_us.unwrap_or_default()),
            ));
        }
    }
    Figure {
        name: format!("{}, {size} B", workload.name()),
        detail: format!("{messages} messages, window {window}, prefetch {prefetch}"),
        unit: if workload == Workload::Rpc { "calls/s" } else { "msg/s" },
        ours: pick(ours, |r| r.rate),
        peer_name: workload.peer().into(),
        peer: pick(theirs, |r| r.rate),
        ratio: median(ours.iter().zip(theirs).map(|(a, b)| a.rate / b.rate)),
        extra,
    }
}
