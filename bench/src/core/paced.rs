//! A steady rate of messages through publish, confirm, handler and ack: how long each takes from end to end, and which rate is the
//! highest that holds without the lag growing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::{self, consumer, context::ContextBuilder};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures::StreamExt;
use nats_bridge::publish::Publisher;
use nats_bridge::{Bridge, ConsumeConfig, Failure, Message, PublishConfig};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{AnyError, CoreArgs, Side, id, with_stream};
use crate::report::{Figure, median, percentile};

pub(super) const SUSTAINED: &str = "core sustained, publish to ack";
pub(super) const HIGHEST: &str = "core highest rate without growing lag";

/// What must not be exceeded at the sustained rate.
const P99_MS: f64 = 10.0;

/// One run at one rate.
struct Trial {
    /// Sorted; from the moment that a message was due to be published until its handler had it and its ack was handed over.
    took: Vec<Duration>,
    /// Published and not handled, half way and at the end.
    lag: (u64, u64),
    /// How late the publisher was in the end.
    behind: Duration,
}

impl Trial {
    fn ms(&self, share: f64) -> f64 {
        percentile(&self.took, share).as_secs_f64() * 1e3
    }

    // The lag at the end is what 50 ms bring, or less than half way; and the publisher kept its pace.
    fn holds(&self, rate: u32) -> bool {
        let (half, end) = self.lag;
        self.behind < Duration::from_millis(100) && end <= (u64::from(rate) / 20).max(half)
    }
}

/// The rate of `--rate`, on both sides in turn.
pub(super) async fn sustained(url: &str, args: &CoreArgs) -> Result<Figure, AnyError> {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    let rounds = args.rounds.min(3);
    for round in 0..rounds {
        let order = if round % 2 == 0 { [Side::Ours, Side::Raw] } else { [Side::Raw, Side::Ours] };
        for side in order {
            let trial = once(url, args, args.rate, Duration::from_secs(args.seconds), side).await?;
            eprintln!(
                "{SUSTAINED} round {round}: {side:?} p50 {:.2} p99 {:.2} p99.9 {:.2} ms, lag {:?}",
                trial.ms(0.5),
                trial.ms(0.99),
                trial.ms(0.999),
                trial.lag
            );
            match side {
                Side::Ours => ours.push(trial),
                Side::Raw => raw.push(trial),
            }
        }
    }
    let of = |side: &[Trial], share: f64| median(side.iter().map(|trial| trial.ms(share)));
    let held = ours.iter().filter(|trial| trial.holds(args.rate)).count();
    let p99 = of(&ours, 0.99);
    Ok(Figure {
        name: format!("{SUSTAINED}, {} msg/s, 128 B", args.rate),
        detail: format!(
            "{} s a round, {} handlers, metrics and retries on, id and header on both sides; p99 is to stay below {P99_MS} ms: {}; the \
             rate held in {held} of {rounds} rounds; the ratio is raw / ours",
            args.seconds,
            args.handlers,
            if p99 < P99_MS { "it does" } else { "it does NOT" }
        ),
        unit: "ms, p99",
        ours: p99,
        peer_name: "raw async-nats".into(),
        peer: of(&raw, 0.99),
        ratio: median(ours.iter().zip(&raw).map(|(ours, raw)| raw.ms(0.99) / ours.ms(0.99))),
        extra: vec![
            ("p50 ms (ours)".into(), of(&ours, 0.5)),
            ("p50 ms (raw async-nats)".into(), of(&raw, 0.5)),
            ("p99 ms (ours)".into(), p99),
            ("p99 ms (raw async-nats)".into(), of(&raw, 0.99)),
            ("p99.9 ms (ours)".into(), of(&ours, 0.999)),
            ("p99.9 ms (raw async-nats)".into(), of(&raw, 0.999)),
        ],
    })
}

