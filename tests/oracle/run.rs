//! A program is done on one broker, and what is heard is written down step by step.
//!
//! A step is over when all that follows from it has been heard. On RabbitMQ that is when every method was answered, every
//! confirm is there, and two rounds through all channels and queues (`channel.flow`, passive declares, `channel.flow`:
//! each passes behind what was sent before) have brought nothing new; the second one because a queue answers a declare
//! ahead of publishes that are on their way to it. Our side is then given time to say what RabbitMQ has said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, channel, confirm, connection, queue, tx};
use amq_protocol::types::{FieldTable, ShortString};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Client, Heard, What};
use crate::program::{Operation, Program, Publish, Settle, Step, Which, is_answered};
use crate::render;
use crate::transcript::{Log, Place};

/// The longest wait for one thing.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// The channel on which queues are asked what they have, so that a queue that is gone closes none of the program's.
const CONTROL: u16 = 60;

/// Does a program, and answers what each step has brought. With `expected` it stops at the first step that differs.
pub async fn run(
    (server, vhost, prefix): (SocketAddr, &str, &str),
    program: &Program,
    expected: Option<(&[Vec<String>], Duration)>,
) -> Vec<Vec<String>> {
    let (heard, hearing) = mpsc::unbounded_channel();
    let mut run = Run {
        server,
        vhost: vhost.to_owned(),
        prefix: prefix.to_owned(),
        heard,
        hearing,
        lives: 0,
        connections: BTreeMap::new(),
        made_up: Vec::new(),
        queues: BTreeMap::new(),
        log: Log::default(),
        events: 0,
        step: 0,
    };
    let mut transcript = Vec::new();
    for (number, step) in program.steps.iter().chain(&crate::generate::epilogue()).enumerate() {
        run.step = number;
        run.log = Log::default();
        run.perform(step).await;
        if let Some((expected, patience)) = expected {
            let expected = expected.get(number).map_or(&[][..], Vec::as_slice);
            let until = Instant::now() + patience;
            while run.log.lines() != expected && run.hear(until).await {}
            transcript.push(run.log.lines());
            if run.log.lines() != expected {
                break;
            }
        } else {
            transcript.push(run.log.lines());
        }
    }
    transcript
}

struct Run {
    server: SocketAddr,
    vhost: String,
    prefix: String,
    heard: mpsc::UnboundedSender<Heard>,
    hearing: mpsc::UnboundedReceiver<Heard>,
    lives: usize,
    connections: BTreeMap<usize, Connection>,
    /// Names of queues and consumers that the broker has made up, as they came.
    made_up: Vec<String>,
    /// Queues that may be there, with the connection whose own they are.
    queues: BTreeMap<ShortString, Option<usize>>,
    log: Log,
    /// How many things were written down.
    events: usize,
    step: usize,
}

struct Connection {
    client: Client,
    life: usize,
    closing: bool,
    channels: BTreeMap<u16, Channel>,
}

/// An open channel.
#[derive(Default)]
struct Channel {
    /// Methods that wait for their answers, and whether these are left out of the transcript.
    calls: VecDeque<(AMQPClass, bool)>,
    confirms: bool,
    published: u64,
    confirmed: BTreeSet<u64>,
    /// Bodies of what was published, by number, to tell a return that comes after its confirm.
    bodies: BTreeMap<u64, Vec<u8>>,
    held: Vec<Held>,
    /// `Some`: settled since the last commit.
    transaction: Option<Vec<Held>>,
    last_settled: Option<u64>,
    highest_tag: u64,
    /// Consumers by their tags, and whether they need not settle.
    consumers: BTreeMap<ShortString, bool>,
}

/// A delivery that waits for its settlement.
#[derive(Clone)]
struct Held {
    step: usize,
    consumer: String,
    tag: u64,
}

