//! The connection: lapin's, with a broker that its URI chooses.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_rs::Runtime;
use async_rs::traits::{Reactor, RuntimeKit};
use async_trait::async_trait;
use tokio::runtime::Handle;

use super::gateway::{self, InUse, invalid};
use super::pipe::{self, Served};
use super::tcp::OwnedTLSConfig;
use super::types::{AMQPValue, LongString, ReplyCode, ShortString};
use super::uri::{AMQPAuthority, AMQPUri, AMQPUserInfo};
use super::url::{self, NatsUrl};
use super::{AsyncTcpStream, ConnectionProperties, ErrorKind, Result, runtime};
use crate::backend::{Backend, Login};
use crate::session::Limits;

/// A connection to a broker; lapin's own, which it dereferences to, whatever the broker is.
///
/// Dropping it closes the AMQP connection once its channels are dropped as well, without waiting for that.
pub struct Connection {
    inner: lapin::Connection,
    /// What has to be told before the process ends, when it is the broker itself.
    gateway: InUse,
}

impl Connection {
    /// Connects to the broker of a URI: `amqp://` and `amqps://` as lapin does, `nats://` and `tls://` to JetStream (see
    /// [the module](crate::client)).
    ///
    /// # Errors
    /// As lapin's: `IOError` when the URI is none or nobody answers there, `ProtocolError` with `ACCESS_REFUSED` for a refused
    /// login and with `NOT_ALLOWED` for an unknown vhost, `NoDefaultRuntime` outside of tokio. With JetStream also
    /// `ProtocolError` with `RESOURCE_LOCKED` when another process serves the NATS account.
    pub async fn connect(uri: &str, options: ConnectionProperties) -> Result<Self> {
        Connect::connect(uri, options).await
    }

    /// [`Connection::connect`] on a given runtime. JetStream needs one of tokio's.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn connect_with_runtime<RK: RuntimeKit + Send + Sync + Clone + 'static>(
        uri: &str,
        options: ConnectionProperties,
        runtime: Runtime<RK>,
    ) -> Result<Self> {
        uri.connect_with_config(options, OwnedTLSConfig::default(), runtime).await
    }

    /// [`Connection::connect`] on a given runtime, with settings for TLS. They are for `amqps://`; JetStream trusts the system's
    /// authorities, and settings of its own come with [`Connection::over`].
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn connect_with_config<RK: RuntimeKit + Send + Sync + Clone + 'static>(
        uri: &str,
        options: ConnectionProperties,
        config: OwnedTLSConfig,
        runtime: Runtime<RK>,
    ) -> Result<Self> {
        uri.connect_with_config(options, config, runtime).await
    }

    /// Connects to the RabbitMQ of a parsed URI; there is none for JetStream.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn connect_uri(uri: AMQPUri, options: ConnectionProperties) -> Result<Self> {
        Connect::connect(uri, options).await
    }

    /// [`Connection::connect_uri`] on a given runtime.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn connect_uri_with_runtime<RK: RuntimeKit + Send + Sync + Clone + 'static>(
        uri: AMQPUri,
        options: ConnectionProperties,
        runtime: Runtime<RK>,
    ) -> Result<Self> {
        uri.connect_with_config(options, OwnedTLSConfig::default(), runtime).await
    }

    /// [`Connection::connect_uri`] on a given runtime, with settings for TLS.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn connect_uri_with_config<RK: RuntimeKit + Send + Sync + Clone + 'static>(
        uri: AMQPUri,
        options: ConnectionProperties,
        config: OwnedTLSConfig,
        runtime: Runtime<RK>,
    ) -> Result<Self> {
        uri.connect_with_config(options, config, runtime).await
    }

    /// Connects over a stream that `connect` opens; as lapin's.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn connector<RK: RuntimeKit + Clone + Send + 'static>(
        uri: AMQPUri,
        runtime: Runtime<RK>,
        connect: impl AsyncFn(AMQPUri, Runtime<RK>) -> Result<AsyncTcpStream<<RK as Reactor>::TcpStream>>
        + Send
        + Sync
        + 'static,
        options: ConnectionProperties,
    ) -> Result<Self> {
        lapin::Connection::connector(uri, runtime, connect, options).await.map(Self::from)
    }

    /// Connects to a backend in this process: JetStream or RabbitMQ with settings of their own, or one that is made for the
    /// program. With automatic recovery the backend is opened again after its link was lost.
    ///
    /// # Errors
    /// `ProtocolError` with what the backend refuses the login for; `IOError` for a client property of `login` that is no
    /// long string (`options` has no room for others); `NoDefaultRuntime` outside of tokio.
    pub async fn over(backend: Arc<dyn Backend>, login: Login, options: ConnectionProperties) -> Result<Self> {
        inside_tokio()?;
        let Login { vhost, user, password, client_properties, peer, certificate: _ } = login;
        let mut options = options;
        for (name, value) in client_properties.inner() {
            let AMQPValue::LongString(value) = value else {
                return Err(invalid(format!("the client property {name} is no long string")));
            };
            options = options.with_client_property(name.clone(), value.clone());
        }
        let authority =
            AMQPAuthority { userinfo: AMQPUserInfo { username: user, password }, ..AMQPUri::default().authority };
        let uri = AMQPUri { vhost, authority, ..AMQPUri::default() };
        let served = Served { backend, limits: Limits::default(), peer, gateway: None };
        let runtime = runtime::default_runtime()?;
        pipe::connect(uri, runtime, async move || Ok(served.clone()), options).await.map(Self::from)
    }

    async fn to_jetstream<RK: RuntimeKit + Send + Sync + Clone + 'static>(
        url: NatsUrl,
        options: ConnectionProperties,
        runtime: Runtime<RK>,
    ) -> Result<Self> {
        let (uri, gateway) = (url.uri.clone(), InUse::default());
        let in_use = gateway.clone();
        // Asked again for each attempt and each recovery.
        let broker = async move || {
            let served = gateway::open(&url).await?;
            in_use.set(&served);
            Ok(served)
        };
        let inner = pipe::connect(uri, runtime, broker, options).await?;
        Ok(Self { inner, gateway })
    }

    /// Closes the connection and waits until the broker has answered; JetStream has then been told of every acknowledgement.
    ///
    /// # Errors
    /// As lapin's: `InvalidConnectionState` when it is not open.
    pub async fn close(&self, reply_code: ReplyCode, reply_text: ShortString) -> Result<()> {
        let gateway = self.gateway.get();
        let closed = self.inner.close(reply_code, reply_text).await;
        if let Some(gateway) = gateway {
            gateway.flush(LAST_WORDS).await;
        }
        closed
    }

    /// Blocks the thread until the connection is closed; as lapin's.
    ///
    /// # Errors
    /// What the connection was lost for.
    pub fn run(self) -> Result<()> {
        self.inner.run()
    }

    /// Replaces the login's secret; as lapin's. JetStream in this process has no login, and lets in who was let in.
    ///
    /// # Errors
    /// `InvalidConnectionState` when it is not open.
    pub async fn update_secret(&self, new_secret: LongString, reason: ShortString) -> Result<()> {
        self.inner.update_secret(new_secret, reason).await
    }
}

