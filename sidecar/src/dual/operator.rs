//! The sidecar's own link to one side: what it publishes itself, and asks.

use std::sync::Arc;
use std::time::Duration;

use amq_protocol::types::{FieldTable, ShortString};
use amqp_compat::backend::{
    Backend, Binding, Command, Event, Link, Login, Message, Outcome, Publish, PublishOutcome, QueueDeclare, Reply,
    Topology,
};
use amqp_compat::error::{AmqpError, ReplyCode};
use amqp_compat::model::vhost::BindingDefinition;
use foldhash::HashMap;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::stamp;
use crate::fence::QueueName;
use crate::ownership::Side;

/// What became of a message that the sidecar published itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is in the queue.
    Stored,
    /// There is no such queue.
    NoQueue,
}

/// What a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages ready for delivery.
    pub ready: u64,
    /// Consumers that are attached.
    pub consumers: u64,
}

/// The sidecar's own link to one side: one a vhost, opened when it is needed.
pub struct Operator {
    side: Side,
    backend: Arc<dyn Backend>,
    login: Login,
    links: Mutex<HashMap<Arc<str>, Slot>>,
}

/// The link of one vhost, for one thing at a time.
type Slot = Arc<Mutex<Option<Talk>>>;

/// One open link, with channel 1 open.
pub(crate) struct Talk {
    link: Link,
    seq: u64,
}

const CHANNEL: u16 = 1;
/// The longest that a side may take for one thing.
const PATIENCE: Duration = Duration::from_secs(5);

impl Operator {
    /// An operator that logs in like this, to whatever vhost is needed.
    pub fn new(side: Side, backend: Arc<dyn Backend>, login: Login) -> Self {
        Self { side, backend, login, links: Mutex::default() }
    }

    /// Its side.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Whether this side answers, asked through the vhost of the operator's own login.
    ///
    /// # Errors
    /// What it said, or that it did not answer.
    pub async fn ping(&self) -> Result<(), AmqpError> {
        let vhost: Arc<str> = self.login.vhost.as_str().into();
        // A channel more is the cheapest thing that a broker has to answer.
        self.with(&vhost, async |talk| {
            talk.ask(Command::OpenChannel { channel: CHANNEL + 1 }).await?;
            talk.ask(Command::CloseChannel { channel: CHANNEL + 1 }).await?;
            Ok(())
        })
        .await
    }

    /// What a queue holds; `None` when there is no such queue.
    ///
    /// # Errors
    /// What the side said, or that it did not answer.
    pub async fn depth(&self, queue: &QueueName) -> Result<Option<Depth>, AmqpError> {
        let name = ShortString::from(&*queue.queue);
        self.with(&queue.vhost, async |talk| {
            let declare = QueueDeclare::passive(name.clone());
            let command = Command::Topology { channel: CHANNEL, request: Topology::QueueDeclare(declare) };
            match talk.ask(command).await {
                Ok(Reply::Queue { message_count, consumer_count, .. }) => {
                    Ok(Some(Depth { ready: message_count.into(), consumers: consumer_count.into() }))
                }
                Ok(_) => Ok(None),
                Err(error) => {
                    talk.mend_channel(&error).await?;
                    if error.code == ReplyCode::NotFound { Ok(None) } else { Err(error) }
                }
            }
        })
        .await
    }

