//! How a delivery ends reaches the side that it came from.

mod bed;

use std::collections::BTreeMap;

use bed::{Ends, Sidecar, declare};
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions,
    BasicRejectOptions, ConfirmSelectOptions, QueueDeclareOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection};
use sidecar::control_api::Target;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// A sidecar at 50 %, and a channel with confirms on which `orders` and `orders.all` are declared.
async fn at_half(nats: &NatsServer) -> (Sidecar, Connection, Channel) {
    let ends = Ends::new(RabbitMq::shared(), nats);
    let sidecar = ends.sidecar().await;
    let connection = sidecar.connect().await;
    let channel = connection.create_channel().await.expect("channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    declare(&channel, "orders", "orders.all").await;
    sidecar.change(Target::Shadow).await.expect("shadow");
    sidecar.weight(50.0).await;
    (sidecar, connection, channel)
}

async fn publish(channel: &Channel, count: u32) {
    for n in 0..count {
        let body = n.to_string();
        let publish = channel.basic_publish(
            "orders".into(),
            format!("key.{n}").into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            BasicProperties::default(),
        );
        assert!(publish.await.expect("published").await.expect("confirmed").is_ack());
    }
}

fn number(data: &[u8]) -> u32 {
    std::str::from_utf8(data).expect("text").parse().expect("a number")
}

/// Messages that are ready, as a client sees them.
async fn ready(channel: &Channel) -> u32 {
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    channel.queue_declare("orders.all".into(), passive, FieldTable::default()).await.expect("there").message_count()
}

/// Ready messages on each side, once both have counted `expected` together.
async fn by_side(sidecar: &Sidecar, expected: u64) -> (u64, u64) {
    let mut both = (0, 0);
    for _ in 0..1000 {
        let status = sidecar.status().await;
        let queue = status.queues.iter().find(|q| q.name == "orders.all").expect("known");
        both = (queue.rabbit_ready.expect("said"), queue.nats_ready.expect("said"));
        if both.0 + both.1 == expected {
            return both;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{expected} expected on both sides together, and there are {both:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_comes_again_as_redelivered_and_an_ack_or_reject_never_does() {
    let nats = NatsServer::start();
    let (sidecar, connection, channel) = at_half(&nats).await;
    publish(&channel, 60).await;
    let (rabbit, of_nats) = by_side(&sidecar, 60).await;
    assert!(rabbit > 5 && of_nats > 5, "{rabbit} and {of_nats}");
    assert_eq!(ready(&channel).await, 60, "the client sees one queue");

    channel.basic_qos(5, BasicQosOptions::default()).await.expect("qos");
    let consumer =
        channel.basic_consume("orders.all".into(), "c".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consumer.await.expect("consuming");
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    let mut ended = 0;
    while ended < 60 {
        let delivery = consumer.next().await.expect("alive").expect("delivered");
        let n = number(&delivery.data);
        let times = seen.entry(n).or_default();
        assert_eq!(delivery.redelivered, *times > 0, "message {n}");
        *times += 1;
        match (n % 3, *times) {
            (0, 1) => delivery.nack(BasicNackOptions { requeue: true, ..Default::default() }).await.expect("requeued"),
            (1, _) => {
                ended += 1;
                delivery.reject(BasicRejectOptions { requeue: false }).await.expect("rejected")
            }
            _ => {
                ended += 1;
                delivery.ack(BasicAckOptions::default()).await.expect("acked")
            }
        };
    }
    let again = (0..60).map(|n| seen[&n]).collect::<Vec<_>>();
    assert_eq!(again, (0..60).map(|n| if n % 3 == 0 { 2 } else { 1 }).collect::<Vec<_>>());
    assert_eq!(by_side(&sidecar, 0).await, (0, 0));
    let unsettled = || async {
        let status = sidecar.status().await;
        status.sides.rabbit.unsettled + status.sides.nats.unsettled == 0
    };
    eventually_true("nothing is left unsettled", unsettled).await;
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_leaves_unsettled_goes_back_to_both_sides() {
    let nats = NatsServer::start();
    let (sidecar, connection, channel) = at_half(&nats).await;
    publish(&channel, 40).await;
    let before = by_side(&sidecar, 40).await;
    let lost = sidecar.connect().await;
    let taking = lost.create_channel().await.expect("channel");
    let consumer =
        taking.basic_consume("orders.all".into(), "c".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consumer.await.expect("consuming");
    for _ in 0..40 {
        consumer.next().await.expect("alive").expect("delivered");
    }
    assert_eq!(ready(&channel).await, 0);
    lost.close(200, "going".into()).await.expect("closed");
    assert_eq!(by_side(&sidecar, 40).await, before);
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_takes_from_both_sides_and_counts_both_and_a_purge_empties_both() {
    let nats = NatsServer::start();
    let (sidecar, connection, channel) = at_half(&nats).await;
    publish(&channel, 30).await;
    let mut seen = std::collections::BTreeSet::new();
    for left in (20..30).rev() {
        let got = channel.basic_get("orders.all".into(), BasicGetOptions::default()).await.expect("got");
        let got = got.expect("not empty");
        assert_eq!(got.message_count, left);
        assert!(seen.insert(number(&got.delivery.data)));
        got.delivery.ack(BasicAckOptions::default()).await.expect("acked");
    }
    let purged = channel.queue_purge("orders.all".into(), QueuePurgeOptions::default()).await.expect("purged");
    assert_eq!(purged, 20);
    assert_eq!(by_side(&sidecar, 0).await, (0, 0));
    assert!(channel.basic_get("orders.all".into(), BasicGetOptions::default()).await.expect("answered").is_none());
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_never_holds_more_than_its_prefetch_though_both_sides_have_messages() {
    let nats = NatsServer::start();
    let (sidecar, connection, channel) = at_half(&nats).await;
    publish(&channel, 50).await;
    channel.basic_qos(3, BasicQosOptions::default()).await.expect("qos");
    let consumer =
        channel.basic_consume("orders.all".into(), "c".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consumer.await.expect("consuming");
    let mut held = std::collections::VecDeque::new();
    for _ in 0..50 {
        while held.len() < 3 {
            match tokio::time::timeout(std::time::Duration::from_secs(5), consumer.next()).await {
                Ok(delivery) => held.push_back(delivery.expect("alive").expect("delivered")),
                Err(_) => break,
            }
            let status = sidecar.status().await;
            if status.sides.rabbit.delivered + status.sides.nats.delivered == 50 {
                break;
            }
        }
        // With three held, a fourth does not come: whatever would come is asked for by the ack that follows.
        if held.len() == 3 {
            let fourth = tokio::time::timeout(std::time::Duration::from_millis(20), consumer.next()).await;
            assert!(fourth.is_err(), "a fourth delivery came");
        }
        let Some(first) = held.pop_front() else { break };
        first.ack(BasicAckOptions::default()).await.expect("acked");
    }
    for left in held {
        left.ack(BasicAckOptions::default()).await.expect("acked");
    }
    connection.close(200, "done".into()).await.expect("closed");
    sidecar.stop().await;
}
