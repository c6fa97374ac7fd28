//! NATS is lost for good, with all that it held, in each phase: what was confirmed is delivered all the same. The verdict is computed from
//! what applications wrote down themselves.

mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bed::{Ends, Likeness};
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, BasicRejectOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ExchangeKind};
use sidecar::control_api::{Control, Failover, FailoverReport, Phase, RefusedCode, Target};
use sidecar::ownership::Side;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

type Message = (u64, u64);

/// What applications wrote down.
#[derive(Default)]
struct Record {
    stop: AtomicBool,
    slow: AtomicBool,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    confirmed: BTreeSet<Message>,
    /// Deliveries, in order, and whether each said that it was one more.
    seen: BTreeMap<u64, Vec<(u64, bool)>>,
    /// Acknowledged, or seen as a dead letter.
    done: BTreeSet<Message>,
    dead: BTreeMap<Message, Vec<bool>>,
}

impl Record {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().expect("no test panics with it")
    }

    /// Whether it is the first time.
    fn sees(&self, (key, number): Message, redelivered: bool) -> bool {
        let mut book = self.book();
        let seen = book.seen.entry(key).or_default();
        let first = seen.iter().all(|(n, _)| *n != number);
        seen.push((number, redelivered));
        first
    }

    fn letter(&self, message: Message, redelivered: bool) {
        let mut book = self.book();
        book.dead.entry(message).or_default().push(redelivered);
        book.done.insert(message);
    }

    fn left(&self) -> usize {
        let book = self.book();
        book.confirmed.difference(&book.done).count()
    }
}

async fn declare(channel: &Channel) {
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    for (exchange, kind) in [("orders", ExchangeKind::Topic), ("dead", ExchangeKind::Fanout)] {
        channel.exchange_declare(exchange.into(), kind, durable, FieldTable::default()).await.expect("declared");
    }
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let mut dying = FieldTable::default();
    dying.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("dead".into()));
    for (queue, exchange, key, arguments) in
        [("orders.all", "orders", "key.*", dying), ("orders.dead", "dead", "", FieldTable::default())]
    {
        channel.queue_declare(queue.into(), durable, arguments).await.expect("declared");
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue.into(), exchange.into(), key.into(), options, none).await.expect("bound");
    }
}

