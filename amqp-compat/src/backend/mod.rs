//! The one border between an AMQP session and a broker.
//!
//! A [`Backend`] opens one [`Link`] for every AMQP connection. A link is two bounded channels: [`Command`]s go in,
//! [`Event`]s come out. JetStream ([`jetstream`]), RabbitMQ ([`rabbitmq`]) and the sidecar's "both" are its
//! implementations, so that the listener, the library and the sidecar share one path.
//!
//! # The contract
//! - Commands of one channel take effect in the order in which they were sent. Different channels are independent.
//! - Each request ([`Command::is_request`]) is answered by exactly one [`Event::Reply`] on its channel, in order.
//!   The session has at most one request in flight per channel and sends nothing else on it meanwhile.
//! - Each [`Command::Publish`] is answered by exactly one [`Event::Confirm`], in any order, once *all* routed copies
//!   are stored (or one of them failed). [`Event::Returned`] for the same `seq` comes before it. A publisher's
//!   `basic.ack` has no other source.
//! - A backend delivers to a consumer only within its credit: the `credit` of [`Command::Consume`] plus later
//!   [`Command::Credit`]. Credit is never taken back; the session buffers what it must not send yet.
//! - What waits in a queue is handed out for the credit that was given before a delivery is requeued, or a message got,
//!   and what takes effect then is the requeue or the get: RabbitMQ's queues do so.
//! - A delivery stays unsettled until [`Command::Settle`]. `no_ack` is the session's business: it settles for the client.
//!   A direct reply ([`DeliveryId::DIRECT`]) needs neither credit nor an end.
//! - After [`Command::CloseChannel`], or when the command side is dropped, all unsettled deliveries of the channel (or
//!   link) are requeued in their original order, its consumers are gone, and exclusive queues of a link are deleted.
//! - [`Event::Closed`] is the last event of a link.

use std::time::Duration;

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{FieldTable, ShortString};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tokio::sync::mpsc;

use crate::error::AmqpError;

pub mod jetstream;
pub mod rabbitmq;
pub mod reply_to;

/// A broker that AMQP sessions can be run against.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Checks a login before limits are negotiated; clients expect a refusal here and not later. `login.vhost` is not
    /// known yet and empty.
    ///
    /// A backend that can only tell while it opens a link says yes to everyone here, which is the default.
    ///
    /// # Errors
    /// `AccessRefused` for a refused login.
    async fn authenticate(&self, login: &Login) -> Result<(), AmqpError> {
        let _ = login;
        Ok(())
    }

    /// Whether a client that has shown a certificate may log in by it (`EXTERNAL`), without a password. Not by default: a
    /// backend that logs in elsewhere for the client has nothing to log in with.
    fn takes_certificates(&self) -> bool {
        false
    }

    /// Opens one link for one AMQP connection whose login the client has just sent.
    ///
    /// # Errors
    /// `AccessRefused` for a refused login, `NotAllowed` for an unknown vhost (RabbitMQ's codes), `InternalError` when
    /// the broker cannot be reached. Nothing is left open.
    async fn open(&self, login: Login) -> Result<Link, AmqpError>;
}

