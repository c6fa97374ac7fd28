//! Several `nats-bridge sidecar --shared` as processes over one RabbitMQ and one NATS account, with applications on each of them. The verdict is
//! computed from what applications wrote down themselves.

#[path = "failover/applications.rs"]
mod applications;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use applications::{Record, consume, declare, produce, verdict};
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::{Value, json};
use test_support::eventually::{eventually, eventually_true};
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// One of several sidecars, which is ended with `kill -9` when it is dropped.
struct Sidecar {
    child: Child,
    log: PathBuf,
    amqp: String,
    http: String,
}

/// What they are between.
struct Ends {
    dir: tempfile::TempDir,
    nats: NatsServer,
    vhost: String,
}

impl Ends {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { dir, nats: NatsServer::start(), vhost: RabbitMq::shared().fresh_vhost() }
    }

    fn sidecar(&self, name: &str) -> Sidecar {
        let in_dir = |what: &str| self.dir.path().join(format!("{name}.{what}"));
        let (log, ready) = (in_dir("log"), in_dir("ready"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_nats-bridge"));
        command.args(["sidecar", "--shared", "--trust-declared", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.args(["--rabbit", &RabbitMq::shared().url_for(&self.vhost), "--nats", &self.nats.url()]);
        command.arg("--ready-file").arg(&ready).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).expect("a log"));
        let mut child = command.spawn().expect("started");
        eventually("it is ready", || {
            let ended = child.try_wait().expect("asked");
            assert!(ended.is_none(), "{name} ended:\n{}", read(&log));
            ready.exists()
        });
        let ready: Value = serde_json::from_str(&read(&ready)).expect("JSON");
        let at = |what: &str| ready[what].as_str().expect("an address").to_owned();
        let amqp = format!("amqp://guest:guest@{}/{}", at("listen"), self.vhost);
        Sidecar { child, log, amqp, http: at("http") }
    }
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

impl Sidecar {
    fn leads(&self) -> bool {
        read(&self.log).contains("this sidecar leads those of its NATS account")
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Its exit code, once it has ended by itself.
    fn ended(&mut self) -> Option<i32> {
        let (child, log) = (&mut self.child, &self.log);
        eventually(&format!("it ends: {}", log.display()), || child.try_wait().expect("asked").is_some());
        self.child.wait().expect("ended").code()
    }

    fn try_ask(&self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let mut socket = TcpStream::connect(&self.http).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let host = &self.http;
        let length = body.len();
        write!(socket, "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let code = head.split(' ').nth(1)?.parse().ok()?;
        Some((code, serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()))))
    }

    /// What it answers, here or through the one that leads.
    fn get(&self, path: &str) -> (u16, Value) {
        self.try_ask("GET", path, &Value::Null).expect("it answers")
    }

    /// Makes a change; gives how long that took, as the sidecar says.
    fn change(&self, path: &str, percent: Option<f64>) -> u64 {
        let mut body = json!({ "by": "test", "reason": "a test" });
        if let Some(percent) = percent {
            (body["percent"], body["force"]) = (percent.into(), true.into());
            body["unrehearsed"] = true.into();
        }
        let (code, answer) = self.try_ask("POST", path, &body).expect("it answers");
        assert_eq!(code, 200, "{answer}");
        answer["took_ms"].as_u64().expect("a time")
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), read(&self.log));
        }
    }
}

