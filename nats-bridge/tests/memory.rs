//! Memory stays within what the configuration says: behind a consumer that stands still, and with a publisher that is cut off.
//!
//! `MEMORY_MESSAGES` is how many messages wait for the consumer (default 100 000), `MEMORY_SECONDS` how long it, and then the publisher,
//! is looked at (default 2). What counts is this process's resident memory; the server is another process.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use nats_bridge::publish::Publisher;
use nats_bridge::{Bridge, Config, ConsumeConfig, Landed, Message, MessageId, PublishConfig, Retention, StreamSpec};
use test_support::eventually::eventually_some;
use test_support::fault_proxy::{FaultProxy, Weather};
use test_support::nats::NatsServer;
use tokio::task::JoinSet;

/// What a message costs beside its bytes, at most; part of what is promised for both bounds.
const BESIDE: u64 = 1024;
/// What the publisher sends, in bytes.
const PAYLOAD: usize = 4_000;
/// What tables, tasks and the allocator take that have nothing to do with a bound.
const SLACK: u64 = 8 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_stalled_consumer_nor_a_publisher_that_is_cut_off_takes_more_than_its_bounds() {
    let server = NatsServer::start();
    stalled_consumer(&server).await;
    publisher_cut_off(&server).await;
}

async fn stalled_consumer(server: &NatsServer) {
    let messages = number("MEMORY_MESSAGES", 100_000);
    let bridge = bridge(server.url(), PublishConfig::default(), "STALLED").await;
    let publisher = bridge.publisher(PublishConfig::default()).await.unwrap();
    for _ in 0..messages {
        let message = Message::new("stalled.all", vec![b'x'; 128]).message_id(MessageId::None);
        drop(publisher.publish_later(message).await.unwrap());
    }
    publisher.flush(Duration::from_secs(60)).await.unwrap();
    let (max_messages, max_bytes) = (8_192, 4 << 20);
    let mut watch = Watch::start("consumer", max_messages * BESIDE + max_bytes);
    let config = ConsumeConfig {
        max_messages: max_messages as usize,
        max_bytes: max_bytes as usize,
        ..ConsumeConfig::new("STALLED", "billing")
    };
    let mut consumer = bridge.consume(config).await.unwrap();
    let first = consumer.next().await.unwrap().unwrap();
    let unacked = || async {
        let stream = bridge.jetstream().get_stream("STALLED").await.ok()?;
        Some(stream.consumer_info("billing").await.ok()?.num_ack_pending as u64)
    };
    // It is full when a quarter of a bound is no longer free.
    let full = || async { unacked().await.filter(|n| *n >= max_messages * 3 / 4) };
    eventually_some("credit that is used up", full).await;
    while watch.goes_on().await {
        let held = eventually_some("what is held", unacked).await;
        assert!(held <= max_messages && held * 128 <= max_bytes, "{held} messages are held");
    }
    // It was kept alive meanwhile, nothing came twice, and it goes on.
    first.ack().await.unwrap();
    for sequence in 2..=max_messages * 2 {
        let next = tokio::time::timeout(Duration::from_secs(60), consumer.next()).await;
        let delivery = next.expect("it goes on").unwrap().unwrap();
        assert_eq!((delivery.sequence(), delivery.attempt()), (sequence, 1));
        delivery.ack().await.unwrap();
    }
    watch.print(&format!("a consumer that stands still in front of {messages} messages"));
}

