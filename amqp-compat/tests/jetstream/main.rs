//! The JetStream backend at its border, against a real nats-server: commands in, events out, one test a promise.

mod client;
mod cluster;
mod consuming;
mod crash;
mod dead_letters;
mod delays;
mod exclusive;
mod expiry;
mod lease;
mod limits;
mod policies;
mod priorities;
mod publishing;
mod queues;
mod replies;
mod streams;
mod turns;

use std::sync::Arc;

use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig, Lease};
use nats_bridge::Bridge;
use test_support::nats::NatsServer;

async fn backend(server: &NatsServer) -> Arc<JetStreamBackend> {
    backend_with(server, JetStreamConfig::default()).await
}

async fn backend_with(server: &NatsServer, config: JetStreamConfig) -> Arc<JetStreamBackend> {
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    JetStreamBackend::connect(bridge, config).await.expect("loaded")
}

/// Settings for two gateways under one lease: of what the first does, nothing but its silence is of interest.
async fn one_lease(server: &NatsServer) -> JetStreamConfig {
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    let lease = Lease::acquire(&bridge).await.expect("free");
    JetStreamConfig { lease: Some(lease), ..JetStreamConfig::default() }
}
