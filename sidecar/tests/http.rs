//! The HTTP surface and the command line verbs, over a cutover that the test plays.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde_json::{Value, json};
use sidecar::control_api::*;
use sidecar::http::{Options, Surface};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// A cutover that does what it is told, and notes what it was told.
struct Played {
    status: Mutex<Status>,
    refuse: Option<Refused>,
    /// What the gate has against going on.
    against: Vec<Reason>,
    told: Mutex<Vec<Change>>,
}

impl Played {
    fn new() -> Self {
        let side = |url: &str| Side { connected: true, url: url.to_owned(), ..Default::default() };
        let status = Status {
            phase: Phase::Observe,
            weight_percent: Weight::NONE,
            epoch: 1,
            by: "start".to_owned(),
            reason: String::new(),
            at: "2030-01-01T00:00:00Z".to_owned(),
            draining: false,
            sides: Sides { rabbit: side("amqp://rabbit:5672"), nats: side("nats://nats:4222") },
            connections: 3,
            queues: vec![QueueStatus {
                vhost: "/".to_owned(),
                name: "orders".to_owned(),
                rabbit_ready: Some(4),
                nats_ready: None,
                rabbit_unsettled: 1,
                nats_unsettled: 0,
                held: 0,
                fence: FenceState::None,
                consumers: 1,
            }],
            parity: vec![QueueParity {
                vhost: "/".to_owned(),
                queue: "orders".to_owned(),
                counts: ParityCounts { matched: 12, unverified: 1, ..Default::default() },
                unverified_by: [("copy_failed".to_owned(), 1)].into(),
                samples: Vec::new(),
            }],
            unmapped: Vec::new(),
            warnings: vec![Warning { code: "hold_timed_out".to_owned(), count: 2, text: "orders".to_owned() }],
            standby_lag: 9,
            standby: None,
            standby_rabbit: None,
            losing: None,
            rehearsal: None,
            backfill: None,
            faults: Faults::default(),
            rolled_back: None,
            sidecars: Vec::new(),
        };
        Self { status: Mutex::new(status), refuse: None, against: Vec::new(), told: Mutex::default() }
    }

    fn refusing(refused: Refused) -> Self {
        Self { refuse: Some(refused), ..Self::new() }
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Status> {
        self.status.lock().expect("no test panics with it")
    }
}

/// A change as it is told, but for the port that it came from.
fn change(to: Target, by: &str, reason: &str) -> Change {
    let (by, reason, from) = (by.to_owned(), reason.to_owned(), String::new());
    Change { to, by, reason, force: false, unrehearsed: false, from }
}

#[async_trait]
impl Control for Played {
    async fn status(&self) -> Status {
        self.now().clone()
    }

    async fn failover(self: Arc<Self>, asked: Failover) -> Result<FailoverReport, Refused> {
        if let Some(refused) = &self.refuse {
            return Err(refused.clone());
        }
        Ok(FailoverReport { lost: asked.lost, executed: asked.execute, copies: 7, ..FailoverReport::default() })
    }

    async fn failover_status(&self) -> Option<FailoverReport> {
        None
    }

    async fn backfill(self: Arc<Self>, asked: Backfill) -> Result<BackfillReport, Refused> {
        if let Some(refused) = &self.refuse {
            return Err(refused.clone());
        }
        Ok(BackfillReport { dry_run: asked.dry_run, by: asked.by, ..BackfillReport::default() })
    }

    async fn backfill_status(&self) -> Option<BackfillReport> {
        None
    }

    async fn rehearse(self: Arc<Self>, asked: Rehearse) -> Result<Rehearsal, Refused> {
        Ok(Rehearsal { by: asked.by, passed: true, ..Rehearsal::default() })
    }

    async fn rehearsal(&self) -> Option<Rehearsal> {
        None
    }

