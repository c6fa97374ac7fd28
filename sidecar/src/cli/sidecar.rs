//! `nats-bridge sidecar`: in the path between AMQP clients and RabbitMQ.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use amqp_compat::backend::Login;
use amqp_compat::backend::jetstream::JetStreamConfig;
use amqp_compat::gateway::{GatewayError, GatewayState};
use clap::Args;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::nats::NatsLogin;
use super::tls::TlsArgs;
use super::{ConsumerTimeout, Failure, remedy, signals};
use crate::copies;
use crate::gate;
use crate::http::{self, Surface};
use crate::ready;
use crate::running::{Sidecar, SidecarConfig, SidecarError};
use crate::sharing::Following;

/// Arguments of `sidecar`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example, two side by side (on b the same with `--advertise b`; behind a load balancer or not):\n  \
    nats-bridge sidecar --shared --advertise a --listen 0.0.0.0:5673 --http 0.0.0.0:8223 --http-token-file token \\\n    \
    --rabbit amqp://bridge:SECRET@rabbit --nats nats://nats"
)]
pub struct SidecarArgs {
    /// RabbitMQ, as an AMQP URL. Clients log in with their own user names; the URL's user is the sidecar's own, which
    /// publishes fences and asks for counts in every vhost that is used.
    #[arg(long, env = "NATS_BRIDGE_RABBIT", value_name = "URL")]
    pub rabbit: String,
    /// NATS with JetStream; the servers of a cluster separated by commas.
    #[arg(long, env = "NATS_BRIDGE_NATS", value_name = "URL")]
    pub nats: String,
    /// How to log in there.
    #[command(flatten)]
    pub nats_login: NatsLogin,
    /// How many servers of the cluster hold a durable classic queue that is made from now on. A quorum queue is on three
    /// where there are three, whatever this says.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replicas: u8,
    /// Refuse a quorum queue on JetStream where the servers cannot hold three replicas; it is then listed as unmapped. Without it,
    /// one is made there with as many as a classic queue, with a warning in the log.
    #[arg(long)]
    pub no_quorum_fallback: bool,
    /// RabbitMQ's management API, as `http://USER:PASSWORD@HOST:15672`; the user needs the `monitoring` tag. Before the weight is
    /// raised, RabbitMQ's bindings and policies are compared with what was declared through the sidecar.
    #[arg(long, env = "NATS_BRIDGE_RABBIT_MANAGEMENT", value_name = "URL", hide_env_values = true)]
    pub rabbit_management: Option<String>,
    /// Raise the weight without asking RabbitMQ's management API: you vouch that all bindings were declared through this
    /// sidecar and that no policy matters. A queue that was bound past it gets no copy of what NATS owns.
    #[arg(long, conflicts_with = "rabbit_management")]
    pub trust_declared: bool,
    /// Serve the NATS account together with other sidecars that say so too. One of them leads; the others take clients and pass them on
    /// to it, and one of them takes its place when it stops or dies. Without it a second sidecar is refused.
    #[arg(long)]
    pub shared: bool,
    /// The host under which the other sidecars reach this one, where that is not the one of `--listen`.
    #[arg(long, requires = "shared", value_name = "HOST")]
    pub advertise: Option<String>,
    /// Where AMQP clients connect to; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:5673", value_name = "HOST:PORT", value_parser = super::host_port)]
    pub listen: String,
    /// AMQPS.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Where status and control are served; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8223", value_name = "HOST:PORT", value_parser = super::host_port)]
    pub http: String,
    /// File that gets the real addresses as JSON once connections are accepted.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Who may log in, to vhost `/` or the one that is named, when RabbitMQ cannot be asked; besides those that it has let
    /// in before. May be given more than once.
    #[arg(long = "user", value_name = "NAME:PASSWORD[@VHOST]")]
    pub users: Vec<String>,
    /// More of them, from a file with one a line, so that no password stands on a command line. Blank lines and those that
    /// begin with `#` are passed over.
    #[arg(long, value_name = "FILE")]
    pub user_file: Option<PathBuf>,
    /// Whether what one broker owns is kept on the other as well, in queues named `nats-bridge.standby.QUEUE`, so that either can be lost for
    /// good (`nats-bridge failover`). A publish is confirmed when both have it; in shadow, when RabbitMQ has it.
    #[arg(long, value_enum, default_value_t = Standby::Both)]
    pub standby: Standby,
    /// How long deliveries may wait for what was published before a change of weight; then they are delivered, with a
    /// warning, and may be out of order.
    #[arg(long, value_name = "MS", default_value_t = 30_000)]
    pub fence_timeout_ms: u64,
    /// How long a client may take to settle a delivery of JetStream's before its channel is closed with 406: a number with ms,
    /// s, m or h, or `off`. Give RabbitMQ's `consumer_timeout` if it is not the default; RabbitMQ sees to its own deliveries.
    #[arg(long, value_parser = super::consumer_timeout, default_value = "30m", value_name = "TIME")]
    pub consumer_timeout: ConsumerTimeout,
    /// What a change over HTTP has to carry as `Authorization: Bearer TOKEN`. Without one, only callers on this machine may
    /// change anything.
    #[arg(long, env = "NATS_BRIDGE_HTTP_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub http_token: Option<String>,
    /// The same token, from a file; what is written on no command line nobody reads there. The page then shows, and changes only
    /// for whoever gives the token.
    #[arg(long, value_name = "FILE", conflicts_with = "http_token")]
    pub http_token_file: Option<PathBuf>,
    /// A collector of OpenTelemetry that takes OTLP over HTTP (port 4318). It gets a span of each publish and each delivery of messages
    /// with a `traceparent` header that says "sampled", with the broker that had it; messages are passed on as they came.
    /// Headers for it: OTEL_EXPORTER_OTLP_HEADERS.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", hide_env_values = true)]
    pub otlp_endpoint: Option<String>,
    /// What the gate asks for, and when the sidecar rolls back by itself.
    #[command(flatten)]
    pub gate: GateLimits,
}

