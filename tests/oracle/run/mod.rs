//! A program is done on one broker, and what is heard is written down step by step.
//!
//! A step is over when all that follows from it has been heard. On RabbitMQ that is when every method was answered, every
//! confirm is there, and two rounds through all channels and queues (`channel.flow`, passive declares, `channel.flow`:
//! each passes behind what was sent before) have brought nothing new; the second one because a queue answers a declare
//! ahead of publishes that are on their way to it. Our side is then given time to say what RabbitMQ has said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use amq_protocol::protocol::{AMQPClass, channel};
use amq_protocol::types::ShortString;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Client, Heard};
use crate::program::{Operation, Program, Step};
use crate::transcript::{Log, Place};

mod doing;
mod hearing;
mod leaving;
mod rest;

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
        requests: Vec::new(),
        queues: BTreeMap::new(),
        has_quorum: program.to_string().contains("'quorum'"),
        told: Told::default(),
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
    /// Names for direct replies, as they came in requests.
    requests: Vec<String>,
    /// Queues that may be there, with the connection whose own they are.
    queues: BTreeMap<ShortString, Option<usize>>,
    has_quorum: bool,
    told: Told,
    log: Log,
    /// How many things were written down.
    events: usize,
    step: usize,
}

/// What the control channel was told last.
#[derive(Default)]
struct Told {
    /// The consumers of the queue that was asked for.
    consumers: u32,
    /// The code with which a channel was closed.
    code: u16,
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
                Operation::Lose => self.lose(place).await,
                Operation::Answer(answer) => self.answer(place, *answer),
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

    /// A connection is over, and its own queues with it.
    fn forget(&mut self, number: usize) {
        self.connections.remove(&number);
        self.queues.retain(|_, owner| *owner != Some(number));
    }
}
