//! One of several sidecars as one value that is started and stopped, for a program that it is inside of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use amqp_compat::gateway::{self, GatewayError, GatewayState};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Following, Relay};
use crate::control_api::{Refused, RefusedCode};
use crate::http::{self, Surface, ask};
use crate::running::{LAST_WORDS, Sidecar, SidecarConfig, SidecarError};

/// How one of several sidecars is reached.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// Where status and control are served, to the other sidecars too; default `127.0.0.1:0`, a free port.
    pub http: String,
    /// The host under which the others reach this one, where that is not the one of `listen`.
    pub advertise: Option<String>,
    /// What changes have to carry; all that share an account need the same one.
    pub token: Option<String>,
}

impl Default for Sharing {
    fn default() -> Self {
        Sharing { http: "127.0.0.1:0".into(), advertise: None, token: None }
    }
}

/// A sidecar that serves its NATS account together with others. Dropping it stops it without waiting.
pub struct Shared {
    addresses: (SocketAddr, Option<SocketAddr>),
    url: String,
    http: SocketAddr,
    token: Option<String>,
    relay: Relay,
    state: watch::Receiver<GatewayState>,
    leads: watch::Receiver<Option<Arc<Sidecar>>>,
    stop: CancellationToken,
    _guard: DropGuard,
}

/// How long the one that is asked may take. A change waits until it is in force.
const PATIENCE: Duration = Duration::from_secs(70);

impl Shared {
    /// Takes a place among the sidecars of an account; as the one that leads if there is none.
    ///
    /// # Errors
    /// As [`Following::join`], and when `http` cannot be bound.
    ///
    /// # Cancel safety
    /// As [`Sidecar::start`].
    pub async fn start(
        config: SidecarConfig,
        sharing: Sharing,
        metrics: Option<PrometheusHandle>,
    ) -> Result<Shared, SidecarError> {
        let Sharing { http: place, advertise, token } = sharing;
        let bind = |error| GatewayError::Bind { field: "http", place: place.clone(), error };
        let surface = Surface::bind(&place).await.map_err(bind)?;
        let http = surface.local_addr().map_err(bind)?;
        let following = Following::join(config, http, advertise.as_deref()).await?;
        let (addresses, relay) = (following.addresses(), following.relay.clone());
        let operator = &following.prepared.operator;
        let user = (&*operator.user, &*operator.password);
        let url = gateway::url(addresses.0, Some(user), Some(&operator.vhost));

        let (stop, answering) = (CancellationToken::new(), CancellationToken::new());
        let _guard = stop.clone().drop_guard();
        let answers = answering.clone().drop_guard();
        let (serve, serves) = watch::channel(None);
        let front =
            http::Front { leads: serves, leader: following.leader(), token: token.clone(), metrics: metrics.clone() };
        tokio::spawn(surface.run_shared(front, answering));
        let led = Led { serve, token: token.clone(), metrics, _answers: answers };
        let (tell, state) = watch::channel(GatewayState::Running);
        let (lead, leads) = watch::channel(None);
        let (task, bridge) = (Task { tell, lead, stop: stop.clone(), relay: relay.clone() }, following.bridge());
        if following.follows() {
            tokio::spawn(async move {
                let led_or_not = tokio::select! {
                    led = following.lead() => Some(led),
                    () = task.stop.cancelled() => None,
                };
                match led_or_not {
                    Some(Ok(sidecar)) => task.run(sidecar, led).await,
                    Some(Err(error)) => task.end(GatewayState::Failed { why: error.to_string() }),
                    None => {
                        task.tell.send_replace(GatewayState::Draining);
                        let _ = bridge.close(LAST_WORDS).await;
                        task.end(GatewayState::Stopped);
                    }
                }
            });
        } else {
            let sidecar = following.lead().await?;
            tokio::spawn(task.run(sidecar, led));
        }
        Ok(Shared { addresses, url, http, token, relay, state, leads, stop, _guard })
    }

    /// Where AMQP clients connect to, and those that use TLS.
    pub fn addresses(&self) -> (SocketAddr, Option<SocketAddr>) {
        self.addresses
    }

