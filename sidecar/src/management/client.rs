//! A client of the broker for one request: a link with one channel, as an AMQP connection has it.

use std::time::Duration;

use amq_protocol::types::{FieldTable, ShortString};
use amqp_compat::backend::jetstream::JetStreamBackend;
use amqp_compat::backend::{
    Backend, Command, DeliveryId, Event, Got, Link, Login, Message, Outcome, Publish, PublishOutcome, Reply, Topology,
};
use amqp_compat::{AmqpError, ReplyCode};

/// The only channel.
const CHANNEL: u16 = 1;

/// How long the broker may take to answer one command.
const PATIENCE: Duration = Duration::from_secs(20);

/// A link with an open channel.
pub(crate) struct Client {
    link: Link,
    published: u64,
}

/// Who asks, as HTTP's basic authentication says it.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Caller {
    /// One that has not logged in.
    pub(super) fn nobody() -> Self {
        Self { user: String::new(), password: String::new() }
    }

    /// The login of this caller to a vhost.
    pub(super) fn login(&self, vhost: &str) -> Login {
        Login {
            vhost: vhost.to_owned(),
            user: self.user.clone(),
            password: self.password.clone(),
            certificate: None,
            client_properties: FieldTable::default(),
            peer: "management".to_owned(),
        }
    }
}

/// What became of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// It is in its queues.
    Routed,
    /// No queue wanted it.
    Unrouted,
    /// A queue of its has not taken it; others may have.
    Refused,
}

impl Client {
    /// Opens a link and a channel.
    ///
    /// # Errors
    /// As [`Backend::open`].
    pub(crate) async fn open(backend: &JetStreamBackend, caller: &Caller, vhost: &str) -> Result<Self, AmqpError> {
        let link = backend.open(caller.login(vhost)).await?;
        let mut client = Self { link, published: 0 };
        client.request(Command::OpenChannel { channel: CHANNEL }).await?;
        Ok(client)
    }

    /// Asks for a change of exchanges, queues or bindings.
    pub(crate) async fn change(&mut self, request: Topology) -> Result<(), AmqpError> {
        self.request(Command::Topology { channel: CHANNEL, request }).await.map(drop)
    }

    /// Publishes a message, and answers what became of it once it is stored.
    pub(super) async fn publish(&mut self, message: Message) -> Result<Published, AmqpError> {
        self.published += 1;
        let publish = Publish { channel: CHANNEL, seq: self.published, mandatory: true, message };
        self.send(Command::Publish(Box::new(publish))).await?;
        let mut ended = Published::Routed;
        loop {
            match self.event().await? {
                Event::Returned { .. } => ended = Published::Unrouted,
                Event::Confirm { outcome: PublishOutcome::Stored, .. } => return Ok(ended),
                Event::Confirm { outcome: PublishOutcome::Failed, .. } => return Ok(Published::Refused),
                _ => {}
            }
        }
    }

    /// Takes one message.
    pub(super) async fn get(&mut self, queue: &ShortString) -> Result<Option<Box<Got>>, AmqpError> {
        match self.request(Command::Get { channel: CHANNEL, queue: queue.clone() }).await? {
            Reply::Got(got) => Ok(got),
            Reply::Done | Reply::Queue { .. } | Reply::MessageCount(_) => Ok(None),
        }
    }

    /// Ends what was taken, and waits until the broker has done it. Without `outcome` it goes back to its queue.
    pub(crate) async fn close(mut self, taken: &[DeliveryId], outcome: Option<Outcome>) -> Result<(), AmqpError> {
        if let (Some(outcome), false) = (outcome, taken.is_empty()) {
            let deliveries = taken.iter().copied().collect();
            self.send(Command::Settle { channel: CHANNEL, deliveries, outcome }).await?;
        }
        self.request(Command::CloseChannel { channel: CHANNEL }).await.map(drop)
    }

    async fn request(&mut self, command: Command) -> Result<Reply, AmqpError> {
        self.send(command).await?;
        loop {
            if let Event::Reply { reply, .. } = self.event().await? {
                return reply;
            }
        }
    }

    async fn send(&mut self, command: Command) -> Result<(), AmqpError> {
        match tokio::time::timeout(PATIENCE, self.link.commands.send(command)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(silent()),
        }
    }

    /// The next event that is no error.
    async fn event(&mut self) -> Result<Event, AmqpError> {
        match tokio::time::timeout(PATIENCE, self.link.events.recv()).await {
            Ok(Some(Event::Closed { error } | Event::ChannelFailed { error, .. })) => Err(error),
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(gone()),
            Err(_) => Err(silent()),
        }
    }
}

fn gone() -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, "the connection to the broker is lost; what was asked may have been done")
}

fn silent() -> AmqpError {
    let text = format!("the broker did not answer within {PATIENCE:?}; what was asked may have been done");
    AmqpError::new(ReplyCode::InternalError, text)
}
