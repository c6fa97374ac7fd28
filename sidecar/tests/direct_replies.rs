//! Direct reply-to through the sidecar: a client that asks is answered in every phase, whoever owns its request.

mod bed;

use bed::{CAP, Ends};
use futures::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use sidecar::control_api::Target;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

const PSEUDO: &str = "amq.rabbitmq.reply-to";
/// Enough keys for both sides to own some of them at half weight.
const QUEUES: usize = 12;

async fn reply_consumer(channel: &Channel) -> Consumer {
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    channel.basic_consume(PSEUDO.into(), "replies".into(), options, FieldTable::default()).await.expect("begun")
}

async fn take(channel: &Channel, queue: &str) -> String {
    let taken = async {
        loop {
            if let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("answered") {
                got.ack(BasicAckOptions::default()).await.expect("acknowledged");
                return got.properties.reply_to().as_ref().map(ToString::to_string).expect("a name to answer to");
            }
        }
    };
    tokio::time::timeout(CAP, taken).await.expect("the request comes")
}

/// Asks through every queue and is answered by `server`; gives the names that were answered to.
async fn ask_all(client: &Channel, replies: &mut Consumer, server: &Channel) -> Vec<String> {
    let mut names = Vec::new();
    for n in 0..QUEUES {
        let (queue, body) = (format!("requests-{n}"), format!("ping {n}"));
        let properties = BasicProperties::default().with_reply_to(PSEUDO.into());
        let options = BasicPublishOptions::default();
        let published = client.basic_publish("".into(), queue.as_str().into(), options, body.as_bytes(), properties);
        published.await.expect("published");
        let name = take(server, &queue).await;
        let declared = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = server.queue_declare(name.as_str().into(), declared, FieldTable::default()).await;
        assert_eq!(declared.expect("the client is there").consumer_count(), 1);
        let (key, loud) = (name.as_str().into(), body.to_uppercase());
        let answer = server.basic_publish("".into(), key, options, loud.as_bytes(), BasicProperties::default());
        answer.await.expect("published");
        let reply = tokio::time::timeout(CAP, replies.next()).await.expect("an answer").expect("open").expect("open");
        assert_eq!(String::from_utf8_lossy(&reply.data), loud);
        names.push(name);
    }
    names
}

fn own(names: &[String]) -> usize {
    names.iter().filter(|name| name.starts_with("amq.rabbitmq.reply-to.nb-")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_answered_directly_in_every_phase_whoever_owns_its_request() {
    let nats = NatsServer::start();
    let rabbit = tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started");
    let ends = Ends::new(rabbit, &nats);
    let sidecar = ends.sidecar().await;
    let (client, server) = (sidecar.connect().await, sidecar.connect().await);
    let (client, server) = (client.create_channel().await, server.create_channel().await);
    let (client, server) = (client.expect("a channel"), server.expect("a channel"));
    for n in 0..QUEUES {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let declared = server.queue_declare(format!("requests-{n}").into(), durable, FieldTable::default());
        declared.await.expect("declared");
    }
    let mut replies = reply_consumer(&client).await;

    // RabbitMQ owns everything: a server that has not come to the sidecar yet answers as well.
    assert_eq!(own(&ask_all(&client, &mut replies, &server).await), 0);
    let past = Connection::connect(&rabbit.url_for(&ends.vhost), ConnectionProperties::default()).await;
    let past = past.expect("connected").create_channel().await.expect("a channel");
    assert_eq!(own(&ask_all(&client, &mut replies, &past).await), 0);

    sidecar.change(Target::Shadow).await.expect("allowed");
    assert_eq!(own(&ask_all(&client, &mut replies, &server).await), 0);
    assert_eq!(sidecar.status().await.unmapped.len(), 0, "nothing about replies is missed in JetStream");

    sidecar.weight(50.0).await;
    let shared = own(&ask_all(&client, &mut replies, &server).await);
    assert!(0 < shared && shared < QUEUES, "{shared} of {QUEUES} are owned by NATS");

    sidecar.weight(100.0).await;
    assert_eq!(own(&ask_all(&client, &mut replies, &server).await), QUEUES);
    sidecar.change(Target::Detach).await.expect("allowed");
    assert_eq!(own(&ask_all(&client, &mut replies, &server).await), QUEUES);
    let late = sidecar.connect().await.create_channel().await.expect("a channel");
    let mut more = reply_consumer(&late).await;
    assert_eq!(own(&ask_all(&late, &mut more, &server).await), QUEUES);
    sidecar.stop().await;
}