    /// Makes bindings; those that are there stay as they are. One whose end is not there, or belongs to one connection, is
    /// left to the link that declared it.
    ///
    /// # Errors
    /// What the side said, or that it did not answer; some may have been made.
    pub async fn bind(&self, vhost: &Arc<str>, bindings: &[BindingDefinition]) -> Result<(), AmqpError> {
        for definition in bindings {
            let destination = &definition.destination;
            let binding = Binding {
                source: (&*definition.source).into(),
                destination: (&**destination.name()).into(),
                routing_key: (&*definition.routing_key).into(),
                arguments: definition.arguments.clone(),
            };
            let request =
                if destination.is_queue() { Topology::QueueBind(binding) } else { Topology::ExchangeBind(binding) };
            let did =
                self.with(vhost, async |talk| match talk.ask(Command::Topology { channel: CHANNEL, request }).await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        talk.mend_channel(&error).await?;
                        match error.code {
                            ReplyCode::NotFound | ReplyCode::ResourceLocked => Ok(()),
                            _ => Err(error),
                        }
                    }
                });
            did.await?;
        }
        Ok(())
    }

    /// Publishes a message to a queue, and waits until it is stored.
    ///
    /// # Errors
    /// What the side said, or that it did not answer; the message may have landed.
    pub async fn send(&self, queue: &QueueName, message: &Message) -> Result<Sent, AmqpError> {
        self.with(&queue.vhost, async |talk| talk.publish(message.clone()).await).await
    }

    /// Takes a queue that belongs to one connection, on a link of its own: while that link lives, nobody else can.
    ///
    /// # Errors
    /// `ResourceLocked` when somebody else has it; what the side said, or that it did not answer.
    pub(crate) async fn lock(&self, held: &mut Option<Talk>, queue: &str) -> Result<(), AmqpError> {
        let mut talk = match held.take() {
            Some(talk) if !talk.link.commands.is_closed() => talk,
            _ => self.talk(&self.login.vhost).await?,
        };
        let declare = QueueDeclare {
            queue: queue.into(),
            passive: false,
            durable: false,
            exclusive: true,
            auto_delete: false,
            arguments: FieldTable::default(),
        };
        let command = Command::Topology { channel: CHANNEL, request: Topology::QueueDeclare(declare) };
        timeout(PATIENCE, talk.ask(command)).await.unwrap_or_else(|_| Err(self.silent()))?;
        *held = Some(talk);
        Ok(())
    }

    /// Leaves a word in a durable queue of the operator's own vhost, instead of what is there.
    ///
    /// # Errors
    /// What the side said, or that it did not answer.
    pub async fn mark(&self, queue: &str, word: &str) -> Result<(), AmqpError> {
        let name = QueueName { vhost: self.login.vhost.as_str().into(), queue: queue.into() };
        let declare = QueueDeclare {
            queue: queue.into(),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            arguments: FieldTable::default(),
        };
        self.with(&name.vhost, async |talk| {
            talk.ask(Command::Topology { channel: CHANNEL, request: Topology::QueueDeclare(declare) }).await?;
            let purge = Topology::QueuePurge { queue: queue.into() };
            talk.ask(Command::Topology { channel: CHANNEL, request: purge }).await?;
            let message = Message {
                exchange: ShortString::default(),
                routing_key: queue.into(),
                properties: amq_protocol::protocol::basic::AMQPProperties::default().with_delivery_mode(2),
                body: word.as_bytes().to_vec().into(),
            };
            talk.publish(message).await.map(|_| ())
        })
        .await
    }

    /// The word that [`Operator::mark`] has left.
    ///
    /// # Errors
    /// What the side said, or that it did not answer.
    pub async fn marked(&self, queue: &str) -> Result<Option<String>, AmqpError> {
        let name = QueueName { vhost: self.login.vhost.as_str().into(), queue: queue.into() };
        if !matches!(self.depth(&name).await?, Some(depth) if depth.ready > 0) {
            return Ok(None);
        }
        self.with(&name.vhost, async |talk| {
            let Reply::Got(Some(got)) = talk.ask(Command::Get { channel: CHANNEL, queue: queue.into() }).await? else {
                return Ok(None);
            };
            let deliveries = std::iter::once(got.delivery.id).collect();
            talk.say(Command::Settle { channel: CHANNEL, deliveries, outcome: Outcome::Requeue }).await?;
            Ok(Some(String::from_utf8_lossy(&got.delivery.message.body).into_owned()))
        })
        .await
    }

    /// How many of the first messages of a queue, `most` at most, are no fences. They are taken and given back, and say `redelivered`
    /// when they come next.
    ///
    /// # Errors
    /// What the side said, or that it did not answer; then they are back when the link has ended.
    pub async fn besides_fences(&self, name: &QueueName, most: u64) -> Result<u64, AmqpError> {
        let queue = ShortString::from(&*name.queue);
        self.with(&name.vhost, async |talk| {
            let (mut taken, mut besides) = (Vec::new(), 0);
            for _ in 0..most {
                let get = Command::Get { channel: CHANNEL, queue: queue.clone() };
                let Reply::Got(Some(got)) = talk.ask(get).await? else { break };
                besides += u64::from(stamp::is_fence(&got.delivery.message).is_none());
                taken.push(got.delivery.id);
            }
            let deliveries = taken.into_iter().collect();
            talk.say(Command::Settle { channel: CHANNEL, deliveries, outcome: Outcome::Requeue }).await?;
            Ok(besides)
        })
        .await
    }

    /// Takes the word away.
    ///
    /// # Errors
    /// What the side said, or that it did not answer.
    pub async fn unmark(&self, queue: &str) -> Result<(), AmqpError> {
        self.delete(&QueueName { vhost: self.login.vhost.as_str().into(), queue: queue.into() }).await
    }

    /// Deletes a queue with all that it holds.
    ///
    /// # Errors
    /// What the side said, or that it did not answer.
    pub async fn delete(&self, QueueName { vhost, queue }: &QueueName) -> Result<(), AmqpError> {
        let delete = Topology::QueueDelete { queue: (&**queue).into(), if_unused: false, if_empty: false };
        self.with(vhost, async |talk| {
            talk.ask(Command::Topology { channel: CHANNEL, request: delete }).await.map(|_| ())
        })
        .await
    }

    /// A link of one's own to a vhost.
    ///
    /// # Errors
    /// What the side said, or that it did not answer.
    pub async fn link(&self, vhost: &str) -> Result<Link, AmqpError> {
        let login = Login { vhost: vhost.to_owned(), ..self.login.clone() };
        timeout(PATIENCE, self.backend.open(login)).await.unwrap_or_else(|_| Err(self.silent()))
    }

    /// The same, with a channel.
    pub(crate) async fn talk(&self, vhost: &str) -> Result<Talk, AmqpError> {
        let mut talk = Talk { link: self.link(vhost).await?, seq: 0 };
        timeout(PATIENCE, talk.ask(Command::OpenChannel { channel: CHANNEL }))
            .await
            .unwrap_or_else(|_| Err(self.silent()))?;
        Ok(talk)
    }

    fn silent(&self) -> AmqpError {
        let text = format!("{} did not answer within {} s", self.side, PATIENCE.as_secs());
        AmqpError::new(ReplyCode::InternalError, text)
    }

    /// Does one thing on the link of a vhost.
    ///
    /// # Cancel safety
    /// Cancel safe: a link whose answer nobody waited for is closed with the future, so that the answer is not taken for
    /// that to the next question.
    async fn with<T>(
        &self,
        vhost: &Arc<str>,
        work: impl AsyncFnOnce(&mut Talk) -> Result<T, AmqpError>,
    ) -> Result<T, AmqpError> {
        let slot = Arc::clone(self.links.lock().await.entry(vhost.clone()).or_default());
        let mut slot = slot.lock().await;
        let did = timeout(PATIENCE, async {
            // Not in its slot before it has done: whatever a failed or abandoned exchange has left behind in the link is
            // not to be taken for the answer to the next.
            let mut talk = match slot.take() {
                Some(talk) if !talk.link.commands.is_closed() => talk,
                _ => {
                    let login = Login { vhost: vhost.to_string(), ..self.login.clone() };
                    let mut talk = Talk { link: self.backend.open(login).await?, seq: 0 };
                    talk.ask(Command::OpenChannel { channel: CHANNEL }).await?;
                    talk
                }
            };
            let done = work(&mut talk).await?;
            *slot = Some(talk);
            Ok(done)
        });
        did.await.unwrap_or_else(|_| Err(self.silent()))
    }
}

