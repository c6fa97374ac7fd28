//! A session's place at a link: commands in, events out, one method a line.

use std::collections::VecDeque;
use std::time::Duration;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, FieldTable};
use amqp_compat::AmqpError;
use amqp_compat::backend::*;

pub const CAP: Duration = Duration::from_secs(20);

pub struct Client {
    pub link: Link,
    /// Events that came while another kind was waited for.
    seen: VecDeque<Event>,
    seq: u64,
}

pub fn login() -> Login {
    Login {
        vhost: "/".into(),
        user: "guest".into(),
        password: "guest".into(),
        certificate: None,
        client_properties: FieldTable::default(),
        peer: "test".into(),
    }
}

pub fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

pub fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

pub fn queue(name: &str) -> QueueDeclare {
    QueueDeclare {
        queue: name.into(),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: FieldTable::default(),
    }
}

pub fn exchange(name: &str, kind: &str) -> ExchangeDeclare {
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

pub fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

impl Client {
    pub async fn open(backend: &dyn Backend) -> Client {
        Self::open_in(backend, "/").await
    }

    pub async fn open_in(backend: &dyn Backend, vhost: &str) -> Client {
        Self::open_as(backend, Login { vhost: vhost.into(), ..login() }).await
    }

    pub async fn open_as(backend: &dyn Backend, login: Login) -> Client {
        let link = backend.open(login).await.expect("logged in");
        let mut client = Client { link, seen: VecDeque::new(), seq: 0 };
        client.done(Command::OpenChannel { channel: 1 }).await;
        client
    }

    pub async fn send(&self, command: Command) {
        self.link.commands.send(command).await.expect("the link lives");
    }

    /// The next event that `wanted` takes; others are kept for later.
    pub async fn next<T>(&mut self, what: &str, wanted: impl Fn(&Event) -> bool, take: impl Fn(Event) -> T) -> T {
        if let Some(at) = self.seen.iter().position(&wanted) {
            return take(self.seen.remove(at).expect("it is there"));
        }
        let wait = async {
            loop {
                let event = self.link.events.recv().await.unwrap_or_else(|| panic!("the link ended before {what}"));
                if wanted(&event) {
                    return take(event);
                }
                self.seen.push_back(event);
            }
        };
        match tokio::time::timeout(CAP, wait).await {
            Ok(taken) => taken,
            Err(_) => panic!("not within {CAP:?}: {what}; seen {:?}", self.seen),
        }
    }

    pub async fn request(&mut self, command: Command) -> Result<Reply, AmqpError> {
        let what = format!("the reply to {command:?}");
        let asked = command.channel();
        self.send(command).await;
        let wanted = move |event: &Event| matches!(event, Event::Reply { channel, .. } if *channel == asked);
        self.next(&what, wanted, |event| match event {
            Event::Reply { reply, .. } => reply,
            _ => unreachable!("only replies are wanted"),
        })
        .await
    }

    pub async fn done(&mut self, command: Command) {
        match self.request(command).await {
            Ok(Reply::Done) => {}
            other => panic!("expected done, got {other:?}"),
        }
    }

    pub async fn topology(&mut self, request: Topology) -> Result<Reply, AmqpError> {
        self.request(Command::Topology { channel: 1, request }).await
    }

    /// Name, ready messages, consumers.
    pub async fn declare(&mut self, declare: QueueDeclare) -> (String, u32, u32) {
        match self.topology(Topology::QueueDeclare(declare)).await {
            Ok(Reply::Queue { queue, message_count, consumer_count }) => {
                (queue.to_string(), message_count, consumer_count)
            }
            other => panic!("expected a queue, got {other:?}"),
        }
    }

    pub async fn counts(&mut self, name: &str) -> (u32, u32) {
        let (_, ready, consumers) = self.declare(QueueDeclare { passive: true, ..queue(name) }).await;
        (ready, consumers)
    }

    pub async fn bind(&mut self, source: &str, destination: &str, key: &str) {
        let binding = Binding {
            source: source.into(),
            destination: destination.into(),
            routing_key: key.into(),
            arguments: FieldTable::default(),
        };
        self.topology(Topology::QueueBind(binding)).await.expect("bound");
    }

    pub async fn publish(&mut self, exchange: &str, key: &str, body: impl Into<Vec<u8>>) -> u64 {
        self.publish_with(exchange, key, body, AMQPProperties::default(), false).await
    }

    pub async fn publish_with(
        &mut self,
        exchange: &str,
        key: &str,
        body: impl Into<Vec<u8>>,
        properties: AMQPProperties,
        mandatory: bool,
    ) -> u64 {
        self.seq += 1;
        let message =
            Message { exchange: exchange.into(), routing_key: key.into(), properties, body: body.into().into() };
        let publish = Publish { channel: 1, seq: self.seq, mandatory, message };
        self.send(Command::Publish(Box::new(publish))).await;
        self.seq
    }

    pub async fn confirm(&mut self) -> (u64, PublishOutcome) {
        let wanted = |event: &Event| matches!(event, Event::Confirm { .. });
        self.next("a confirm", wanted, |event| match event {
            Event::Confirm { seq, outcome, .. } => (seq, outcome),
            _ => unreachable!("only confirms are wanted"),
        })
        .await
    }

    /// Publishes and waits until it is stored.
    pub async fn store(&mut self, exchange: &str, key: &str, body: impl Into<Vec<u8>>) {
        let seq = self.publish(exchange, key, body).await;
        assert_eq!(self.confirm().await, (seq, PublishOutcome::Stored));
    }

    pub fn consume_command(queue: &str, tag: &str, credit: u32) -> Consume {
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

    pub async fn consume(&mut self, queue: &str, tag: &str, credit: u32) {
        self.done(Command::Consume { channel: 1, consume: Self::consume_command(queue, tag, credit) }).await;
    }

    pub async fn credit(&self, tag: &str, amount: u32) {
        self.send(Command::Credit { channel: 1, consumer_tag: tag.into(), amount }).await;
    }

    pub async fn delivery(&mut self) -> Delivery {
        self.delivery_of().await.1
    }

    /// The next delivery and its consumer's tag.
    pub async fn delivery_of(&mut self) -> (String, Delivery) {
        let wanted = |event: &Event| matches!(event, Event::Delivery { .. });
        self.next("a delivery", wanted, |event| match event {
            Event::Delivery { consumer_tag, delivery, .. } => (consumer_tag.to_string(), *delivery),
            _ => unreachable!("only deliveries are wanted"),
        })
        .await
    }

    /// Whether no delivery comes for as long as it takes to do a request or three.
    pub async fn no_delivery(&mut self) -> bool {
        for _ in 0..3 {
            self.done(Command::OpenChannel { channel: 9 }).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        while let Ok(event) = self.link.events.try_recv() {
            self.seen.push_back(event);
        }
        !self.seen.iter().any(|event| matches!(event, Event::Delivery { .. }))
    }

    pub async fn settle(&self, deliveries: &[&Delivery], outcome: Outcome) {
        let deliveries = deliveries.iter().map(|delivery| delivery.id).collect();
        self.send(Command::Settle { channel: 1, deliveries, outcome }).await;
    }

    pub async fn get(&mut self, queue: &str) -> Option<Got> {
        match self.request(Command::Get { channel: 1, queue: queue.into() }).await {
            Ok(Reply::Got(got)) => got.map(|got| *got),
            other => panic!("expected a get's answer, got {other:?}"),
        }
    }

    pub async fn close_channel(&mut self) {
        self.done(Command::CloseChannel { channel: 1 }).await;
    }

    /// Ends the link and waits until it has.
    pub async fn close(mut self) {
        drop(self.link.commands);
        let end = async { while self.link.events.recv().await.is_some() {} };
        tokio::time::timeout(CAP, end).await.expect("the link ends");
    }
}

/// Waits until this is in a queue, and as many consumers.
pub async fn until_counts(client: &mut Client, name: &str, counts: (u32, u32)) {
    let deadline = tokio::time::Instant::now() + CAP;
    while client.counts(name).await != counts {
        assert!(tokio::time::Instant::now() < deadline, "{:?} in {name}", client.counts(name).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
