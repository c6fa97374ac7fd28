//! What AMQP clients of a process connect to: a gateway, or a sidecar that shares its account.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use amqp_compat::gateway::{Gateway, GatewayState};
use sidecar::sharing::Shared;
use tokio::sync::watch;

/// A listener. Clones are the same one.
#[derive(Clone)]
pub enum Listener {
    /// That of a gateway, or of a sidecar that is alone.
    Gateway(Arc<Gateway>),
    /// That of a sidecar among others.
    Shared(Arc<Shared>),
}

impl Listener {
    /// The URL for a client on this machine.
    pub fn url(&self) -> &str {
        match self {
            Listener::Gateway(gateway) => gateway.url(),
            Listener::Shared(shared) => shared.url(),
        }
    }

    /// Where AMQP clients connect to.
    pub fn address(&self) -> SocketAddr {
        match self {
            Listener::Gateway(gateway) => gateway.address(),
            Listener::Shared(shared) => shared.addresses().0,
        }
    }

    /// Where AMQPS clients connect to.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Gateway(gateway) => gateway.tls_address(),
            Listener::Shared(shared) => shared.addresses().1,
        }
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        match self {
            Listener::Gateway(gateway) => gateway.connections().len(),
            Listener::Shared(shared) => shared.connections(),
        }
    }

    /// How it is now.
    pub fn state(&self) -> GatewayState {
        self.watch().borrow().clone()
    }

    /// How it is, to await changes of.
    pub fn watch(&self) -> watch::Receiver<GatewayState> {
        match self {
            Listener::Gateway(gateway) => gateway.watch(),
            Listener::Shared(shared) => shared.watch(),
        }
    }

    /// Sends clients away, and waits until they are gone; after `budget` they are cut.
    pub async fn stop(&self, budget: Duration) {
        match self {
            Listener::Gateway(gateway) => gateway.stop(budget).await,
            Listener::Shared(shared) => shared.stop(budget).await,
        }
    }
}
