//! AMQP on JetStream inside a process: the listener, the backend, the lease and the connection to NATS as one value that is
//! started and stopped. What the language bindings give to programs that have no room for a second process.
//!
//! [`Gateway::start`] does it over JetStream alone; [`Sockets`] and [`Gateway::serve`] are for what brings its own backend.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nats_bridge::{Bridge, Config, ErrorKind};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backend::Backend;
use crate::backend::jetstream::lease::LeaseError;
use crate::backend::jetstream::{JetStreamBackend, JetStreamConfig, Lease, User};
use crate::error::{AmqpError, ReplyCode};
use crate::listener::{Connections, Listener, Tls, TlsError, TlsFiles};
use crate::session::Limits;

/// What a gateway serves, and where.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The NATS that it serves, and how to log in there.
    pub nats: Config,
    /// Where AMQP clients connect to; default `127.0.0.1:0`, a free port.
    pub listen: String,
    /// Where AMQPS clients connect to, and with which certificates; default nowhere.
    pub listen_tls: Option<(String, TlsFiles)>,
    /// Who may log in; default `guest` with password `guest`, on loopback addresses only.
    pub users: Vec<User>,
    /// The virtual hosts that exist; default `/`.
    pub vhosts: Vec<String>,
    /// How many servers of a cluster hold a durable classic queue that is made from now on; default 1.
    pub replicas: usize,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            nats: Config::default(),
            listen: "127.0.0.1:0".into(),
            listen_tls: None,
            users: Vec::new(),
            vhosts: vec!["/".into()],
            replicas: 1,
        }
    }
}

/// A running AMQP listener over JetStream. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    tls_address: Option<SocketAddr>,
    url: String,
    connections: Connections,
    state: watch::Receiver<GatewayState>,
    stop: CancellationToken,
    cut: CancellationToken,
    _guard: DropGuard,
}

/// How a gateway is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayState {
    /// It serves.
    Running,
    /// It was told to stop, and clients are being sent away.
    Draining,
    /// It was stopped.
    Stopped,
    /// It ended by itself: another gateway has taken the NATS account over.
    Failed {
        /// Why.
        why: String,
    },
}

