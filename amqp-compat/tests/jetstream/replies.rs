//! Direct reply-to.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, FieldArray};
use amqp_compat::backend::{Command, Consume, Delivery, DeliveryId, Event, Outcome, QueueDeclare, Topology};
use amqp_compat::error::ReplyCode;
use test_support::nats::NatsServer;

use crate::backend;
use crate::client::{Client, body, queue, table};

const PSEUDO: &str = "amq.rabbitmq.reply-to";

fn waits(tag: &str) -> Consume {
    Consume { no_ack: true, ..Client::consume_command(PSEUDO, tag, 0) }
}

fn request() -> AMQPProperties {
    AMQPProperties::default().with_reply_to(PSEUDO.into()).with_correlation_id("7".into())
}

/// Publishes a request, and gives it as its server gets it.
async fn ask(client: &mut Client, server: &mut Client) -> Delivery {
    client.publish_with("", "requests", "ping", request(), false).await;
    client.confirm().await;
    let got = server.get("requests").await.expect("the request");
    server.settle(&[&got.delivery], Outcome::Ack).await;
    got.delivery
}

fn reply_to(request: &Delivery) -> String {
    request.message.properties.reply_to().as_ref().map(ToString::to_string).expect("a name to answer to")
}

#[tokio::test]
async fn a_reply_goes_to_the_client_that_asked_from_any_connection() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let mut other = Client::open(&*backend).await;
    let mut server = Client::open(&*backend).await;
    server.declare(queue("requests")).await;
    client.done(Command::Consume { channel: 1, consume: waits("mine") }).await;
    other.done(Command::Consume { channel: 1, consume: waits("theirs") }).await;

    let asked = ask(&mut client, &mut server).await;
    let name = reply_to(&asked);
    assert!(name.starts_with("amq.rabbitmq.reply-to."), "{name}");
    assert_ne!(name, reply_to(&ask(&mut other, &mut server).await));
    assert_eq!(server.counts(&name).await, (0, 1));
    server.store("", &name, "pong").await;
    let (tag, reply) = client.delivery_of().await;
    assert_eq!((tag.as_str(), body(&reply).as_str(), reply.redelivered), ("mine", "pong", false));
    assert_eq!((reply.id, reply.message.routing_key.as_str()), (DeliveryId::DIRECT, name.as_str()));
    assert!(other.no_delivery().await && client.no_delivery().await);

    // `mandatory` does not count it as a route, as in RabbitMQ; it arrives all the same.
    let seq = server.publish_with("", &name, "again", AMQPProperties::default(), true).await;
    server.next("a return", |event| matches!(event, Event::Returned { .. }), drop).await;
    assert_eq!(server.confirm().await.0, seq);
    assert_eq!(body(&client.delivery().await), "again");

    // Through another key's carbon copy as well, without what is not for its eyes.
    let keys = |name: &str| AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongString(name.into())]));
    let properties = AMQPProperties::default().with_headers(table(&[("BCC", keys(&name))]));
    server.publish_with("", "requests", "copy", properties, false).await;
    let copy = client.delivery().await;
    assert_eq!((body(&copy).as_str(), copy.message.routing_key.as_str()), ("copy", "requests"));
    assert!(copy.message.properties.headers().as_ref().is_none_or(|headers| !headers.contains_key("BCC")));
}

#[tokio::test]
async fn the_name_is_gone_with_its_consumer_its_channel_and_its_connection() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut server = Client::open(&*backend).await;
    server.declare(queue("requests")).await;
    for way in 0..3 {
        let mut client = Client::open(&*backend).await;
        client.done(Command::Consume { channel: 1, consume: waits("mine") }).await;
        let name = reply_to(&ask(&mut client, &mut server).await);
        assert_eq!(server.counts(&name).await, (0, 1));
        match way {
            0 => client.done(Command::Cancel { channel: 1, consumer_tag: "mine".into() }).await,
            1 => client.close_channel().await,
            _ => client.close().await,
        }
        let passive = QueueDeclare { passive: true, ..queue(&name) };
        let error = server.topology(Topology::QueueDeclare(passive)).await.expect_err("nobody is there");
        assert_eq!(error.to_string(), format!("NOT_FOUND - no queue '{name}' in vhost '/'"));
        // What comes late goes nowhere, and its publisher is told that it was taken.
        server.store("", &name, "late").await;
    }
}

#[tokio::test]
async fn a_reply_consumer_is_one_for_a_channel_and_does_not_acknowledge() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    assert_eq!(client.counts(PSEUDO).await, (0, 1));
    let refused = |error: amqp_compat::AmqpError| error.to_string();
    let consume = Consume { no_ack: false, ..waits("mine") };
    let error = client.request(Command::Consume { channel: 1, consume }).await.expect_err("refused");
    assert_eq!(refused(error), "PRECONDITION_FAILED - reply consumer cannot acknowledge");
    client.done(Command::Consume { channel: 1, consume: waits("mine") }).await;
    let error = client.request(Command::Consume { channel: 1, consume: waits("two") }).await.expect_err("refused");
    assert_eq!(refused(error), "PRECONDITION_FAILED - reply consumer already set");

    let mut nobody = Client::open(&*backend).await;
    nobody.publish_with("", "requests", "ping", request(), false).await;
    let wanted = |event: &Event| matches!(event, Event::ChannelFailed { .. });
    let error = nobody
        .next("a failed channel", wanted, |event| match event {
            Event::ChannelFailed { error, .. } => error,
            _ => unreachable!("only failures are wanted"),
        })
        .await;
    assert_eq!(
        (error.code, error.text.as_str()),
        (ReplyCode::PreconditionFailed, "fast reply consumer does not exist")
    );
}

#[tokio::test]
async fn a_client_that_takes_no_replies_holds_up_nobody() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let mut server = Client::open(&*backend).await;
    server.declare(queue("requests")).await;
    client.done(Command::Consume { channel: 1, consume: waits("mine") }).await;
    let name = reply_to(&ask(&mut client, &mut server).await);
    let many = amqp_compat::backend::LINK_CAPACITY + 100;
    for n in 0..many {
        server.publish("", &name, n.to_string()).await;
        server.confirm().await;
    }
    // What its link has room for is there, in order; the rest is dropped.
    for n in 0..100 {
        assert_eq!(body(&client.delivery().await), n.to_string());
    }
    server.store("", &name, "later").await;
    let mut last = String::new();
    while last != "later" {
        last = body(&client.delivery().await);
    }
}
