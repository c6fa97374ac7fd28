use std::time::Duration;

use amq_protocol::types::AMQPValue;
use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig};
use amqp_compat::backend::*;
use amqp_compat::model::policy::{ApplyTo, Policy, PolicyValue, Scope};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use tokio::sync::Mutex;

use crate::client::{Client, body, exchange, queue, table, text as long_text};
use crate::{backend, backend_with, one_lease};

fn number(name: &str, value: i64) -> (String, PolicyValue) {
    (name.to_owned(), PolicyValue::Integer(value))
}

fn text(name: &str, value: &str) -> (String, PolicyValue) {
    (name.to_owned(), PolicyValue::Text(value.to_owned()))
}

fn policy(scope: Scope, name: &str, pattern: &str, set: &[(String, PolicyValue)]) -> Policy {
    Policy::new(scope, name, pattern, ApplyTo::All, 0, set.iter().cloned().collect()).expect("valid")
}

async fn put(backend: &JetStreamBackend, pattern: &str, set: &[(String, PolicyValue)]) {
    backend.put_policy("/", policy(Scope::User, "p", pattern, set)).await.expect("put");
}

async fn drop_it(backend: &JetStreamBackend) {
    assert!(backend.drop_policy("/", Scope::User, "p").await.expect("answered"), "it was there");
}

async fn ready(client: &mut Client, queue: &str) -> Vec<String> {
    let mut taken = Vec::new();
    while let Some(got) = client.get(queue).await {
        taken.push(got.delivery);
    }
    client.settle(&taken.iter().collect::<Vec<_>>(), Outcome::Requeue).await;
    taken.iter().map(body).collect()
}

async fn store(client: &mut Client, queue: &str, numbers: std::ops::Range<u32>) {
    for n in numbers {
        client.store("", queue, n.to_string()).await;
    }
}

#[tokio::test]
async fn a_limit_shortens_what_is_there_and_goes_with_its_policy() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.declare(queue("other")).await;
    store(&mut client, "q", 0..6).await;
    store(&mut client, "other", 0..6).await;
    assert!(backend.put_policy("/", policy(Scope::User, "p", "^q$", &[number("max-length", 3)])).await.expect("put"));
    assert_eq!(ready(&mut client, "q").await, ["3", "4", "5"]);
    assert_eq!(client.counts("other").await.0, 6);
    store(&mut client, "q", 6..7).await;
    assert_eq!(ready(&mut client, "q").await, ["4", "5", "6"]);
    put(&backend, "^q$", &[number("max-length", 2)]).await;
    assert_eq!(ready(&mut client, "q").await, ["5", "6"], "another value of the same policy");
    drop_it(&backend).await;
    store(&mut client, "q", 7..10).await;
    assert_eq!(ready(&mut client, "q").await, ["5", "6", "7", "8", "9"]);
    put(&backend, "", &[number("max-length-bytes", 2)]).await;
    assert_eq!(ready(&mut client, "q").await, ["8", "9"]);
    assert_eq!(ready(&mut client, "other").await, ["4", "5"]);
    client.declare(queue("new")).await;
    store(&mut client, "new", 0..4).await;
    assert_eq!(ready(&mut client, "new").await, ["2", "3"], "a queue that is declared later");
}

#[tokio::test]
async fn what_clients_hold_is_not_touched_by_a_limit_that_comes() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    store(&mut client, "q", 0..8).await;
    client.consume("q", "c", 2).await;
    let (first, second) = (client.delivery().await, client.delivery().await);
    put(&backend, "^q$", &[number("max-length", 3)]).await;
    assert_eq!(client.counts("q").await.0, 3);
    client.settle(&[&first, &second], Outcome::Ack).await;
    for expected in ["5", "6", "7"] {
        client.credit("c", 1).await;
        let delivery = client.delivery().await;
        assert_eq!((body(&delivery).as_str(), delivery.redelivered), (expected, false));
        client.settle(&[&delivery], Outcome::Ack).await;
    }
    assert_eq!(client.counts("q").await.0, 0);
}

#[tokio::test]
async fn a_full_queue_refuses_or_passes_on_as_the_policy_says() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.declare(queue("d")).await;
    let full = [number("max-length", 1), text("overflow", "reject-publish")];
    put(&backend, "^q$", &full).await;
    store(&mut client, "q", 0..1).await;
    client.publish("", "q", "refused").await;
    assert_eq!(client.confirm().await.1, PublishOutcome::Failed);
    let passes = [
        number("max-length", 1),
        text("overflow", "reject-publish-dlx"),
        text("dead-letter-exchange", ""),
        text("dead-letter-routing-key", "d"),
    ];
    put(&backend, "^q$", &passes).await;
    client.publish("", "q", "passed on").await;
    assert_eq!(client.confirm().await.1, PublishOutcome::Failed);
    assert_eq!(ready(&mut client, "q").await, ["0"]);
    assert_eq!(ready(&mut client, "d").await, ["passed on"]);
    let got = client.get("q").await.expect("a message").delivery;
    client.settle(&[&got], Outcome::Reject).await;
    let client = Mutex::new(client);
    eventually_true("a dead letter", || async { client.lock().await.counts("d").await.0 == 2 }).await;
}

