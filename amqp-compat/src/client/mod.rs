//! A RabbitMQ client for Rust with lapin's interface, over JetStream, RabbitMQ or any [`Backend`](crate::backend::Backend).
//!
//! `use lapin::` becomes `use amqp_compat::client::`; nothing else of a program changes. Its URI then chooses the broker:
//!
//! | URI | what the program talks to |
//! |---|---|
//! | `amqp://`, `amqps://` | RabbitMQ, `nats-bridge serve` or the sidecar, over a socket, as lapin itself does |
//! | `nats://`, `tls://` | JetStream: this process is the AMQP broker, no AMQP socket is opened |
//!
//! and [`Connection::over`] runs over a backend of the program's own. Everything but [`Connection`], [`Connect`] and
//! [`ConnectionBuilder`] *is* lapin's: [`Channel`], [`Consumer`], [`message::Delivery`], [`Confirmation`], [`Error`] and the
//! rest are the same types, so that code which takes or returns them fits, and they do what lapin documents. What matters
//! most of it:
//!
//! - A dropped `Delivery` or `Acker` settles nothing: the message stays unacknowledged until its channel closes, and is then
//!   delivered again and says `redelivered`.
//! - A dropped `Consumer` is cancelled; what it was delivered and did not settle stays with the channel.
//! - A dropped `PublisherConfirm` gives up the answer, not the message. A returned message is in the confirm of its publish,
//!   or, when that was dropped, in what `Channel::wait_for_confirms` gives back.
//! - A dropped future of a method: its request may have been carried out. A dropped `basic_publish` may have landed.
//! - A consumer's deliveries wait in the program until they are taken from its stream. `basic_qos` bounds them; a consumer
//!   without a prefetch, or with `no_ack`, is bounded by nothing but its queue, as with RabbitMQ.
//! - An acknowledgement may overtake a publish that was made before it and not awaited. Who passes messages on awaits
//!   the publish's confirm, and then acknowledges.
//!
//! # JetStream
//! `nats://[user:password@]host[:4222][,host...][/vhost][?frame_max=&channel_max=&heartbeat=&connection_timeout=]`. User and password are
//! NATS's own; in the process there is no other login. The vhost is written as in an AMQP URI (`/%2f`, or no path, is
//! `/`) and must be one that exists: `/` always does, others once `nats-bridge serve --vhost` has served them.
//!
//! The connections of a process to the same servers share a connection to NATS. One process at a time serves a NATS account
//! ([`Lease`](crate::backend::jetstream::Lease)); a second one is refused. Several programs that share queues connect to one
//! `nats-bridge serve` with `amqp://` instead. What JetStream refuses is in `docs/mapping.md`.
//!
//! A process that ends right after it has closed its connections may leave its lease for the next to take over: at once on the
//! same machine, after 10 s from another one. A message that is given back when the last connection of a process is closed is delivered
//! again by the next process, and does not say `redelivered` then.

mod builder;
mod connection;
mod gateway;
mod pipe;
mod url;

pub use builder::{ConnectionBuilder, DefaultConnectionBuilder};
pub use connection::{Connect, Connection};

pub use lapin::{
    Acker, AsyncTcpStream, BasicProperties, Channel, ChannelQos, ChannelState, ChannelStatus, Configuration,
    Confirmation, ConnectionProperties, ConnectionState, ConnectionStatus, Consumer, ConsumerDelegate, Error,
    ErrorKind, Event, ExchangeKind, PublisherConfirm, Queue, Result, auth, message, options, protocol, runtime, tcp,
    types, uri,
};
