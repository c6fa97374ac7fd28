//! A RabbitMQ, a nats-server and a sidecar in this process, and applications that know only an AMQP URL.

#![allow(dead_code, reason = "each test uses its part of it")]

pub mod process;
pub mod tampering;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use amqp_compat::backend::Login;
use amqp_compat::backend::jetstream::{JetStreamConfig, Lease};
use amqp_compat::backend::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
use amqp_compat::listener::Listener;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use nats_bridge::Bridge;
use sidecar::control::{Audit, Cutover, Management, Parts};
use sidecar::control_api::{Adopted, Change, Control, Refused, Status, Target, Weight};
use sidecar::copies;
use sidecar::dual::vhosts::JetStreamVhosts;
use sidecar::standby::Standby;
use sidecar::traces::Traces;
use sidecar::{gate, integrity};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The longest that a test may take.
pub const CAP: Duration = Duration::from_secs(60);

/// What a sidecar is between.
pub struct Ends {
    pub rabbit_url: String,
    pub management_url: String,
    pub vhost: String,
    pub nats_url: String,
    /// All sidecars of a test are in one process, which has one lease. `tests/lease.rs` is about two.
    pub lease: OnceCell<Lease>,
}

/// What one sidecar does otherwise than the others.
pub struct Likeness {
    pub fence_limit: Duration,
    pub gate: gate::Limits,
    pub rollback_after: Option<Duration>,
    /// Of whose messages there are standby copies.
    pub standby: copies::Standby,
    /// What is done to JetStream's deliveries, once it is armed.
    pub tampering: Option<Arc<tampering::Fault>>,
    /// Where spans go.
    pub traces: Option<Arc<Traces>>,
}

impl Default for Likeness {
    fn default() -> Self {
        let (gate, fence_limit) = (gate::Limits::default(), Duration::from_secs(30));
        Self {
            fence_limit,
            gate,
            rollback_after: Some(Duration::from_secs(10)),
            standby: copies::Standby::Both,
            tampering: None,
            traces: None,
        }
    }
}

/// A running sidecar.
pub struct Sidecar {
    pub cutover: Arc<Cutover>,
    pub url: String,
    standby: Arc<Standby>,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Ends {
    pub fn new(rabbit: &RabbitMq, nats: &NatsServer) -> Self {
        Self {
            rabbit_url: rabbit.url(),
            management_url: rabbit.management_url(),
            vhost: rabbit.fresh_vhost(),
            nats_url: nats.url(),
            lease: OnceCell::new(),
        }
    }

    pub async fn sidecar(&self) -> Sidecar {
        self.sidecar_with(Duration::from_secs(30)).await
    }

    pub async fn sidecar_with(&self, fence_limit: Duration) -> Sidecar {
        self.sidecar_like(Likeness { fence_limit, ..Likeness::default() }).await
    }

    pub async fn sidecar_like(&self, like: Likeness) -> Sidecar {
        self.try_sidecar(like).await.expect("started")
    }

    pub async fn try_sidecar(&self, like: Likeness) -> Result<Sidecar, String> {
        let bridge = Bridge::connect(&self.nats_url).await.expect("NATS answers");
        let config = RabbitMqConfig::from_url(&self.rabbit_url).expect("a URL");
        let lease = self.lease.get_or_init(async || Lease::acquire(&bridge).await.expect("free")).await.clone();
        let nats = Arc::new(JetStreamVhosts::new(bridge.clone(), lease, JetStreamConfig::default()));
        let standby = Standby::start(bridge.clone());
        let parts = Parts {
            rabbit_url: config.to_string(),
            rabbit: Arc::new(RabbitMqBackend::new(config)),
            operator: Login {
                vhost: self.vhost.clone(),
                user: "guest".into(),
                password: "guest".into(),
                certificate: None,
                client_properties: FieldTable::default(),
                peer: "sidecar".into(),
            },
            nats: match like.tampering {
                Some(fault) => Arc::new(tampering::Tampering::new(nats.clone(), fault)),
                None => nats.clone(),
            },
            nats_url: self.nats_url.clone(),
            bridge,
            routes: Some(nats),
            audit: Audit::Management(Management::from_url(&self.management_url).expect("a URL")),
            shadow: Some(standby.clone()),
            users: Vec::new(),
            fence_limit: like.fence_limit,
            gate: like.gate,
            rollback_after: like.rollback_after,
            integrity: integrity::Limits::default(),
            standby: like.standby,
            traces: like.traces,
            lead: None,
        };
        let cutover = Cutover::start(parts).await?;
        let listener = Listener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(listener.run(cutover.backend(), shutdown.clone()));
        let vhost = self.vhost.replace('/', "%2f");
        Ok(Sidecar { cutover, url: format!("amqp://guest:guest@{address}/{vhost}"), standby, shutdown, serving })
    }
}

impl Sidecar {
    pub async fn change(&self, to: Target) -> Result<Adopted, Refused> {
        let (by, reason, from) = ("test".into(), "test".into(), String::new());
        self.cutover.change(Change { to, by, reason, force: true, unrehearsed: true, from }).await
    }

    pub async fn weight(&self, percent: f64) -> Adopted {
        let weight = Weight::from_percent(percent).expect("a weight");
        self.change(Target::Weight(weight)).await.expect("allowed")
    }

    pub async fn status(&self) -> Status {
        self.cutover.status().await
    }

    pub async fn connect(&self) -> Connection {
        Connection::connect(&self.url, ConnectionProperties::default()).await.expect("connected")
    }

    /// Stops it as SIGTERM does.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.expect("stopped");
        self.cutover.last_words().await;
        self.cutover.stop();
        self.standby.stop();
    }

