//! The Rust examples do what they say, on a server of their own.

use std::process::Command;

use test_support::nats::NatsServer;
use test_support::postgres::Postgres;
use test_support::rabbit::RabbitMq;

#[test]
fn hello_proves_its_figures() {
    let nats = NatsServer::start();
    let ran = Command::new(env!("CARGO_BIN_EXE_hello")).arg(nats.url()).output().expect("hello runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    for figure in ["duplicate:     true", "delivered:     1", "dead-lettered: 1"] {
        assert!(said.contains(figure), "no '{figure}' in:\n{said}");
    }
}

#[test]
fn a_program_for_lapin_proves_its_figures_on_jetstream() {
    let nats = NatsServer::start();
    proves_its_figures(&nats.url());
}

#[test]
fn a_program_for_lapin_proves_its_figures_on_rabbitmq() {
    let rabbit = RabbitMq::shared();
    proves_its_figures(&rabbit.url_for(&rabbit.fresh_vhost()));
}

#[test]
fn a_transactional_outbox_sends_what_is_committed() {
    let (nats, database) = (NatsServer::start(), Postgres::start());
    let ran =
        Command::new(env!("CARGO_BIN_EXE_outbox")).args([database.url(), nats.url()]).output().expect("outbox runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    for figure in ["in the table:  2", "in the stream: 2"] {
        assert!(said.contains(figure), "no '{figure}' in:\n{said}");
    }
}

fn proves_its_figures(url: &str) {
    let ran = Command::new(env!("CARGO_BIN_EXE_lapin")).arg(url).output().expect("lapin runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    for figure in ["confirmed: 3", "returned:  1", "delivered: 3"] {
        assert!(said.contains(figure), "no '{figure}' in:\n{said}");
    }
}
