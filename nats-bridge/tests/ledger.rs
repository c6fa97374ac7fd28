//! Ledgers on real servers: an effect happens once.

#![allow(clippy::unwrap_used)]

mod orders;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nats_bridge::ledger::{Begun, Ledger, postgres};
use nats_bridge::{Bridge, ErrorKind};
use test_support::eventually::{eventually_some, eventually_true};
use test_support::nats::NatsServer;
use test_support::postgres::Postgres;
use test_support::redis::Redis;
use tokio_postgres::NoTls;

use orders::bridge;

const HOUR: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_millis(300);

// Two workers' handles of one ledger.
async fn an_effect_happens_once(ledger: Ledger, other: Ledger) {
    let ledger = Arc::new(ledger);
    let effects = Arc::new(AtomicUsize::new(0));
    // Many at once: one has it.
    let racing: Vec<_> = (0..10)
        .map(|_| {
            let (ledger, effects) = (ledger.clone(), effects.clone());
            tokio::spawn(async move {
                if let Begun::First(entry) = ledger.begin("order 17 > *").await.unwrap() {
                    effects.fetch_add(1, Ordering::SeqCst);
                    entry.done().await.unwrap();
                }
            })
        })
        .collect();
    for task in racing {
        task.await.unwrap();
    }
    assert_eq!(effects.load(Ordering::SeqCst), 1);
    assert!(matches!(other.begin("order 17 > *").await.unwrap(), Begun::Done));

    // A worker that dies leaves its entry for the lease, and may not finish after that.
    let Begun::First(dead) = ledger.begin("o-2").await.unwrap() else { panic!("nobody else has it") };
    assert!(matches!(other.begin("o-2").await.unwrap(), Begun::Elsewhere));
    let heir = eventually_some("the lease is over", || async {
        match other.begin("o-2").await.unwrap() {
            Begun::First(entry) => Some(entry),
            _ => None,
        }
    })
    .await;
    assert_eq!(dead.done().await.unwrap_err().kind(), ErrorKind::Conflict);
    heir.undo().await.unwrap();
    let Begun::First(entry) = ledger.begin("o-2").await.unwrap() else { panic!("it was undone") };
    entry.done().await.unwrap();

    // Ids of any length and bytes are told apart.
    let long = "ü".repeat(300);
    for id in ["a", "a b", "i:a", &long, &long[2..]] {
        assert!(matches!(ledger.begin(id).await.unwrap(), Begun::First(_)), "{id}");
    }
    assert_eq!(ledger.begin("").await.unwrap_err().kind(), ErrorKind::InvalidMessage);
}

#[tokio::test]
async fn an_effect_with_a_ledger_in_a_bucket_happens_once() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let other = Bridge::connect(server.url()).await.unwrap();
    let open = |bridge: Bridge| async move { bridge.ledger("billing-done", HOUR, LEASE).await.unwrap() };
    an_effect_happens_once(open(bridge.clone()).await, open(other).await).await;
    assert_eq!(bridge.ledger("no.dots", HOUR, LEASE).await.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn an_effect_with_a_ledger_in_redis_happens_once_also_when_redis_is_killed() {
    let mut redis = Redis::start(&[]);
    let open = || async { Ledger::redis(&redis.url(), "billing", HOUR, LEASE).await.unwrap() };
    let (ledger, other) = (open().await, open().await);
    an_effect_happens_once(ledger.clone(), other).await;
    // Another service with the same ids does not meet this one.
    let apart = Ledger::redis(&redis.url(), "shipping", HOUR, LEASE).await.unwrap();
    assert!(matches!(apart.begin("o-2").await.unwrap(), Begun::First(_)));

    redis.kill_9();
    assert_eq!(ledger.begin("o-2").await.unwrap_err().kind(), ErrorKind::Unreachable);
    redis.restart();
    eventually_true("what was done is known again", || async { matches!(ledger.begin("o-2").await, Ok(Begun::Done)) })
        .await;
}

#[tokio::test]
async fn a_redis_that_may_forget_or_cannot_be_reached_is_refused() {
    let evicting = Redis::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let error = Ledger::redis(&evicting.url(), "billing", HOUR, LEASE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("maxmemory-policy") && error.to_string().contains("allkeys-lru"), "{error}");
    let bounded = Redis::start(&["--maxmemory", "100mb", "--maxmemory-policy", "noeviction", "--requirepass", "right"]);
    let with = |password: &str| bounded.url().replace("redis://", &format!("redis://:{password}@"));
    Ledger::redis(&with("right"), "billing", HOUR, LEASE).await.unwrap();
    for (url, prefix, keep, kind, field) in [
        (with("wr0ng"), "billing", HOUR, ErrorKind::Denied, "why"),
        (bounded.url(), "billing", HOUR, ErrorKind::Denied, "why"),
        ("http://localhost".to_owned(), "billing", HOUR, ErrorKind::Config, "url"),
        (with("right"), "", HOUR, ErrorKind::Config, "prefix"),
        (with("right"), "billing", Duration::ZERO, ErrorKind::Config, "keep"),
        ("redis://127.0.0.1:1/".to_owned(), "billing", HOUR, ErrorKind::Unreachable, "why"),
    ] {
        let error = Ledger::redis(&url, prefix, keep, LEASE).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(field) && !error.to_string().contains("wr0ng"), "{error}");
    }
}

#[tokio::test]
async fn an_effect_and_its_entry_are_committed_together_or_not_at_all() {
    let database = Postgres::start();
    let connect = || async {
        let (client, connection) = tokio_postgres::connect(&database.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    let (mut client, mut other) = (connect().await, connect().await);
    client.batch_execute(postgres::TABLE).await.unwrap();
    client.batch_execute(postgres::TABLE).await.unwrap();
    client.batch_execute("CREATE TABLE paid (id TEXT)").await.unwrap();

    // What was rolled back was never handled.
    let transaction = client.transaction().await.unwrap();
    assert!(postgres::first(&transaction, "billing", "o-1").await.unwrap());
    transaction.rollback().await.unwrap();

    // Of two at once the second waits for the first, and changes nothing.
    let transaction = client.transaction().await.unwrap();
    assert!(postgres::first(&transaction, "billing", "o-1").await.unwrap());
    transaction.execute("INSERT INTO paid VALUES ('o-1')", &[]).await.unwrap();
    let second = tokio::spawn(async move {
        let transaction = other.transaction().await.unwrap();
        let first = postgres::first(&transaction, "billing", "o-1").await.unwrap();
        transaction.commit().await.unwrap();
        first
    });
    transaction.commit().await.unwrap();
    assert!(!second.await.unwrap());

    let transaction = client.transaction().await.unwrap();
    assert!(postgres::first(&transaction, "shipping", "o-1").await.unwrap(), "another consumer");
    assert_eq!(postgres::first(&transaction, "billing", "").await.unwrap_err().kind(), ErrorKind::InvalidMessage);
    transaction.commit().await.unwrap();
    assert_eq!(postgres::forget(&client, HOUR, 10).await.unwrap(), 0);
    assert_eq!(postgres::forget(&client, Duration::ZERO, 1).await.unwrap(), 1);
    assert_eq!(postgres::forget(&client, Duration::ZERO, 10).await.unwrap(), 1);
}
