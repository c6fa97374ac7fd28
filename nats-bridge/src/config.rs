//! How to reach NATS.

use std::path::PathBuf;
use std::time::Duration;

use crate::login::Login;
use crate::publish::PublishConfig;

/// How to reach NATS and how to behave when it is away. All fields have defaults; see each.
/// ```no_run
/// # async fn example() -> nats_bridge::Result<()> {
/// use std::time::Duration;
/// use nats_bridge::{Bridge, BreakerConfig, Config, Login, PublishConfig};
///
/// let bridge = Bridge::connect_with(Config {
///     servers: vec!["tls://a.example:4222".into(), "tls://b.example:4222".into()],
///     name: "billing".into(),
///     // Read again for each connection that is made: rotate it by writing the file.
///     login: Login::CredentialsFile("/run/secrets/billing.creds".into()),
///     root_certificates: vec!["/etc/ssl/nats-ca.pem".into()],
///     publish: PublishConfig {
///         deadline: Duration::from_secs(20),
///         breaker: Some(BreakerConfig::default()),
///         ..PublishConfig::default()
///     },
///     ..Config::default()
/// })
/// .await?;
/// # let _ = bridge;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    /// Server URLs, `nats://` or `tls://`, tried in random order; default `nats://127.0.0.1:4222`. A user and password
    /// in a URL are used.
    pub servers: Vec<String>,
    /// The connection's name, shown by `/connz`; default `nats-bridge`.
    pub name: String,
    /// How to log in; default: what the URLs say.
    pub login: Login,
    /// Certificate authorities (PEM) in addition to the system's.
    pub root_certificates: Vec<PathBuf>,
    /// Client certificate and key (PEM) for mutual TLS.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Refuses a connection without TLS; default false.
    pub require_tls: bool,
    /// The longest wait for one connection attempt; default 5 s.
    pub connect_timeout: Duration,
    /// The longest wait for an answer of JetStream's API; default 5 s.
    pub request_timeout: Duration,
    /// Time between pings that detect a dead connection (two unanswered ones end it); default 10 s.
    pub ping_interval: Duration,
    /// Longest pause between reconnect attempts, which go on for ever; pauses double from 10 ms and are jittered;
    /// default 4 s.
    pub reconnect_pause_max: Duration,
    /// A word that generated message ids start with (`msg_{region}_{ulid}`); letters, digits, `-`; default none.
    pub region: Option<String>,
    /// The window and the bounds of [`Bridge::publish`](crate::Bridge::publish).
    pub publish: PublishConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            servers: vec!["nats://127.0.0.1:4222".into()],
            name: "nats-bridge".into(),
            login: Login::default(),
            root_certificates: Vec::new(),
            client_certificate: None,
            require_tls: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(10),
            reconnect_pause_max: Duration::from_secs(4),
            region: None,
            publish: PublishConfig::default(),
        }
    }
}
