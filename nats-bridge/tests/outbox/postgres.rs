//! The outbox in a database: what is committed arrives, in the order of its key and once; what is rolled back does not.

use std::process::Command;
use std::time::Instant;

use nats_bridge::outbox::postgres::{self, NoTls, Relay, RelayConfig};
use test_support::postgres::Postgres;
use test_support::random::Random;
use tokio_postgres::Client;

use super::*;

async fn client(database: &Postgres) -> Client {
    let (client, connection) = tokio_postgres::connect(&database.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn relay_config(url: String) -> RelayConfig {
    RelayConfig {
        poll: Duration::from_millis(10),
        batch: 8,
        first_pause: Duration::from_millis(20),
        max_pause: Duration::from_millis(100),
        max_refusals: 3,
        ..RelayConfig::new(url)
    }
}

async fn relay_of(database: &Postgres, bridge: &Bridge) -> Relay {
    Relay::start(bridge, relay_config(database.url()), NoTls).await.unwrap()
}

async fn rows(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM nats_outbox WHERE dead_at IS NULL", &[]).await.unwrap().get(0)
}

fn message(number: u64) -> Message {
    Message::new(format!("orders.{}", number % 3), number.to_string()).id(format!("o-{number}"))
}

#[tokio::test]
async fn what_is_committed_is_published_by_several_relays_in_the_order_of_its_key() {
    let (server, database) = (NatsServer::start(), Postgres::start());
    let bridge = bridge(&server).await;
    make_stream(&bridge, |_| {}).await;
    let mut client = client(&database).await;
    let missing = Relay::start(&bridge, relay_config(database.url()), NoTls).await.unwrap_err();
    assert!(missing.kind() == ErrorKind::NotFound && missing.to_string().contains("nats_outbox"), "{missing}");
    client.batch_execute(postgres::TABLE).await.unwrap();
    client.batch_execute(postgres::TABLE).await.unwrap();

    let relays =
        [relay_of(&database, &bridge).await, relay_of(&database, &bridge).await, relay_of(&database, &bridge).await];
    for number in 0..120 {
        let transaction = client.transaction().await.unwrap();
        // Of one key and one subject, so that its order is seen there.
        postgres::put(&transaction, &format!("k-{}", number % 3), message(number)).await.unwrap();
        match number % 10 {
            7 => transaction.rollback().await.unwrap(),
            _ => transaction.commit().await.unwrap(),
        }
    }
    // Any language's way.
    let plain = "INSERT INTO nats_outbox (key, subject, payload, headers) VALUES ('k', 'orders.sql', '1000', '[[\"a\", \"b\"]]')";
    client.execute(plain, &[]).await.unwrap();
    eventually_true("all rows are gone", async || rows(&client).await == 0).await;
    let stored = stored(&bridge).await;
    assert_once_and_in_order(&stored);
    let mut numbers: Vec<u64> = stored.iter().map(|(_, _, payload)| payload.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..120).filter(|n| n % 10 != 7).chain([1000]).collect::<Vec<_>>());
    let sent: u64 = relays.iter().map(|relay| relay.status().borrow().sent).sum();
    assert_eq!(sent, 109);
    for relay in relays {
        relay.stop(SOON).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_refused_becomes_a_dead_row_and_holds_nothing_up() {
    let (server, database) = (NatsServer::start(), Postgres::start());
    let bridge = bridge(&server).await;
    make_stream(&bridge, |orders| orders.max_message_size = 10_000).await;
    let client = client(&database).await;
    client.batch_execute(postgres::TABLE).await.unwrap();
    client.batch_execute(postgres::NOTIFY).await.unwrap();
    let large = Message::new("orders.a", vec![b'x'; 20_000]).id("large").header("tenant", "acme");
    assert_eq!(postgres::put(&client, "k", large.clone()).await.unwrap(), "large");
    let again = postgres::put(&client, "k", large.clone()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    for wrong in [Message::new("orders.*", "1"), Message::new("a", "1").message_id(nats_bridge::MessageId::None)] {
        assert_eq!(postgres::put(&client, "k", wrong).await.unwrap_err().kind(), ErrorKind::InvalidMessage);
    }
    // What no `put` would take, any language may insert.
    let wrong = "INSERT INTO nats_outbox (id, key, subject, payload, headers) VALUES ('wrong', 'w', 'orders.a', '1', '{\"a\": 1}')";
    client.execute(wrong, &[]).await.unwrap();
    // It would look after an hour, and is woken.
    let patient = RelayConfig { poll: Duration::from_secs(3600), listen: true, ..relay_config(database.url()) };
    let relay = Relay::start(&bridge, RelayConfig { max_refusals: 1, ..patient }, NoTls).await.unwrap();
    eventually_true("both are dead", async || postgres::dead(&client, 10).await.unwrap().len() == 2).await;
    postgres::put(&client, "k", Message::new("orders.a", "2")).await.unwrap();
    eventually_true("the one behind it goes", async || rows(&client).await == 0).await;

    let dead = postgres::dead(&client, 10).await.unwrap();
    let seen: Vec<_> = dead.iter().map(|one| (&one.id[..], &one.key[..], one.attempts)).collect();
    assert_eq!(seen, [("large", "k", 1), ("wrong", "w", 1)]);
    assert_eq!(dead[0].message, large);
    assert!(dead[0].last_error.starts_with("rejected") && dead[1].last_error.contains("headers"), "{dead:?}");
    assert!(dead[0].dead_at >= dead[0].created_at);
    relay.stop(SOON).await.unwrap();

    make_room_for_large(&bridge).await;
    postgres::revive(&client, "large").await.unwrap();
    assert_eq!(postgres::revive(&client, "large").await.unwrap_err().kind(), ErrorKind::NotFound);
    postgres::discard(&client, "wrong").await.unwrap();
    assert_eq!(postgres::discard(&client, "wrong").await.unwrap_err().kind(), ErrorKind::NotFound);
    let relay = relay_of(&database, &bridge).await;
    eventually_true("it goes", async || rows(&client).await == 0).await;
    assert!(postgres::dead(&client, 10).await.unwrap().is_empty());
    assert_eq!(bridge.jetstream().get_stream("ORDERS").await.unwrap().cached_info().state.messages, 2);
    drop(relay);
}

async fn make_room_for_large(bridge: &Bridge) {
    let mut orders = bridge.jetstream().get_stream("ORDERS").await.unwrap().cached_info().config.clone();
    orders.max_message_size = -1;
    bridge.jetstream().update_stream(orders).await.unwrap();
}

const NAME: &str = "outbox::postgres::each_committed_row_is_stored_once_whoever_is_killed";

// Relays are killed with `kill -9` at random points, the database and NATS as well. Seeds as of the outbox on disk.
#[tokio::test]
async fn each_committed_row_is_stored_once_whoever_is_killed() {
    if let (Ok(database), Ok(nats)) = (std::env::var("RELAY_DATABASE"), std::env::var("RELAY_NATS")) {
        return be_a_relay(database, nats).await;
    }
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(default, |n| n.parse().unwrap());
    let first = number("OUTBOX_SEED", 1);
    for seed in first..first + number("OUTBOX_SEEDS", 2) {
        run(seed).await;
    }
}

async fn run(seed: u64) {
    let mut random = Random::new(seed);
    let (mut server, mut database) = (NatsServer::start(), Postgres::start());
    let bridge = bridge(&server).await;
    make_stream(&bridge, |_| {}).await;
    let mut writer = client(&database).await;
    writer.batch_execute(postgres::TABLE).await.unwrap();
    let (mut committed, mut number) = (Vec::new(), 0);
    let (database_url, server_url) = (database.url(), server.url());
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact"])
            .env("RELAY_DATABASE", &database_url)
            .env("RELAY_NATS", &server_url)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut relays = vec![start(), start()];
    for _ in 0..8 {
        let until = Instant::now() + Duration::from_millis(50 + random.below(250));
        while Instant::now() < until {
            let transaction = writer.transaction().await.unwrap();
            let mut numbers = Vec::new();
            for _ in 0..1 + random.below(4) {
                postgres::put(&transaction, &format!("k-{}", number % 3), message(number)).await.unwrap();
                numbers.push(number);
                number += 1;
            }
            if random.one_in(5) {
                transaction.rollback().await.unwrap();
            } else {
                transaction.commit().await.unwrap();
                committed.extend(numbers);
            }
        }
        match random.below(4) {
            0 => {
                server.kill_9();
                server.restart();
            }
            1 => {
                database.kill_9();
                database.restart();
                writer = client(&database).await;
            }
            _ => {
                let which = random.below(2) as usize;
                relays[which].kill().unwrap();
                relays[which].wait().unwrap();
                relays[which] = start();
            }
        }
    }
    let end = Instant::now() + SOON;
    while rows(&writer).await > 0 {
        assert!(Instant::now() < end, "OUTBOX_SEED={seed}: {} rows wait", rows(&writer).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for mut relay in relays {
        relay.kill().unwrap();
        relay.wait().unwrap();
    }
    let stored = stored(&bridge).await;
    assert_once_and_in_order(&stored);
    let mut arrived: Vec<u64> = stored.iter().map(|(_, _, payload)| payload.parse().unwrap()).collect();
    arrived.sort_unstable();
    assert_eq!(arrived, committed, "OUTBOX_SEED={seed}");
    assert!(committed.len() > 20, "OUTBOX_SEED={seed}: only {}", committed.len());
    assert!(postgres::dead(&writer, 1).await.unwrap().is_empty());
    println!("seed {seed}: {} committed of {number}, all stored once", committed.len());
}

// The process that is killed.
async fn be_a_relay(database: String, nats: String) {
    loop {
        if let Ok(bridge) = Bridge::connect(&nats).await
            && let Ok(_relay) = Relay::start(&bridge, relay_config(database.clone()), NoTls).await
        {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
