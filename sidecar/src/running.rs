//! A sidecar as one value that is started and stopped: the listener, both brokers, the cutover between them. What
//! `nats-bridge sidecar` runs, and what the language bindings run inside a process.

use std::sync::Arc;
use std::time::Duration;

use amqp_compat::backend::Login;
use amqp_compat::backend::jetstream::lease::LeaseError;
use amqp_compat::backend::jetstream::{JetStreamConfig, Lease};
use amqp_compat::backend::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
use amqp_compat::error::AmqpError;
use amqp_compat::gateway::{self, Ends, Gateway, GatewayError, GatewayState, Serving, Sockets};
use amqp_compat::listener::TlsFiles;
use nats_bridge::{Bridge, Config, ErrorKind};
use url::Url;

use crate::control::{Audit, Cutover, Lead, Management, Parts};
use crate::control_api::Control;
use crate::copies;
use crate::dual::vhosts::JetStreamVhosts;
use crate::gate;
use crate::integrity;
use crate::rabbit_gate;
use crate::sharing::Members;
use crate::standby::Standby;
use crate::traces::Traces;

/// What a sidecar is between, and where.
#[derive(Debug, Clone)]
pub struct SidecarConfig {
    /// RabbitMQ, as an AMQP URL, whose user is the sidecar's own.
    pub rabbit: String,
    /// RabbitMQ's management API, as `http://USER:PASSWORD@HOST:15672`: before the weight is raised, RabbitMQ's bindings and
    /// policies are compared with what was declared through the sidecar.
    pub rabbit_management: Option<String>,
    /// Raises the weight without asking the management API.
    pub trust_declared: bool,
    /// NATS, and how to log in there.
    pub nats: Config,
    /// Where AMQP clients connect to; default `127.0.0.1:0`, a free port.
    pub listen: String,
    /// Where AMQPS clients connect to, and with which certificates; default nowhere.
    pub listen_tls: Option<(String, TlsFiles)>,
    /// Who may log in when RabbitMQ cannot be asked, besides those that it has let in before.
    pub users: Vec<Login>,
    /// How AMQP is kept on JetStream.
    pub jetstream: JetStreamConfig,
    /// How long deliveries may wait for what was published before a change of weight; default 30 s.
    pub fence_timeout: Duration,
    /// What the gate asks for.
    pub gate: gate::Limits,
    /// How long JetStream may be silent at a weight above 0 before the sidecar rolls back by itself; `None`: it never does.
    /// Default 10 s.
    pub rollback_after: Option<Duration>,
    /// Of whose messages the other broker keeps copies, so that either can be lost for good; default: of both.
    pub standby: copies::Standby,
    /// A collector of OpenTelemetry that takes OTLP over HTTP, as `http://HOST:4318`; it gets the spans of messages whose trace is
    /// recorded. Default none.
    pub otlp_endpoint: Option<String>,
}

impl Default for SidecarConfig {
    fn default() -> Self {
        SidecarConfig {
            rabbit: "amqp://127.0.0.1:5672".into(),
            rabbit_management: None,
            trust_declared: false,
            nats: Config::default(),
            listen: "127.0.0.1:0".into(),
            listen_tls: None,
            users: Vec::new(),
            jetstream: JetStreamConfig::default(),
            fence_timeout: Duration::from_secs(30),
            gate: gate::Limits::default(),
            rollback_after: Some(Duration::from_secs(10)),
            standby: copies::Standby::default(),
            otlp_endpoint: None,
        }
    }
}

/// Why there is no sidecar. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// As of a gateway without RabbitMQ.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// RabbitMQ refuses the user of the URL.
    #[error(
        "rabbit {rabbit}: RabbitMQ refused user '{user}' of that URL: {error}. Give a user of yours that may use every vhost \
         the applications use, as amqp://USER:PASSWORD@HOST:PORT/VHOST (percent-encoded); the sidecar counts and publishes with it"
    )]
    Refused {
        /// RabbitMQ's address, without user and password.
        rabbit: String,
        /// The user.
        user: String,
        /// RabbitMQ's answer.
        error: AmqpError,
    },
    /// The state of the cutover cannot be read, so that it is not known who owns what.
    #[error("nats: {0}")]
    State(String),
}

impl From<nats_bridge::Error> for SidecarError {
    fn from(error: nats_bridge::Error) -> Self {
        GatewayError::from(error).into()
    }
}

impl From<LeaseError> for SidecarError {
    fn from(error: LeaseError) -> Self {
        GatewayError::from(error).into()
    }
}

