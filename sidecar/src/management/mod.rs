//! RabbitMQ's HTTP API for `serve`: the part that applications and tools call.
//!
//! Which routes there are is in `docs/mapping.md`. A change is made as an AMQP client makes it, over a link of its own
//! ([`client`]), so that it is checked, refused and stored like any other. What is shown comes from the JetStream backend
//! and from the connections themselves, at the time of the request; nothing is sampled in the background.
//!
//! - [`documents`]: pure; what there is as JSON, and bodies as requests.
//! - `broker`: what is asked, over all vhosts and connections.
//! - `answers`: each route, and what it answers.
//! - `server`: HTTP: logins, bounds, statuses.

mod answers;
mod broker;
pub(crate) mod client;
pub(crate) mod documents;
mod server;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use amqp_compat::backend::jetstream::JetStreamBackend;
use amqp_compat::listener::{Connections, Tls};
use tokio::net::{TcpListener, ToSocketAddrs};
use tokio_util::sync::CancellationToken;

/// A bound HTTP socket.
#[derive(Debug)]
pub struct Management {
    socket: TcpListener,
}

/// What is shown and changed.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The broker.
    pub backend: Arc<JetStreamBackend>,
    /// The connections of its listener.
    pub connections: Connections,
    /// The address of its listener.
    pub amqp: SocketAddr,
    /// The address for AMQPS, and its certificates, where there is one.
    pub amqps: Option<(SocketAddr, Arc<Tls>)>,
}

impl Management {
    /// Binds a socket; port 0 takes a free one.
    ///
    /// # Errors
    /// Those of resolving and binding `address`.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await? })
    }

    /// The address that is listened on.
    ///
    /// # Errors
    /// Those of asking the operating system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `shutdown` is cancelled, then finishes the requests that run.
    ///
    /// # Errors
    /// Those of the socket.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket; a change that is being made goes on.
    pub async fn run(self, shown: Shown, shutdown: CancellationToken) -> io::Result<()> {
        let http = self.socket.local_addr()?;
        let app = server::router(broker::Broker::new(shown, http));
        axum::serve(self.socket, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
    }
}
