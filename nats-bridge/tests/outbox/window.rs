//! What may have been sent before the stream's duplicate window began.

use super::*;

// An entry whose confirm was lost: an earlier run has sent it, which the file says, and it is stored.
async fn lost_confirm(path: &Path, bridge: &Bridge) {
    let outbox = open(path).await;
    // The mark goes ahead of what is sent.
    outbox.put(Message::new("orders.a", "1").id("o-1")).await.unwrap();
    outbox.start(bridge).await.unwrap();
    outbox.drain(SOON).await.unwrap();
    outbox.close(SOON).await.unwrap();
    let outbox = open(path).await;
    outbox.put(Message::new("orders.a", "2").id("o-2")).await.unwrap();
    bridge.publish(Message::new("orders.a", "2").id("o-2")).await.unwrap();
    outbox.close(Duration::ZERO).await.unwrap_err();
    // The server forgets ids by its own clock, the older ones first.
    let probe = || Message::new("orders.probe", "0").id("probe");
    bridge.publish(probe()).await.unwrap();
    eventually_true("the id is forgotten", async || !bridge.publish(probe()).await.unwrap().duplicate).await;
}

async fn bridge_with_short_deadline(server: &NatsServer) -> Bridge {
    let publish = PublishConfig {
        ack_wait: Duration::from_millis(100),
        deadline: Duration::from_millis(100),
        ..PublishConfig::default()
    };
    let config = Config { servers: vec![server.url()], publish, ..Config::default() };
    Bridge::connect_with(config).await.unwrap()
}

async fn ids(bridge: &Bridge) -> Vec<String> {
    let orders = bridge.jetstream().get_stream("ORDERS").await.unwrap();
    let mut ids = Vec::new();
    for sequence in 1..=orders.cached_info().state.last_sequence {
        if let Ok(message) = orders.get_raw_message(sequence).await
            && &*message.subject == "orders.a"
        {
            ids.push(message.headers.get("Nats-Msg-Id").unwrap().to_string());
        }
    }
    ids
}

#[tokio::test]
async fn behind_the_window_the_stream_is_searched_for_the_id() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.outbox");
    let server = NatsServer::start();
    let bridge = bridge_with_short_deadline(&server).await;
    make_stream(&bridge, |orders| orders.duplicate_window = Duration::from_millis(300)).await;
    lost_confirm(&path, &bridge).await;
    // It is not the last of its subject.
    bridge.publish(Message::new("orders.a", "3").id("elsewhere")).await.unwrap();
    // The window is over indeed.
    let again = bridge.publish(Message::new("orders.a", "1").id("o-1")).await.unwrap();
    assert!(!again.duplicate);
    let outbox = open(&path).await;
    outbox.put(Message::new("orders.a", "4").id("o-4")).await.unwrap();
    outbox.start(&bridge).await.unwrap();
    outbox.drain(SOON).await.unwrap();
    let ids: Vec<String> = ids(&bridge).await;
    assert_eq!(ids, ["o-1", "o-2", "elsewhere", "o-1", "o-4"]);
}

#[tokio::test]
async fn where_the_stream_cannot_tell_it_is_sent_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.outbox");
    let server = NatsServer::start();
    let bridge = bridge_with_short_deadline(&server).await;
    make_stream(&bridge, |orders| {
        orders.duplicate_window = Duration::from_millis(300);
        orders.retention = stream::RetentionPolicy::WorkQueue;
    })
    .await;
    lost_confirm(&path, &bridge).await;
    // A worker has handled both.
    bridge.jetstream().get_stream("ORDERS").await.unwrap().purge().await.unwrap();
    let outbox = open(&path).await;
    outbox.start(&bridge).await.unwrap();
    outbox.drain(SOON).await.unwrap();
    let ids: Vec<String> = ids(&bridge).await;
    assert_eq!(ids, ["o-2"]);
}
