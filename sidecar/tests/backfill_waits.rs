//! A backfill reads a queue only when RabbitMQ has taken back what consumers gave back, however long that is on its way. The way from the sidecar
//! to RabbitMQ goes through a proxy here that can hold back what one user's connections send.

mod bed;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};

use bed::{Ends, Sidecar};
use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use sidecar::control_api::{Backfill, BackfillCode, BackfillQueue, BackfillState, Control, Target};
use test_support::eventually::eventually_true;
use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Messages in the queue from before the sidecar.
const OLD: u64 = 200;
/// How many of them a consumer has when the backfill begins.
const IN_HAND: u64 = 10;
/// How often the backfill looks at a queue that it must not read; without waiting it reads at the first look.
const LOOKS: u64 = 20;
/// Who is held back.
const USER: &str = "slow";

/// Passes on to RabbitMQ, but for what [`USER`] sends while it is held back.
struct Proxy {
    port: u16,
    held: watch::Sender<bool>,
    /// How often something was passed on that was not [`USER`]'s: the sidecar's own questions.
    others: Arc<AtomicU64>,
}

impl Proxy {
    async fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (held, others) = (watch::Sender::new(false), Arc::new(AtomicU64::new(0)));
        let (orders, count) = (held.subscribe(), Arc::clone(&others));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", target)).await.expect("RabbitMQ listens");
                tokio::spawn(pass(client, server, orders.clone(), Arc::clone(&count)));
            }
        });
        Self { port, held, others }
    }

    fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }
}

async fn pass(client: TcpStream, server: TcpStream, mut held: watch::Receiver<bool>, others: Arc<AtomicU64>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let down = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let (mut buffer, mut is_users, login) = (vec![0; 64 * 1024], false, format!("\0{USER}\0"));
    loop {
        let read = from_client.read(&mut buffer).await.unwrap_or(0);
        is_users |= buffer[..read].windows(login.len()).any(|part| part == login.as_bytes());
        if is_users && held.wait_for(|held| !held).await.is_err() {
            break;
        }
        others.fetch_add(u64::from(!is_users), Ordering::Relaxed);
        if read == 0 || to_server.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    drop(to_server);
    down.abort();
}

/// A sidecar behind the proxy, and a consumer that has some of a backlog in hand.
struct Scene {
    _nats: NatsServer,
    proxy: Proxy,
    sidecar: Sidecar,
    direct: Channel,
    connection: Connection,
    channel: Channel,
    _consumer: lapin::Consumer,
    in_hand: Vec<Delivery>,
}

async fn connect(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("channel");
    (connection, channel)
}

async fn scene() -> Scene {
    let (rabbit, nats) = (tokio::task::spawn_blocking(RabbitMq::shared).await.expect("started"), NatsServer::start());
    let proxy = Proxy::start(rabbit.port()).await;
    let mut ends = Ends::new(rabbit, &nats);
    ends.rabbit_url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", proxy.port);
    // RabbitMQ refuses one of two that make the same user at once.
    static MADE: Once = Once::new();
    MADE.call_once(|| rabbit.create_user(USER, "guest"));
    rabbit.set_permissions(USER, &ends.vhost);
    let (_, direct) = connect(&rabbit.url_for(&ends.vhost)).await;
    direct.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    direct.queue_declare("q".into(), durable, FieldTable::default()).await.expect("declared");
    for number in 0..OLD {
        let body = number.to_string();
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default().with_delivery_mode(2));
        let confirm = direct.basic_publish("".into(), "q".into(), options, body.as_bytes(), properties);
        assert!(confirm.await.expect("published").await.expect("confirmed").is_ack());
    }
    let sidecar = ends.sidecar().await;
    let (connection, channel) = connect(&sidecar.url.replace("//guest:", &format!("//{USER}:"))).await;
    channel.queue_declare("q".into(), durable, FieldTable::default()).await.expect("declared");
    sidecar.change(Target::Shadow).await.expect("allowed");
    channel.basic_qos(IN_HAND as u16, BasicQosOptions::default()).await.expect("qos");
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume("q".into(), "".into(), options, FieldTable::default()).await.expect("consuming");
    let in_hand: Vec<_> =
        consumer.by_ref().take(IN_HAND as usize).map(|delivery| delivery.expect("delivered")).collect().await;
    Scene { _nats: nats, proxy, sidecar, direct, connection, channel, _consumer: consumer, in_hand }
}

impl Scene {
    /// Begins a backfill, and waits until RabbitMQ has no consumer any more; what the user sends from here on is held back.
    async fn begin(&self) {
        let asked = Backfill { by: "test".into(), reason: "test".into(), ..Backfill::default() };
        Arc::clone(&self.sidecar.cutover).backfill(asked).await.expect("begun");
        eventually_true("the consumer is let go of", || async { self.depth().await.consumer_count() == 0 }).await;
        self.proxy.hold(true);
    }

