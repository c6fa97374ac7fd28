use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use amqp_compat::ReplyCode;
use amqp_compat::backend::{Binding, Event, Outcome, PublishOutcome, Topology};
use test_support::nats::NatsServer;

use crate::backend;
use crate::client::{Client, body, exchange, queue, table, text};

#[tokio::test]
async fn every_property_arrives_as_it_was_published() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.topology(Topology::ExchangeDeclare(exchange("x y", "topic"))).await.expect("declared");
    client.bind("x y", "q", "#").await;
    let properties = AMQPProperties::default()
        .with_content_type("text/plain".into())
        .with_delivery_mode(2)
        .with_priority(7)
        .with_correlation_id("line\nbreak".into())
        .with_timestamp(1_700_000_000)
        .with_type("ünï ".into())
        .with_headers(table(&[("n", AMQPValue::LongInt(5)), ("t", text("x")), ("b", AMQPValue::Boolean(true))]));
    client.publish_with("x y", "a..b *", vec![0, 255, 13, 10], properties.clone(), true).await;
    let got = client.get("q").await.expect("a message");
    let message = got.delivery.message;
    assert_eq!((message.exchange.as_str(), message.routing_key.as_str()), ("x y", "a..b *"));
    assert_eq!(message.properties, properties);
    assert_eq!(&message.body[..], [0, 255, 13, 10]);
}

#[tokio::test]
async fn a_confirm_comes_only_when_every_copy_is_stored() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    for name in ["a", "b", "c"] {
        client.declare(queue(name)).await;
        client.bind("amq.fanout", name, "").await;
    }
    client.store("amq.fanout", "", "1").await;
    for name in ["a", "b", "c"] {
        assert_eq!(client.counts(name).await.0, 1);
    }
    // A server that does not answer confirms nothing.
    server.pause();
    client.publish("amq.fanout", "", "2").await;
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), client.confirm()).await;
    server.resume();
    assert!(early.is_err(), "{early:?} came from a server that was stopped");
    assert_eq!(client.confirm().await, (2, PublishOutcome::Stored));
    for name in ["a", "b", "c"] {
        assert_eq!(client.counts(name).await.0, 2);
    }
}

/// Between two leaders nobody takes a stream's messages. The first one is sent again a little later; what is published in between does not
/// come before it.
#[tokio::test]
async fn what_is_published_behind_a_message_that_waits_for_its_stream_stays_behind_it() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    let bridge = nats_bridge::Bridge::connect(server.url()).await.expect("connected");
    let (js, name) = (bridge.jetstream(), "AQ_=2F_q");
    let config = js.get_stream(name).await.expect("a stream").cached_info().config.clone();
    js.delete_stream(name).await.expect("deleted");
    for number in 1..=3 {
        client.publish("", "q", number.to_string()).await;
    }
    // The refusals are there, and the next attempt is not.
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    js.create_stream(config).await.expect("made again");
    for number in 4..=6 {
        client.publish("", "q", number.to_string()).await;
    }
    for _ in 1..=6 {
        assert_eq!(client.confirm().await.1, PublishOutcome::Stored);
    }
    let stream = js.get_stream(name).await.expect("a stream");
    let mut bodies = Vec::new();
    for sequence in 1..=6 {
        let stored = stream.get_raw_message(sequence).await.expect("stored");
        bodies.push(String::from_utf8_lossy(&stored.payload).into_owned());
    }
    assert_eq!(bodies, ["1", "2", "3", "4", "5", "6"]);
}

#[tokio::test]
async fn an_unroutable_message_is_returned_when_mandatory_and_confirmed() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let seq = client.publish_with("amq.direct", "nowhere", "x", AMQPProperties::default(), true).await;
    let first = client.next("a return", |_| true, |event| event).await;
    match first {
        Event::Returned { error, message, .. } => {
            assert_eq!(error.code, ReplyCode::NoRoute);
            assert_eq!(&message.body[..], b"x");
        }
        other => panic!("expected a return, got {other:?}"),
    }
    assert_eq!(client.confirm().await, (seq, PublishOutcome::Stored));
    client.store("amq.direct", "nowhere", "not mandatory").await;
}

#[tokio::test]
async fn a_publish_to_a_missing_exchange_fails_the_channel_and_nothing_after_it_counts() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.publish("nope", "k", "x").await;
    client.publish("", "q", "after the failure").await;
    let late = client.topology(Topology::QueueDelete { queue: "q".into(), if_unused: false, if_empty: false }).await;
    assert!(late.is_err(), "the client has not heard of the failure yet");
    let wanted = |event: &Event| matches!(event, Event::ChannelFailed { .. });
    let error = client
        .next("the failure", wanted, |event| match event {
            Event::ChannelFailed { error, .. } => error,
            _ => unreachable!("only failures are wanted"),
        })
        .await;
    assert_eq!(error.to_string(), "NOT_FOUND - no exchange 'nope' in vhost '/'");
    assert_eq!(client.confirm().await.1, PublishOutcome::Failed);
    assert_eq!(client.confirm().await.1, PublishOutcome::Failed);
    client.close_channel().await;
    client.done(amqp_compat::backend::Command::OpenChannel { channel: 1 }).await;
    assert_eq!(client.counts("q").await, (0, 0));
}

