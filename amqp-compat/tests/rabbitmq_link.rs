//! What a link to a real RabbitMQ promises, tested at the border between a session and a broker.

use std::time::Duration;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable};
use amqp_compat::backend::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
use amqp_compat::backend::{
    Backend, Binding, Command, Consume, Delivery, DeliveryId, Event, ExchangeDeclare, Got, Link, Login, Message,
    Outcome, Publish, PublishOutcome, QueueDeclare, Reply, Topology,
};
use amqp_compat::{AmqpError, ReplyCode};
use bytes::Bytes;
use test_support::rabbit::RabbitMq;

/// The longest wait for an event.
const PATIENCE: Duration = Duration::from_secs(15);

fn login(vhost: &str) -> Login {
    Login {
        vhost: vhost.to_owned(),
        user: "guest".to_owned(),
        password: "guest".to_owned(),
        certificate: None,
        client_properties: FieldTable::default(),
        peer: "127.0.0.1:1".to_owned(),
    }
}

async fn open(rabbit: &RabbitMq, login: Login) -> Result<Link, AmqpError> {
    RabbitMqBackend::new(RabbitMqConfig::from_url(&rabbit.url()).expect("valid")).open(login).await
}

/// A link with what a test wants to say and hear.
struct Talk {
    link: Link,
    seq: u64,
}

impl Talk {
    /// A link to a vhost of its own, with channel 1 open.
    async fn new() -> Self {
        let rabbit = RabbitMq::shared();
        Self::to(rabbit, &rabbit.fresh_vhost()).await
    }

    async fn to(rabbit: &RabbitMq, vhost: &str) -> Self {
        let mut talk = Self { link: open(rabbit, login(vhost)).await.expect("opened"), seq: 0 };
        talk.done(Command::OpenChannel { channel: 1 }).await;
        talk
    }

    async fn say(&self, command: Command) {
        self.link.commands.send(command).await.expect("the link takes commands");
    }

