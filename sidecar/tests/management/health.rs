//! Health checks, and what is said of AMQPS.

use std::path::Path;

use lapin::tcp::OwnedTLSConfig;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};
use test_support::rabbit::RabbitMq;

use crate::api::{Api, Serve};

/// Status, the names of the fields, and the reason.
fn told(api: Api, path: &str) -> (u16, Vec<String>, Value) {
    let (status, document) = api.text("GET", path, "");
    let names = document.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default();
    (status, names, document["reason"].clone())
}

#[test]
fn checks_answer_as_rabbitmqs_do() {
    let serve = Serve::start();
    let (ours, real) = (serve.api(), Api::of(RabbitMq::shared()));
    for path in [
        "/health/checks/alarms",
        "/health/checks/local-alarms",
        "/health/checks/virtual-hosts",
        "/health/checks/node-is-mirror-sync-critical",
        "/health/checks/node-is-quorum-critical",
        "/health/checks/certificate-expiration/4/weeks",
        "/health/checks/certificate-expiration/-1/days",
        "/health/checks/certificate-expiration/x/days",
        "/health/checks/certificate-expiration/1/fortnights",
        "/health/checks/port-listener/1",
        "/health/checks/port-listener/x",
        "/health/checks/protocol-listener/amqp",
        "/health/checks/protocol-listener/amqp091",
        "/health/checks/protocol-listener/http",
        "/health/checks/protocol-listener/amqps",
        "/health/checks/protocol-listener/mqtt",
        "/health/checks/nothing",
        "/health/checks",
        "/healthchecks/node",
        "/healthchecks/node/",
        "/healthchecks/node/other@host",
        "/healthchecks",
        "/aliveness-test/%2F",
        "/aliveness-test/nowhere",
    ] {
        assert_eq!(told(ours, path), told(real, path), "{path}");
    }
    for api in [ours, real] {
        let path = format!("/health/checks/port-listener/{}", api.port);
        assert_eq!(api.get(&path), json!({ "status": "ok", "port": api.port }));
        let node = api.get("/overview")["node"].as_str().expect("a name").to_owned();
        assert_eq!(api.get(&format!("/healthchecks/node/{node}")), json!({ "status": "ok" }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amqps_is_listed_and_its_certificates_are_checked() {
    let file = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/certificates").join(name);
        path.to_str().expect("UTF-8").to_owned()
    };
    let (certificate, key) = (file("server.pem"), file("server.key"));
    let serve = Serve::with(&["--listen-tls", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key]);
    let api = serve.api();
    let address = serve.ready["listen_tls"].as_str().expect("an address");
    let port: u16 = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");

    let ca = std::fs::read_to_string(file("ca.pem")).expect("a certificate");
    let config = OwnedTLSConfig { identity: None, cert_chain: Some(ca) };
    let runtime = lapin::runtime::default_runtime().expect("a runtime");
    let url = format!("amqps://guest:guest@localhost:{port}/%2f");
    let properties = ConnectionProperties::default();
    let connection = Connection::connect_with_config(&url, properties, config, runtime).await.expect("connected");
    let plain = Connection::connect(&serve.amqp(), ConnectionProperties::default()).await.expect("connected");
    let mut encrypted: Vec<bool> = api
        .get("/connections")
        .as_array()
        .expect("a list")
        .iter()
        .map(|connection| connection["ssl"].as_bool().expect("a flag"))
        .collect();
    encrypted.sort_unstable();
    assert_eq!(encrypted, [false, true]);
    drop((connection, plain));

    let listeners = api.get("/overview")["listeners"].clone();
    let amqps = listeners.as_array().expect("a list").iter().find(|listener| listener["protocol"] == "amqp/ssl");
    assert_eq!(amqps.expect("listed")["port"], port);
    assert_eq!(api.get(&format!("/health/checks/port-listener/{port}"))["status"], "ok");
    assert_eq!(api.get("/health/checks/protocol-listener/amqps")["status"], "ok");
    // The tests' certificates are good for a hundred years.
    assert_eq!(api.get("/health/checks/certificate-expiration/1/weeks")["status"], "ok");
    let (status, failed) = api.text("GET", "/health/checks/certificate-expiration/200/years", "");
    assert_eq!((status, &failed["reason"]), (503, &json!("Certificates expiring")));
    assert_eq!(failed["expired"][0]["port"], port);
}
