//! The bridge as a process, in front of servers of its own: `serve`, or the sidecar at a weight.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::runtime::default_runtime;
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use serde_json::Value;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// A running bridge.
pub struct Place {
    /// What it is, for messages.
    pub name: String,
    /// The sidecar's weight; `None` for `serve`.
    pub weight: Option<u8>,
    vhost: String,
    nats: NatsServer,
    args: Vec<String>,
    dir: tempfile::TempDir,
    child: Child,
    ready: Value,
}

/// Runs a test through `serve`, and through the sidecar at 0, 50 and 100 %.
pub async fn everywhere(test: impl AsyncFn(&mut Place)) {
    for weight in [None, Some(0), Some(50), Some(100)] {
        let mut place = tokio::task::spawn_blocking(move || Place::start(weight)).await.expect("started");
        let tested = tokio::time::timeout(Duration::from_secs(60), test(&mut place)).await;
        tested.unwrap_or_else(|_| panic!("{}: not done within 60 s; its log:\n{}", place.name, place.log()));
    }
}

fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/certificates").join(name)
}

impl Place {
    fn start(weight: Option<u8>) -> Self {
        let nats = NatsServer::start();
        let dir = tempfile::tempdir().expect("a directory");
        // The first of two names leads nowhere: nobody listens there any more.
        let nowhere = TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound");
        let mut args = vec!["--nats".to_owned(), format!("nats://{nowhere},{}", nats.url())];
        let vhost = match weight {
            None => {
                args.insert(0, "serve".to_owned());
                "/".to_owned()
            }
            Some(_) => {
                let rabbit = RabbitMq::shared();
                let vhost = rabbit.fresh_vhost();
                args.insert(0, "sidecar".to_owned());
                args.extend(["--rabbit".to_owned(), rabbit.url_for(&vhost)]);
                args.extend(["--rabbit-management".to_owned(), rabbit.management_url()]);
                vhost
            }
        };
        let free = ["--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        args.extend(free.map(str::to_owned));
        let name = weight.map_or("serve".to_owned(), |weight| format!("the sidecar at {weight} %"));
        let (child, ready) = spawn(&args, dir.path());
        let place = Self { name, weight, vhost, nats, args, dir, child, ready };
        if let Some(weight) = weight.filter(|weight| *weight > 0) {
            place.verb(&["shadow"]).expect("shadow");
            place.verb(&["weight", &weight.to_string(), "--force", "--unrehearsed"]).expect("the weight");
        }
        place
    }

    /// `kill -9` of the bridge and its nats-server, and a new start of both, at the same addresses.
    pub fn kill_9_and_start_again(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.nats.kill_9();
        self.nats.restart();
        for (flag, name) in [("--listen", "listen"), ("--listen-tls", "listen_tls"), ("--http", "http")] {
            let at = self.args.iter().position(|arg| arg == flag).expect("it was given");
            self.args[at + 1] = self.address(name);
        }
        (self.child, self.ready) = spawn(&self.args, self.dir.path());
    }

    fn address(&self, name: &str) -> String {
        self.ready[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.ready)).to_owned()
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@{}/{}", self.address("listen"), self.vhost.replace('/', "%2f"))
    }

    pub fn tls_url(&self) -> String {
        let port = self.address("listen_tls").rsplit(':').next().map(str::to_owned).expect("a port");
        format!("amqps://guest:guest@localhost:{port}/{}", self.vhost.replace('/', "%2f"))
    }

    /// Connects as a client that knows the certificates' issuer.
    pub async fn connect(&self, url: &str) -> Result<Connection, lapin::Error> {
        let issuer = std::fs::read_to_string(certificate("ca.pem")).expect("the issuer's certificate");
        self.connect_with(url, OwnedTLSConfig { identity: None, cert_chain: Some(issuer) }).await
    }

    pub async fn connect_with(&self, url: &str, tls: OwnedTLSConfig) -> Result<Connection, lapin::Error> {
        let runtime = default_runtime().expect("in a runtime");
        Connection::connect_with_config(url, ConnectionProperties::default(), tls, runtime).await
    }

    /// A connection, and a channel of it with confirms.
    pub async fn channel(&self) -> (Connection, Channel) {
        let connection = self.connect(&self.url()).await.expect("connected");
        let channel = confirming(&connection).await;
        (connection, channel)
    }

    /// A verb of the command line.
    pub fn verb(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nats-bridge"));
        let output = command.args(words).args(["--http", &format!("http://{}", self.address("http"))]).output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(said.into_owned()) } else { Err(said.into_owned()) }
    }

    /// What its HTTP answers.
    pub fn http(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.address("http")).expect("connected");
        write!(socket, "GET {path} HTTP/1.0\r\n\r\n").expect("written");
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("read");
        (text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), text)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(args: &[String], dir: &Path) -> (Child, Value) {
    let ready = dir.join("ready.json");
    let _ = std::fs::remove_file(&ready);
    let log = File::options().create(true).append(true).open(dir.join("log")).expect("a log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_nats-bridge"))
        .args(args)
        .arg("--tls-cert")
        .arg(certificate("server.pem"))
        .arg("--tls-key")
        .arg(certificate("server.key"))
        .arg("--ready-file")
        .arg(&ready)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("started");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(text) = std::fs::read(&ready) {
            return (child, serde_json::from_slice(&text).expect("a ready file is written whole"));
        }
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(child.try_wait().expect("asked").is_none(), "it ended: {}", log());
        assert!(Instant::now() < deadline, "not ready within 30 s: {}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A channel with confirms.
pub async fn confirming(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    channel
}

/// A field table.
pub fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// Declares a durable queue, and a topic exchange `to QUEUE` all of which it gets.
pub async fn declare(channel: &Channel, queue: &str, arguments: FieldTable) {
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), durable, arguments).await.expect("a queue");
    let (exchange, durable) = (format!("to {queue}"), ExchangeDeclareOptions { durable: true, ..Default::default() });
    let kind = ExchangeKind::Topic;
    channel
        .exchange_declare(exchange.as_str().into(), kind, durable, FieldTable::default())
        .await
        .expect("an exchange");
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.into(), exchange.as_str().into(), "#".into(), options, arguments).await.expect("bound");
}

/// Publishes numbers to a queue, in turn with ten routing keys, which have both owners at 50 %, and waits for each confirm.
pub async fn publish(channel: &Channel, queue: &str, range: std::ops::Range<u32>, properties: &BasicProperties) {
    for number in range {
        let (exchange, key, body) = (format!("to {queue}"), format!("key.{}", number % 10), number.to_string());
        let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publish = channel.basic_publish(exchange, key, options, body.as_bytes(), properties.clone());
        let confirm = publish.await.expect("published").await.expect("confirmed");
        assert!(confirm.is_ack() && confirm.take_message().is_none(), "{number} was not stored");
    }
}

/// Consumes a queue, at most 100 at once.
pub async fn consume(channel: &Channel, queue: &str) -> Consumer {
    channel.basic_qos(100, BasicQosOptions::default()).await.expect("qos");
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.expect("consuming")
}

/// The number that a message is.
pub fn numbers(data: &[u8]) -> u32 {
    std::str::from_utf8(data).expect("text").parse().expect("a number")
}
