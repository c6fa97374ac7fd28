//! What lay in RabbitMQ before `shadow` has copies after a backfill: RabbitMQ is lost with its disk, and nothing of it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::Value;
use test_support::eventually::{eventually_some, eventually_true};
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;
use tokio::task::{JoinHandle, block_in_place};

use super::bed::process::Process;

/// Messages in each queue from before the sidecar.
const OLD: u64 = 2_500;
/// Of all queues.
const QUEUES: [&str; 4] = ["idle", "worked", "timed", "replicated"];

fn arguments(queue: &str) -> FieldTable {
    let mut table = FieldTable::default();
    let quorum = || AMQPValue::LongString("quorum".into());
    match queue {
        "timed" => {
            table.insert("x-message-ttl".into(), AMQPValue::LongInt(900_000));
        }
        "replicated" => {
            table.insert("x-queue-type".into(), quorum());
        }
        "limited" => {
            table.insert("x-queue-type".into(), quorum());
            table.insert("x-delivery-limit".into(), AMQPValue::LongInt(1));
        }
        _ => {}
    }
    table
}

async fn declare(channel: &Channel) {
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    for queue in QUEUES.into_iter().chain(["limited"]) {
        channel.queue_declare(queue.into(), durable, arguments(queue)).await.expect("declared");
    }
}

/// Numbers, and every tenth a message that looks like all others of its kind.
async fn publish(channel: &Channel, queue: &str, numbers: std::ops::Range<u64>) {
    let mut confirms = Vec::new();
    for n in numbers {
        let body = if n % 10 == 9 { "beat".to_owned() } else { n.to_string() };
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if n % 3 == 0 {
            let mut headers = FieldTable::default();
            headers.insert("x-app".into(), AMQPValue::LongInt(7));
            properties = properties.with_headers(headers);
        }
        let options = BasicPublishOptions::default();
        let confirm = channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties).await;
        confirms.push(confirm.expect("published"));
    }
    for confirm in confirms {
        assert!(confirm.await.expect("confirmed").is_ack());
    }
}

/// What a consumer of a queue saw: bodies, and whether each said that it came again.
#[derive(Default)]
struct Seen(Mutex<Vec<(String, bool)>>);

impl Seen {
    fn all(&self) -> Vec<(String, bool)> {
        self.0.lock().expect("no test panics with it").clone()
    }
}

fn consume(url: String, queue: &'static str, pace: Duration, seen: Arc<Seen>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let connection = eventually_some("applications are let in", || async {
            Connection::connect(&url, ConnectionProperties::default()).await.ok()
        })
        .await;
        let channel = connection.create_channel().await.expect("channel");
        channel.basic_qos(10, BasicQosOptions::default()).await.expect("qos");
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut deliveries = channel.basic_consume(queue.into(), "".into(), options, none).await.expect("consuming");
        while let Some(Ok(delivery)) = deliveries.next().await {
            tokio::time::sleep(pace).await;
            let body = String::from_utf8(delivery.data.clone()).expect("text");
            let of_the_bridge = |table: &FieldTable| table.inner().keys().any(|k| k.as_str().starts_with("bridge-"));
            assert!(!delivery.properties.headers().as_ref().is_some_and(of_the_bridge), "{:?}", delivery.properties);
            // After one that failed, later ones may still seem to be sent.
            if delivery.ack(BasicAckOptions::default()).await.is_err() {
                return;
            }
            seen.0.lock().expect("no test panics with it").push((body, delivery.redelivered));
        }
    })
}

async fn ended(consumer: JoinHandle<()>) {
    consumer.abort();
    let _ = consumer.await;
}

