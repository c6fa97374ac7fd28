//! The JetStream backend at its border, against a real nats-server: commands in, events out, one test a promise.

mod client;
mod consuming;
mod crash;
mod expiry;
mod lease;
mod priorities;
mod publishing;
mod queues;
mod turns;

use std::sync::Arc;

use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig};
use nats_bridge::Bridge;
use test_support::nats::NatsServer;

async fn backend(server: &NatsServer) -> Arc<JetStreamBackend> {
    backend_with(server, JetStreamConfig::default()).await
}

async fn backend_with(server: &NatsServer, config: JetStreamConfig) -> Arc<JetStreamBackend> {
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    JetStreamBackend::connect(bridge, config).await.expect("loaded")
}
