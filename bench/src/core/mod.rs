//! The core beside raw async-nats: the same messages, ids and headers, on the same server in the same run.
//!
//! Ours keeps everything on: table of outstanding messages for resends, retry policy, in-progress signals, metrics with
//! a recorder installed. The raw side does what the client's documentation shows. Rounds alternate between the two, and
//! which one goes first alternates too; the ratio is taken round by round.

mod latency;
mod paced;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, AckKind, consumer, context::ContextBuilder};
use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use nats_bridge::{Bridge, ConsumeConfig, Message, MessageId, PublishConfig, Retention, StreamSpec};
use test_support::nats::NatsServer;

use crate::processes;
use crate::report::{Figure, median};

/// What `bench core` takes.
#[derive(Debug, Clone, Args)]
pub struct CoreArgs {
    /// Messages in each round.
    #[arg(long, default_value_t = 100_000)]
    pub messages: usize,
    /// Counted rounds of each side; one more of each comes first and is not counted.
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// Payload sizes, in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 1024])]
    pub sizes: Vec<usize>,
    /// Publishes in flight without a confirm.
    #[arg(long, default_value_t = 1_000)]
    pub window: usize,
    /// The most messages that a consumer holds (ours) or asks for at once (raw).
    #[arg(long, default_value_t = 1_000)]
    pub credit: usize,
    /// Round trips of one publish at a time, in each round.
    #[arg(long, default_value_t = 5_000)]
    pub trips: usize,
    /// Messages a second that are sustained through handler and ack.
    #[arg(long, default_value_t = 10_000)]
    pub rate: u32,
    /// For how long each rate is sustained, in seconds; the search for the highest one takes a third of that for each rate that it
    /// tries.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Handlers that run at the same time, on both sides.
    #[arg(long, default_value_t = 64)]
    pub handlers: usize,
    /// Only workloads whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Clone, Copy)]
enum Side {
    Ours,
    Raw,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    /// Publish with a confirm for each, `ids`: with a message id and a header.
    Publish { ids: bool },
    /// Consume and ack each.
    Consume,
}

/// Runs the whole comparison and returns its figures. `quick` shows that it works, with one small round.
///
/// # Errors
/// When a server cannot be started, or a message is refused or missing.
pub async fn run(args: &CoreArgs, quick: bool) -> Result<Vec<Figure>, AnyError> {
    let args = &if quick {
        CoreArgs { messages: 2_000, rounds: 1, trips: 100, seconds: 1, ..args.clone() }
    } else {
        args.clone()
    };
    // Metrics are on: every count goes to a real recorder.
    metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder()?;
    let server = tokio::task::spawn_blocking(NatsServer::start).await?;
    let mut figures = Vec::new();
    for &size in &args.sizes {
        for work in [Work::Publish { ids: true }, Work::Publish { ids: false }, Work::Consume] {
            let name = name(work, size);
            if args.only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
                figures.push(compare(&server.url(), args, work, size, name).await?);
            }
        }
    }
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    if wanted(latency::NAME) {
        figures.push(latency::compare(&server.url(), args).await?);
    }
    if wanted(paced::SUSTAINED) {
        figures.push(paced::sustained(&server.url(), args).await?);
    }
    if wanted(paced::HIGHEST) {
        figures.push(paced::highest(&server.url(), args, quick).await?);
    }
    Ok(figures)
}

// A work queue of its own for each measurement.
async fn with_stream(bridge: &Bridge) -> Result<(), AnyError> {
    let spec = StreamSpec { retention: Retention::WorkQueue, unbounded: true, ..StreamSpec::new("BENCH", ["bench.>"]) };
    Ok(bridge.ensure_stream(&spec).await?)
}

fn name(work: Work, size: usize) -> String {
    match work {
        Work::Publish { ids: true } => format!("core publish+confirm, id and header, {size} B"),
        Work::Publish { ids: false } => format!("core publish+confirm, bare, {size} B"),
        Work::Consume => format!("core consume+ack, {size} B"),
    }
}

async fn compare(url: &str, args: &CoreArgs, work: Work, size: usize, name: String) -> Result<Figure, AnyError> {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    let (mut cpu_ours, mut cpu_raw) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let order = if round % 2 == 0 { [Side::Ours, Side::Raw] } else { [Side::Raw, Side::Ours] };
        for side in order {
            let (took, cpu) = once(url, args, work, size, side).await?;
            let rate = args.messages as f64 / took.as_secs_f64();
            let cpu = cpu.as_secs_f64() * 1e6 / args.messages as f64;
            let (rates, cpus) = match side {
                Side::Ours => (&mut ours, &mut cpu_ours),
                Side::Raw => (&mut raw, &mut cpu_raw),
            };
            if round > 0 {
                rates.push(rate);
                cpus.push(cpu);
            }
        }
        if round > 0 {
            eprintln!("{name} round {round}: ours {:>7.0}/s  raw {:>7.0}/s", ours[round - 1], raw[round - 1]);
        }
    }
    let detail = match work {
        Work::Publish { .. } => {
            format!("{} messages, window {}, file storage, default sync", args.messages, args.window)
        }
        Work::Consume => format!("{} messages, credit {}, work queue, one ack each", args.messages, args.credit),
    };
    Ok(Figure {
        name,
        detail,
        unit: "msg/s",
        ours: median(ours.iter().copied()),
        peer_name: "raw async-nats".into(),
        peer: median(raw.iter().copied()),
        ratio: median(ours.iter().zip(&raw).map(|(ours, raw)| ours / raw)),
        // Steadier than rates on a machine that does other things too.
        extra: vec![
            ("client CPU us/msg (ours)".into(), median(cpu_ours.iter().copied())),
            ("client CPU us/msg (raw async-nats)".into(), median(cpu_raw.iter().copied())),
        ],
    })
}

