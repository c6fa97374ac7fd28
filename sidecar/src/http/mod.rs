//! The HTTP surface of a sidecar: JSON for people and tools, Prometheus metrics, probes. Of a gateway (`serve --http`): the last two.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | 200, the page for people |
//! | `GET /status` | 200, [`Status`](crate::control_api::Status) |
//! | `POST /observe`, `/shadow`, `/rollback`, `/detach` `{by, reason}` | 200, [`Adopted`](crate::control_api::Adopted) |
//! | `POST /weight` `{percent, by, reason}` | 200, [`Adopted`](crate::control_api::Adopted) |
//! | `POST /weight` `{.., "force": true}` | raises the weight against the gate's no |
//! | `POST /weight` `{.., "unrehearsed": true}` | goes to 100 per cent without a rehearsed rollback |
//! | `GET /gate` | 200, [`Verdict`](crate::control_api::Verdict): may I go on? |
//! | `GET /history` | 200, [`History`](crate::control_api::History): the last hour |
//! | `GET /changes` | 200, the last [`ChangeRecord`](crate::control_api::ChangeRecord)s, newest first |
//! | `POST /failover` `{lost, execute, force, by, reason}` | 200, [`FailoverReport`](crate::control_api::FailoverReport): it was begun |
//! | `GET /failover` | 200, how far it is; `null` when there was none |
//! | `POST /backfill` `{queues, dry_run, by, reason}` | 200, [`BackfillReport`](crate::control_api::BackfillReport): it was begun |
//! | `GET /backfill` | 200, how far it is; `null` when there was none |
//! | `POST /rehearse` `{stay_s, by, reason}` | 200, [`Rehearsal`](crate::control_api::Rehearsal): it was begun |
//! | `GET /rehearse` | 200, the last one; `null` when there was none |
//! | `GET /log?last=N` | 200, the last [`LogEntry`](crate::control_api::LogEntry)s, newest first |
//! | `GET /access` | 200, whether this caller may change something |
//! | `GET /livez` | 200 while the process serves |
//! | `GET /readyz` | 200, or 503 with the reasons |
//! | `GET /metrics` | 200, Prometheus text format |
//!
//! What is not done is answered with a [`Refused`](crate::control_api::Refused) and 400, 401, 403, 404, 405, 409, 413 or
//! 503. Changes are taken from this machine only, unless a token is set; see `access`.

mod access;
pub(crate) mod ask;
mod body;
mod front;
mod gateway;
pub mod metrics;
mod page;
mod probes;
mod routes;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, ToSocketAddrs};
use tokio_util::sync::CancellationToken;

use crate::control_api::Control;

pub use front::Front;
pub use gateway::Gateway;

/// A bound HTTP socket.
#[derive(Debug)]
pub struct Surface {
    socket: TcpListener,
}

/// What a surface shows and who may change something.
#[derive(Clone)]
pub struct Options {
    /// The cutover.
    pub control: Arc<dyn Control>,
    /// What changes have to carry as `Authorization: Bearer TOKEN`. Without one, only callers on this machine may change
    /// anything.
    pub token: Option<String>,
    /// Renders `/metrics`; see [`metrics::install`]. Without it, `/metrics` is 404.
    pub metrics: Option<PrometheusHandle>,
}

impl Surface {
    /// Binds a socket; port 0 takes a free one.
    ///
    /// # Errors
    /// Those of resolving and binding `address`.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await? })
    }

    /// The address that is listened on.
    ///
    /// # Errors
    /// Those of asking the operating system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `shutdown` is cancelled, then finishes the requests that run.
    ///
    /// # Errors
    /// Those of the socket.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket; a change that is being made goes on or not, as its `Control` does.
    pub async fn run(self, options: Options, shutdown: CancellationToken) -> io::Result<()> {
        let metrics = options.metrics.clone();
        self.serve(routes::router(options), metrics, shutdown).await
    }

    /// As [`Surface::run`], for a sidecar among several.
    ///
    /// # Errors
    /// Those of the socket.
    ///
    /// # Cancel safety
    /// As [`Surface::run`].
    pub async fn run_shared(self, front: Front, shutdown: CancellationToken) -> io::Result<()> {
        let metrics = front.metrics.clone();
        self.serve(front::router(front), metrics, shutdown).await
    }

    /// As [`Surface::run`], for the probes and metrics of a gateway.
    ///
    /// # Errors
    /// Those of the socket.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub async fn run_gateway(self, gateway: Gateway, shutdown: CancellationToken) -> io::Result<()> {
        let metrics = Some(gateway.metrics.clone());
        self.serve(gateway::router(gateway), metrics, shutdown).await
    }

    async fn serve(
        self,
        router: Router,
        metrics: Option<PrometheusHandle>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let upkeep = metrics.map(|handle| tokio::spawn(metrics::keep_up(handle)));
        let app = router.into_make_service_with_connect_info::<SocketAddr>();
        let served = axum::serve(self.socket, app).with_graceful_shutdown(shutdown.cancelled_owned()).await;
        if let Some(upkeep) = upkeep {
            upkeep.abort();
        }
        served
    }
}
