//! A connection to NATS with JetStream.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, jetstream};
use tokio::sync::{OnceCell, broadcast, watch};

use crate::config::Config;
use crate::connection::{Connection, ConnectionEvent, Events};
use crate::consume::{Consumer, WeakHandle};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::message_id::check_region;
use crate::publish::{BreakerState, Confirms, OrderedInbox, Pending, PublishConfig, Published, Publisher, Writers};
use crate::pulse::Pulse;

/// A connection to NATS with JetStream. Clones share the connection.
/// ```no_run
/// # async fn example() -> nats_bridge::Result<()> {
/// use std::time::Duration;
/// use nats_bridge::{Bridge, Message};
///
/// let bridge = Bridge::connect("nats://127.0.0.1:4222").await?;
/// // Stored when it returns. Sent again with the same id, it is not stored a second time.
/// let stored = bridge.publish(Message::new("orders.new", "one tea").id("order-17")).await?;
/// println!("{} {} duplicate: {}", stored.stream, stored.sequence, stored.duplicate);
/// // Many at once, each with its own outcome.
/// let teas = (0..100).map(|n| Message::new("orders.new", "one tea").id(format!("order-{n}")));
/// for outcome in bridge.publish_many(teas).await {
///     outcome?;
/// }
/// // What was handed over is confirmed, or its sender is told, before this returns.
/// bridge.close(Duration::from_secs(5)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Bridge {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    jetstream: jetstream::Context,
    events: Arc<Events>,
    config: Config,
    api_level: u32,
    pulse: Arc<Pulse>,
    publisher: Publisher,
    writers: OnceCell<Arc<Writers>>,
    consumers: Mutex<Vec<WeakHandle>>,
}

impl Bridge {
    /// Connects to one server, or to several given as a comma-separated list, with default settings.
    ///
    /// # Errors
    /// As [`Bridge::connect_with`].
    pub async fn connect(url: impl AsRef<str>) -> Result<Bridge> {
        let servers = url.as_ref().split(',').map(|s| s.trim().to_owned()).collect();
        Bridge::connect_with(Config { servers, ..Config::default() }).await
    }

    /// Connects to NATS, checks that JetStream answers, and learns the server's API level.
    ///
    /// Once connected, a lost connection is made again for ever; see [`Bridge::connection`].
    ///
    /// # Errors
    /// - `Config`: a URL, certificate or credential cannot be read.
    /// - `Unreachable`: no server answered, or it refuses TLS.
    /// - `Denied`: the login was refused.
    /// - `Unsupported`: JetStream is not enabled for this account, or the server is older than 2.10.26.
    pub async fn connect_with(config: Config) -> Result<Bridge> {
        check(&config)?;
        let events = Arc::new(Events::new());
        let servers = config.servers.join(",");
        let connecting = options(&config, events.clone())?.connect(&config.servers[..]);
        let client = connecting.await.map_err(|e| connect_error(&servers, e))?;
        // The first `Connected` comes over a channel; counted now, it is not taken for a reconnect later.
        let mut connected = events.watch();
        let first = connected.wait_for(|c| c.connects > 0);
        // What is awaited here holds a lock; kept longer, it would tie this future to one thread.
        let counted = matches!(tokio::time::timeout(config.connect_timeout, first).await, Ok(Ok(_)));
        if !counted {
            return Err(Error::new(ErrorKind::Timeout).with("call", "connect"));
        }
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(config.request_timeout);
        let api_level = read_api_level(&client, config.request_timeout).await?;
        let pulse = Arc::new(Pulse::new(client.clone()));
        let publisher =
            Publisher::open(&pulse, jetstream.clone(), &events, config.publish.clone(), config.region.as_deref())
                .await?;
        let (writers, consumers) = (OnceCell::new(), Mutex::default());
        let shared = Shared { client, jetstream, events, config, api_level, pulse, publisher, writers, consumers };
        Ok(Bridge { shared: Arc::new(shared) })
    }

    /// Publishes one message and waits until JetStream has stored it; see [`Publisher::publish`] for outcomes and errors.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped after its first poll, the message may or may not be published.
    pub async fn publish(&self, message: Message) -> Result<Published> {
        self.shared.publisher.publish(message).await
    }