// The wall clock, and the CPU time of this process (the server is another one).
struct Started {
    wall: Instant,
    cpu: Duration,
}

impl Started {
    fn now() -> Self {
        Started { cpu: cpu_time(), wall: Instant::now() }
    }

    fn elapsed(&self) -> (Duration, Duration) {
        (self.wall.elapsed(), cpu_time().saturating_sub(self.cpu))
    }
}

fn cpu_time() -> Duration {
    processes::cpu_of(std::process::id())
}

// One round of one side, on a stream and a connection of its own.
async fn once(
    url: &str,
    args: &CoreArgs,
    work: Work,
    size: usize,
    side: Side,
) -> Result<(Duration, Duration), AnyError> {
    let bridge = Bridge::connect(url).await?;
    with_stream(&bridge).await?;
    let payload = Bytes::from(vec![b'x'; size]);
    let took = match (work, side) {
        (Work::Publish { ids }, Side::Ours) => publish_ours(&bridge, args, ids, payload).await?,
        (Work::Publish { ids }, Side::Raw) => publish_raw(url, args, ids, payload).await?,
        (Work::Consume, side) => {
            publish_ours(&bridge, args, false, payload).await?;
            match side {
                Side::Ours => consume_ours(&bridge, args).await?,
                Side::Raw => consume_raw(url, args).await?,
            }
        }
    };
    let left = bridge.jetstream().get_stream("BENCH").await?.cached_info().state.messages;
    let expected = if matches!(work, Work::Consume) { 0 } else { args.messages as u64 };
    if left != expected {
        return Err(format!("{left} messages in the stream, {expected} expected").into());
    }
    bridge.jetstream().delete_stream("BENCH").await?;
    bridge.close(Duration::from_secs(5)).await?;
    Ok(took)
}

fn id(i: usize) -> String {
    format!("bench-message-{i:022}")
}

async fn publish_ours(
    bridge: &Bridge,
    args: &CoreArgs,
    ids: bool,
    payload: Bytes,
) -> Result<(Duration, Duration), AnyError> {
    let publisher = bridge.publisher(PublishConfig { max_in_flight: args.window, ..PublishConfig::default() }).await?;
    let mut pending = VecDeque::with_capacity(args.window);
    let started = Started::now();
    for i in 0..args.messages {
        let message = Message::new("bench.publish", payload.clone());
        let message = match ids {
            true => message.id(id(i)).header("tenant", "acme"),
            false => message.message_id(MessageId::None),
        };
        if pending.len() == args.window
            && let Some(oldest) = pending.pop_front()
        {
            oldest.await?;
        }
        pending.push_back(publisher.publish_later(message).await?);
    }
    for confirm in pending {
        confirm.await?;
    }
    Ok(started.elapsed())
}

async fn publish_raw(url: &str, args: &CoreArgs, ids: bool, payload: Bytes) -> Result<(Duration, Duration), AnyError> {
    let client = async_nats::connect(url).await?;
    let js = ContextBuilder::new().max_ack_inflight(args.window).build(client);
    let mut pending = VecDeque::with_capacity(args.window);
    let started = Started::now();
    for i in 0..args.messages {
        if pending.len() == args.window
            && let Some(oldest) = pending.pop_front()
        {
            oldest.await?;
        }
        let ack = match ids {
            true => {
                let mut headers = HeaderMap::new();
                headers.insert(NATS_MESSAGE_ID, id(i));
                headers.insert("tenant", "acme");
                js.publish_with_headers("bench.publish", headers, payload.clone()).await?
            }
            false => js.publish("bench.publish", payload.clone()).await?,
        };
        pending.push_back(ack);
    }
    for ack in pending {
        ack.await?;
    }
    Ok(started.elapsed())
}

async fn consume_ours(bridge: &Bridge, args: &CoreArgs) -> Result<(Duration, Duration), AnyError> {
    let config = ConsumeConfig { max_messages: args.credit, ..ConsumeConfig::new("BENCH", "bench") };
    let mut consumer = bridge.consume(config).await?;
    let started = Started::now();
    for i in 1..=args.messages {
        let delivery = consumer.next().await?.ok_or("the consumer ended")?;
        // The last one is confirmed: all acks before it have been taken then.
        let settled = if i == args.messages { delivery.ack_confirmed().await } else { delivery.ack().await };
        settled?;
    }
    Ok(started.elapsed())
}

async fn consume_raw(url: &str, args: &CoreArgs) -> Result<(Duration, Duration), AnyError> {
    let js = jetstream::new(async_nats::connect(url).await?);
    let config = consumer::pull::Config {
        durable_name: Some("bench".into()),
        max_ack_pending: -1,
        ..consumer::pull::Config::default()
    };
    let consumer = js.get_stream("BENCH").await?.create_consumer(config).await?;
    let started = Started::now();
    let mut messages = consumer.stream().max_messages_per_batch(args.credit).messages().await?;
    for i in 1..=args.messages {
        let message = messages.next().await.ok_or("the consumer ended")??;
        if i == args.messages { message.double_ack_with(AckKind::Ack).await? } else { message.ack().await? }
    }
    Ok(started.elapsed())
}