#[tokio::test]
async fn a_time_to_live_is_that_of_the_policy_when_the_message_came() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    store(&mut client, "q", 0..1).await;
    put(&backend, "^q$", &[number("message-ttl", 1)]).await;
    let got = client.get("q").await.expect("what was there before does not expire").delivery;
    client.settle(&[&got], Outcome::Ack).await;
    put(&backend, "^q$", &[number("message-ttl", 700)]).await;
    store(&mut client, "q", 1..2).await;
    let got = client.get("q").await.expect("a message").delivery;
    assert_eq!(got.message.properties, Default::default(), "it does not show");
    client.settle(&[&got], Outcome::Requeue).await;
    drop_it(&backend).await;
    store(&mut client, "q", 2..3).await;
    let client = Mutex::new(client);
    eventually_true("it expires", || async { client.lock().await.counts("q").await.0 == 1 }).await;
    assert_eq!(ready(&mut client.into_inner(), "q").await, ["2"]);
}

#[tokio::test]
async fn an_unused_queue_goes_when_a_policy_says_so() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.declare(queue("stays")).await;
    put(&backend, "^q$", &[number("expires", 50)]).await;
    eventually_true("it goes", || async { backend.queue("/", "q").is_none() }).await;
    assert!(backend.queue("/", "stays").is_some());
}

#[tokio::test]
async fn an_alternate_exchange_by_policy_takes_what_nothing_took() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(queue("q")).await;
    client.topology(Topology::ExchangeDeclare(exchange("x", "direct"))).await.expect("declared");
    client.bind("amq.fanout", "q", "").await;
    put(&backend, "^x$", &[text("alternate-exchange", "amq.fanout")]).await;
    client.store("x", "nowhere", "taken").await;
    drop_it(&backend).await;
    client.store("x", "nowhere", "lost").await;
    assert_eq!(ready(&mut client, "q").await, ["taken"]);
}

#[tokio::test]
async fn policies_outlive_the_gateway_and_an_operator_limits_them() {
    let server = NatsServer::start();
    let config = one_lease(&server).await;
    let first = backend_with(&server, config.clone()).await;
    let mut client = Client::open(&*first).await;
    client.declare(queue("q")).await;
    put(&first, "^q$", &[number("max-length", 4), text("overflow", "reject-publish")]).await;
    first.put_policy("/", policy(Scope::Operator, "p", "", &[number("max-length", 2)])).await.expect("put");
    store(&mut client, "q", 0..2).await;
    client.close().await;
    drop(first);

    let second = backend_with(&server, config).await;
    let mut client = Client::open(&*second).await;
    client.publish("", "q", "refused").await;
    assert_eq!(client.confirm().await.1, PublishOutcome::Failed);
    assert_eq!(
        second.policies("/", Scope::User),
        [policy(Scope::User, "p", "^q$", &[number("max-length", 4), text("overflow", "reject-publish")])]
    );
    assert!(second.drop_policy("/", Scope::Operator, "p").await.expect("answered"));
    assert!(!second.drop_policy("/", Scope::Operator, "p").await.expect("answered"), "it is gone");
    store(&mut client, "q", 2..4).await;
    assert_eq!(ready(&mut client, "q").await, ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn a_policy_applies_to_an_exclusive_queue_which_lives_in_memory() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(QueueDeclare { durable: false, exclusive: true, ..queue("q") }).await;
    store(&mut client, "q", 0..6).await;
    let held = client.get("q").await.expect("a message").delivery;
    put(&backend, "^q$", &[number("max-length", 3)]).await;
    assert_eq!(ready(&mut client, "q").await, ["3", "4", "5"]);
    store(&mut client, "q", 6..7).await;
    assert_eq!(ready(&mut client, "q").await, ["4", "5", "6"]);
    drop_it(&backend).await;
    store(&mut client, "q", 7..9).await;
    client.settle(&[&held], Outcome::Requeue).await;
    assert_eq!(ready(&mut client, "q").await, ["0", "4", "5", "6", "7", "8"]);
}

#[tokio::test]
async fn a_delivery_says_how_long_its_client_may_take() {
    let server = NatsServer::start();
    let of_gateway = Duration::from_secs(7);
    let config = JetStreamConfig { consumer_timeout: Some(of_gateway), ..JetStreamConfig::default() };
    let backend = backend_with(&server, config).await;
    let mut client = Client::open(&*backend).await;
    let with = |name, arguments| QueueDeclare { arguments, ..queue(name) };
    let five = AMQPValue::LongInt(5000);
    client.declare(queue("plain")).await;
    client.declare(with("own", table(&[("x-consumer-timeout", five.clone())]))).await;
    client.declare(QueueDeclare { exclusive: true, ..queue("exclusive") }).await;
    client.declare(with("quorum", table(&[("x-queue-type", long_text("quorum"))]))).await;
    let mut taken = async |name: &str| {
        client.store("", name, "m").await;
        let got = client.get(name).await.expect("a message").delivery;
        client.settle(&[&got], Outcome::Ack).await;
        got.ack_timeout
    };
    for name in ["plain", "exclusive", "quorum"] {
        assert_eq!(taken(name).await, Some(of_gateway), "{name}");
    }
    assert_eq!(taken("own").await, Some(Duration::from_secs(5)));
    put(&backend, "", &[number("consumer-timeout", 6000)]).await;
    assert_eq!(taken("plain").await, Some(Duration::from_secs(6)), "what is set for a queue counts, not what is lower");
    assert_eq!(taken("own").await, Some(Duration::from_secs(5)), "of what is set for a queue the lower counts");
    drop_it(&backend).await;
    assert_eq!(taken("plain").await, Some(of_gateway));

    let never = table(&[("x-consumer-timeout", AMQPValue::LongInt(0))]);
    let refused = client.topology(Topology::QueueDeclare(with("never", never))).await.expect_err("refused");
    assert_eq!(
        refused.to_string(),
        "PRECONDITION_FAILED - invalid arg 'x-consumer-timeout' for queue 'never' in vhost '/': {value_zero,0}"
    );
}