impl SidecarError {
    /// What went wrong, in the words of the core.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SidecarError::Gateway(error) => error.kind(),
            SidecarError::Refused { .. } => ErrorKind::Denied,
            SidecarError::State(_) => ErrorKind::Unreachable,
        }
    }

    /// Pairs such as `("field", "listen")`.
    pub fn context(&self) -> Vec<(&'static str, String)> {
        match self {
            SidecarError::Gateway(error) => error.context(),
            SidecarError::Refused { user, error, .. } => {
                vec![("field", "rabbit".to_owned()), ("user", user.clone()), ("why", error.text.clone())]
            }
            SidecarError::State(why) => vec![("why", why.clone())],
        }
    }
}

/// A running sidecar. Dropping it stops it without waiting.
pub struct Sidecar {
    gateway: Arc<Gateway>,
    cutover: Arc<Cutover>,
    traces: Option<Arc<Traces>>,
    _members: Option<Members>,
}

impl Sidecar {
    /// Binds the sockets, connects to NATS, takes the account's lease, takes the cutover up where it stands, tries RabbitMQ, and
    /// serves.
    ///
    /// # Errors
    /// See [`SidecarError`].
    ///
    /// # Cancel safety
    /// A dropped future leaves no socket behind; a lease that was just taken runs out by itself.
    pub async fn start(config: SidecarConfig) -> Result<Sidecar, SidecarError> {
        let prepared = Prepared::new(config).await?;
        match Lease::acquire(&prepared.bridge).await {
            Ok(lease) => prepared.serve(lease, None).await,
            Err(error) => {
                let _ = prepared.bridge.close(LAST_WORDS).await;
                Err(error.into())
            }
        }
    }

    /// Its listener: addresses, clients, state, and how to stop it.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// What tells where the cutover stands, and changes it.
    pub fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.cutover) as Arc<dyn Control>
    }

    /// Waits until the spans that had not been sent when the listener stopped are, for at most 5 s.
    pub async fn close_traces(&self) {
        if let Some(traces) = &self.traces {
            traces.close().await;
        }
    }

    /// Goes on telling of itself among the sidecars of its account.
    pub(crate) fn keeping(self, members: Members) -> Self {
        Self { _members: Some(members), ..self }
    }

    /// The running cutover.
    pub(crate) fn cutover(&self) -> &Arc<Cutover> {
        &self.cutover
    }
}

/// A sidecar that may begin to serve once it has the account's lease: its settings are in order, its sockets are bound, NATS
/// answers.
pub(crate) struct Prepared {
    pub(crate) config: SidecarConfig,
    pub(crate) rabbit: RabbitMqConfig,
    pub(crate) operator: Login,
    audit: Audit,
    traces: Option<Arc<Traces>>,
    pub(crate) sockets: Sockets,
    pub(crate) bridge: Bridge,
}

impl Prepared {
    /// Tries everything that comes before the lease.
    pub(crate) async fn new(config: SidecarConfig) -> Result<Prepared, SidecarError> {
        let wrong = |field| move |why| GatewayError::Config { field, why };
        let rabbit = RabbitMqConfig::from_url(&config.rabbit).map_err(wrong("rabbit"))?;
        let operator = operator(&config.rabbit).map_err(wrong("rabbit"))?;
        if !(1..=5).contains(&config.jetstream.replicas) {
            return Err(wrong("replicas")("1 to 5".to_owned()).into());
        }
        let audit = match &config.rabbit_management {
            Some(url) => Audit::Management(Management::from_url(url).map_err(wrong("rabbit_management"))?),
            None if config.trust_declared => Audit::Trusted,
            None => Audit::Unknown,
        };
        let traces = config.otlp_endpoint.as_deref().map(Traces::to).transpose().map_err(wrong("otlp_endpoint"))?;
        let traces = traces.map(Arc::new);
        // What costs nothing is tried first.
        let sockets = Sockets::bind(&config.listen, config.listen_tls.clone()).await?;
        let bridge = Bridge::connect_with(config.nats.clone()).await?;
        Ok(Prepared { config, rabbit, operator, audit, traces, sockets, bridge })
    }

    /// Takes the cutover up where it stands, tries RabbitMQ, and serves. `lead`: how it came to lead other sidecars, if it does.
    pub(crate) async fn serve(self, lease: Lease, lead: Option<String>) -> Result<Sidecar, SidecarError> {
        let Prepared { config, rabbit, operator, audit, traces, sockets, bridge } = self;
        let user = (&*operator.user, &*operator.password);
        let url = gateway::url(sockets.address, Some(user), Some(&operator.vhost));
        let lead = lead.map(|how| Lead { lease: lease.clone(), how });
        match cut_over(config, (rabbit, operator, audit, traces.clone()), &bridge, &lease, lead).await {
            Ok((cutover, standby)) => {
                let ends = Box::new(Both { cutover: Arc::clone(&cutover), standby, traces: traces.clone() });
                let gateway = Gateway::serve(sockets, url, Serving { backend: cutover.backend(), lease, bridge, ends });
                Ok(Sidecar { gateway: Arc::new(gateway), cutover, traces, _members: None })
            }
            Err(error) => {
                lease.release().await;
                let _ = bridge.close(LAST_WORDS).await;
                Err(error)
            }
        }
    }
}