    /// Hands one message over and gives its pending confirm; waits while the window is full.
    ///
    /// # Errors
    /// As [`Publisher::publish_later`].
    ///
    /// # Cancel safety
    /// Cancel safe: dropped before it is ready, nothing is sent.
    pub async fn publish_later(&self, message: Message) -> Result<Pending> {
        self.shared.publisher.publish_later(message).await
    }

    /// Publishes messages in their order, and gives the outcome of each in the same order; see [`Publisher::publish_many`].
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped, some may be published, and none or some of the rest.
    pub async fn publish_many(&self, messages: impl IntoIterator<Item = Message>) -> Vec<Result<Published>> {
        self.shared.publisher.publish_many(messages).await
    }

    /// How many messages this bridge's own publisher has handed over and has no confirm of.
    pub fn outstanding(&self) -> usize {
        self.shared.publisher.outstanding()
    }

    /// Hands one message over if there is room at once.
    ///
    /// # Errors
    /// As [`Publisher::try_publish`].
    pub fn try_publish(&self, message: Message) -> Result<Pending> {
        self.shared.publisher.try_publish(message)
    }

    /// A further publisher on this connection, with a window and bounds of its own.
    ///
    /// # Errors
    /// `Config`: a bound is out of range. `NotFound`: there is no registry of schemas in the bucket that was named. `Closed`: the
    /// connection was closed.
    pub async fn publisher(&self, config: PublishConfig) -> Result<Publisher> {
        let Shared { pulse, jetstream, events, config: own, .. } = &*self.shared;
        Publisher::open(pulse, jetstream.clone(), events, config, own.region.as_deref()).await
    }

    /// An inbox for publishes that keep their order when the connection is lost: they go over a further connection, which is made with
    /// the first such inbox and which all of this bridge's share.
    ///
    /// # Errors
    /// For the first: as [`Bridge::connect_with`], of the further connection; while that one is lost, an inbox is made at once all the same.
    /// `Closed`: the bridge was closed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ordered_inbox(&self) -> Result<(OrderedInbox, Confirms)> {
        let Shared { client, config, events, writers, .. } = &*self.shared;
        let writers = writers.get_or_try_init(|| async { Writers::open(client, config, events).await.map(Arc::new) });
        OrderedInbox::open(client, writers.await?.clone()).await
    }

    /// The state of this bridge's own publisher's circuit breaker, to await changes of; always `Closed` when
    /// [`PublishConfig::breaker`] is none.
    pub fn breaker(&self) -> watch::Receiver<BreakerState> {
        self.shared.publisher.breaker()
    }

    /// Waits for outstanding confirms of this bridge's own publisher, and until the server has back what its consumers fetched and no
    /// handler has seen, then closes the connection. What handlers have comes again after `ack_wait`: drain consumers first.
    ///
    /// # Errors
    /// `Timeout`: not all was confirmed within `budget`, and may have landed; the connection is closed nevertheless, and whoever waits for
    /// a confirm or a delivery is told so.
    pub async fn close(&self, budget: Duration) -> Result<()> {
        let consumers: Vec<_> = self.consumers().iter().filter_map(WeakHandle::get).collect();
        let left = futures::future::join_all(consumers.iter().map(|consumer| consumer.leave(budget)));
        let (flushed, _) = tokio::join!(self.shared.publisher.flush(budget), left);
        self.shared.publisher.take_no_more();
        // It fails only when the connection is closed already.
        let _ = self.shared.client.drain().await;
        // Without an answer of the server the client waits for one: what waits is told now.
        let mut connection = self.shared.events.watch();
        let over = connection.wait_for(|connection| connection.closed || !connection.connected);
        let in_time = tokio::time::timeout(LAST_WORDS, over).await.is_ok();
        if !in_time || !self.shared.events.watch().borrow().closed {
            self.shared.events.report(async_nats::Event::Closed);
        }
        flushed
    }

    /// The connection underneath, for what this crate does not cover.
    pub fn client(&self) -> &Client {
        &self.shared.client
    }

    /// JetStream's API underneath, for what this crate does not cover.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.shared.jetstream
    }

    /// The settings that the connection was made with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The version of the server that is connected now, such as `2.15.1`.
    pub fn server_version(&self) -> String {
        self.shared.client.server_info().version
    }

    /// JetStream's API level when the connection was made: 0 for 2.10, 1 for 2.11, 2 or 3 for 2.12, 4 for 2.14, 5 for
    /// 2.15.
    ///
    /// Source: NATS ADR-44. Older servers ignore what they do not know, so ask before using a newer feature.
    pub fn api_level(&self) -> u32 {
        self.shared.api_level
    }

    /// The connection's state to await changes of; see [`Connection`] for how to notice a reconnect.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.shared.events.watch()
    }

    /// Runs calls of JetStream's API; when the server refuses this user one of them, that is the error, at once. The server
    /// tells a refusal to the connection and answers nothing, so without this a call would wait for its answer in vain.
    pub(crate) async fn unless_denied<T>(&self, calls: impl Future<Output = Result<T>>) -> Result<T> {
        let mut events = self.events();
        let refused = async {
            loop {
                match events.recv().await {
                    Ok(ConnectionEvent::Denied(text)) if names_a_call(&text) => return text,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            result = calls => result,
            text = refused => Err(Error::new(ErrorKind::Denied).with("why", text)),
        }
    }

    /// Remembers a consumer that is to give back what it holds before the connection is closed.
    pub(crate) fn will_leave(&self, consumer: &Consumer) {
        let mut consumers = self.consumers();
        consumers.retain(|consumer| consumer.get().is_some());
        consumers.push(consumer.weak_handle());
    }

    fn consumers(&self) -> MutexGuard<'_, Vec<WeakHandle>> {
        self.shared.consumers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn pulse(&self) -> Arc<Pulse> {
        self.shared.pulse.clone()
    }

    /// What happens to the connection from now on. A reader more than 128 events behind loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<ConnectionEvent> {
        self.shared.events.follow()
    }
}

