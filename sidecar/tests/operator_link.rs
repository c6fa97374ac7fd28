//! The sidecar's own link to a side.

use std::sync::Arc;
use std::time::Duration;

use amqp_compat::backend::Login;
use amqp_compat::backend::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use sidecar::dual::operator::{Depth, Operator};
use sidecar::fence::QueueName;
use sidecar::ownership::Side;
use test_support::eventually::eventually_true;
use test_support::rabbit::RabbitMq;

/// With the answer of a ping that was given up taken for its own, a depth would be "there is no such queue", and
/// RabbitMQ would look drained.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one() {
    let rabbit = tokio::task::spawn_blocking(RabbitMq::start).await.expect("started");
    let application = Connection::connect(&rabbit.url(), ConnectionProperties::default()).await.expect("connected");
    let channel = application.create_channel().await.expect("channel");
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("orders".into(), durable, FieldTable::default()).await.expect("declared");
    let login = Login {
        vhost: "/".into(),
        user: "guest".into(),
        password: "guest".into(),
        certificate: None,
        client_properties: FieldTable::default(),
        peer: "sidecar".into(),
    };
    let config = RabbitMqConfig::from_url(&rabbit.url()).expect("a URL");
    let operator = Operator::new(Side::Rabbit, Arc::new(RabbitMqBackend::new(config)), login);
    let queue = QueueName { vhost: "/".into(), queue: "orders".into() };
    let empty = Some(Depth { ready: 0, consumers: 0 });
    assert_eq!(operator.depth(&queue).await, Ok(empty));
    rabbit.pause();
    assert!(tokio::time::timeout(Duration::from_millis(200), operator.ping()).await.is_err());
    rabbit.resume();
    eventually_true("RabbitMQ answers", || async {
        match operator.depth(&queue).await {
            Ok(depth) => {
                assert_eq!(depth, empty, "the queue is there");
                true
            }
            Err(_) => false,
        }
    })
    .await;
}
