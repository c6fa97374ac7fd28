//! The verbs against the real sidecar, between a real RabbitMQ and a real NATS.

mod bed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bed::process::Process;
use serde_json::Value;
use test_support::eventually::eventually;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

#[test]
fn an_operator_goes_there_and_back_and_is_stopped_where_it_would_lose_something() {
    let (rabbit, nats) = (RabbitMq::start(), NatsServer::start());
    let sidecar = Process::start(&rabbit, &nats);
    let (code, status) = sidecar.verb(&["status"]);
    assert_eq!((code, &status["phase"], &status["weight_percent"]), (0, &"observe".into(), &0.into()));
    for side in ["rabbit", "nats"] {
        assert_eq!(status["sides"][side]["connected"], true, "{status}");
        assert!(!status["sides"][side]["url"].as_str().expect("a text").contains("guest"), "{status}");
    }
    // Not before anything was compared.
    let (code, refused) = sidecar.verb(&["weight", "5"]);
    assert_eq!((code, &refused["code"]), (1, &"wrong_phase".into()));
    let mut epoch = status["epoch"].as_u64().expect("a number");
    for (words, phase, weight) in [
        (&["shadow"][..], "shadow", 0),
        (&["weight", "5", "--by", "ann", "--reason", "first", "--force"], "canary", 5),
        (&["weight", "100", "--force", "--unrehearsed"], "cutover", 100),
        (&["rollback"], "shadow", 0),
        (&["weight", "100", "--force", "--unrehearsed"], "cutover", 100),
        (&["detach"], "native", 100),
    ] {
        let (code, adopted) = sidecar.verb(words);
        assert_eq!(code, 0, "{words:?}: {adopted}");
        assert_eq!((&adopted["phase"], &adopted["weight_percent"]), (&phase.into(), &weight.into()));
        assert!(adopted["took_ms"].as_u64().expect("a number") < 1000, "{words:?}: {adopted}");
        if phase == "shadow" {
            // No data is not parity.
            let (code, gate) = sidecar.verb(&["gate"]);
            assert_eq!((code, &gate["may_go_on"]), (1, &false.into()), "{gate}");
            let (code, refused) = sidecar.verb(&["weight", "5"]);
            assert_eq!((code, &refused["code"]), (1, &"gate".into()), "{refused}");
            let codes: Vec<_> = refused["gate"].as_array().expect("reasons").iter().map(|r| &r["code"]).collect();
            assert_eq!(codes, ["too_soon", "too_few"], "{refused}");
        }
        let grown = adopted["epoch"].as_u64().expect("a number");
        assert!(grown > epoch, "{words:?}: {adopted}");
        epoch = grown;
        let (_, status) = sidecar.verb(&["status"]);
        assert_eq!((&status["phase"], &status["epoch"]), (&phase.into(), &epoch.into()));
        if phase == "canary" {
            assert_eq!((&status["by"], &status["reason"]), (&"ann".into(), &"first".into()));
        }
        // Said twice, it is done once.
        let (code, again) = sidecar.verb(words);
        assert_eq!((code, &again["changed"]), (0, &false.into()), "{words:?}");
    }
    let (code, refused) = sidecar.verb(&["rollback"]);
    assert_eq!((code, &refused["code"]), (1, &"wrong_phase".into()));
}

/// The traffic of two applications, until it is told to stop.
fn traffic(sidecar: &Process) -> (Arc<AtomicBool>, std::thread::JoinHandle<()>) {
    let amqp = format!("amqp://guest:guest@{}/%2f", sidecar.said("listen"));
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let flowing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(bed::traffic(amqp, told));
    });
    (stop, flowing)
}

#[test]
fn promote_takes_real_traffic_to_the_end_while_the_gate_says_yes_and_back_when_it_says_no() {
    let (rabbit, nats) = (RabbitMq::start(), NatsServer::start());
    let more = ["--gate-soak", "1s", "--gate-messages", "20", "--gate-latency-factor", "1000"];
    let sidecar = Process::start_with(&rabbit, &nats, &more);
    let (stop, flowing) = traffic(&sidecar);
    assert_eq!(sidecar.verb(&["promote"]).0, 1, "nothing was compared");
    assert_eq!(sidecar.verb(&["shadow"]).0, 0);
    let (code, ended) = sidecar.verb(&["promote", "--auto", "--steps", "25,50,100", "--soak", "1s"]);
    let weights = |ended: &Value| -> Vec<u64> {
        let steps = ended["steps"].as_array().expect("steps");
        steps.iter().filter_map(|step| step["weight_percent"].as_u64()).collect()
    };
    // The last step waits for a rehearsal, at the weight in force.
    assert_eq!((code, &ended["phase"], &ended["rolled_back"]), (1, &"canary".into(), &false.into()), "{ended}");
    assert_eq!(weights(&ended), [25, 50], "{ended}");
    let because = ended["because"].as_str().expect("a reason");
    assert!(because.contains("rollback rehearse"), "{because}");
    let (code, rehearsal) = sidecar.verb(&["rollback", "rehearse", "--stay", "1s"]);
    assert_eq!((code, &rehearsal["passed"]), (0, &true.into()), "{rehearsal}");
    let (code, ended) = sidecar.verb(&["promote", "--auto", "--steps", "25,50,100", "--soak", "1s"]);
    assert_eq!((code, &ended["arrived"], &ended["phase"]), (0, &true.into(), &"cutover".into()), "{ended}");
    assert_eq!(weights(&ended), [100], "{ended}");
    assert_eq!(ended["gate"]["may_go_on"], true, "{ended}");
    let (_, status) = sidecar.verb(&["status"]);
    assert_eq!(status["faults"], serde_json::json!({ "corrupted": 0, "dropped": 0, "reordered": 0, "duplicated": 0 }));

    // Something that JetStream does not have turns up on the way: back to RabbitMQ.
    assert_eq!(sidecar.verb(&["rollback"]).0, 0);
    let policy = r#"{"pattern":".*","definition":{"max-length":5000}}"#;
    let (code, ended) = {
        eventually("the gate says yes", || sidecar.verb(&["gate"]).0 == 0);
        assert_eq!(sidecar.verb(&["weight", "5"]).0, 0);
        assert_eq!(rabbit.api("PUT", "/api/policies/%2f/short", policy).expect("answers").0, 201);
        sidecar.verb(&["promote", "--auto", "--soak", "1s"])
    };
    assert_eq!((code, &ended["arrived"], &ended["rolled_back"]), (1, &false.into(), &true.into()), "{ended}");
    let because = ended["because"].as_str().expect("a reason");
    assert!(because.contains("policy short"), "{because}");
    let (_, status) = sidecar.verb(&["status"]);
    assert_eq!((&status["phase"], &status["weight_percent"]), (&"shadow".into(), &0.into()), "{status}");
    assert!(status["reason"].as_str().is_some_and(|reason| reason.starts_with("promote: ")), "{status}");
    stop.store(true, Ordering::Relaxed);
    flowing.join().expect("the applications noticed nothing");
}

