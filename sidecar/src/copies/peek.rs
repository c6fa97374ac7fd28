//! Reads all that lies in a queue and gives it back, in its place.
//!
//! No protocol of RabbitMQ's looks at a message without taking it: everything is taken unacknowledged, and requeued at the end, which puts it
//! back where it was, flagged as redelivered (and, on a quorum queue, counted as returned). Meanwhile nobody else may read the queue.

use std::time::{Duration, Instant};

use amq_protocol::types::{FieldTable, ShortString};
use amqp_compat::backend::{Command, Consume, DeliveryId, Event, Message, Outcome, QueueDeclare, Reply, Topology};
use amqp_compat::error::{AmqpError, ReplyCode};
use tokio::time::timeout;

use crate::dual::operator::Talk;
use crate::ownership::Side;

const CHANNEL: u16 = 1;
/// How long nothing has to come before the queue is asked whether there is more.
const IDLE: Duration = Duration::from_millis(100);
/// How long a message may be on its way from a queue that has no more.
const ON_THE_WAY: Duration = Duration::from_secs(3);
/// The longest that a broker may take for one thing.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most that RabbitMQ gives one consumer unacknowledged; a quorum queue knows no "no limit".
const WINDOW: u16 = u16::MAX;

/// A queue that is read.
pub(crate) struct Peek<'a> {
    talk: &'a mut Talk,
    side: Side,
    queue: ShortString,
    taken: Vec<DeliveryId>,
    /// What was taken before the first consumer.
    first: Option<Message>,
    consumers: usize,
    /// What lay in it at the beginning.
    held: u64,
    asked: Asked,
    heard: Instant,
}

enum Asked {
    Nothing,
    Depth,
    Consumer,
}

impl<'a> Peek<'a> {
    /// Begins to read a queue of this side, over a link of one's own.
    pub fn new(talk: &'a mut Talk, side: Side, queue: &str) -> Self {
        Self {
            talk,
            side,
            queue: queue.into(),
            taken: Vec::new(),
            first: None,
            consumers: 0,
            held: 0,
            asked: Asked::Nothing,
            heard: Instant::now(),
        }
    }

    fn depth(&self) -> Command {
        Command::Topology {
            channel: CHANNEL,
            request: Topology::QueueDeclare(QueueDeclare::passive(self.queue.clone())),
        }
    }

    fn tag(consumer: usize) -> ShortString {
        format!("nats-bridge.peek.{consumer}").as_str().into()
    }

    fn consume(&mut self) -> Command {
        let no_limit = self.side == Side::Nats;
        let consume = Consume {
            queue: self.queue.clone(),
            consumer_tag: Self::tag(self.consumers),
            exclusive: false,
            no_ack: false,
            credit: if no_limit { u32::MAX } else { WINDOW.into() },
            prefetch: if no_limit { 0 } else { WINDOW },
            no_limit,
            arguments: FieldTable::default(),
        };
        self.consumers += 1;
        Command::Consume { channel: CHANNEL, consume }
    }