    /// Ends it without a word, as `kill -9` does: sockets close, nothing is said.
    pub async fn kill(self) {
        self.serving.abort();
        let _ = self.serving.await;
        self.cutover.stop();
        self.standby.stop();
    }
}

/// Declares a topic exchange and a queue that gets all of it.
pub async fn declare(channel: &Channel, exchange: &str, queue: &str) {
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel
        .exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default())
        .await
        .expect("declared");
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), durable, FieldTable::default()).await.expect("declared");
    channel
        .queue_bind(queue.into(), exchange.into(), "#".into(), QueueBindOptions::default(), FieldTable::default())
        .await
        .expect("bound");
}

/// What applications wrote down, independent of the sidecar.
#[derive(Debug, Default)]
pub struct Ledger {
    pub published: AtomicU64,
    pub confirmed: AtomicU64,
    pub delivered: AtomicU64,
    pub duplicated: AtomicU64,
    /// Whether a broker is killed, so that what says `redelivered` is no duplicate.
    pub forgets_acks: bool,
    pub reordered: AtomicU64,
    pub stop: AtomicBool,
    /// The consumer stands still, so that a backlog grows.
    pub pause: AtomicBool,
}

/// Publishes `keys` keys in turn, numbered, each confirmed, until the ledger says stop.
pub async fn produce(connection: Connection, exchange: &'static str, keys: u64, pace: Duration, ledger: Arc<Ledger>) {
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let mut numbers = vec![0u64; keys as usize];
    let mut window = std::collections::VecDeque::new();
    for turn in 0.. {
        if ledger.stop.load(Ordering::Relaxed) {
            break;
        }
        let key = turn % keys;
        let number = &mut numbers[key as usize];
        *number += 1;
        let confirm = channel
            .basic_publish(
                exchange.into(),
                format!("key.{key}").into(),
                BasicPublishOptions::default(),
                number.to_string().as_bytes(),
                BasicProperties::default().with_delivery_mode(2),
            )
            .await
            .expect("published");
        ledger.published.fetch_add(1, Ordering::Relaxed);
        window.push_back(confirm);
        if window.len() >= 32 {
            let confirm = window.pop_front().expect("32 of them").await.expect("confirmed");
            assert!(confirm.is_ack(), "a publish was refused");
            ledger.confirmed.fetch_add(1, Ordering::Relaxed);
        }
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
    }
    for confirm in window {
        assert!(confirm.await.expect("confirmed").is_ack(), "a publish was refused");
        ledger.confirmed.fetch_add(1, Ordering::Relaxed);
    }
    connection.close(200, "done".into()).await.expect("the connection was open to the end");
}

/// Consumes a queue and acknowledges one by one, and writes down what it sees, until all that was confirmed has come.
pub async fn consume(connection: Connection, queue: &'static str, prefetch: u16, ledger: Arc<Ledger>) {
    let channel = connection.create_channel().await.expect("channel");
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.expect("qos");
    let mut deliveries = channel
        .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .expect("consuming");
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let next = tokio::time::timeout(Duration::from_millis(50), deliveries.next()).await;
        let Ok(next) = next else {
            let done = ledger.stop.load(Ordering::Relaxed)
                && ledger.delivered.load(Ordering::Relaxed) == ledger.published.load(Ordering::Relaxed);
            if done {
                break;
            }
            continue;
        };
        while ledger.pause.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let delivery = next.expect("the consumer lives").expect("the connection lives");
        let headers = delivery.properties.headers();
        assert!(headers.is_none(), "a message without headers came with {headers:?}");
        let number: u64 = std::str::from_utf8(&delivery.data).expect("text").parse().expect("a number");
        let key = delivery.routing_key.to_string();
        let seen = last.entry(key).or_default();
        if number == *seen + 1 {
            *seen = number;
            ledger.delivered.fetch_add(1, Ordering::Relaxed);
        } else if number <= *seen && delivery.redelivered && ledger.forgets_acks {
            // Its ack went with the RabbitMQ that was killed.
        } else if number <= *seen {
            ledger.duplicated.fetch_add(1, Ordering::Relaxed);
        } else {
            ledger.reordered.fetch_add(1, Ordering::Relaxed);
            *seen = number;
        }
        delivery.ack(BasicAckOptions::default()).await.expect("acked");
    }
    connection.close(200, "done".into()).await.expect("the connection was open to the end");
}

/// Waits until `count` more have been delivered.
pub async fn delivered(ledger: &Ledger, count: u64) {
    let until = ledger.delivered.load(Ordering::Relaxed) + count;
    eventually_true("traffic goes on", || async { ledger.delivered.load(Ordering::Relaxed) >= until }).await;
}

/// Waits until `count` more have been confirmed.
pub async fn confirmed(ledger: &Ledger, count: u64) {
    let until = ledger.confirmed.load(Ordering::Relaxed) + count;
    eventually_true("traffic goes on", || async { ledger.confirmed.load(Ordering::Relaxed) >= until }).await;
}

/// Messages of two queues that flow through whatever listens there, until it is told to stop.
pub async fn traffic(amqp: String, stop: Arc<AtomicBool>) {
    let connection = Connection::connect(&amqp, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    channel.basic_qos(20, BasicQosOptions::default()).await.expect("qos");
    for queue in ["orders.all", "orders.audit"] {
        declare(&channel, "orders", queue).await;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await;
        let mut consumer = consumer.expect("consuming");
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let _ = delivery.ack(BasicAckOptions::default()).await;
            }
        });
    }
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let key = format!("customer.{}", n % 50);
        let publish = channel.basic_publish("orders".into(), key.into(), options, b"an order", properties);
        let confirmed = async { publish.await.expect("published").await.expect("confirmed") };
        tokio::time::timeout(Duration::from_secs(60), confirmed).await.expect("a publish is confirmed in a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _ = connection.close(200, "done".into()).await;
}
