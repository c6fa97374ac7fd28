//! `nats-bridge serve` and `sidecar` as processes: one at a time serves a NATS account, and RabbitMQ is tried at the start.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

/// The longest that a process may take to get ready, to be refused, or to end.
const CAP: Duration = Duration::from_secs(60);

/// A gateway that is ended with `kill -9` when it is dropped.
struct Gateway {
    child: Child,
    log: std::path::PathBuf,
    ready: std::path::PathBuf,
}

impl Gateway {
    /// Starts a gateway; its files in `dir` begin with `name`.
    fn start(dir: &Path, name: &str, arguments: &[&str]) -> Self {
        let (log, ready) = (dir.join(format!("{name}.log")), dir.join(format!("{name}.ready")));
        let file = File::create(&log).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_nats-bridge"));
        command.args(arguments).args(["--listen", "127.0.0.1:0", "--ready-file"]).arg(&ready);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Self { child: command.spawn().expect("started"), log, ready }
    }

    fn serve(dir: &Path, name: &str, nats: &NatsServer) -> Self {
        Self::start(dir, name, &["serve", "--nats", &nats.url()])
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn is_ready(&self) -> bool {
        self.ready.exists()
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + CAP;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "not within {CAP:?}: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ready(mut self) -> Self {
        self.until("ready", |gateway| {
            assert!(gateway.child.try_wait().expect("asked").is_none(), "it ended:\n{}", gateway.log());
            gateway.is_ready()
        });
        self
    }

    /// Its exit code, once it has ended by itself.
    fn ended(&mut self) -> Option<i32> {
        self.until("ended", |gateway| gateway.child.try_wait().expect("asked").is_some());
        self.child.wait().expect("ended").code()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_second_gateway_is_refused_and_told_who_serves() {
    let (nats, dir) = (NatsServer::start(), tempfile::tempdir().expect("a directory"));
    let first = Gateway::serve(dir.path(), "first", &nats).ready();
    let pid = first.child.id();
    let mut serve = Gateway::serve(dir.path(), "second", &nats);
    let arguments = ["sidecar", "--rabbit", "amqp://127.0.0.1:1", "--nats", &nats.url(), "--http", "127.0.0.1:0"];
    let mut sidecar = Gateway::start(dir.path(), "third", &arguments);
    for second in [&mut serve, &mut sidecar] {
        assert_eq!(second.ended(), Some(2), "{}", second.log());
        let log = second.log();
        assert!(log.contains("WARN") && log.contains("waiting up to"), "{log}");
        assert!(log.contains(&format!("another gateway serves this NATS account: process {pid} on ")), "{log}");
        assert!(log.contains("stop that one, or give this one a NATS account of its own"), "{log}");
        assert!(!second.is_ready());
    }
    assert!(first.is_ready());
}

#[test]
fn a_gateway_that_was_stopped_or_killed_is_followed_at_once() {
    let (nats, dir) = (NatsServer::start(), tempfile::tempdir().expect("a directory"));
    let mut stopped = Gateway::serve(dir.path(), "stopped", &nats).ready();
    stopped.signal("TERM");
    assert_eq!(stopped.ended(), Some(0));
    let mut killed = Gateway::serve(dir.path(), "killed", &nats).ready();
    assert!(!killed.log().contains("another gateway"), "{}", killed.log());
    killed.signal("KILL");
    assert_eq!(killed.ended(), None);
    let next = Gateway::serve(dir.path(), "next", &nats).ready();
    // Its process is known to be gone, so that nobody has waited.
    assert!(next.log().contains("taking over from a gateway that ended without a word"), "{}", next.log());
    assert!(!next.log().contains("waiting up to"), "{}", next.log());
}

#[test]
fn a_gateway_that_stood_still_is_followed_and_ends_when_it_wakes_up() {
    let (nats, dir) = (NatsServer::start(), tempfile::tempdir().expect("a directory"));
    let mut asleep = Gateway::serve(dir.path(), "asleep", &nats).ready();
    asleep.signal("STOP");
    let mut next = Gateway::serve(dir.path(), "next", &nats).ready();
    assert!(next.log().contains("waiting up to 10 s for it to end"), "{}", next.log());
    asleep.signal("CONT");
    assert_eq!(asleep.ended(), Some(2));
    let log = asleep.log();
    assert!(log.contains(&format!("has taken the NATS account over (process {} on ", next.child.id())), "{log}");
    next.signal("TERM");
    assert_eq!(next.ended(), Some(0), "{}", next.log());
}

#[test]
fn gateways_that_share_the_account_serve_it_together_and_one_that_does_not_is_refused() {
    let (nats, dir) = (NatsServer::start(), tempfile::tempdir().expect("a directory"));
    let shared = ["serve", "--shared", "--nats", &nats.url()];
    let first = Gateway::start(dir.path(), "first", &shared).ready();
    let mut second = Gateway::start(dir.path(), "second", &shared).ready();
    assert!(first.log().contains("this gateway leads"), "{}", first.log());
    let mut alone = Gateway::serve(dir.path(), "alone", &nats);
    assert_eq!(alone.ended(), Some(2), "{}", alone.log());
    let said = format!("another gateway serves this NATS account: process {} on ", first.child.id());
    assert!(alone.log().contains(&said), "{}", alone.log());
    first.signal("KILL");
    second.until("it leads", |second| second.log().contains("this gateway leads"));
    let mut third = Gateway::start(dir.path(), "third", &shared).ready();
    third.signal("TERM");
    assert_eq!(third.ended(), Some(0), "{}", third.log());
    second.signal("TERM");
    assert_eq!(second.ended(), Some(0), "{}", second.log());
    // Everything was given back.
    let next = Gateway::serve(dir.path(), "next", &nats).ready();
    assert!(!next.log().contains("another gateway"), "{}", next.log());
}

#[test]
fn a_sidecar_that_rabbitmq_does_not_let_in_ends_before_it_is_ready_and_names_the_flag() {
    let (nats, dir) = (NatsServer::start(), tempfile::tempdir().expect("a directory"));
    let rabbit = RabbitMq::shared();
    let at = format!("127.0.0.1:{}", rabbit.port());
    for (name, url, said) in [
        ("login", format!("amqp://guest:wrong@{at}"), "refused user 'guest' of that URL: ACCESS_REFUSED"),
        ("vhost", format!("amqp://guest:guest@{at}/nowhere"), "refused user 'guest' of that URL: NOT_ALLOWED"),
    ] {
        let arguments = ["sidecar", "--rabbit", &url, "--nats", &nats.url(), "--http", "127.0.0.1:0"];
        let mut sidecar = Gateway::start(dir.path(), name, &arguments);
        assert_eq!(sidecar.ended(), Some(2), "{}", sidecar.log());
        let log = sidecar.log();
        assert!(log.contains(&format!("error: --rabbit amqp://{at}: RabbitMQ {said}")), "{log}");
        assert!(log.contains("amqp://USER:PASSWORD@HOST:PORT/VHOST") && !log.contains("wrong"), "{log}");
        assert!(!sidecar.is_ready());
    }
}

#[test]
fn a_sidecar_starts_without_a_rabbitmq_and_says_so() {
    let (nats, dir) = (NatsServer::start(), tempfile::tempdir().expect("a directory"));
    let arguments = ["sidecar", "--rabbit", "amqp://127.0.0.1:1", "--nats", &nats.url(), "--http", "127.0.0.1:0"];
    let mut sidecar = Gateway::start(dir.path(), "sidecar", &arguments).ready();
    let log = sidecar.log();
    assert!(log.contains("WARN") && log.contains("rabbit amqp://127.0.0.1:1: RabbitMQ does not answer"), "{log}");
    sidecar.signal("TERM");
    assert_eq!(sidecar.ended(), Some(0), "{}", sidecar.log());
}