impl Talk {
    pub(crate) async fn say(&mut self, command: Command) -> Result<(), AmqpError> {
        self.link.commands.send(command).await.map_err(|_| AmqpError::new(ReplyCode::InternalError, "the link ended"))
    }

    pub(crate) async fn hear(&mut self) -> Result<Event, AmqpError> {
        match self.link.events.recv().await {
            Some(Event::Closed { error } | Event::ChannelFailed { error, .. }) => Err(error),
            Some(event) => Ok(event),
            None => Err(AmqpError::new(ReplyCode::InternalError, "the link ended")),
        }
    }

    pub(crate) async fn ask(&mut self, command: Command) -> Result<Reply, AmqpError> {
        self.say(command).await?;
        loop {
            if let Event::Reply { reply, .. } = self.hear().await? {
                return reply;
            }
        }
    }

    /// Opens the channel again that an error has closed; one that closed the connection is given back.
    async fn mend_channel(&mut self, error: &AmqpError) -> Result<(), AmqpError> {
        if error.code.closes_connection() {
            return Err(error.clone());
        }
        self.ask(Command::CloseChannel { channel: CHANNEL }).await?;
        self.ask(Command::OpenChannel { channel: CHANNEL }).await?;
        Ok(())
    }

    async fn publish(&mut self, message: Message) -> Result<Sent, AmqpError> {
        self.seq += 1;
        let seq = self.seq;
        self.say(Command::Publish(Box::new(Publish { channel: CHANNEL, seq, mandatory: true, message }))).await?;
        let mut sent = Sent::Stored;
        loop {
            match self.hear().await? {
                Event::Returned { .. } => sent = Sent::NoQueue,
                Event::Confirm { seq: confirmed, outcome, .. } if confirmed == seq => {
                    return match outcome {
                        PublishOutcome::Stored => Ok(sent),
                        PublishOutcome::Failed => Err(AmqpError::new(ReplyCode::InternalError, "not stored")),
                    };
                }
                _ => {}
            }
        }
    }
}
