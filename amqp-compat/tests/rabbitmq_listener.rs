//! A client of other people's making, through the listener, on a real RabbitMQ: it must not notice what is between.

use std::sync::Arc;
use std::time::Duration;

use amqp_compat::backend::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
use amqp_compat::listener::Listener;
use futures::StreamExt;
use lapin::options::*;
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ErrorKind};
use test_support::eventually::eventually_true;
use test_support::rabbit::RabbitMq;
use tokio_util::sync::{CancellationToken, DropGuard};

const PATIENCE: Duration = Duration::from_secs(15);

/// A listener before a RabbitMQ, until it is dropped.
struct Between {
    port: u16,
    _stop: DropGuard,
}

async fn between(rabbit: &RabbitMq) -> Between {
    let listener = Listener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let backend = RabbitMqBackend::new(RabbitMqConfig::from_url(&rabbit.url()).expect("valid"));
    let stop = CancellationToken::new();
    tokio::spawn(listener.run(Arc::new(backend), stop.clone()));
    Between { port, _stop: stop.drop_guard() }
}

async fn connect(between: &Between, vhost: &str) -> (Connection, Channel) {
    let url = format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", between.port);
    let connection = Connection::connect(&url, Default::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("opened");
    (connection, channel)
}

async fn fill(channel: &Channel, queue: &str, count: u32) {
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.expect("declared");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    let options = BasicPublishOptions::default();
    for i in 0..count {
        let properties = BasicProperties::default();
        let body = i.to_be_bytes();
        channel.basic_publish("".into(), queue.into(), options, &body, properties).await.expect("published");
    }
    assert!(channel.wait_for_confirms().await.expect("confirmed").is_empty());
}

#[tokio::test]
async fn a_client_without_prefetch_gets_everything_before_it_acknowledges_anything() {
    let rabbit = RabbitMq::shared();
    let vhost = rabbit.fresh_vhost();
    let between = between(rabbit).await;
    let (_connection, channel) = connect(&between, &vhost).await;
    // Several times the listener's own window.
    fill(&channel, "q", 5000).await;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume("q".into(), "c".into(), options, FieldTable::default()).await.expect("consuming");
    let mut last = None;
    for i in 0..5000_u32 {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("in time");
        let delivery = next.expect("open").expect("delivered");
        assert_eq!((delivery.data.as_slice(), delivery.redelivered), (&i.to_be_bytes()[..], false));
        last = Some(delivery);
    }
    last.expect("there was one").ack(BasicAckOptions { multiple: true }).await.expect("sent");
    // What was acknowledged is acknowledged in RabbitMQ itself.
    eventually_true("the queue is empty and unsettled by nobody", async || {
        let (_, queue) = rabbit.api("GET", &format!("/api/queues/{vhost}/q"), "").expect("answers");
        let queue: serde_json::Value = serde_json::from_str(&queue).expect("JSON");
        queue["messages"] == 0
    })
    .await;
}

#[tokio::test]
async fn a_clients_errors_and_exclusive_queues_are_rabbitmqs_own() {
    let rabbit = RabbitMq::shared();
    let vhost = rabbit.fresh_vhost();
    let between = between(rabbit).await;
    let (first, channel) = connect(&between, &vhost).await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    channel.queue_declare("mine".into(), exclusive, FieldTable::default()).await.expect("declared");

    let (_second, other) = connect(&between, &vhost).await;
    let refused = other.basic_get("mine".into(), BasicGetOptions::default()).await.expect_err("it is exclusive");
    let ErrorKind::ProtocolError(error) = refused.kind() else { panic!("{refused:?}") };
    assert_eq!(error.get_id(), 405);
    let text = error.get_message().to_string();
    assert!(
        text.starts_with(&format!(
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine' in vhost '{vhost}'"
        )),
        "{text}"
    );

    first.close(200, "bye".into()).await.expect("closed");
    eventually_true("the queue goes with its connection", async || {
        rabbit.api("GET", &format!("/api/queues/{vhost}/mine"), "").expect("answers").0 == 404
    })
    .await;
}

#[tokio::test]
async fn a_client_is_told_when_rabbitmq_is_gone_and_is_back_when_it_is() {
    let mut rabbit = RabbitMq::start();
    let between = between(&rabbit).await;
    let (connection, channel) = connect(&between, "%2f").await;
    fill(&channel, "q", 10).await;
    rabbit.kill_9();
    eventually_true("the connection is closed", async || !connection.status().connected()).await;
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", between.port);
    assert!(Connection::connect(&url, Default::default()).await.is_err());

    rabbit.restart();
    let (_connection, channel) = connect(&between, "%2f").await;
    // Confirmed and not persistent: a killed RabbitMQ has lost them. Its own answer, and not one from between.
    let queue = channel.queue_declare("q".into(), QueueDeclareOptions::durable(), FieldTable::default()).await;
    assert_eq!(queue.expect("declared").message_count(), 0);
    fill(&channel, "q", 10).await;
}
