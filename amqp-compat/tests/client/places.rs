//! Where the promises are tried.

use std::sync::Arc;

use amqp_compat::backend::Login;
use amqp_compat::backend::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
use amqp_compat::client;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

use crate::{after, before};

pub fn lapin_on_rabbitmq() -> before::Place {
    let vhost = RabbitMq::shared().fresh_vhost();
    let url = RabbitMq::shared().url_for(&vhost);
    let connect = move || {
        let url = url.clone();
        Box::pin(async move { lapin::Connection::connect(&url, Default::default()).await }) as _
    };
    before::Place { vhost, connect: Box::new(connect) }
}

pub fn client_on_rabbitmq() -> after::Place {
    let vhost = RabbitMq::shared().fresh_vhost();
    on_url(RabbitMq::shared().url_for(&vhost), vhost)
}

pub fn client_over_the_rabbitmq_backend() -> after::Place {
    let vhost = RabbitMq::shared().fresh_vhost();
    let config = RabbitMqConfig::from_url(&RabbitMq::shared().url()).expect("valid");
    let backend = Arc::new(RabbitMqBackend::new(config));
    let login = guest(&vhost);
    let connect = move || {
        let (backend, login) = (backend.clone(), login.clone());
        Box::pin(client::Connection::over(backend, login, Default::default())) as _
    };
    after::Place { vhost, connect: Box::new(connect) }
}

pub fn client_on_jetstream() -> (NatsServer, after::Place) {
    let server = NatsServer::start();
    let place = on_url(server.url(), "/".to_owned());
    (server, place)
}

fn on_url(url: String, vhost: String) -> after::Place {
    let connect = move || {
        let url = url.clone();
        Box::pin(async move { client::Connection::connect(&url, Default::default()).await }) as _
    };
    after::Place { vhost, connect: Box::new(connect) }
}

pub fn guest(vhost: &str) -> Login {
    Login {
        vhost: vhost.to_owned(),
        user: "guest".to_owned(),
        password: "guest".to_owned(),
        certificate: None,
        client_properties: Default::default(),
        peer: "a test".to_owned(),
    }
}
