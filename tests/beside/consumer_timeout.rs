use amqp_compat::backend::jetstream::JetStreamConfig;
use futures::StreamExt as _;
use lapin::BasicProperties;
use lapin::options::*;
use lapin::types::FieldTable;
use std::time::Duration;
use test_support::rabbit::RabbitMq;

use crate::servers::{Client, Failure, failure, start_with};

const CAP: Duration = Duration::from_secs(60);

/// A consumer keeps the first of two messages, and settles the second: what it hears, and what comes again.
async fn kept_too_long(client: &Client) -> (Failure, Vec<(Vec<u8>, bool)>) {
    client.queue("q", FieldTable::default()).await.expect("declared");
    let channel = client.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    for body in [b"kept", b"done"] {
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish("".into(), "q".into(), options, body, BasicProperties::default()).await;
        sent.expect("sent").await.expect("confirmed");
    }
    let consuming = client.channel().await;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        consuming.basic_consume("q".into(), "c".into(), options, FieldTable::default()).await.expect("consuming");
    let _kept = consumer.next().await.expect("a delivery").expect("it came");
    let done = consumer.next().await.expect("a delivery").expect("it came");
    done.acker.ack(BasicAckOptions::default()).await.expect("settled");
    let heard = tokio::time::timeout(CAP, consumer.next()).await.expect("its channel is closed");
    let heard = failure(heard.expect("it is told").expect_err("an end"));
    let mut again = Vec::new();
    while let Some(got) = channel.basic_get("q".into(), BasicGetOptions { no_ack: true }).await.expect("answered") {
        again.push((got.delivery.data.to_vec(), got.delivery.redelivered));
    }
    (heard, again)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_keeps_a_delivery_too_long_hears_rabbitmqs_words() {
    let rabbit = tokio::task::spawn_blocking(|| {
        let rabbit = RabbitMq::start();
        let quick = "[application:set_env(rabbit, Name, 1000) || Name <- [consumer_timeout, channel_tick_interval]].";
        rabbit.ctl(&["eval", quick]);
        rabbit
    });
    let rabbit = rabbit.await.expect("started");
    let config = JetStreamConfig { consumer_timeout: Some(Duration::from_secs(1)), ..JetStreamConfig::default() };
    let ours = start_with(config).await;
    let expected = kept_too_long(&Client::connect(&rabbit.url()).await).await;
    assert_eq!(kept_too_long(&Client::connect(ours.url()).await).await, expected);
    let ((code, text), again) = expected;
    assert!(code == 406 && text.contains("Timeout value used: 1000 ms"), "{code} {text}");
    assert_eq!(again, [(b"kept".to_vec(), true)]);
}
