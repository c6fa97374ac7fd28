//! RabbitMQ through the sidecar, while RabbitMQ owns everything, beside RabbitMQ itself: what observing and `shadow` cost its applications, what
//! a NATS costs them that stands still, is gone, or is full, and what any process in between would cost them.

use std::time::Duration;

use clap::Args;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

use crate::amqp::client::{Client, Library};
use crate::amqp::drive::{Drive, Round};
use crate::amqp::workload::{Kind, Shape};
use crate::program::Program;
use crate::report::{Figure, median};

/// What `bench sidecar` takes.
#[derive(Debug, Clone, Args)]
pub struct SidecarArgs {
    /// Messages in each round as fast as possible; a quarter of it at `--pace`, a tenth one at a time.
    #[arg(long, default_value_t = 20_000)]
    pub messages: usize,
    /// Counted rounds of each side; one more of each comes first and is not counted.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Body size, in bytes.
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
    /// Messages a second where the latency of deliveries is measured.
    #[arg(long, default_value_t = 2_000.0)]
    pub pace: f64,
    /// Publishes in flight without a confirm, and consumer prefetch.
    #[arg(long, default_value_t = 256)]
    pub window: u16,
    /// The client that drives both.
    #[arg(long, value_enum, default_value_t = Library::Lapin)]
    pub client: Library,
    /// Only comparisons whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
}

/// What is between the applications and RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    /// A process that only passes bytes on: the least that anything in between costs here.
    Bytes,
    Observe,
    Shadow,
    ShadowFrozen,
    ShadowGone,
    ShadowFull,
}

const CASES: [Case; 6] =
    [Case::Bytes, Case::Observe, Case::Shadow, Case::ShadowFrozen, Case::ShadowGone, Case::ShadowFull];

