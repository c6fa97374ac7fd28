//! Complaints about connections: 2, 3, 8, 16.

use std::time::Duration;

use nats_bridge::{Bridge, ConnectionEvent, ConsumeConfig, ConsumerState, ErrorKind, Message, Storage, StreamSpec};
use nats_bridge::{Config, Manifest};
use test_support::eventually::{eventually_some, eventually_true};
use test_support::fault_proxy::FaultProxy;
use test_support::nats::NatsServer;

use super::{CAP, billing, config, next, publish, with};

#[tokio::test]
async fn complaint_02_reconnecting_never_gives_up_and_an_end_is_an_error() {
    let server = NatsServer::start();
    let proxy = FaultProxy::start(server.port(), 1).await;
    let quick = Config { reconnect_pause_max: Duration::from_millis(5), ..config(proxy.url()) };
    let bridge = with(&server, quick).await;
    let mut consumer = bridge.consume(billing()).await.unwrap();
    proxy.shut();
    let mut state = bridge.connection();
    tokio::time::timeout(CAP, state.wait_for(|c| !c.connected)).await.unwrap().unwrap();
    // More attempts than any client's default gives up after.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    proxy.open();
    tokio::time::timeout(CAP, state.wait_for(|c| c.connected)).await.unwrap().unwrap();
    bridge.publish(Message::new("orders.new", "1")).await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();

    bridge.client().drain().await.unwrap();
    let ended = tokio::time::timeout(CAP, consumer.next()).await.expect("it does not hang").unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Closed);
    assert!(matches!(consumer.handle().state(), ConsumerState::Failed { .. }));
    assert_eq!(bridge.publish(Message::new("orders.new", "2")).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn complaint_03_what_was_declared_is_data_and_can_be_declared_again() {
    let mut server = NatsServer::start();
    let bridge = Bridge::connect_with(config(server.url())).await.unwrap();
    // In memory, as a broker's queues that do not survive it.
    let volatile = StreamSpec {
        storage: Storage::Memory,
        max_bytes: Some(1 << 20),
        unbounded: true,
        ..StreamSpec::new("V", ["v"])
    };
    let manifest = Manifest { streams: vec![volatile], ..Manifest::default() };
    bridge.apply(&manifest).await.unwrap();
    let config = ConsumeConfig { heartbeat: Duration::from_millis(300), ..ConsumeConfig::new("V", "worker") };
    let mut consumer = bridge.consume(config.clone()).await.unwrap();
    server.restart();
    // Its stream is gone: told, and not waited for in silence.
    let error = tokio::time::timeout(CAP, consumer.next()).await.expect("it is noticed").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    eventually_true("the manifest is applied again", || async { bridge.apply(&manifest).await.is_ok() }).await;
    let mut consumer = bridge.consume(config).await.unwrap();
    bridge.publish(Message::new("v", "back")).await.unwrap();
    assert_eq!(next(&mut consumer).await.payload(), "back");
}

#[tokio::test]
async fn complaint_08_what_this_user_may_not_do_is_an_error_of_the_call() {
    let users = r#"authorization { users: [ { user: a, password: b, permissions: {
        publish: { deny: ["orders.secret", "$JS.API.CONSUMER.>"] } } }, { user: admin, password: b } ] }"#;
    let server = NatsServer::builder().config_line(users).start();
    let as_user = |user: &str| server.url().replace("nats://", &format!("nats://{user}:b@"));
    let admin = Bridge::connect(as_user("admin")).await.unwrap();
    let orders = StreamSpec { max_bytes: Some(1 << 20), unbounded: true, ..StreamSpec::new("ORDERS", ["orders.>"]) };
    admin.ensure_stream(&orders).await.unwrap();
    let bridge = Bridge::connect(as_user("a")).await.unwrap();
    let mut events = bridge.events();
    let error = bridge.publish(Message::new("orders.secret", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("orders.secret"), "{error}");
    let error = tokio::time::timeout(CAP, bridge.consume(billing())).await.expect("it does not hang").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let denied = eventually_some("an event says so", || {
        let event = events.try_recv();
        async move { matches!(event, Ok(ConnectionEvent::Denied(_))).then_some(()) }
    });
    denied.await;
    assert!(Bridge::connect(server.url()).await.is_err_and(|e| e.kind() == ErrorKind::Denied));
}

#[tokio::test]
async fn complaint_16_the_connections_state_is_true_and_its_numbers_only_grow() {
    let server = NatsServer::start();
    let proxy = FaultProxy::start(server.port(), 1).await;
    let bridge = with(&server, config(proxy.url())).await;
    let (mut state, mut events) = (bridge.connection(), bridge.events());
    let mut before = *state.borrow_and_update();
    assert!(before.connected && before.connects == 1 && before.disconnects == 0);
    for round in 1..=5 {
        proxy.reset();
        tokio::time::timeout(CAP, state.wait_for(|c| c.connects == round + 1 && c.connected)).await.unwrap().unwrap();
        let now = *state.borrow();
        assert!(now.connects > before.connects && now.disconnects > before.disconnects, "{before:?}, {now:?}");
        before = now;
        for wanted in [ConnectionEvent::Disconnected, ConnectionEvent::Connected] {
            loop {
                let event = tokio::time::timeout(CAP, events.recv()).await.unwrap().unwrap();
                match event {
                    event if event == wanted => break,
                    ConnectionEvent::Connected | ConnectionEvent::Disconnected => panic!("{event:?} out of turn"),
                    _ => {}
                }
            }
        }
    }
    publish(&bridge, 0..1).await;
}
