//! Applications that write down what they did and saw.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, BasicRejectOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use test_support::eventually::{eventually_some, eventually_true};

type Message = (u64, u64);

/// What applications wrote down.
#[derive(Default)]
pub struct Record {
    pub stop: AtomicBool,
    pub slow: AtomicBool,
    /// Connections of theirs that came about.
    pub connected: AtomicU64,
    book: Mutex<Book>,
}

#[derive(Default)]
pub struct Book {
    pub confirmed: BTreeSet<Message>,
    /// Deliveries, in order, and whether each said that it was one more.
    seen: BTreeMap<u64, Vec<(u64, bool)>>,
    /// Acknowledged, or seen as a dead letter.
    done: BTreeSet<Message>,
    dead: BTreeMap<Message, Vec<bool>>,
}

impl Record {
    pub fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().expect("no test panics with it")
    }

    /// Waits until this many more are confirmed.
    pub async fn more(&self, count: usize) {
        let until = self.book().confirmed.len() + count;
        eventually_true("traffic goes on", || async { self.book().confirmed.len() >= until }).await;
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

    pub fn left(&self) -> usize {
        let book = self.book();
        book.confirmed.difference(&book.done).count()
    }
}

pub async fn declare(channel: &Channel) {
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

/// Connects again until it is let in.
async fn connect(url: &str, record: &Record) -> Connection {
    let connection = eventually_some("the sidecar lets applications in", || async {
        Connection::connect(url, ConnectionProperties::default()).await.ok()
    })
    .await;
    record.connected.fetch_add(1, Ordering::Relaxed);
    connection
}

/// Publishes 100 keys in turn, numbered, until it is told to stop, on one connection after the other. What is refused, or was not
/// confirmed when its connection was lost, is not sent again: its fate is unknown.
pub async fn produce(url: String, record: Arc<Record>) {
    let mut turn = 0;
    while publish(connect(&url, &record).await, &record, &mut turn).await.is_err() {}
}

async fn publish(connection: Connection, record: &Record, turn: &mut u64) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut window = VecDeque::new();
    while !record.stop.load(Ordering::Relaxed) {
        let message = (*turn % 100, *turn / 100 + 1);
        *turn += 1;
        let (key, body) = (format!("key.{}", message.0), message.1.to_string());
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default().with_delivery_mode(2));
        let confirm = channel.basic_publish("orders".into(), key.into(), options, body.as_bytes(), properties).await?;
        window.push_back((message, confirm));
        if window.len() >= 32
            && let Some((message, confirm)) = window.pop_front()
        {
            settled(message, confirm, record).await?;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for (message, confirm) in window {
        settled(message, confirm, record).await?;
    }
    Ok(())
}

async fn settled(
    message: Message,
    confirm: impl Future<Output = lapin::Result<lapin::Confirmation>>,
    record: &Record,
) -> lapin::Result<()> {
    if confirm.await?.is_ack() {
        record.book().confirmed.insert(message);
    }
    Ok(())
}

/// Requeues some once, rejects some for good, acknowledges the others, on one connection after the other.
pub async fn consume(url: String, record: Arc<Record>) {
    loop {
        let _ = work(connect(&url, &record).await, &record).await;
    }
}

async fn work(connection: Connection, record: &Record) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(20, BasicQosOptions::default()).await?;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut orders = channel.basic_consume("orders.all".into(), "".into(), options, none.clone()).await?;
    let letters = connection.create_channel().await?;
    letters.basic_qos(20, BasicQosOptions::default()).await?;
    let mut dead = letters.basic_consume("orders.dead".into(), "".into(), options, none).await?;
    loop {
        let (delivery, died) = tokio::select! {
            Some(next) = orders.next() => (next?, false),
            Some(next) = dead.next() => (next?, true),
            else => return Ok(()),
        };
        if record.slow.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let key: u64 = delivery.routing_key.as_str().trim_start_matches("key.").parse().expect("a key of ours");
        let number: u64 = std::str::from_utf8(&delivery.data).expect("text").parse().expect("a number");
        if died {
            record.letter((key, number), delivery.redelivered);
            delivery.ack(BasicAckOptions::default()).await?;
            continue;
        }
        assert_eq!(delivery.exchange.as_str(), "orders");
        assert!(delivery.properties.headers().is_none(), "{:?}", delivery.properties.headers());
        let first = record.sees((key, number), delivery.redelivered);
        if (key + number) % 13 == 5 {
            delivery.reject(BasicRejectOptions { requeue: false }).await?;
        } else if (key + number) % 11 == 3 && first {
            delivery.nack(BasicNackOptions { requeue: true, ..Default::default() }).await?;
        } else {
            delivery.ack(BasicAckOptions::default()).await?;
            record.book().done.insert((key, number));
        }
    }
}

/// Delivered twice only flagged; in order within each key, if `ordered`; dead letters twice only few.
pub fn verdict(record: &Record, ordered: bool) {
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
    assert!(!ordered || reordered.is_empty(), "out of order (key, number, after): {reordered:?}");
    assert!(letters_twice <= 60, "{letters_twice} dead letters came twice");
    let (confirmed, letters, left) =
        (book.confirmed.len(), book.dead.len(), book.confirmed.difference(&book.done).count());
    println!(
        "confirmed {confirmed}, lost {left}, letters {letters}, of them twice {letters_twice}, out of order {}",
        reordered.len()
    );
}
