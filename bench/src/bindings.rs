//! The Python and Node packages beside the clients that their users have now, in the same run: nats-py and nats.js on the same
//! nats-server, pika and amqplib on RabbitMQ.
//!
//! Each round is a process of its own (`bench/bindings/drive.*`); what the other side does is one round later, and which one goes
//! first alternates; the ratio is taken round by round.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nats_bridge::{Bridge, Message, MessageId, Retention, StreamSpec};
use serde::Deserialize;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;
use tokio::process::Command;

use crate::processes;
use crate::report::{Figure, median};

/// What `bench bindings` takes.
#[derive(Debug, Clone, Args)]
pub struct BindingsArgs {
    /// Messages in each round; a tenth where each waits for its confirm.
    #[arg(long, default_value_t = 50_000)]
    pub messages: usize,
    /// Counted rounds of each side; one more of each comes first and is not counted.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Payload sizes, in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 1024])]
    pub sizes: Vec<usize>,
    /// Publishes in flight without a confirm, and messages that a consumer holds.
    #[arg(long, default_value_t = 1_000)]
    pub window: usize,
    /// Only comparisons whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
    /// Instead of comparing: passes so many messages through each package, and says whether its memory stays flat.
    #[arg(long, value_name = "MESSAGES")]
    pub memory: Option<usize>,
    /// With --memory: how often each package connects and closes, and whether it keeps files, threads or memory of it.
    #[arg(long, default_value_t = 1_000)]
    pub cycles: usize,
    /// The Python that has the packages.
    #[arg(long, env = "BENCH_PYTHON", default_value = "python3")]
    pub python: PathBuf,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Work {
    /// Publish with a window of confirms.
    Many,
    /// Publish, and wait for each confirm.
    Each,
    /// Consume and ack each.
    Consume,
}

#[derive(Debug, Clone, Copy)]
enum Language {
    Python,
    Node,
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    language: Language,
    work: Work,
    ours: &'static str,
    peer: &'static str,
}

const PAIRS: [Pair; 9] = [
    Pair { language: Language::Python, work: Work::Many, ours: "ours", peer: "nats-py" },
    Pair { language: Language::Python, work: Work::Each, ours: "ours", peer: "pika" },
    Pair { language: Language::Python, work: Work::Consume, ours: "ours", peer: "nats-py" },
    Pair { language: Language::Python, work: Work::Consume, ours: "ours-aio", peer: "nats-py" },
    Pair { language: Language::Python, work: Work::Consume, ours: "ours", peer: "pika" },
    Pair { language: Language::Node, work: Work::Many, ours: "ours", peer: "nats.js" },
    Pair { language: Language::Node, work: Work::Many, ours: "ours", peer: "amqplib" },
    Pair { language: Language::Node, work: Work::Consume, ours: "ours", peer: "nats.js" },
    Pair { language: Language::Node, work: Work::Consume, ours: "ours", peer: "amqplib" },
];

/// What a round took: as the client said, and as it was read of its server.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Took {
    seconds: f64,
    cpu_seconds: f64,
    #[serde(skip)]
    server_cpu: Duration,
}

struct Servers {
    nats: NatsServer,
    rabbit: RabbitMq,
}

/// Runs the whole comparison and returns its figures. `quick` shows that it works, with one small round.
///
/// # Errors
/// When a server or a client cannot be started, or a message is refused or missing.
pub async fn run(args: &BindingsArgs, quick: bool) -> Result<Vec<Figure>, AnyError> {
    if let Some(messages) = args.memory {
        return memory(args, messages).await.map(|()| Vec::new());
    }
    let args = &if quick { BindingsArgs { messages: 2_000, rounds: 1, ..args.clone() } } else { args.clone() };
    let servers =
        tokio::task::spawn_blocking(|| Servers { nats: NatsServer::start(), rabbit: RabbitMq::start() }).await?;
    let mut figures = Vec::new();
    for &size in &args.sizes {
        for pair in PAIRS {
            let name = name(pair, size);
            if args.only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
                figures.push(compare(&servers, args, pair, size, name).await?);
            }
        }
    }
    Ok(figures)
}

/// Runs `bench/bindings/memory.*`, which judge themselves, on a server that is fresh for each.
async fn memory(args: &BindingsArgs, messages: usize) -> Result<(), AnyError> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bindings");
    let (python, node) = (folder.join("memory.py"), folder.join("memory.mjs"));
    let mut grows = Vec::new();
    for face in ["threads", "asyncio", "node"] {
        let server = tokio::task::spawn_blocking(NatsServer::start).await?;
        let mut command = match face {
            "node" => Command::new("node"),
            _ => Command::new(&args.python),
        };
        match face {
            // V8's young generation grows by steps of 16 MiB when it likes; what is asked here is what is kept.
            "node" => command.args(["--expose-gc", "--max-semi-space-size=2"]).arg(&node),
            _ => command.arg(&python).arg(face),
        };
        let numbers = [messages, args.cycles].map(|number| number.to_string());
        if !command.arg(server.url()).args(numbers).kill_on_drop(true).status().await?.success() {
            grows.push(face);
        }
    }
    if grows.is_empty() { Ok(()) } else { Err(format!("memory or handles grow: {}", grows.join(", ")).into()) }
}