impl Deref for Connection {
    type Target = lapin::Connection;

    fn deref(&self) -> &lapin::Connection {
        &self.inner
    }
}

impl From<lapin::Connection> for Connection {
    fn from(inner: lapin::Connection) -> Self {
        Self { inner, gateway: InUse::default() }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// URIs that a [`Connection`] can be opened from; as lapin's.
#[async_trait]
pub trait Connect {
    /// Connects on the current tokio runtime.
    async fn connect(self, options: ConnectionProperties) -> Result<Connection>
    where
        Self: Sized,
    {
        inside_tokio()?;
        self.connect_with_config(options, OwnedTLSConfig::default(), runtime::default_runtime()?).await
    }

    /// Connects on a given runtime, with settings for TLS.
    async fn connect_with_config<RK: RuntimeKit + Send + Sync + Clone + 'static>(
        self,
        options: ConnectionProperties,
        config: OwnedTLSConfig,
        runtime: Runtime<RK>,
    ) -> Result<Connection>
    where
        Self: Sized;
}

#[async_trait]
impl Connect for AMQPUri {
    async fn connect_with_config<RK: RuntimeKit + Send + Sync + Clone + 'static>(
        self,
        options: ConnectionProperties,
        config: OwnedTLSConfig,
        runtime: Runtime<RK>,
    ) -> Result<Connection> {
        lapin::Connect::connect_with_config(self, options, config, runtime).await.map(Connection::from)
    }
}

#[async_trait]
impl Connect for &str {
    async fn connect_with_config<RK: RuntimeKit + Send + Sync + Clone + 'static>(
        self,
        options: ConnectionProperties,
        config: OwnedTLSConfig,
        runtime: Runtime<RK>,
    ) -> Result<Connection> {
        match url::read(self).map_err(invalid)? {
            Some(url) => Connection::to_jetstream(url, options, runtime).await,
            None => lapin::Connect::connect_with_config(self, options, config, runtime).await.map(Connection::from),
        }
    }
}

/// lapin panics without a runtime; this is its typed error instead.
pub(super) fn inside_tokio() -> Result<Handle> {
    Handle::try_current().map_err(|_| ErrorKind::NoDefaultRuntime.into())
}

/// How long NATS may take to hear the last of a connection that is closed.
const LAST_WORDS: Duration = Duration::from_secs(5);
