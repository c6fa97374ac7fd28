//! The stream that most tests here use.

use nats_bridge::{Bridge, Retention, StreamSpec};
use test_support::nats::NatsServer;

/// A connection to a server, on which the work queue `ORDERS` takes `orders.>`.
pub async fn bridge(server: &NatsServer) -> Bridge {
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let orders = StreamSpec {
        retention: Retention::WorkQueue,
        max_bytes: Some(1 << 26),
        ..StreamSpec::new("ORDERS", ["orders.>"])
    };
    bridge.ensure_stream(&orders).await.unwrap();
    bridge
}
