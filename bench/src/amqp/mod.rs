//! The AMQP listener beside RabbitMQ: the same unmodified client drives both in one run.
//!
//! Rounds alternate between the brokers, so that a noisy machine slows both; the ratio is taken round by round.

pub mod client;
pub mod drive;
mod memory;
mod raw;
mod servers;
pub mod workload;

use std::time::Duration;

use clap::Args;

use self::client::{Client, Library};
use self::drive::{Drive, Round};
use self::servers::{Profile, Servers};
use self::workload::{Memory, Shape, Workload};
use crate::processes;
use crate::report::{Figure, median};

/// What `bench amqp` takes.
#[derive(Debug, Clone, Args)]
pub struct AmqpArgs {
    /// How durable, and on how many servers; separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Profile::Default, Profile::Always, Profile::Three])]
    pub profiles: Vec<Profile>,
    /// Only figures whose name contains one of these, separated by `;`. `--list` prints the names.
    #[arg(long, value_delimiter = ';', value_name = "TEXT")]
    pub only: Vec<String>,
    /// Print the names of the figures and measure nothing.
    #[arg(long)]
    pub list: bool,
    /// Messages in each round; less where each is more work, and a tenth where each publish waits for disks.
    #[arg(long, default_value_t = 40_000)]
    pub messages: usize,
    /// Counted rounds of each broker; one more of each comes first and is not counted.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Body sizes, in bytes. What has one queue is measured with each, the rest with the first.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 1024, 65_536])]
    pub sizes: Vec<usize>,
    /// Publishes in flight without a confirm.
    #[arg(long, default_value_t = 256)]
    pub window: usize,
    /// Consumer prefetch.
    #[arg(long, default_value_t = 256)]
    pub prefetch: u16,
    /// The client that drives both.
    #[arg(long, value_enum, default_value_t = Library::Lapin)]
    pub client: Library,
    /// Idle connections, for their memory.
    #[arg(long, default_value_t = 500)]
    pub connections: usize,
    /// Empty queues, for their memory; a tenth on three servers.
    #[arg(long, default_value_t = 2_000)]
    pub queues: usize,
    /// Messages that lie in a queue, for their memory.
    #[arg(long, default_value_t = 20_000)]
    pub queued: usize,
    /// Measure this broker instead of a listener started here; not its memory.
    #[arg(long, value_name = "AMQP_URL")]
    pub listener: Option<String>,
    /// Compare with this broker instead of a RabbitMQ started here; not its memory.
    #[arg(long, value_name = "AMQP_URL")]
    pub rabbit: Option<String>,
}

impl AmqpArgs {
    /// Whether a figure of this name is wanted.
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only.trim()))
    }
}

const NO_NATS: &str = "`beside raw JetStream` needs the listener that is started here: leave --listener out";

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Runs the whole comparison and returns its figures. `quick` shows that it works, with one small round.
///
/// # Errors
/// When a server cannot be started, or a broker refuses, loses, duplicates or reorders a message.
pub async fn run(args: &AmqpArgs, quick: bool) -> Result<Vec<Figure>, AnyError> {
    let small = AmqpArgs { messages: 2_000, rounds: 1, connections: 50, queues: 100, queued: 2_000, ..args.clone() };
    let args = if quick { &small } else { args };
    if args.sizes.is_empty() {
        return Err("--sizes: at least one size is needed".into());
    }
    if args.profiles.len() > 1 && (args.listener.is_some() || args.rabbit.is_some()) {
        return Err("--listener and --rabbit are one broker each: say with --profiles which one of them it is".into());
    }
    let client = Client::open(args.client)?;
    let mut figures = Vec::new();
    for &profile in &args.profiles {
        let mut rates = Workload::all(profile, &args.sizes);
        rates
            .retain(|(workload, size)| args.wants(&name(profile, *workload, *size)) && client.drives(workload.shape()));
        let mut memory = Memory::all(profile).to_vec();
        memory.retain(|memory| args.wants(&format!("{}: {}", profile.name(), memory.name())));
        if args.list {
            rates.iter().for_each(|(workload, size)| eprintln!("{}", name(profile, *workload, *size)));
            memory.iter().for_each(|memory| eprintln!("{}: {}", profile.name(), memory.name()));
            continue;
        }
        // Each has servers of its own: what was done before is not in their memory.
        for memory in memory {
            let servers = Servers::start(args, profile).await?;
            match servers.are_ours_to_read() {
                true => figures.push(memory::measure(&servers, profile, memory, args).await?),
                false => eprintln!("{}: left out, not all of it was started here", memory.name()),
            }
        }
        if !rates.is_empty() {
            figures.extend(compare(args, &client, profile, &rates).await?);
        }
    }
    Ok(figures)
}