/// Doubles the rate until it does not hold, then halves the interval until that is below a twentieth of it.
pub(super) async fn highest(url: &str, args: &CoreArgs, quick: bool) -> Result<Figure, AnyError> {
    let ours = search(url, args, Side::Ours, quick).await?;
    let raw = search(url, args, Side::Raw, quick).await?;
    let raw_again = search(url, args, Side::Raw, quick).await?;
    let ours_again = search(url, args, Side::Ours, quick).await?;
    let (ours, raw) = (f64::from(ours.max(ours_again)), f64::from(raw.max(raw_again)));
    Ok(Figure {
        name: format!("{HIGHEST}, 128 B"),
        detail: "publish, confirm, handler and ack; the better of two searches a side; it holds when the publisher keeps its pace \
                 and the lag in the end is what 50 ms bring, or less than half way"
            .into(),
        unit: "msg/s",
        ours,
        peer_name: "raw async-nats".into(),
        peer: raw,
        ratio: ours / raw.max(1.0),
        extra: Vec::new(),
    })
}

async fn search(url: &str, args: &CoreArgs, side: Side, quick: bool) -> Result<u32, AnyError> {
    let length = Duration::from_millis(args.seconds * 1000 / 3);
    let (mut holds, mut fails) = (0, u32::MAX);
    let mut rate = if quick { 500 } else { 10_000 };
    while fails.saturating_sub(holds) > holds / 20 + 500 && rate < 1_000_000 {
        let trial = once(url, args, rate, length, side).await?;
        let held = trial.holds(rate);
        eprintln!("{HIGHEST}: {side:?} {rate}/s {}, lag {:?}", if held { "holds" } else { "does not hold" }, trial.lag);
        match held {
            true => holds = rate,
            false => fails = rate,
        }
        if quick {
            break;
        }
        rate = if fails == u32::MAX { holds * 2 } else { holds + (fails - holds) / 2 };
    }
    Ok(holds)
}

/// What both ends of a run share.
struct Run {
    started: Instant,
    pace: f64,
    handled: AtomicU64,
    took: Mutex<Vec<Duration>>,
}

impl Run {
    fn due(&self, i: u64) -> Instant {
        self.started + Duration::from_secs_f64(i as f64 / self.pace)
    }

    // The payload begins with the number of its message.
    fn handled(&self, payload: &[u8]) {
        let number = payload.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let took = Instant::now().saturating_duration_since(self.due(number));
        self.took.lock().unwrap_or_else(PoisonError::into_inner).push(took);
        self.handled.fetch_add(1, Ordering::Relaxed);
    }
}