/// How long the connection to NATS may take to close.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(5);

async fn cut_over(
    config: SidecarConfig,
    (rabbit, operator, audit, traces): (RabbitMqConfig, Login, Audit, Option<Arc<Traces>>),
    bridge: &Bridge,
    lease: &Lease,
    lead: Option<Lead>,
) -> Result<(Arc<Cutover>, Arc<Standby>), SidecarError> {
    let (shown, user) = (rabbit.to_string(), operator.user.clone());
    let vhosts = Arc::new(JetStreamVhosts::new(bridge.clone(), lease.clone(), config.jetstream));
    let standby = Standby::start(bridge.clone());
    let parts = Parts {
        rabbit_url: rabbit.to_string(),
        rabbit: Arc::new(RabbitMqBackend::new(rabbit)),
        operator,
        nats: vhosts.clone(),
        nats_url: without_password(&config.nats.servers.join(",")),
        bridge: bridge.clone(),
        routes: Some(vhosts),
        audit,
        shadow: Some(standby.clone()),
        users: config.users,
        fence_limit: config.fence_timeout,
        gate: config.gate,
        rollback_after: config.rollback_after,
        integrity: integrity::Limits::default(),
        standby: config.standby,
        traces,
        lead,
    };
    let cutover = match Cutover::start(parts).await {
        Ok(cutover) => cutover,
        Err(why) => {
            standby.stop();
            return Err(SidecarError::State(why));
        }
    };
    if let Err(error) = rabbit_gate::pass(&cutover, &shown, &user).await {
        cutover.stop();
        standby.stop();
        return Err(SidecarError::Refused { rabbit: shown, user, error });
    }
    Ok((cutover, standby))
}

/// What ends with the listener.
struct Both {
    cutover: Arc<Cutover>,
    standby: Arc<Standby>,
    traces: Option<Arc<Traces>>,
}

#[async_trait::async_trait]
impl Ends for Both {
    fn draining(&self) {
        self.cutover.drain();
    }

    fn needs_lease(&self) -> bool {
        // It was in the NATS that was given up.
        !self.cutover.has_given_up_nats()
    }

    async fn ended(&self, end: &GatewayState) {
        if *end == GatewayState::Stopped {
            self.cutover.last_words().await;
        }
        self.cutover.stop();
        self.standby.stop();
        if let Some(traces) = self.traces.clone() {
            tokio::spawn(async move { traces.close().await });
        }
    }
}

/// URLs, separated by commas, as they may be shown.
pub(crate) fn without_password(urls: &str) -> String {
    let one = |text: &str| match Url::parse(text.trim()) {
        Ok(mut url) => {
            let stripped = url.set_username("").is_ok() && url.set_password(None).is_ok();
            if stripped { url.to_string() } else { "(not shown)".to_owned() }
        }
        Err(_) if text.contains('@') => "(not shown)".to_owned(),
        Err(_) => text.trim().to_owned(),
    };
    urls.split(',').map(one).collect::<Vec<_>>().join(",")
}

/// How the sidecar itself logs in to RabbitMQ.
fn operator(url: &str) -> Result<Login, String> {
    let url = Url::parse(url).map_err(|e| e.to_string())?;
    let decoded = |text: &str| {
        let pair = format!("x={}", text.replace('+', "%2B"));
        url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
    };
    let or_guest = |text: String| if text.is_empty() { "guest".to_owned() } else { text };
    let vhost = match url.path() {
        "" | "/" => "/".to_owned(),
        path => decoded(&path[1..]),
    };
    Ok(Login {
        vhost,
        user: or_guest(decoded(url.username())),
        password: or_guest(decoded(url.password().unwrap_or_default())),
        certificate: None,
        client_properties: Default::default(),
        peer: "nats-bridge".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        assert_eq!(without_password("nats://u:secret@a:4222,nats://b:4222"), "nats://a:4222,nats://b:4222");
        assert!(!without_password("u:secret@host").contains("secret"));
    }

    #[test]
    fn the_operators_login_is_the_urls_decoded_and_guest_without_one() {
        for (url, user, password, vhost) in [
            ("amqp://rabbit", "guest", "guest", "/"),
            ("amqp://rabbit/", "guest", "guest", "/"),
            ("amqp://rabbit/%2f", "guest", "guest", "/"),
            ("amqp://u:p%40x%2B+@rabbit:1/orders%2Feu", "u", "p@x++", "orders/eu"),
        ] {
            let login = operator(url).expect("a URL");
            assert_eq!((&*login.user, &*login.password, &*login.vhost), (user, password, vhost), "{url}");
        }
    }
}
