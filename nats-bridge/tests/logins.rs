//! Each way to log in, and TLS, on a real server that demands it; and what is wrong, told by its field.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nats_bridge::{Bridge, Config, ErrorKind, Login, Message, Retention, StreamSpec};
use nkeys::KeyPair;
use serde_json::json;
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/certificates").join(name)
}

fn config(server: &NatsServer, login: Login) -> Config {
    Config { servers: vec![server.url()], login, connect_timeout: Duration::from_secs(10), ..Config::default() }
}

async fn refused(config: Config) -> nats_bridge::Error {
    Bridge::connect_with(config).await.unwrap_err()
}

async fn works(config: Config) -> Bridge {
    let bridge = Bridge::connect_with(config).await.unwrap();
    let stream =
        StreamSpec { retention: Retention::WorkQueue, max_bytes: Some(1 << 20), ..StreamSpec::new("A", ["a"]) };
    bridge.ensure_stream(&stream).await.unwrap();
    bridge.publish(Message::new("a", "x")).await.unwrap();
    bridge
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

#[tokio::test]
async fn user_and_password_and_a_token_given_or_in_files() {
    let files = Files::new();
    let server = NatsServer::builder().config_line(r#"authorization { user: "app", password: "s3cret" }"#).start();
    let password = |password: &str| Login::Password { user: "app".into(), password: password.into() };
    works(config(&server, password("s3cret"))).await;
    let file = files.write("password", "s3cret\n");
    works(config(&server, Login::PasswordFile { user: "app".into(), file })).await;
    let url = server.url().replace("nats://", "nats://app:s3cret@");
    works(Config { servers: vec![url], ..config(&server, Login::FromUrl) }).await;
    for login in [Login::FromUrl, password("wrong"), Login::Token("s3cret".into())] {
        assert_eq!(refused(config(&server, login)).await.kind(), ErrorKind::Denied);
    }
    let server = NatsServer::builder().config_line(r#"authorization { token: "t0ken" }"#).start();
    works(config(&server, Login::Token("t0ken".into()))).await;
    works(config(&server, Login::TokenFile(files.write("token", " t0ken ")))).await;
    assert_eq!(refused(config(&server, Login::Token("other".into()))).await.kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn an_nkey_given_or_in_a_file() {
    let files = Files::new();
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let line = format!(r#"authorization {{ users: [{{ nkey: "{}" }}] }}"#, user.public_key());
    let server = NatsServer::builder().config_line(line).start();
    let seed = user.seed().unwrap();
    works(config(&server, Login::Nkey(seed.clone()))).await;
    works(config(&server, Login::NkeyFile(files.write("seed", &seed)))).await;
    let other = refused(config(&server, Login::Nkey(stranger.seed().unwrap()))).await;
    assert_eq!(other.kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn a_jwt_and_its_seed_in_a_credentials_file() {
    let files = Files::new();
    let (operator, system, account) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1});
    let account_claims = |kind: &str| json!({"type": kind, "version": 2, "limits": limits});
    let plain = json!({"type": "account", "version": 2, "limits": {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
        "wildcards": true, "conn": -1, "leaf": -1}});
    let lines = [
        format!("operator: {}", jwt(&operator, &operator, json!({"type": "operator", "version": 2}))),
        format!("system_account: {}", system.public_key()),
        "resolver: MEMORY".to_owned(),
        format!(
            "resolver_preload: {{ {}: {}, {}: {} }}",
            system.public_key(),
            jwt(&operator, &system, plain),
            account.public_key(),
            jwt(&operator, &account, account_claims("account"))
        ),
    ];
    let server = lines.into_iter().fold(NatsServer::builder(), |builder, line| builder.config_line(line)).start();
    let claims = json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
    let credentials = |seed: &KeyPair| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\nNOTE: a secret\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(&account, &user, claims.clone()),
            seed.seed().unwrap()
        )
    };
    works(config(&server, Login::CredentialsFile(files.write("right", &credentials(&user))))).await;
    let others = Login::CredentialsFile(files.write("stranger", &credentials(&stranger)));
    assert_eq!(refused(config(&server, others)).await.kind(), ErrorKind::Denied);
}

fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: serde_json::Value) -> String {
    let claims = json!({"jti": "X", "iat": 1_700_000_000, "iss": issuer.public_key(), "name": "test", "sub": subject.public_key(), "nats": nats});
    let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", part(json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn tls_with_and_without_a_certificate_of_ones_own() {
    let tls = |verify: bool| {
        let (cert, key, ca) = (certificate("server.pem"), certificate("server.key"), certificate("ca.pem"));
        NatsServer::builder()
            .config_line(format!("tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?}, verify: {verify} }}"))
            .start()
    };
    let server = tls(false);
    let trusting = |server: &NatsServer| Config {
        servers: vec![server.url().replace("nats://", "tls://")],
        root_certificates: vec![certificate("ca.pem")],
        require_tls: true,
        ..config(server, Login::FromUrl)
    };
    works(trusting(&server)).await;
    let distrusting = Config { root_certificates: Vec::new(), ..trusting(&server) };
    assert_eq!(refused(distrusting).await.kind(), ErrorKind::Unreachable);
    let plain = NatsServer::start();
    assert_eq!(
        refused(Config { connect_timeout: Duration::from_secs(2), ..trusting(&plain) }).await.kind(),
        ErrorKind::Unreachable
    );

    let server = tls(true);
    let own = Some((certificate("client.pem"), certificate("client.key")));
    works(Config { client_certificate: own, ..trusting(&server) }).await;
    let none = Config { connect_timeout: Duration::from_secs(2), ..trusting(&server) };
    assert!([ErrorKind::Unreachable, ErrorKind::Denied].contains(&refused(none).await.kind()));
}

#[tokio::test]
async fn what_is_wrong_is_told_by_field_and_file_before_anything_is_sent() {
    let files = Files::new();
    let (junk, empty) = (files.write("junk", "junk"), files.write("empty", "\n"));
    let gone = files.0.path().join("gone");
    // Nobody listens there: nothing is asked.
    let base = |login: Login| Config { servers: vec!["nats://127.0.0.1:1".into()], login, ..Config::default() };
    let password = |file: &PathBuf| Login::PasswordFile { user: "app".into(), file: file.clone() };
    let certificates = |certificate: PathBuf, key: PathBuf| Config {
        client_certificate: Some((certificate, key)),
        ..base(Login::FromUrl)
    };
    for (config, field, part) in [
        (base(password(&gone)), "field=password_file", "gone"),
        (base(password(&empty)), "field=password_file", "empty"),
        (base(Login::TokenFile(gone.clone())), "field=token_file", "gone"),
        (base(Login::Nkey("SUX".into())), "field=nkey", "seed"),
        (base(Login::NkeyFile(junk.clone())), "field=nkey_file", "junk"),
        (base(Login::CredentialsFile(gone.clone())), "field=credentials_file", "gone"),
        (base(Login::CredentialsFile(junk.clone())), "field=credentials_file", "JWT"),
        (Config { root_certificates: vec![junk.clone()], ..base(Login::FromUrl) }, "field=root_certificates", "junk"),
        (Config { root_certificates: vec![gone.clone()], ..base(Login::FromUrl) }, "field=root_certificates", "gone"),
        (certificates(gone.clone(), certificate("client.key")), "field=client_certificate", "gone"),
        (certificates(certificate("client.pem"), junk.clone()), "field=client_certificate.key", "junk"),
        (
            certificates(certificate("client.pem"), certificate("stranger.key")),
            "field=client_certificate.key",
            "stranger",
        ),
    ] {
        let error = refused(config).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(field) && error.to_string().contains(part), "{field} {part}: {error}");
        assert!(!error.to_string().contains("SUX"), "{error}");
    }
}

#[tokio::test]
async fn a_secret_that_is_renewed_in_its_file_is_used_for_the_next_connection() {
    let files = Files::new();
    let secret = files.write("token", "first");
    files.write("authorization.conf", r#"authorization { token: "first" }"#);
    // Its own directory, since what is included is looked for beside the configuration.
    let mut server = NatsServer::builder().dir(files.0.path()).config_line("include authorization.conf").start();
    let bridge = works(config(&server, Login::TokenFile(secret))).await;
    let before = bridge.connection().borrow().connects;
    files.write("token", "second");
    files.write("authorization.conf", r#"authorization { token: "second" }"#);
    server.restart();
    eventually_true("it is connected again", || async { bridge.connection().borrow().connects > before }).await;
    bridge.publish(Message::new("a", "y")).await.unwrap();
    assert_eq!(refused(config(&server, Login::Token("first".into()))).await.kind(), ErrorKind::Denied);
}
