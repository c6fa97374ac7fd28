//! What an earlier attempt at this migration lost without a word, one test for each loss: through `serve`, and through the sidecar at 0, 50
//! and 100 %. The client is lapin, unmodified; the bridge is the binary.
//!
//! What cannot be had beside RabbitMQ is refused with a typed error, never accepted and dropped.

mod ten;

use std::time::Duration;

use futures::StreamExt;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicGetOptions, BasicRejectOptions, QueueDeclareOptions};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use ten::{Place, consume, declare, everywhere, numbers, publish, table};
use test_support::eventually::eventually_true;

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Ready messages of a queue.
async fn ready(channel: &Channel, queue: &str) -> u32 {
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
    declared.expect("it is there").message_count()
}

#[tokio::test(flavor = "multi_thread")]
async fn acks() {
    everywhere(async |place: &mut Place| {
        let (first, channel) = place.channel().await;
        declare(&channel, "q", FieldTable::default()).await;
        publish(&channel, "q", 0..10, &BasicProperties::default()).await;
        let mut held = Vec::new();
        let mut deliveries = consume(&channel, "q").await;
        for _ in 0..10 {
            held.push(deliveries.next().await.expect("alive").expect("delivered"));
        }
        // One half is acknowledged, the other is left to the end of the connection.
        let left: Vec<u32> = held.split_off(5).iter().map(|delivery| numbers(&delivery.data)).collect();
        for delivery in held {
            assert!(!delivery.redelivered);
            delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
        }
        first.close(200, "done".into()).await.expect("closed");
        let (second, channel) = place.channel().await;
        let mut deliveries = consume(&channel, "q").await;
        let mut again = Vec::new();
        for _ in 0..5 {
            let delivery = deliveries.next().await.expect("alive").expect("delivered");
            assert!(delivery.redelivered, "{}: it has been delivered before", place.name);
            again.push(numbers(&delivery.data));
            delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
        }
        again.sort_unstable();
        let mut left = left;
        left.sort_unstable();
        assert_eq!(again, left, "{}", place.name);
        second.close(200, "done".into()).await.expect("closed");
        let (_third, channel) = place.channel().await;
        let got = channel.basic_get("q".into(), BasicGetOptions::default()).await.expect("an answer");
        assert!(got.is_none(), "{}: what was acknowledged is gone", place.name);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn persistence() {
    everywhere(async |place: &mut Place| {
        let (_connection, channel) = place.channel().await;
        declare(&channel, "q", FieldTable::default()).await;
        publish(&channel, "q", 0..20, &BasicProperties::default().with_delivery_mode(2)).await;
        place.kill_9_and_start_again();
        let (_connection, channel) = place.channel().await;
        let mut deliveries = consume(&channel, "q").await;
        let mut there = Vec::new();
        for _ in 0..20 {
            let delivery = deliveries.next().await.expect("alive").expect("delivered");
            assert_eq!(*delivery.properties.delivery_mode(), Some(2));
            there.push(numbers(&delivery.data));
        }
        there.sort_unstable();
        assert_eq!(there, Vec::from_iter(0..20), "{}", place.name);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expiration() {
    everywhere(async |place: &mut Place| {
        let (_connection, channel) = place.channel().await;
        let dead = table(&[("x-dead-letter-exchange", long("")), ("x-dead-letter-routing-key", long("expired"))]);
        declare(&channel, "q", dead).await;
        declare(&channel, "expired", FieldTable::default()).await;
        let brief = BasicProperties::default().with_expiration("150".into());
        publish(&channel, "q", 0..10, &brief).await;
        publish(&channel, "q", 10..20, &BasicProperties::default()).await;
        eventually_true("those with an expiration are gone", || async { ready(&channel, "q").await == 10 }).await;
        eventually_true("and are dead letters", || async { ready(&channel, "expired").await == 10 }).await;
        let mut deliveries = consume(&channel, "q").await;
        for _ in 0..10 {
            let delivery = deliveries.next().await.expect("alive").expect("delivered");
            assert!(numbers(&delivery.data) >= 10, "{}: it has expired", place.name);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_lettering() {
    everywhere(async |place: &mut Place| {
        let (_connection, channel) = place.channel().await;
        let dead = table(&[("x-dead-letter-exchange", long("")), ("x-dead-letter-routing-key", long("dead"))]);
        declare(&channel, "q", dead).await;
        declare(&channel, "dead", FieldTable::default()).await;
        publish(&channel, "q", 0..10, &BasicProperties::default()).await;
        let mut deliveries = consume(&channel, "q").await;
        for _ in 0..10 {
            let delivery = deliveries.next().await.expect("alive").expect("delivered");
            delivery.reject(BasicRejectOptions { requeue: false }).await.expect("rejected");
        }
        let mut letters = consume(&channel, "dead").await;
        let mut came = Vec::new();
        for _ in 0..10 {
            let letter = letters.next().await.expect("alive").expect("delivered");
            let headers = letter.properties.headers().clone().expect("headers");
            let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { panic!("{headers:?}") };
            let [AMQPValue::FieldTable(death)] = deaths.as_slice() else { panic!("{deaths:?}") };
            assert_eq!(death.inner().get("queue"), Some(&AMQPValue::LongString("q".into())));
            assert_eq!(death.inner().get("reason"), Some(&AMQPValue::LongString("rejected".into())));
            came.push(numbers(&letter.data));
        }
        came.sort_unstable();
        assert_eq!(came, Vec::from_iter(0..10), "{}", place.name);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn single_active_consumer() {
    let alone = || table(&[("x-single-active-consumer", AMQPValue::Boolean(true))]);
    everywhere(async |place: &mut Place| {
        let (_connection, channel) = place.channel().await;
        if place.weight.is_some_and(|weight| weight > 0) {
            // Two brokers cannot agree on one consumer: said before anything is accepted.
            let durable = QueueDeclareOptions { durable: true, ..Default::default() };
            let refused = channel.queue_declare("q".into(), durable, alone()).await.expect_err("refused").to_string();
            assert!(refused.contains("NOT-IMPLEMENTED") || refused.contains("NOT_IMPLEMENTED"), "{refused}");
            return;
        }
        declare(&channel, "q", alone()).await;
        let (_other, second) = place.channel().await;
        let mut active = consume(&channel, "q").await;
        let mut waiting = consume(&second, "q").await;
        publish(&channel, "q", 0..10, &BasicProperties::default()).await;
        for number in 0..10 {
            let delivery = active.next().await.expect("alive").expect("delivered");
            assert_eq!(numbers(&delivery.data), number, "{}: to the first one, in order", place.name);
            delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
        }
        channel.basic_cancel(active.tag(), BasicCancelOptions::default()).await.expect("cancelled");
        publish(&channel, "q", 10..11, &BasicProperties::default()).await;
        assert_eq!(numbers(&waiting.next().await.expect("alive").expect("delivered").data), 10, "{}", place.name);
        if place.weight.is_some() {
            place.verb(&["shadow"]).expect("shadow");
            let refused = place.verb(&["weight", "50", "--force"]).expect_err("the queue is on RabbitMQ alone");
            assert!(refused.contains("JetStream") && refused.contains('q'), "{refused}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_properties() {
    let headers = table(&[
        ("text", long("Grüße")),
        ("yes", AMQPValue::Boolean(true)),
        ("small", AMQPValue::ShortShortInt(-3)),
        ("large", AMQPValue::LongLongInt(i64::MAX)),
        ("double", AMQPValue::Double(0.1)),
        ("nothing", AMQPValue::Void),
        ("bytes", AMQPValue::ByteArray(vec![0, 255, 10].into())),
        ("time", AMQPValue::Timestamp(1_700_000_000)),
        ("nested", AMQPValue::FieldTable(table(&[("deeper", AMQPValue::LongInt(7))]))),
    ]);
    let everything = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_priority(4)
        .with_correlation_id("correlation".into())
        .with_reply_to("replies".into())
        .with_expiration("600000".into())
        .with_message_id("message".into())
        .with_timestamp(1_700_000_001)
        .with_type("order.placed".into())
        .with_user_id("guest".into())
        .with_app_id("shop".into());
    everywhere(async |place: &mut Place| {
        let (_connection, channel) = place.channel().await;
        declare(&channel, "q", FieldTable::default()).await;
        publish(&channel, "q", 0..10, &everything).await;
        let mut deliveries = consume(&channel, "q").await;
        for _ in 0..10 {
            let delivery = deliveries.next().await.expect("alive").expect("delivered");
            assert_eq!(delivery.properties, everything, "{}", place.name);
            assert_eq!(delivery.exchange.as_str(), "to q");
            assert_eq!(delivery.routing_key.as_str(), format!("key.{}", numbers(&delivery.data) % 10));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_message_while_the_first_is_unread() {
    everywhere(async |place: &mut Place| {
        let (_connection, channel) = place.channel().await;
        declare(&channel, "q", FieldTable::default()).await;
        // Ten keys, three messages each, and nobody reads.
        publish(&channel, "q", 0..30, &BasicProperties::default()).await;
        eventually_true("all are there", || async { ready(&channel, "q").await == 30 }).await;
        let mut deliveries = consume(&channel, "q").await;
        let mut last = [None; 10];
        for _ in 0..30 {
            let delivery = deliveries.next().await.expect("alive").expect("delivered");
            let number = numbers(&delivery.data);
            let key = (number % 10) as usize;
            assert_eq!(number, last[key].map_or(key as u32, |last: u32| last + 10), "{}", place.name);
            last[key] = Some(number);
            delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_credentials() {
    everywhere(async |place: &mut Place| {
        // A wrong password, a user that there is not, over plain AMQP and over TLS.
        for (from, to) in [("guest:guest", "guest:wrong"), ("guest:guest", "nobody:guest")] {
            for url in [place.url(), place.tls_url()] {
                let refused = place.connect(&url.replace(from, to)).await.expect_err("refused").to_string();
                assert!(refused.contains("ACCESS") && refused.contains("REFUSED"), "{}: {refused}", place.name);
            }
        }
        // Who does not know the certificate's issuer does not connect; who does has everything over it.
        let nobody = OwnedTLSConfig { identity: None, cert_chain: None };
        place.connect_with(&place.tls_url(), nobody).await.expect_err("an unknown issuer");
        let connection = place.connect(&place.tls_url()).await.expect("connected");
        let channel = ten::confirming(&connection).await;
        declare(&channel, "q", FieldTable::default()).await;
        publish(&channel, "q", 0..10, &BasicProperties::default()).await;
        let mut deliveries = consume(&channel, "q").await;
        for _ in 0..10 {
            deliveries.next().await.expect("alive").expect("delivered");
        }
        // A client that speaks plainly to that port gets no answer.
        let plain = place.tls_url().replace("amqps:", "amqp:");
        Connection::connect(&plain, ConnectionProperties::default()).await.expect_err("no plain AMQP there");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_discovery() {
    everywhere(async |place: &mut Place| {
        // A load balancer asks `/readyz` where to send clients; it says no while NATS is away, and yes again, and clients find their way.
        assert_eq!(place.http("/readyz").0, 200, "{}", place.name);
        let (_connection, channel) = place.channel().await;
        declare(&channel, "q", FieldTable::default()).await;
        publish(&channel, "q", 0..10, &BasicProperties::default()).await;
        // It goes away, and comes back at the same name; its client knows the name alone. NATS is found by the second of two names.
        place.kill_9_and_start_again();
        let (_connection, channel) = place.channel().await;
        let mut deliveries = consume(&channel, "q").await;
        for _ in 0..10 {
            deliveries.next().await.expect("alive").expect("delivered");
        }
        assert_eq!(place.http("/readyz").0, 200, "{}", place.name);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback() {
    everywhere(async |place: &mut Place| {
        let (_connection, channel) = place.channel().await;
        declare(&channel, "q", FieldTable::default()).await;
        publish(&channel, "q", 0..50, &BasicProperties::default()).await;
        if place.weight.is_some_and(|weight| weight > 0) {
            place.verb(&["rollback"]).expect("back on RabbitMQ");
        } else if place.weight.is_none() {
            // Nothing to go back to: `serve` has no RabbitMQ, and says so instead of pretending.
            place.verb(&["rollback"]).expect_err("there is no RabbitMQ");
        }
        publish(&channel, "q", 50..100, &BasicProperties::default()).await;
        let mut deliveries = consume(&channel, "q").await;
        let mut last = [None; 10];
        for _ in 0..100 {
            let delivery = deliveries.next().await.expect("alive").expect("delivered");
            assert!(!delivery.redelivered);
            let number = numbers(&delivery.data);
            let key = (number % 10) as usize;
            assert_eq!(
                number,
                last[key].map_or(key as u32, |last: u32| last + 10),
                "{}: none lost, in order",
                place.name
            );
            last[key] = Some(number);
            delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
        }
        let more = tokio::time::timeout(Duration::from_millis(100), deliveries.next()).await;
        assert!(more.is_err(), "{}: one too many", place.name);
    })
    .await;
}
