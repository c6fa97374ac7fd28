//! Exclusive queues: they live in the gateway's memory, and do what queues with a stream do.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;
use amqp_compat::backend::jetstream::{JetStreamConfig, MemoryLimit};
use amqp_compat::backend::*;
use proptest::prelude::*;
use test_support::nats::NatsServer;

use crate::client::{Client, body, exchange, queue, table, text};
use crate::{backend, backend_with};

fn exclusive(name: &str, arguments: &[(&str, AMQPValue)]) -> QueueDeclare {
    QueueDeclare { exclusive: true, durable: false, arguments: table(arguments), ..queue(name) }
}

#[derive(Debug, Clone)]
enum Step {
    Publish(u8),
    Get,
    /// Which of the held, and how it ends.
    Settle(usize, Outcome),
    Purge,
    Count,
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![Just(Outcome::Ack), Just(Outcome::Requeue), Just(Outcome::Reject)];
    prop_oneof![
        6 => (0u8..4).prop_map(Step::Publish),
        5 => Just(Step::Get),
        4 => (any::<usize>(), outcome).prop_map(|(at, outcome)| Step::Settle(at, outcome)),
        1 => Just(Step::Purge),
        2 => Just(Step::Count),
    ]
}

/// Does the steps on one queue; what was seen, line by line.
async fn run(client: &mut Client, name: &str, steps: &[Step]) -> Vec<String> {
    let mut seen = Vec::new();
    let mut held: Vec<Delivery> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        seen.push(match step {
            Step::Publish(priority) => {
                let properties = AMQPProperties::default().with_priority(*priority);
                client.publish_with("", name, number.to_string(), properties, false).await;
                format!("{:?}", client.confirm().await.1)
            }
            Step::Get => match client.get(name).await {
                Some(got) => {
                    let line = (body(&got.delivery), got.delivery.redelivered, got.message_count);
                    held.push(got.delivery);
                    format!("{line:?}")
                }
                None => "empty".into(),
            },
            Step::Settle(at, outcome) if !held.is_empty() => {
                let delivery = held.remove(at % held.len());
                client.settle(&[&delivery], *outcome).await;
                // Nothing answers a settlement; a limit of length may or may not know of it before the next publish.
                format!("{:?}", client.counts(name).await)
            }
            Step::Settle(..) => String::new(),
            Step::Purge => {
                format!("{:?}", client.topology(Topology::QueuePurge { queue: name.into() }).await.expect("purged"))
            }
            Step::Count => format!("{:?}", client.counts(name).await),
        });
    }
    client.settle(&held.iter().collect::<Vec<_>>(), Outcome::Ack).await;
    seen
}

#[test]
fn an_exclusive_queue_does_what_one_with_a_stream_does() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = NatsServer::start();
    let backend = runtime.block_on(backend(&server));
    let kinds: [&[(&str, AMQPValue)]; 4] = [
        &[],
        &[("x-max-length", AMQPValue::LongInt(3))],
        &[("x-max-length", AMQPValue::LongInt(3)), ("x-overflow", text("reject-publish"))],
        &[("x-max-priority", AMQPValue::LongInt(2))],
    ];
    let cases = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) };
    proptest!(cases, |(steps in proptest::collection::vec(step(), 5..40), kind in 0usize..4)| {
        runtime.block_on(async {
            let mut client = Client::open(&*backend).await;
            let mine = client.declare(exclusive("", kinds[kind])).await.0;
            let stored = format!("stored-{}", mine.replace('.', "-"));
            client.declare(QueueDeclare { arguments: table(kinds[kind]), ..queue(&stored) }).await;
            let (mine, stored) = (run(&mut client, &mine, &steps).await, run(&mut client, &stored, &steps).await);
            client.close().await;
            prop_assert_eq!(mine, stored);
            Ok(())
        })?;
    });
}