async fn publisher_cut_off(server: &NatsServer) {
    let proxy = FaultProxy::start(server.url().rsplit(':').next().unwrap().parse().unwrap(), 1).await;
    let config = PublishConfig {
        max_in_flight: 2_000,
        max_in_flight_bytes: 4 << 20,
        ack_wait: Duration::from_millis(500),
        attempts: 1_000,
        ..PublishConfig::default()
    };
    let bridge = bridge(proxy.url(), config.clone(), "CUT").await;
    let publisher = bridge.publisher(config.clone()).await.unwrap();
    let mut watch = Watch::start("publisher", config.max_in_flight as u64 * BESIDE + config.max_in_flight_bytes as u64);
    proxy.set(Weather::HalfOpen);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publishing = tokio::spawn(publish_until(stopped, publisher.clone()));
    let started = Instant::now();
    while watch.goes_on().await {
        let (out, bytes) = (publisher.outstanding(), publisher.outstanding() * PAYLOAD);
        assert!(out <= config.max_in_flight && bytes <= config.max_in_flight_bytes, "{out} are outstanding");
        // Half of the time nobody notices, then nobody is there.
        if started.elapsed() > watch.length / 2 {
            proxy.shut();
        }
    }
    assert!(proxy.swallowed() > 0, "nothing was cut off");
    proxy.set(Weather::Calm);
    proxy.open();
    // It goes on by itself.
    let last = || async { publisher.publish(Message::new("cut.all", "17")).await.ok() };
    eventually_some("a confirm after all", last).await;
    let _ = stop.send(true);
    let (confirmed, unknown) = tokio::time::timeout(Duration::from_secs(120), publishing).await.unwrap().unwrap();
    let stream = || async { bridge.jetstream().get_stream("CUT").await.ok() };
    let stored = eventually_some("the stream", stream).await.cached_info().state.messages;
    // Two or more of the last one, if it was tried again.
    assert!(stored > confirmed, "{confirmed} confirmed, {unknown} unknown, {stored} stored");
    watch.print(&format!("a publisher that is cut off ({confirmed} confirmed in the end, {unknown} unknown)"));
}

// Gives how many were confirmed, and how many have an unknown outcome.
async fn publish_until(stop: tokio::sync::watch::Receiver<bool>, publisher: Publisher) -> (u64, u64) {
    let mut pending = JoinSet::new();
    let (mut confirmed, mut unknown) = (0, 0);
    let mut count = |outcome: Result<nats_bridge::Published, nats_bridge::Error>| match outcome {
        Ok(_) => confirmed += 1,
        Err(error) if error.landed() == Landed::Unknown => unknown += 1,
        Err(error) => panic!("{error}"),
    };
    while !*stop.borrow() {
        tokio::select! {
            handed_over = publisher.publish_later(Message::new("cut.all", vec![b'x'; PAYLOAD])) => {
                pending.spawn(handed_over.unwrap());
            }
            Some(outcome) = pending.join_next() => count(outcome.unwrap()),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    while let Some(outcome) = pending.join_next().await {
        count(outcome.unwrap());
    }
    (confirmed, unknown)
}

async fn bridge(url: String, publish: PublishConfig, stream: &str) -> Bridge {
    let pause = Duration::from_millis(200);
    let config = Config { servers: vec![url], reconnect_pause_max: pause, publish, ..Config::default() };
    let bridge = Bridge::connect_with(config).await.unwrap();
    let subjects = [format!("{}.>", stream.to_lowercase())];
    let retention = Retention::WorkQueue;
    bridge
        .ensure_stream(&StreamSpec { retention, unbounded: true, ..StreamSpec::new(stream, subjects) })
        .await
        .unwrap();
    bridge
}

/// Looks at this process's resident memory for a while.
struct Watch {
    before: u64,
    highest: u64,
    bound: u64,
    until: Instant,
    length: Duration,
    what: &'static str,
}

impl Watch {
    fn start(what: &'static str, bound: u64) -> Watch {
        let length = Duration::from_secs(number("MEMORY_SECONDS", 2));
        let before = resident();
        Watch { before, highest: before, bound: bound + SLACK, until: Instant::now() + length, length, what }
    }

    /// Waits a moment, looks, and tells whether to look again.
    async fn goes_on(&mut self) -> bool {
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.highest = self.highest.max(resident());
        let grown = self.highest.saturating_sub(self.before);
        assert!(grown <= self.bound, "{}: {grown} bytes more than before, {} are its bound", self.what, self.bound);
        Instant::now() < self.until
    }

    fn print(&self, what: &str) {
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        println!(
            "{what}, {} s: memory before {:.1} MiB, highest {:.1} MiB, {:.1} MiB more; bound {:.1} MiB",
            self.length.as_secs(),
            mib(self.before),
            mib(self.highest),
            mib(self.highest - self.before),
            mib(self.bound)
        );
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
