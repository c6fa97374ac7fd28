//! The state of the connection, for everybody who must act when it changes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, watch};

/// The connection as it is now. The numbers only grow, so that a reader that missed a change still sees that there
/// was one.
/// ```no_run
/// # async fn example() -> nats_bridge::Result<()> {
/// let bridge = nats_bridge::Bridge::connect("nats://127.0.0.1:4222").await?;
/// let mut connection = bridge.connection();
/// let mut seen = connection.borrow().connects;
/// while connection.changed().await.is_ok() {
///     let now = *connection.borrow_and_update();
///     if now.connects > seen {
///         seen = now.connects;
///         println!("connected again, for the {seen}th time");
///     } else if !now.connected {
///         println!("NATS is away");
///     }
/// }
/// # Ok(())
/// # }
/// ```
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
    told: Mutex<Told>,
}

/// How long the same report is only counted after it was logged: a server that is away is tried several times a second.
const RARELY: Duration = Duration::from_secs(60);

/// What was logged.
#[derive(Debug, Default)]
struct Told {
    lost_at: Option<Instant>,
    last: Option<(String, Instant)>,
    /// How often the last one came again since.
    again: u64,
}

impl Told {
    /// Whether a report is to be logged, and how often it came since it was; none: it is counted.
    fn reported(&mut self, text: &str, now: Instant) -> Option<u64> {
        match &self.last {
            Some((last, at)) if last == text && now.saturating_duration_since(*at) < RARELY => {
                self.again += 1;
                None
            }
            _ => {
                let same = self.last.as_ref().is_some_and(|(last, _)| last == text);
                let again = if same { self.again } else { 0 };
                self.last = Some((text.to_owned(), now));
                self.again = 0;
                Some(again)
            }
        }
    }

    fn lost(&mut self, now: Instant) {
        self.lost_at = Some(now);
    }

    /// For how long the connection was away; none: it is the first one.
    fn back(&mut self, now: Instant) -> Option<Duration> {
        self.last = None;
        self.again = 0;
        Some(now.saturating_duration_since(self.lost_at.take()?))
    }
}

impl Events {
    pub(crate) fn new() -> Self {
        Events {
            state: watch::Sender::new(Connection::default()),
            events: broadcast::Sender::new(128),
            told: Mutex::default(),
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
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match &event {
            ConnectionEvent::Connected => {
                if let Some(away) = told.back(now) {
                    tracing::info!(away_ms = away.as_millis(), "the connection to NATS is back");
                }
                metrics::counter!("natsbridge_connects_total").increment(1);
                self.state.send_modify(|s| {
                    s.connected = true;
                    s.connects += 1;
                });
            }
            ConnectionEvent::Disconnected => {
                tracing::warn!("the connection to NATS was lost; reconnecting");
                told.lost(now);
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
            ConnectionEvent::LameDuck => tracing::warn!(?event, "NATS reports"),
            ConnectionEvent::Other(text) => match told.reported(text, now) {
                Some(0) => tracing::warn!(?event, "NATS reports"),
                Some(again) => tracing::warn!(?event, again, "NATS reports, again and again"),
                None => {}
            },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_report_is_logged_once_a_minute_with_how_often_it_came() {
        let (mut told, start) = (Told::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(told.reported("refused", at(0)), Some(0));
        for second in 1..60 {
            assert_eq!(told.reported("refused", at(second)), None);
        }
        assert_eq!(told.reported("refused", at(60)), Some(59));
        assert_eq!(told.reported("refused", at(61)), None);
        assert_eq!(told.reported("another", at(62)), Some(0));
        assert_eq!(told.reported("refused", at(63)), Some(0));
    }

    #[test]
    fn a_connection_is_back_once_and_the_first_one_was_never_away() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert_eq!(told.back(start), None);
        told.reported("refused", start);
        told.lost(start);
        assert_eq!(told.back(start + Duration::from_secs(3)), Some(Duration::from_secs(3)));
        assert_eq!(told.back(start + Duration::from_secs(4)), None);
        assert_eq!(told.reported("refused", start + Duration::from_secs(5)), Some(0), "it is another time");
    }
}
