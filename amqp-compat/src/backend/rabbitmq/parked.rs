//! Logins that were checked before their vhost is known.
//!
//! A client expects a refused login at once, before it is asked for its vhost. The connection on which RabbitMQ took the
//! login is kept for the short time until the client opens its vhost, so that it is not made twice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::HashMap;

use super::handshake::LoggedIn;
use crate::backend::Login;

/// How long one is kept: RabbitMQ's own limit for a handshake ("handshake_timeout").
const KEPT: Duration = Duration::from_secs(10);

/// Connections that wait for their vhost, by client address and user; at most one for each client connection.
#[derive(Debug, Default, Clone)]
pub(super) struct Parked {
    waiting: Arc<Mutex<HashMap<(String, String), Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    login: Login,
    upstream: LoggedIn,
    // Tells it from a later one of the same client.
    token: Arc<()>,
}

impl Parked {
    /// Keeps a connection for this login; dropped after 10 s.
    pub(super) fn park(&self, login: &Login, upstream: LoggedIn) {
        let token = Arc::new(());
        let key = (login.peer.clone(), login.user.clone());
        let waiting = Waiting { login: login.clone(), upstream, token: Arc::clone(&token) };
        self.lock().insert(key.clone(), waiting);
        let parked = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            let mut waiting = parked.lock();
            if waiting.get(&key).is_some_and(|entry| Arc::ptr_eq(&entry.token, &token)) {
                waiting.remove(&key);
            }
        });
    }

    /// Takes the connection on which this very login was checked.
    pub(super) fn take(&self, login: &Login) -> Option<LoggedIn> {
        let entry = self.lock().remove(&(login.peer.clone(), login.user.clone()))?;
        let same = entry.login.password == login.password && entry.login.client_properties == login.client_properties;
        same.then_some(entry.upstream)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
