//! A service that turns durable consumption on by a flag, on a real server.

#![allow(clippy::unwrap_used)]

mod orders;

use std::sync::{Arc, Mutex};

use nats_bridge::{ConsumeConfig, ErrorKind, Failure, Message};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;

use orders::bridge;

fn config() -> ConsumeConfig {
    ConsumeConfig { filter_subjects: vec!["orders.new".into()], ..ConsumeConfig::new("ORDERS", "billing") }
}

#[tokio::test]
async fn one_handler_takes_plain_messages_and_with_the_flag_what_came_while_it_was_away() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    let seen = Arc::new(Mutex::new(Vec::<String>::new()));
    let handler = |seen: Arc<Mutex<Vec<String>>>| {
        move |received: nats_bridge::Received| {
            let seen = seen.clone();
            async move {
                let text = String::from_utf8_lossy(received.payload()).into_owned();
                seen.lock().unwrap().push(text.clone());
                if text == "bad" { Err(Failure::new("it is bad")) } else { Ok(()) }
            }
        }
    };
    bridge.publish(Message::new("orders.new", "before")).await.unwrap();
    let intake = bridge.intake(false, config()).await.unwrap();
    assert!(!intake.is_durable());
    let running = tokio::spawn(intake.run(2, handler(seen.clone())));
    for text in ["bad", "plain"] {
        bridge.publish(Message::new("orders.new", text)).await.unwrap();
    }
    eventually_true("both came", || async { seen.lock().unwrap().len() == 2 }).await;
    running.abort();
    assert!(running.await.is_err_and(|ended| ended.is_cancelled()));
    assert!(!seen.lock().unwrap().contains(&"before".to_owned()));

    seen.lock().unwrap().clear();
    let intake = bridge.intake(true, config()).await.unwrap();
    assert!(intake.is_durable());
    let running = tokio::spawn(intake.run(1, handler(seen.clone())));
    eventually_true("all that is stored comes", || async {
        let seen = seen.lock().unwrap();
        ["before", "bad", "plain"].iter().all(|text| seen.contains(&(*text).to_owned()))
    })
    .await;
    running.abort();
}

#[tokio::test]
async fn what_a_plain_subscription_cannot_keep_is_refused_by_its_field() {
    let server = NatsServer::start();
    let bridge = bridge(&server).await;
    for (wrong, field) in [
        (ConsumeConfig { schemas: Some("SCHEMAS".into()), ..config() }, "field=schemas"),
        (ConsumeConfig { single_active: true, ..config() }, "field=single_active"),
        (ConsumeConfig { filter_subjects: Vec::new(), ..config() }, "field=filter_subjects"),
        (ConsumeConfig { filter_subjects: vec!["a b".into()], ..config() }, "field=filter_subjects"),
    ] {
        let error = bridge.intake(false, wrong).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains(field), "{error}");
    }
}
