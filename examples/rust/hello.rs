//! Hello: publish, recognise a duplicate, consume, retry, dead-letter. `hello [nats://127.0.0.1:4222]`

use std::time::Duration;

use nats_bridge::{Bridge, ConsumeConfig, Message, Result, Retention, RetryPolicy, StreamSpec};

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let bridge = Bridge::connect(&url).await?;
    // What an earlier run, or the same example in another language, has left.
    bridge.jetstream().delete_stream("HELLO").await.ok();
    bridge.jetstream().delete_stream("HELLO_DLQ").await.ok();
    bridge.ensure_stream(&orders()).await?;

    let first = bridge.publish(Message::new("hello.orders", "order 17").id("order-17")).await?;
    let again = bridge.publish(Message::new("hello.orders", "order 17").id("order-17")).await?;
    let broken = bridge.publish(Message::new("hello.orders", "order 18, which nobody can handle")).await?;

    let mut consumer = bridge.consume(billing()).await?;
    let (mut delivered, mut dead_lettered) = (0, 0);
    while let Some(delivery) = consumer.next().await? {
        println!("  attempt {}: {}", delivery.attempt(), String::from_utf8_lossy(delivery.payload()));
        if delivery.sequence() == broken.sequence {
            let settled = delivery.retry("no such customer").await?;
            println!("  -> {settled:?}");
            if let nats_bridge::Settled::DeadLettered { .. } = settled {
                dead_lettered += 1;
                break;
            }
        } else {
            delivery.ack_confirmed().await?;
            delivered += 1;
        }
    }
    consumer.handle().drain(Duration::from_secs(5)).await?;

    println!("server:        nats-server {} (API level {})", bridge.server_version(), bridge.api_level());
    println!("stored:        {} at {}/{}", first.id.unwrap_or_default(), first.stream, first.sequence);
    println!("duplicate:     {} (the same place: {})", again.duplicate, again.sequence == first.sequence);
    println!("delivered:     {delivered}");
    println!("dead-lettered: {dead_lettered}");
    assert!(again.duplicate && delivered == 1 && dead_lettered == 1, "that is not what the guarantees say");

    bridge.jetstream().delete_stream("HELLO").await.ok();
    bridge.jetstream().delete_stream("HELLO_DLQ").await.ok();
    bridge.close(Duration::from_secs(5)).await
}

fn orders() -> StreamSpec {
    StreamSpec { retention: Retention::WorkQueue, max_bytes: Some(1 << 20), ..StreamSpec::new("HELLO", ["hello.>"]) }
}

fn billing() -> ConsumeConfig {
    let retry = RetryPolicy { attempts: 3, first_pause: Duration::from_millis(100), ..RetryPolicy::default() };
    ConsumeConfig { retry, ..ConsumeConfig::new("HELLO", "billing") }
}