#[tokio::test]
async fn of_several_faults_of_a_publish_the_first_is_told_in_rabbitmqs_order() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let wrong = || AMQPProperties::default().with_expiration("soon".into());
    let cc = table(&[("CC", AMQPValue::LongInt(1))]);
    for (exchange, properties, fault) in [
        ("nope", wrong().with_user_id("root".into()), "no exchange 'nope'"),
        ("", wrong().with_user_id("root".into()).with_delivery_mode(3), "user_id property set to 'root'"),
        ("", wrong().with_delivery_mode(3).with_headers(cc.clone()), "invalid expiration 'soon': no_integer"),
        ("", AMQPProperties::default().with_delivery_mode(3).with_headers(cc.clone()), "unacceptable_type_in_header"),
        ("", AMQPProperties::default().with_delivery_mode(3), "invalid message: {delivery_mode_unknown,3}"),
    ] {
        let mut client = Client::open(&*backend).await;
        client.publish_with(exchange, "k", "x", properties, false).await;
        let wanted = |event: &Event| matches!(event, Event::ChannelFailed { .. });
        let text = client.next("the failure", wanted, |event| format!("{event:?}")).await;
        assert!(text.contains(fault), "{text}");
    }
}

#[tokio::test]
async fn a_message_comes_back_without_its_bcc() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let headers = table(&[("BCC", AMQPValue::FieldArray(vec![text("nowhere")].into())), ("n", AMQPValue::LongInt(1))]);
    client.publish_with("", "nowhere", "x", AMQPProperties::default().with_headers(headers), true).await;
    let wanted = |event: &Event| matches!(event, Event::Returned { .. });
    let message = client
        .next("the message", wanted, |event| match event {
            Event::Returned { message, .. } => message,
            _ => unreachable!("only returns are wanted"),
        })
        .await;
    assert_eq!(message.properties.headers(), &Some(table(&[("n", AMQPValue::LongInt(1))])));
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_and_not_lost_silently() {
    let server = NatsServer::builder().config_line("max_payload: 1024").start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.publish("", "q", vec![0; 2048]).await;
    let wanted = |event: &Event| matches!(event, Event::ChannelFailed { .. });
    let text = client.next("the failure", wanted, |event| format!("{event:?}")).await;
    assert!(text.contains("message size 2048"), "{text}");
    assert_eq!(client.confirm().await.1, PublishOutcome::Failed);
}

#[tokio::test]
async fn exchanges_bound_to_exchanges_and_topics_route_over_the_wire() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    for (name, kind) in [("up", "topic"), ("down", "direct")] {
        client.topology(Topology::ExchangeDeclare(exchange(name, kind))).await.expect("declared");
    }
    let binding = Binding {
        source: "up".into(),
        destination: "down".into(),
        routing_key: "a.#".into(),
        arguments: Default::default(),
    };
    client.topology(Topology::ExchangeBind(binding)).await.expect("bound");
    client.bind("down", "q", "a.b").await;
    client.store("up", "a.b", "yes").await;
    client.store("up", "a.c", "no").await;
    client.store("up", "b", "no").await;
    assert_eq!(client.counts("q").await.0, 1);
    let got = client.get("q").await.expect("a message");
    assert_eq!(body(&got.delivery), "yes");
    assert_eq!(got.delivery.message.exchange.as_str(), "up");
}

#[tokio::test]
async fn bcc_routes_and_is_not_delivered() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    for name in ["a", "b", "c"] {
        client.declare(queue(name)).await;
    }
    let keys = |key: &str| AMQPValue::FieldArray(vec![text(key)].into());
    let headers = table(&[("CC", keys("b")), ("BCC", keys("c"))]);
    client.publish_with("", "a", "x", AMQPProperties::default().with_headers(headers), false).await;
    for name in ["a", "b", "c"] {
        let got = client.get(name).await.expect("a copy");
        let properties = got.delivery.message.properties;
        let headers = properties.headers().as_ref().expect("headers");
        assert!(headers.contains_key("CC") && !headers.contains_key("BCC"));
        assert_eq!(got.delivery.message.routing_key.as_str(), "a");
    }
}

#[tokio::test]
async fn a_native_client_publishes_to_a_queue_and_reads_what_amqp_published() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("orders.eu")).await;
    let native = async_nats::connect(server.url()).await.expect("connected");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("traceparent", "00-1");
    headers.insert("Amqp-Content-Type", "text/plain");
    native.publish_with_headers("aq.=2F.orders=2Eeu", headers, "hello".into()).await.expect("published");
    native.flush().await.expect("flushed");
    let mut delivery = None;
    for _ in 0..200 {
        if let Some(got) = client.get("orders.eu").await {
            delivery = Some(got.delivery);
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let delivery = delivery.expect("it arrives");
    assert_eq!(body(&delivery), "hello");
    assert_eq!(delivery.message.routing_key.as_str(), "orders.eu");
    assert_eq!(delivery.message.properties.content_type().as_ref().map(|t| t.as_str()), Some("text/plain"));
    client.settle(&[&delivery], Outcome::Ack).await;
    assert_eq!(client.counts("orders.eu").await.0, 0);
}