impl Run {
    async fn perform(&mut self, step: &Step) {
        let place = (step.connection, step.channel);
        self.connect(step.connection).await;
        if !step.as_it_is {
            self.open(place).await;
        }
        for operation in &step.operations {
            match operation {
                Operation::Call(class) => self.call(place, class.clone(), false),
                Operation::Publish(publish) => self.publish(place, publish),
                Operation::Settle(settle) => self.settle(place, *settle),
                Operation::Disconnect => {
                    self.close_others(place).await;
                    self.disconnect(step.connection);
                }
                Operation::Drain(queue) => self.drain(place, queue).await,
            }
        }
        self.flush().await;
        self.wait("answers", |run| run.is_answered(place)).await;
        if step.is_followed_up() {
            self.rounds(step.connection).await;
        }
    }

    async fn connect(&mut self, number: usize) {
        if self.connections.contains_key(&number) {
            return;
        }
        self.lives += 1;
        let life = self.lives;
        let client = Client::open(self.server, &self.vhost, &self.prefix, (number, life), self.heard.clone()).await;
        self.connections.insert(number, Connection { client, life, closing: false, channels: BTreeMap::new() });
    }

    fn channel(&mut self, (connection, channel): Place) -> Option<&mut Channel> {
        self.connections.get_mut(&connection)?.channels.get_mut(&channel)
    }

