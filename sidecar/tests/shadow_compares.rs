//! In `shadow` every message is copied to JetStream, and a match is what was compared.

mod bed;

use std::time::{Duration, Instant};

use bed::{Ends, Likeness, Sidecar, declare};
use futures::StreamExt;
use lapin::BasicProperties;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueBindOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use sidecar::control_api::{Change, Control, ParityCounts, Phase, RefusedCode, Target, Weight};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

#[tokio::test(flavor = "multi_thread")]
async fn every_message_is_copied_compared_and_its_copy_removed_once_it_is_settled() {
    let nats = NatsServer::start();
    let ends = Ends::new(RabbitMq::shared(), &nats);
    let sidecar = ends.sidecar().await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    declare(&channel, "orders", "orders.audit").await;
    // What was published before is in RabbitMQ only: it cannot be compared, and is not called a match.
    publish(&channel, 3).await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    publish(&channel, 200).await;
    consume(&channel, "orders.all", 203).await;

    eventually_true("all of one queue is compared", || async {
        let status = sidecar.status().await;
        let parity = status.parity.iter().find(|p| p.queue == "orders.all").map(|p| p.counts);
        parity.is_some_and(|counts| counts.matched == 200 && counts.pending == 0)
    })
    .await;
    let status = sidecar.status().await;
    let all = status.parity.iter().find(|p| p.queue == "orders.all").expect("compared").counts;
    assert_eq!((all.unverified, all.missing, all.extra, all.late), (3, 0, 0, 0));
    assert_eq!(all.mismatched_payload + all.mismatched_properties + all.mismatched_routing, 0);
    let audit = status.parity.iter().find(|p| p.queue == "orders.audit").expect("copied").counts;
    assert_eq!((audit.matched, audit.pending), (0, 200), "nobody consumes it yet");
    assert_eq!(status.unmapped, []);

    let store = async_nats::jetstream::new(async_nats::connect(nats.url()).await.expect("connected"));
    eventually_true("settled copies are removed, others kept", || async {
        let mut names = store.stream_names();
        while let Some(Ok(name)) = names.next().await {
            if name.starts_with("AQS_") {
                let info = store.get_stream(&name).await.expect("there").cached_info().state.messages;
                return info == 200;
            }
        }
        false
    })
    .await;
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}

