//! JetStream at its limit: who publishes waits, nothing that was confirmed is lost, and all goes on when there is room.

use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig, Resource};
use amqp_compat::backend::*;
use test_support::eventually::eventually_true;
use test_support::nats::{Builder, NatsServer};

use crate::backend_with;
use crate::client::{CAP, Client, body, queue, until_counts};

/// About a twentieth of what there is room for.
const LARGE: usize = 100_000;

fn limited_server() -> Builder {
    NatsServer::builder().jetstream("max_file_store: 2MB")
}

/// The same limit, of the account.
fn limited_account() -> Builder {
    let account = "accounts { A: { jetstream: { max_file: 2MB, max_mem: 2MB }, users: [{ user: a, password: a }] } }";
    NatsServer::builder().config_line(account).config_line("no_auth_user: a")
}

fn large(number: u64) -> String {
    "0".repeat(LARGE) + &number.to_string()
}

async fn reason(client: &mut Client) -> String {
    client
        .next(
            "blocked",
            |event| matches!(event, Event::Blocked { .. }),
            |event| match event {
                Event::Blocked { reason } => reason,
                _ => unreachable!("only that is wanted"),
            },
        )
        .await
}

async fn unblocked(client: &mut Client) {
    client.next("unblocked", |event| matches!(event, Event::Unblocked), drop).await;
}

/// Publishes until there is no room: how many were confirmed, and how many are not.
async fn fill(client: &mut Client, to: &str) -> (u64, u64) {
    for stored in 0..100 {
        let seq = client.publish("", to, large(stored)).await;
        let is_end = |event: &Event| matches!(event, Event::Blocked { .. } | Event::Confirm { .. });
        match client.next("an end", is_end, |event| event).await {
            Event::Blocked { reason } => {
                assert_eq!(reason, "low on disk");
                // More of it: these wait as well.
                for more in 1..=3 {
                    client.publish("", to, large(stored + more)).await;
                }
                return (stored, 4);
            }
            Event::Confirm { seq: confirmed, outcome: PublishOutcome::Stored, .. } => assert_eq!(confirmed, seq),
            other => panic!("{other:?}"),
        }
    }
    panic!("there is no limit");
}

async fn take(client: &mut Client, from: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let deadline = tokio::time::Instant::now() + CAP;
        let got = loop {
            match client.get(from).await {
                Some(got) => break got.delivery,
                None => assert!(tokio::time::Instant::now() < deadline, "{number} does not come"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        assert!(body(&got) == large(number), "not {number} but {:?}", body(&got).trim_start_matches('0'));
        client.settle(&[&got], Outcome::Ack).await;
    }
}

async fn confirmed(client: &mut Client, count: u64) {
    for _ in 0..count {
        assert_eq!(client.confirm().await.1, PublishOutcome::Stored);
    }
}

async fn who_publishes_waits_for_room(server: Builder) {
    let server = server.start();
    let backend = backend_with(&server, JetStreamConfig::default()).await;
    let (mut publisher, mut worker) = (Client::open(&*backend).await, Client::open(&*backend).await);
    publisher.declare(queue("q")).await;
    let (stored, waiting) = fill(&mut publisher, "q").await;
    assert!(stored >= 10, "{stored}");
    assert_eq!(backend.alarm(), Some(Resource::Disk));

    // Others hear of it when they publish, and not before: a consumer has nothing to do with it.
    let mut other = Client::open(&*backend).await;
    other.publish("", "nowhere", "x").await;
    assert_eq!(reason(&mut other).await, "low on disk");
    assert_eq!(worker.counts("q").await.0, u32::try_from(stored).expect("few"), "what was confirmed is there");

    take(&mut worker, "q", 0..5).await;
    unblocked(&mut publisher).await;
    unblocked(&mut other).await;
    confirmed(&mut publisher, waiting).await;
    confirmed(&mut other, 1).await;
    take(&mut worker, "q", 5..stored + waiting).await;
    until_counts(&mut worker, "q", (0, 0)).await;
    assert_eq!(backend.alarm(), None);
    let seen = tokio::time::timeout(CAP / 100, worker.next("blocked", |e| matches!(e, Event::Blocked { .. }), drop));
    assert!(seen.await.is_err(), "who publishes nothing is not blocked");
}

#[tokio::test]
async fn who_publishes_waits_for_room_on_the_server() {
    who_publishes_waits_for_room(limited_server()).await;
}

#[tokio::test]
async fn who_publishes_waits_for_room_in_the_account() {
    who_publishes_waits_for_room(limited_account()).await;
}

#[tokio::test]
async fn who_leaves_while_its_publishes_wait_holds_nobody_up() {
    let server = limited_server().start();
    let backend = backend_with(&server, JetStreamConfig::default()).await;
    let (mut publisher, mut worker) = (Client::open(&*backend).await, Client::open(&*backend).await);
    publisher.declare(queue("q")).await;
    publisher.declare(queue("jobs")).await;
    publisher.store("", "jobs", "job").await;
    let job = publisher.get("jobs").await.expect("a job").delivery;
    let (stored, _) = fill(&mut publisher, "q").await;
    publisher.settle(&[&job], Outcome::Ack).await;
    publisher.close().await;
    eventually_true("nobody waits", || async { backend.alarm().is_none() }).await;
    // The acknowledgement came behind a publish on its channel.
    until_counts(&mut worker, "jobs", (1, 0)).await;
    assert!(worker.get("jobs").await.expect("the job").delivery.redelivered);
    take(&mut worker, "q", 0..stored).await;
    until_counts(&mut worker, "q", (0, 0)).await;
    worker.store("", "q", large(0)).await;
}

/// A sidecar has RabbitMQ to go back to.
#[tokio::test]
async fn in_a_sidecar_a_publish_without_room_fails_in_the_end() {
    let server = limited_server().start();
    let config = JetStreamConfig {
        behind_rabbitmq: true,
        publish_timeout: std::time::Duration::from_secs(2),
        ..JetStreamConfig::default()
    };
    let backend = alone(&server, config).await;
    let mut publisher = Client::open(&*backend).await;
    publisher.declare(queue("q")).await;
    let (_, waiting) = fill(&mut publisher, "q").await;
    for _ in 0..waiting {
        assert_eq!(publisher.confirm().await.1, PublishOutcome::Failed);
    }
    unblocked(&mut publisher).await;
}

async fn alone(server: &NatsServer, config: JetStreamConfig) -> std::sync::Arc<JetStreamBackend> {
    let bridge = nats_bridge::Bridge::connect(server.url()).await.expect("connected");
    JetStreamBackend::connect(bridge, config).await.expect("loaded")
}
