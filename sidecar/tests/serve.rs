//! `nats-bridge serve --embedded` as a process: what a newcomer starts, and what happens when parts of it die.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::Value;
use test_support::eventually::eventually_some;

struct Serve {
    child: Child,
    ready: Value,
}

impl Serve {
    fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    fn start_with(dir: &Path, more: &[&str]) -> Self {
        let file = dir.join("ready.json");
        // That of a killed one.
        let _ = std::fs::remove_file(&file);
        let more = [&["--ready-file", file.to_str().expect("UTF-8")], more].concat();
        let mut child = command(dir, &more).spawn().expect("started");
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            if let Ok(text) = std::fs::read(&file) {
                let ready = serde_json::from_slice(&text).expect("a ready file is written whole");
                return Self { child, ready };
            }
            assert!(child.try_wait().expect("asked").is_none(), "it ended");
            assert!(Instant::now() < deadline, "not ready within 15 s");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    async fn channel(&self) -> (Connection, Channel) {
        let uri = format!("amqp://guest:guest@{}/%2f", self.ready["listen"].as_str().expect("an address"));
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await.expect("connected");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm mode");
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare("q".into(), durable, FieldTable::default()).await.expect("a queue");
        (connection, channel)
    }

    /// Ends it with a signal and answers its exit code.
    fn end(mut self, signal: &str) -> Option<i32> {
        send(signal, self.child.id());
        self.child.wait().expect("waited").code()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            send("TERM", self.child.id());
            let _ = self.child.wait();
        }
    }
}

fn http(address: &Value, path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address.as_str().expect("an address")).expect("connected");
    write!(socket, "GET {path} HTTP/1.0\r\n\r\n").expect("written");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("read");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, text)
}

fn command(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nats-bridge"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--embedded"]).arg(dir.join("store")).args(more);
    // A file and not a pipe: one that nobody reads would block it.
    let log = File::options().create(true).append(true).open(dir.join("log")).expect("a log");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

/// The lines of the log that hold `text`.
fn logged(dir: &Path, text: &str) -> Vec<String> {
    let log = std::fs::read_to_string(dir.join("log")).expect("a log");
    log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().expect("kill runs");
    assert!(sent.success(), "kill -{signal} {pid}");
}

async fn publish(channel: &Channel, body: &str) {
    let confirm = channel
        .basic_publish("".into(), "q".into(), BasicPublishOptions::default(), body.as_bytes(), persistent())
        .await
        .expect("published")
        .await
        .expect("confirmed");
    assert!(confirm.is_ack());
}

fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

async fn get(channel: &Channel) -> Option<String> {
    let message = channel.basic_get("q".into(), BasicGetOptions::default()).await.expect("an answer")?;
    message.delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledged");
    Some(String::from_utf8(message.delivery.data.to_vec()).expect("UTF-8"))
}

