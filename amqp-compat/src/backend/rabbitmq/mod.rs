//! AMQP sessions over RabbitMQ: one upstream connection for each link, one upstream channel for each channel.
//!
//! The link speaks AMQP 0-9-1 itself, with `amq-protocol`'s frames, instead of through a client library: a sidecar in the
//! path has to keep what applications see of RabbitMQ. A client library reorders (an acknowledgement may overtake a
//! publish that was sent before it), buffers without a bound, and attributes returned messages by guessing; here frames
//! leave in the order of the commands and events in the order of RabbitMQ's frames.
//!
//! | file | what it knows |
//! |---|---|
//! | `config` | where RabbitMQ is: an AMQP URL |
//! | `wire` | bytes <-> frames |
//! | `handshake` | TCP, TLS, login, tuning, `connection.open` |
//! | `link` | the task of one connection: what is read, written, and when it waits |
//! | `connection` | pure: commands to frames and frames to events, over all channels |
//! | `channel` | pure: one channel |
//! | `methods` | pure: the methods of topology requests and settlements |
//! | `incoming` | pure: a message, put together from its frames |
//! | `confirms` | pure: RabbitMQ's confirm tags to the session's publish numbers |
//! | `errors` | pure: RabbitMQ's close methods to [`AmqpError`] and back |
//!
//! Nothing is recovered inside: a lost upstream is [`Event::Closed`](super::Event::Closed), and the client reconnects as
//! it does with RabbitMQ itself.

mod channel;
mod config;
mod confirms;
mod connection;
mod errors;
mod handshake;
mod incoming;
mod link;
mod methods;
mod wire;

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use config::{RabbitMqConfig, Tls};

use super::{Backend, LINK_CAPACITY, Link, Login};
use crate::error::{AmqpError, ReplyCode};

/// RabbitMQ as a broker for AMQP sessions.
#[derive(Debug, Clone)]
pub struct RabbitMqBackend {
    config: RabbitMqConfig,
}

impl RabbitMqBackend {
    /// A backend for the RabbitMQ at this address. Nothing is connected before [`Backend::open`].
    pub fn new(config: RabbitMqConfig) -> Self {
        Self { config }
    }

    /// Where RabbitMQ is.
    pub fn config(&self) -> &RabbitMqConfig {
        &self.config
    }
}

#[async_trait]
impl Backend for RabbitMqBackend {
    /// Connects and logs in as the client, within the connect timeout.
    ///
    /// # Errors
    /// RabbitMQ's own answer for a refused login (403) or vhost (530); `InternalError` when RabbitMQ cannot be reached.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped future leaves no connection behind.
    async fn open(&self, login: Login) -> Result<Link, AmqpError> {
        let opening = handshake::open(&self.config, &login);
        let upstream = match tokio::time::timeout(self.config.connect_timeout, opening).await {
            Ok(upstream) => upstream?,
            Err(_) => {
                let text =
                    format!("RabbitMQ at {} did not answer within {:?}", self.config, self.config.connect_timeout);
                return Err(AmqpError::new(ReplyCode::InternalError, text));
            }
        };
        let (commands, from_session) = mpsc::channel(LINK_CAPACITY);
        let (to_session, events) = mpsc::channel(LINK_CAPACITY);
        tokio::spawn(link::run(upstream, from_session, to_session));
        Ok(Link { commands, events })
    }
}
