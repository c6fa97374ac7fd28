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
//! | `parked` | logins that were checked before their vhost is known |
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
mod parked;
mod wire;

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use config::{RabbitMqConfig, Tls};

use self::parked::Parked;
use super::{Backend, LINK_CAPACITY, Link, Login};
use crate::error::{AmqpError, ReplyCode};

/// RabbitMQ as a broker for AMQP sessions.
#[derive(Debug, Clone)]
pub struct RabbitMqBackend {
    config: RabbitMqConfig,
    parked: Parked,
}

impl RabbitMqBackend {
    /// A backend for the RabbitMQ at this address. Nothing is connected before [`Backend::open`].
    pub fn new(config: RabbitMqConfig) -> Self {
        Self { config, parked: Parked::default() }
    }

    async fn in_time<T>(&self, opening: impl Future<Output = Result<T, AmqpError>>) -> Result<T, AmqpError> {
        tokio::time::timeout(self.config.connect_timeout, opening).await.unwrap_or_else(|_| {
            let text = format!("RabbitMQ at {} did not answer within {:?}", self.config, self.config.connect_timeout);
            Err(AmqpError::new(ReplyCode::InternalError, text))
        })
    }

    /// Where RabbitMQ is.
    pub fn config(&self) -> &RabbitMqConfig {
        &self.config
    }
}

#[async_trait]
impl Backend for RabbitMqBackend {
    /// Logs in to RabbitMQ as the client, within the connect timeout. The connection is kept for 10 s, for
    /// [`Backend::open`] with the same login.
    ///
    /// # Errors
    /// RabbitMQ's own answer for a refused login (403); `InternalError` when RabbitMQ cannot be reached.
    async fn authenticate(&self, login: &Login) -> Result<(), AmqpError> {
        let upstream = self.in_time(handshake::login(&self.config, login)).await?;
        self.parked.park(login, upstream);
        Ok(())
    }

    /// Connects and logs in as the client, within the connect timeout.
    ///
    /// # Errors
    /// RabbitMQ's own answer for a refused login (403) or vhost (530); `InternalError` when RabbitMQ cannot be reached.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped future leaves no connection behind.
    async fn open(&self, login: Login) -> Result<Link, AmqpError> {
        let upstream = self
            .in_time(async {
                if let Some(parked) = self.parked.take(&login) {
                    match parked.open(&self.config, &login.vhost).await {
                        // It may have died while it was kept.
                        Err(error) if error.code == ReplyCode::InternalError => {}
                        answer => return answer,
                    }
                }
                handshake::login(&self.config, &login).await?.open(&self.config, &login.vhost).await
            })
            .await?;
        let (commands, from_session) = mpsc::channel(LINK_CAPACITY);
        let (to_session, events) = mpsc::channel(LINK_CAPACITY);
        tokio::spawn(link::run(upstream, from_session, to_session));
        Ok(Link { commands, events })
    }
}
