//! Vhosts that are made and deleted while a gateway runs.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use amqp_compat::backend::jetstream::{About, Gateways, JetStreamBackend, JetStreamConfig};
use amqp_compat::backend::*;
use amqp_compat::{AmqpError, ReplyCode};
use futures::TryStreamExt as _;
use nats_bridge::Bridge;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

use crate::client::{Client, body, exchange, login, queue, table, text};
use crate::{alone, backend_with, one_lease};

const NAME: &str = "team/a_1";

async fn refused(backend: &JetStreamBackend, vhost: &str) -> AmqpError {
    backend.open(Login { vhost: vhost.into(), ..login() }).await.expect_err("refused")
}

/// The streams that have something of the vhost, by name.
async fn streams(server: &NatsServer) -> Vec<String> {
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    let names: Vec<String> = bridge.jetstream().stream_names().try_collect().await.expect("listed");
    names.into_iter().filter(|name| name.contains("team")).collect()
}

#[tokio::test]
async fn a_vhost_is_made_kept_and_deleted_with_all_that_is_in_it() {
    let server = NatsServer::start();
    let config = one_lease(&server).await;
    let first = backend_with(&server, config.clone()).await;
    assert_eq!(refused(&first, NAME).await.to_string(), format!("NOT_ALLOWED - vhost '{NAME}' not found"));
    let about = About { description: "for tests".into(), tags: vec!["t".into()] };
    assert!(first.put_vhost(NAME, About::default()).await.expect("made"));
    assert!(!first.put_vhost(NAME, about.clone()).await.expect("said"), "it was there");
    assert_eq!(first.vhosts(), ["/", NAME]);
    let mut client = Client::open_in(&*first, NAME).await;
    client.declare(queue("q")).await;
    client.declare(QueueDeclare { durable: false, ..queue("transient") }).await;
    client.bind("amq.fanout", "q", "").await;
    for number in 0..3 {
        client.store("amq.fanout", "", number.to_string()).await;
    }
    let arguments = table(&[("x-delayed-type", text("direct"))]);
    let later = ExchangeDeclare { arguments, ..exchange("later", "x-delayed-message") };
    client.topology(Topology::ExchangeDeclare(later)).await.expect("declared");
    let hour = AMQPProperties::default().with_headers(table(&[("x-delay", AMQPValue::LongInt(3_600_000))]));
    client.publish_with("later", "", "late", hour, false).await;
    assert_eq!(client.confirm().await.1, PublishOutcome::Stored);
    client.close().await;

    let next = backend_with(&server, config).await;
    assert_eq!(next.about_vhost(NAME), Some(about));
    let mut other = Client::open(&*next).await;
    other.declare(queue("q")).await;
    other.store("", "q", "of another vhost").await;
    let mut client = Client::open_in(&*next, NAME).await;
    assert_eq!(client.counts("q").await, (3, 0));
    client.declare(QueueDeclare { exclusive: true, ..queue("own") }).await;
    client.consume("q", "c", 1).await;
    assert_eq!(body(&client.delivery().await), "0");

    assert!(next.delete_vhost(NAME).await.expect("deleted"));
    let wanted = |event: &Event| matches!(event, Event::Closed { .. });
    let why = client.next("the end", wanted, |event| match event {
        Event::Closed { error } => error.to_string(),
        _ => unreachable!("only that is wanted"),
    });
    assert_eq!(why.await, format!("CONNECTION_FORCED - vhost '{NAME}' is deleted"));
    assert!(!next.delete_vhost(NAME).await.expect("answered"), "it is gone");
    assert_eq!(refused(&next, NAME).await.code, ReplyCode::NotAllowed);
    assert_eq!(next.vhosts(), ["/"]);
    eventually_true("nothing is left of it", || async { streams(&server).await.is_empty() }).await;
    assert_eq!(other.counts("q").await, (1, 0));

    assert!(next.put_vhost(NAME, About::default()).await.expect("made again"));
    let mut client = Client::open_in(&*next, NAME).await;
    assert_eq!(client.declare(queue("q")).await, ("q".to_owned(), 0, 0), "with nothing in it");
    client.store("amq.fanout", "", "to nobody").await;
    client.store("", "q", "new").await;
    assert_eq!(body(&client.get("q").await.expect("a message").delivery), "new");
    assert!(
        client.topology(Topology::QueueDeclare(QueueDeclare { passive: true, ..queue("transient") })).await.is_err()
    );
}

#[tokio::test]
async fn a_vhost_that_the_gateway_is_started_with_stays() {
    let server = NatsServer::start();
    let backend = alone(&server).await;
    let error = backend.delete_vhost("/").await.expect_err("refused");
    assert_eq!(error.to_string(), "PRECONDITION_FAILED - vhost '/' cannot be deleted: the gateway is started with it");
    for name in ["", &"x".repeat(256), "-x2F"] {
        let error = backend.put_vhost(name, About::default()).await.expect_err("refused");
        assert_eq!(error.code, ReplyCode::PreconditionFailed);
    }
    let long = "ü".repeat(127);
    assert!(backend.put_vhost(&long, About::default()).await.expect("made"));
    Client::open_in(&*backend, &long).await.declare(queue("q")).await;
    assert!(backend.delete_vhost(&long).await.expect("deleted"));
}

#[tokio::test]
async fn gateways_that_share_an_account_serve_the_vhosts_that_they_are_started_with() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    let gateways = Some(Gateways::join(&bridge).await.expect("free"));
    let config = JetStreamConfig { gateways, ..JetStreamConfig::default() };
    let backend = JetStreamBackend::connect(bridge, config).await.expect("loaded");
    let error = backend.put_vhost("v", About::default()).await.expect_err("refused");
    assert_eq!(error.code, ReplyCode::NotImplemented);
    assert_eq!(backend.delete_vhost("/").await.expect_err("refused").code, ReplyCode::NotImplemented);
}
