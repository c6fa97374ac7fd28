//! A fence that its broker has lost is published once more when the broker is back: what waits for it does not wait for the time limit.

mod bed;

use std::sync::Arc;
use std::time::Duration;

use bed::{Ends, Sidecar};
use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Consumer};
use sidecar::control_api::{Backfill, Control, RefusedCode, Target};
use test_support::eventually::{eventually_some, eventually_true};
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// Nobody waits for that.
const LIMIT: Duration = Duration::from_secs(600);
const QUEUE: &str = "orders";

struct Application {
    _connection: Connection,
    channel: Channel,
    deliveries: Consumer,
}

impl Application {
    /// It has a hand for one message.
    async fn start(sidecar: &Sidecar) -> Self {
        let connection = sidecar.connect().await;
        let channel = connection.create_channel().await.expect("channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(QUEUE.into(), durable, FieldTable::default()).await.expect("declared");
        let reading = connection.create_channel().await.expect("channel");
        reading.basic_qos(1, BasicQosOptions::default()).await.expect("qos");
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let deliveries = reading.basic_consume(QUEUE.into(), "".into(), options, none).await.expect("consuming");
        Self { _connection: connection, channel, deliveries }
    }

    async fn publish(&self, body: &[u8]) {
        self.publish_as(body, 2).await;
    }

    async fn publish_as(&self, body: &[u8], delivery_mode: u8) {
        let (options, as_this) = (BasicPublishOptions::default(), BasicProperties::default());
        let as_this = as_this.with_delivery_mode(delivery_mode);
        let publish = self.channel.basic_publish("".into(), QUEUE.into(), options, body, as_this);
        assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
    }

    async fn next(&mut self) -> Delivery {
        let next = tokio::time::timeout(bed::CAP, self.deliveries.next()).await.expect("something is delivered");
        next.expect("the consumer lives").expect("the connection lives")
    }

    /// Everything moves to NATS while this message of RabbitMQ's is in hand, and another is published behind it.
    async fn moves_with_one_in_hand(&mut self, sidecar: &Sidecar, body: &[u8], delivery_mode: u8) -> Delivery {
        sidecar.change(Target::Shadow).await.expect("allowed");
        self.publish_as(body, delivery_mode).await;
        let in_hand = self.next().await;
        // Its fence cannot come out: the only consumer has its hands full.
        sidecar.weight(100.0).await;
        assert_eq!(fence(sidecar).await, "Sent");
        self.publish(b"after").await;
        in_hand
    }

    /// What was in hand when its broker was lost comes again, and then what was published since the change.
    async fn goes_on(&mut self, in_hand: Delivery) {
        // Of a broker that is gone; it may count, and may not.
        in_hand.ack(BasicAckOptions::default()).await.expect("acked");
        let mut next = self.next().await;
        if next.data == in_hand.data {
            assert!(next.redelivered);
            next.ack(BasicAckOptions::default()).await.expect("acked");
            next = self.next().await;
        }
        assert_eq!(next.data, b"after");
        next.ack(BasicAckOptions::default()).await.expect("acked");
    }
}

async fn fence(sidecar: &Sidecar) -> String {
    let status = sidecar.cutover.status().await;
    status.queues.iter().filter(|q| q.name == QUEUE).map(|q| format!("{:?}", q.fence)).collect()
}

async fn restarted(mut rabbit: RabbitMq) -> RabbitMq {
    let restart = move || {
        rabbit.restart();
        rabbit
    };
    tokio::task::spawn_blocking(restart).await.expect("restarted")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_rabbitmq_has_lost_is_published_once_more_when_it_is_back() {
    let nats = NatsServer::start();
    let rabbit = tokio::task::spawn_blocking(RabbitMq::start).await.expect("started");
    let ends = Ends::new(&rabbit, &nats);
    let sidecar = ends.sidecar_with(LIMIT).await;
    let mut application = Application::start(&sidecar).await;
    let before = application.moves_with_one_in_hand(&sidecar, b"before", 2).await;
    let contents = format!("/api/queues/{}/{QUEUE}/contents", ends.vhost.replace('/', "%2f"));
    let (status, text) = rabbit.api("DELETE", &contents, "").expect("answers");
    assert_eq!(status, 204, "{text}");
    // It is told to stop, not killed, so that what it has lost stays lost.
    let _rabbit = restarted(rabbit).await;
    application.goes_on(before).await;
    eventually_true("nothing waits any more", || async { fence(&sidecar).await == "Passed" }).await;
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_rabbitmq_took_back_and_lost_is_not_waited_for_to_the_limit() {
    let nats = NatsServer::start();
    let rabbit = tokio::task::spawn_blocking(RabbitMq::start).await.expect("started");
    let ends = Ends::new(&rabbit, &nats);
    let sidecar = ends.sidecar_with(LIMIT).await;
    let mut application = Application::start(&sidecar).await;
    let transient = application.moves_with_one_in_hand(&sidecar, b"transient", 1).await;
    let _rabbit = restarted(rabbit).await;
    application.goes_on(transient).await;
    eventually_true("nothing waits any more", || async { fence(&sidecar).await == "Passed" }).await;
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_nats_has_lost_is_published_once_more_when_it_is_back() {
    let mut nats = NatsServer::start();
    let ends = Ends::new(tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started"), &nats);
    let sidecar = ends.sidecar_with(LIMIT).await;
    let mut application = Application::start(&sidecar).await;
    sidecar.change(Target::Shadow).await.expect("allowed");
    sidecar.weight(100.0).await;
    eventually_true("RabbitMQ is drained", || async { fence(&sidecar).await == "Passed" }).await;
    application.publish(b"before").await;
    let before = application.next().await;
    sidecar.change(Target::Rollback).await.expect("allowed");
    assert_eq!(fence(&sidecar).await, "Sent");
    application.publish(b"after").await;
    lose_fence(&nats).await;
    nats.kill_9();
    nats.restart();
    application.goes_on(before).await;
    eventually_true("nothing waits any more", || async { fence(&sidecar).await == "Passed" }).await;
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_takes_no_fence_holds_up_no_other_queue() {
    let nats = NatsServer::start();
    let ends = Ends::new(tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started"), &nats);
    let sidecar = ends.sidecar_with(LIMIT).await;
    let mut application = Application::start(&sidecar).await;
    // Several, as the order in which fences are published is open.
    for n in 0..8 {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let (name, durable) = (format!("full.{n}"), QueueDeclareOptions { durable: true, ..Default::default() });
        application.channel.queue_declare(name.as_str().into(), durable, arguments).await.expect("declared");
        let options = BasicPublishOptions::default();
        let publish =
            application.channel.basic_publish("".into(), name.as_str().into(), options, b"it", Default::default());
        assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
    }
    sidecar.change(Target::Shadow).await.expect("allowed");
    application.publish(b"before").await;
    let before = application.next().await;
    sidecar.weight(100.0).await;
    application.publish(b"after").await;
    application.goes_on(before).await;
    eventually_true("that queue waits for nothing", || async { fence(&sidecar).await == "Passed" }).await;
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_not_taken_for_a_fence_that_is_lost() {
    let nats = NatsServer::start();
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let ends = Ends::new(rabbit, &nats);
    let sidecar = ends.sidecar_with(LIMIT).await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(QUEUE.into(), durable, FieldTable::default()).await.expect("declared");
    let options = BasicPublishOptions::default();
    let publish = channel.basic_publish("".into(), QUEUE.into(), options, b"it", Default::default());
    assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
    sidecar.change(Target::Shadow).await.expect("allowed");
    sidecar.weight(50.0).await;
    assert_eq!(fence(&sidecar).await, "Sent");
    // The fence is taken away, and the message stays.
    let direct = Connection::connect(&rabbit.url_for(&ends.vhost), Default::default()).await.expect("connected");
    let taking = direct.create_channel().await.expect("channel");
    let get = async || taking.basic_get(QUEUE.into(), Default::default()).await.expect("answered").expect("something");
    let (message, fence) = (get().await, get().await);
    assert_eq!((&*message.data, &*fence.data), (&b"it"[..], &b""[..]));
    fence.ack(BasicAckOptions::default()).await.expect("acked");
    message.nack(BasicNackOptions { requeue: true, ..Default::default() }).await.expect("given back");
    direct.close(200, "done".into()).await.expect("closed");
    let all = Backfill { by: "test".into(), reason: "test".into(), ..Backfill::default() };
    Arc::clone(&sidecar.cutover).backfill(all).await.expect("allowed");
    let copied = async || {
        sidecar.cutover.backfill_status().await.filter(|report| report.done).map(|report| report.queues[0].copied)
    };
    assert_eq!(eventually_some("the backfill is done", copied).await, 1);
    sidecar.weight(100.0).await;
    let refused = sidecar.change(Target::Detach).await.expect_err("one is left");
    assert_eq!((refused.code, refused.reason.contains('1')), (RefusedCode::NotDrained, true), "{refused:?}");
    let left = channel.basic_get(QUEUE.into(), Default::default()).await.expect("answered").expect("it is there");
    assert_eq!(left.data, b"it");
    left.ack(BasicAckOptions::default()).await.expect("acked");
    eventually_true("RabbitMQ is drained", || async { sidecar.change(Target::Detach).await.is_ok() }).await;
    sidecar.stop().await;
}

/// Deletes the fence behind the message that is in hand, behind the sidecar's back.
async fn lose_fence(nats: &NatsServer) {
    let store = async_nats::jetstream::new(async_nats::connect(nats.url()).await.expect("connected"));
    let names: Vec<String> = store.stream_names().map(|name| name.expect("a name")).collect().await;
    let name = names.iter().find(|name| name.starts_with("AQ_") && name.ends_with("_orders"));
    let stream = store.get_stream(name.unwrap_or_else(|| panic!("no stream in {names:?}"))).await.expect("there");
    let state = &stream.cached_info().state;
    let last = stream.get_raw_message(state.last_sequence).await.expect("stored");
    assert!(state.messages == 2 && last.payload.is_empty(), "{state:?} {last:?}");
    assert!(stream.delete_message(last.sequence).await.expect("answered"));
}