#[test]
fn full_weight_waits_for_a_rehearsed_rollback_and_the_log_says_who_did_what_over_a_restart() {
    let (rabbit, nats) = (RabbitMq::start(), NatsServer::start());
    let sidecar = Process::start(&rabbit, &nats);
    assert_eq!(sidecar.verb(&["rollback", "rehearse"]).0, 1, "there is nothing to roll back");
    assert_eq!(sidecar.verb(&["shadow", "--by", "ann"]).0, 0);
    let (code, half) = sidecar.verb(&["weight", "50", "--force", "--by", "ann", "--reason", "half"]);
    assert_eq!(code, 0, "{half}");
    let (code, refused) = sidecar.verb(&["weight", "100", "--force"]);
    assert_eq!((code, &refused["code"]), (1, &"not_rehearsed".into()), "{refused}");
    // No data is no rehearsal.
    let (code, idle) = sidecar.verb(&["rollback", "rehearse", "--stay", "0s"]);
    assert_eq!((code, &idle["passed"]), (1, &false.into()), "{idle}");
    assert!(idle["problems"][0].as_str().expect("a text").contains("no publish was confirmed"), "{idle}");

    let (stop, applications) = traffic(&sidecar);
    eventually("messages flow", || sidecar.verb(&["status"]).1["sides"]["nats"]["delivered"].as_u64() > Some(20));
    let (code, passed) =
        sidecar.verb(&["rollback", "rehearse", "--stay", "2s", "--by", "ann", "--reason", "before 100 %"]);
    assert_eq!((code, &passed["passed"], &passed["weight_percent"]), (0, &true.into(), &50.into()), "{passed}");
    assert_eq!((&passed["failed"], &passed["faults"], &passed["holds_timed_out"]), (&0.into(), &0.into(), &0.into()));
    assert!(passed["confirmed"].as_u64() > Some(0), "{passed}");
    stop.store(true, Ordering::Relaxed);
    applications.join().expect("the applications noticed nothing");
    drop(sidecar);

    // Kept over a restart.
    let sidecar = Process::start(&rabbit, &nats);
    let (_, status) = sidecar.verb(&["status"]);
    assert_eq!((&status["rehearsal"]["passed"], &status["weight_percent"]), (&true.into(), &50.into()), "{status}");
    let (code, full) = sidecar.verb(&["weight", "100", "--force", "--by", "bob"]);
    assert_eq!(code, 0, "{full}");
    let (code, drained) = sidecar.verb(&["drain", "--timeout", "60s"]);
    assert!(code == 1 || drained["drained"] == true, "its consumers are gone: {drained}");
    assert_eq!(drained["side"], "rabbit");
    assert_eq!(sidecar.verb(&["rollback"]).0, 0);
    assert_eq!(sidecar.verb(&["observe"]).0, 0);
    let (_, status) = sidecar.verb(&["status"]);
    assert!(status["rehearsal"]["void"].as_str().is_some_and(|why| why.contains("observe")), "{status}");
    assert_eq!(sidecar.verb(&["shadow"]).0, 0);
    assert_eq!(sidecar.verb(&["weight", "100", "--force"]).1["code"], "not_rehearsed");

    let (code, log) = sidecar.verb(&["log"]);
    let log = log.as_array().expect("a list");
    let told: Vec<(&str, &str, &str)> = log
        .iter()
        .rev()
        .map(|e| {
            let text = |name: &str| e[name].as_str().expect("a text");
            (text("what"), text("outcome"), text("by"))
        })
        .collect();
    for expected in [
        ("shadow", "done", "ann"),
        ("weight 50", "done", "ann"),
        ("weight 100", "refused", told[2].2),
        ("rollback rehearse", "done", "ann"),
        ("weight 100", "done", "bob"),
        ("observe", "done", told[2].2),
    ] {
        assert!(told.contains(&expected), "{expected:?} is not in {told:?}");
    }
    assert_eq!(code, 0);
    let half = log.iter().find(|e| e["what"] == "weight 50").expect("there");
    assert_eq!((&half["forced"], &half["reason"]), (&true.into(), &"half".into()), "{half}");
    assert!(half["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")), "{half}");
}