/// Of whose messages the other broker keeps copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Standby {
    /// Of either's: either broker can be lost for good.
    Both,
    /// Of those that NATS owns: a RabbitMQ that is lost for good takes its own along.
    Nats,
    /// Of nobody's: a broker that is lost for good takes its own along.
    Off,
}

/// What `nats-bridge gate` asks for before it says yes.
#[derive(Debug, Args)]
pub struct GateLimits {
    /// How long a phase or weight has to be in force before the gate says yes.
    #[arg(long, value_parser = super::duration, default_value = "60s", value_name = "TIME")]
    pub gate_soak: Duration,
    /// How many messages have to be compared in shadow, or confirmed by JetStream at a weight, before the gate says yes.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub gate_messages: u64,
    /// How many times RabbitMQ's 99th percentile of confirm times JetStream's may be.
    #[arg(long, default_value_t = 1.5, value_parser = factor, value_name = "FACTOR")]
    pub gate_latency_factor: f64,
    /// How long JetStream may be silent at a weight above 0 before the sidecar rolls back by itself.
    #[arg(long, value_parser = super::duration, default_value = "10s", value_name = "TIME")]
    pub rollback_after: Duration,
    /// Never roll back by itself, neither for a silent JetStream nor for messages that it corrupts, drops, reorders or duplicates.
    #[arg(long)]
    pub no_auto_rollback: bool,
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (1.0..=1_000.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 1 to 1000 is expected".to_owned()),
    }
}

/// What a ready file says.
#[derive(Debug, Serialize)]
struct Ready {
    listen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_tls: Option<String>,
    http: String,
    pid: u32,
}