fn queue<'a>(report: &'a Value, name: &str) -> &'a Value {
    let queues = report["queues"].as_array().expect("an array");
    queues.iter().find(|queue| queue["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn amqp(sidecar: &Process) -> String {
    format!("amqp://guest:guest@{}/%2f", sidecar.said("listen"))
}

async fn channel(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    (connection, channel)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_backlog_from_before_shadow_is_lost_with_rabbitmq_after_a_backfill() {
    let mut rabbit = tokio::task::spawn_blocking(RabbitMq::start).await.expect("started");
    let nats = NatsServer::start();
    let (past, direct) = channel(&rabbit.url()).await;
    declare(&direct).await;
    for queue in QUEUES.into_iter().chain(["limited"]) {
        publish(&direct, queue, 0..if queue == "limited" { 10 } else { OLD }).await;
    }
    past.close(200, "done".into()).await.expect("closed");

    let start = || block_in_place(|| Process::start_with(&rabbit, &nats, &["--no-auto-rollback"]));
    let sidecar = start();
    let (through, apps) = channel(&amqp(&sidecar)).await;
    declare(&apps).await;
    let worked = Arc::new(Seen::default());
    let consumer = consume(amqp(&sidecar), "worked", Duration::from_millis(2), worked.clone());
    let verb = |sidecar: &Process, words: &[&str]| block_in_place(|| sidecar.verb(words));
    let (code, refused) = verb(&sidecar, &["backfill"]);
    assert_eq!((code, refused["code"].as_str()), (1, Some("wrong_phase")), "{refused}");
    // With ids, and without copies.
    publish(&apps, "idle", OLD..OLD + 50).await;
    assert_eq!(verb(&sidecar, &["shadow"]).0, 0);
    publish(&apps, "idle", OLD + 50..OLD + 100).await;
    let (code, look) = verb(&sidecar, &["backfill", "--dry-run"]);
    assert_eq!((code, &look["dry_run"], &queue(&look, "idle")["held"]), (0, &true.into(), &(OLD + 100).into()));
    assert_eq!(queue(&look, "limited")["refused"]["code"], "delivery_limit", "{look}");

    // Killed in the middle.
    let http = sidecar.said("http");
    let asking = tokio::task::spawn_blocking(move || {
        super::bed::process::nats_bridge().args(["backfill", "--http", &http]).output().expect("it runs")
    });
    let copied = |status: &Value| status["backfill"]["copied"].as_u64().unwrap_or(0);
    eventually_true("some are copied", || async { copied(&verb(&sidecar, &["status"]).1) >= 500 }).await;
    block_in_place(|| sidecar.kill_9());
    assert_eq!(asking.await.expect("ran").status.code(), Some(2), "the sidecar does not answer");
    drop(through);
    ended(consumer).await;

    let sidecar = start();
    let consumer = consume(amqp(&sidecar), "worked", Duration::from_millis(2), worked.clone());
    let before = worked.all().len();
    eventually_true("the consumer goes on", || async { worked.all().len() > before + 20 }).await;
    let interrupted = verb(&sidecar, &["status"]).1["backfill"].clone();
    assert_eq!((&interrupted["running"], &interrupted["done"]), (&false.into(), &false.into()), "{interrupted}");
    let (code, report) = verb(&sidecar, &["backfill"]);
    assert_eq!((code, &report["done"]), (1, &true.into()), "the limited queue was left alone: {report}");
    let count = |name: &str, of: &str| queue(&report, name)[of].as_u64().expect("a count");
    let had: u64 = QUEUES.iter().map(|name| count(name, "had")).sum();
    assert!(had >= 500, "what was copied before the kill is not copied again: {report}");
    for (name, all) in [("idle", OLD + 100), ("timed", OLD), ("replicated", OLD)] {
        assert_eq!(count(name, "copied") + count(name, "had"), all, "{report}");
    }
    for name in QUEUES {
        assert_eq!(queue(&report, name)["state"], "done", "{report}");
    }
    let (code, again) = verb(&sidecar, &["backfill", "--queue", "i*", "--queue", "timed", "--queue", "replicated"]);
    let copied: u64 = ["idle", "timed", "replicated"].iter().filter_map(|n| queue(&again, n)["copied"].as_u64()).sum();
    assert_eq!((code, copied), (0, 0), "nothing twice: {again}");
    let status = verb(&sidecar, &["status"]).1;
    let unconsumed = 3 * OLD + 100;
    let copies = status["standby_rabbit"]["copies"].as_u64().expect("kept");
    assert!((unconsumed..=unconsumed + OLD).contains(&copies), "{status}");
    // The consumer had to wait, and goes on where it was.
    let before = worked.all().len();
    eventually_true("the consumer goes on", || async { worked.all().len() > before + 100 }).await;
    let settled = worked.all().len();

    let dir = rabbit.dir().to_owned();
    block_in_place(|| {
        rabbit.kill_9();
        std::fs::remove_dir_all(&dir).expect("removed");
    });
    // Two consumers of one queue would have no order between them.
    ended(consumer).await;
    let (code, report) = verb(&sidecar, &["failover", "--lost", "rabbit", "--execute"]);
    assert_eq!((code, &report["done"], &report["left"]), (0, &true.into(), &0.into()), "{report}");
    let acknowledged = worked.all();
    for name in QUEUES {
        let seen = if name == "worked" { worked.clone() } else { Arc::new(Seen::default()) };
        let consumer = consume(amqp(&sidecar), name, Duration::ZERO, seen.clone());
        let last = if name == "idle" { OLD + 100 } else { OLD };
        let (numbers, beats): (Vec<u64>, Vec<u64>) = (0..last).partition(|n| n % 10 != 9);
        let done = || {
            let all = seen.all();
            let seen: BTreeSet<u64> = all.iter().filter_map(|(body, _)| body.parse().ok()).collect();
            let twice = all.iter().filter(|(body, _)| body == "beat").count();
            numbers.iter().all(|n| seen.contains(n)) && twice >= beats.len()
        };
        eventually_true(&format!("{name}: nothing is lost"), || async { done() }).await;
        verdict(name, &seen.all());
        ended(consumer).await;
    }
    let replayed = worked.all().len() - acknowledged.len();
    assert!(replayed < OLD as usize, "{settled} were settled, and {replayed} came again or for the first time");
}

/// In order, and what came twice says so.
fn verdict(name: &str, seen: &[(String, bool)]) {
    let (mut last, mut times, mut again) = (None, BTreeMap::new(), 0);
    for (at, (body, redelivered)) in seen.iter().enumerate() {
        let Ok(number) = body.parse::<u64>() else { continue };
        let time = times.entry(number).or_insert(0);
        *time += 1;
        if *time > 1 {
            again += 1;
            assert!(redelivered, "{name}: {number} came twice and did not say so");
        } else {
            let around = &seen[at.saturating_sub(30)..seen.len().min(at + 15)];
            assert!(last < Some(number), "{name}: {number} came after {last:?}, in {around:?}");
            last = Some(number);
        }
    }
    println!("{name}: {} messages, {again} of them again, lost 0", seen.len());
}
