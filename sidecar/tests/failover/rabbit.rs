//! RabbitMQ is lost for good, with its disk, in each phase: one RabbitMQ, and for each phase a vhost, a nats-server and a sidecar.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::join_all;
use lapin::{Connection, ConnectionProperties};
use nats_bridge::Bridge;
use sidecar::control::{State, Store};
use sidecar::control_api::{Control, Failover, FailoverReport, GIVEN_UP, Phase, Refused, RefusedCode, Target};
use sidecar::ownership::Side;
use test_support::eventually::{eventually_some, eventually_true};
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;
use tokio::task::JoinHandle;

use super::applications::{Record, consume, declare, produce, verdict};
use super::bed::{CAP, Ends, Likeness, Sidecar};
use super::finished;

fn asked(execute: bool, force: bool) -> Failover {
    Failover {
        lost: Side::Rabbit,
        execute,
        force,
        by: "test".into(),
        reason: "the disk is gone".into(),
        from: String::new(),
    }
}

async fn ask(sidecar: &Sidecar, execute: bool, force: bool) -> Result<FailoverReport, Refused> {
    sidecar.cutover.clone().failover(asked(execute, force)).await
}

/// A sidecar in one phase, and its applications.
struct Case {
    percent: f64,
    nats: NatsServer,
    ends: Ends,
    sidecar: Sidecar,
    record: Arc<Record>,
    tasks: Vec<JoinHandle<()>>,
}

impl Case {
    /// At this weight, with a backlog of what RabbitMQ owns.
    async fn at(percent: f64, rabbit: &RabbitMq) -> Self {
        let nats = NatsServer::start();
        let ends = Ends::new(rabbit, &nats);
        let sidecar = ends.sidecar_like(Likeness { rollback_after: None, ..Likeness::default() }).await;
        declare(&sidecar.connect().await.create_channel().await.expect("channel")).await;
        let record = Arc::new(Record::default());
        let (url, consumed) = (sidecar.url.clone(), record.clone());
        let tasks = vec![tokio::spawn(consume(url.clone(), consumed)), tokio::spawn(produce(url, record.clone()))];
        record.more(100).await;
        sidecar.change(Target::Shadow).await.expect("shadow");
        record.more(100).await;
        if percent == 100.0 {
            // What RabbitMQ still holds then is all that it owns.
            record.slow.store(true, Ordering::Relaxed);
            record.more(300).await;
        }
        if percent > 0.0 {
            sidecar.weight(percent).await;
        }
        record.slow.store(percent == 100.0, Ordering::Relaxed);
        record.more(100).await;
        eventually_true("what moved waits no more", || async {
            percent == 100.0 || sidecar.status().await.queues.iter().all(|queue| queue.held == 0)
        })
        .await;
        record.slow.store(true, Ordering::Relaxed);
        record.more(200).await;
        Self { percent, nats, ends, sidecar, record, tasks }
    }

    /// The sidecar is killed as well, while it gives RabbitMQ up; another one goes on with it. Its applications publish no more.
    async fn with_another_sidecar(mut self) -> Self {
        self.sidecar.kill().await;
        let bridge = Bridge::connect(&self.nats.url()).await.expect("NATS answers");
        let store = Store::open(&bridge).await.expect("the bucket");
        let (state, revision) = store.load(state()).await.expect("the state");
        store.save(&State { rabbit_given_up: true, ..state }, revision).await.expect("written");
        self.sidecar = self.ends.sidecar_like(Likeness::default()).await;
        assert!(Connection::connect(&self.sidecar.url, ConnectionProperties::default()).await.is_err());
        let refused = self.sidecar.change(Target::Rollback).await.expect_err("given up");
        assert_eq!(refused.code, RefusedCode::WrongPhase);
        self.tasks.iter().for_each(JoinHandle::abort);
        let (url, consumed) = (self.sidecar.url.clone(), self.record.clone());
        self.tasks = vec![tokio::spawn(consume(url.clone(), consumed)), tokio::spawn(async {})];
        self
    }

