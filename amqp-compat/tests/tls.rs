//! AMQPS: an unmodified client over TLS, logins by certificate, and clients on the wrong port.

use std::path::{Path, PathBuf};
use std::time::Duration;

use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig, User};
use amqp_compat::listener::{Listener, Tls, TlsFiles};
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use nats_bridge::Bridge;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio_util::sync::{CancellationToken, DropGuard};

const PATIENCE: Duration = Duration::from_secs(15);

/// A file of the tests' certificates; `tests/clients/certificates/make.sh` makes them.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/certificates").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).expect("a certificate")
}

/// A listener on JetStream with the users `guest` and `app`, until it is dropped.
struct Served {
    plain: u16,
    tls: u16,
    _nats: NatsServer,
    _stop: DropGuard,
}

async fn serve(files: TlsFiles) -> Served {
    let nats = NatsServer::start();
    let user = |name: &str| User { name: name.into(), password: "secret".into() };
    let config = JetStreamConfig { users: vec![user("guest"), user("app")], ..JetStreamConfig::default() };
    let bridge = Bridge::connect(nats.url()).await.expect("connected");
    let backend = JetStreamBackend::connect(bridge, config).await.expect("loaded");
    let mut listener = Listener::bind("127.0.0.1:0").await.expect("bound");
    let plain = listener.local_addr().expect("bound").port();
    let tls = listener.bind_tls("127.0.0.1:0", Tls::load(files).expect("valid")).await.expect("bound").port();
    let stop = CancellationToken::new();
    tokio::spawn(listener.run(backend, stop.clone()));
    Served { plain, tls, _nats: nats, _stop: stop.drop_guard() }
}

fn files(client_ca: bool) -> TlsFiles {
    let client_ca = client_ca.then(|| file("ca.pem"));
    TlsFiles { certificate: file("server.pem"), key: file("server.key"), client_ca, client_optional: false }
}

