//! RabbitMQ, and our listener on a nats-server, each with a connection of lapin.

use std::sync::Arc;

use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig};
use amqp_compat::listener::Listener;
use lapin::options::*;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};
use nats_bridge::Bridge;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Ours, until it is dropped.
pub struct Ours {
    url: String,
    _nats: NatsServer,
    _stop: DropGuard,
}

/// RabbitMQ and ours, with a vhost of the same name, so that their texts can be compared.
pub async fn both() -> (Client, Client, Ours) {
    let (url, vhost) = rabbit().await;
    let ours = start(&vhost).await;
    (Client::connect(&url).await, Client::connect(&ours.url).await, ours)
}

impl Ours {
    pub fn url(&self) -> &str {
        &self.url
    }
}

async fn start(vhost: &str) -> Ours {
    start_with(JetStreamConfig { vhosts: vec![vhost.to_owned()], ..JetStreamConfig::default() }).await
}

/// Ours with these settings; the URL names the first vhost.
pub async fn start_with(config: JetStreamConfig) -> Ours {
    let vhost = config.vhosts[0].replace('/', "%2f");
    let nats = tokio::task::spawn_blocking(NatsServer::start).await.expect("started");
    let bridge = Bridge::connect(nats.url()).await.expect("connected");
    let backend = JetStreamBackend::connect(bridge, config).await.expect("loaded");
    let listener = Listener::bind("127.0.0.1:0").await.expect("bound");
    let url = format!("amqp://guest:guest@{}/{vhost}", listener.local_addr().expect("bound"));
    let stop = CancellationToken::new();
    tokio::spawn(listener.run(Arc::clone(&backend) as _, stop.clone()));
    Ours { url, _nats: nats, _stop: stop.drop_guard() }
}

/// The URL and name of a fresh vhost on RabbitMQ.
async fn rabbit() -> (String, String) {
    let started = tokio::task::spawn_blocking(|| {
        let rabbit = RabbitMq::shared();
        let vhost = rabbit.fresh_vhost();
        (rabbit.url_for(&vhost), vhost)
    });
    started.await.expect("started")
}

/// One connection; a channel that failed is followed by another.
pub struct Client {
    url: String,
    connection: Connection,
}

pub type Failure = (u16, String);

impl Client {
    pub async fn connect(url: &str) -> Client {
        let connection = Connection::connect(url, Default::default()).await.expect("connected");
        Client { url: url.to_owned(), connection }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn channel(&self) -> Channel {
        self.connection.create_channel().await.expect("opened")
    }

    pub async fn exchange(&self, name: &str, kind: &str, arguments: FieldTable) -> Result<(), Failure> {
        let kind = ExchangeKind::Custom(kind.into());
        let channel = self.channel().await;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let declared = channel.exchange_declare(name.into(), kind, options, arguments).await;
        declared.map_err(failure)
    }

    pub async fn queue(&self, name: &str, arguments: FieldTable) -> Result<u32, Failure> {
        let options = QueueDeclareOptions::durable();
        let declared = self.channel().await.queue_declare(name.into(), options, arguments).await;
        declared.map(|queue| queue.message_count()).map_err(failure)
    }

    pub async fn bind(&self, exchange: &str, queue: &str, key: &str) -> Result<(), Failure> {
        let channel = self.channel().await;
        let options = QueueBindOptions::default();
        channel
            .queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default())
            .await
            .map_err(failure)
    }
}

pub fn failure(error: lapin::Error) -> Failure {
    match error.kind() {
        ErrorKind::ProtocolError(error) => (error.get_id(), error.get_message().to_string()),
        other => panic!("no error of AMQP: {other:?}"),
    }
}

pub fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

pub fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}