/// Runs the sidecar until SIGTERM or SIGINT; then clients' publishes are answered and connections closed.
///
/// # Errors
/// `cannot_run`, naming the flag at fault.
pub async fn run(args: SidecarArgs) -> Result<(), Failure> {
    let token = match &args.http_token_file {
        Some(file) => {
            Some(super::token_in(file).map_err(|why| Failure::cannot_run(format!("--http-token-file: {why}")))?)
        }
        None => args.http_token.clone(),
    };
    let config = config(&args)?;
    let shutdown = CancellationToken::new();
    signals::cancel(&shutdown)?;
    let metrics = http::metrics::install().map_err(Failure::cannot_run)?;
    let http_failed = |error| remedy::bind("--http", &args.http, &error);
    let surface = Surface::bind(&args.http).await.map_err(http_failed)?;
    let http = surface.local_addr().map_err(http_failed)?;
    if args.shared {
        return shared(&args, config, (surface, http), (token, metrics), shutdown).await;
    }
    let sidecar = tokio::select! {
        started = Sidecar::start(config) => started.map_err(|error| failure(&args, &error))?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let options = http::Options { control: sidecar.control(), token, metrics: Some(metrics) };
    let serving_http = tokio::spawn(surface.run(options, shutdown.clone()));
    let gateway = sidecar.gateway();
    announce(&args, (gateway.address(), gateway.tls_address()), http)?;
    until_it_ends(&args, &sidecar, serving_http, shutdown).await
}

/// One of several sidecars: follows until it leads, then as one that is alone.
async fn shared(
    args: &SidecarArgs,
    config: SidecarConfig,
    (surface, http): (Surface, SocketAddr),
    (token, metrics): (Option<String>, PrometheusHandle),
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let following = tokio::select! {
        joined = Following::join(config, http, args.advertise.as_deref()) => joined.map_err(|error| failure(args, &error))?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let (addresses, follows) = (following.addresses(), following.follows());
    let (leads, is_leading) = watch::channel(None);
    let front = http::Front {
        leads: is_leading,
        leader: following.leader(),
        token: token.clone(),
        metrics: Some(metrics.clone()),
    };
    let serving_http = tokio::spawn(surface.run_shared(front, shutdown.clone()));
    if follows {
        announce(args, addresses, http)?;
    }
    let sidecar = tokio::select! {
        led = following.lead() => led.map_err(|error| failure(args, &error))?,
        () = shutdown.cancelled() => return http_ended(args, serving_http).await,
    };
    leads.send_replace(Some(http::Options { control: sidecar.control(), token, metrics: Some(metrics) }));
    if !follows {
        announce(args, addresses, http)?;
    }
    until_it_ends(args, &sidecar, serving_http, shutdown).await
}

/// Says where it is to be found.
fn announce(
    args: &SidecarArgs,
    (listen, tls): (SocketAddr, Option<SocketAddr>),
    http: SocketAddr,
) -> Result<(), Failure> {
    if let Some(file) = &args.ready_file {
        let listen_tls = tls.map(|address| address.to_string());
        let addresses =
            Ready { listen: listen.to_string(), listen_tls, http: http.to_string(), pid: std::process::id() };
        ready::write(file, &addresses)
            .map_err(|error| Failure::cannot_run(format!("--ready-file {}: {error}", file.display())))?;
    }
    println!(
        "nats-bridge {}: AMQP clients connect to {listen}; page, status and control at http://{http}/",
        env!("CARGO_PKG_VERSION")
    );
    if let Some(tls) = tls {
        println!("AMQPS clients connect to {tls}");
    }
    Ok(())
}

/// Serves until it is told to stop, or may not any more.
async fn until_it_ends(
    args: &SidecarArgs,
    sidecar: &Sidecar,
    serving_http: JoinHandle<io::Result<()>>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let gateway = sidecar.gateway();
    tokio::select! {
        () = shutdown.cancelled() => gateway.stop(Duration::MAX).await,
        () = gateway.ended() => {}
    }
    sidecar.close_traces().await;
    match gateway.state() {
        GatewayState::Failed { why } => {
            return Err(Failure::cannot_run(format!("--nats {}: {why}", remedy::without_password(&args.nats))));
        }
        _ => shutdown.cancel(),
    }
    http_ended(args, serving_http).await
}

async fn http_ended(args: &SidecarArgs, serving_http: JoinHandle<io::Result<()>>) -> Result<(), Failure> {
    match serving_http.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::cannot_run(format!("--http {}: {error}", args.http))),
        Err(error) => Err(Failure::cannot_run(error)),
    }
}