async fn connect(url: &str, certificate: Option<&str>) -> Result<Connection, String> {
    let identity = certificate.map(|name| OwnedIdentity::PKCS8 {
        pem: read(&format!("{name}.pem")).into_bytes(),
        key: read(&format!("{name}.key")).into_bytes(),
    });
    let config = OwnedTLSConfig { identity, cert_chain: Some(read("ca.pem")) };
    let runtime = lapin::runtime::default_runtime().expect("a runtime");
    let connecting = Connection::connect_with_config(url, ConnectionProperties::default(), config, runtime);
    let connected = tokio::time::timeout(PATIENCE, connecting).await.expect("an answer in time");
    connected.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmodified_client_works_over_tls() {
    let served = serve(files(false)).await;
    let url = format!("amqps://guest:secret@localhost:{}/%2f", served.tls);
    let connection = connect(&url, None).await.expect("connected");
    let channel = connection.create_channel().await.expect("opened");
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare("q".into(), durable, FieldTable::default()).await.expect("declared");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    // More than TLS and the socket hold at once.
    let body: Vec<u8> = (0..700_000u32).map(|n| n.to_le_bytes()[0]).collect();
    for _ in 0..20 {
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish("".into(), "q".into(), options, &body, BasicProperties::default()).await;
        assert!(sent.expect("sent").await.expect("confirmed").is_ack());
    }
    for _ in 0..20 {
        let options = BasicGetOptions { no_ack: true };
        let got = tokio::time::timeout(PATIENCE, channel.basic_get("q".into(), options)).await.expect("in time");
        assert!(got.expect("an answer").expect("a message").delivery.data == body);
    }
    let wrong = connect(&url.replace("secret", "wrong"), None).await.expect_err("the password counts");
    assert!(wrong.contains("403") || wrong.contains("ACCESS_REFUSED"), "{wrong}");
    let external = connect(&format!("{url}?auth_mechanism=external"), None).await;
    assert!(external.is_err(), "nobody has shown a certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_certificates_are_demanded_they_are_the_login() {
    let served = serve(files(true)).await;
    // The name and password of the URL are not used.
    let url = format!("amqps://x:x@localhost:{}/%2f?auth_mechanism=external", served.tls);
    let connection = connect(&url, Some("client")).await.expect("logged in as app");
    let channel = connection.create_channel().await.expect("opened");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("selected");
    // The broker knows the user by the name in the certificate.
    let properties = BasicProperties::default().with_user_id("app".into());
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish("".into(), "nowhere".into(), options, b"", properties).await;
    assert!(sent.expect("sent").await.expect("confirmed").is_ack());
    let properties = BasicProperties::default().with_user_id("guest".into());
    let sent = channel.basic_publish("".into(), "nowhere".into(), options, b"", properties).await;
    assert!(sent.expect("sent").await.is_err(), "not its name");

    // A certificate and a password.
    let plain = format!("amqps://guest:secret@localhost:{}/%2f", served.tls);
    connect(&plain, Some("client")).await.expect("logged in as guest");
    assert!(connect(&plain, None).await.is_err(), "without a certificate");
    assert!(connect(&url, Some("stranger")).await.is_err(), "of another CA");
}

/// RabbitMQ's `verify_peer` with `fail_if_no_peer_cert = false`.
#[tokio::test(flavor = "multi_thread")]
async fn where_certificates_are_optional_one_that_is_shown_has_to_be_right() {
    let served = serve(TlsFiles { client_optional: true, ..files(true) }).await;
    let plain = format!("amqps://guest:secret@localhost:{}/%2f", served.tls);
    connect(&plain, None).await.expect("logged in as guest, without a certificate");
    connect(&plain, Some("client")).await.expect("logged in as guest, with one");
    assert!(connect(&plain, Some("stranger")).await.is_err(), "of another CA");
    let external = plain.replace("guest:secret", "x:x") + "?auth_mechanism=external";
    connect(&external, Some("client")).await.expect("logged in as app");
    assert!(connect(&external, None).await.is_err(), "nobody has shown a certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renewed_is_in_force_without_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = |name: &str| dir.path().join(name);
    let install = |from: &str| {
        std::fs::copy(file(&format!("{from}.key")), place("key")).expect("copied");
        std::fs::copy(file(&format!("{from}.pem")), place("certificate")).expect("copied");
    };
    install("server");
    let served = serve(TlsFiles {
        certificate: place("certificate"),
        key: place("key"),
        client_ca: None,
        client_optional: false,
    })
    .await;
    let shown = async || {
        let stream = tls_stream(served.tls).await;
        let certificates = stream.get_ref().1.peer_certificates().expect("a certificate");
        certificates[0].to_vec()
    };
    let of = |name: &str| CertificateDer::from_pem_file(file(name)).expect("a certificate").to_vec();
    assert_eq!(shown().await, of("server.pem"));
    install("server-renewed");
    eventually_true("the new certificate is shown", || async { shown().await == of("server-renewed.pem") }).await;
}

async fn tls_stream(port: u16) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.pem")).expect("a certificate")).expect("valid");
    let config = ClientConfig::builder_with_provider(std::sync::Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.expect("shaken hands")
}

/// What a server says to these bytes until it closes.
async fn answer(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).await.expect("written");
    let mut answer = Vec::new();
    let closing = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // Closed with an error is closed.
    drop(closing.expect("closed in time"));
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_another_protocol_is_told_and_does_not_wait() {
    let served = serve(files(false)).await;
    const OURS: &[u8] = b"AMQP\x00\x00\x09\x01";
    let plain = async |port| TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    assert_eq!(answer(plain(served.tls).await, OURS).await, b"", "plain text on the port for TLS");
    let hello = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00";
    assert_eq!(answer(plain(served.plain).await, hello).await, OURS, "TLS on the port for plain text");
    for version in [&b"AMQP\x00\x01\x00\x00"[..], b"AMQP\x03\x01\x00\x00", b"AMQP\x02\x01\x00\x00"] {
        assert_eq!(answer(tls_stream(served.tls).await, version).await, OURS, "AMQP 1.0");
        assert_eq!(answer(plain(served.plain).await, version).await, OURS, "AMQP 1.0");
    }
    // Neither of them has disturbed anybody.
    let url = format!("amqps://guest:secret@localhost:{}/%2f", served.tls);
    connect(&url, None).await.expect("connected");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let load = |files| Tls::load(files).expect_err("refused").to_string();
    let missing = load(TlsFiles { certificate: file("none.pem"), ..files(false) });
    assert!(missing.contains("none.pem"), "{missing}");
    let empty = load(TlsFiles { certificate: file("server.key"), ..files(false) });
    assert!(empty.contains("server.key: no certificate in it"), "{empty}");
    let no_key = load(TlsFiles { key: file("server.pem"), ..files(false) });
    assert!(no_key.contains("server.pem: "), "{no_key}");
    let other = load(TlsFiles { key: file("client.key"), ..files(false) });
    assert!(other.contains("server.pem: "), "{other}");
    let no_ca = load(TlsFiles { client_ca: Some(file("server.key")), ..files(false) });
    assert!(no_ca.contains("server.key: no certificate in it"), "{no_ca}");
}
