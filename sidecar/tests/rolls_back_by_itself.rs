//! At a weight above 0 the sidecar gives everything back to RabbitMQ when JetStream does what no message may suffer, and says why.

mod bed;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bed::tampering::{Deed, Fault};
use bed::{Ends, Ledger, Likeness, Sidecar, confirmed, consume, declare, delivered, produce};
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, BasicRejectOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection};
use sidecar::control_api::{Control, Phase, RefusedCode, Target, Weight};
use test_support::eventually::{eventually_some, eventually_true};
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// Acknowledges whatever comes, for as long as its connection lives.
async fn consume_all(connection: Connection, queue: &'static str) {
    let channel = connection.create_channel().await.expect("channel");
    channel.basic_qos(10, BasicQosOptions::default()).await.expect("qos");
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await;
    let mut consumer = consumer.expect("consuming");
    while let Some(Ok(delivery)) = consumer.next().await {
        // One that came twice is settled twice: the channel may end with it, and what is judged is over then.
        let _ = delivery.ack(BasicAckOptions::default()).await;
    }
}

async fn publish(channel: &Channel, count: u64) {
    for n in 0..count {
        let body = format!("message {n}");
        let publish = channel.basic_publish(
            "orders".into(),
            "one key".into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            BasicProperties::default(),
        );
        assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
    }
}

/// What the change log says of the last change, once the sidecar has rolled back.
async fn rolled_back(sidecar: &Sidecar) -> String {
    eventually_true("it has rolled back", || async { sidecar.status().await.phase == Phase::Shadow }).await;
    let status = sidecar.status().await;
    let why = status.rolled_back.clone().expect("a reason in the status");
    assert_eq!((status.weight_percent, status.by.as_str()), (Weight::NONE, "nats-bridge"));
    assert_eq!(status.reason, format!("automatic rollback: {why}"));
    let change = sidecar.cutover.changes().await.swap_remove(0);
    assert!(change.automatic && change.reason == status.reason && change.epoch == status.epoch, "{change:?}");
    assert!(status.warnings.iter().any(|w| w.code == "rolled_back" && w.text == why), "{:?}", status.warnings);
    // The way up is closed until somebody has looked.
    let gate = sidecar.cutover.gate().await;
    assert!(gate.blocks() && gate.reasons.iter().any(|r| r.code == "rolled_back"), "{gate:?}");
    why
}

