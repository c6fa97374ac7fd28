//! The Rust examples do what they say, on a server of their own.

use std::process::Command;

use test_support::nats::NatsServer;

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
