//! Three servers, one of which is killed while it is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use amqp_compat::ReplyCode;
use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig};
use amqp_compat::backend::{Event, Outcome, PublishOutcome, QueueDeclare, Topology};
use nats_bridge::Bridge;
use serde_json::Value;
use test_support::cluster::NatsCluster;
use test_support::eventually::eventually_some;

use crate::client::{CAP, Client, body, exchange, queue, table, text};

/// How many messages go through each queue.
const TOTAL: u64 = 2_000;

fn quorum(name: &str) -> QueueDeclare {
    QueueDeclare { arguments: table(&[("x-queue-type", text("quorum"))]), ..queue(name) }
}

/// The server that leads the stream of a queue.
fn leader_of(cluster: &NatsCluster, queue: &str) -> Option<usize> {
    (0..3).find(|node| {
        let answer = cluster.node(*node).monitor("/jsz?accounts=true&streams=true").unwrap_or_default();
        let jsz: Value = serde_json::from_str(&answer).unwrap_or_default();
        let streams = jsz["account_details"][0]["stream_detail"].as_array().cloned().unwrap_or_default();
        let me = format!("n{}", node + 1);
        streams.iter().any(|stream| {
            stream["name"].as_str().is_some_and(|name| name.contains(queue)) && stream["cluster"]["leader"] == me
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_three_is_killed_and_nothing_confirmed_is_lost_or_overtaken_by_what_was_published_after_its_confirm()
 {
    let mut cluster = NatsCluster::start();
    let mut tries = 0;
    let bridge = loop {
        match Bridge::connect(cluster.urls()).await {
            Ok(bridge) => break bridge,
            Err(error) => assert!(tries < 5, "{error}"),
        }
        tries += 1;
    };
    let config = JetStreamConfig { replicas: 3, ..JetStreamConfig::default() };
    let backend = JetStreamBackend::connect(bridge, config).await.expect("loaded");
    let mut client = Client::open(&*backend).await;
    client.declare(quorum("agreed")).await;
    client.declare(queue("copied")).await;
    client.consume("agreed", "agreed", 32).await;
    client.consume("copied", "copied", 32).await;

    let mut confirmed = BTreeSet::new();
    let mut delivered: BTreeMap<(String, u64), u32> = BTreeMap::new();
    // By queue: which messages were all confirmed when this one was published, and the most of it that was delivered.
    let mut before: BTreeMap<(String, u64), u64> = BTreeMap::new();
    let mut overtaken: BTreeMap<String, u64> = BTreeMap::new();
    let mut published = 0u64;
    let mut killed = Vec::new();
    let deadline = tokio::time::Instant::now() + CAP * 6;
    while (confirmed.len() as u64) < TOTAL * 2 || (delivered.len() as u64) < TOTAL * 2 {
        assert!(tokio::time::Instant::now() < deadline, "{} confirmed, {} delivered", confirmed.len(), delivered.len());
        if published < TOTAL * 2 && published - (confirmed.len() as u64) < 200 {
            let (queue, number) = (["agreed", "copied"][(published % 2) as usize], published / 2 + 1);
            let all_to = (1..number).take_while(|n| confirmed.contains(&((n - 1) * 2 + published % 2 + 1))).last();
            before.insert((queue.to_owned(), number), all_to.unwrap_or_default());
            published += 1;
            client.publish("", queue, number.to_string()).await;
        }
        // The one that leads is killed under load, and comes back before the next one goes.
        if killed.len() < 2 && delivered.len() as u64 > TOTAL * 2 / 3 * (killed.len() as u64 + 1) {
            let leads = ["agreed", "copied"][killed.len()];
            // Between two leaders there is none.
            let node = eventually_some("a leader", || async { leader_of(&cluster, leads) }).await;
            cluster.node_mut(node).kill_9();
            cluster.wait_for_leader();
            if killed.is_empty() {
                cluster.node_mut(node).restart();
                cluster.wait_for_leader();
            }
            killed.push(node);
        }
        let timeout = Duration::from_millis(if published < TOTAL * 2 { 0 } else { 200 });
        let Ok(Some(event)) = tokio::time::timeout(timeout, client.link.events.recv()).await else { continue };
        match event {
            Event::Confirm { seq, outcome, .. } => {
                assert_eq!(outcome, PublishOutcome::Stored);
                assert!(confirmed.insert(seq), "{seq} was confirmed twice");
            }
            Event::Delivery { consumer_tag, delivery, .. } => {
                let (queue, number) = (consumer_tag.to_string(), body(&delivery).parse().expect("a number"));
                let times = delivered.entry((queue.clone(), number)).or_default();
                *times += 1;
                assert!(*times == 1 || delivery.redelivered, "{number} of {queue} came again and did not say so");
                if *times == 1 {
                    let overtaken = overtaken.entry(queue.clone()).or_default();
                    assert!(
                        number > *overtaken,
                        "{number} of {queue} came behind one that was published after its confirm"
                    );
                    *overtaken = before[&(queue.clone(), number)].max(*overtaken);
                }
                client.settle(&[&delivery], Outcome::Ack).await;
                client.credit(&queue, 1).await;
            }
            Event::Blocked { .. } | Event::Unblocked => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(killed.len(), 2);
    // Acknowledgements that went with a server are made again when their messages come again, after `ack_wait`.
    let deadline = tokio::time::Instant::now() + CAP * 4;
    while client.counts("agreed").await.0 + client.counts("copied").await.0 > 0 {
        assert!(tokio::time::Instant::now() < deadline, "acknowledged messages stay in their queues");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Topology can be changed with two servers of three.
    client.topology(Topology::ExchangeDeclare(exchange("x", "direct"))).await.expect("declared");
    client.bind("x", "agreed", "k").await;
    client.store("x", "k", "bound").await;
    assert_eq!(body(&client.delivery().await), "bound");
    // A queue with three replicas is not made with fewer because one is down just now.
    let Err(error) = client.topology(Topology::QueueDeclare(quorum("another"))).await else { return };
    assert_eq!(error.code, ReplyCode::InternalError);
    assert!(error.text.contains("queue 'another' in vhost '/' cannot be stored: no suitable peers"), "{error}");
}