fn name(pair: Pair, size: usize) -> String {
    let language = match pair.language {
        Language::Python if pair.ours == "ours-aio" => "Python asyncio",
        Language::Python => "Python",
        Language::Node => "Node",
    };
    let work = match pair.work {
        Work::Many => "publish+confirm, windowed",
        Work::Each => "publish+confirm, one by one",
        Work::Consume => "consume+ack",
    };
    format!("{language} {work}, {size} B, beside {}", pair.peer)
}

async fn compare(
    servers: &Servers,
    args: &BindingsArgs,
    pair: Pair,
    size: usize,
    name: String,
) -> Result<Figure, AnyError> {
    let messages = if pair.work == Work::Each { args.messages / 10 } else { args.messages };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let order = if round % 2 == 0 { [pair.ours, pair.peer] } else { [pair.peer, pair.ours] };
        for client in order {
            let took = once(servers, args, pair, client, size, messages).await?;
            if round > 0 {
                if client == pair.ours { ours.push(took) } else { theirs.push(took) }
            }
        }
        if let (Some(ours), Some(theirs)) = (ours.last(), theirs.last()) {
            let rate = |took: &Took| messages as f64 / took.seconds;
            eprintln!("{name} round {round}: ours {:>7.0}/s  {} {:>7.0}/s", rate(ours), pair.peer, rate(theirs));
        }
    }
    let rate = |took: &Took| messages as f64 / took.seconds;
    let each = |seconds: f64| seconds * 1e6 / messages as f64;
    let cpu = |rounds: &[Took]| median(rounds.iter().map(|took| each(took.cpu_seconds)));
    let server = |rounds: &[Took]| median(rounds.iter().map(|took| each(took.server_cpu.as_secs_f64())));
    Ok(Figure {
        detail: format!("{messages} messages, window {}, file storage, default sync", args.window),
        unit: "msg/s",
        ours: median(ours.iter().map(rate)),
        peer_name: pair.peer.into(),
        peer: median(theirs.iter().map(rate)),
        ratio: median(ours.iter().zip(&theirs).map(|(ours, theirs)| theirs.seconds / ours.seconds)),
        extra: vec![
            ("client CPU us/msg (ours)".into(), cpu(&ours)),
            (format!("client CPU us/msg ({})", pair.peer), cpu(&theirs)),
            ("server CPU us/msg (ours)".into(), server(&ours)),
            (format!("server CPU us/msg ({})", pair.peer), server(&theirs)),
        ],
        name,
    })
}

// One round of one client, on a stream or queue of its own.
async fn once(
    servers: &Servers,
    args: &BindingsArgs,
    pair: Pair,
    client: &str,
    size: usize,
    messages: usize,
) -> Result<Took, AnyError> {
    let amqp = matches!(client, "pika" | "amqplib");
    let bridge = Bridge::connect(servers.nats.url()).await?;
    let url = if amqp { servers.rabbit.url_for(&servers.rabbit.fresh_vhost()) } else { servers.nats.url() };
    if !amqp {
        let spec =
            StreamSpec { retention: Retention::WorkQueue, unbounded: true, ..StreamSpec::new("BENCH", ["bench.>"]) };
        bridge.ensure_stream(&spec).await?;
    }
    if pair.work == Work::Consume {
        match amqp {
            // What is consumed was published by the peer itself.
            true => drop(drive(args, pair.language, (client, publishing(client)), &url, size, messages).await?),
            false => {
                let body = vec![b'x'; size];
                let one = || Message::new("bench.x", body.clone()).message_id(MessageId::None);
                for outcome in bridge.publish_many((0..messages).map(|_| one())).await {
                    outcome?;
                }
            }
        }
    }
    let work = match pair.work {
        Work::Many => "many",
        Work::Each => "each",
        Work::Consume => "consume",
    };
    let server = if amqp { servers.rabbit.pid() } else { servers.nats.pid() };
    let before = processes::cpu_of_trees(&[server]);
    let took = drive(args, pair.language, (client, work), &url, size, messages).await?;
    let took = Took { server_cpu: processes::cpu_of_trees(&[server]).saturating_sub(before), ..took };
    if !amqp {
        let left = bridge.jetstream().get_stream("BENCH").await?.cached_info().state.messages;
        let expected = if pair.work == Work::Consume { 0 } else { messages as u64 };
        if left != expected {
            return Err(format!("{client}: {left} messages in the stream, {expected} expected").into());
        }
        bridge.jetstream().delete_stream("BENCH").await?;
    }
    bridge.close(Duration::from_secs(5)).await?;
    Ok(took)
}

fn publishing(client: &str) -> &'static str {
    if client == "pika" { "each" } else { "many" }
}

async fn drive(
    args: &BindingsArgs,
    language: Language,
    (client, work): (&str, &str),
    url: &str,
    size: usize,
    messages: usize,
) -> Result<Took, AnyError> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bindings");
    let mut command = match language {
        Language::Python => {
            let mut command = Command::new(&args.python);
            command.arg(folder.join("drive.py"));
            command
        }
        Language::Node => {
            let mut command = Command::new("node");
            command.arg(folder.join("drive.mjs"));
            command
        }
    };
    let numbers = [messages, size, args.window].map(|number| number.to_string());
    let ran = command.args([client, work, url]).args(numbers).kill_on_drop(true).output().await?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        return Err(format!("{client} {work}: {}\n{said}", ran.status).into());
    }
    Ok(serde_json::from_slice(&ran.stdout)?)
}