    async fn log(&self, last: u64) -> Result<Vec<LogEntry>, Refused> {
        let entry = LogEntry {
            number: last,
            at: "2030-01-01T00:00:00Z".to_owned(),
            what: "shadow".to_owned(),
            outcome: Outcome::Done,
            by: "ann".to_owned(),
            from: "127.0.0.1:9".to_owned(),
            reason: "why".to_owned(),
            host: "here".to_owned(),
            phase: Phase::Shadow,
            weight_percent: Weight::NONE,
            epoch: 2,
            forced: false,
            automatic: false,
            detail: String::new(),
        };
        Ok(vec![entry])
    }

    async fn change(&self, request: Change) -> Result<Adopted, Refused> {
        assert!(request.from.starts_with("127.0.0.1:"), "{request:?}");
        self.told.lock().expect("no test panics with it").push(Change { from: String::new(), ..request.clone() });
        if let Some(refused) = &self.refuse {
            return Err(refused.clone());
        }
        let mut status = self.now();
        let (phase, weight) = match request.to {
            Target::Observe => (Phase::Observe, Weight::NONE),
            Target::Shadow | Target::Rollback => (Phase::Shadow, Weight::NONE),
            Target::Weight(Weight::ALL) => (Phase::Cutover, Weight::ALL),
            Target::Weight(weight) => (Phase::Canary, weight),
            Target::Detach => (Phase::Native, Weight::ALL),
        };
        let changed = (status.phase, status.weight_percent) != (phase, weight);
        (status.phase, status.weight_percent) = (phase, weight);
        if changed {
            status.epoch += 1;
            (status.by, status.reason) = (request.by, request.reason);
        }
        let Status { epoch, by, reason, at, .. } = status.clone();
        Ok(Adopted { changed, phase, weight_percent: weight, epoch, by, reason, at, took_ms: 7 })
    }

    async fn gate(&self) -> Verdict {
        let status = self.now();
        let reasons = self.against.clone();
        Verdict {
            may_go_on: reasons.is_empty(),
            phase: status.phase,
            weight_percent: status.weight_percent,
            next: Some("`nats-bridge weight 5`".to_owned()),
            summary: "so it is".to_owned(),
            reasons,
        }
    }

    async fn history(&self) -> History {
        let side =
            SideSample { published_per_s: 2.5, delivered_per_s: 2.0, confirm_p50_ms: Some(1.0), confirm_p99_ms: None };
        let sample = Sample {
            unix: 1_900_000_000,
            weight_percent: 5.0,
            rabbit: side.clone(),
            nats: side,
            unread: 0,
            differences: 0,
            compared: 12,
            faults: 0,
        };
        History { every_seconds: 5, samples: vec![sample] }
    }

    async fn changes(&self) -> Vec<ChangeRecord> {
        let Status { phase, weight_percent, epoch, by, reason, at, .. } = self.now().clone();
        vec![ChangeRecord { epoch, at, phase, weight_percent, by, reason, forced: false, automatic: false }]
    }
}

/// A surface that serves until it is dropped.
struct Running {
    played: Arc<Played>,
    address: SocketAddr,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn serve(played: Played, change: impl FnOnce(&mut Options)) -> Running {
    let (played, shutdown) = (Arc::new(played), CancellationToken::new());
    let surface = Surface::bind("127.0.0.1:0").await.expect("bound");
    let address = surface.local_addr().expect("bound");
    let mut options = Options { control: played.clone(), token: None, metrics: None };
    change(&mut options);
    tokio::spawn(surface.run(options, shutdown.clone()));
    Running { played, address, shutdown }
}

impl Running {
    async fn raw(&self, request: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.address).await.expect("connected");
        socket.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body.to_owned())
    }

    async fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
        let size = body.len();
        let request = format!("{method} {path} HTTP/1.0\r\n{headers}Content-Length: {size}\r\n\r\n{body}");
        let (status, body) = self.raw(&request).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.request("POST", path, "", &body.to_string()).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.request("GET", path, "", "").await
    }

    /// Runs a verb of the real binary against this surface.
    async fn verb(&self, words: &[&str]) -> Ended {
        let address = self.address.to_string();
        run(&[words, &["--http", &address]].concat()).await
    }

    fn told(&self) -> Vec<Change> {
        self.played.told.lock().expect("no test panics with it").clone()
    }
}

