use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, FieldTable};
use amqp_compat::backend::*;
use test_support::eventually::{eventually_some, eventually_true};
use test_support::nats::NatsServer;
use tokio::sync::Mutex;

use crate::backend;
use crate::client::{Client, body, exchange, queue, table, text};

/// A queue that dead-letters to the queue `d`, by the default exchange.
fn dying(name: &str, more: &[(&str, AMQPValue)]) -> QueueDeclare {
    let mut arguments = vec![("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text("d"))];
    arguments.extend(more.iter().cloned());
    QueueDeclare { arguments: table(&arguments), ..queue(name) }
}

fn headers(message: &Message) -> FieldTable {
    message.properties.headers().clone().unwrap_or_default()
}

/// Queue, reason and count of each death, newest first.
fn deaths(message: &Message) -> Vec<(String, String, i64)> {
    let headers = headers(message);
    let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { return Vec::new() };
    let read = |death: &AMQPValue| {
        let AMQPValue::FieldTable(death) = death else { panic!("a table, not {death:?}") };
        let word = |name| match &death.inner()[name] {
            AMQPValue::LongString(text) => text.to_string(),
            other => panic!("a text, not {other:?}"),
        };
        let AMQPValue::LongLongInt(count) = death.inner()["count"] else { panic!("a count in {death:?}") };
        (word("queue"), word("reason"), count)
    };
    deaths.as_slice().iter().map(read).collect()
}

fn death(queue: &str, reason: &str, count: i64) -> (String, String, i64) {
    (queue.to_owned(), reason.to_owned(), count)
}

/// Waits for a message in `queue`, and acknowledges it.
async fn arrived(client: &mut Client, queue: &str) -> Delivery {
    let shared = Mutex::new(client);
    let got = eventually_some("a dead letter", || async { shared.lock().await.get(queue).await }).await.delivery;
    let client = shared.into_inner();
    client.settle(&[&got], Outcome::Ack).await;
    got
}

#[tokio::test]
async fn a_rejected_message_goes_to_the_dead_letter_exchange_with_its_story() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(dying("q", &[])).await;
    client.declare(queue("d")).await;
    client.topology(Topology::ExchangeDeclare(exchange("x", "direct"))).await.expect("declared");
    client.bind("x", "q", "k").await;
    let properties = AMQPProperties::default()
        .with_expiration("60000".into())
        .with_headers(table(&[("CC", AMQPValue::FieldArray(vec![text("c")].into())), ("mine", text("kept"))]));
    client.publish_with("x", "k", "hello", properties, false).await;
    client.confirm().await;
    let got = client.get("q").await.expect("a message").delivery;
    client.settle(&[&got], Outcome::Reject).await;

    let dead = arrived(&mut client, "d").await;
    assert_eq!((dead.message.exchange.as_str(), dead.message.routing_key.as_str()), ("", "d"));
    assert_eq!(body(&dead), "hello");
    assert!(!dead.redelivered);
    assert_eq!(dead.message.properties.expiration(), &None);
    let headers = headers(&dead.message);
    assert_eq!(headers.inner().get("CC"), None, "a new routing key takes the place of all");
    assert_eq!(headers.inner()["mine"], text("kept"));
    assert_eq!(headers.inner()["x-first-death-queue"], text("q"));
    assert_eq!(headers.inner()["x-first-death-reason"], text("rejected"));
    assert_eq!(headers.inner()["x-first-death-exchange"], text("x"));
    assert_eq!(deaths(&dead.message), [death("q", "rejected", 1)]);
    let AMQPValue::FieldArray(list) = &headers.inner()["x-death"] else { panic!("a list") };
    let AMQPValue::FieldTable(first) = &list.as_slice()[0] else { panic!("a table") };
    assert_eq!(first.inner()["original-expiration"], text("60000"));
    assert_eq!(first.inner()["routing-keys"], AMQPValue::FieldArray(vec![text("k"), text("c")].into()));
    assert!(matches!(first.inner()["time"], AMQPValue::Timestamp(at) if at > 1_700_000_000));
    assert_eq!(client.counts("q").await.0, 0);
}

#[tokio::test]
async fn expired_messages_arrive_in_order_and_none_is_lost() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(dying("q", &[("x-message-ttl", AMQPValue::LongInt(200))])).await;
    client.declare(queue("d")).await;
    for n in 0..400 {
        client.publish("", "q", n.to_string()).await;
    }
    client.consume("d", "c", 1000).await;
    for n in 0..400 {
        let delivery = client.delivery().await;
        assert_eq!(body(&delivery), n.to_string());
        assert_eq!(deaths(&delivery.message), [death("q", "expired", 1)]);
    }
    assert_eq!(client.counts("q").await.0, 0);
}