/// A sidecar in `shadow` whose gate asks for 100 compared messages, and a channel with confirms on which a queue is declared.
async fn gated_shadow(nats: &NatsServer) -> (Sidecar, lapin::Connection, lapin::Channel) {
    let ends = Ends::new(RabbitMq::shared(), nats);
    let limits = sidecar::gate::Limits { soak: Duration::ZERO, messages: 100, ..Default::default() };
    let sidecar = ends.sidecar_like(Likeness { gate: limits, ..Likeness::default() }).await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    (sidecar, connection, channel)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_does_not_keep_up_finds_no_difference_and_catches_up() {
    let nats = NatsServer::start();
    let (sidecar, connection, channel) = gated_shadow(&nats).await;
    publish(&channel, 50).await;
    consume(&channel, "orders.all", 50).await;
    // Copies go nowhere for longer than one may take; RabbitMQ's messages are delivered and settled meanwhile.
    nats.pause();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        publish(&channel, 10).await;
        consume(&channel, "orders.all", 10).await;
        let counts = parity(&sidecar).await;
        assert_eq!(counts.differences(), 0, "{counts:?} after {:?}", began.elapsed());
    }
    nats.resume();
    eventually_true("every comparison has ended", || async { parity(&sidecar).await.pending == 0 }).await;
    // What still waits to be stored when it is resumed may be given up: it goes on until new messages are compared.
    let began = Instant::now();
    while parity(&sidecar).await.matched < 150 {
        publish(&channel, 10).await;
        consume(&channel, "orders.all", 10).await;
        let counts = parity(&sidecar).await;
        assert_eq!(counts.differences(), 0, "{counts:?}");
        assert!(began.elapsed() < bed::CAP, "it does not compare again: {counts:?}");
    }
    let gate = sidecar.cutover.gate().await;
    assert!(!gate.blocks(), "what was not compared is no difference: {gate:?}");
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_says_yes_once_enough_was_compared_and_the_weight_follows_it() {
    let nats = NatsServer::start();
    let (sidecar, connection, channel) = gated_shadow(&nats).await;
    let raise = |percent: f64| {
        let to = Target::Weight(Weight::from_percent(percent).expect("a weight"));
        sidecar.cutover.change(Change {
            to,
            by: "test".into(),
            reason: String::new(),
            force: false,
            unrehearsed: true,
            from: String::new(),
        })
    };
    let refused = raise(5.0).await.expect_err("nothing was compared");
    assert_eq!(refused.code, RefusedCode::Gate);
    assert_eq!(refused.gate.iter().map(|r| r.code.as_str()).collect::<Vec<_>>(), ["too_few"]);
    publish(&channel, 120).await;
    consume(&channel, "orders.all", 120).await;
    eventually_true("the gate says yes", || async { sidecar.cutover.gate().await.may_go_on }).await;
    let adopted = raise(100.0).await.expect("allowed");
    assert_eq!(adopted.phase, Phase::Cutover);
    // The measure begins anew with each weight.
    let gate = sidecar.cutover.gate().await;
    assert_eq!(gate.reasons.iter().map(|r| r.code.as_str()).collect::<Vec<_>>(), ["too_few"], "{gate:?}");
    publish(&channel, 120).await;
    consume(&channel, "orders.all", 120).await;
    eventually_true("the gate says yes", || async { sidecar.cutover.gate().await.may_go_on }).await;
    let changes = sidecar.cutover.changes().await;
    let by: Vec<_> = changes.iter().map(|c| (c.phase, c.forced)).collect();
    assert_eq!(by, [(Phase::Cutover, false), (Phase::Shadow, false), (Phase::Observe, false)]);
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}

async fn parity(sidecar: &Sidecar) -> ParityCounts {
    let status = sidecar.status().await;
    status.parity.iter().fold(ParityCounts::default(), |sum, queue| sum.plus(&queue.counts))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_jetstream_does_not_know_is_named_and_forbids_more_weight() {
    let nats = NatsServer::start();
    let rabbit = RabbitMq::shared();
    let ends = Ends::new(rabbit, &nats);
    // Declared before the sidecar came; its consumer does not declare it.
    let direct = lapin::Connection::connect(&rabbit.url_for(&ends.vhost), Default::default()).await.expect("direct");
    declare(&direct.create_channel().await.expect("channel"), "orders", "orders.old").await;
    let sidecar = ends.sidecar().await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    let consume = channel
        .basic_consume("orders.old".into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await;
    consume.expect("RabbitMQ's answer is the client's answer");
    sidecar.change(Target::Shadow).await.expect("shadow");
    eventually_true("it is recorded", || async { !sidecar.status().await.unmapped.is_empty() }).await;
    let unmapped = sidecar.status().await.unmapped;
    assert_eq!((unmapped[0].kind.as_str(), unmapped[0].name.as_str()), ("queue", "orders.old"));
    let weight = sidecar::control_api::Weight::from_percent(5.0).expect("a weight");
    let refused = sidecar.change(Target::Weight(weight)).await.expect_err("refused");
    assert_eq!(refused.code, sidecar::control_api::RefusedCode::Unmapped);
    // Declared through the sidecar, it is known.
    declare(&channel, "orders", "orders.old").await;
    let bind = channel.queue_bind(
        "orders.old".into(),
        "orders".into(),
        "x".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bind.await.expect("bound");
    eventually_true("it is mapped", || async { sidecar.status().await.unmapped.is_empty() }).await;
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}

async fn publish(channel: &lapin::Channel, count: usize) {
    for n in 0..count {
        let mut headers = FieldTable::default();
        headers.insert("n".into(), AMQPValue::LongUInt(n as u32));
        let properties = BasicProperties::default().with_content_type("text/plain".into()).with_headers(headers);
        let properties = if n % 2 == 0 { properties } else { BasicProperties::default() };
        let body = format!("order {n}");
        let options = BasicPublishOptions::default();
        let publish =
            channel.basic_publish("orders".into(), format!("k.{n}").into(), options, body.as_bytes(), properties);
        let confirm = publish.await.expect("published").await.expect("confirmed");
        assert!(confirm.is_ack());
    }
}

async fn consume(channel: &lapin::Channel, queue: &str, count: usize) {
    channel.basic_qos(50, BasicQosOptions::default()).await.expect("qos");
    let consumer =
        channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await;
    let mut consumer = consumer.expect("consuming").take(count);
    while let Some(delivery) = consumer.next().await {
        delivery.expect("delivered").ack(BasicAckOptions::default()).await.expect("acked");
    }
    let tag = consumer.get_ref().tag();
    channel.basic_cancel(tag, BasicCancelOptions::default()).await.expect("cancelled");
}