    async fn hear(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.link.events.recv()).await;
        event.expect("an event in time").expect("the link is open")
    }

    /// Nothing is on its way: a request is answered before anything else comes.
    async fn silence(&mut self) {
        self.done(Command::OpenChannel { channel: 99 }).await;
        self.done(Command::CloseChannel { channel: 99 }).await;
    }

    async fn ask(&mut self, command: Command) -> Result<Reply, AmqpError> {
        let asked = command.channel();
        self.say(command).await;
        match self.hear().await {
            Event::Reply { channel, reply } => {
                assert_eq!(channel, asked);
                reply
            }
            other => panic!("not a reply: {other:?}"),
        }
    }

    async fn done(&mut self, command: Command) {
        let reply = self.ask(command).await.expect("done");
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }

    async fn topology(&mut self, request: Topology) -> Result<Reply, AmqpError> {
        self.ask(Command::Topology { channel: 1, request }).await
    }

    async fn queue(&mut self, name: &str) -> (u32, u32) {
        self.queue_with(name, FieldTable::default()).await
    }

    async fn queue_with(&mut self, name: &str, arguments: FieldTable) -> (u32, u32) {
        let declare = QueueDeclare { arguments, ..queue(name) };
        match self.topology(Topology::QueueDeclare(declare)).await.expect("declared") {
            Reply::Queue { queue, message_count, consumer_count } => {
                assert_eq!(queue.as_str(), name);
                (message_count, consumer_count)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn publish(&mut self, exchange: &str, key: &str, body: &[u8]) -> u64 {
        self.publish_message(false, message(exchange, key, body)).await
    }

    async fn publish_message(&mut self, mandatory: bool, message: Message) -> u64 {
        self.seq += 1;
        self.say(Command::Publish(Box::new(Publish { channel: 1, seq: self.seq, mandatory, message }))).await;
        self.seq
    }

    /// Publishes and waits for the confirm.
    async fn store(&mut self, key: &str, body: &[u8]) {
        let seq = self.publish("", key, body).await;
        self.confirmed(seq).await;
    }

    async fn confirmed(&mut self, expected: u64) {
        match self.hear().await {
            Event::Confirm { channel: 1, seq, outcome: PublishOutcome::Stored } => assert_eq!(seq, expected),
            other => panic!("not the confirm of {expected}: {other:?}"),
        }
    }

    async fn consume(&mut self, queue: &str, tag: &str, credit: u32) {
        self.done(Command::Consume { channel: 1, consume: consume(queue, tag, credit) }).await;
    }

    async fn delivery(&mut self, tag: &str) -> Delivery {
        match self.hear().await {
            Event::Delivery { channel: 1, consumer_tag, delivery } => {
                assert_eq!(consumer_tag.as_str(), tag);
                *delivery
            }
            other => panic!("not a delivery: {other:?}"),
        }
    }

    async fn settle(&self, deliveries: &[DeliveryId], outcome: Outcome) {
        self.say(Command::Settle { channel: 1, deliveries: deliveries.into(), outcome }).await;
    }

    async fn credit(&self, tag: &str, amount: u32) {
        self.say(Command::Credit { channel: 1, consumer_tag: tag.into(), amount }).await;
    }

    async fn got(&mut self, queue: &str) -> Option<Got> {
        match self.ask(Command::Get { channel: 1, queue: queue.into() }).await.expect("got") {
            Reply::Got(got) => got.map(|got| *got),
            other => panic!("{other:?}"),
        }
    }
}

fn queue(name: &str) -> QueueDeclare {
    QueueDeclare {
        queue: name.into(),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: FieldTable::default(),
    }
}

fn exchange(name: &str, kind: &str) -> ExchangeDeclare {
    ExchangeDeclare {
        exchange: name.into(),
        kind: kind.into(),
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: FieldTable::default(),
    }
}

fn binding(source: &str, destination: &str, key: &str) -> Binding {
    Binding {
        source: source.into(),
        destination: destination.into(),
        routing_key: key.into(),
        arguments: FieldTable::default(),
    }
}

fn message(exchange: &str, key: &str, body: &[u8]) -> Message {
    Message {
        exchange: exchange.into(),
        routing_key: key.into(),
        properties: AMQPProperties::default().with_delivery_mode(2),
        body: Bytes::copy_from_slice(body),
    }
}

fn consume(queue: &str, tag: &str, credit: u32) -> Consume {
    Consume {
        queue: queue.into(),
        consumer_tag: tag.into(),
        exclusive: false,
        no_ack: false,
        credit,
        prefetch: u16::try_from(credit).unwrap_or(u16::MAX),
        no_limit: false,
        arguments: FieldTable::default(),
    }
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

#[tokio::test]
async fn topology_requests_are_answered_with_rabbitmqs_counts() {
    let mut talk = Talk::new().await;
    assert_eq!(talk.queue("q").await, (0, 0));
    for name in ["direct", "topic"] {
        let reply = talk.topology(Topology::ExchangeDeclare(exchange(&format!("e-{name}"), name))).await;
        assert!(matches!(reply, Ok(Reply::Done)), "{reply:?}");
    }
    for request in [
        Topology::ExchangeBind(binding("e-direct", "e-topic", "a.b")),
        Topology::QueueBind(binding("e-topic", "q", "a.*")),
        Topology::QueueBind(binding("e-topic", "q", "x")),
        Topology::QueueUnbind(binding("e-topic", "q", "x")),
    ] {
        let reply = talk.topology(request).await;
        assert!(matches!(reply, Ok(Reply::Done)), "{reply:?}");
    }
    for key in ["a.b", "x"] {
        let seq = talk.publish("e-direct", key, b"m").await;
        talk.confirmed(seq).await;
    }
    talk.consume("q", "c", 1).await;
    let delivery = talk.delivery("c").await;
    assert_eq!((delivery.message.exchange.as_str(), delivery.message.routing_key.as_str()), ("e-direct", "a.b"));
    assert_eq!(talk.queue("q").await, (0, 1));
    talk.settle(&[delivery.id], Outcome::Requeue).await;
    talk.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    assert!(matches!(talk.topology(Topology::QueuePurge { queue: "q".into() }).await, Ok(Reply::MessageCount(1))));

    let reply = talk.topology(Topology::ExchangeUnbind(binding("e-direct", "e-topic", "a.b"))).await;
    assert!(matches!(reply, Ok(Reply::Done)));
    let reply = talk.topology(Topology::ExchangeDelete { exchange: "e-direct".into(), if_unused: true }).await;
    assert!(matches!(reply, Ok(Reply::Done)));
    talk.store("q", b"one").await;
    let delete = Topology::QueueDelete { queue: "q".into(), if_unused: false, if_empty: false };
    assert!(matches!(talk.topology(delete).await, Ok(Reply::MessageCount(1))));

    let reply = talk.topology(Topology::QueueDeclare(QueueDeclare { exclusive: true, ..queue("") })).await;
    let Ok(Reply::Queue { queue: name, .. }) = reply else { panic!("{reply:?}") };
    assert!(name.as_str().starts_with("amq.gen-"), "{name}");
}

/// The same mistake, made on a link and through another AMQP client that is directly connected.
#[tokio::test]
async fn an_error_has_the_code_and_the_text_of_a_direct_connection() {
    let rabbit = RabbitMq::shared();
    let vhost = rabbit.fresh_vhost();
    let direct = lapin::Connection::connect(&rabbit.url_for(&vhost), Default::default()).await.expect("connected");
    let mut talk = Talk::to(rabbit, &vhost).await;
    talk.queue("durable").await;
    let reply = talk.topology(Topology::ExchangeDeclare(exchange("e", "direct"))).await;
    assert!(matches!(reply, Ok(Reply::Done)));

    use lapin::options::*;
    let none = FieldTable::default;
    let transient = || QueueDeclare { durable: false, ..queue("durable") };
    let missing = || QueueDeclare { passive: true, ..queue("missing") };
    let cases: Vec<(Command, Result<(), lapin::Error>)> = vec![
        (
            Command::Topology { channel: 1, request: Topology::QueueDeclare(missing()) },
            async {
                let channel = direct.create_channel().await?;
                let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
                channel.queue_declare("missing".into(), options, none()).await.map(|_| ())
            }
            .await,
        ),
        (
            Command::Topology { channel: 1, request: Topology::QueueDeclare(transient()) },
            async {
                let channel = direct.create_channel().await?;
                channel.queue_declare("durable".into(), QueueDeclareOptions::default(), none()).await.map(|_| ())
            }
            .await,
        ),
        (
            Command::Topology { channel: 1, request: Topology::ExchangeDeclare(exchange("amq.mine", "direct")) },
            async {
                let channel = direct.create_channel().await?;
                let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
                channel.exchange_declare("amq.mine".into(), lapin::ExchangeKind::Direct, options, none()).await
            }
            .await,
        ),
        (
            Command::Topology { channel: 1, request: Topology::QueueBind(binding("nowhere", "durable", "k")) },
            async {
                let channel = direct.create_channel().await?;
                let options = QueueBindOptions::default();
                channel.queue_bind("durable".into(), "nowhere".into(), "k".into(), options, none()).await
            }
            .await,
        ),
        (
            Command::Consume { channel: 1, consume: consume("missing", "c", 1) },
            async {
                let channel = direct.create_channel().await?;
                let options = BasicConsumeOptions::default();
                channel.basic_consume("missing".into(), "c".into(), options, none()).await.map(|_| ())
            }
            .await,
        ),
        (
            Command::Get { channel: 1, queue: "missing".into() },
            async {
                let channel = direct.create_channel().await?;
                channel.basic_get("missing".into(), BasicGetOptions::default()).await.map(|_| ())
            }
            .await,
        ),
    ];
    for (command, directly) in cases {
        let asked = format!("{command:?}");
        let error = talk.ask(command).await.expect_err(&asked);
        let directly = directly.expect_err(&asked);
        let lapin::ErrorKind::ProtocolError(directly) = directly.kind() else { panic!("{directly:?}") };
        assert_eq!(
            (error.code as u16, error.to_string().as_str()),
            (directly.get_id(), directly.get_message().as_str())
        );
        // The channel is closed; the rest of the connection is not.
        let error = talk.ask(Command::Get { channel: 1, queue: "durable".into() }).await.expect_err("closed");
        assert_eq!(error.code as u16, directly.get_id());
        talk.done(Command::CloseChannel { channel: 1 }).await;
        talk.done(Command::OpenChannel { channel: 1 }).await;
    }
    assert_eq!(talk.queue("durable").await, (0, 0));
}

#[tokio::test]
async fn a_hard_error_answers_the_request_and_ends_the_link() {
    let mut talk = Talk::new().await;
    let error = talk.topology(Topology::ExchangeDeclare(exchange("e", "no-such-type"))).await.expect_err("refused");
    assert_eq!((error.code, error.text.as_str()), (ReplyCode::CommandInvalid, "unknown exchange type 'no-such-type'"));
    assert!(matches!(talk.hear().await, Event::Closed { error } if error.code == ReplyCode::CommandInvalid));
    assert!(talk.link.events.recv().await.is_none());
}

#[tokio::test]
async fn a_refused_login_or_vhost_is_rabbitmqs_own_refusal() {
    let rabbit = RabbitMq::shared();
    let error = open(rabbit, Login { password: "wrong".to_owned(), ..login("/") }).await.expect_err("refused");
    assert_eq!(error.code, ReplyCode::AccessRefused);
    assert!(error.text.starts_with("Login was refused using authentication mechanism PLAIN."), "{error}");

    let error = open(rabbit, login("no such vhost")).await.expect_err("refused");
    assert_eq!((error.code, error.text.as_str()), (ReplyCode::NotAllowed, "vhost no such vhost not found"));

    rabbit.create_user("stranger", "secret");
    let stranger = Login { user: "stranger".to_owned(), password: "secret".to_owned(), ..login("/") };
    let error = open(rabbit, stranger).await.expect_err("refused");
    let text = "access to vhost '/' refused for user 'stranger'";
    assert_eq!((error.code, error.text.as_str()), (ReplyCode::NotAllowed, text));

    let nobody = RabbitMqBackend::new(RabbitMqConfig::from_url("amqp://127.0.0.1:1").expect("valid"));
    let error = nobody.open(login("/")).await.expect_err("nobody listens");
    assert_eq!(error.code, ReplyCode::InternalError);
    assert!(error.text.contains("amqp://127.0.0.1:1 cannot be reached"), "{error}");
}

#[tokio::test]
async fn a_login_is_checked_before_its_vhost_is_known_and_on_the_same_connection() {
    let rabbit = RabbitMq::shared();
    let vhost = rabbit.fresh_vhost();
    let backend = RabbitMqBackend::new(RabbitMqConfig::from_url(&rabbit.url()).expect("valid"));
    rabbit.create_user("early", "secret");
    rabbit.set_permissions("early", &vhost);
    let early = |peer: &str, password: &str| Login {
        peer: peer.to_owned(),
        user: "early".to_owned(),
        password: password.to_owned(),
        ..login("")
    };

    let error = backend.authenticate(&early("a:1", "wrong")).await.expect_err("refused");
    assert_eq!(error.code, ReplyCode::AccessRefused);

    backend.authenticate(&early("b:2", "secret")).await.expect("taken");
    // Nothing but the connection that was checked before can open with the old password now.
    rabbit.create_user("early", "changed");
    let _link = backend.open(Login { vhost: vhost.clone(), ..early("b:2", "secret") }).await.expect("opened");
    // Another login than the one that was checked gets a connection, and an answer, of its own.
    backend.authenticate(&early("c:3", "changed")).await.expect("taken");
    let error = backend.open(Login { vhost, ..early("c:3", "secret") }).await.expect_err("refused");
    assert_eq!(error.code, ReplyCode::AccessRefused);
}

#[tokio::test]
async fn every_publish_is_confirmed_once_and_commands_take_effect_in_order() {
    let mut talk = Talk::new().await;
    talk.queue("q").await;
    let mut open: std::collections::BTreeSet<u64> = Default::default();
    for i in 0..2000_u32 {
        open.insert(talk.publish("", "q", &i.to_be_bytes()).await);
    }
    // Sent after them on the same channel: all are there. (The counts of `queue.declare` overtake inside RabbitMQ.)
    talk.say(Command::Get { channel: 1, queue: "q".into() }).await;
    let mut counted = None;
    while !open.is_empty() || counted.is_none() {
        match talk.hear().await {
            Event::Confirm { seq, outcome: PublishOutcome::Stored, .. } => assert!(open.remove(&seq), "{seq} twice"),
            Event::Reply { reply: Ok(Reply::Got(Some(got))), .. } => {
                counted = Some(got.message_count + 1);
                talk.settle(&[got.delivery.id], Outcome::Requeue).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(counted, Some(2000));
    talk.consume("q", "c", 5000).await;
    for i in 0..2000_u32 {
        assert_eq!(&talk.delivery("c").await.message.body[..], i.to_be_bytes());
    }
}

#[tokio::test]
async fn numbers_of_publishes_may_have_gaps_and_a_refused_one_is_failed() {
    let mut talk = Talk::new().await;
    let full = table([
        ("x-max-length", AMQPValue::LongInt(1)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ]);
    talk.queue_with("full", full).await;
    talk.queue("q").await;
    talk.seq = 40;
    talk.store("full", b"fits").await;
    talk.seq = 60;
    let seq = talk.publish("", "full", b"too much").await;
    let event = talk.hear().await;
    assert!(matches!(event, Event::Confirm { seq: s, outcome: PublishOutcome::Failed, .. } if s == seq), "{event:?}");
    talk.store("q", b"goes on").await;
}

#[tokio::test]
async fn an_unroutable_mandatory_message_comes_back_whole_before_its_confirm() {
    let mut talk = Talk::new().await;
    talk.queue("q").await;
    let properties = AMQPProperties::default().with_message_id("id-7".into());
    let lost = Message { properties, ..message("", "nowhere", &[7; 300_000]) };
    // Neighbours that are stored, so that confirms may be put together.
    for _ in 0..20 {
        talk.publish("", "q", b"before").await;
    }
    let seq = talk.publish_message(true, lost.clone()).await;
    let silent = talk.publish("", "nowhere", b"not mandatory").await;
    let mut returned = None;
    let mut confirmed = Vec::new();
    while confirmed.len() < 22 {
        match talk.hear().await {
            Event::Returned { channel: 1, error, message } => {
                assert!(!confirmed.contains(&seq));
                assert_eq!(error, AmqpError::new(ReplyCode::NoRoute, ""));
                assert!(returned.replace(message).is_none());
            }
            Event::Confirm { seq, outcome: PublishOutcome::Stored, .. } => confirmed.push(seq),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(*returned.expect("it came back"), lost);
    assert!(confirmed.contains(&silent));
}

#[tokio::test]
async fn a_publish_to_a_missing_exchange_fails_its_channel_and_only_that() {
    let mut talk = Talk::new().await;
    talk.done(Command::OpenChannel { channel: 2 }).await;
    talk.queue("q").await;
    let seq = talk.publish("nowhere", "k", b"m").await;
    match talk.hear().await {
        Event::ChannelFailed { channel: 1, error } => {
            assert_eq!(error.code, ReplyCode::NotFound);
            assert!(error.text.starts_with("no exchange 'nowhere' in vhost"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    // It is answered nevertheless.
    let event = talk.hear().await;
    assert!(matches!(event, Event::Confirm { seq: s, outcome: PublishOutcome::Failed, .. } if s == seq), "{event:?}");
    let late = talk.publish("", "q", b"m").await;
    let event = talk.hear().await;
    assert!(matches!(event, Event::Confirm { seq: s, outcome: PublishOutcome::Failed, .. } if s == late), "{event:?}");
    assert!(matches!(talk.ask(Command::Get { channel: 2, queue: "q".into() }).await, Ok(Reply::Got(None))));
    talk.done(Command::CloseChannel { channel: 1 }).await;
    talk.done(Command::OpenChannel { channel: 1 }).await;
    talk.seq = 0;
    talk.store("q", b"again").await;
}

#[tokio::test]
async fn deliveries_stay_within_the_credit_and_credit_brings_more() {
    let mut talk = Talk::new().await;
    talk.queue("q").await;
    for i in 0..10_u8 {
        talk.store("q", &[i]).await;
    }
    talk.consume("q", "c", 3).await;
    let mut ids = Vec::new();
    for i in 0..3_u8 {
        let delivery = talk.delivery("c").await;
        assert_eq!((&delivery.message.body[..], delivery.redelivered), (&[i][..], false));
        ids.push(delivery.id);
    }
    talk.silence().await;
    // Settled without new credit: RabbitMQ sends the next one, which must wait.
    talk.settle(&ids[..1], Outcome::Ack).await;
    talk.silence().await;
    talk.credit("c", 1).await;
    assert_eq!(&talk.delivery("c").await.message.body[..], [3]);
    talk.settle(&ids[1..], Outcome::Ack).await;
    talk.credit("c", 100).await;
    for i in 4..6_u8 {
        assert_eq!(&talk.delivery("c").await.message.body[..], [i]);
    }
}

#[tokio::test]
async fn a_consumer_without_credit_gets_nothing_until_it_has_some() {
    let mut talk = Talk::new().await;
    talk.queue("q").await;
    talk.store("q", b"a").await;
    talk.store("q", b"b").await;
    talk.consume("q", "c", 0).await;
    talk.silence().await;
    talk.credit("c", 1).await;
    assert_eq!(&talk.delivery("c").await.message.body[..], b"a");
    talk.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    assert_eq!(&talk.got("q").await.expect("one is left").delivery.message.body[..], b"b");
}

#[tokio::test]
async fn a_consumer_without_a_limit_may_leave_any_number_unsettled_and_its_backlog_is_bounded() {
    let mut talk = Talk::new().await;
    talk.queue("q").await;
    let body = vec![7; 1 << 20];
    for _ in 0..100 {
        talk.store("q", &body).await;
    }
    let consume = Consume { no_limit: true, ..consume("q", "c", 10) };
    talk.done(Command::Consume { channel: 1, consume }).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        for _ in 0..10 {
            ids.push(talk.delivery("c").await.id);
        }
        // As after writing them; none is settled.
        talk.credit("c", 10).await;
    }
    // Cancelled while RabbitMQ is not read: the backlog goes back, and the answer comes.
    for _ in 0..10 {
        talk.delivery("c").await;
    }
    talk.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    talk.settle(&ids, Outcome::Ack).await;
    talk.done(Command::CloseChannel { channel: 1 }).await;
    talk.done(Command::OpenChannel { channel: 1 }).await;
    // RabbitMQ's queue hears of a channel's end and of another channel's question on two ways.
    let mut counts = (0, 0);
    for _ in 0..200 {
        counts = talk.queue("q").await;
        if counts == (40, 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(counts, (40, 0));
}

#[tokio::test]
async fn a_cancelled_consumer_gives_back_what_it_was_not_given_in_order() {
    let mut talk = Talk::new().await;
    talk.queue("q").await;
    for i in 0..5_u8 {
        talk.store("q", &[i]).await;
    }
    talk.consume("q", "c", 2).await;
    let first = talk.delivery("c").await;
    let second = talk.delivery("c").await;
    talk.settle(&[first.id], Outcome::Ack).await;
    // RabbitMQ has sent message 2 for the settled one; there is no credit for it.
    talk.silence().await;
    talk.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    talk.settle(&[second.id], Outcome::Requeue).await;
    let mut left = Vec::new();
    while let Some(got) = talk.got("q").await {
        assert_eq!(got.message_count as usize, 3 - left.len());
        left.push(got.delivery.message.body[0]);
        talk.settle(&[got.delivery.id], Outcome::Ack).await;
    }
    assert_eq!(left, [1, 2, 3, 4]);
    assert_eq!(talk.queue("q").await, (0, 0));
}

#[tokio::test]
async fn settling_acks_requeues_in_place_and_dead_letters() {
    let mut talk = Talk::new().await;
    talk.queue("dead").await;
    let dead = table([
        ("x-dead-letter-exchange", AMQPValue::LongString("".into())),
        ("x-dead-letter-routing-key", AMQPValue::LongString("dead".into())),
    ]);
    talk.queue_with("q", dead).await;
    for i in 0..6_u8 {
        talk.store("q", &[i]).await;
    }
    talk.consume("q", "c", 6).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(talk.delivery("c").await.id);
    }
    // The oldest ones in one frame, then singles out of order, one of them twice: it counts once.
    talk.settle(&ids[..2], Outcome::Ack).await;
    talk.settle(&[ids[4]], Outcome::Reject).await;
    talk.settle(&[ids[4], ids[0]], Outcome::Ack).await;
    talk.done(Command::Cancel { channel: 1, consumer_tag: "c".into() }).await;
    talk.settle(&[ids[2], ids[3], ids[5]], Outcome::Requeue).await;
    let mut left = Vec::new();
    while let Some(got) = talk.got("q").await {
        assert!(got.delivery.redelivered);
        left.push(got.delivery.message.body[0]);
    }
    assert_eq!(left, [2, 3, 5]);
    let dead = talk.got("dead").await.expect("dead-lettered").delivery.message;
    assert_eq!(&dead.body[..], [4]);
    let headers = dead.properties.headers().clone().expect("x-death");
    assert!(headers.contains_key("x-death"));
}

#[tokio::test]
async fn what_is_unsettled_goes_back_in_order_with_its_channel() {
    let mut talk = Talk::new().await;
    talk.queue("q").await;
    for i in 0..5_u8 {
        talk.store("q", &[i]).await;
    }
    talk.consume("q", "c", 3).await;
    let mut old = Vec::new();
    for _ in 0..3 {
        old.push(talk.delivery("c").await.id);
    }
    talk.done(Command::CloseChannel { channel: 1 }).await;
    talk.done(Command::OpenChannel { channel: 1 }).await;
    // Of the old channel: it names nothing on the new one.
    let got = talk.got("q").await.expect("requeued");
    assert!(got.delivery.redelivered && !old.contains(&got.delivery.id));
    assert_eq!((got.delivery.message.body[0], got.message_count), (0, 4));
    talk.settle(&old, Outcome::Ack).await;
    talk.settle(&[got.delivery.id], Outcome::Requeue).await;
    talk.consume("q", "c", 10).await;
    for i in 0..5_u8 {
        let delivery = talk.delivery("c").await;
        assert_eq!((delivery.message.body[0], delivery.redelivered), (i, i < 3));
    }
}

#[tokio::test]
async fn a_dropped_link_requeues_deletes_exclusive_queues_and_keeps_what_was_sent() {
    let rabbit = RabbitMq::shared();
    let vhost = rabbit.fresh_vhost();
    let mut talk = Talk::to(rabbit, &vhost).await;
    talk.queue("q").await;
    talk.topology(Topology::QueueDeclare(QueueDeclare { exclusive: true, ..queue("mine") })).await.expect("declared");
    for i in 0..3_u8 {
        talk.store("q", &[i]).await;
    }
    talk.consume("q", "c", 3).await;
    let first = talk.delivery("c").await;
    talk.settle(&[first.id], Outcome::Ack).await;
    for i in 3..200_u8 {
        talk.publish("", "q", &[i]).await;
    }
    drop(talk);

    let mut other = Talk::to(rabbit, &vhost).await;
    let start = std::time::Instant::now();
    loop {
        let seen = other.queue("q").await.0;
        if seen == 199 {
            break;
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(15), "only {seen} of 199 were kept");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    other.consume("q", "c", 1000).await;
    for i in 1..200_u8 {
        assert_eq!(other.delivery("c").await.message.body[0], i);
    }
    let passive = QueueDeclare { passive: true, exclusive: true, ..queue("mine") };
    let error = other.topology(Topology::QueueDeclare(passive)).await.expect_err("it is gone");
    assert_eq!(error.code, ReplyCode::NotFound);
}

#[tokio::test]
async fn a_consumer_hears_that_its_queue_was_deleted() {
    let mut talk = Talk::new().await;
    talk.done(Command::OpenChannel { channel: 2 }).await;
    talk.queue("q").await;
    talk.consume("q", "c", 10).await;
    let request = Topology::QueueDelete { queue: "q".into(), if_unused: false, if_empty: false };
    talk.say(Command::Topology { channel: 2, request }).await;
    let (mut cancelled, mut deleted) = (false, false);
    while !(cancelled && deleted) {
        match talk.hear().await {
            Event::ConsumerCancelled { channel: 1, consumer_tag } => {
                assert_eq!(consumer_tag.as_str(), "c");
                cancelled = true;
            }
            Event::Reply { channel: 2, reply: Ok(Reply::MessageCount(0)) } => deleted = true,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn properties_and_bodies_of_every_shape_come_back_as_they_were_sent() {
    let mut talk = Talk::new().await;
    talk.queue("q").await;
    let mut array = FieldArray::default();
    array.push(AMQPValue::LongInt(-5));
    array.push(AMQPValue::FieldTable(table([("deep", AMQPValue::Boolean(true))])));
    let headers = table([
        ("bool", AMQPValue::Boolean(false)),
        ("i8", AMQPValue::ShortShortInt(-8)),
        ("u8", AMQPValue::ShortShortUInt(200)),
        ("i16", AMQPValue::ShortInt(-1600)),
        ("u16", AMQPValue::ShortUInt(60_000)),
        ("i32", AMQPValue::LongInt(i32::MIN)),
        ("u32", AMQPValue::LongUInt(u32::MAX)),
        ("i64", AMQPValue::LongLongInt(i64::MIN)),
        ("f32", AMQPValue::Float(1.5)),
        ("f64", AMQPValue::Double(-2.25)),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 12_345 })),
        ("text", AMQPValue::LongString("grüße".into())),
        ("not text", AMQPValue::LongString(vec![0xFF, 0x00, 0xC3].into())),
        ("array", AMQPValue::FieldArray(array)),
        ("time", AMQPValue::Timestamp(1_700_000_000)),
        ("table", AMQPValue::FieldTable(table([("in", AMQPValue::FieldTable(FieldTable::default()))]))),
        ("bytes", AMQPValue::ByteArray(ByteArray::from(vec![1, 2, 3]))),
        ("void", AMQPValue::Void),
    ]);
    let full = AMQPProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("gzip".into())
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_priority(9)
        .with_correlation_id("c".into())
        .with_reply_to("r".into())
        .with_expiration("60000".into())
        .with_message_id("m".into())
        .with_timestamp(1_700_000_001)
        .with_type("t".into())
        .with_user_id("guest".into())
        .with_app_id("a".into())
        .with_cluster_id("".into());
    let bodies = [0, 1, 4095, 4096, 131_064, 131_065, 5_000_000];
    for (properties, size) in bodies.iter().map(|size| (full.clone(), *size)).chain([(AMQPProperties::default(), 3)]) {
        let body: Vec<u8> = (0..size).map(|i| (i % 253) as u8).collect();
        let sent = Message { properties, ..message("", "q", &body) };
        let seq = talk.publish_message(true, sent.clone()).await;
        talk.confirmed(seq).await;
        let got = talk.got("q").await.expect("stored");
        assert_eq!(got.delivery.message.properties, sent.properties);
        assert!(got.delivery.message == sent, "a body of {size} bytes");
        talk.settle(&[got.delivery.id], Outcome::Ack).await;
    }
}

#[tokio::test]
async fn channels_above_the_limit_and_channels_that_are_not_open_are_refused() {
    let mut talk = Talk::new().await;
    let error = talk.ask(Command::OpenChannel { channel: 60_000 }).await.expect_err("RabbitMQ's limit is 2047");
    assert_eq!(error.code, ReplyCode::NotAllowed);
    let error = talk.ask(Command::Get { channel: 5, queue: "q".into() }).await.expect_err("not open");
    assert_eq!(error.code, ReplyCode::ChannelError);
    let error = talk.ask(Command::OpenChannel { channel: 1 }).await.expect_err("twice");
    assert_eq!(error.code, ReplyCode::ChannelError);
    talk.silence().await;
}

#[tokio::test]
async fn rabbitmq_shows_the_application_behind_a_link() {
    let rabbit = RabbitMq::shared();
    let vhost = rabbit.fresh_vhost();
    let client_properties = table([("product", AMQPValue::LongString("billing".into()))]);
    let _link = open(rabbit, Login { client_properties, ..login(&vhost) }).await.expect("opened");
    test_support::eventually::eventually("the connection is listed", || {
        let (_, connections) = rabbit.api("GET", &format!("/api/vhosts/{vhost}/connections"), "").expect("answers");
        connections.contains("\"product\":\"billing\"") && connections.contains("nats-bridge for 127.0.0.1:1")
    });
}

/// Needs a node of its own: it is stopped, frozen and killed.
#[tokio::test]
async fn a_lost_rabbitmq_answers_what_is_open_and_closes_the_link() {
    let mut rabbit = RabbitMq::start();

    // Stopped: RabbitMQ says so.
    let mut talk = Talk::to(&rabbit, "/").await;
    talk.queue("q").await;
    rabbit.stop();
    match talk.hear().await {
        Event::Closed { error } => {
            let text = "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'";
            assert_eq!(error.to_string(), text);
        }
        other => panic!("{other:?}"),
    }

    // Killed, with publishes and a request on their way.
    rabbit.restart();
    let mut talk = Talk::to(&rabbit, "/").await;
    rabbit.pause();
    for _ in 0..3 {
        talk.publish("", "q", b"m").await;
    }
    talk.say(Command::Get { channel: 1, queue: "q".into() }).await;
    rabbit.kill_9();
    let mut failed = 0;
    let mut replied = false;
    let error = loop {
        match talk.hear().await {
            Event::Confirm { outcome: PublishOutcome::Failed, .. } => failed += 1,
            Event::Reply { reply: Err(_), .. } => replied = true,
            Event::Closed { error } => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((failed, replied, error.code), (3, true, ReplyCode::ConnectionForced));
    assert!(talk.link.events.recv().await.is_none());

    // Frozen: noticed by its heartbeats.
    rabbit.restart();
    let mut config = RabbitMqConfig::from_url(&rabbit.url()).expect("valid");
    config.heartbeat = Duration::from_secs(1);
    config.connect_timeout = Duration::from_secs(2);
    let backend = RabbitMqBackend::new(config);
    let link = backend.open(login("/")).await.expect("opened");
    let mut talk = Talk { link, seq: 0 };
    talk.done(Command::OpenChannel { channel: 1 }).await;
    // Longer than two intervals without traffic: heartbeats keep it alive on both sides.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    talk.silence().await;
    rabbit.pause();
    match talk.hear().await {
        Event::Closed { error } => assert!(error.text.contains("missed heartbeats"), "{error}"),
        other => panic!("{other:?}"),
    }
    let error = backend.open(login("/")).await.expect_err("it does not answer");
    assert!(error.text.contains("did not answer within 2s"), "{error}");
    rabbit.resume();
}

/// Needs a node of its own: it listens with TLS.
#[tokio::test]
async fn with_amqps_the_certificate_is_verified() {
    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound").port();
    let rabbit = RabbitMq::try_start_with(&[
        &format!("listeners.ssl.1 = 127.0.0.1:{port}"),
        &format!("ssl_options.cacertfile = {files}/ca.pem"),
        &format!("ssl_options.certfile = {files}/server.pem"),
        &format!("ssl_options.keyfile = {files}/server.key"),
        "ssl_options.verify = verify_none",
    ])
    .expect("started");
    let open =
        async |url: String| RabbitMqBackend::new(RabbitMqConfig::from_url(&url).expect("valid")).open(login("/")).await;
    let link = open(format!("amqps://localhost:{port}?cacertfile={files}/ca.pem")).await.expect("opened");
    let mut talk = Talk { link, seq: 0 };
    talk.done(Command::OpenChannel { channel: 1 }).await;
    talk.queue("q").await;
    let body = vec![7; 1 << 20];
    talk.store("q", &body).await;
    assert_eq!(&talk.got("q").await.expect("stored").delivery.message.body[..], body);

    // Not signed by an authority of the system, and not TLS at all.
    for (url, why) in [
        (format!("amqps://localhost:{port}"), "TLS to RabbitMQ"),
        (format!("amqps://localhost:{}?cacertfile={files}/ca.pem", rabbit.port()), "TLS to RabbitMQ"),
        (format!("amqps://localhost:{port}?cacertfile={files}/server.key"), "server.key"),
    ] {
        let error = open(url.clone()).await.expect_err(&url);
        assert_eq!(error.code, ReplyCode::InternalError);
        assert!(error.text.contains(why), "{error}");
    }
}

/// Needs a node of its own: its memory alarm blocks every publisher.
#[tokio::test]
async fn a_blocked_broker_is_announced_and_publishes_wait_until_it_takes_them_again() {
    let rabbit = RabbitMq::start();
    let mut talk = Talk::to(&rabbit, "/").await;
    talk.queue("q").await;
    talk.store("q", b"m").await;
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.000001"]);
    let seq = talk.publish("", "q", b"waits").await;
    let mut heard = vec![talk.hear().await];
    // The alarm is raised in the background: the publish may have been in time.
    if matches!(heard[0], Event::Confirm { .. }) {
        heard = vec![talk.hear().await];
    }
    assert!(matches!(&heard[0], Event::Blocked { reason } if reason.contains("low on memory")), "{heard:?}");
    let last = talk.publish("", "q", b"waits").await;
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    let mut unblocked = false;
    loop {
        match talk.hear().await {
            Event::Unblocked => unblocked = true,
            Event::Confirm { seq: s, outcome: PublishOutcome::Stored, .. } if s == last => break,
            Event::Confirm { seq: s, .. } if s == seq => {}
            other => panic!("{other:?}"),
        }
    }
    if !unblocked {
        assert!(matches!(talk.hear().await, Event::Unblocked));
    }
}
