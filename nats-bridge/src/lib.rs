//! Messaging over NATS JetStream that does not lose a message.
//!
//! - [`Bridge`]: a connection; [`Config`] says how to make it.
//! - [`publish`]: publishing with confirms.
//! - [`Error`]: why a call failed, and whether the message may have landed.

mod bridge;
mod config;
mod connection;
mod error;
pub mod publish;

pub use bridge::Bridge;
pub use config::{Config, Login};
pub use connection::{Connection, ConnectionEvent};
pub use error::{Error, ErrorKind, Landed, Result};
