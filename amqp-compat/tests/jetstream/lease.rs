use std::time::Duration;

use amqp_compat::backend::jetstream::lease::{BUCKET, Holder, KEY, LeaseError};
use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig, Lease};
use amqp_compat::backend::{Backend, Event};
use amqp_compat::error::ReplyCode;
use nats_bridge::Bridge;
use test_support::nats::NatsServer;

use crate::client::{CAP, Client, login, queue};
use crate::{alone, backend_with};

/// Long enough for a crowded machine, short enough to wait for.
const LEASE: Duration = Duration::from_secs(3);

async fn bridge(server: &NatsServer) -> Bridge {
    Bridge::connect(server.url()).await.expect("connected")
}

#[tokio::test]
async fn a_second_gateway_is_refused_while_the_first_lives_and_free_once_it_stops() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let first = Lease::acquire_for(&bridge, LEASE).await.expect("free");
    let refused = Lease::acquire_for(&bridge, LEASE).await.expect_err("held");
    let LeaseError::Held(holder) = &refused else { panic!("{refused}") };
    assert_eq!(holder.pid, std::process::id());
    assert!(refused.to_string().contains(&format!("process {} on {}, since ", holder.pid, holder.host)), "{refused}");
    assert!(!first.is_lost());
    first.release().await;
    let began = std::time::Instant::now();
    Lease::acquire_for(&bridge, Duration::from_secs(3600)).await.expect("free at once");
    assert!(began.elapsed() < CAP);
}

#[tokio::test]
async fn the_backend_takes_the_lease_and_gives_it_back_with_its_last_link() {
    let server = NatsServer::start();
    let backend = alone(&server).await;
    let client = Client::open(&*backend).await;
    let config = JetStreamConfig::default();
    let error = JetStreamBackend::connect(bridge(&server).await, config.clone()).await.expect_err("held");
    assert_eq!(error.code, ReplyCode::ResourceLocked, "{error}");
    drop((backend, client));
    JetStreamBackend::connect(bridge(&server).await, config).await.expect("given back");
}

#[tokio::test]
async fn a_gateway_that_falls_silent_is_followed() {
    let server = NatsServer::start();
    let url = server.url();
    // Its runtime ends and with it all that it would do; its process lives.
    let silent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let lease = runtime.block_on(async {
            let bridge = Bridge::connect(url).await.expect("connected");
            Lease::acquire_for(&bridge, LEASE).await.expect("free")
        });
        runtime.shutdown_background();
        lease
    });
    let silent = silent.join().expect("taken");
    let next = Lease::acquire_for(&bridge(&server).await, LEASE).await.expect("it has run out");
    assert!(!next.is_lost());
    drop(silent);
}

#[tokio::test]
async fn a_gateway_that_was_overtaken_ends_its_links_and_touches_nothing() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let lease = Lease::acquire_for(&bridge, LEASE).await.expect("free");
    let config = JetStreamConfig { lease: Some(lease.clone()), ..JetStreamConfig::default() };
    let backend = backend_with(&server, config).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.consume("q", "c", 10).await;
    let bucket = bridge.jetstream().get_key_value(BUCKET).await.expect("a bucket");
    let other = Holder { id: "other".into(), host: "elsewhere".into(), pid: 7, ..Holder::default() };
    bucket.put(KEY, serde_json::to_vec(&other).expect("JSON").into()).await.expect("written");

    let lost = tokio::time::timeout(CAP, lease.lost()).await.expect("lost");
    assert!(lost.text.contains("process 7 on elsewhere"), "{lost}");
    let told = client.next(
        "Closed",
        |event| matches!(event, Event::Closed { .. }),
        |event| match event {
            Event::Closed { error } => error,
            other => panic!("{other:?}"),
        },
    );
    assert_eq!(told.await.code, ReplyCode::ConnectionForced);
    let login = login();
    assert_eq!(backend.open(login).await.expect_err("overtaken").code, ReplyCode::ConnectionForced);
    lease.release().await;
    let entry = bucket.get(KEY).await.expect("read").expect("the other one's");
    assert_eq!(serde_json::from_slice::<Holder>(&entry).expect("JSON"), other);
}

#[tokio::test]
async fn a_lease_outlives_a_nats_server_that_is_killed() {
    let mut server = NatsServer::start();
    let bridge = bridge(&server).await;
    let lease = Lease::acquire_for(&bridge, LEASE).await.expect("free");
    server.kill_9();
    server.restart();
    let refused = Lease::acquire_for(&bridge, LEASE).await.expect_err("held");
    assert!(matches!(refused, LeaseError::Held(_)), "{refused}");
    assert!(!lease.is_lost());
}
