//! Users that are made while gateways run.

use amqp_compat::backend::jetstream::{Gateways, JetStreamBackend, JetStreamConfig, hashed};
use amqp_compat::backend::{Backend as _, Event, Login, Topology};
use amqp_compat::error::ReplyCode;
use amqp_compat::model::access::{Hashing, Permission};
use nats_bridge::Bridge;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

use crate::client::{Client, login, queue};

async fn gateway(server: &NatsServer) -> std::sync::Arc<JetStreamBackend> {
    let bridge = Bridge::connect(server.url()).await.expect("connected");
    let gateways = Some(Gateways::join(&bridge).await.expect("a place"));
    let config = JetStreamConfig { gateways, ..JetStreamConfig::default() };
    JetStreamBackend::connect(bridge, config).await.expect("loaded")
}

#[tokio::test]
async fn a_user_of_one_gateway_is_one_of_all_and_a_deleted_one_is_out_everywhere() {
    let server = NatsServer::start();
    let (first, second) = (gateway(&server).await, gateway(&server).await);
    let login = Login { user: "clerk".into(), password: "secret".into(), ..login() };
    assert_eq!(second.authenticate(&login).await.expect_err("unknown").code, ReplyCode::AccessRefused);

    assert!(first.put_user("clerk", hashed(Hashing::Sha512, "secret"), Vec::new()).await.expect("made"));
    eventually_true("the other one knows it", || async { second.authenticate(&login).await.is_ok() }).await;
    let error = second.open(login.clone()).await.expect_err("no permission").to_string();
    assert_eq!(error, "NOT_ALLOWED - access to vhost '/' refused for user 'clerk'");

    // Changed at either end, one after the other: neither change undoes the other.
    let read_only = Permission::new("^own", "", "^own").expect("valid");
    assert!(second.put_permission("/", "clerk", read_only.clone()).await.expect("given"));
    assert!(!first.put_user("clerk", hashed(Hashing::Sha256, "secret"), vec!["monitoring".into()]).await.expect("put"));
    let is_so = |backend: &JetStreamBackend| {
        let account = backend.user("clerk").expect("there");
        account.is("monitoring") && account.permission("/") == Some(read_only.clone())
    };
    for backend in [&first, &second] {
        eventually_true("both are in force", || async { is_so(backend) }).await;
    }

    let mut client = Client::open_as(&*second, login.clone()).await;
    client.declare(queue("own")).await;
    let refused = client.topology(Topology::QueueDeclare(queue("their"))).await.expect_err("refused");
    assert_eq!(refused.to_string(), "ACCESS_REFUSED - access to queue 'their' in vhost '/' refused for user 'clerk'");
    assert!(first.delete_user("clerk").await.expect("deleted"));
    let closed = client.next("its end", |event| matches!(event, Event::Closed { .. }), |event| event).await;
    assert!(matches!(closed, Event::Closed { error } if error.code == ReplyCode::ConnectionForced));
    assert!(second.authenticate(&login).await.is_err() && !first.delete_user("clerk").await.expect("asked"));
    for error in [
        first.put_user("guest", None, Vec::new()).await.expect_err("given at the start"),
        first.put_user("", None, Vec::new()).await.expect_err("no name"),
        first.drop_permission("/", "guest").await.expect_err("given at the start"),
    ] {
        assert_eq!(error.code, ReplyCode::PreconditionFailed);
    }
    let error = first.put_permission("none", "clerk", read_only).await.expect_err("no vhost");
    assert_eq!(error.code, ReplyCode::NotFound);
}