fn config(args: &SidecarArgs) -> Result<SidecarConfig, Failure> {
    let given = super::users_given(&args.users, args.user_file.as_deref())?;
    let users =
        given.iter().map(|(place, user)| login(user).map_err(|error| Failure::cannot_run(format!("{place}: {error}"))));
    Ok(SidecarConfig {
        rabbit: args.rabbit.clone(),
        rabbit_management: args.rabbit_management.clone(),
        trust_declared: args.trust_declared,
        nats: args.nats_login.config(&args.nats, "nats-bridge")?,
        listen: args.listen.clone(),
        listen_tls: args.tls.place(),
        users: users.collect::<Result<Vec<_>, _>>()?,
        jetstream: JetStreamConfig {
            replicas: args.replicas.into(),
            quorum_fallback: !args.no_quorum_fallback,
            consumer_timeout: args.consumer_timeout.0,
            ..JetStreamConfig::default()
        },
        fence_timeout: Duration::from_millis(args.fence_timeout_ms),
        gate: gate::Limits {
            soak: args.gate.gate_soak,
            messages: args.gate.gate_messages,
            latency_factor: args.gate.gate_latency_factor,
            ..gate::Limits::default()
        },
        rollback_after: (!args.gate.no_auto_rollback).then_some(args.gate.rollback_after),
        standby: match args.standby {
            Standby::Both => copies::Standby::Both,
            Standby::Nats => copies::Standby::Nats,
            Standby::Off => copies::Standby::Off,
        },
        otlp_endpoint: args.otlp_endpoint.clone(),
    })
}

/// The error of a start, with the flag at fault.
fn failure(args: &SidecarArgs, error: &SidecarError) -> Failure {
    let flag = |field: &str| format!("--{}", field.replace('_', "-"));
    match error {
        SidecarError::Gateway(GatewayError::Config { field, why }) => {
            Failure::cannot_run(format!("{}: {why}", flag(field)))
        }
        SidecarError::Gateway(GatewayError::Bind { field, place, error }) => remedy::bind(&flag(field), place, error),
        SidecarError::Gateway(GatewayError::Tls(error)) => args.tls.refused(error),
        SidecarError::Gateway(GatewayError::Nats(error)) => remedy::nats(&args.nats, error),
        SidecarError::Gateway(error @ (GatewayError::Lease(_) | GatewayError::Backend(_))) => {
            Failure::cannot_run(format!("--nats {}: {error}", remedy::without_password(&args.nats)))
        }
        SidecarError::Refused { .. } | SidecarError::State(_) => Failure::cannot_run(format!("--{error}")),
    }
}

/// A login of `--user`.
fn login(text: &str) -> Result<Login, String> {
    let (user, rest) = text.split_once(':').ok_or("NAME:PASSWORD or NAME:PASSWORD@VHOST is expected")?;
    let (password, vhost) = rest.rsplit_once('@').unwrap_or((rest, "/"));
    if user.is_empty() || password.is_empty() {
        return Err("the name and the password are not empty".to_owned());
    }
    Ok(Login {
        vhost: vhost.to_owned(),
        user: user.to_owned(),
        password: password.to_owned(),
        certificate: None,
        client_properties: Default::default(),
        peer: "--user".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_may_name_a_vhost() {
        let app = login("app:se:cret@orders").expect("valid");
        assert_eq!((&*app.user, &*app.password, &*app.vhost), ("app", "se:cret", "orders"));
        assert_eq!(login("app:secret").expect("valid").vhost, "/");
        assert!(login("app").is_err() && login(":x").is_err() && login("app:").is_err());
    }
}