    async fn open(&mut self, place: Place) {
        if self.channel(place).is_some() {
            return;
        }
        self.call(place, AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {})), true);
        self.flush().await;
        self.wait("an open channel", |run| run.is_answered(place)).await;
    }

    /// Says a method, and keeps in mind what it means for its channel.
    fn call(&mut self, (number, id): Place, class: AMQPClass, quiet: bool) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.client.method(id, class.clone());
        if let AMQPClass::Channel(channel::AMQPMethod::Open(_)) = &class {
            connection.channels.entry(id).or_default();
        }
        let Some(channel) = connection.channels.get_mut(&id) else {
            // On a channel that is not open: it ends the connection.
            connection.closing = true;
            return;
        };
        match &class {
            AMQPClass::Confirm(confirm::AMQPMethod::Select(_)) => channel.confirms = true,
            AMQPClass::Tx(tx::AMQPMethod::Select(_)) => drop(channel.transaction.get_or_insert_default()),
            AMQPClass::Tx(tx::AMQPMethod::Commit(_)) => channel.transaction.iter_mut().for_each(Vec::clear),
            AMQPClass::Tx(tx::AMQPMethod::Rollback(_)) => {
                let back: Vec<_> = channel.transaction.iter_mut().flat_map(std::mem::take).collect();
                channel.held.extend(back);
            }
            AMQPClass::Basic(basic::AMQPMethod::Recover(_) | basic::AMQPMethod::RecoverAsync(_)) => {
                channel.held.clear()
            }
            AMQPClass::Basic(basic::AMQPMethod::Consume(consume)) if consume.nowait => {
                channel.consumers.insert(consume.consumer_tag.clone(), consume.no_ack);
            }
            AMQPClass::Queue(queue::AMQPMethod::Declare(declare)) if declare.nowait => {
                let owner = declare.exclusive.then_some(number);
                self.queues.entry(declare.queue.clone()).or_insert(owner);
            }
            _ => {}
        }
        if is_answered(&class) {
            channel.calls.push_back((class, quiet));
        }
    }

    fn publish(&mut self, (number, id): Place, publish: &Publish) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.closing |= !connection.channels.contains_key(&id);
        let body = publish.body();
        connection.client.method(id, AMQPClass::Basic(basic::AMQPMethod::Publish(publish.method.clone())));
        connection.client.content(id, publish.properties.clone(), &body);
        if let Some(channel) = connection.channels.get_mut(&id)
            && channel.confirms
        {
            channel.published += 1;
            channel.bodies.insert(channel.published, body);
        }
    }

    fn settle(&mut self, place: Place, settle: Settle) {
        let multiple = settle.is_multiple();
        let Some(channel) = self.channel(place) else { return };
        let tag = match settle.which {
            Which::Unknown => channel.highest_tag + 1000,
            Which::Zero => 0,
            Which::Again => match channel.last_settled {
                Some(tag) => tag,
                None => return,
            },
            Which::Held(nth) => {
                // In an order that does not depend on who of several was served first.
                channel.held.sort_by(|a, b| (a.step, &a.consumer, a.tag).cmp(&(b.step, &b.consumer, b.tag)));
                let Some(chosen) = channel.held.get(nth % channel.held.len().max(1)) else { return };
                let peers = channel.held.iter().filter(|held| held.step == chosen.step);
                match multiple && peers.clone().any(|held| held.consumer != chosen.consumer) {
                    true => peers.map(|held| held.tag).max().unwrap_or(chosen.tag),
                    false => chosen.tag,
                }
            }
        };
        let is_meant = |held: &Held| held.tag == tag || (multiple && (tag == 0 || held.tag <= tag));
        let settled: Vec<_> = channel.held.extract_if(.., |held| is_meant(held)).collect();
        if let Some(last) = settled.last() {
            channel.last_settled = Some(last.tag);
        }
        if let Some(transaction) = &mut channel.transaction {
            transaction.extend(settled);
        }
        let class = AMQPClass::Basic(settle.method(tag));
        self.call(place, class, false);
    }

    /// Closes all channels of a connection but one. RabbitMQ ends the channels of a connection that closes one after the
    /// other, in any order, and what one of them held may go to a consumer of the next.
    async fn close_others(&mut self, (number, id): Place) {
        let Some(connection) = self.connections.get(&number) else { return };
        let others: Vec<_> = connection.channels.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            let close = channel::Close { reply_code: 200, reply_text: "bye".into(), class_id: 0, method_id: 0 };
            self.call((number, other), AMQPClass::Channel(channel::AMQPMethod::Close(close)), true);
            self.flush().await;
            self.wait("a closed channel", |run| run.is_answered((number, other))).await;
            if other != CONTROL {
                self.rounds(number).await;
            }
        }
    }

    fn disconnect(&mut self, number: usize) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.closing = true;
        let close = connection::Close { reply_code: 200, reply_text: "bye".into(), class_id: 0, method_id: 0 };
        connection.client.method(0, AMQPClass::Connection(connection::AMQPMethod::Close(close)));
    }

    /// Says what is in a queue, takes it all out, and deletes the queue.
    async fn drain(&mut self, place: Place, name: &ShortString) {
        self.call(place, passive(name), false);
        self.flush().await;
        self.wait("a declare's answer", |run| run.is_answered(place)).await;
        loop {
            let before = self.events;
            let get = basic::Get { queue: name.clone(), no_ack: true };
            if self.channel(place).is_none() {
                return;
            }
            self.call(place, AMQPClass::Basic(basic::AMQPMethod::Get(get)), false);
            self.flush().await;
            self.wait("a get's answer", |run| run.is_answered(place)).await;
            let got = self.log.deliveries.get(&place).map_or(0, Vec::len);
            let empty =
                self.log.replies.get(&place).is_some_and(|lines| lines.last().is_some_and(|l| l.ends_with("empty")));
            if empty || self.events == before || got > 1000 {
                break;
            }
        }
        let delete = queue::Delete { queue: name.clone(), if_unused: false, if_empty: false, nowait: false };
        self.call(place, AMQPClass::Queue(queue::AMQPMethod::Delete(delete)), false);
    }

    async fn flush(&mut self) {
        for connection in self.connections.values_mut() {
            connection.client.flush().await;
        }
    }

    fn is_answered(&self, (number, id): Place) -> bool {
        let Some(connection) = self.connections.get(&number) else { return true };
        if connection.closing {
            return false;
        }
        let Some(channel) = connection.channels.get(&id) else { return true };
        channel.calls.is_empty() && (!channel.confirms || channel.confirmed.len() as u64 >= channel.published)
    }

    /// Goes on hearing until something is so.
    async fn wait(&mut self, what: &str, is_so: impl Fn(&Run) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            if !self.hear(until).await {
                self.log.wrong.push(format!("not within {PATIENCE:?}: {what}"));
                return;
            }
        }
    }

    /// Two rounds, and more until one brings nothing.
    async fn rounds(&mut self, acted: usize) {
        for round in 0..20 {
            let before = self.events;
            self.flow().await;
            self.ask_queues(acted).await;
            self.flow().await;
            if round > 0 && self.events == before {
                return;
            }
        }
        self.log.wrong.push("it does not come to rest".to_owned());
    }

    async fn flow(&mut self) {
        let places: Vec<Place> = self
            .connections
            .iter()
            .filter(|(_, connection)| !connection.closing)
            .flat_map(|(number, connection)| connection.channels.keys().map(|channel| (*number, *channel)))
            .collect();
        for place in &places {
            let flow = AMQPClass::Channel(channel::AMQPMethod::Flow(channel::Flow { active: true }));
            self.call(*place, flow, true);
        }
        self.flush().await;
        self.wait("channel.flow-ok", |run| places.iter().all(|place| run.is_answered(*place))).await;
    }

    /// Asks every queue for its counts, on the connection that acted or the one that owns it.
    async fn ask_queues(&mut self, acted: usize) {
        let acted = if self.connections.contains_key(&acted) { acted } else { 2 };
        let mut left: Vec<_> = self.queues.iter().map(|(name, owner)| (name.clone(), owner.unwrap_or(acted))).collect();
        while !left.is_empty() {
            let mut places = BTreeSet::new();
            for (_, number) in &left {
                self.connect(*number).await;
                self.open((*number, CONTROL)).await;
                places.insert((*number, CONTROL));
            }
            for (name, number) in &left {
                self.call((*number, CONTROL), passive(name), true);
            }
            self.flush().await;
            self.wait("what queues have", |run| places.iter().all(|place| run.is_answered(*place))).await;
            // A queue that is gone has closed its channel; those behind it were not asked.
            let gone = |place: &Place, run: &mut Run| run.channel(*place).is_none();
            let closed: BTreeSet<usize> =
                places.iter().filter(|place| gone(place, self)).map(|(number, _)| *number).collect();
            let known = &self.queues;
            left.retain(|(name, number)| closed.contains(number) && known.contains_key(name));
            // The one that was at fault was taken off when its channel closed; else this would not end.
            left.truncate(left.len().min(50));
        }
    }

    /// Takes what is heard next; answers whether anything was.
    async fn hear(&mut self, until: Instant) -> bool {
        match tokio::time::timeout_at(until, self.hearing.recv()).await {
            Ok(Some(heard)) => {
                self.take(heard).await;
                true
            }
            _ => false,
        }
    }

    async fn take(&mut self, Heard { connection: number, life, channel: id, what }: Heard) {
        let place = (number, id);
        let Some(connection) = self.connections.get_mut(&number).filter(|connection| connection.life == life) else {
            return;
        };
        match what {
            What::End => {
                self.log.wrong.push(format!("c{number}: the socket was closed"));
                self.forget(number);
            }
            What::Method(AMQPClass::Connection(method)) => {
                let is_over = match &method {
                    connection::AMQPMethod::Close(_) => {
                        let ok = connection::AMQPMethod::CloseOk(connection::CloseOk {});
                        connection.client.method(0, AMQPClass::Connection(ok));
                        connection.client.flush().await;
                        true
                    }
                    method => matches!(method, connection::AMQPMethod::CloseOk(_)),
                };
                self.reply(place, render::method(&AMQPClass::Connection(method)));
                if is_over {
                    self.forget(number);
                }
            }
            What::Method(AMQPClass::Channel(channel::AMQPMethod::Close(close))) => {
                let ok = channel::AMQPMethod::CloseOk(channel::CloseOk {});
                connection.client.method(id, AMQPClass::Channel(ok));
                connection.client.flush().await;
                let calls = connection.channels.remove(&id).unwrap_or_default().calls;
                if id == CONTROL {
                    if let Some((AMQPClass::Queue(queue::AMQPMethod::Declare(declare)), _)) = calls.front() {
                        self.queues.remove(&declare.queue);
                    }
                    return;
                }
                self.reply(place, render::method(&AMQPClass::Channel(channel::AMQPMethod::Close(close))));
            }
            What::Method(class) => self.method(place, class),
            What::Message(method, properties, body) => self.message(place, method, &properties, &body),
        }
    }

    fn method(&mut self, place: Place, class: AMQPClass) {
        let (number, id) = place;
        let Some(channel) = self.connections.get_mut(&number).and_then(|c| c.channels.get_mut(&id)) else {
            self.log.wrong.push(format!("on closed channel c{number}/{id}: {}", render::method(&class)));
            return;
        };
        match &class {
            AMQPClass::Basic(basic::AMQPMethod::Ack(basic::Ack { delivery_tag, multiple })) => {
                return self.confirmed(place, *delivery_tag, *multiple, true);
            }
            AMQPClass::Basic(basic::AMQPMethod::Nack(basic::Nack { delivery_tag, multiple, .. })) => {
                return self.confirmed(place, *delivery_tag, *multiple, false);
            }
            AMQPClass::Basic(basic::AMQPMethod::Cancel(cancel)) => {
                channel.consumers.remove(&cancel.consumer_tag);
                let consumer = self.named(cancel.consumer_tag.as_str());
                if !self.log.cancels.entry(place).or_default().insert(consumer.clone()) {
                    self.log.wrong.push(format!("c{number}/{id}: '{consumer}' is cancelled twice"));
                }
                self.events += 1;
                return;
            }
            _ => {}
        }
        // Consuming is answered by the queue, and may be overtaken.
        let asked = channel.calls.iter().position(|(call, _)| is_answer(call, &class));
        let Some((call, quiet)) = asked.and_then(|at| channel.calls.remove(at)) else {
            self.log.wrong.push(format!("c{number}/{id}: not asked for: {}", render::method(&class)));
            return;
        };
        match &class {
            AMQPClass::Queue(queue::AMQPMethod::DeclareOk(ok)) => {
                if ok.queue.as_str().starts_with("amq.gen-")
                    && !self.made_up.iter().any(|name| name == ok.queue.as_str())
                {
                    self.made_up.push(ok.queue.to_string());
                }
                if let AMQPClass::Queue(queue::AMQPMethod::Declare(declare)) = call
                    && !(declare.passive && self.queues.contains_key(&ok.queue))
                {
                    self.queues.insert(ok.queue.clone(), declare.exclusive.then_some(number));
                }
            }
            AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(ok)) => {
                if ok.consumer_tag.as_str().starts_with("amq.ctag-") {
                    self.made_up.push(ok.consumer_tag.to_string());
                }
                let no_ack = matches!(&call, AMQPClass::Basic(basic::AMQPMethod::Consume(consume)) if consume.no_ack);
                channel.consumers.insert(ok.consumer_tag.clone(), no_ack);
            }
            AMQPClass::Basic(basic::AMQPMethod::CancelOk(ok)) => {
                channel.consumers.remove(&ok.consumer_tag);
            }
            AMQPClass::Channel(channel::AMQPMethod::CloseOk(_)) => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.channels.remove(&id);
                }
            }
            _ => {}
        }
        if quiet {
            return;
        }
        match class {
            AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(_) | basic::AMQPMethod::CancelOk(_)) => {
                self.events += 1;
                let text = self.named(&render::method(&class));
                self.log.consuming.entry(place).or_default().push(text);
            }
            class => self.reply(place, render::method(&class)),
        }
    }

    fn confirmed(&mut self, place: Place, tag: u64, multiple: bool, acked: bool) {
        self.events += 1;
        let Some(channel) = self.channel(place) else { return };
        let tags: Vec<u64> = match multiple {
            true => (1..=tag).filter(|tag| !channel.confirmed.contains(tag)).collect(),
            false => vec![tag],
        };
        for tag in tags {
            let Some(channel) = self.channel(place) else { return };
            if tag > channel.published || !channel.confirmed.insert(tag) {
                self.log.wrong.push(format!("{place:?}: publish {tag} is confirmed, and should not be"));
                continue;
            }
            let log = if acked { &mut self.log.acked } else { &mut self.log.nacked };
            log.entry(place).or_default().insert(tag);
        }
    }

    fn message(&mut self, place: Place, method: basic::AMQPMethod, properties: &AMQPProperties, body: &[u8]) {
        use basic::AMQPMethod as M;
        self.events += 1;
        let step = self.step;
        let made_up = self.made_up.clone();
        let content = format!("{}{}", render::body(body), render::properties(properties));
        let Some(channel) = self.channel(place) else {
            self.log.wrong.push(format!("a message on closed channel {place:?}: {content}"));
            return;
        };
        let came_by = |exchange, key, redelivered: bool| {
            let again = if redelivered { " redelivered" } else { "" };
            format!("{content} by '{}' key '{}'{again}", render::here(exchange), render::here(key))
        };
        match method {
            M::Deliver(basic::Deliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key }) => {
                channel.highest_tag = channel.highest_tag.max(delivery_tag);
                let consumer = named(&made_up, consumer_tag.as_str());
                let known = channel.consumers.get(&consumer_tag).copied();
                if known == Some(false) {
                    channel.held.push(Held { step, consumer: consumer.clone(), tag: delivery_tag });
                }
                if known.is_none() {
                    self.log.wrong.push(format!("{place:?}: '{consumer}' does not consume and gets {content}"));
                }
                let text = self.named(&came_by(&exchange, &routing_key, redelivered));
                self.log.deliveries.entry(place).or_default().push((consumer, delivery_tag, text));
            }
            M::GetOk(basic::GetOk { delivery_tag, redelivered, exchange, routing_key, message_count }) => {
                channel.highest_tag = channel.highest_tag.max(delivery_tag);
                let is_get = |call: &AMQPClass| matches!(call, AMQPClass::Basic(M::Get(_)));
                let asked = channel.calls.iter().position(|(call, _)| is_get(call));
                let call = asked.and_then(|at| channel.calls.remove(at));
                if !matches!(&call, Some((AMQPClass::Basic(M::Get(get)), _)) if get.no_ack) {
                    channel.held.push(Held { step, consumer: "get".to_owned(), tag: delivery_tag });
                }
                let text = self.named(&came_by(&exchange, &routing_key, redelivered));
                let text = format!("{text}, {message_count} left");
                self.log.deliveries.entry(place).or_default().push(("get".to_owned(), delivery_tag, text.clone()));
                self.log.replies.entry(place).or_default().push(format!("basic.get-ok {text}"));
            }
            M::Return(basic::Return { reply_code, reply_text, exchange, routing_key }) => {
                let late = channel.bodies.iter().any(|(n, other)| other == body && channel.confirmed.contains(n));
                let late = if late && !body.is_empty() { " AFTER ITS CONFIRM" } else { "" };
                let text =
                    format!("basic.return {reply_code} {reply_text} {}{late}", came_by(&exchange, &routing_key, false));
                let text = self.named(&text);
                self.log.returns.entry(place).or_default().push(text);
            }
            _ => self.log.wrong.push(format!("a message with {method:?}")),
        }
    }

    fn reply(&mut self, place: Place, text: String) {
        self.events += 1;
        let text = self.named(&text);
        self.log.replies.entry(place).or_default().push(text);
    }

    fn named(&self, text: &str) -> String {
        named(&self.made_up, text)
    }

    /// A connection is over, and its own queues with it.
    fn forget(&mut self, number: usize) {
        self.connections.remove(&number);
        self.queues.retain(|_, owner| *owner != Some(number));
    }
}

/// Whether it is the answer to this method.
fn is_answer(call: &AMQPClass, answer: &AMQPClass) -> bool {
    let (asked, answered) = (call.get_amqp_method_id(), answer.get_amqp_method_id());
    // get-empty, and exchange.unbind-ok.
    let special = matches!((call.get_amqp_class_id(), asked, answered), (60, 70, 72) | (40, 40, 51));
    call.get_amqp_class_id() == answer.get_amqp_class_id() && (answered == asked + 1 || special)
}

/// A text with numbers in place of made up names.
fn named(made_up: &[String], text: &str) -> String {
    let names = made_up.iter().enumerate();
    let text = names.fold(text.to_owned(), |text, (number, name)| text.replace(name, &format!("made-up-{number}")));
    // One that was refused is known from the refusal alone.
    let mut parts = text.split("amq.gen-");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "made-up" + part.find('\'').map_or("", |end| &part[end..]))
}

fn passive(name: &ShortString) -> AMQPClass {
    AMQPClass::Queue(queue::AMQPMethod::Declare(queue::Declare {
        queue: name.clone(),
        passive: true,
        durable: false,
        exclusive: false,
        auto_delete: false,
        nowait: false,
        arguments: FieldTable::default(),
    }))
}
