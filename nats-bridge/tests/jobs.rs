//! A handler that runs elsewhere and takes its work as jobs, on a real server.

#![allow(clippy::unwrap_used)]

mod orders;

use std::collections::BTreeMap;
use std::time::Duration;

use nats_bridge::consume::{Job, Jobs};
use nats_bridge::{Bridge, ConsumeConfig, Failure, Message, Reason, Received, RetryPolicy, dead_letter};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

use orders::bridge;

async fn jobs(bridge: &Bridge, concurrency: usize, keyed: bool) -> Jobs {
    let retry =
        RetryPolicy { attempts: 3, first_pause: Duration::from_millis(20), jitter: false, ..RetryPolicy::default() };
    let config =
        ConsumeConfig { retry, heartbeat: Duration::from_millis(500), ..ConsumeConfig::new("ORDERS", "billing") };
    bridge.consume(config).await.unwrap().jobs(concurrency, keyed)
}

async fn left(bridge: &Bridge) -> u64 {
    bridge.jetstream().get_stream("ORDERS").await.unwrap().cached_info().state.messages
}

async fn reason_of_letter(bridge: &Bridge, sequence: u64) -> String {
    let letters = bridge.jetstream().get_stream("ORDERS_DLQ").await.unwrap();
    letters.get_raw_message(sequence).await.unwrap().headers.get(dead_letter::REASON).unwrap().to_string()
}

fn number(message: &Received) -> usize {
    std::str::from_utf8(message.payload()).unwrap().parse().unwrap()
}

#[tokio::test]
async fn no_more_than_the_concurrency_is_out_and_what_is_answered_is_settled() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    bridge.publish_many((0..20).map(|i| Message::new("orders.new", i.to_string()))).await;
    let mut jobs = jobs(&bridge, 3, false).await;
    let mut out = Vec::new();
    let (mut handled, mut given_up) = (0, 0);
    while handled + given_up < 20 {
        while out.len() < 3 && handled + given_up + out.len() < 20 {
            out.push(jobs.next().await.unwrap().unwrap());
        }
        if out.len() == 3 {
            let more = tokio::time::timeout(Duration::from_millis(20), jobs.next()).await;
            assert!(more.is_err(), "a fourth one");
        }
        let Job::Handle(message, answer) = out.remove(0) else { panic!("no key is wanted") };
        match number(&message) % 4 {
            // Comes again, which is a job more.
            0 if message.attempt() == 1 => answer.give(Err(Failure::new("not yet"))),
            1 => {
                given_up += 1;
                answer.give(Err(Failure::of("Broken", "no order").giving_up(Reason::Schema)));
            }
            2 if message.attempt() == 1 => drop(answer),
            _ => {
                handled += 1;
                answer.give(Ok(()));
            }
        }
    }
    eventually_true("all are settled", || async { left(&bridge).await == 0 }).await;
    assert_eq!((handled, given_up), (15, 5));
    assert_eq!(reason_of_letter(&bridge, 5).await, "schema");
}

#[tokio::test]
async fn one_key_is_in_order_and_a_key_that_cannot_be_told_follows_the_policy() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    bridge.publish_many((0..60).map(|i| Message::new(format!("orders.c{}", i % 6), i.to_string()))).await;
    let mut jobs = jobs(&bridge, 4, true).await;
    let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    while seen.values().map(Vec::len).sum::<usize>() < 50 {
        match jobs.next().await.unwrap().unwrap() {
            Job::Key(message, answer) if message.subject() == "orders.c5" => answer.give(Err(Failure::new("no key"))),
            Job::Key(message, answer) => answer.give(Ok(message.subject().to_owned())),
            Job::Handle(message, answer) => match number(&message) % 7 {
                0 if message.attempt() == 1 => answer.give(Err(Failure::new("not yet"))),
                _ => {
                    seen.entry(message.subject().to_owned()).or_default().push(number(&message));
                    answer.give(Ok(()));
                }
            },
        }
    }
    for (key, numbers) in &seen {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
    let letters = async || bridge.jetstream().get_stream("ORDERS_DLQ").await.unwrap().cached_info().state.messages;
    let pumped = async {
        while let Some(Job::Key(_, answer)) = jobs.next().await.unwrap() {
            answer.give(Err(Failure::new("no key")));
        }
    };
    tokio::select! {
        () = pumped => panic!("the consumer ended"),
        () = eventually_true("those without a key are given up", || async { letters().await == 10 }) => {}
    }
}

#[tokio::test]
async fn a_drain_ends_the_jobs_and_jobs_that_are_let_go_drain() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    bridge.publish_many((0..5).map(|i| Message::new("orders.new", i.to_string()))).await;
    let config = ConsumeConfig { heartbeat: Duration::from_millis(500), ..ConsumeConfig::new("ORDERS", "billing") };
    let consumer = bridge.consume(config).await.unwrap();
    let handle = consumer.handle();
    let mut jobs = consumer.jobs(1, false);
    let Some(Job::Handle(message, answer)) = jobs.next().await.unwrap() else { panic!("a message") };
    assert_eq!(number(&message), 0);
    handle.begin_to_drain();
    answer.give(Ok(()));
    let mut handled = 1;
    while let Some(job) = jobs.next().await.unwrap() {
        let Job::Handle(_, answer) = job else { panic!("no key is wanted") };
        answer.give(Ok(()));
        handled += 1;
    }
    assert!(jobs.next().await.unwrap().is_none(), "nothing comes after the end");
    handle.drain(Duration::from_secs(10)).await.unwrap();
    eventually_true("the rest was given back", || async { left(&bridge).await == 5 - handled }).await;

    let config = ConsumeConfig { heartbeat: Duration::from_millis(500), ..ConsumeConfig::new("ORDERS", "billing") };
    let consumer = bridge.consume(config).await.unwrap();
    let handle = consumer.handle();
    drop(consumer.jobs(1, false));
    handle.drain(Duration::from_secs(10)).await.unwrap();
}
