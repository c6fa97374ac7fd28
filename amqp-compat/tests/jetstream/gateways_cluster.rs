//! Two gateways on three nats-servers, one of which is killed under load.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use amqp_compat::backend::jetstream::{Gateways, JetStreamBackend, JetStreamConfig};
use amqp_compat::backend::{Event, Outcome, PublishOutcome, QueueDeclare};
use nats_bridge::Bridge;
use test_support::cluster::NatsCluster;

use crate::client::{CAP, Client, body, queue, table, text};

/// How many messages each client publishes.
const TOTAL: u64 = 1_500;
const QUEUES: [&str; 2] = ["agreed", "copied"];

async fn connect(urls: &str) -> Bridge {
    let mut tries = 0;
    loop {
        match Bridge::connect(urls).await {
            Ok(bridge) => return bridge,
            Err(error) => assert!(tries < 5, "{error}"),
        }
        tries += 1;
    }
}

async fn gateway(bridge: Bridge) -> std::sync::Arc<JetStreamBackend> {
    let gateways = Gateways::join(&bridge).await.expect("a place");
    let config = JetStreamConfig { gateways: Some(gateways), replicas: 3, ..JetStreamConfig::default() };
    JetStreamBackend::connect(bridge, config).await.expect("taken up")
}

/// A client of one gateway: it publishes to both queues and consumes one of them.
struct Side {
    name: &'static str,
    client: Client,
    published: u64,
    confirmed: BTreeSet<u64>,
    was_blocked: bool,
}

impl Side {
    /// Publishes the next message, if few enough are under way; gives its queue and number there, and up to which number
    /// all before it in that queue were confirmed.
    async fn publish(&mut self) -> Option<(&'static str, u64, u64)> {
        if self.published >= TOTAL || self.published - self.confirmed.len() as u64 >= 100 {
            return None;
        }
        let (queue, number) = (QUEUES[(self.published % 2) as usize], self.published / 2 + 1);
        let seq_of = |number: u64| (number - 1) * 2 + self.published % 2 + 1;
        let all_to = (1..number).take_while(|number| self.confirmed.contains(&seq_of(*number))).last();
        self.published += 1;
        self.client.publish("", queue, format!("{}-{number}", self.name)).await;
        Some((queue, number, all_to.unwrap_or_default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_server_killed_under_load_nothing_confirmed_is_lost_order_is_kept_and_the_other_gateways_clients_notice_nothing()
 {
    let mut cluster = NatsCluster::start();
    let near = connect(&cluster.urls()).await;
    if near.server_version().starts_with("2.10.") {
        // A 2.10 that is killed was seen to end in refused publishes here: README.md says so.
        return eprintln!("not run: of three nats-servers 2.10, none is killed under several gateways");
    }
    let name = near.client().server_info().server_name;
    let victim = ["n1", "n2", "n3"].iter().position(|node| *node == name).expect("one of the three");
    let others: Vec<String> = (0..3).filter(|node| *node != victim).map(|node| cluster.node(node).url()).collect();
    // The one that leads is not connected to the server that goes.
    let far = gateway(connect(&others.join(",")).await).await;
    let near = gateway(near).await;

    let mut sides = Vec::new();
    for (name, backend) in [("far", &far), ("near", &near)] {
        let client = Client::open(&**backend).await;
        sides.push(Side { name, client, published: 0, confirmed: BTreeSet::new(), was_blocked: false });
    }
    let quorum = table(&[("x-queue-type", text("quorum"))]);
    sides[0].client.declare(QueueDeclare { arguments: quorum, ..queue("agreed") }).await;
    sides[1].client.declare(queue("copied")).await;
    sides[0].client.consume("copied", "copied", 32).await;
    sides[1].client.consume("agreed", "agreed", 32).await;

    // By queue, publisher and number: how often it came.
    let mut delivered: BTreeMap<(String, String, u64), u32> = BTreeMap::new();
    // Which numbers of its publisher were all confirmed when it was published; and the most of that which has come.
    let mut before: BTreeMap<(String, String, u64), u64> = BTreeMap::new();
    let mut overtaken: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut killed = false;
    let mut restarted = false;
    let deadline = tokio::time::Instant::now() + CAP * 8;
    let all = TOTAL as usize * 2;
    while sides.iter().any(|side| (side.confirmed.len() as u64) < TOTAL) || delivered.len() < all {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?} confirmed, {} of {all} delivered",
            sides.iter().map(|side| side.confirmed.len()).collect::<Vec<_>>(),
            delivered.len()
        );
        if !killed && delivered.len() > all / 4 {
            cluster.node_mut(victim).kill_9();
            killed = true;
        }
        if killed && !restarted && delivered.len() > all / 2 {
            cluster.node_mut(victim).restart();
            restarted = true;
        }
        for side in &mut sides {
            if let Some((queue, number, all_to)) = side.publish().await {
                before.insert((queue.to_owned(), side.name.to_owned(), number), all_to);
            }
            let timeout = Duration::from_millis(if side.published < TOTAL { 1 } else { 50 });
            while let Ok(Some(event)) = tokio::time::timeout(timeout, side.client.link.events.recv()).await {
                match event {
                    Event::Confirm { seq, outcome, .. } => {
                        assert_eq!(outcome, PublishOutcome::Stored);
                        assert!(side.confirmed.insert(seq), "{seq} was confirmed twice");
                        break;
                    }
                    Event::Delivery { consumer_tag, delivery, .. } => {
                        let text = body(&delivery);
                        let (from, number) = text.split_once('-').expect("from and number");
                        let number: u64 = number.parse().expect("a number");
                        let key = (consumer_tag.to_string(), from.to_owned(), number);
                        let times = delivered.entry(key.clone()).or_default();
                        *times += 1;
                        assert!(*times == 1 || delivery.redelivered, "{key:?} came again and did not say so");
                        if *times == 1 {
                            let overtaken = overtaken.entry((key.0.clone(), key.1.clone())).or_default();
                            assert!(number > *overtaken, "{key:?} came behind one published after its confirm");
                            *overtaken = before[&key].max(*overtaken);
                        }
                        side.client.settle(&[&delivery], Outcome::Ack).await;
                        side.client.credit(consumer_tag.as_str(), 1).await;
                    }
                    Event::Blocked { .. } => side.was_blocked = true,
                    Event::Unblocked => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
    }
    assert!(killed && restarted);
    assert!(!sides[0].was_blocked, "the clients of a gateway whose server lives were blocked");
    // Topology is shared still.
    sides[1].client.declare(queue("another")).await;
    assert_eq!(sides[0].client.counts("another").await, (0, 0));
}