#[tokio::test]
async fn consumers_of_an_exclusive_queue_get_its_messages_in_order_and_nothing_of_them_is_in_jetstream() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let mut other = Client::open(&*backend).await;
    client.declare(queue("kept")).await;
    client.declare(exclusive("mine", &[])).await;
    client.topology(Topology::ExchangeDeclare(exchange("x", "fanout"))).await.expect("declared");
    client.bind("x", "mine", "").await;
    client.bind("x", "kept", "").await;
    client.consume("mine", "c", 2).await;
    for n in 0..4 {
        other.store("x", "", n.to_string()).await;
    }
    let first = [client.delivery().await, client.delivery().await];
    assert_eq!([body(&first[0]), body(&first[1])], ["0", "1"]);
    assert!(client.no_delivery().await);
    client.settle(&[&first[0]], Outcome::Requeue).await;
    client.settle(&[&first[1]], Outcome::Ack).await;
    client.credit("c", 3).await;
    for expected in [("0", true), ("2", false), ("3", false)] {
        let delivery = client.delivery().await;
        assert_eq!((body(&delivery).as_str(), delivery.redelivered), expected);
        client.settle(&[&delivery], Outcome::Ack).await;
    }
    assert_eq!((client.counts("mine").await, client.counts("kept").await), ((0, 1), (4, 0)));
    let streams = server.monitor("/jsz?streams=true").expect("jsz answers").to_string();
    assert!(streams.contains("kept") && !streams.contains("mine"), "{streams}");
}

#[tokio::test]
async fn what_dies_in_an_exclusive_queue_is_dead_lettered_and_dead_letters_come_into_one() {
    let server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    let to = |name: &str| [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text(name))];
    client.declare(exclusive("end", &[])).await;
    client.declare(QueueDeclare { arguments: table(&to("end")), ..queue("kept") }).await;
    client.declare(exclusive("first", &to("kept"))).await;
    client.declare(exclusive("ttl", &[&to("first")[..], &[("x-message-ttl", AMQPValue::LongInt(1))]].concat())).await;
    client.consume("first", "a", 10).await;
    client.consume("kept", "b", 10).await;
    client.consume("end", "c", 10).await;
    client.store("", "ttl", "dies three times").await;
    for tag in ["a", "b"] {
        let (of, delivery) = client.delivery_of().await;
        assert_eq!((of.as_str(), body(&delivery).as_str()), (tag, "dies three times"));
        client.settle(&[&delivery], Outcome::Reject).await;
    }
    let (of, delivery) = client.delivery_of().await;
    assert_eq!(of, "c");
    let headers = delivery.message.properties.headers().clone().expect("headers");
    let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { panic!("{headers:?}") };
    assert_eq!(deaths.as_slice().len(), 3);
}

#[tokio::test]
async fn the_memory_of_exclusive_queues_is_bounded_and_given_back() {
    let server = NatsServer::start();
    let memory = MemoryLimit::new(10_000);
    let config = JetStreamConfig { memory: memory.clone(), ..JetStreamConfig::default() };
    let backend = backend_with(&server, config).await;
    let mut client = Client::open(&*backend).await;
    client.declare(exclusive("mine", &[])).await;
    client.store("", "mine", vec![7; 5_000]).await;
    client.publish("", "mine", vec![7; 5_000]).await;
    assert_eq!(client.confirm().await.1, PublishOutcome::Failed);
    assert!(memory.used() > 5_000 && memory.used() < memory.most());
    let got = client.get("mine").await.expect("the first");
    client.settle(&[&got.delivery], Outcome::Ack).await;
    assert!(client.get("mine").await.is_none());
    client.store("", "mine", vec![7; 5_000]).await;
    client.close().await;
    test_support::eventually::eventually_true("the memory is free", || async { memory.used() == 0 }).await;
}

#[tokio::test]
async fn an_exclusive_queue_outlives_its_server() {
    let mut server = NatsServer::start();
    let backend = backend(&server).await;
    let mut client = Client::open(&*backend).await;
    client.declare(exclusive("mine", &[])).await;
    client.consume("mine", "c", 1).await;
    client.store("", "mine", "1").await;
    client.store("", "mine", "2").await;
    server.kill_9();
    let first = client.delivery().await;
    client.settle(&[&first], Outcome::Ack).await;
    client.credit("c", 1).await;
    assert_eq!(body(&client.delivery().await), "2");
    server.restart();
    client.store("", "mine", "3").await;
    client.credit("c", 1).await;
    assert_eq!(body(&client.delivery().await), "3");
}