fn name(profile: Profile, workload: Workload, size: usize) -> String {
    format!("{}: {}, {size} B", profile.name(), workload.name())
}

/// All figures of one profile that are rates.
async fn compare(
    args: &AmqpArgs,
    client: &Client,
    profile: Profile,
    rates: &[(Workload, usize)],
) -> Result<Vec<Figure>, AnyError> {
    let servers = Servers::start(args, profile).await?;
    let mut figures = Vec::new();
    let mut pace = None;
    for &(workload, size) in rates {
        let messages = workload.publishes(profile.publishes(args.messages), size);
        let drive = Drive { messages, size, window: args.window, prefetch: args.prefetch };
        if let (Workload::Paced(kind), None) = (workload, pace) {
            // Not measured by a figure before.
            let shape = Shape::single(kind);
            let (ours, peer) = (
                client.drive(&servers.listener, shape, drive).await?,
                client.drive(&servers.rabbit, shape, drive).await?,
            );
            pace = Some(ours.rate.min(peer.rate) / 2.0);
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=args.rounds {
            let here = load(client, &servers.listener, workload, drive, pace);
            let here = with_cpu(&servers.ours, drive, here).await?;
            let there = match workload {
                Workload::Raw(_) => {
                    let there = raw::drive(servers.nats.as_deref().ok_or(NO_NATS)?, servers.replicas, drive);
                    with_cpu(&servers.ours, drive, there).await?
                }
                _ => with_cpu(&servers.theirs, drive, load(client, &servers.rabbit, workload, drive, pace)).await?,
            };
            if round > 0 {
                eprintln!(
                    "{:<50} round {round}: listener {:>7.0}/s  {} {:>7.0}/s",
                    name(profile, workload, size),
                    here.rate,
                    workload.peer(),
                    there.rate
                );
                ours.push(here);
                theirs.push(there);
            }
        }
        let figure = figure(name(profile, workload, size), workload, drive, &ours, &theirs);
        if size == args.sizes[0]
            && let Workload::Queue { pairs: 1, ack_every: 1, kind } = workload
            && rates.iter().any(|(other, _)| *other == Workload::Paced(kind))
        {
            pace = Some(figure.ours.min(figure.peer) / 2.0);
        }
        figures.push(figure);
    }
    Ok(figures)
}

/// Adds to a round what it cost: `broker` is the broker's processes, none where they are not known.
async fn with_cpu(
    broker: &[u32],
    drive: Drive,
    round: impl Future<Output = Result<Round, AnyError>>,
) -> Result<Round, AnyError> {
    let taken = || (processes::cpu_of_trees(broker), processes::cpu_of(std::process::id()));
    let before = taken();
    let round = round.await?;
    let after = taken();
    let each = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() * 1e6 / drive.messages as f64;
    let broker_cpu_us = (!broker.is_empty()).then(|| each(before.0, after.0));
    Ok(Round { broker_cpu_us, client_cpu_us: round.client_cpu_us + each(before.1, after.1), ..round })
}

async fn load(
    client: &Client,
    url: &str,
    workload: Workload,
    drive: Drive,
    pace: Option<f64>,
) -> Result<Round, AnyError> {
    let Some(shape) = workload.shape() else { return drive::round_trips(url, drive.messages, drive.size).await };
    let pace = if matches!(workload, Workload::Paced(_)) { pace } else { None };
    let round = client.drive(url, Shape { pace, ..shape }, drive).await;
    round.map_err(|error| format!("{}, on {url}: {error}", workload.name()).into())
}

fn figure(name: String, workload: Workload, drive: Drive, ours: &[Round], theirs: &[Round]) -> Figure {
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
        name,
        detail: format!("{messages} messages of {size} B, window {window}, prefetch {prefetch}"),
        unit: if workload == Workload::Rpc { "calls/s" } else { "msg/s" },
        ours: pick(ours, |r| r.rate),
        peer_name: workload.peer().into(),
        peer: pick(theirs, |r| r.rate),
        ratio: median(ours.iter().zip(theirs).map(|(a, b)| a.rate / b.rate)),
        extra,
    }
}
