//! The single active consumer on a real server: one instance at a time, in order over every change, fenced.

#![allow(clippy::unwrap_used)]

mod orders;

use std::time::Duration;

use nats_bridge::{
    Bridge, Config, ConsumeConfig, Consumer, ConsumerHandle, ConsumerState, Delivery, ErrorKind, Message,
};
use test_support::eventually::eventually_true;
use test_support::fault_proxy::{FaultProxy, Weather};
use test_support::nats::NatsServer;

use orders::bridge;

fn billing(ack_wait: u64) -> ConsumeConfig {
    ConsumeConfig {
        single_active: true,
        ack_wait: Duration::from_millis(ack_wait),
        heartbeat: Duration::from_millis(500),
        ..ConsumeConfig::new("ORDERS", "billing")
    }
}

async fn publish(bridge: &Bridge, numbers: std::ops::Range<u32>) {
    for i in numbers {
        bridge.publish(Message::new("orders.new", i.to_string())).await.unwrap();
    }
}

fn number(delivery: &Delivery) -> u32 {
    std::str::from_utf8(delivery.payload()).unwrap().parse().unwrap()
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(Duration::from_secs(30), consumer.next());
    next.await.expect("a delivery within 30 s").unwrap().expect("the consumer goes on")
}

async fn is(handle: &ConsumerHandle, state: ConsumerState) {
    eventually_true(&format!("it is {state:?}"), || async { handle.state() == state }).await;
}

#[tokio::test]
async fn one_instance_gets_everything_in_order_and_the_next_follows_when_it_is_drained() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    publish(&bridge, 0..60).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(Bridge::connect(server.url()).await.unwrap().consume(billing(30_000)).await.unwrap());
    }
    let (mut expected, mut fences) = (0, Vec::new());
    while !waiting.is_empty() {
        let handles: Vec<ConsumerHandle> = waiting.iter().map(Consumer::handle).collect();
        eventually_true("one is active", || async { handles.iter().any(|h| h.state() == ConsumerState::Running) })
            .await;
        let active = handles.iter().position(|handle| handle.state() == ConsumerState::Running).unwrap();
        let mut consumer = waiting.remove(active);
        for handle in handles.iter().enumerate().filter(|(i, _)| *i != active).map(|(_, handle)| handle) {
            assert_eq!((handle.state(), handle.held()), (ConsumerState::Waiting, 0));
        }
        for _ in 0..20 {
            let delivery = next(&mut consumer).await;
            assert_eq!(number(&delivery), expected);
            expected += 1;
            fences.push(delivery.fencing_number().unwrap());
            delivery.ack().await.unwrap();
        }
        consumer.handle().drain(Duration::from_secs(10)).await.unwrap();
        assert!(consumer.next().await.unwrap().is_none());
    }
    assert_eq!(expected, 60);
    fences.dedup();
    assert!(fences.len() == 3 && fences.is_sorted(), "each of the three has a higher one: {fences:?}");
}

#[tokio::test]
async fn an_instance_that_is_cut_off_is_followed_and_what_it_held_comes_first_and_in_order() {
    change_of_hands(4, FaultProxy::shut, FaultProxy::open).await;
}

#[tokio::test]
async fn a_half_open_connection_with_a_pull_on_it_swallows_nothing_out_of_order() {
    let back = |proxy: &FaultProxy| {
        proxy.set(Weather::Calm);
        proxy.cut();
    };
    change_of_hands(256, |proxy| proxy.set(Weather::HalfOpen), back).await;
}

async fn change_of_hands(max_messages: usize, away: fn(&FaultProxy), back: fn(&FaultProxy)) {
    let server = NatsServer::start();
    let other = bridge(&server).await;
    publish(&other, 0..10).await;
    let proxy = FaultProxy::start(server.port(), 1).await;
    let config =
        Config { servers: vec![proxy.url()], reconnect_pause_max: Duration::from_millis(200), ..Config::default() };
    let cut_off = Bridge::connect_with(config).await.unwrap();
    let mut first = cut_off.consume(ConsumeConfig { max_messages, ..billing(1_000) }).await.unwrap();
    let mut held = vec![next(&mut first).await, next(&mut first).await, next(&mut first).await];
    assert_eq!(held.iter().map(number).collect::<Vec<_>>(), [0, 1, 2]);
    let mut second = other.consume(billing(1_000)).await.unwrap();

    away(&proxy);
    publish(&other, 10..12).await;
    is(&first.handle(), ConsumerState::Waiting).await;
    for expected in 0..12 {
        let delivery = next(&mut second).await;
        assert_eq!(number(&delivery), expected);
        assert!(delivery.redelivered() || expected > 2, "{expected} was held");
        assert!(delivery.fencing_number() > held[0].fencing_number());
        delivery.ack().await.unwrap();
    }

    back(&proxy);
    eventually_true("it is back", || async { cut_off.connection().borrow().connected }).await;
    held.remove(0).ack().await.unwrap();
    publish(&other, 12..16).await;
    for expected in 12..16 {
        let delivery = next(&mut second).await;
        assert_eq!((number(&delivery), delivery.redelivered()), (expected, false));
        delivery.ack().await.unwrap();
    }
    is(&first.handle(), ConsumerState::Waiting).await;

    // And back again: the one that lost it contends for it.
    second.handle().drain(Duration::from_secs(10)).await.unwrap();
    publish(&other, 16..17).await;
    assert_eq!(number(&next(&mut first).await), 16);
}

#[tokio::test]
async fn an_ack_wait_that_leaves_no_time_to_renew_is_refused() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let error = bridge.consume(billing(100)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("ack_wait"), "{error}");
}