/// Who connects, and where to.
#[derive(Clone)]
pub struct Login {
    /// Virtual host, as in `connection.open`.
    pub vhost: String,
    /// User name of the PLAIN response.
    pub user: String,
    /// Password of the PLAIN response. Never logged.
    pub password: String,
    /// The common name of the client's certificate, when it logs in by that (`EXTERNAL`): the user, without a password.
    pub certificate: Option<String>,
    /// Client properties of `connection.start-ok`.
    pub client_properties: FieldTable,
    /// Remote address, for logs and the connection's name.
    pub peer: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("vhost", &self.vhost)
            .field("user", &self.user)
            .field("password", &"***")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// One AMQP connection on a broker: commands in, events out, both bounded.
///
/// Dropping `commands` closes the link; the backend then requeues what is unsettled and ends `events`.
#[derive(Debug)]
pub struct Link {
    /// What the session asks for.
    pub commands: mpsc::Sender<Command>,
    /// What the broker answers and delivers.
    pub events: mpsc::Receiver<Event>,
}

/// The length of a link's command and event channels, in entries. A full one makes its sender wait, down to the
/// client's socket.
pub const LINK_CAPACITY: usize = 4096;

/// An AMQP channel number, 1 to 65535.
pub type ChannelId = u16;

/// A backend's own name for one unsettled delivery; unique within a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryId(pub u64);

impl DeliveryId {
    /// A direct reply: it needs no room within a prefetch, and nobody settles it.
    pub const DIRECT: DeliveryId = DeliveryId(u64::MAX);
}

/// What a session asks of a broker.
#[derive(Debug)]
pub enum Command {
    /// Opens a channel. A request; answered by [`Reply::Done`].
    OpenChannel {
        /// The new channel.
        channel: ChannelId,
    },
    /// Closes a channel; unsettled deliveries are requeued. A request; answered by [`Reply::Done`] once they are.
    CloseChannel {
        /// The channel.
        channel: ChannelId,
    },
    /// Reads or changes exchanges, queues or bindings. A request.
    Topology {
        /// The channel.
        channel: ChannelId,
        /// What is asked.
        request: Topology,
    },
    /// Publishes one message. Answered by [`Event::Confirm`] with the same `seq`.
    Publish(Box<Publish>),
    /// Starts a consumer. A request; answered by [`Reply::Done`], before any of its deliveries.
    Consume {
        /// The channel.
        channel: ChannelId,
        /// What is asked.
        consume: Consume,
    },
    /// Lets the consumer have `amount` more deliveries.
    Credit {
        /// The channel.
        channel: ChannelId,
        /// The consumer.
        consumer_tag: ShortString,
        /// How many more deliveries it may get.
        amount: u32,
    },
    /// Ends a consumer. A request; answered by [`Reply::Done`], after its last delivery. What it was delivered stays
    /// unsettled with the channel.
    Cancel {
        /// The channel.
        channel: ChannelId,
        /// The consumer.
        consumer_tag: ShortString,
    },
    /// Takes one message from a queue. A request; answered by [`Reply::Got`].
    Get {
        /// The channel.
        channel: ChannelId,
        /// The queue.
        queue: ShortString,
    },
    /// Ends deliveries, oldest first.
    Settle {
        /// The channel.
        channel: ChannelId,
        /// The deliveries, in ascending order of delivery tag.
        deliveries: SmallVec<[DeliveryId; 1]>,
        /// How they end.
        outcome: Outcome,
    },
}

impl Command {
    /// The channel it belongs to.
    pub fn channel(&self) -> ChannelId {
        match self {
            Command::OpenChannel { channel }
            | Command::CloseChannel { channel }
            | Command::Topology { channel, .. }
            | Command::Consume { channel, .. }
            | Command::Credit { channel, .. }
            | Command::Cancel { channel, .. }
            | Command::Get { channel, .. }
            | Command::Settle { channel, .. } => *channel,
            Command::Publish(publish) => publish.channel,
        }
    }

    /// Whether it is answered by exactly one [`Event::Reply`].
    pub fn is_request(&self) -> bool {
        match self {
            Command::OpenChannel { .. }
            | Command::CloseChannel { .. }
            | Command::Topology { .. }
            | Command::Consume { .. }
            | Command::Cancel { .. }
            | Command::Get { .. } => true,
            Command::Publish(_) | Command::Credit { .. } | Command::Settle { .. } => false,
        }
    }
}

/// How a delivery ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done: removed from the queue.
    Ack,
    /// Back to its place in the queue; the next delivery of it says `redelivered`.
    Requeue,
    /// Refused: dead-lettered where the queue says so, else dropped (`basic.reject` or `basic.nack` without requeue).
    Reject,
}