    /// The URL for a client on this machine, with the user of `rabbit`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// AMQP connections that are open here.
    pub fn connections(&self) -> usize {
        let own = self.leads.borrow().as_ref().map(|sidecar| sidecar.gateway().connections().len());
        own.unwrap_or_else(|| usize::try_from(self.relay.clients()).unwrap_or(usize::MAX))
    }

    /// How it is, to await changes of.
    pub fn watch(&self) -> watch::Receiver<GatewayState> {
        self.state.clone()
    }

    /// Stops it, as [`gateway::Gateway::stop`]; another one takes its place if it leads. Stopping twice is fine.
    ///
    /// # Cancel safety
    /// Dropped, it goes on stopping, without the budget.
    pub async fn stop(&self, budget: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(budget, self.ended()).await.is_err() {
            let leads = self.leads.borrow().clone();
            if let Some(sidecar) = leads {
                sidecar.gateway().stop(Duration::ZERO).await;
            }
            self.ended().await;
        }
    }

    async fn ended(&self) {
        let ended = |state: &GatewayState| matches!(state, GatewayState::Stopped | GatewayState::Failed { .. });
        // The sender lives until it has told so.
        let _ = self.state.clone().wait_for(ended).await;
    }

    /// Asks status and control, wherever the one that leads is. The answer is JSON.
    ///
    /// # Errors
    /// [`Refused`]: as over HTTP; `Draining` when this sidecar was stopped.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Result<String, Refused> {
        let stopped = || !matches!(*self.state.borrow(), GatewayState::Running);
        let draining = || Refused::new(RefusedCode::Draining, "the sidecar was stopped", "ask another one");
        // Its surface may still be open, and another one leads by now, which it would ask.
        if stopped() {
            return Err(draining());
        }
        let address = SocketAddr::new(own(self.http.ip()), self.http.port());
        let token = self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n{token}Content-Length: {length}\r\n\r\n{body}"
        );
        let answer = tokio::time::timeout(PATIENCE, ask::exchange(&address.to_string(), &request)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) if stopped() => return Err(draining()),
            Ok(Err(error)) => return Err(silent(error.to_string())),
            Err(_) => return Err(silent(format!("no answer within {} s", PATIENCE.as_secs()))),
        };
        let (code, body) = ask::split(&answer).ok_or_else(|| silent("its answer is cut off".to_owned()))?;
        if code == 200 {
            return Ok(String::from_utf8_lossy(body).into_owned());
        }
        Err(serde_json::from_slice(body).unwrap_or_else(|_| silent(format!("it answered with HTTP status {code}"))))
    }
}

fn silent(why: String) -> Refused {
    Refused::new(
        RefusedCode::SideDown,
        format!("the sidecar does not answer: {why}"),
        "look at its log, then try again",
    )
}

/// The address of this machine that leads to what is bound to `ip`.
fn own(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// What the HTTP surface is given once this sidecar leads; it ends with this.
struct Led {
    serve: watch::Sender<Option<http::Options>>,
    token: Option<String>,
    metrics: Option<PrometheusHandle>,
    _answers: DropGuard,
}

/// What sees to it until its end.
struct Task {
    tell: watch::Sender<GatewayState>,
    lead: watch::Sender<Option<Arc<Sidecar>>>,
    stop: CancellationToken,
    relay: Relay,
}

impl Task {
    /// Leads until it is stopped, or may not any more.
    async fn run(self, sidecar: Sidecar, led: Led) {
        let sidecar = Arc::new(sidecar);
        let options =
            http::Options { control: sidecar.control(), token: led.token.clone(), metrics: led.metrics.clone() };
        led.serve.send_replace(Some(options));
        self.lead.send_replace(Some(Arc::clone(&sidecar)));
        let gateway = sidecar.gateway();
        tokio::select! {
            () = gateway.ended() => {}
            () = self.stop.cancelled() => {
                self.tell.send_replace(GatewayState::Draining);
                gateway.stop(Duration::MAX).await;
            }
        }
        let state = gateway.state();
        drop(led);
        self.end(state);
    }

    fn end(&self, state: GatewayState) {
        self.relay.close();
        self.tell.send_replace(state);
    }
}
