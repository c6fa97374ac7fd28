//! AMQP 0-9-1 on NATS JetStream.
//!
//! Layers, each usable and testable without the ones outside it:
//!
//! - [`model`] and [`session`] are pure: no sockets, no clock, no `await`. The model knows exchanges, queues and
//!   bindings and answers "which queues get this message"; the session speaks the protocol, frames in, frames and
//!   [`backend::Command`]s out.
//! - [`mapping`] is pure as well: AMQP names and properties to NATS subjects and headers, and back.
//! - `codec` is below both sides: the bytes of the frames that go with every message.
//! - [`backend`] is the one trait between a session and a broker; [`backend::jetstream`] and [`backend::rabbitmq`]
//!   are its two implementations here, the sidecar adds a third one over both.
//! - [`listener`] owns the only server sockets: unmodified RabbitMQ clients connect to it.
//! - [`gateway`] puts listener, backend, lease and the connection to NATS together, for programs that serve AMQP themselves.
//! - `client` (with the feature of that name) is lapin's interface over any backend, for programs that need no socket in between.

pub mod backend;
#[cfg(feature = "client")]
pub mod client;
mod codec;
pub mod error;
pub mod gateway;
pub mod listener;
pub mod mapping;
pub mod model;
mod nesting;
mod push;
pub mod session;

pub use error::{AmqpError, ReplyCode};