    /// What RabbitMQ says of the queue.
    async fn depth(&self) -> lapin::Queue {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        self.direct.queue_declare("q".into(), passive, FieldTable::default()).await.expect("there")
    }

    /// The consumer gives back what it has.
    async fn give_back(&self) {
        let last = self.in_hand.last().expect("in hand");
        last.nack(BasicNackOptions { multiple: true, requeue: true }).await.expect("said");
    }

    async fn queue(&self) -> BackfillQueue {
        let report = self.sidecar.cutover.backfill_status().await.expect("begun");
        report.queues.into_iter().find(|queue| queue.name == "q").expect("it is looked at")
    }

    /// While nothing arrives at RabbitMQ the queue is not read; afterwards it is, with everything.
    async fn reads_all_and_only_then(&self) {
        let before = self.proxy.others.load(Ordering::Relaxed);
        eventually_true("the backfill looks again and again", || async {
            let queue = self.queue().await;
            assert_eq!(queue.state, BackfillState::Waiting, "read without what is on its way: {queue:?}");
            self.proxy.others.load(Ordering::Relaxed) >= before + LOOKS
        })
        .await;
        self.proxy.hold(false);
        eventually_true("it is read", || async {
            !self.sidecar.cutover.backfill_status().await.is_some_and(|report| report.running)
        })
        .await;
        let queue = self.queue().await;
        assert_eq!((queue.state, queue.held, queue.copied), (BackfillState::Done, OLD, OLD), "{queue:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_read_with_what_a_consumer_requeued_though_it_was_still_on_its_way() {
    let scene = scene().await;
    scene.begin().await;
    scene.give_back().await;
    scene.reads_all_and_only_then().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_read_with_what_a_channel_had_that_is_being_closed() {
    let scene = scene().await;
    scene.begin().await;
    let channel = scene.channel.clone();
    let closing = tokio::spawn(async move { channel.close(200, "done".into()).await });
    scene.reads_all_and_only_then().await;
    closing.await.expect("ended").expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_read_with_what_a_connection_had_that_is_gone() {
    let scene = scene().await;
    scene.begin().await;
    scene.connection.close(200, "done".into()).await.expect("closed");
    scene.reads_all_and_only_then().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_left_alone_as_long_as_rabbitmq_does_not_answer() {
    let scene = scene().await;
    scene.begin().await;
    scene.give_back().await;
    eventually_true("it is left alone", || async { scene.queue().await.state == BackfillState::Refused }).await;
    let refused = scene.queue().await.refused.expect("why");
    assert_eq!(refused.code, BackfillCode::InHand, "{refused:?}");
    scene.proxy.hold(false);
    // Its consumer has the queue again.
    eventually_true("messages come again", || async {
        let queue = scene.depth().await;
        queue.consumer_count() == 1 && u64::from(queue.message_count()) == OLD - IN_HAND
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_lives_on_though_the_queue_is_deleted_while_rabbitmq_is_asked_on_it() {
    let scene = scene().await;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    scene.channel.queue_declare("other".into(), durable, FieldTable::default()).await.expect("declared");
    let options = BasicConsumeOptions::default();
    let mut other = scene
        .channel
        .basic_consume("other".into(), "".into(), options, FieldTable::default())
        .await
        .expect("consuming");
    scene.begin().await;
    // The question waits in the proxy, behind the requeue.
    scene.give_back().await;
    let before = scene.proxy.others.load(Ordering::Relaxed);
    eventually_true("the backfill waits for the answer", || async {
        assert_eq!(scene.queue().await.state, BackfillState::Waiting);
        scene.proxy.others.load(Ordering::Relaxed) >= before + LOOKS
    })
    .await;
    scene.direct.queue_delete("q".into(), QueueDeleteOptions::default()).await.expect("deleted");
    scene.proxy.hold(false);
    let Scene { channel, direct, _consumer: mut consumer, .. } = scene;
    // As a client hears it whose queue is deleted.
    tokio::time::timeout(bed::CAP, async { while consumer.next().await.is_some() {} }).await.expect("it was cancelled");
    let publish = BasicPublishOptions::default();
    let properties = BasicProperties::default();
    let confirm = direct.basic_publish("".into(), "other".into(), publish, b"on", properties).await.expect("published");
    assert!(confirm.await.expect("confirmed").is_ack());
    let on = tokio::time::timeout(bed::CAP, other.next()).await.expect("in time").expect("the consumer lives");
    on.expect("delivered").acker.ack(BasicAckOptions::default()).await.expect("acked");
    channel.queue_declare("other".into(), durable, FieldTable::default()).await.expect("the channel lives");
    eventually_true("the message is settled", || async {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        direct.queue_declare("other".into(), passive, FieldTable::default()).await.expect("there").message_count() == 0
    })
    .await;
}