/// How long the server may take to answer that everything was read, after what was waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);

// Pulls and acks are of consumers that run, and not of a call that waits; publishers look for streams.
fn names_a_call(text: &str) -> bool {
    let subject = text.split('"').nth(1).unwrap_or_default();
    let ours = ["$JS.API.CONSUMER.MSG.NEXT.", "$JS.API.STREAM.NAMES"];
    subject.starts_with("$JS.API.") && !ours.iter().any(|ours| subject.starts_with(ours))
}

fn options(config: &Config, events: Arc<Events>) -> Result<ConnectOptions> {
    let pause_max = config.reconnect_pause_max;
    Ok(with_common(config, crate::login::options(config)?)
        .name(&config.name)
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempt| reconnect_pause(attempt, pause_max, rand::random()))
        .event_callback(move |event| {
            let events = events.clone();
            async move { events.report(event) }
        }))
}

/// What all connections of a bridge have in common.
pub(crate) fn with_common(config: &Config, options: ConnectOptions) -> ConnectOptions {
    options
        .connection_timeout(config.connect_timeout)
        .request_timeout(Some(config.request_timeout))
        .ping_interval(config.ping_interval)
        .require_tls(config.require_tls)
}

pub(crate) fn connect_error(servers: &str, error: async_nats::ConnectError) -> Error {
    let kind = match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => ErrorKind::Denied,
        ConnectErrorKind::ServerParse => ErrorKind::Config,
        _ => ErrorKind::Unreachable,
    };
    Error::new(kind).with("servers", without_passwords(servers)).with("why", &error).because(error)
}

fn check(config: &Config) -> Result<()> {
    check_region(config.region.as_deref())?;
    let wrong = |field: &'static str, why: &'static str| Err(Error::setting(field, why));
    match config {
        c if c.servers.iter().all(|server| server.trim().is_empty()) => wrong("servers", "it names no server"),
        c if c.connect_timeout.is_zero() => wrong("connect_timeout", "it is above 0"),
        c if c.request_timeout.is_zero() => wrong("request_timeout", "it is above 0"),
        c if c.ping_interval.is_zero() => wrong("ping_interval", "it is above 0"),
        _ => Ok(()),
    }
}