/// One message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// The channel.
    pub channel: ChannelId,
    /// Number of this publish on its channel, from 1, growing by one; counted with and without confirms.
    pub seq: u64,
    /// Whether an unroutable message is to be returned.
    pub mandatory: bool,
    /// The message.
    pub message: Message,
}

/// A message as AMQP sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Exchange it was published to; empty for the default exchange.
    pub exchange: ShortString,
    /// Routing key it was published with.
    pub routing_key: ShortString,
    /// Its properties, headers included, exactly as published.
    pub properties: AMQPProperties,
    /// Its body.
    pub body: Bytes,
}

/// A consumer to start.
#[derive(Debug, Clone)]
pub struct Consume {
    /// The queue.
    pub queue: ShortString,
    /// The consumer's tag, unique on its channel; the session has made one up when the client sent none.
    pub consumer_tag: ShortString,
    /// Whether it wants to be the queue's only consumer.
    pub exclusive: bool,
    /// Whether the client will not acknowledge. For information (RabbitMQ's management shows it): the session settles.
    pub no_ack: bool,
    /// How many deliveries it may get at first.
    pub credit: u32,
    /// The consumer's own prefetch limit; 0 for none. For information: the credit follows from it.
    pub prefetch: u16,
    /// Whether the client set no prefetch limit, and will acknowledge: the credit is then a window that is given back as
    /// deliveries are written, not as they are settled, and any number of them may be unsettled.
    pub no_limit: bool,
    /// Its arguments, such as `x-priority`.
    pub arguments: FieldTable,
}

/// A delivery to a consumer, or the answer to a get.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its name for [`Command::Settle`].
    pub id: DeliveryId,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// How long the client may take to settle it; then its channel is closed with 406. `None`: the session sets no bound.
    pub ack_timeout: Option<Duration>,
    /// The message.
    pub message: Message,
}

/// A read or change of exchanges, queues or bindings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Topology {
    /// `exchange.declare`; answered by [`Reply::Done`].
    ExchangeDeclare(ExchangeDeclare),
    /// `exchange.delete`; answered by [`Reply::Done`].
    ExchangeDelete {
        /// The exchange.
        exchange: ShortString,
        /// Refuse when something is bound to it.
        if_unused: bool,
    },
    /// `exchange.bind`; answered by [`Reply::Done`]. `destination` is an exchange.
    ExchangeBind(Binding),
    /// `exchange.unbind`; answered by [`Reply::Done`]. `destination` is an exchange.
    ExchangeUnbind(Binding),
    /// `queue.declare`; answered by [`Reply::Queue`].
    QueueDeclare(QueueDeclare),
    /// `queue.bind`; answered by [`Reply::Done`] once messages are routed by it. `destination` is a queue.
    QueueBind(Binding),
    /// `queue.unbind`; answered by [`Reply::Done`]. `destination` is a queue.
    QueueUnbind(Binding),
    /// `queue.purge`; answered by [`Reply::MessageCount`].
    QueuePurge {
        /// The queue.
        queue: ShortString,
    },
    /// `queue.delete`; answered by [`Reply::MessageCount`].
    QueueDelete {
        /// The queue.
        queue: ShortString,
        /// Refuse when it has consumers.
        if_unused: bool,
        /// Refuse when it has messages.
        if_empty: bool,
    },
}

/// The fields of `exchange.declare`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExchangeDeclare {
    /// Its name.
    pub exchange: ShortString,
    /// Its type: `direct`, `fanout`, `topic`, `headers`, `x-...`.
    pub kind: ShortString,
    /// Only ask whether it exists.
    pub passive: bool,
    /// Survives a restart of the broker.
    pub durable: bool,
    /// Deleted when the last binding from it goes.
    pub auto_delete: bool,
    /// Cannot be published to by clients.
    pub internal: bool,
    /// Its arguments, such as `alternate-exchange`.
    #[serde(with = "crate::mapping::table::as_base64")]
    pub arguments: FieldTable,
}

