//! One run: a publisher, workers and a storm; then calm, until nothing is left to do; then the verdict.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nats_bridge::{
    Bridge, Config, ConsumeConfig, Consumer, Delivery, Failure, Message, PublishConfig, Retention, RetryPolicy,
    StreamSpec,
};
use test_support::eventually::eventually_some;
use test_support::fault_proxy::FaultProxy;
use test_support::random::Random;
use tokio::runtime::{Builder, Runtime};

use crate::leaders::Watch;
use crate::places::{Places, Proxies};
use crate::record::{Did, Handled, Record};
use crate::storm;
use crate::verdict::{self, Figures};

pub const MESSAGES: usize = 200;
pub const ATTEMPTS: u32 = 4;

/// What is to happen with a message: from seed and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Ack,
    AckConfirmed,
    /// Slow enough to be in the hands of a worker when something happens.
    Slow,
    FailTwice,
    FailAlways,
    Reject,
    DropOnce,
}

pub fn fate(seed: u64, number: usize) -> Fate {
    match Random::new(seed.wrapping_mul(31).wrapping_add(number as u64)).below(14) {
        0 => Fate::FailTwice,
        1 | 2 => Fate::FailAlways,
        3 => Fate::Reject,
        4 => Fate::DropOnce,
        5 => Fate::AckConfirmed,
        6 | 7 => Fate::Slow,
        _ => Fate::Ack,
    }
}

pub async fn run(seed: u64, places: Places) -> Result<Figures, Vec<String>> {
    // Odd seeds keep everything, so that what was stored can be counted; even ones have a work queue.
    let retention = if seed % 2 == 1 { Retention::Limits } else { Retention::WorkQueue };
    let observer = observe(&places, retention).await;
    // One server needs no leader.
    let watch = (places.replicas() > 1).then(|| Watch::start(&places));
    // When it is killed, 2.10 may forget what was delivered and not acked, and never delivers it again.
    let gently = observer.server_version().starts_with("2.10.");
    let record = Arc::new(Record::default());
    let publisher = Arc::new(Proxies::start(&places, seed).await);

    let publishing = tokio::spawn(publish(seed, publisher.urls(), record.clone()));
    let workers = || Worker::start(seed, places.clone(), record.clone());
    let letters = letters(places.replicas());
    let _worker = storm::rage(seed, &places, gently, &publisher, workers, &record, &Letters(&observer, letters)).await;
    publishing.await.unwrap();
    verdict::wait_until_nothing_is_left(&observer, retention).await?;
    let gaps = watch.map(|watch| watch.gaps()).unwrap_or_default();
    verdict::judge(seed, &observer, retention, &record, &gaps).await
}

