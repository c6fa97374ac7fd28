//! The verbs for dead letters, on a real server.

#![allow(clippy::unwrap_used)]

use nats_bridge::{Bridge, ConsumeConfig, Failure, Message, Reason, StreamSpec};
use nats_bridge_verbs::{Fault, ask, stats, type_text};
use serde_json::{Value, json};
use test_support::nats::NatsServer;

async fn asked(bridge: &Bridge, verb: &str, arguments: Value) -> Value {
    let answer = ask(bridge.clone(), verb.into(), arguments.to_string(), || true).await.unwrap();
    serde_json::from_str(&answer).unwrap()
}

async fn refused(bridge: &Bridge, verb: &str, arguments: Value) -> String {
    match ask(bridge.clone(), verb.into(), arguments.to_string(), || true).await.unwrap_err() {
        Fault::Argument { field, why } => format!("{field}: {why}"),
        Fault::Type { option, why } => type_text("option", &option, why.as_deref()),
        Fault::Core(error) => error.to_string(),
        Fault::Told { text, .. } => text,
    }
}

async fn with_letters(bridge: &Bridge, n: usize) {
    bridge.ensure_stream(&StreamSpec { unbounded: true, ..StreamSpec::new("ORDERS", ["orders.>"]) }).await.unwrap();
    bridge.publish_many((0..n).map(|i| Message::new("orders.new", vec![i as u8, 255]).id(format!("o-{i}")))).await;
    let mut consumer = bridge.consume(ConsumeConfig::new("ORDERS", "billing")).await.unwrap();
    for _ in 0..n {
        let delivery = consumer.next().await.unwrap().unwrap();
        delivery.dead_letter(Reason::Schema, Failure::of("NoOrder", "what is this")).await.unwrap();
    }
}

#[tokio::test]
async fn letters_are_seen_parked_purged_and_brought_back() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    with_letters(&bridge, 4).await;
    let letters = |more: Value| {
        let mut arguments = json!({ "stream": "ORDERS_DLQ" });
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        arguments
    };
    assert_eq!(asked(&bridge, "dead_letters.count", letters(json!({}))).await, 4);
    let groups = asked(&bridge, "dead_letters.list", letters(json!({ "by": "fingerprint" }))).await;
    assert_eq!((groups[0]["letters"].as_u64(), groups[0]["reason"].as_str()), (Some(4), Some("schema")));
    let second = asked(&bridge, "dead_letters.show", letters(json!({ "sequence": 2 }))).await;
    assert_eq!((second["payload_base64"].as_str(), second["detail"].as_str()), (Some("Af8="), Some("what is this")));
    assert_eq!(second["headers"], json!([["Nats-Msg-Id", "o-1"]]));

    let first_two = letters(json!({ "filter": { "sequences": [1, 2] } }));
    assert_eq!(asked(&bridge, "dead_letters.park", first_two).await, 2);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("letters.jsonl");
    assert_eq!(asked(&bridge, "dead_letters.purge", letters(json!({ "file": file }))).await, 2);
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
    assert_eq!(asked(&bridge, "dead_letters.count", letters(json!({}))).await, 0);
    assert!(refused(&bridge, "dead_letters.export", letters(json!({ "file": file }))).await.starts_with("file: "));
    let brought_back = asked(&bridge, "dead_letters.import", letters(json!({ "file": file }))).await;
    assert_eq!(brought_back, json!({ "stored": 2, "duplicates": 0 }));
    let done = asked(&bridge, "dead_letters.redrive", letters(json!({ "rate_per_second": 1000, "limit": 1 }))).await;
    assert_eq!((done["redriven"].as_u64(), &done["stopped"]), (Some(1), &Value::Null));
    assert_eq!(asked(&bridge, "dead_letters.count", letters(json!({}))).await, 1);
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    with_letters(&bridge, 1).await;
    for (verb, arguments, wanted) in [
        ("dead_letters.open", json!({ "stream": "NONE_DLQ" }), "not found"),
        ("dead_letters.list", json!({ "stream": "ORDERS_DLQ", "by": "colour" }), "by: "),
        ("dead_letters.peek", json!({ "stream": "ORDERS_DLQ", "filter": { "colour": 1 } }), "no option 'colour'"),
        ("dead_letters.show", json!({ "stream": "ORDERS_DLQ" }), "sequence: "),
        ("dead_letters.show", json!({ "stream": "ORDERS_DLQ", "sequence": 9 }), "not found"),
        ("dead_letters.show", json!({ "stream": "ORDERS_DLQ", "sequence": 0 }), "field=sequence "),
        ("dead_letters.peek", json!({ "stream": "ORDERS_DLQ", "filter": { "sequences": [2, 1] } }), "field=sequences "),
        ("dead_letters.park", json!({ "stream": "ORDERS_DLQ", "filter": { "sequences": [0, 1] } }), "field=sequences "),
        ("dead_letters.peek", json!({ "stream": "ORDERS_DLQ", "filter": { "reason": 1 } }), "option 'reason'"),
        ("dead_letters.redrive", json!({ "stream": "ORDERS_DLQ", "rate_per_second": 0 }), "rate_per_second"),
        ("dead_letters.fly", json!({ "stream": "ORDERS_DLQ" }), "verb: "),
        ("fly", json!({}), "verb: "),
        ("ensure_bucket", json!({ "name": "b", "history": 100, "max_bytes": 1 }), "history"),
        ("plan", json!({ "manifest": "[[streams]" }), "manifest"),
    ] {
        let text = refused(&bridge, verb, arguments).await;
        assert!(text.contains(wanted), "{verb}: {text}");
    }
}

#[tokio::test]
async fn a_manifest_is_planned_and_applied_and_figures_are_told() {
    let server = NatsServer::start();
    let bridge = Bridge::connect(server.url()).await.unwrap();
    let manifest =
        json!({ "manifest": "[[streams]]\nname = \"ORDERS\"\nunbounded = true\n[[dead_letters]]\nof = \"ORDERS\"\n" });
    let plan = asked(&bridge, "plan", manifest.clone()).await;
    assert_eq!(
        (plan["changes"][0]["object"].as_str(), plan["changes"][0]["action"].as_str()),
        (Some("stream ORDERS"), Some("create"))
    );
    assert_eq!(asked(&bridge, "apply", manifest.clone()).await["changes"].as_array().unwrap().len(), 2);
    assert_eq!(asked(&bridge, "plan", manifest).await["changes"], json!([]));
    let stats: Value = serde_json::from_str(&stats(&bridge)).unwrap();
    assert_eq!((stats["connected"].as_bool(), stats["outstanding"].as_u64()), (Some(true), Some(0)));
    assert_eq!((stats["breaker"].as_str(), stats["connects"].as_u64()), (Some("closed"), Some(1)));
}