fn nats_pid(dir: &Path) -> u32 {
    let text = std::fs::read_to_string(dir.join("store/nats-server.pid")).expect("a pid file");
    text.trim().parse().expect("a process id")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_outlive_a_stop_and_a_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = Serve::start(dir.path());
    let (_connection, channel) = serve.channel().await;
    publish(&channel, "kept").await;
    assert_eq!(serve.end("TERM"), Some(0));
    assert!(!dir.path().join("ready.json").exists(), "nobody is ready any more");
    let serve = Serve::start(dir.path());
    let (_connection, channel) = serve.channel().await;
    assert_eq!(get(&channel).await.as_deref(), Some("kept"));
    assert_eq!(serve.end("INT"), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_tell_whether_nats_answers_and_metrics_what_was_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = Serve::start_with(dir.path(), &["--http", "127.0.0.1:0"]);
    let address = &serve.ready["http"];
    assert_eq!((http(address, "/livez").0, http(address, "/readyz").0, http(address, "/status").0), (200, 200, 404));
    let (_connection, channel) = serve.channel().await;
    publish(&channel, "17").await;
    let counted = async |line: &str| {
        let figure = || async {
            let metrics = http(address, "/metrics").1;
            let (_, rest) = metrics.split_once(&format!("\n{line} "))?;
            let figure: f64 = rest.lines().next().and_then(|figure| figure.parse().ok()).expect("a figure");
            Some(figure).filter(|figure| *figure > 0.0)
        };
        eventually_some(line, figure).await
    };
    assert_eq!(counted("natsbridge_amqp_published_total").await, 1.0);
    assert_eq!(counted("natsbridge_publish_connection_up").await, 1.0);
    assert!(!http(address, "/metrics").1.contains("natsbridge_publish_connection_losses_total"));
    // It is started again at once, so it is killed again until it was seen to be away.
    let (mut killed, deadline) = (0, Instant::now() + Duration::from_secs(60));
    loop {
        let pid = nats_pid(dir.path());
        if pid != killed {
            send("KILL", pid);
            killed = pid;
        }
        let (status, text) = http(address, "/readyz");
        if status == 503 {
            assert!(text.contains("nats does not answer"), "{text}");
            break;
        }
        assert!(Instant::now() < deadline, "{text}");
    }
    while http(address, "/readyz").0 != 200 {
        assert!(Instant::now() < deadline, "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(counted("natsbridge_publish_connection_losses_total").await >= 1.0);
    publish(&channel, "18").await;
    assert_eq!(counted("natsbridge_publish_connection_up").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_server_that_dies_is_started_again_and_clients_stay_connected() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = Serve::start(dir.path());
    let (_connection, channel) = serve.channel().await;
    publish(&channel, "before").await;
    send("KILL", nats_pid(dir.path()));
    publish(&channel, "after").await;
    assert_eq!(get(&channel).await.as_deref(), Some("before"));
    assert_eq!(get(&channel).await.as_deref(), Some("after"));
    assert_eq!(serve.end("TERM"), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_after_a_kill_takes_the_store_over_from_the_server_that_was_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = Serve::start(dir.path());
    let (_connection, channel) = serve.channel().await;
    publish(&channel, "kept").await;
    let left = nats_pid(dir.path());
    assert_eq!(serve.end("KILL"), None);
    let serve = Serve::start(dir.path());
    assert_ne!(nats_pid(dir.path()), left);
    let (_connection, channel) = serve.channel().await;
    assert_eq!(get(&channel).await.as_deref(), Some("kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_a_delivery_too_long_loses_its_channel_and_the_message_goes_to_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = Serve::start_with(dir.path(), &["--consumer-timeout", "700ms"]);
    let (connection, channel) = serve.channel().await;
    let patient = connection.create_channel().await.expect("a channel");
    let hour = FieldTable::from(BTreeMap::from([("x-consumer-timeout".into(), AMQPValue::LongInt(3_600_000))]));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    patient.queue_declare("slow".into(), durable, hour).await.expect("a queue");
    publish(&channel, "kept too long").await;
    let to_slow = BasicPublishOptions::default();
    channel.basic_publish("".into(), "slow".into(), to_slow, b"job", persistent()).await.expect("published");
    let mut kept = None;
    let deadline = Instant::now() + Duration::from_secs(20);
    while kept.is_none() && Instant::now() < deadline {
        kept = patient.basic_get("slow".into(), BasicGetOptions::default()).await.expect("an answer");
    }
    let kept = kept.expect("stored");
    let held = channel.basic_get("q".into(), BasicGetOptions::default()).await.expect("an answer").expect("a message");

    let other = connection.create_channel().await.expect("a channel");
    let again = loop {
        match other.basic_get("q".into(), BasicGetOptions::default()).await.expect("an answer") {
            Some(message) => break message,
            None => assert!(Instant::now() < deadline, "it does not come back"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(again.delivery.redelivered);
    again.delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledged");
    let refused = held.delivery.acker.ack(BasicAckOptions::default()).await;
    assert!(refused.is_err() || !channel.status().connected(), "its channel is closed");
    kept.delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledged");
    assert!(patient.status().connected(), "its queue gives it an hour");
    let closed = logged(dir.path(), "AMQP channel closed for an error");
    let [line] = &closed[..] else { panic!("{closed:?}") };
    let text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 700 ms. ";
    assert!(line.contains(text), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_are_refused_is_logged_with_its_name_and_a_way_out_and_repetitions_are_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = Serve::start(dir.path());
    let unique = || FieldTable::from(BTreeMap::from([("x-message-deduplication".into(), AMQPValue::LongInt(5))]));
    for _ in 0..3 {
        let (_connection, channel) = serve.channel().await;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let refused = channel.queue_declare("orders".into(), durable, unique()).await.expect_err("refused").to_string();
        assert!(
            refused.contains("argument 'x-message-deduplication' of queue 'orders' in vhost '/' is not implemented"),
            "{refused}"
        );
        assert!(refused.contains("see docs/mapping.md"), "{refused}");
    }
    let (connection, _channel) = serve.channel().await;
    let missing = connection.create_channel().await.expect("a channel");
    missing.basic_get("nothing".into(), BasicGetOptions::default()).await.expect_err("not found");
    let wrong = format!("amqp://guest:wrong@{}/%2f", serve.ready["listen"].as_str().expect("an address"));
    Connection::connect(&wrong, ConnectionProperties::default()).await.expect_err("refused");
    assert_eq!(serve.end("TERM"), Some(0));

    let closed = logged(dir.path(), "AMQP connection closed for an error");
    let [line] = &closed[..] else { panic!("{closed:?}") };
    assert!(line.contains("WARN"), "{line}");
    for text in
        ["peer=127.0.0.1:", "user=\"guest\"", "vhost=\"/\"", "channel=1", "method=\"queue.declare\"", "'orders'"]
    {
        assert!(line.contains(text), "no {text} in {line}");
    }
    let closed = logged(dir.path(), "AMQP channel closed for an error");
    let [line] = &closed[..] else { panic!("{closed:?}") };
    assert!(line.contains("INFO") && line.contains("method=\"basic.get\"") && line.contains("NOT_FOUND"), "{line}");
    let refused = logged(dir.path(), "AMQP connection refused");
    let [line] = &refused[..] else { panic!("{refused:?}") };
    assert!(line.contains("ACCESS_REFUSED") && !line.contains("vhost"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_queues_and_a_clean_stop_log_no_warning() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = Serve::start(dir.path());
    let (_connection, channel) = serve.channel().await;
    let queues: Vec<String> = (0..20).map(|n| format!("q{n}")).collect();
    for queue in &queues {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await.expect("declared");
        let consume = BasicConsumeOptions::default();
        channel
            .basic_consume(queue.as_str().into(), queue.as_str().into(), consume, FieldTable::default())
            .await
            .expect("consuming");
        channel.basic_cancel(queue.as_str().into(), BasicCancelOptions::default()).await.expect("cancelled");
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.expect("deleted");
    }
    assert_eq!(serve.end("INT"), Some(0));
    for level in ["WARN", "ERROR"] {
        assert_eq!(logged(dir.path(), level), Vec::<String>::new());
    }
    assert!(!logged(dir.path(), "stopping").is_empty(), "the log is that of this run");
}

#[test]
fn what_is_wrong_is_named_and_ends_with_code_2() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = Serve::start(dir.path());
    let taken = serve.ready["listen"].as_str().expect("an address").to_owned();
    let check = |arguments: &[&str], expected: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_nats-bridge")).args(arguments).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    };
    let other = dir.path().join("other");
    let other = other.to_str().expect("UTF-8");
    let same = dir.path().join("store");
    let same = same.to_str().expect("UTF-8");
    check(&["serve"], "--embedded <DIR>");
    check(&["serve", "--embedded", same], "another nats-bridge uses this directory");
    check(&["serve", "--embedded", other, "--listen", &taken], &format!("--listen {taken}: "));
    check(&["serve", "--embedded", other, "--listen", &taken], "choose another port");
    check(&["serve", "--embedded", other, "--listen", "banana"], "'banana' for '--listen <HOST:PORT>': ");
    check(&["serve", "--embedded", other, "--listen", "banana"], "HOST:PORT is expected");
    assert!(!Path::new(other).exists(), "nothing was started before the address was known to be good");
    check(&["serve", "--embedded", "/proc/none"], "name a directory that this user can make and write to");
    check(&["serve", "--embedded", other, "--listen", "0.0.0.0:0"], "so give --user NAME:PASSWORD");
    check(&["serve", "--embedded", other, "--user", "nobody"], "--user: NAME:PASSWORD is expected");
    check(&["serve", "--embedded", other, "--nats-server", "/no/such"], "--nats-server /no/such");
    check(&["serve", "--nats", "nats://u:p@127.0.0.1:1"], "--nats nats://127.0.0.1:1: no NATS server answers there (");
    check(&["serve", "--nats", "nats://127.0.0.1:1"], "nats-server -js");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delayed_messages_outlive_a_killed_gateway_and_nats_server_and_come_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let serve = Serve::start(dir.path());
    let (_connection, channel) = serve.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-delayed-type".into(), AMQPValue::LongString("fanout".into()));
    let kind = lapin::ExchangeKind::Custom("x-delayed-message".into());
    let durable = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare("d".into(), kind, durable, arguments).await.expect("an exchange");
    let bound = channel.queue_bind("q".into(), "d".into(), "".into(), Default::default(), FieldTable::default()).await;
    bound.expect("bound");
    const COUNT: i32 = 30;
    for n in 0..COUNT {
        let mut headers = FieldTable::default();
        // None is under way when they are killed: of one that is, a killed nats-server may forget that it has it.
        headers.insert("x-delay".into(), AMQPValue::LongInt(4000 + n * 20));
        let (options, properties) = (BasicPublishOptions::default(), persistent().with_headers(headers));
        let body = n.to_string();
        let sent = channel.basic_publish("d".into(), "".into(), options, body.as_bytes(), properties).await;
        assert!(sent.expect("published").await.expect("confirmed").is_ack());
    }
    let nats = nats_pid(dir.path());
    assert_eq!(serve.end("KILL"), None);
    send("KILL", nats);
    let serve = Serve::start(dir.path());
    let (_connection, channel) = serve.channel().await;
    let mut seen = BTreeMap::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    while seen.len() < COUNT as usize {
        assert!(Instant::now() < deadline, "only {seen:?}");
        match get(&channel).await {
            Some(body) => *seen.entry(body).or_insert(0) += 1,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    assert_eq!(get(&channel).await, None);
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
}
