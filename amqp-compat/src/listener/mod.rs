//! The server sockets: unmodified RabbitMQ clients connect here.
//!
//! [`Listener::run`] accepts connections and gives each a task of its own (`connection`), which moves bytes between the
//! socket and a [`crate::session::Session`], and commands and events between the session and the backend's link.

pub(crate) mod connection;
mod figures;
pub(crate) mod refusals;
mod registry;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::backend::Backend;
use crate::session::Limits;
use refusals::Refusals;

pub use registry::{Connection, Connections};
pub use tls::{Tls, TlsError, TlsFiles};

/// A bound TCP socket that speaks AMQP 0-9-1.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    tls: Option<(TcpListener, Arc<Tls>)>,
    options: Options,
    connections: Connections,
}

/// The bounds of a listener.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many connections there may be; one more is closed at once and counted in
    /// `natsbridge_amqp_connections_refused_total`. Default 10 000.
    pub max_connections: usize,
    /// The bounds of each connection.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_connections: 10_000, limits: Limits::default() }
    }
}

impl Listener {
    /// Binds a socket with the default [`Options`]; port 0 takes a free one.
    ///
    /// # Errors
    /// Those of resolving and binding `address`.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        Self::bind_with(address, Options::default()).await
    }

    /// Binds a socket; port 0 takes a free one.
    ///
    /// # Errors
    /// Those of resolving and binding `address`.
    pub async fn bind_with(address: impl ToSocketAddrs, options: Options) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        Ok(Self { socket, tls: None, options, connections: Connections::default() })
    }

    /// Takes AMQPS clients as well, on a socket of their own; port 0 takes a free one. Gives its address.
    ///
    /// # Errors
    /// Those of resolving and binding `address`.
    pub async fn bind_tls(&mut self, address: impl ToSocketAddrs, tls: Tls) -> io::Result<SocketAddr> {
        let socket = TcpListener::bind(address).await?;
        let bound = socket.local_addr()?;
        self.tls = Some((socket, Arc::new(tls)));
        Ok(bound)
    }

    /// Other bounds for its connections, before it runs.
    pub fn limit(&mut self, limits: Limits) {
        self.options.limits = limits;
    }

    /// The address and the certificates for AMQPS clients, if it takes them.
    pub fn tls(&self) -> Option<(SocketAddr, Arc<Tls>)> {
        let (socket, tls) = self.tls.as_ref()?;
        Some((socket.local_addr().ok()?, Arc::clone(tls)))
    }

    /// The connections that it has, now and later.
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    /// Those of asking the operating system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Takes the next client as it is, with its address and whether it came to the socket for AMQPS, for whoever does something else
    /// with it than to serve it. Before the listener runs.
    ///
    /// # Errors
    /// Those of the operating system: out of file descriptors, most likely.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, bool)> {
        let (accepted, is_tls) = tokio::select! {
            accepted = self.socket.accept() => (accepted, false),
            (accepted, _) = accept_tls(&self.tls) => (accepted, true),
        };
        accepted.map(|(stream, peer)| (stream, peer, is_tls))
    }

    /// Serves until `shutdown` is cancelled, then closes all connections with 320 `CONNECTION_FORCED`, each after its
    /// publishes have been answered, and returns when they are gone (20 s at most).
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket and all connections at once; what was not confirmed may have landed.
    pub async fn run(self, backend: Arc<dyn Backend>, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        let refusals = Arc::new(Refusals::default());
        let places = Arc::new(Semaphore::new(self.options.max_connections));
        loop {
            let (accepted, tls) = tokio::select! {
                accepted = self.socket.accept() => (accepted, None),
                (accepted, tls) = accept_tls(&self.tls) => (accepted, Some(tls)),
                Some(ended) = connections.join_next() => {
                    note_end(ended);
                    continue;
                }
                () = shutdown.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: trying again at once would only burn the processor.
                    warn!(%error, "cannot accept an AMQP connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                figures::refused();
                warn!(%peer, max = self.options.max_connections, "too many AMQP connections, one is closed");
                continue;
            };
            let (backend, shutdown, limits) = (Arc::clone(&backend), shutdown.clone(), self.options.limits);
            let refusals = Arc::clone(&refusals);
            let registered = self.connections.add(peer, stream.local_addr().unwrap_or(peer), tls.is_some());
            connections.spawn(async move {
                connection::serve_socket((stream, tls), peer, backend, refusals, registered, limits, shutdown).await;
                drop(place);
            });
        }
        drop((self.socket, self.tls));
        info!(connections = connections.len(), "closing AMQP connections");
        let drained = tokio::time::timeout(DRAIN, async {
            while let Some(ended) = connections.join_next().await {
                note_end(ended);
            }
        });
        if drained.await.is_err() {
            warn!(connections = connections.len(), "AMQP connections did not end in time");
        }
    }
}

/// Accepts on the socket for AMQPS; waits for ever where there is none.
async fn accept_tls(tls: &Option<(TcpListener, Arc<Tls>)>) -> (io::Result<(TcpStream, SocketAddr)>, Arc<Tls>) {
    match tls {
        Some((socket, tls)) => (socket.accept().await, tls.clone()),
        None => std::future::pending().await,
    }
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "the task of an AMQP connection panicked");
    }
}

/// How long connections may take to close when the listener stops.
const DRAIN: Duration = Duration::from_secs(20);
