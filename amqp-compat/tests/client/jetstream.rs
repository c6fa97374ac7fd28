//! What only a broker in the process can do, and what it refuses.

use std::sync::Arc;

use amqp_compat::AmqpError;
use amqp_compat::ReplyCode;
use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig};
use amqp_compat::client::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use amqp_compat::client::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use amqp_compat::client::types::FieldTable;
use amqp_compat::client::{Connection, DefaultConnectionBuilder, Error, ErrorKind};
use nats_bridge::Bridge;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

fn io_kind(error: &Error) -> Option<std::io::ErrorKind> {
    match error.kind() {
        ErrorKind::IOError(error) => Some(error.kind()),
        _ => None,
    }
}

async fn refused(url: &str) -> Error {
    Connection::connect(url, Default::default()).await.err().unwrap_or_else(|| panic!("{url} was let in"))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_a_process_share_their_vhost_and_what_is_closed_is_still_there() {
    let server = NatsServer::start();
    let connect = || async { Connection::connect(&server.url(), Default::default()).await.expect("connected") };
    let (one, two) = (connect().await, connect().await);
    let channel = one.create_channel().await.expect("opened");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    let options = QueueDeclareOptions::durable();
    channel.queue_declare("q".into(), options, FieldTable::default()).await.expect("declared");
    for text in ["1", "2"] {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = channel.basic_publish("".into(), "q".into(), options, text.as_bytes(), Default::default()).await;
        let confirm = confirm.expect("sent").await.expect("confirmed");
        assert!(confirm.is_ack() && confirm.take_message().is_none());
    }
    let get = async |connection: &Connection| {
        let channel = connection.create_channel().await.expect("opened");
        let got = channel.basic_get("q".into(), BasicGetOptions { no_ack: true }).await.expect("got");
        got.map(|message| String::from_utf8(message.data.clone()).expect("text"))
    };
    assert_eq!(get(&two).await.as_deref(), Some("1"));
    for connection in [one, two] {
        connection.close(200, "done".into()).await.expect("closed");
    }
    // Nobody is connected: a gateway that comes after finds what is left, and only that.
    let builder = DefaultConnectionBuilder::new().expect("on tokio").with_uri_str(server.url());
    let again = builder.connect().await.expect("connected");
    assert_eq!(get(&again).await.as_deref(), Some("2"));
    assert_eq!(get(&again).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vhost_that_nobody_has_made_is_refused_as_rabbitmq_does() {
    let server = NatsServer::start();
    let error = refused(&format!("{}/nobodys", server.url())).await;
    let ErrorKind::ProtocolError(error) = error.kind() else { panic!("{error:?}") };
    assert_eq!(*error.kind(), AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED));
    assert_eq!(error.get_message().as_str(), "NOT_ALLOWED - vhost 'nobodys' not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_serves_the_vhosts_of_its_account_and_no_other_gateway_does() {
    let server = NatsServer::start();
    let made = serving(&server, &["/", "shop"]).await.expect("the account is free");
    let error = refused(&server.url()).await;
    let ErrorKind::ProtocolError(held) = error.kind() else { panic!("{error:?}") };
    assert_eq!(*held.kind(), AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED));
    assert!(held.get_message().as_str().contains("another gateway"), "{held}");
    drop(made);
    let mut connections = Vec::new();
    for vhost in ["", "/shop", "/%2f"] {
        let url = format!("{}{vhost}", server.url());
        connections.push(Connection::connect(&url, Default::default()).await.expect("connected"));
    }
    let error = serving(&server, &["/"]).await.expect_err("the account is served from here");
    assert_eq!(error.code, ReplyCode::ResourceLocked, "{error}");
    drop(connections);
    eventually_true("the account is free again", async || serving(&server, &["/"]).await.is_ok()).await;
}

async fn serving(server: &NatsServer, vhosts: &[&str]) -> Result<Arc<JetStreamBackend>, AmqpError> {
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    let vhosts = vhosts.iter().map(|vhost| (*vhost).to_owned()).collect();
    JetStreamBackend::connect(bridge, JetStreamConfig { vhosts, ..JetStreamConfig::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_connected_to_says_why() {
    // The port is free again when the socket is dropped, and nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("free").port();
    let error = refused(&format!("nats://127.0.0.1:{port}")).await;
    assert_eq!(io_kind(&error), Some(std::io::ErrorKind::ConnectionRefused), "{error:?}");
    let error = refused("nats://127.0.0.1:4222?verify=none").await;
    assert_eq!(io_kind(&error), Some(std::io::ErrorKind::InvalidInput), "{error:?}");
}

#[test]
fn without_tokio_there_is_a_typed_error_and_no_panic() {
    let error = futures::executor::block_on(Connection::connect("nats://127.0.0.1", Default::default()));
    assert!(matches!(error.expect_err("no runtime").kind(), ErrorKind::NoDefaultRuntime));
}