async fn observe(places: &Places, retention: Retention) -> Bridge {
    let config = Config {
        servers: places.urls(),
        reconnect_pause_max: Duration::from_millis(200),
        request_timeout: Duration::from_secs(2),
        ..Config::default()
    };
    let bridge = connect_with(config).await;
    let orders = StreamSpec {
        retention,
        replicas: places.replicas(),
        max_bytes: Some(64 << 20),
        max_age: Some(Duration::from_secs(3600)),
        ..StreamSpec::new("ORDERS", ["orders.>"])
    };
    for spec in [orders, letters(places.replicas())] {
        let end = Instant::now() + Duration::from_secs(60);
        while let Err(error) = bridge.ensure_stream(&spec).await {
            assert!(Instant::now() < end, "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    bridge
}

fn letters(replicas: u8) -> StreamSpec {
    StreamSpec { replicas, max_bytes: Some(64 << 20), ..StreamSpec::dead_letters_of("ORDERS") }
}

/// The dead-letter stream, which a storm may fill up.
pub struct Letters<'a>(&'a Bridge, StreamSpec);

impl Letters<'_> {
    /// It takes nothing more from now on; false when no server could be told so.
    pub async fn full(&self) -> bool {
        let full = StreamSpec { max_messages: Some(1), ..self.1.clone() };
        self.0.ensure_stream(&full).await.is_ok()
    }

    /// It has room again.
    pub async fn empty(&self) {
        eventually_some("room for dead letters", || async { self.0.ensure_stream(&self.1).await.ok() }).await;
    }
}

async fn connect(urls: Vec<String>) -> Bridge {
    let config = Config {
        servers: urls,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(1),
        reconnect_pause_max: Duration::from_millis(300),
        publish: PublishConfig {
            ack_wait: Duration::from_millis(700),
            attempts: 100,
            deadline: Duration::from_secs(100),
            no_stream_wait: Duration::from_secs(30),
            max_in_flight: 40,
            ..PublishConfig::default()
        },
        ..Config::default()
    };
    connect_with(config).await
}

async fn connect_with(config: Config) -> Bridge {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match Bridge::connect_with(config.clone()).await {
            Ok(bridge) => return bridge,
            Err(error) => assert!(Instant::now() < end, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn publish(seed: u64, urls: Vec<String>, record: Arc<Record>) {
    let bridge = connect(urls).await;
    let mut random = Random::new(seed ^ 0x9b1);
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..MESSAGES {
        tokio::time::sleep(Duration::from_millis(random.below(20))).await;
        let message = Message::new(format!("orders.{}", number % 5), number.to_string()).id(format!("m-{number}"));
        match bridge.publish_later(message).await {
            Ok(pending) => {
                let record = record.clone();
                waiting.spawn(async move { record.publish_ended(number, pending.await) });
            }
            Err(error) => record.publish_ended(number, Err(error)),
        }
    }
    while waiting.join_next().await.is_some() {}
}

pub fn retry() -> RetryPolicy {
    RetryPolicy {
        attempts: ATTEMPTS,
        first_pause: Duration::from_millis(50),
        max_pause: Duration::from_millis(400),
        ..RetryPolicy::default()
    }
}

/// A worker process: a runtime of its own, which ends at once with all that it did, and its own connection behind proxies of
/// its own.
pub struct Worker {
    pub proxies: Arc<Proxies>,
    runtime: Option<Runtime>,
}

impl Worker {
    async fn start(seed: u64, places: Places, record: Arc<Record>) -> Worker {
        let generation = record.worker();
        let proxies = Arc::new(Proxies::start(&places, seed ^ (generation << 32)).await);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(consume(seed, generation, proxies.urls(), record));
        Worker { proxies, runtime: Some(runtime) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // First what it has sent and what is on its way, so that no last word of its tasks is heard.
        self.proxies.each(FaultProxy::shut);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn consume(seed: u64, generation: u64, urls: Vec<String>, record: Arc<Record>) {
    let bridge = connect(urls).await;
    let config = ConsumeConfig {
        retry: retry(),
        ack_wait: Duration::from_secs(2),
        max_messages: 24,
        heartbeat: Duration::from_millis(300),
        stalled_after: Duration::from_secs(2),
        ..ConsumeConfig::new("ORDERS", "billing")
    };
    while record.worker() == generation {
        match bridge.consume(config.clone()).await {
            Ok(consumer) => return work(seed, generation, consumer, record).await,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn work(seed: u64, worker: u64, mut consumer: Consumer, record: Arc<Record>) {
    while record.worker() == worker {
        match tokio::time::timeout(Duration::from_millis(200), consumer.next()).await {
            Ok(Ok(Some(delivery))) => {
                tokio::spawn(handle(seed, worker, delivery, record.clone()));
            }
            Ok(ended) => panic!("the consumer of worker {worker} ended: {ended:?}"),
            Err(_) => {}
        }
    }
}

async fn handle(seed: u64, worker: u64, delivery: Delivery, record: Arc<Record>) {
    let number: usize = std::str::from_utf8(delivery.payload()).unwrap().parse().unwrap();
    let (attempt, era) = (delivery.attempt(), record.era());
    let fate = fate(seed, number);
    let slow = if fate == Fate::Slow { 250 } else { 5 };
    tokio::time::sleep(Duration::from_millis(slow)).await;
    let did = match fate {
        Fate::Ack | Fate::AckConfirmed | Fate::Slow => Did::Acked,
        Fate::FailTwice if attempt > 2 => Did::Acked,
        Fate::DropOnce if attempt > 1 => Did::Acked,
        Fate::FailTwice | Fate::FailAlways => Did::Failed,
        Fate::Reject => Did::Rejected,
        Fate::DropOnce => Did::Dropped,
    };
    let handled = Handled {
        number,
        sequence: delivery.sequence(),
        attempt,
        worker,
        era,
        at: SystemTime::now(),
        did,
        settled: None,
    };
    let Some(place) = record.handled(handled) else { return std::mem::forget(delivery) };
    let settled = match (did, fate) {
        (Did::Acked, Fate::AckConfirmed) => delivery.ack_confirmed().await,
        (Did::Acked, _) => delivery.ack().await,
        (Did::Failed, _) => delivery.retry(Failure::of("Broken", "it never works")).await,
        (Did::Rejected, _) => delivery.reject("not ours").await,
        (Did::Dropped, _) => return drop(delivery),
    };
    record.settled(place, worker, settled);
}
