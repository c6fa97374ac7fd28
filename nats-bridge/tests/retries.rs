//! Retries follow their policy, and each of them is counted: on a real server, with a recorder for the metrics.
//!
//! How *late* a retry comes is up to the machine, and is judged only with `RETRY_TIMING=1`, which takes `RETRY_MESSAGES` messages (default
//! 500) and holds the 99th percentile to 10 % of the pause + 50 ms. That none comes early, that no attempt is beyond the policy and that
//! every one is in the metrics is always held against it.

#![allow(clippy::unwrap_used)]

mod orders;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use nats_bridge::{Bridge, ConsumeConfig, Delivery, Failure, Message, RetryPolicy, Settled};
use test_support::nats::NatsServer;
use tokio::task::JoinSet;

use orders::bridge;

const ATTEMPTS: u32 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_and_attempts_follow_the_policy_and_every_retry_is_counted() {
    let counts = Counts::default();
    metrics::set_global_recorder(counts.clone()).unwrap();
    let timed = std::env::var("RETRY_TIMING").is_ok();
    let messages = std::env::var("RETRY_MESSAGES").ok().and_then(|text| text.parse().ok());
    let messages: u64 = messages.unwrap_or(if timed { 500 } else { 20 });
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    for jitter in [false, true] {
        let policy = RetryPolicy {
            attempts: ATTEMPTS,
            first_pause: Duration::from_millis(if timed { 200 } else { 40 }),
            max_pause: Duration::from_millis(if timed { 1_000 } else { 150 }),
            jitter,
            ..RetryPolicy::default()
        };
        let name = if jitter { "jittered" } else { "exact" };
        let seen = fail_always(&bridge, name, &policy, messages).await;
        let (mut beyond, mut late) = judge(&seen, &policy, messages);
        let retries = messages * u64::from(ATTEMPTS - 1);
        let counted = |metric| counts.of(metric, name);
        assert_eq!(counted("natsbridge_retried_total"), retries);
        assert_eq!(counted("natsbridge_redelivered_total"), retries);
        assert_eq!(counted("natsbridge_dead_lettered_total"), messages);
        beyond.sort_unstable();
        late.sort_unstable();
        let at = |share: usize| late[(late.len() - 1) * share / 1000];
        println!(
            "{name}: {retries} retries of {messages} messages; later than their pause by: p50 {:?}, p99 {:?}, longest {:?}; beyond 10 % + \
             50 ms: {}",
            at(500),
            at(990),
            at(1000),
            beyond.iter().filter(|ms| **ms > 0).count()
        );
        let p99 = beyond[(beyond.len() - 1) * 99 / 100];
        assert!(!timed || p99 <= 0, "the 99th percentile is {p99} ms beyond 10 % + 50 ms");
    }
}

/// What happened to each attempt, by sequence and attempt.
#[derive(Default)]
struct Seen {
    arrived: BTreeMap<(u64, u64), Instant>,
    failed: BTreeMap<(u64, u64), (Instant, Settled)>,
}

async fn fail_always(bridge: &Bridge, name: &str, policy: &RetryPolicy, messages: u64) -> Seen {
    let subject = format!("orders.{name}");
    for n in 0..messages {
        bridge.publish(Message::new(subject.as_str(), n.to_string())).await.unwrap();
    }
    let config =
        ConsumeConfig { retry: policy.clone(), filter_subjects: vec![subject], ..ConsumeConfig::new("ORDERS", name) };
    let mut consumer = bridge.consume(config).await.unwrap();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut failing = JoinSet::new();
    for _ in 0..messages * u64::from(ATTEMPTS) {
        let next = tokio::time::timeout(Duration::from_secs(60), consumer.next()).await;
        let delivery = next.expect("another attempt").unwrap().unwrap();
        failing.spawn(fail(delivery, seen.clone()));
    }
    while let Some(failed) = failing.join_next().await {
        failed.unwrap();
    }
    // All that could come again is a dead letter by now.
    let more = tokio::time::timeout(policy.max_pause * 2, consumer.next()).await;
    assert!(more.is_err(), "an attempt beyond the policy: {more:?}");
    std::mem::take(&mut *seen.lock().unwrap())
}

async fn fail(delivery: Delivery, seen: Arc<Mutex<Seen>>) {
    let (now, which) = (Instant::now(), (delivery.sequence(), delivery.attempt()));
    assert!(seen.lock().unwrap().arrived.insert(which, now).is_none(), "{which:?} came twice");
    let settled = delivery.retry(Failure::of("Broken", "always")).await.unwrap();
    seen.lock().unwrap().failed.insert(which, (now, settled));
}

// By how many milliseconds each retry was later than it may be, and by how much later than its pause.
fn judge(seen: &Seen, policy: &RetryPolicy, messages: u64) -> (Vec<i64>, Vec<Duration>) {
    let (mut beyond, mut late) = (Vec::new(), Vec::new());
    assert_eq!(seen.arrived.len() as u64, messages * u64::from(ATTEMPTS));
    for ((sequence, attempt), (failed, settled)) in &seen.failed {
        let full = policy.full_pause(u32::try_from(*attempt).unwrap());
        match settled {
            Settled::DeadLettered { .. } => assert_eq!(*attempt, u64::from(ATTEMPTS), "{sequence} was given up early"),
            Settled::Retried { after } => {
                assert!(*attempt < u64::from(ATTEMPTS), "{sequence} is retried after attempt {attempt}");
                assert!(*after <= full && (policy.jitter || *after == full), "{after:?} after attempt {attempt}");
                let took = seen.arrived[&(*sequence, attempt + 1)].duration_since(*failed);
                assert!(took + Duration::from_millis(5) >= *after, "{sequence}: {took:?} instead of {after:?}");
                let allowed = *after + *after / 10 + Duration::from_millis(50);
                beyond.push(took.as_millis() as i64 - allowed.as_millis() as i64);
                late.push(took.saturating_sub(*after));
            }
            other => panic!("{sequence}: {other:?}"),
        }
    }
    (beyond, late)
}

/// Counts counters, by name and labels.
#[derive(Default, Clone)]
struct Counts(Arc<Mutex<HashMap<Key, Arc<AtomicU64>>>>);

impl Counts {
    fn of(&self, metric: &str, consumer: &str) -> u64 {
        let all = self.0.lock().unwrap();
        let labelled = |key: &Key| key.labels().any(|label| label.key() == "consumer" && label.value() == consumer);
        all.iter().filter(|(key, _)| key.name() == metric && labelled(key)).map(|(_, n)| n.load(Ordering::SeqCst)).sum()
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.0.lock().unwrap().entry(key.clone()).or_default().clone())
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