/// The fields of `queue.declare`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueDeclare {
    /// Its name; empty asks the broker for one.
    pub queue: ShortString,
    /// Only ask whether it exists.
    pub passive: bool,
    /// Survives a restart of the broker.
    pub durable: bool,
    /// Belongs to this connection and goes with it.
    pub exclusive: bool,
    /// Deleted when the last consumer goes.
    pub auto_delete: bool,
    /// Its arguments, such as `x-message-ttl`.
    #[serde(with = "crate::mapping::table::as_base64")]
    pub arguments: FieldTable,
}

impl QueueDeclare {
    /// Asks whether a queue exists, and what it holds. Its other fields say nothing then.
    pub fn passive(queue: ShortString) -> Self {
        let arguments = FieldTable::default();
        Self { queue, passive: true, durable: false, exclusive: false, auto_delete: false, arguments }
    }
}

/// A binding from an exchange to a queue or an exchange.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// The exchange that messages come from.
    pub source: ShortString,
    /// The queue or exchange that they go to.
    pub destination: ShortString,
    /// The binding key.
    pub routing_key: ShortString,
    /// Its arguments, such as `x-match`.
    #[serde(with = "crate::mapping::table::as_base64")]
    pub arguments: FieldTable,
}

/// What a broker tells a session.
#[derive(Debug)]
pub enum Event {
    /// The answer to the one request in flight on this channel. An error closes the channel or, by its code, the
    /// connection.
    Reply {
        /// The channel.
        channel: ChannelId,
        /// The answer.
        reply: Result<Reply, AmqpError>,
    },
    /// A publish reached its end.
    Confirm {
        /// The channel.
        channel: ChannelId,
        /// The [`Publish::seq`].
        seq: u64,
        /// What became of it.
        outcome: PublishOutcome,
    },
    /// A mandatory message had no route; it is given back. [`Event::Confirm`] follows.
    Returned {
        /// The channel.
        channel: ChannelId,
        /// Why: 312 `NO_ROUTE`.
        error: AmqpError,
        /// The message.
        message: Box<Message>,
    },
    /// A message for a consumer.
    Delivery {
        /// The channel.
        channel: ChannelId,
        /// The consumer.
        consumer_tag: ShortString,
        /// The message and its name.
        delivery: Box<Delivery>,
    },
    /// The broker ended a consumer (its queue is gone).
    ConsumerCancelled {
        /// The channel.
        channel: ChannelId,
        /// The consumer.
        consumer_tag: ShortString,
    },
    /// Something asynchronous failed on a channel, such as a publish to an exchange that does not exist. The session
    /// closes the channel (or, by its code, the connection) and sends no further command on it but `CloseChannel`.
    ChannelFailed {
        /// The channel.
        channel: ChannelId,
        /// Why.
        error: AmqpError,
    },
    /// The broker takes no publishes for now (`connection.blocked`).
    Blocked {
        /// Why.
        reason: String,
    },
    /// The broker takes publishes again.
    Unblocked,
    /// The link is gone; the last event.
    Closed {
        /// Why.
        error: AmqpError,
    },
}

/// What became of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishOutcome {
    /// Every routed copy is stored, or there was no route: `basic.ack`.
    Stored,
    /// A copy was refused, or its fate is unknown: `basic.nack`. The message may have landed in some queues.
    Failed,
}

/// The answer to a request.
#[derive(Debug)]
pub enum Reply {
    /// It is done.
    Done,
    /// `queue.declare-ok`.
    Queue {
        /// The queue's name; the broker's choice when none was given.
        queue: ShortString,
        /// Messages ready for delivery.
        message_count: u32,
        /// Consumers that are attached.
        consumer_count: u32,
    },
    /// How many messages were purged, or went with the queue.
    MessageCount(u32),
    /// The answer to a get; `None` when the queue is empty.
    Got(Option<Box<Got>>),
}

/// A message got from a queue.
#[derive(Debug)]
pub struct Got {
    /// The message and its name.
    pub delivery: Delivery,
    /// Messages that are left in the queue.
    pub message_count: u32,
}