async fn a_fault_rolls_back(deed: Deed, word: &str) {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let fault = Fault::new(deed);
    let sidecar = ends.sidecar_like(Likeness { tampering: Some(Arc::clone(&fault)), ..Likeness::default() }).await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    let consumer = tokio::spawn(consume_all(sidecar.connect().await, "orders.all"));
    sidecar.change(Target::Shadow).await.expect("shadow");
    sidecar.weight(100.0).await;
    publish(&channel, 100).await;
    eventually_true("all has come", || async { sidecar.status().await.sides.nats.delivered == 100 }).await;
    assert_eq!(sidecar.status().await.faults.words(), None, "nothing has happened yet");
    fault.arm();
    // Together, so that there is one to be overtaken by.
    publish(&channel, 2).await;
    eventually_true("it has happened", || async { fault.done() }).await;
    publish(&channel, 2).await;
    let why = rolled_back(&sidecar).await;
    assert_eq!(why, format!("messages of JetStream were not as they should be: 1 {word}"));
    // The applications go on, over RabbitMQ.
    let before = sidecar.status().await.sides.rabbit.published;
    publish(&channel, 10).await;
    assert_eq!(sidecar.status().await.sides.rabbit.published, before + 10);
    consumer.abort();
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_payload_rolls_back() {
    a_fault_rolls_back(Deed::Corrupt, "corrupted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_delivered_twice_rolls_back() {
    a_fault_rolls_back(Deed::Duplicate, "duplicated").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_overtaken_rolls_back() {
    a_fault_rolls_back(Deed::Reorder, "reordered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_message_that_never_comes_rolls_back() {
    a_fault_rolls_back(Deed::Drop, "dropped").await;
}

/// What is done to a message that lies in JetStream's stream.
#[derive(Debug, Clone, Copy)]
enum Stored {
    Altered,
    Deleted,
    PutBehind,
    Doubled,
}

/// Does it to the stream of `orders.all` by JetStream's own API, behind the sidecar's back.
async fn tamper(nats: &NatsServer, what: Stored) {
    let client = async_nats::connect(nats.url()).await.expect("connected");
    let store = async_nats::jetstream::new(client);
    let names: Vec<String> = store.stream_names().map(|name| name.expect("a name")).collect().await;
    // Not the standby copies, which no application is given.
    let name = names.iter().find(|name| name.starts_with("AQ_") && name.ends_with("_orders=2Eall"));
    let stream = store.get_stream(name.unwrap_or_else(|| panic!("no stream in {names:?}"))).await.expect("there");
    let last = stream.cached_info().state.last_sequence;
    // The fence lies behind or before: only messages have a body.
    let mut at = last;
    let message = loop {
        let message = stream.get_raw_message(at).await.expect("stored");
        if !message.payload.is_empty() {
            break message;
        }
        at -= 1;
    };
    let (target, payload) = match what {
        Stored::Altered => (message, "spoilt".into()),
        Stored::Doubled => (message.clone(), message.payload),
        // Not the last one: there has to be one that it was before.
        Stored::Deleted | Stored::PutBehind => {
            let before = stream.get_raw_message(at - 5).await.expect("stored");
            (before.clone(), before.payload)
        }
    };
    if !matches!(what, Stored::Doubled) {
        assert!(stream.delete_message(target.sequence).await.expect("answered"), "{what:?}");
    }
    if !matches!(what, Stored::Deleted) {
        // All that it had but the id by which JetStream would know it.
        let mut headers = async_nats::HeaderMap::new();
        for (name, values) in target.headers.iter().filter(|(name, _)| AsRef::<str>::as_ref(*name) != "Nats-Msg-Id") {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
        store.publish_with_headers(target.subject, headers, payload).await.expect("sent").await.expect("stored");
    }
}

async fn a_fault_in_the_stream_rolls_back(what: Stored, word: &str) {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar().await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    sidecar.weight(100.0).await;
    publish(&channel, 20).await;
    tamper(&nats, what).await;
    let began = std::time::Instant::now();
    let consumer = tokio::spawn(consume_all(sidecar.connect().await, "orders.all"));
    let why = rolled_back(&sidecar).await;
    let took = began.elapsed();
    println!("{what:?}: rolled back {took:?} after the consumer came: {why}");
    assert!(took < Duration::from_secs(15), "{what:?} was noticed after {took:?}");
    assert_eq!(why, format!("messages of JetStream were not as they should be: 1 {word}"));
    let before = sidecar.status().await.sides.rabbit.published;
    publish(&channel, 10).await;
    assert_eq!(sidecar.status().await.sides.rabbit.published, before + 10);
    consumer.abort();
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_message_that_was_altered_rolls_back() {
    a_fault_in_the_stream_rolls_back(Stored::Altered, "corrupted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_message_that_was_deleted_rolls_back() {
    a_fault_in_the_stream_rolls_back(Stored::Deleted, "dropped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_message_that_was_put_behind_later_ones_rolls_back() {
    a_fault_in_the_stream_rolls_back(Stored::PutBehind, "reordered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_stored_again_rolls_back() {
    a_fault_in_the_stream_rolls_back(Stored::Doubled, "duplicated").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_lost_out_of_a_backlog_rolls_back_before_anybody_consumes() {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar().await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    sidecar.weight(100.0).await;
    publish(&channel, 20).await;
    tamper(&nats, Stored::Deleted).await;
    let began = std::time::Instant::now();
    let why = rolled_back(&sidecar).await;
    let took = began.elapsed();
    println!("lost out of a backlog: rolled back after {took:?}");
    assert_eq!(why, "messages of JetStream were not as they should be: 1 dropped");
    assert!(took < Duration::from_secs(15), "noticed after {took:?}");
    sidecar.stop().await;
}

/// Waits until each stream was looked at twice more: no more than five queues hold something that is waited for.
async fn looked_at(sidecar: &Sidecar) {
    let looks = || sidecar.cutover.shared().integrity().looks();
    let before = looks();
    eventually_true("the streams were looked at", || async { looks() >= before + 12 }).await;
}

async fn declare_with(channel: &Channel, queue: &str, with: &[(&str, AMQPValue)]) {
    let mut arguments = FieldTable::default();
    for (name, value) in with {
        arguments.insert((*name).into(), value.clone());
    }
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), durable, arguments).await.expect("declared");
}

async fn send(channel: &Channel, queue: &str, count: u64, expiration: Option<&str>) {
    let properties =
        expiration.map_or_else(BasicProperties::default, |ms| BasicProperties::default().with_expiration(ms.into()));
    for n in 0..count {
        let body = format!("message {n}");
        let options = BasicPublishOptions::default();
        let publish = channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties.clone());
        assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_is_purged_dropped_by_a_limit_rejected_or_waits_for_a_silent_jetstream_is_no_loss() {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar =
        ends.sidecar_like(Likeness { rollback_after: Some(Duration::from_secs(60)), ..Likeness::default() }).await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    channel.basic_qos(10, BasicQosOptions::default()).await.expect("qos");
    // It always holds something, so that there is always a stream to look at.
    for queue in ["waits", "purged", "deleted", "expires", "taken", "dead"] {
        declare_with(&channel, queue, &[]).await;
    }
    declare_with(&channel, "short", &[("x-max-length", AMQPValue::LongInt(3))]).await;
    declare_with(&channel, "brief", &[("x-message-ttl", AMQPValue::LongInt(200))]).await;
    let to = |text: &str| AMQPValue::LongString(text.into());
    let with = [("x-dead-letter-exchange", to("")), ("x-dead-letter-routing-key", to("dead"))];
    declare_with(&channel, "rejects", &with).await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    sidecar.weight(100.0).await;
    for queue in ["waits", "purged", "deleted", "short", "brief", "taken", "rejects"] {
        send(&channel, queue, 20, None).await;
    }
    send(&channel, "expires", 20, Some("200")).await;
    looked_at(&sidecar).await;
    channel.queue_purge("purged".into(), QueuePurgeOptions::default()).await.expect("purged");
    channel.queue_delete("deleted".into(), QueueDeleteOptions::default()).await.expect("deleted");
    declare_with(&channel, "deleted", &[]).await;
    send(&channel, "deleted", 5, None).await;
    for queue in ["taken", "rejects"] {
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.into(), queue.into(), options, FieldTable::default()).await;
        let mut consumer = consumer.expect("consuming");
        // What is between others goes first, so that the stream has holes; the first one stays in hand for now.
        let mut first = None;
        for _ in 0..20 {
            let delivery = consumer.next().await.expect("delivered").expect("delivered");
            match (queue, &first) {
                (_, None) => first = Some(delivery),
                ("taken", _) => delivery.ack(BasicAckOptions::default()).await.map(drop).expect("acknowledged"),
                _ => delivery.reject(BasicRejectOptions::default()).await.map(drop).expect("rejected"),
            }
        }
        looked_at(&sidecar).await;
        let back = BasicRejectOptions { requeue: true };
        first.expect("the first one").reject(back).await.expect("requeued");
        channel.basic_cancel(queue.into(), BasicCancelOptions::default()).await.expect("cancelled");
    }
    nats.pause();
    tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(3))).await.expect("slept");
    nats.resume();
    looked_at(&sidecar).await;
    send(&channel, "waits", 20, None).await;
    looked_at(&sidecar).await;
    let status = sidecar.status().await;
    assert_eq!((status.phase, status.faults.words()), (Phase::Cutover, None), "{:?}", status.warnings);
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jetstream_that_does_not_answer_rolls_back_and_a_human_opens_the_way_again() {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let like = Likeness { rollback_after: Some(Duration::from_secs(1)), ..Likeness::default() };
    let sidecar = ends.sidecar_like(like).await;
    let setup = sidecar.connect().await;
    declare(&setup.create_channel().await.expect("channel"), "orders", "orders.all").await;
    let ledger = Arc::new(Ledger::default());
    let consumer = tokio::spawn(consume(sidecar.connect().await, "orders.all", 20, ledger.clone()));
    let pace = Duration::from_millis(1);
    let producer = tokio::spawn(produce(sidecar.connect().await, "orders", 20, pace, ledger.clone()));
    sidecar.change(Target::Shadow).await.expect("shadow");
    delivered(&ledger, 50).await;
    sidecar.weight(50.0).await;
    delivered(&ledger, 50).await;
    nats.pause();
    let why = eventually_some("it has rolled back", || async { sidecar.status().await.rolled_back }).await;
    assert!(why.starts_with("JetStream has not answered for "), "{why}");
    nats.resume();
    rolled_back(&sidecar).await;
    confirmed(&ledger, 100).await;
    delivered(&ledger, 100).await;
    let five = Weight::from_percent(5.0).expect("a weight");
    let change = |to, force| {
        let change = sidecar::control_api::Change {
            to,
            by: "ann".into(),
            reason: "looked into".into(),
            force,
            unrehearsed: true,
            from: String::new(),
        };
        sidecar.cutover.change(change)
    };
    let refused = change(Target::Weight(five), false).await.expect_err("refused");
    assert_eq!(refused.code, RefusedCode::Gate);
    assert!(refused.gate.iter().any(|reason| reason.code == "rolled_back"), "{refused:?}");
    change(Target::Observe, false).await.expect("observe");
    change(Target::Shadow, false).await.expect("shadow");
    let gate = sidecar.cutover.gate().await;
    assert!(gate.reasons.iter().all(|reason| reason.code != "rolled_back"), "{gate:?}");
    ledger.stop.store(true, Ordering::Relaxed);
    for task in [producer, consumer] {
        tokio::time::timeout(Duration::from_secs(15), task).await.expect("in time").expect("ended well");
    }
    sidecar.stop().await;
}