    async fn fails_over(self) {
        let Case { percent, nats, sidecar, record, mut tasks, .. } = self;
        let look = ask(&sidecar, false, false).await.expect("a look");
        assert!(!look.executed && look.copies > 0 && look.no_copy == 0 && look.unmapped == 0, "{percent}: {look:?}");
        assert!(look.queues.iter().any(|queue| queue.name == "orders.all" && queue.copies > 0), "{look:?}");
        ask(&sidecar, true, false).await.expect("begun");
        let report = finished(&sidecar.cutover).await;
        assert!(report.done && report.left == 0 && report.replayed > 0, "{percent}: {report:?}");
        // Again: nothing is done twice.
        assert_eq!(ask(&sidecar, true, false).await.expect("done").replayed, report.replayed);
        record.slow.store(false, Ordering::Relaxed);
        if !tasks[1].is_finished() {
            record.more(200).await;
        }
        record.stop.store(true, Ordering::Relaxed);
        let producer = tasks.remove(1);
        tokio::time::timeout(CAP, producer).await.expect("in time").expect("ended well");
        eventually_true("all that was confirmed is done", || async { record.left() == 0 }).await;
        let status = sidecar.status().await;
        assert_eq!((status.phase, status.weight_percent.percent()), (Phase::Native, 100.0));
        assert_eq!(status.sides.rabbit.error.as_deref(), Some(GIVEN_UP));
        assert!(status.queues.iter().all(|queue| !queue.name.starts_with("nats-bridge.")), "{:?}", status.queues);
        assert!(stores(&nats).is_empty(), "{:?}", stores(&nats));
        print!("{percent} %, {} replayed: ", report.replayed);
        // What NATS had of keys that had just moved comes before what RabbitMQ still held of them.
        verdict(&record, percent < 100.0);
        tasks.iter().for_each(JoinHandle::abort);
        sidecar.stop().await;
    }
}

/// What a cutover begins with; not used where there is a state.
fn state() -> State {
    serde_json::from_value(serde_json::json!({
        "phase": "observe", "weight_percent": 0, "epoch": 1, "salt": "0", "by": "", "reason": "", "at": "",
        "nats_may_hold": false, "shift": null
    }))
    .expect("a state")
}

/// The streams of copies.
fn stores(nats: &NatsServer) -> Vec<String> {
    let answer = nats.monitor("/jsz?streams=true").expect("answers");
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let streams = answer["account_details"][0]["stream_detail"].as_array().cloned().unwrap_or_default();
    let names = streams.iter().filter_map(|stream| stream["name"].as_str());
    names.filter(|name| name.contains("standby")).map(str::to_owned).collect()
}

async fn is_refused_in_observe(sidecar: &Sidecar) {
    let refused = ask(sidecar, true, false).await.expect_err("no copies");
    assert_eq!(refused.code, RefusedCode::WrongPhase);
    assert!(refused.reason.contains("in observe") && refused.reason.contains(" messages in 2 queues"), "{refused}");
    assert_eq!(sidecar.cutover.failover_status().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_confirmed_is_lost_with_rabbitmq_from_shadow_on() {
    let mut rabbit = tokio::task::spawn_blocking(RabbitMq::start).await.expect("started");
    let nats = NatsServer::start();
    let observed = Ends::new(&rabbit, &nats).sidecar().await;
    declare(&observed.connect().await.create_channel().await.expect("channel")).await;
    let cases = join_all([0.0, 5.0, 50.0, 100.0].map(|percent| Case::at(percent, &rabbit))).await;
    for case in &cases {
        let refused = ask(&case.sidecar, true, false).await.expect_err("RabbitMQ answers");
        assert_eq!(refused.code, RefusedCode::Conflict);
        let copies = eventually_some("no message is without a copy", || async {
            case.sidecar.status().await.standby_rabbit.filter(|copies| copies.no_copy == 0 && copies.copies > 0)
        })
        .await;
        assert!(!copies.away, "{}: {copies:?}", case.percent);
    }
    eventually_true("RabbitMQ was asked what it holds", || async {
        ask(&observed, false, true).await.expect_err("in observe").reason.contains(" messages in 2 queues")
    })
    .await;
    let dir = rabbit.dir().to_owned();
    let rabbit = tokio::task::spawn_blocking(move || {
        rabbit.kill_9();
        std::fs::remove_dir_all(&dir).expect("removed");
        rabbit
    })
    .await
    .expect("killed");
    is_refused_in_observe(&observed).await;
    observed.stop().await;
    let again = |case: Case| async {
        match case.percent {
            50.0 => case.with_another_sidecar().await.fails_over().await,
            _ => case.fails_over().await,
        }
    };
    join_all(cases.into_iter().map(again)).await;
    drop(rabbit);
}
