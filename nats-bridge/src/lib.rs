//! Messaging over NATS JetStream that does not lose a message.
//!
//! - [`Bridge`]: a connection; [`Config`] says how to make it.
//! - [`Message`], [`MessageId`]: what to publish, and how a stream recognises it.
//! - [`publish`]: publishing with confirms.
//! - [`RetryPolicy`]: when to try again, and when to give up.
//! - [`Error`]: why a call failed, and whether the message may have landed.

mod bridge;
mod config;
mod connection;
mod error;
mod message;
mod message_id;
pub mod publish;
mod retry;

pub use bridge::Bridge;
pub use config::{Config, Login};
pub use connection::{Connection, ConnectionEvent};
pub use error::{Error, ErrorKind, Landed, Result};
pub use message::Message;
pub use message_id::MessageId;
pub use publish::{PublishConfig, Published};
pub use retry::{Next, RetryPolicy};