async fn once(url: &str, args: &CoreArgs, rate: u32, length: Duration, side: Side) -> Result<Trial, AnyError> {
    let bridge = Bridge::connect(url).await?;
    with_stream(&bridge).await?;
    let messages = (f64::from(rate) * length.as_secs_f64()) as u64;
    let run = Arc::new(Run {
        started: Instant::now() + Duration::from_millis(300),
        pace: f64::from(rate),
        handled: AtomicU64::new(0),
        took: Mutex::new(Vec::with_capacity(messages as usize)),
    });
    let client = async_nats::connect(url).await?;
    let consuming = match side {
        Side::Ours => consume_ours(&bridge, args, run.clone()).await?,
        Side::Raw => consume_raw(client.clone(), args, run.clone()).await?,
    };
    let publisher = bridge.publisher(PublishConfig { max_in_flight: args.window, ..PublishConfig::default() }).await?;
    let publishing = match side {
        Side::Ours => tokio::spawn(publish(run.clone(), messages, args.window, move |i| ours(publisher.clone(), i))),
        Side::Raw => {
            let js = ContextBuilder::new().max_ack_inflight(args.window).build(client);
            tokio::spawn(publish(run.clone(), messages, args.window, move |i| raw(js.clone(), i)))
        }
    };
    tokio::time::sleep_until((run.started + length / 2).into()).await;
    let due = |at: Duration| ((at.as_secs_f64() * f64::from(rate)) as u64).min(messages);
    let half = due(length / 2).saturating_sub(run.handled.load(Ordering::Relaxed));
    tokio::time::sleep_until((run.started + length).into()).await;
    let end = messages.saturating_sub(run.handled.load(Ordering::Relaxed));
    let behind = publishing.await??.saturating_duration_since(run.started + length);
    let drained = Instant::now() + Duration::from_secs(60);
    while run.handled.load(Ordering::Relaxed) < messages {
        if Instant::now() > drained {
            return Err(format!("{} of {messages} were handled", run.handled.load(Ordering::Relaxed)).into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    consuming.abort();
    bridge.jetstream().delete_stream("BENCH").await?;
    bridge.close(Duration::from_secs(5)).await?;
    let mut took = std::mem::take(&mut *run.took.lock().unwrap_or_else(PoisonError::into_inner));
    took.sort_unstable();
    Ok(Trial { took, lag: (half, end), behind })
}

fn payload(i: u64) -> Bytes {
    let mut payload = vec![b'x'; 128];
    payload[..8].copy_from_slice(&i.to_be_bytes());
    payload.into()
}

type Confirmed = std::pin::Pin<Box<dyn Future<Output = Result<(), AnyError>> + Send>>;

async fn ours(publisher: Publisher, i: u64) -> Result<Confirmed, AnyError> {
    let message = Message::new("bench.publish", payload(i)).id(id(i as usize)).header("tenant", "acme");
    let pending = publisher.publish_later(message).await?;
    Ok(Box::pin(async move { pending.await.map(drop).map_err(AnyError::from) }))
}

async fn raw(js: jetstream::Context, i: u64) -> Result<Confirmed, AnyError> {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, id(i as usize));
    headers.insert("tenant", "acme");
    let ack = js.publish_with_headers("bench.publish", headers, payload(i)).await?;
    Ok(Box::pin(async move { ack.await.map(drop).map_err(AnyError::from) }))
}

// Publishes each message when it is due, whatever became of those before, and tells when the last one was handed over.
async fn publish<F>(
    run: Arc<Run>,
    messages: u64,
    window: usize,
    send: impl Fn(u64) -> F + Send,
) -> Result<Instant, AnyError>
where
    F: Future<Output = Result<Confirmed, AnyError>> + Send,
{
    let (confirms, mut waiting) = mpsc::channel::<Confirmed>(window);
    let confirming = tokio::spawn(async move {
        while let Some(confirm) = waiting.recv().await {
            confirm.await?;
        }
        Ok::<(), AnyError>(())
    });
    for i in 0..messages {
        // The timer is as coarse as a millisecond: what has come due meanwhile goes at once.
        let due = run.due(i);
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        if confirms.send(send(i).await?).await.is_err() {
            break;
        }
    }
    let last = Instant::now();
    drop(confirms);
    confirming.await??;
    Ok(last)
}

async fn consume_ours(
    bridge: &Bridge,
    args: &CoreArgs,
    run: Arc<Run>,
) -> Result<JoinHandle<Result<(), AnyError>>, AnyError> {
    let config = ConsumeConfig { max_messages: args.credit, ..ConsumeConfig::new("BENCH", "bench") };
    let consumer = bridge.consume(config).await?;
    let handlers = args.handlers;
    Ok(tokio::spawn(async move {
        let handle = move |received: nats_bridge::Received| {
            let run = run.clone();
            async move {
                run.handled(received.payload());
                Ok::<(), Failure>(())
            }
        };
        Ok(consumer.run(handlers, handle).await?)
    }))
}

async fn consume_raw(
    client: Client,
    args: &CoreArgs,
    run: Arc<Run>,
) -> Result<JoinHandle<Result<(), AnyError>>, AnyError> {
    let config = consumer::pull::Config {
        durable_name: Some("bench".into()),
        max_ack_pending: -1,
        ..consumer::pull::Config::default()
    };
    let consumer = jetstream::new(client).get_stream("BENCH").await?.create_consumer(config).await?;
    let messages = consumer.stream().max_messages_per_batch(args.credit).messages().await?;
    let handlers = args.handlers;
    Ok(tokio::spawn(async move {
        let handling = messages.for_each_concurrent(handlers, move |message| {
            let run = run.clone();
            async move {
                // As `Consumer::run` does: a task for each message.
                let handled = tokio::spawn(async move {
                    let Ok(message) = message else { return };
                    run.handled(&message.payload);
                    let _ = message.ack().await;
                });
                let _ = handled.await;
            }
        });
        handling.await;
        Ok(())
    }))
}