// User and password, or a token alone, of the first URL that has them.
pub(crate) fn url_login(servers: &[String]) -> Result<Option<(String, Option<String>)>> {
    for server in servers {
        let wrong =
            |why: &dyn std::fmt::Display| Error::setting("servers", why).with("value", without_passwords(server));
        let address: async_nats::ServerAddr = server.parse().map_err(|e| wrong(&e).because(e))?;
        if let Some(user) = address.username() {
            let decode = |text: &str| {
                percent_decoded(text).ok_or_else(|| wrong(&"its user or password is not percent-encoded UTF-8"))
            };
            let password = address.password().map(decode).transpose()?;
            return Ok(Some((decode(user)?, password)));
        }
    }
    Ok(None)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                out.push((high * 16 + low) as u8);
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

// `random` in 0..=u32::MAX chooses between half and all of the doubled pause.
pub(crate) fn reconnect_pause(attempt: usize, max: Duration, random: u32) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doubled = Duration::from_millis(10).saturating_mul(1 << (attempt - 2).min(16)).min(max);
    doubled.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

async fn read_api_level(client: &Client, timeout: Duration) -> Result<u32> {
    #[derive(serde::Deserialize)]
    struct Info {
        #[serde(default)]
        api: Api,
        error: Option<serde_json::Value>,
    }
    #[derive(serde::Deserialize, Default)]
    struct Api {
        #[serde(default)]
        level: u32,
    }
    let version = client.server_info().version;
    let unsupported =
        |why: String| Error::new(ErrorKind::Unsupported).with("server_version", &version).with("why", why);
    // 2.10.25 passes over messages of consumers with a filter: they would stay in their stream for ever.
    if !client.is_server_compatible(2, 10, 26) {
        return Err(unsupported("2.10.26 or newer is needed".into()));
    }
    let request = async_nats::Request::new().payload(Default::default()).timeout(Some(timeout));
    let answer = client.send_request("$JS.API.INFO", request).await.map_err(|e| match e.kind() {
        async_nats::RequestErrorKind::NoResponders => unsupported("JetStream is not enabled".into()),
        _ => Error::new(ErrorKind::Timeout).with("call", "$JS.API.INFO").because(e),
    })?;
    let info: Info = serde_json::from_slice(&answer.payload).map_err(|e| unsupported(e.to_string()))?;
    match info.error {
        Some(error) => Err(unsupported(error.to_string())),
        None => Ok(info.api.level),
    }
}

fn without_passwords(servers: &str) -> String {
    servers
        .split(',')
        .map(|s| match (s.find("://"), s.rfind('@')) {
            (Some(scheme), Some(at)) if at > scheme => format!("{}***{}", &s[..scheme + 3], &s[at..]),
            _ => s.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_wait_longer_and_longer_up_to_the_bound() {
        let max = Duration::from_secs(4);
        assert_eq!(reconnect_pause(1, max, u32::MAX), Duration::ZERO);
        assert_eq!(reconnect_pause(2, max, u32::MAX), Duration::from_millis(10));
        assert_eq!(reconnect_pause(3, max, 0), Duration::from_millis(10));
        assert_eq!(reconnect_pause(usize::MAX, max, u32::MAX), max);
    }

    #[test]
    fn a_login_is_read_from_the_url() {
        let login = |url: &str| url_login(&[url.to_owned()]).expect("a URL");
        assert_eq!(login("nats://h:1"), None);
        assert_eq!(login("nats://a:p%40ss@h:1"), Some(("a".into(), Some("p@ss".into()))));
        assert_eq!(login("nats://s3cret@h"), Some(("s3cret".into(), None)));
        assert!(url_login(&["nats://a:%zz@h".to_owned()]).is_err());
    }

    #[test]
    fn passwords_stay_out_of_errors() {
        assert_eq!(without_passwords("nats://a:b@h:1,nats://h:2"), "nats://***@h:1,nats://h:2");
    }
}