async fn connect(sidecar: &Sidecar) -> Connection {
    Connection::connect(&sidecar.amqp, ConnectionProperties::default()).await.expect("connected")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_any_of_three_is_in_force_for_all_and_one_that_leads_and_ends_is_followed() {
    let ends = Ends::new();
    let (mut first, second, third) = (ends.sidecar("first"), ends.sidecar("second"), ends.sidecar("third"));
    assert!(first.leads() && !second.leads() && !third.leads());
    let setup = connect(&third).await;
    declare(&setup.create_channel().await.expect("channel")).await;
    let record = Arc::new(Record::default());
    let consumer = tokio::spawn(consume(second.amqp.clone(), record.clone()));
    let producer = tokio::spawn(produce(third.amqp.clone(), record.clone()));
    record.more(100).await;
    second.change("/shadow", None);
    let mut longest = 0;
    for (sidecar, percent) in [(&second, 5.0), (&third, 60.0), (&first, 25.0), (&third, 100.0), (&second, 50.0)] {
        record.more(100).await;
        longest = longest.max(sidecar.change("/weight", Some(percent)));
    }
    println!("the slowest change took {longest} ms");
    assert!(longest < 1_000, "a change took {longest} ms");
    record.more(100).await;
    assert_eq!(record.connected.load(Ordering::Relaxed), 2, "no connection was lost");
    verdict(&record, true);

    // Everyone says who lives, and what follows what.
    eventually("all three are listed with the epoch in force", || {
        [&first, &second, &third].iter().all(|sidecar| {
            let (_, status) = sidecar.get("/status");
            let all = status["sidecars"].as_array().cloned().unwrap_or_default();
            all.len() == 3 && all[0]["leads"] == true && all.iter().all(|one| one["epoch"] == status["epoch"])
        })
    });
    let (code, ready) = second.get("/readyz");
    assert_eq!((code, &ready["ready"]), (200, &json!(true)), "{ready}");
    assert!(ready["follows"].as_str().is_some_and(|who| who.contains(&first.child.id().to_string())), "{ready}");
    assert!(second.get("/metrics").1.as_str().is_some_and(|text| text.contains("natsbridge_sidecar_leads 0")));
    assert!(second.get("/").1.as_str().is_some_and(|page| page.contains("<script>")));
    let (_, before) = second.get("/status");

    first.signal("KILL");
    first.ended();
    eventually("another one leads", || second.leads() || third.leads());
    record.more(200).await;
    let (mut next, mut last) = if second.leads() { (second, third) } else { (third, second) };
    eventually("it answers", || next.try_ask("GET", "/status", &Value::Null).is_some_and(|(code, _)| code == 200));
    let (_, after) = last.get("/status");
    assert_eq!(after["weight_percent"], before["weight_percent"]);
    assert!(after["epoch"].as_u64() > before["epoch"].as_u64(), "the successor has raised the epoch");
    last.change("/weight", Some(75.0));
    record.more(100).await;

    next.signal("TERM");
    assert_eq!(next.ended(), Some(0), "{}", read(&next.log));
    eventually("the last one leads", || last.leads());
    // Applications of the one that has gone come to the one that is left.
    record.stop.store(true, Ordering::Relaxed);
    producer.abort();
    consumer.abort();
    let rest = tokio::spawn(consume(last.amqp.clone(), record.clone()));
    eventually_true("all that was confirmed is done", || async { record.left() == 0 }).await;
    rest.abort();
    verdict(&record, false);
    last.signal("TERM");
    assert_eq!(last.ended(), Some(0), "{}", read(&last.log));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_leads_and_stands_still_is_followed_and_touches_nothing_when_it_wakes_up() {
    let ends = Ends::new();
    let (mut asleep, next) = (ends.sidecar("asleep"), ends.sidecar("next"));
    let setup = connect(&asleep).await;
    let channel = setup.create_channel().await.expect("channel");
    declare(&channel).await;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("late".into(), durable, FieldTable::default()).await.expect("declared");
    let record = Arc::new(Record::default());
    let consumer = tokio::spawn(consume(next.amqp.clone(), record.clone()));
    let producer = tokio::spawn(produce(next.amqp.clone(), record.clone()));
    next.change("/shadow", None);
    next.change("/weight", Some(50.0));
    record.more(200).await;

    asleep.signal("STOP");
    let stat = format!("/proc/{}/stat", asleep.child.id());
    eventually("it stands still", || {
        read(Path::new(&stat)).rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    });
    // The sidecar finds it in its socket when it wakes up.
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default().with_delivery_mode(2));
    let late = channel.basic_publish("".into(), "late".into(), options, b"too late", properties).await;
    late.expect("it is on its way");
    // RabbitMQ takes its connection for lost after 6 to 9 s, and the lock has to be another's for 7 s.
    let woken = Instant::now() + Duration::from_secs(60);
    while !next.leads() {
        assert!(Instant::now() < woken, "nobody leads:\n{}", read(&next.log));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    record.more(200).await;
    asleep.signal("CONT");
    assert_eq!(asleep.ended(), Some(2), "{}", read(&asleep.log));
    record.more(100).await;
    let after = connect(&next).await;
    let channel = after.create_channel().await.expect("channel");
    let late = channel.queue_declare("late".into(), durable, FieldTable::default()).await.expect("declared");
    assert_eq!(late.message_count(), 0, "it was passed on by one that had lost its place");

    record.stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(60), producer).await.expect("in time").expect("ended well");
    eventually_true("all that was confirmed is done", || async { record.left() == 0 }).await;
    consumer.abort();
    verdict(&record, false);
}
