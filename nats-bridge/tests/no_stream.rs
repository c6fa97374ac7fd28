//! Nobody answers on a subject: no stream takes it, which no wait helps, or its stream has no leader for a moment, which passes.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use async_nats::jetstream::stream;
use nats_bridge::{Bridge, Config, Error, ErrorKind, Landed, Message, PublishConfig};
use test_support::cluster::NatsCluster;
use test_support::eventually::eventually_some;
use test_support::nats::NatsServer;

async fn bridge(servers: &str, no_stream_wait: Duration) -> Bridge {
    let publish = PublishConfig { no_stream_wait, ..PublishConfig::default() };
    let servers = servers.split(',').map(str::to_owned).collect();
    Bridge::connect_with(Config { servers, publish, ..Config::default() }).await.unwrap()
}

fn orders() -> stream::Config {
    stream::Config { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..Default::default() }
}

async fn refused(bridge: &Bridge, subject: &str) -> Error {
    let published = bridge.publish(Message::new(subject, "x"));
    tokio::time::timeout(Duration::from_secs(30), published).await.expect("it ends").unwrap_err()
}

fn said<'a>(error: &'a Error, name: &str) -> Option<&'a str> {
    error.context().iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
}

#[tokio::test]
async fn a_subject_that_no_stream_takes_is_not_found_at_once_however_long_a_leader_may_be_away() {
    let server = NatsServer::start();
    let bridge = bridge(&server.url(), Duration::from_secs(50)).await;
    bridge.jetstream().create_stream(orders()).await.unwrap();
    let error = refused(&bridge, "order.new").await;
    assert_eq!(
        (error.kind(), error.landed(), error.is_temporary()),
        (ErrorKind::NotFound, Landed::No, false),
        "{error}"
    );
    assert_eq!(said(&error, "subject"), Some("order.new"));
    assert!(said(&error, "why").unwrap().contains("ensure_stream"), "{error}");
    // Many at once, of more subjects than are asked for at once; those between them go.
    let messages = (0..300).map(|n| Message::new(format!("{}.{n}", if n % 3 == 0 { "orders" } else { "order" }), "x"));
    let outcomes = tokio::time::timeout(Duration::from_secs(30), bridge.publish_many(messages)).await.unwrap();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        assert_eq!(outcome.as_ref().err().map(Error::kind), (n % 3 > 0).then_some(ErrorKind::NotFound), "{n}");
    }
    assert_eq!(bridge.outstanding(), 0);
    // It was asked, and is not remembered.
    let more = stream::Config { name: "MORE".into(), subjects: vec!["order.>".into()], ..Default::default() };
    bridge.jetstream().create_stream(more).await.unwrap();
    bridge.publish(Message::new("order.new", "x")).await.unwrap();
}

#[tokio::test]
async fn a_stream_behind_a_mapped_subject_is_waited_for() {
    let server = NatsServer::builder().config_line(r#"mappings: { "old.>": "orders.>" }"#).start();
    let bridge = bridge(&server.url(), Duration::from_secs(2)).await;
    bridge.jetstream().create_stream(orders()).await.unwrap();
    bridge.publish(Message::new("old.new", "x")).await.unwrap();
    bridge.jetstream().delete_stream("ORDERS").await.unwrap();
    // That it is mapped is found out beside the publish.
    let error = eventually_some("it is known that the subject is mapped", || waited_for(&bridge)).await;
    assert_eq!(
        (error.kind(), error.landed(), error.is_temporary()),
        (ErrorKind::Unreachable, Landed::No, true),
        "{error}"
    );
}

async fn waited_for(bridge: &Bridge) -> Option<Error> {
    let error = refused(bridge, "old.new").await;
    (error.kind() == ErrorKind::Unreachable).then_some(error)
}

#[tokio::test]
async fn a_stream_whose_server_is_away_is_not_taken_for_one_that_is_not_there() {
    let mut cluster = NatsCluster::start();
    cluster.wait_for_leader();
    let maker = bridge(&cluster.urls(), Duration::from_secs(5)).await;
    let mut made =
        eventually_some("the stream is made", || async { maker.jetstream().get_or_create_stream(orders()).await.ok() })
            .await;
    let leader = made.info().await.unwrap().cluster.clone().unwrap().leader.unwrap();
    let index =
        (0..3).find(|n| cluster.node(*n).monitor("/varz").unwrap().contains(&format!("\"server_name\": \"{leader}\"")));
    let index = index.expect("one of the three leads");
    let others: Vec<String> = (0..3).filter(|n| *n != index).map(|n| cluster.node(n).url()).collect();
    let bridge = bridge(&others.join(","), Duration::from_secs(1)).await;
    bridge.publish(Message::new("orders.new", "before")).await.unwrap();
    assert_eq!(refused(&bridge, "nobody.listens").await.kind(), ErrorKind::NotFound);
    cluster.node_mut(index).kill_9();
    let error = refused(&bridge, "orders.new").await;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    cluster.node_mut(index).restart();
    eventually_some("it is led again", || async { bridge.publish(Message::new("orders.new", "after")).await.ok() })
        .await;
}