/// Why there is no gateway. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A setting is wrong.
    #[error("{field}: {why}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A socket cannot be bound.
    #[error("{field} {place}: {error}")]
    Bind {
        /// The setting.
        field: &'static str,
        /// The address.
        place: String,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// NATS cannot be used.
    #[error(transparent)]
    Nats(#[from] nats_bridge::Error),
    /// Another gateway serves the NATS account.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// What is stored of the topology cannot be read, or JetStream refuses what is needed.
    #[error("{0}")]
    Backend(AmqpError),
}

impl GatewayError {
    /// What went wrong, in the words of the core.
    pub fn kind(&self) -> ErrorKind {
        match self {
            GatewayError::Config { .. } | GatewayError::Tls(_) => ErrorKind::Config,
            GatewayError::Bind { error, .. } if error.kind() == io::ErrorKind::AddrInUse => ErrorKind::Conflict,
            GatewayError::Bind { .. } => ErrorKind::Config,
            GatewayError::Nats(error) => error.kind(),
            GatewayError::Lease(LeaseError::Held(_)) => ErrorKind::Conflict,
            GatewayError::Lease(LeaseError::Nats(_)) => ErrorKind::Unreachable,
            GatewayError::Backend(error) if error.code == ReplyCode::ResourceLocked => ErrorKind::Conflict,
            GatewayError::Backend(_) => ErrorKind::Rejected,
        }
    }

    /// Pairs such as `("field", "listen")`.
    pub fn context(&self) -> Vec<(&'static str, String)> {
        match self {
            GatewayError::Config { field, .. } => vec![("field", (*field).to_owned())],
            GatewayError::Bind { field, place, .. } => vec![("field", (*field).to_owned()), ("address", place.clone())],
            GatewayError::Tls(error) => vec![("file", error.file.display().to_string())],
            GatewayError::Nats(error) => error.context().to_vec(),
            GatewayError::Lease(LeaseError::Held(holder)) => vec![("holder", holder.to_string())],
            GatewayError::Lease(LeaseError::Nats(_)) | GatewayError::Backend(_) => Vec::new(),
        }
    }
}

/// How long the connection to NATS may take to close.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Gateway {
    /// Binds the sockets, connects to NATS, takes the account's lease and serves.
    ///
    /// # Errors
    /// See [`GatewayError`].
    ///
    /// # Cancel safety
    /// A dropped future leaves no socket behind; a lease that was just taken runs out by itself.
    pub async fn start(config: GatewayConfig) -> Result<Gateway, GatewayError> {
        let GatewayConfig { nats, listen, listen_tls, users, vhosts, replicas } = config;
        let wrong = |field, why: &str| Err(GatewayError::Config { field, why: why.to_owned() });
        if vhosts.is_empty() {
            return wrong("vhosts", "at least one is needed");
        }
        if !(1..=5).contains(&replicas) {
            return wrong("replicas", "1 to 5");
        }
        if users.iter().any(|user| user.name.is_empty()) {
            return wrong("users", "a user has a name");
        }
        let mut sockets = Sockets::bind(&listen, listen_tls).await?;
        let Sockets { address, tls_address, .. } = sockets;
        let reachable = [Some(address), tls_address].into_iter().flatten().any(|address| !address.ip().is_loopback());
        if users.is_empty() && reachable {
            return wrong("users", "other machines can reach this address; guest:guest is for a loopback address only");
        }
        let users = if users.is_empty() { JetStreamConfig::default().users } else { users };
        let user = users.first().map(|user| (&*user.name, &*user.password));
        let url = url(address, user, vhosts.first().map(String::as_str));
        let bridge = Bridge::connect_with(nats).await?;
        let limits = Limits::default().within(bridge.client().server_info().max_payload);
        sockets.listener.limit(limits);
        let (lease, backend) = match serving(&bridge, users, vhosts, replicas).await {
            Ok(serving) => serving,
            Err(error) => {
                let _ = bridge.close(LAST_WORDS).await;
                return Err(error);
            }
        };
        Ok(Gateway::serve(sockets, url, Serving { backend, lease, bridge, ends: Box::new(()) }))
    }

    /// Serves on these sockets. `url` is what [`Gateway::url`] says.
    pub fn serve(sockets: Sockets, url: String, serving: Serving) -> Gateway {
        let Sockets { listener, address, tls_address } = sockets;
        let Serving { backend, lease, bridge, ends } = serving;
        let connections = listener.connections();
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let (tell, state) = watch::channel(GatewayState::Running);
        let served = tokio::spawn(listener.run(backend, stop.clone()));
        tokio::spawn(until_it_ends(served, (lease, bridge, ends), stop.clone(), cut.clone(), tell));
        let _guard = stop.clone().drop_guard();
        Gateway { address, tls_address, url, connections, state, stop, cut, _guard }
    }

    /// The address that AMQP clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address that AMQPS clients connect to, if there is one.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// The URL for a client on this machine: the first user on the first virtual host, with the password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The connections that it has.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// How it is now.
    pub fn state(&self) -> GatewayState {
        self.state.borrow().clone()
    }

    /// How it is, to await changes of.
    pub fn watch(&self) -> watch::Receiver<GatewayState> {
        self.state.clone()
    }

    /// Takes no more clients, answers what clients have published, closes their connections with 320 `CONNECTION_FORCED`,
    /// gives the lease back and closes the connection to NATS. Connections that have not ended within `budget` are cut.
    /// Stopping twice is fine.
    ///
    /// # Cancel safety
    /// Dropped, it goes on stopping, without the budget.
    pub async fn stop(&self, budget: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(budget, self.ended()).await.is_err() {
            self.cut.cancel();
            self.ended().await;
        }
    }

    /// Waits until it was stopped, or has ended by itself.
    pub async fn ended(&self) {
        let ended = |state: &GatewayState| matches!(state, GatewayState::Stopped | GatewayState::Failed { .. });
        // The sender lives until it has told so.
        let _ = self.state.clone().wait_for(ended).await;
    }
}

/// Sockets that are bound. Clients that come early wait until they are accepted.
#[derive(Debug)]
pub struct Sockets {
    /// Takes clients once it runs.
    pub listener: Listener,
    /// The address for AMQP clients.
    pub address: SocketAddr,
    /// The address for AMQPS clients, if there is one.
    pub tls_address: Option<SocketAddr>,
}

impl Sockets {
    /// Binds them; port 0 takes a free one.
    ///
    /// # Errors
    /// `Bind` for `listen` or `listen_tls`, or `Tls`.
    pub async fn bind(listen: &str, listen_tls: Option<(String, TlsFiles)>) -> Result<Sockets, GatewayError> {
        let bind = |field, place: &str, error| GatewayError::Bind { field, place: place.to_owned(), error };
        let mut listener = Listener::bind(listen).await.map_err(|error| bind("listen", listen, error))?;
        let address = listener.local_addr().map_err(|error| bind("listen", listen, error))?;
        let tls_address = match listen_tls {
            None => None,
            Some((place, files)) => {
                let tls = Tls::load(files)?;
                Some(listener.bind_tls(&place, tls).await.map_err(|error| bind("listen_tls", &place, error))?)
            }
        };
        Ok(Sockets { listener, address, tls_address })
    }
}

