//! Who may log in to the sidecar.

mod bed;

use amqp_compat::backend::{Backend, Login};
use amqp_compat::error::ReplyCode;
use bed::Ends;
use lapin::types::FieldTable;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_by_rabbitmq_before_limits_are_negotiated() {
    let nats = NatsServer::start();
    let sidecar = Ends::new(RabbitMq::shared(), &nats).sidecar().await;
    let login = |password: &str| Login {
        vhost: String::new(),
        user: "guest".into(),
        password: password.into(),
        certificate: None,
        client_properties: FieldTable::default(),
        peer: "test".into(),
    };
    let backend = sidecar.cutover.backend();
    backend.authenticate(&login("guest")).await.expect("the right password");
    let refused = backend.authenticate(&login("wrong")).await.expect_err("refused");
    assert_eq!(refused.code, ReplyCode::AccessRefused);
    sidecar.stop().await;
}
