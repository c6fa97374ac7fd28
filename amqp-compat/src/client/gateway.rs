//! JetStream as the broker of this process: one gateway for each NATS account, shared by the connections of the process.

use std::io;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use foldhash::HashMap;
use nats_bridge::{Bridge, Config};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::pipe::Served;
use super::protocol::AMQPError;
use super::types::ShortString;
use super::url::NatsUrl;
use super::{Error, ErrorKind, Result};
use crate::backend::jetstream::{JetStreamBackend, JetStreamConfig, Lease, User};
use crate::error::{AmqpError, ReplyCode};
use crate::session::Limits;

/// A connection to NATS, and the right to serve its account. Dropping it gives both back.
pub(super) struct Gateway {
    bridge: Bridge,
    lease: Lease,
    limits: Limits,
    /// The vhosts that are in use.
    vhosts: tokio::sync::Mutex<HashMap<String, Arc<JetStreamBackend>>>,
    slot: Weak<Slot>,
    runtime: Handle,
}

/// The place of one account's gateway; one at a time is opened.
#[derive(Default)]
struct Slot {
    opening: tokio::sync::Mutex<Weak<Gateway>>,
    /// The one before, while it closes.
    closing: Mutex<Option<JoinHandle<()>>>,
}

/// Every place that was ever used, by servers: as many as the program has URLs.
static SLOTS: LazyLock<Mutex<HashMap<Vec<String>, Arc<Slot>>>> = LazyLock::new(Mutex::default);

/// How long a gateway may take to close.
const CLOSING: Duration = Duration::from_secs(5);

/// The gateway for a URL: the one that is open, or a new one.
async fn gateway(url: &NatsUrl) -> Result<Arc<Gateway>> {
    let slot = Arc::clone(locked(&SLOTS).entry(url.servers.clone()).or_default());
    let mut opening = slot.opening.lock().await;
    if let Some(gateway) = opening.upgrade().filter(|gateway| !gateway.lease.is_lost()) {
        return Ok(gateway);
    }
    let closing = locked(&slot.closing).take();
    if let Some(closing) = closing {
        // It was aborted when its runtime has ended, which is an end as well.
        let _ = closing.await;
    }
    let gateway = Arc::new(Gateway::connect(url, &slot).await?);
    *opening = Arc::downgrade(&gateway);
    Ok(gateway)
}

/// What a session needs to serve a URL's vhost.
pub(super) async fn open(url: &NatsUrl) -> Result<Served> {
    let gateway = gateway(url).await?;
    let backend = gateway.backend(url).await?;
    let limits = gateway.limits;
    Ok(Served { backend, limits, peer: "in process".to_owned(), gateway: Some(gateway) })
}

impl Gateway {
    async fn connect(url: &NatsUrl, slot: &Arc<Slot>) -> Result<Self> {
        let defaults = Config::default();
        let bridge = Bridge::connect_with(Config {
            servers: url.servers.clone(),
            connect_timeout: url.connect_timeout().unwrap_or(defaults.connect_timeout),
            ..defaults
        })
        .await
        .map_err(unreachable)?;
        let lease = Lease::acquire(&bridge).await.map_err(|error| refused(error.into()))?;
        let limits = Limits::default().within(bridge.client().server_info().max_payload);
        let (vhosts, slot, runtime) = (Default::default(), Arc::downgrade(slot), Handle::current());
        Ok(Self { bridge, lease, limits, vhosts, slot, runtime })
    }

    async fn backend(&self, url: &NatsUrl) -> Result<Arc<JetStreamBackend>> {
        let vhost = &url.uri.vhost;
        let mut vhosts = self.vhosts.lock().await;
        if let Some(backend) = vhosts.get(vhost) {
            return Ok(backend.clone());
        }
        if vhost != "/" && !JetStreamBackend::is_known(&self.bridge, vhost).await.map_err(refused)? {
            return Err(refused(AmqpError::new(ReplyCode::NotAllowed, format!("vhost '{vhost}' not found"))));
        }
        let login = &url.uri.authority.userinfo;
        let config = JetStreamConfig {
            users: vec![User { name: login.username.clone(), password: login.password.clone() }],
            vhosts: vec![vhost.clone()],
            lease: Some(self.lease.clone()),
            ..JetStreamConfig::default()
        };
        let backend = JetStreamBackend::connect(self.bridge.clone(), config).await.map_err(refused)?;
        vhosts.insert(vhost.clone(), backend.clone());
        Ok(backend)
    }

    /// Waits until NATS has been sent all that was said so far.
    pub(super) async fn flush(&self, patience: Duration) {
        match tokio::time::timeout(patience, self.bridge.client().flush()).await {
            Ok(Ok(())) => {}
            // What was not heard is delivered again, and says so.
            Ok(Err(error)) => tracing::warn!(%error, "NATS was not told the last of a connection"),
            Err(_) => tracing::warn!("NATS did not take the last of a connection in time"),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let (bridge, lease) = (self.bridge.clone(), self.lease.clone());
        let closing = self.runtime.spawn(async move {
            lease.release().await;
            if let Err(error) = bridge.close(CLOSING).await {
                tracing::debug!(%error, "closing the connection to NATS");
            }
        });
        if let Some(slot) = self.slot.upgrade() {
            *locked(&slot.closing) = Some(closing);
        }
    }
}

/// The gateway that a connection uses now; with automatic recovery it may change.
#[derive(Clone, Default)]
pub(super) struct InUse(Arc<Mutex<Weak<Gateway>>>);

impl InUse {
    pub(super) fn get(&self) -> Option<Arc<Gateway>> {
        locked(&self.0).upgrade()
    }

    /// Notes whose session comes next.
    pub(super) fn set(&self, served: &Served) {
        *locked(&self.0) = served.gateway.as_ref().map(Arc::downgrade).unwrap_or_default();
    }
}

/// What lapin says of a broker that cannot be connected to.
fn unreachable(error: nats_bridge::Error) -> Error {
    use nats_bridge::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::Denied => return refused(AmqpError::new(ReplyCode::AccessRefused, error.to_string())),
        Kind::Config => io::ErrorKind::InvalidInput,
        Kind::Unsupported => io::ErrorKind::Unsupported,
        Kind::Timeout => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::ConnectionRefused,
    };
    io::Error::new(kind, error).into()
}

/// What lapin says when a broker closes the connection for this error.
fn refused(error: AmqpError) -> Error {
    let mut text = error.to_string();
    text.truncate(text.floor_char_boundary(255));
    let short = ShortString::try_new(text.as_str()).unwrap_or_default();
    match AMQPError::from_id(error.code as u16, short) {
        Some(error) => ErrorKind::ProtocolError(error).into(),
        None => io::Error::other(text).into(),
    }
}

/// What lapin says of a wrong argument.
pub(super) fn invalid(text: impl Into<String>) -> Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into()).into()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