    /// Begins; answers what lies in the queue. `None`: there is no such queue.
    ///
    /// # Errors
    /// What the side said, or that it did not answer.
    pub async fn begin(&mut self) -> Result<Option<u64>, AmqpError> {
        if self.side == Side::Rabbit && !self.get_first().await? {
            return Ok(None);
        }
        self.held = match timeout(PATIENCE, self.talk.ask(self.depth())).await {
            Ok(Ok(Reply::Queue { message_count, .. })) => u64::from(message_count) + self.taken.len() as u64,
            Ok(Err(error)) if error.code == ReplyCode::NotFound => return Ok(None),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) => 0,
            Err(_) => return Err(self.silent()),
        };
        if self.held > self.taken.len() as u64 {
            let first = self.consume();
            self.talk.say(first).await?;
            self.asked = Asked::Consumer;
        }
        self.heard = Instant::now();
        Ok(Some(self.held))
    }

    /// Takes the first message; false when there is no such queue. RabbitMQ answers the question for the depth before what its queue has yet to
    /// do, and a get in its turn: after it the depth has all that was given back earlier.
    async fn get_first(&mut self) -> Result<bool, AmqpError> {
        let get = Command::Get { channel: CHANNEL, queue: self.queue.clone() };
        match timeout(PATIENCE, self.talk.ask(get)).await.unwrap_or_else(|_| Err(self.silent())) {
            Ok(Reply::Got(Some(got))) => {
                self.taken.push(got.delivery.id);
                self.first = Some(got.delivery.message);
            }
            Ok(_) => {}
            Err(error) if error.code == ReplyCode::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// The next message of those that lay in the queue when it began; `None` when there are no more: all were taken, or the others have
    /// expired.
    ///
    /// # Errors
    /// What the side said, or that it did not answer.
    pub async fn next(&mut self) -> Result<Option<Message>, AmqpError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        while (self.taken.len() as u64) < self.held {
            let event = match timeout(IDLE, self.talk.hear()).await {
                Ok(event) => event?,
                Err(_) if self.heard.elapsed() > PATIENCE => return Err(self.silent()),
                Err(_) => {
                    if let Asked::Nothing = self.asked {
                        self.talk.say(self.depth()).await?;
                        self.asked = Asked::Depth;
                    }
                    continue;
                }
            };
            match event {
                Event::Delivery { delivery, .. } => {
                    self.heard = Instant::now();
                    self.taken.push(delivery.id);
                    return Ok(Some(delivery.message));
                }
                Event::Reply { reply, .. } => {
                    let asked = std::mem::replace(&mut self.asked, Asked::Nothing);
                    let (Reply::Queue { message_count, .. }, Asked::Depth) = (reply?, asked) else { continue };
                    // What is on its way is not ready either.
                    if message_count == 0 && self.heard.elapsed() > ON_THE_WAY {
                        return Ok(None);
                    }
                    if self.side == Side::Rabbit && self.taken.len() >= self.consumers * usize::from(WINDOW) {
                        let another = self.consume();
                        self.talk.say(another).await?;
                        self.asked = Asked::Consumer;
                    }
                }
                Event::ConsumerCancelled { .. } => {
                    return Err(AmqpError::new(ReplyCode::NotFound, format!("queue '{}' was deleted", self.queue)));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Gives everything back, and waits until it is in its place again.
    ///
    /// # Errors
    /// What the side said, or that it did not answer: then it is given back when the link ends.
    pub async fn give_back(mut self) -> Result<(), AmqpError> {
        // The last message may come while the depth is asked for, and a channel has one question at a time.
        if !matches!(self.asked, Asked::Nothing) {
            self.replied().await?;
        }
        // First of all: else what is given back would come again at once.
        for consumer in 0..self.consumers {
            self.talk.say(Command::Cancel { channel: CHANNEL, consumer_tag: Self::tag(consumer) }).await?;
            self.replied().await?;
        }
        let taken = self.taken.len() as u64;
        if taken == 0 {
            return Ok(());
        }
        let deliveries = std::mem::take(&mut self.taken).into();
        self.talk.say(Command::Settle { channel: CHANNEL, deliveries, outcome: Outcome::Requeue }).await?;
        let mut most = (0, Instant::now());
        loop {
            self.talk.say(self.depth()).await?;
            let Reply::Queue { message_count, .. } = self.replied().await? else { return Ok(()) };
            let ready = u64::from(message_count);
            if ready > most.0 {
                most = (ready, Instant::now());
            }
            // Some may have expired meanwhile; but a broker that is busy takes its time as well.
            if ready >= taken || most.1.elapsed() > ON_THE_WAY {
                return Ok(());
            }
            tokio::time::sleep(IDLE).await;
        }
    }

    async fn replied(&mut self) -> Result<Reply, AmqpError> {
        loop {
            match timeout(PATIENCE, self.talk.hear()).await {
                Ok(Ok(Event::Reply { reply, .. })) => return reply,
                Ok(Ok(Event::Delivery { delivery, .. })) => self.taken.push(delivery.id),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(self.silent()),
            }
        }
    }

    fn silent(&self) -> AmqpError {
        let text = format!("{} did not answer within {} s", self.side, PATIENCE.as_secs());
        AmqpError::new(ReplyCode::InternalError, text)
    }
}
