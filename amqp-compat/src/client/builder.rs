//! Settings first, then the connection.

use async_rs::Runtime;
use async_rs::traits::RuntimeKit;

use super::connection::{Connect, Connection};
use super::gateway::invalid;
use super::{ConnectionProperties, Result, runtime};
use crate::client::tcp::OwnedTLSConfig;
use crate::client::uri::AMQPUri;

/// Collects what a [`Connection`] needs; as lapin's.
#[derive(Debug)]
pub struct ConnectionBuilder<RK: RuntimeKit + Send + Sync + Clone + 'static> {
    runtime: Runtime<RK>,
    uri: Address,
    properties: ConnectionProperties,
    tls_config: OwnedTLSConfig,
}

/// A [`ConnectionBuilder`] on the current tokio runtime.
pub type DefaultConnectionBuilder = ConnectionBuilder<async_rs::Tokio>;

#[derive(Debug, Default)]
enum Address {
    #[default]
    Unset,
    Text(String),
    Parsed(AMQPUri),
}

impl DefaultConnectionBuilder {
    /// A builder on the current tokio runtime.
    ///
    /// # Errors
    /// `NoDefaultRuntime` outside of tokio.
    pub fn new() -> Result<Self> {
        super::connection::inside_tokio()?;
        Ok(Self::new_with_runtime(runtime::default_runtime()?))
    }
}

impl<RK: RuntimeKit + Send + Sync + Clone + 'static> ConnectionBuilder<RK> {
    /// A builder on this runtime.
    pub fn new_with_runtime(runtime: Runtime<RK>) -> Self {
        let (properties, tls_config) = Default::default();
        Self { runtime, uri: Address::Unset, properties, tls_config }
    }

    /// Where to connect to.
    #[must_use]
    pub fn with_uri(mut self, uri: AMQPUri) -> Self {
        self.uri = Address::Parsed(uri);
        self
    }

    /// Where to connect to, as text; read by [`ConnectionBuilder::connect`].
    #[must_use]
    pub fn with_uri_str(mut self, uri: String) -> Self {
        self.uri = Address::Text(uri);
        self
    }

    /// Other properties than the default ones.
    #[must_use]
    pub fn with_properties(mut self, properties: ConnectionProperties) -> Self {
        self.properties = properties;
        self
    }

    /// Another TLS configuration than the default one, for `amqps://`.
    #[must_use]
    pub fn with_tls_config(mut self, tls_config: OwnedTLSConfig) -> Self {
        self.tls_config = tls_config;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// Those of [`Connection::connect`]; `IOError` when no URI was given.
    pub async fn connect(&self) -> Result<Connection> {
        let (properties, tls, runtime) = (self.properties.clone(), self.tls_config.clone(), self.runtime.clone());
        match &self.uri {
            Address::Text(uri) => uri.as_str().connect_with_config(properties, tls, runtime).await,
            Address::Parsed(uri) => uri.clone().connect_with_config(properties, tls, runtime).await,
            Address::Unset => Err(invalid("the connection builder was given no URI")),
        }
    }
}
