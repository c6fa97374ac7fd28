//! The JetStream backend at its border, against a real nats-server: commands in, events out, one test a promise.
//!
//! With `FOLLOWS=1` every backend that does not bring a lease of its own follows another gateway: what one gateway promises,
//! several do.

mod client;
mod cluster;
mod consuming;
mod crash;
mod dead_letters;
mod delays;
mod exclusive;
mod expiry;
mod full;
mod gateways;
mod gateways_cluster;
mod lease;
mod limits;
mod policies;
mod priorities;
mod publishing;
mod queues;
mod replies;
mod returns;
mod streams;
mod turns;
mod users;
mod vhosts;

use std::sync::Arc;

use amqp_compat::backend::jetstream::{Gateways, JetStreamBackend, JetStreamConfig, Lease};
use nats_bridge::Bridge;
use test_support::nats::NatsServer;

async fn backend(server: &NatsServer) -> Arc<JetStreamBackend> {
    backend_with(server, JetStreamConfig::default()).await
}

/// The only gateway, also with `FOLLOWS=1`.
async fn alone(server: &NatsServer) -> Arc<JetStreamBackend> {
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    JetStreamBackend::connect(bridge, JetStreamConfig::default()).await.expect("loaded")
}

async fn backend_with(server: &NatsServer, mut config: JetStreamConfig) -> Arc<JetStreamBackend> {
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    if config.lease.is_none() && config.gateways.is_none() && std::env::var_os("FOLLOWS").is_some() {
        let leads = Bridge::connect(server.url()).await.expect("connected");
        let gateways = Gateways::join(&leads).await.expect("free");
        let leading = JetStreamConfig { gateways: Some(gateways), ..config.clone() };
        let leads = JetStreamBackend::connect(leads, leading).await.expect("loaded");
        // It leads for as long as the test takes.
        std::mem::forget(leads);
        config.gateways = Some(Gateways::join(&bridge).await.expect("shared"));
    }
    JetStreamBackend::connect(bridge, config).await.expect("loaded")
}

/// Settings for two gateways under one lease: of what the first does, nothing but its silence is of interest.
async fn one_lease(server: &NatsServer) -> JetStreamConfig {
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    let lease = Lease::acquire(&bridge).await.expect("free");
    JetStreamConfig { lease: Some(lease), ..JetStreamConfig::default() }
}