/// What a gateway serves, and what it gives back at its end.
pub struct Serving {
    /// What sessions run against.
    pub backend: Arc<dyn Backend>,
    /// The right to serve the NATS account.
    pub lease: Lease,
    /// The connection to NATS.
    pub bridge: Bridge,
    /// Told of the end, before lease and connection are given back.
    pub ends: Box<dyn Ends>,
}

/// What has to know that a gateway ends.
#[async_trait::async_trait]
pub trait Ends: Send + Sync {
    /// It was told to stop, and clients are about to be sent away.
    fn draining(&self) {}
    /// Whether it ends when another gateway has taken the account.
    fn needs_lease(&self) -> bool {
        true
    }
    /// It serves no longer. `Stopped`: lease and connection are still there, and are given back after this.
    async fn ended(&self, _end: &GatewayState) {}
}

#[async_trait::async_trait]
impl Ends for () {}

async fn serving(
    bridge: &Bridge,
    users: Vec<User>,
    vhosts: Vec<String>,
    replicas: usize,
) -> Result<(Lease, Arc<JetStreamBackend>), GatewayError> {
    let lease = Lease::acquire(bridge).await?;
    let config = JetStreamConfig { users, vhosts, replicas, lease: Some(lease.clone()), ..JetStreamConfig::default() };
    match JetStreamBackend::connect(bridge.clone(), config).await {
        Ok(backend) => Ok((lease, backend)),
        Err(error) => {
            lease.release().await;
            Err(GatewayError::Backend(error))
        }
    }
}

async fn until_it_ends(
    mut served: JoinHandle<()>,
    (lease, bridge, ends): (Lease, Bridge, Box<dyn Ends>),
    stop: CancellationToken,
    cut: CancellationToken,
    tell: watch::Sender<GatewayState>,
) {
    let lost = lease.lost();
    tokio::pin!(lost);
    let mut leased = true;
    let end = loop {
        let draining = *tell.borrow() == GatewayState::Draining;
        tokio::select! {
            ended = &mut served => break match ended {
                Ok(()) => GatewayState::Stopped,
                Err(error) => GatewayState::Failed { why: format!("the listener failed: {error}") },
            },
            error = &mut lost, if leased => {
                if !ends.needs_lease() {
                    leased = false;
                    continue;
                }
                // At once: the other gateway serves already, and is not to be disturbed by last words.
                served.abort();
                break GatewayState::Failed { why: error.text };
            }
            () = cut.cancelled() => {
                served.abort();
                break GatewayState::Stopped;
            }
            () = stop.cancelled(), if !draining => {
                ends.draining();
                tell.send_replace(GatewayState::Draining);
            }
        }
    };
    ends.ended(&end).await;
    lease.release().await;
    // Closed before its server stops, it is not taken for a lost one.
    let _ = bridge.close(LAST_WORDS).await;
    tell.send_replace(end);
}

/// The URL for a client on this machine that logs in as `user`, with its password, on `vhost`.
pub fn url(address: SocketAddr, user: Option<(&str, &str)>, vhost: Option<&str>) -> String {
    let host = match address.ip() {
        ip if ip.is_unspecified() => "localhost".to_owned(),
        IpAddr::V6(ip) => format!("[{ip}]"),
        IpAddr::V4(ip) => ip.to_string(),
    };
    let login = user.map_or(String::new(), |(name, password)| format!("{}:{}@", escaped(name), escaped(password)));
    format!("amqp://{login}{host}:{}/{}", address.port(), vhost.map_or(String::new(), escaped))
}

/// Text inside a URL: everything but RFC 3986's unreserved characters as `%` and two digits.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            // Writing to a string does not fail.
            byte => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_survives_any_name_and_password() {
        let address = |text: &str| text.parse().expect("an address");
        let made = |at, name, password, vhost| url(address(at), Some((name, password)), Some(vhost));
        assert_eq!(made("127.0.0.1:5672", "guest", "guest", "/"), "amqp://guest:guest@127.0.0.1:5672/%2F");
        assert_eq!(made("0.0.0.0:1", "a@b", "p:/?#", "eu west"), "amqp://a%40b:p%3A%2F%3F%23@localhost:1/eu%20west");
        assert_eq!(made("[::1]:7", "ü", "", "v"), "amqp://%C3%BC:@[::1]:7/v");
    }
}