/// How a process ended: exit code, stdout, stderr.
type Ended = (i32, String, String);

async fn run(words: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nats-bridge"));
    command.args(words).env_remove("NATS_BRIDGE_HTTP").env_remove("NATS_BRIDGE_HTTP_TOKEN").env("USER", "tester");
    let ended = tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("no panic");
    let Output { status, stdout, stderr } = ended;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code().expect("not killed"), text(stdout), text(stderr))
}

#[tokio::test]
async fn a_change_is_asked_for_as_it_was_sent_and_answered_with_what_is_in_force() {
    let running = serve(Played::new(), |_| ()).await;
    let (status, body) = running.post("/weight", json!({ "percent": 5, "by": "ann", "reason": "canary" })).await;
    assert_eq!(status, 200);
    let expected = json!({
        "changed": true, "phase": "canary", "weight_percent": 5, "epoch": 2, "by": "ann", "reason": "canary",
        "at": "2030-01-01T00:00:00Z", "took_ms": 7
    });
    assert_eq!(body, expected);
    for (path, phase) in
        [("/rollback", "shadow"), ("/observe", "observe"), ("/shadow", "shadow"), ("/detach", "native")]
    {
        let (status, body) = running.request("POST", path, "", "").await;
        assert_eq!((status, &body["phase"]), (200, &json!(phase)), "{path}");
    }
    let five = Target::Weight(Weight::from_percent(5.0).expect("valid"));
    assert_eq!(running.told()[0], change(five, "ann", "canary"));
    let told: Vec<Target> = running.told().iter().map(|change| change.to).collect();
    assert_eq!(told, [five, Target::Rollback, Target::Observe, Target::Shadow, Target::Detach]);
}