/// Publishes 100 keys in turn, numbered, until it is told to stop. What is refused is not sent again: its fate is unknown.
async fn produce(connection: Connection, record: Arc<Record>) {
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let mut window = std::collections::VecDeque::new();
    for turn in 0_u64.. {
        if record.stop.load(Ordering::Relaxed) {
            break;
        }
        let message = (turn % 100, turn / 100 + 1);
        let (key, body) = (format!("key.{}", message.0), message.1.to_string());
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default().with_delivery_mode(2));
        let confirm = channel.basic_publish("orders".into(), key.into(), options, body.as_bytes(), properties).await;
        window.push_back((message, confirm.expect("published")));
        if window.len() >= 32 {
            settled(window.pop_front(), &record).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for next in window {
        settled(Some(next), &record).await;
    }
}

async fn settled(next: Option<(Message, impl Future<Output = lapin::Result<lapin::Confirmation>>)>, record: &Record) {
    let (message, confirm) = next.expect("not empty");
    if confirm.await.expect("the connection lives").is_ack() {
        record.book().confirmed.insert(message);
    }
}

/// Requeues some once, rejects some for good, acknowledges the others.
async fn consume(connection: Connection, record: Arc<Record>) {
    let channel = connection.create_channel().await.expect("channel");
    channel.basic_qos(20, BasicQosOptions::default()).await.expect("qos");
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut orders =
        channel.basic_consume("orders.all".into(), "".into(), options, none.clone()).await.expect("consuming");
    let letters = connection.create_channel().await.expect("channel");
    letters.basic_qos(20, BasicQosOptions::default()).await.expect("qos");
    let mut dead = letters.basic_consume("orders.dead".into(), "".into(), options, none).await.expect("consuming");
    loop {
        let (delivery, died) = tokio::select! {
            Some(next) = orders.next() => (next.expect("the connection lives"), false),
            Some(next) = dead.next() => (next.expect("the connection lives"), true),
            else => return,
        };
        if record.slow.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let key: u64 = delivery.routing_key.as_str().trim_start_matches("key.").parse().expect("a key of ours");
        let number: u64 = std::str::from_utf8(&delivery.data).expect("text").parse().expect("a number");
        if died {
            record.letter((key, number), delivery.redelivered);
            delivery.ack(BasicAckOptions::default()).await.expect("acked");
            continue;
        }
        assert_eq!(delivery.exchange.as_str(), "orders");
        assert!(delivery.properties.headers().is_none(), "{:?}", delivery.properties.headers());
        let first = record.sees((key, number), delivery.redelivered);
        if (key + number) % 13 == 5 {
            delivery.reject(BasicRejectOptions { requeue: false }).await.expect("rejected");
        } else if (key + number) % 11 == 3 && first {
            delivery.nack(BasicNackOptions { requeue: true, ..Default::default() }).await.expect("requeued");
        } else {
            delivery.ack(BasicAckOptions::default()).await.expect("acked");
            record.book().done.insert((key, number));
        }
    }
}

fn asked(execute: bool) -> Failover {
    Failover { lost: Side::Nats, execute, force: false, by: "test".into(), reason: "the disk is gone".into() }
}

async fn finished(cutover: &sidecar::control::Cutover) -> FailoverReport {
    eventually_true("the failover ends", || async {
        cutover.failover_status().await.is_some_and(|report| !report.running)
    })
    .await;
    cutover.failover_status().await.expect("begun")
}

/// NATS dies at this weight with a backlog, never to come back with what it held.
async fn nats_is_lost_at(percent: f64) {
    let mut nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar_like(Likeness::default()).await;
    let setup = sidecar.connect().await;
    declare(&setup.create_channel().await.expect("channel")).await;
    let record = Arc::new(Record::default());
    let consumer = tokio::spawn(consume(sidecar.connect().await, record.clone()));
    let producer = tokio::spawn(produce(sidecar.connect().await, record.clone()));
    let more = |count: usize| {
        let (until, record) = (record.book().confirmed.len() + count, record.clone());
        async move { eventually_true("traffic goes on", || async { record.book().confirmed.len() >= until }).await }
    };
    more(100).await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    more(100).await;
    if percent > 0.0 {
        sidecar.weight(percent).await;
    }
    more(200).await;
    record.slow.store(true, Ordering::Relaxed);
    more(200).await;
    let refused = sidecar.cutover.clone().failover(asked(true)).await.expect_err("NATS answers");
    assert_eq!(refused.code, RefusedCode::Conflict);
    let before = sidecar.status().await.standby.expect("on");
    assert_eq!((before.no_copy_total, before.away), (0, false), "{before:?}");
    assert_eq!(before.copies > 0, percent > 0.0, "{before:?}");
    nats.kill_9();
    std::fs::remove_dir_all(nats.dir().join("store")).expect("removed");
    let look = sidecar.cutover.clone().failover(asked(false)).await.expect("a look");
    assert!(!look.executed && look.no_copy == 0, "{look:?}");
    sidecar.cutover.clone().failover(asked(true)).await.expect("begun");
    let report = finished(&sidecar.cutover).await;
    assert!(report.done && report.left == 0, "{report:?}");
    assert_eq!(report.replayed > 0, percent > 0.0, "{report:?}");
    // Again: nothing is done twice.
    let again = sidecar.cutover.clone().failover(asked(true)).await.expect("done");
    assert_eq!(again.replayed, report.replayed);
    more(200).await;
    record.slow.store(false, Ordering::Relaxed);
    record.stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(bed::CAP, producer).await.expect("in time").expect("ended well");
    eventually_true("all that was confirmed is done", || async { record.left() == 0 }).await;
    let status = sidecar.status().await;
    assert_eq!((status.phase, status.weight_percent.percent()), (Phase::Observe, 0.0));
    assert_eq!(status.sides.nats.error.as_deref(), Some("given up by a failover"));
    // A new application, and topology, as with RabbitMQ alone.
    let late = sidecar.connect().await;
    declare(&late.create_channel().await.expect("channel")).await;
    verdict(&record);
    consumer.abort();
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_that_was_given_up_is_refused_until_its_store_is_empty() {
    let mut nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar_like(Likeness::default()).await;
    let setup = sidecar.connect().await;
    let channel = setup.create_channel().await.expect("channel");
    declare(&channel).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    sidecar.change(Target::Shadow).await.expect("shadow");
    sidecar.weight(100.0).await;
    for n in 0..50 {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let publish = channel.basic_publish("orders".into(), format!("key.{n}").into(), options, b"1", properties);
        assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
    }
    nats.kill_9();
    sidecar.cutover.clone().failover(asked(true)).await.expect("begun");
    let report = finished(&sidecar.cutover).await;
    assert_eq!((report.replayed, report.left, report.done), (50, 0, true), "{report:?}");
    let refused = sidecar.change(Target::Shadow).await.expect_err("NATS is given up");
    assert_eq!(refused.code, RefusedCode::WrongPhase);
    sidecar.stop().await;
    // It was not lost after all, and has everything a second time.
    nats.restart();
    let why = ends.try_sidecar(Likeness::default()).await.err().expect("refused");
    assert!(why.contains("given up") && why.contains("empty its store"), "{why}");
    nats.kill_9();
    std::fs::remove_dir_all(nats.dir().join("store")).expect("removed");
    nats.restart();
    let sidecar = Ends { lease: Default::default(), ..ends }.sidecar_like(Likeness::default()).await;
    assert_eq!(sidecar.status().await.phase, Phase::Observe);
    sidecar.change(Target::Shadow).await.expect("it begins anew");
    sidecar.stop().await;
}

fn verdict(record: &Record) {
    let book = record.book();
    let (mut unflagged, mut reordered) = (Vec::new(), Vec::new());
    for (key, seen) in &book.seen {
        let (mut known, mut last) = (BTreeSet::new(), 0);
        for (number, redelivered) in seen {
            if !known.insert(*number) {
                if !redelivered {
                    unflagged.push((*key, *number));
                }
            } else if *number < last {
                reordered.push((*key, *number, last));
            } else {
                last = *number;
            }
        }
    }
    let letters_twice = book.dead.values().filter(|seen| seen.len() > 1).count();
    assert!(unflagged.is_empty(), "delivered twice, and did not say so: {unflagged:?}");
    assert!(reordered.is_empty(), "out of order (key, number, after): {reordered:?}");
    assert!(letters_twice <= 60, "{letters_twice} dead letters came twice");
    println!("confirmed {}, lost 0, letters {}, of them twice {letters_twice}", book.confirmed.len(), book.dead.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_shadow_nothing_is_lost_with_nats() {
    nats_is_lost_at(0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_5_percent_nothing_is_lost_with_nats() {
    nats_is_lost_at(5.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_50_percent_nothing_is_lost_with_nats() {
    nats_is_lost_at(50.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_100_percent_nothing_is_lost_with_nats() {
    nats_is_lost_at(100.0).await;
}
