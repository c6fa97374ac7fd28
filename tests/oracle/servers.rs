//! The oracle and ours: one RabbitMQ and one nats-server with a listener, for the whole run.

use std::net::SocketAddr;
use std::sync::Arc;

use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig};
use amqp_compat::listener::Listener;
use nats_bridge::Bridge;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;
use tokio_util::sync::{CancellationToken, DropGuard};

pub struct Servers {
    pub oracle: SocketAddr,
    pub ours: SocketAddr,
    /// One for each worker, so that what all programs know (`amq.direct`) is nobody else's.
    pub vhosts: Vec<String>,
    _rabbit: RabbitMq,
    _nats: NatsServer,
    _stop: DropGuard,
}

impl Servers {
    pub async fn start(workers: usize) -> Servers {
        let vhosts: Vec<_> = (0..workers).map(|worker| format!("w{worker}")).collect();
        let names = vhosts.clone();
        let rabbit = tokio::task::spawn_blocking(move || {
            let rabbit = RabbitMq::start();
            names.iter().for_each(|name| rabbit.create_vhost(name));
            rabbit
        });
        let nats = tokio::task::spawn_blocking(NatsServer::start).await.expect("started");
        let bridge = Bridge::connect(nats.url()).await.expect("connected");
        let config = JetStreamConfig { vhosts: vhosts.clone(), ..JetStreamConfig::default() };
        let backend = JetStreamBackend::connect(bridge, config).await.expect("loaded");
        let listener = Listener::bind("127.0.0.1:0").await.expect("bound");
        let ours = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        tokio::spawn(listener.run(Arc::clone(&backend) as _, stop.clone()));
        let rabbit = rabbit.await.expect("started");
        let oracle = SocketAddr::from(([127, 0, 0, 1], rabbit.port()));
        Servers { oracle, ours, vhosts, _rabbit: rabbit, _nats: nats, _stop: stop.drop_guard() }
    }
}
