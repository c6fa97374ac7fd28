//! Listener, backend, lease and NATS as one value, as the language bindings have it; driven by lapin over a socket.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use amqp_compat::backend::jetstream::User;
use amqp_compat::gateway::{Gateway, GatewayConfig, GatewayError, GatewayState};
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use nats_bridge::{Config, ErrorKind};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

fn config(nats: &NatsServer) -> GatewayConfig {
    GatewayConfig { nats: Config { servers: vec![nats.url()], ..Config::default() }, ..GatewayConfig::default() }
}

async fn client(gateway: &Gateway) -> Connection {
    Connection::connect(gateway.url(), ConnectionProperties::default()).await.unwrap()
}

#[tokio::test]
async fn what_one_gateway_stored_the_next_one_has() {
    let nats = NatsServer::start();
    let gateway = Gateway::start(config(&nats)).await.unwrap();
    let connection = client(&gateway).await;
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel.queue_declare("q".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    let published = channel
        .basic_publish("".into(), "q".into(), BasicPublishOptions::default(), b"17", BasicProperties::default())
        .await
        .unwrap();
    assert!(published.await.unwrap().is_ack());
    assert_eq!(gateway.connections().len(), 1);
    gateway.stop(Duration::from_secs(5)).await;
    gateway.stop(Duration::from_secs(5)).await;
    assert_eq!(gateway.state(), GatewayState::Stopped);
    assert!(Connection::connect(gateway.url(), ConnectionProperties::default()).await.is_err());

    // The lease is free at once, and the topology is there.
    let begun = Instant::now();
    let gateway = Gateway::start(config(&nats)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "it waited for a lease that nobody has");
    let channel = client(&gateway).await.create_channel().await.unwrap();
    let got = channel.basic_get("q".into(), BasicGetOptions::default()).await.unwrap().unwrap();
    assert_eq!(got.delivery.data, b"17");
    gateway.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn users_and_vhosts_are_those_that_were_given() {
    let nats = NatsServer::start();
    let users = vec![User { name: "app".into(), password: "s/e:c@ret".into() }];
    let vhosts = vec!["shop".into(), "/".into()];
    let gateway = Gateway::start(GatewayConfig { users, vhosts, ..config(&nats) }).await.unwrap();
    assert!(gateway.url().starts_with("amqp://app:s%2Fe%3Ac%40ret@127.0.0.1:"), "{}", gateway.url());
    assert!(gateway.url().ends_with("/shop"));
    assert!(client(&gateway).await.status().connected());
    let guest = format!("amqp://guest:guest@{}/shop", gateway.address());
    assert!(Connection::connect(&guest, ConnectionProperties::default()).await.is_err());
    let elsewhere = gateway.url().replace("/shop", "/nowhere");
    assert!(Connection::connect(&elsewhere, ConnectionProperties::default()).await.is_err());
    gateway.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_start_that_cannot_be_names_what_is_at_fault_and_leaves_nothing() {
    let nats = NatsServer::start();
    let kind = |result: Result<Gateway, GatewayError>| {
        let error = result.unwrap_err();
        (error.kind(), error.to_string())
    };
    let everywhere = GatewayConfig { listen: "0.0.0.0:0".into(), ..config(&nats) };
    let (refused, text) = kind(Gateway::start(everywhere).await);
    assert!(refused == ErrorKind::Config && text.contains("users"), "{text}");
    let nowhere = GatewayConfig { listen: "nonsense".into(), ..config(&nats) };
    assert!(kind(Gateway::start(nowhere).await).1.contains("listen nonsense"));
    let mut gone = config(&nats);
    gone.nats.servers = vec!["nats://127.0.0.1:1".into()];
    assert_eq!(kind(Gateway::start(gone).await).0, ErrorKind::Unreachable);

    let gateway = Gateway::start(config(&nats)).await.unwrap();
    let taken = GatewayConfig { listen: gateway.address().to_string(), ..config(&nats) };
    let (conflict, text) = kind(Gateway::start(taken).await);
    assert!(conflict == ErrorKind::Conflict && text.contains("listen 127.0.0.1:"), "{text}");
    // It waits for one that may have died, and then says who it is.
    let (conflict, text) = kind(Gateway::start(config(&nats)).await);
    assert!(conflict == ErrorKind::Conflict && text.contains("another gateway"), "{text}");
    gateway.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_client_that_does_not_leave_is_cut_when_the_budget_is_over() {
    let nats = NatsServer::start();
    let gateway = Gateway::start(config(&nats)).await.unwrap();
    // It sends the protocol header, and then nothing for ever: not even `start-ok`, so that nothing can be closed in order.
    let mut silent = tokio::net::TcpStream::connect(gateway.address()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut silent, b"AMQP\0\0\x09\x01").await.unwrap();
    let mut answer = [0; 1];
    tokio::io::AsyncReadExt::read_exact(&mut silent, &mut answer).await.unwrap();
    gateway.stop(Duration::from_millis(100)).await;
    assert_eq!(gateway.state(), GatewayState::Stopped);
    eventually_true("its socket is gone", || async { gateway.connections().is_empty() }).await;
}
