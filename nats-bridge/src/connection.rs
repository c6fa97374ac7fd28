//! The state of the connection, for everybody who must act when it changes.

use std::sync::Mutex;

use tokio::sync::{broadcast, watch};

/// The connection as it is now. The numbers only grow, so that a reader that missed a change still sees that there
/// was one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Connection {
    /// Whether a server is connected at present.
    pub connected: bool,
    /// How often a connection was made, the first one included. More than last seen: send again what is outstanding.
    pub connects: u64,
    /// How often it was lost.
    pub disconnects: u64,
    /// Whether it was closed for good.
    pub closed: bool,
}

/// What happened to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// A server is connected (again). Subscriptions are in place before anything sent from now on.
    Connected,
    /// The server is gone; reconnecting has begun.
    Disconnected,
    /// The server asks clients to leave because it will stop.
    LameDuck,
    /// The server refuses this user something; its text, which names the subject.
    Denied(String),
    /// A subscription's buffer was full and the client dropped a message.
    SlowConsumer,
    /// Another error that the server or the client reported.
    Other(String),
    /// The connection was closed for good.
    Closed,
}

/// Turns the client's events into a [`Connection`] to watch and [`ConnectionEvent`]s to follow.
#[derive(Debug)]
pub(crate) struct Events {
    state: watch::Sender<Connection>,
    events: broadcast::Sender<ConnectionEvent>,
    // The client reports the first connect before `connect` returns; the lock keeps counting in one place.
    lock: Mutex<()>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Events {
            state: watch::Sender::new(Connection::default()),
            events: broadcast::Sender::new(128),
            lock: Mutex::new(()),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Connection> {
        self.state.subscribe()
    }

    pub(crate) fn follow(&self) -> broadcast::Receiver<ConnectionEvent> {
        self.events.subscribe()
    }

    pub(crate) fn report(&self, event: async_nats::Event) {
        let event = ConnectionEvent::from(event);
        let _guard = self.lock.lock();
        match &event {
            ConnectionEvent::Connected => {
                metrics::counter!("natsbridge_connects_total").increment(1);
                self.state.send_modify(|s| {
                    s.connected = true;
                    s.connects += 1;
                });
            }
            ConnectionEvent::Disconnected => {
                tracing::warn!("the connection to NATS was lost; reconnecting");
                metrics::counter!("natsbridge_disconnects_total").increment(1);
                self.state.send_modify(|s| {
                    s.connected = false;
                    s.disconnects += 1;
                });
            }
            ConnectionEvent::Closed => self.state.send_modify(|s| {
                s.connected = false;
                s.closed = true;
            }),
            ConnectionEvent::SlowConsumer => {
                metrics::counter!("natsbridge_client_dropped_total").increment(1);
                tracing::error!("the client dropped a message because a subscription's buffer was full");
            }
            ConnectionEvent::Denied(text) => tracing::error!(text, "NATS refuses this user something"),
            // We asked for it.
            ConnectionEvent::Other(text) if text == "draining" => tracing::debug!("the connection to NATS is drained"),
            ConnectionEvent::LameDuck | ConnectionEvent::Other(_) => tracing::warn!(?event, "NATS reports"),
        }
        // Nobody following is normal.
        let _ = self.events.send(event);
    }
}

impl From<async_nats::Event> for ConnectionEvent {
    fn from(event: async_nats::Event) -> Self {
        use async_nats::{Event, ServerError};
        match event {
            Event::Connected => ConnectionEvent::Connected,
            Event::Disconnected => ConnectionEvent::Disconnected,
            Event::LameDuckMode => ConnectionEvent::LameDuck,
            Event::SlowConsumer(_) => ConnectionEvent::SlowConsumer,
            Event::Closed => ConnectionEvent::Closed,
            Event::ServerError(ServerError::Other(text))
                if text.to_ascii_lowercase().contains("permissions violation") =>
            {
                ConnectionEvent::Denied(text)
            }
            other => ConnectionEvent::Other(other.to_string()),
        }
    }
}
