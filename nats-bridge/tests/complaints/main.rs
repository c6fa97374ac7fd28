//! What users of other clients complain about in their issue trackers, each turned into a promise that holds here.

#![allow(clippy::unwrap_used)]

mod connection;
mod consuming;
mod promises;
mod publishing;

use std::time::Duration;

use nats_bridge::{
    Bridge, Config, ConsumeConfig, Consumer, Delivery, Message, PublishConfig, Retention, RetryPolicy, StreamSpec,
};
use test_support::nats::NatsServer;

/// Longer than anything here may take on a crowded machine.
const CAP: Duration = Duration::from_secs(20);

fn config(url: String) -> Config {
    Config { servers: vec![url], reconnect_pause_max: Duration::from_millis(100), ..Config::default() }
}

async fn bridge(server: &NatsServer) -> Bridge {
    with(server, config(server.url())).await
}

async fn with(server: &NatsServer, config: Config) -> Bridge {
    let direct = Bridge::connect(server.url()).await.unwrap();
    let orders = StreamSpec {
        retention: Retention::WorkQueue,
        max_bytes: Some(1 << 28),
        ..StreamSpec::new("ORDERS", ["orders.>"])
    };
    direct.ensure_stream(&orders).await.unwrap();
    Bridge::connect_with(config).await.unwrap()
}

fn billing() -> ConsumeConfig {
    let retry =
        RetryPolicy { attempts: 3, first_pause: Duration::from_millis(50), jitter: false, ..RetryPolicy::default() };
    ConsumeConfig {
        retry,
        heartbeat: Duration::from_millis(300),
        stalled_after: Duration::from_secs(2),
        ..ConsumeConfig::new("ORDERS", "billing")
    }
}

async fn publish(bridge: &Bridge, numbers: std::ops::Range<usize>) {
    let publisher = bridge.publisher(PublishConfig::default()).await.unwrap();
    for i in numbers {
        publisher.publish_later(Message::new("orders.new", i.to_string())).await.unwrap();
    }
    publisher.flush(CAP).await.unwrap();
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(CAP, consumer.next()).await;
    next.expect("a delivery in time").unwrap().expect("the consumer goes on")
}

fn number(delivery: &Delivery) -> usize {
    std::str::from_utf8(delivery.payload()).unwrap().parse().unwrap()
}

async fn left(bridge: &Bridge, stream: &str) -> Option<u64> {
    bridge.jetstream().get_stream(stream).await.ok().map(|stream| stream.cached_info().state.messages)
}