#[tokio::test]
async fn a_message_that_goes_round_by_itself_is_dropped_and_a_rejected_one_is_not() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    // `d` expires into `q`, and `q` expires into `d`.
    let ttl = ("x-message-ttl", AMQPValue::LongInt(1));
    client.declare(dying("q", std::slice::from_ref(&ttl))).await;
    let back = [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text("q"))];
    client.declare(QueueDeclare { arguments: table(&back), ..queue("d") }).await;
    client.store("", "q", "round").await;
    for round in 1..4 {
        let shared = Mutex::new(client);
        let got = eventually_some("a dead letter", || async { shared.lock().await.get("d").await }).await.delivery;
        client = shared.into_inner();
        assert!(deaths(&got.message).contains(&death("q", "expired", round)), "{:?}", deaths(&got.message));
        client.settle(&[&got], Outcome::Reject).await;
    }
    client
        .declare(QueueDeclare {
            arguments: table(&[ttl, back[0].clone(), ("x-dead-letter-routing-key", text("r"))]),
            ..queue("p")
        })
        .await;
    client
        .declare(dying("r", &[("x-message-ttl", AMQPValue::LongInt(1)), ("x-dead-letter-routing-key", text("p"))]))
        .await;
    client.store("", "p", "dropped").await;
    let shared = Mutex::new(client);
    eventually_true("it is gone", || async {
        let mut client = shared.lock().await;
        client.counts("p").await.0 + client.counts("r").await.0 == 0
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_without_a_route_is_dropped_and_an_internal_exchange_takes_one() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let arguments = table(&[("x-dead-letter-exchange", text("dlx"))]);
    client.declare(QueueDeclare { arguments, ..queue("q") }).await;
    client.declare(queue("d")).await;
    let reject = async |client: &mut Client, body: &str| {
        let bcc = table(&[("BCC", AMQPValue::FieldArray(vec![text("hidden")].into()))]);
        client.publish_with("", "q", body, AMQPProperties::default().with_headers(bcc), false).await;
        client.confirm().await;
        let got = client.get("q").await.expect("a message").delivery;
        client.settle(&[&got], Outcome::Reject).await;
        assert_eq!(client.counts("q").await.0, 0);
    };
    reject(&mut client, "no exchange").await;
    let dlx = ExchangeDeclare { internal: true, ..exchange("dlx", "direct") };
    client.topology(Topology::ExchangeDeclare(dlx)).await.expect("declared");
    reject(&mut client, "no binding").await;
    client.bind("dlx", "d", "hidden").await;
    reject(&mut client, "routed").await;
    let dead = arrived(&mut client, "d").await;
    assert_eq!(body(&dead), "routed", "the keys of BCC route a dead letter as well");
    assert_eq!(dead.message.routing_key.as_str(), "q");
    assert_eq!(headers(&dead.message).inner().get("BCC"), None);
    assert!(client.get("d").await.is_none());
}

#[tokio::test]
async fn a_crash_between_storing_and_settling_makes_no_second_dead_letter() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(dying("q", &[])).await;
    client.declare(queue("d")).await;
    client.store("", "q", "once").await;
    let got = client.get("q").await.expect("a message").delivery;
    // What the gateway would have stored before it died: the message's copy, with the id that it has.
    let nats = async_nats::connect(server.url()).await.expect("connected");
    let stream = "AQ_=2F_q";
    let info = nats.request(format!("$JS.API.STREAM.MSG.GET.{stream}"), r#"{"seq":1}"#.into()).await.expect("answered");
    let info: serde_json::Value = serde_json::from_slice(&info.payload).expect("JSON");
    let stored = info["message"]["time"].as_str().expect("a time").to_owned();
    let stored = time::OffsetDateTime::parse(&stored, &time::format_description::well_known::Rfc3339).expect("a time");
    let mut id = async_nats::HeaderMap::new();
    id.insert("Nats-Msg-Id", format!("dlx:{stream}:1:{}", stored.unix_timestamp_nanos()).as_str());
    let js = async_nats::jetstream::new(nats);
    js.publish_with_headers("aq.=2F.d", id, "once".into()).await.expect("sent").await.expect("stored");

    client.settle(&[&got], Outcome::Reject).await;
    let shared = Mutex::new(client);
    eventually_true("the original is settled", || async {
        let mut stream = js.get_stream(stream).await.expect("there");
        stream.info().await.expect("info").state.messages == 0
    })
    .await;
    assert_eq!(shared.lock().await.counts("d").await.0, 1);
}

#[tokio::test]
async fn a_server_killed_while_messages_die_loses_none() {
    let mut server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(dying("q", &[])).await;
    client.declare(queue("d")).await;
    for n in 0..200 {
        client.publish("", "q", n.to_string()).await;
    }
    for _ in 0..200 {
        client.confirm().await;
    }
    client.consume("q", "c", 200).await;
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(client.delivery().await);
    }
    client.settle(&held[..100].iter().collect::<Vec<_>>(), Outcome::Reject).await;
    server.kill_9();
    client.settle(&held[100..].iter().collect::<Vec<_>>(), Outcome::Reject).await;
    server.restart();
    client.consume("d", "cd", 1000).await;
    let mut bodies = std::collections::BTreeSet::new();
    while bodies.len() < 200 {
        bodies.insert(body(&client.delivery().await));
    }
}

#[tokio::test]
async fn a_quorum_queue_counts_returns_and_gives_up_at_its_limit() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let quorum = ("x-queue-type", text("quorum"));
    client.declare(dying("q", &[quorum, ("x-delivery-limit", AMQPValue::LongInt(2))])).await;
    client.declare(queue("d")).await;
    client.store("", "q", "poison").await;
    for count in 0..3 {
        let got = client.get("q").await.expect("a message").delivery;
        assert_eq!(headers(&got.message).inner()["x-delivery-count"], AMQPValue::LongLongInt(count));
        assert_eq!(got.redelivered, count > 0);
        match count {
            // A channel that closes gives back as well.
            0 => {
                client.close_channel().await;
                client.done(Command::OpenChannel { channel: 1 }).await;
            }
            _ => client.settle(&[&got], Outcome::Requeue).await,
        }
    }
    assert!(client.get("q").await.is_none());
    let dead = arrived(&mut client, "d").await;
    assert_eq!(deaths(&dead.message), [death("q", "delivery_limit", 1)]);
    assert_eq!(headers(&dead.message).inner().get("x-delivery-count"), None);
}