impl Case {
    fn name(self) -> &'static str {
        match self {
            Case::Bytes => "bytes passed on",
            Case::Observe => "observe",
            Case::Shadow => "shadow",
            Case::ShadowFrozen => "shadow, NATS stands still",
            Case::ShadowGone => "shadow, NATS is gone",
            Case::ShadowFull => "shadow, NATS is full",
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Work {
    /// As fast as possible: throughput.
    Fast,
    /// At a pace: publish to delivery.
    Paced,
    /// One publish at a time: publish to confirm.
    Confirm,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Runs the whole comparison and returns its figures. `quick` shows that it works, with one small round.
///
/// # Errors
/// When a server cannot be started, or a broker refuses, loses, duplicates or reorders a message.
pub async fn run(args: &SidecarArgs, quick: bool) -> Result<Vec<Figure>, AnyError> {
    let args = &if quick { SidecarArgs { messages: 2_000, rounds: 1, ..args.clone() } } else { args.clone() };
    let client = Client::open(args.client)?;
    let rabbit = tokio::task::spawn_blocking(RabbitMq::start).await?;
    rabbit.create_vhost("direct");
    let mut figures = Vec::new();
    for case in CASES {
        if args.only.as_ref().is_none_or(|only| case.name().contains(only)) {
            figures.extend(compare(args, &client, case, &rabbit).await?);
        }
    }
    Ok(figures)
}

async fn compare(args: &SidecarArgs, client: &Client, case: Case, rabbit: &RabbitMq) -> Result<Vec<Figure>, AnyError> {
    let vhost = case.name().replace([' ', ','], "-");
    rabbit.create_vhost(&vhost);
    let mut nats = match case {
        Case::ShadowFull => NatsServer::builder().jetstream("max_file_store: 64MB").start(),
        _ => NatsServer::start(),
    };
    let sidecar = match case {
        Case::Bytes => Program::forward(&format!("127.0.0.1:{}", rabbit.port()))?,
        _ => Program::sidecar(&rabbit.url(), &nats.url())?,
    };
    let (through, direct) = (sidecar.url_for(&vhost), rabbit.url_for("direct"));
    if !matches!(case, Case::Bytes | Case::Observe) {
        sidecar.verb("shadow")?;
        // So that its queue is known on both sides before NATS fails.
        round(client, &through, Work::Fast, args, 200).await?;
    }
    match case {
        Case::Bytes | Case::Observe | Case::Shadow => {}
        Case::ShadowFrozen => nats.pause(),
        Case::ShadowGone => nats.kill_9(),
        Case::ShadowFull => fill(&through).await?,
    }
    let mut figures = Vec::new();
    for work in [Work::Fast, Work::Paced, Work::Confirm] {
        let messages = match work {
            Work::Fast => args.messages,
            Work::Paced => args.messages / 4,
            Work::Confirm => args.messages / 10,
        };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for number in 0..=args.rounds {
            let here = round(client, &through, work, args, messages).await?;
            let there = round(client, &direct, work, args, messages).await?;
            if number > 0 {
                eprintln!(
                    "{} {work:?} round {number}: sidecar {:>7.0}/s p50 {:.2} p99 {:.2} ms  direct {:>7.0}/s p50 {:.2} p99 {:.2} ms",
                    case.name(),
                    here.rate,
                    here.latency_p50_ms,
                    here.latency_p99_ms,
                    there.rate,
                    there.latency_p50_ms,
                    there.latency_p99_ms,
                );
                ours.push(here);
                theirs.push(there);
            }
        }
        figures.push(figure(case, work, args, messages, &ours, &theirs));
    }
    if case == Case::ShadowFrozen {
        nats.resume();
    }
    Ok(figures)
}

async fn round(client: &Client, url: &str, work: Work, args: &SidecarArgs, messages: usize) -> Result<Round, AnyError> {
    let (window, prefetch) = (usize::from(args.window), args.window);
    let drive = Drive { messages, size: args.size, window, prefetch };
    let shape = Shape::single(Kind::Classic);
    match work {
        Work::Fast => client.drive(url, shape, drive).await,
        Work::Paced => client.drive(url, Shape { pace: Some(args.pace), ..shape }, drive).await,
        Work::Confirm => client.confirms(url, messages, args.size).await,
    }
}

/// Publishes to a queue that nobody consumes from until JetStream can take no more.
async fn fill(url: &str) -> Result<(), AnyError> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(Default::default()).await?;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("filler".into(), options, FieldTable::default()).await?;
    let body = vec![0x61; 128 * 1024];
    for _ in 0..640 {
        let durable = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), "filler".into(), options, &body, durable).await?.await?;
    }
    connection.close(200, "done".into()).await?;
    // The copies are behind the confirms.
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}

fn figure(case: Case, work: Work, args: &SidecarArgs, messages: usize, ours: &[Round], theirs: &[Round]) -> Figure {
    let of = |rounds: &[Round], what: fn(&Round) -> f64| median(rounds.iter().map(what));
    let pairs = |what: fn(&Round, &Round) -> f64| median(ours.iter().zip(theirs).map(|(a, b)| what(a, b)));
    let name = match work {
        Work::Fast => "publish, confirm, consume, ack",
        Work::Paced => "publish to delivery, paced",
        Work::Confirm => "publish to confirm, one at a time",
    };
    let extra = [
        ("p50 ms (sidecar)", of(ours, |r| r.latency_p50_ms)),
        ("p50 ms (direct)", of(theirs, |r| r.latency_p50_ms)),
        ("p50, us more than direct", pairs(|a, b| (a.latency_p50_ms - b.latency_p50_ms) * 1e3)),
        ("p99 ms (sidecar)", of(ours, |r| r.latency_p99_ms)),
        ("p99 ms (direct)", of(theirs, |r| r.latency_p99_ms)),
        ("p99, times direct", pairs(|a, b| a.latency_p99_ms / b.latency_p99_ms)),
    ];
    Figure {
        name: format!("{}: {name}", case.name()),
        detail: format!("{messages} messages of {} B, window {}", args.size, args.window),
        unit: "msg/s",
        ours: of(ours, |r| r.rate),
        peer_name: "RabbitMQ, direct".into(),
        peer: of(theirs, |r| r.rate),
        ratio: pairs(|a, b| a.rate / b.rate),
        extra: extra.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    }
}