#[tokio::test]
async fn bad_input_is_400_with_the_field_and_reaches_nobody() {
    let running = serve(Played::new(), |_| ()).await;
    for (body, field) in
        [("{}", "percent"), (r#"{"percent":100.01}"#, "percent"), (r#"{"percent":5,"x":1}"#, "x"), ("{", "body")]
    {
        let (status, answer) = running.request("POST", "/weight", "", body).await;
        assert_eq!((status, &answer["code"], &answer["field"]), (400, &json!("invalid"), &json!(field)));
        assert!(answer["fix"].as_str().is_some_and(|fix| !fix.is_empty()));
    }
    assert_eq!(running.get("/weight").await.0, 405);
    assert_eq!(running.get("/nothing").await.0, 404);
    assert_eq!(running.get("/metrics").await.0, 404);
    assert_eq!(running.request("POST", "/shadow", "", &" ".repeat(70_000)).await.0, 413);
    assert!(running.told().is_empty());
}

#[tokio::test]
async fn a_refusal_keeps_its_code_and_its_advice() {
    for (code, http) in [
        (RefusedCode::WrongPhase, 409),
        (RefusedCode::Unmapped, 409),
        (RefusedCode::NotDrained, 409),
        (RefusedCode::Conflict, 409),
        (RefusedCode::SideDown, 503),
        (RefusedCode::Draining, 503),
    ] {
        let refused = Refused::new(code, "because", "do this");
        let running = serve(Played::refusing(refused.clone()), |_| ()).await;
        let (status, body) = running.post("/detach", json!({})).await;
        assert_eq!((status, serde_json::from_value::<Refused>(body).expect("a refusal")), (http, refused));
    }
}

#[tokio::test]
async fn a_token_is_needed_for_changes_where_one_is_set_and_a_web_page_cannot_change_anything() {
    let running = serve(Played::new(), |options| options.token = Some("secret".to_owned())).await;
    assert_eq!(running.post("/shadow", json!({})).await.0, 401);
    assert_eq!(running.request("POST", "/shadow", "Authorization: Bearer wrong\r\n", "").await.0, 401);
    assert!(running.told().is_empty());
    assert_eq!(running.get("/status").await.0, 200);
    assert_eq!(running.request("POST", "/shadow", "Authorization: Bearer secret\r\n", "").await.0, 200);

    let open = serve(Played::new(), |_| ()).await;
    assert_eq!(open.request("POST", "/shadow", "Origin: http://evil.example\r\n", "").await.0, 403);
    assert!(open.told().is_empty());
}

#[tokio::test]
async fn ready_says_which_owner_does_not_answer() {
    let running = serve(Played::new(), |_| ()).await;
    assert_eq!(running.get("/livez").await, (200, json!({ "live": true })));
    for (phase, rabbit, nats, reasons) in [
        (Phase::Observe, true, true, json!([])),
        // The authoritative path does not need it.
        (Phase::Shadow, true, false, json!([])),
        (Phase::Shadow, false, true, json!(["rabbit does not answer"])),
        (Phase::Canary, true, false, json!(["nats does not answer: connection refused"])),
        (Phase::Cutover, false, true, json!(["rabbit does not answer"])),
        (Phase::Native, false, true, json!([])),
    ] {
        {
            let mut status = running.played.now();
            status.phase = phase;
            status.sides.rabbit.connected = rabbit;
            (status.sides.nats.connected, status.sides.nats.error) = (nats, Some("connection refused".to_owned()));
        }
        let (status, body) = running.get("/readyz").await;
        assert_eq!(body["reasons"], reasons, "{phase} {rabbit} {nats}");
        assert_eq!(status, if reasons == json!([]) { 200 } else { 503 });
    }
    running.played.now().draining = true;
    assert_eq!(running.get("/readyz").await.1["reasons"][0], json!("the sidecar is shutting down"));
}

/// The only test that installs a recorder in this process.
#[tokio::test]
async fn metrics_are_what_prometheus_reads_and_carry_no_queue_names() {
    let handle = sidecar::http::metrics::install().expect("the first recorder");
    let running = serve(Played::new(), |options| options.metrics = Some(handle)).await;
    running.post("/weight", json!({ "percent": 25 })).await;
    let (status, text) = running.raw("GET /metrics HTTP/1.0\r\n\r\n").await;
    assert_eq!(status, 200);
    for line in [
        "# TYPE natsbridge_cutover_weight_percent gauge",
        "natsbridge_cutover_weight_percent 25",
        "natsbridge_cutover_phase{phase=\"canary\"} 1",
        "natsbridge_cutover_phase{phase=\"observe\"} 0",
        "natsbridge_side_up{side=\"nats\"} 1",
        "natsbridge_ready_messages{side=\"rabbit\"} 4",
        "natsbridge_shadow_compared_total{result=\"match\"} 12",
        "natsbridge_shadow_compared_total{result=\"unverified\"} 1",
        "natsbridge_warnings_total{code=\"hold_timed_out\"} 2",
        "natsbridge_standby_lag 9",
        "natsbridge_gate_may_go_on 1",
        "natsbridge_nats_faults{fault=\"dropped\"} 0",
    ] {
        assert!(text.lines().any(|is| is == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("orders"), "{text}");
}

#[tokio::test]
async fn verbs_make_the_change_and_say_what_is_in_force() {
    let running = serve(Played::new(), |_| ()).await;
    let (code, out, err) = running.verb(&["shadow", "--reason", "first look"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "phase:   shadow\nweight:  0 %\nepoch:   2\nchange:  in force after 7 ms\n");
    assert_eq!(running.told(), [change(Target::Shadow, "tester", "first look")]);

    let (_, out, _) = running.verb(&["weight", "0.25", "--by", "ann", "--json"]).await;
    let adopted: Adopted = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!((adopted.weight_percent.percent(), adopted.by.as_str()), (0.25, "ann"));

    let (_, out, _) = running.verb(&["weight", "0.25"]).await;
    assert!(out.contains("was in force already, since 2030-01-01T00:00:00Z by ann"), "{out}");
    for verb in ["rollback", "observe", "detach"] {
        assert_eq!(running.verb(&[verb]).await.0, 0);
    }
    let (code, out, _) = running.verb(&["status"]).await;
    assert_eq!(code, 0);
    assert!(out.starts_with("phase:       native\n"), "{out}");
    let (_, out, _) = running.verb(&["status", "--json"]).await;
    assert_eq!(serde_json::from_str::<Status>(&out).expect("one JSON object"), *running.played.now());
}

#[tokio::test]
async fn a_failover_is_only_looked_at_unless_it_is_told_to_and_its_exit_code_is_the_answer() {
    let running = serve(Played::new(), |_| ()).await;
    let (code, out, err) = running.verb(&["failover", "--lost", "nats"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("copies:   7 on rabbit") && out.contains("nothing was changed"), "{out}");
    let (code, out, _) = running.verb(&["failover", "--lost", "nats", "--execute", "--json"]).await;
    let report: FailoverReport = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!((code, report.executed, report.copies), (0, true, 7));
    assert_eq!(running.get("/failover").await, (200, Value::Null));
    let (status, body) = running.post("/failover", json!({ "lost": "both" })).await;
    assert_eq!((status, body["field"].as_str()), (400, Some("lost")));
    assert_eq!(running.verb(&["failover", "--lost", "both"]).await.0, 2);
    let refused = Refused::new(RefusedCode::Conflict, "NATS answers: it is not lost", "roll back");
    let refusing = serve(Played { refuse: Some(refused), ..Played::new() }, |_| ()).await;
    let (code, _, err) = refusing.verb(&["failover", "--lost", "nats", "--execute"]).await;
    assert!(code == 1 && err.contains("it is not lost"), "{err}");
}

fn reason(code: &str, severity: Severity) -> Reason {
    let numbers = [("messages".to_owned(), Number::Count(2))].into();
    Reason { code: code.to_owned(), severity, text: "it is so".to_owned(), fix: "do this".to_owned(), numbers }
}

#[tokio::test]
async fn the_gate_is_asked_by_verb_and_by_http_and_its_exit_code_is_the_answer() {
    let yes = serve(Played::new(), |_| ()).await;
    let (code, out, err) = yes.verb(&["gate"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("may I go on?  yes\n"), "{out}");

    let against = vec![reason("missing", Severity::Block)];
    let no = serve(Played { against: against.clone(), ..Played::new() }, |_| ()).await;
    let (code, out, _) = no.verb(&["gate"]).await;
    assert_eq!(code, 1);
    assert!(out.contains("NO") && out.contains("BLOCK  missing  it is so") && out.contains("-> do this"), "{out}");
    let (code, out, _) = no.verb(&["gate", "--json"]).await;
    let verdict: Verdict = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!((code, verdict.may_go_on, verdict.reasons), (1, false, against));
    let (status, body) = no.get("/gate").await;
    assert_eq!((status, &body["reasons"][0]["numbers"]["messages"]), (200, &json!(2)));
}

#[tokio::test]
async fn a_weight_that_the_gate_refuses_is_printed_with_its_reasons_and_force_is_sent() {
    let refused =
        Refused { gate: vec![reason("too_few", Severity::Wait)], ..Refused::new(RefusedCode::Gate, "no", "fix") };
    let running = serve(Played::refusing(refused.clone()), |_| ()).await;
    assert_eq!(running.post("/weight", json!({ "percent": 5 })).await.0, 409);
    let (code, out, err) = running.verb(&["weight", "5"]).await;
    assert_eq!(code, 1);
    assert!(out.contains("wait   too_few  it is so") && err.contains("no; fix"), "{out}{err}");
    let (_, out, _) = running.verb(&["weight", "5", "--json"]).await;
    assert_eq!(serde_json::from_str::<Refused>(&out).expect("one JSON object"), refused);
    running.verb(&["weight", "5", "--force"]).await;
    assert_eq!(running.told().iter().map(|change| change.force).collect::<Vec<_>>(), [false, false, false, true]);
}

#[tokio::test]
async fn history_changes_and_the_page_are_served_and_the_page_may_load_nothing_else() {
    let running = serve(Played::new(), |_| ()).await;
    let (status, body) = running.get("/history").await;
    assert_eq!((status, &body["samples"][0]["nats"]["published_per_s"]), (200, &json!(2.5)));
    let (status, body) = running.get("/changes").await;
    assert_eq!((status, &body[0]["by"]), (200, &json!("start")));
    let mut socket = TcpStream::connect(running.address).await.expect("connected");
    socket.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("answered");
    let (head, page) = answer.split_once("\r\n\r\n").expect("a head");
    let head = head.to_lowercase();
    for line in ["200 ok", "default-src 'none'", "frame-ancestors 'none'", "connect-src 'self'", "no-store", "nosniff"]
    {
        assert!(head.contains(line), "{line} is not in {head}");
    }
    assert!(page.starts_with("<!doctype html>"), "{page}");
}

#[tokio::test]
async fn a_caller_is_told_whether_it_may_change_something() {
    let open = serve(Played::new(), |_| ()).await;
    assert_eq!(open.get("/access").await, (200, json!({ "changes": true, "token": false })));
    let (_, body) = open.request("GET", "/access", "Origin: http://evil.example\r\n", "").await;
    assert_eq!((&body["changes"], &body["token"]), (&json!(false), &json!(false)));
    let own = "Origin: http://127.0.0.1:8222\r\nHost: 127.0.0.1:8222\r\n";
    assert_eq!(open.request("POST", "/shadow", own, "").await.0, 200, "its own page may");

    let closed = serve(Played::new(), |options| options.token = Some("secret".to_owned())).await;
    assert_eq!(closed.get("/access").await.1["changes"], json!(false));
    assert_eq!(closed.request("POST", "/shadow", own, "").await.0, 401, "not even its own page");
    let (_, body) = closed.request("GET", "/access", "Authorization: Bearer secret\r\n", "").await;
    assert_eq!(body, json!({ "changes": true, "token": true }));
    let file = tempfile::NamedTempFile::new().expect("created");
    std::fs::write(file.path(), "secret\n").expect("written");
    let name = file.path().to_str().expect("text");
    assert_eq!(closed.verb(&["shadow", "--token-file", name]).await.0, 0);
}

#[tokio::test]
async fn promote_goes_through_its_steps_and_stops_where_the_gate_says_no() {
    let up = || {
        let played = Played::new();
        played.now().phase = Phase::Shadow;
        played
    };
    let running = serve(up(), |_| ()).await;
    let (code, out, err) = running.verb(&["promote", "--auto", "--steps", "5,25,100", "--soak", "0s"]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let told: Vec<Target> = running.told().iter().map(|change| change.to).collect();
    let weight = |percent| Target::Weight(Weight::from_percent(percent).expect("valid"));
    assert_eq!(told, [weight(5.0), weight(25.0), weight(100.0)]);
    assert!(running.told().iter().all(|change| !change.force && change.reason == "promote"));
    assert!(out.contains("25 % in force after 7 ms\n") && out.ends_with("at 100 %: done\n"), "{out}");

    // One step without --auto.
    let running = serve(up(), |_| ()).await;
    let (code, out, _) = running.verb(&["promote", "--soak", "0s", "--json"]).await;
    let ended: Value = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!((code, &ended["arrived"], &ended["weight_percent"]), (0, &json!(true), &json!(5)));
    assert_eq!(running.told().len(), 1);

    // A no at a weight: back, or stay.
    for (on_no, told) in [("rollback", 1), ("stop", 0)] {
        let played = Played { against: vec![reason("missing", Severity::Block)], ..up() };
        played.now().weight_percent = Weight::from_percent(5.0).expect("valid");
        played.now().phase = Phase::Canary;
        let running = serve(played, |_| ()).await;
        let (code, out, err) = running.verb(&["promote", "--auto", "--soak", "0s", "--on-no", on_no, "--json"]).await;
        let ended: Value = serde_json::from_str(&out).expect("one JSON object");
        assert_eq!((code, &ended["arrived"], &ended["rolled_back"]), (1, &json!(false), &json!(told == 1)));
        assert!(err.contains("it is so (missing)"), "{err}");
        assert_eq!(running.told().len(), told);
        assert!(running.told().iter().all(|c| c.to == Target::Rollback && c.reason == "promote: it is so (missing)"));
    }

    // What is only not there yet is waited for, and not for ever.
    let running = serve(Played { against: vec![reason("too_few", Severity::Wait)], ..up() }, |_| ()).await;
    let (code, _, err) = running.verb(&["promote", "--auto", "--soak", "0s", "--patience", "0s"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("stopped at 0 %: not within 0 s: it is so (too_few)"), "{err}");
    assert!(running.told().is_empty());
    assert_eq!(serve(Played::new(), |_| ()).await.verb(&["promote"]).await.0, 1, "nothing was compared in observe");
    for bad in [&["--steps", "25,5"][..], &["--steps", "0"], &["--soak", "5"], &["--steps", "101"]] {
        assert_eq!(running.verb(&[&["promote"], bad].concat()).await.0, 2, "{bad:?}");
    }
}

#[tokio::test]
async fn a_verb_finds_the_sidecar_by_its_ready_file_and_sends_its_token() {
    let running = serve(Played::new(), |options| options.token = Some("secret".to_owned())).await;
    let file = std::env::temp_dir().join(format!("nats-bridge-http-{}.json", std::process::id()));
    std::fs::write(&file, json!({ "http": running.address.to_string() }).to_string()).expect("written");
    let name = file.to_str().expect("text");
    let (code, _, err) = run(&["shadow", "--token", "secret", "--ready-file", name]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    std::fs::remove_file(&file).expect("removed");

    let (code, _, err) = running.verb(&["shadow"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("changes need a token here"), "{err}");
    let (code, _, err) = run(&["status", "--ready-file", name]).await;
    assert_eq!(code, 2);
    assert!(err.contains(name), "{err}");
}

#[tokio::test]
async fn a_verb_that_is_refused_ends_with_1_and_says_what_to_do() {
    let refused = Refused::new(RefusedCode::NotDrained, "RabbitMQ's queues still hold 5 messages", "let them drain");
    let running = serve(Played::refusing(refused.clone()), |_| ()).await;
    let error = "error: RabbitMQ's queues still hold 5 messages; let them drain\n";
    assert_eq!(running.verb(&["detach"]).await, (1, String::new(), error.to_owned()));
    let (code, out, _) = running.verb(&["detach", "--json"]).await;
    assert_eq!((code, serde_json::from_str::<Refused>(&out).expect("one JSON object")), (1, refused));
}

#[tokio::test]
async fn a_verb_that_cannot_run_ends_with_2_and_says_why() {
    // Nothing listens on port 1.
    let (code, _, err) = run(&["status", "--http", "127.0.0.1:1"]).await;
    assert_eq!(code, 2);
    assert!(err.contains("no sidecar answers at 127.0.0.1:1") && err.contains("--http HOST:PORT"), "{err}");
    let running = serve(Played::new(), |_| ()).await;
    for words in [&["weight", "101"][..], &["weight", "-1"], &["weight", "x"], &["weight"], &["status", "--watch", "0"]]
    {
        assert_eq!(running.verb(words).await.0, 2, "{words:?}");
    }
    assert!(running.told().is_empty());
}

#[tokio::test]
async fn every_verb_has_an_example_in_its_help() {
    for verb in ["status", "observe", "shadow", "weight", "rollback", "detach", "gate", "promote"] {
        let (code, out, _) = run(&[verb, "--help"]).await;
        assert_eq!(code, 0);
        assert!(out.contains(&format!("Example:\n  nats-bridge {verb}")), "{out}");
    }
}
