//! `nats-bridge sidecar`: in the path between AMQP clients and RabbitMQ.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use amqp_compat::backend::Login;
use amqp_compat::backend::jetstream::JetStreamConfig;
use amqp_compat::backend::rabbitmq::{RabbitMqBackend, RabbitMqConfig};
use amqp_compat::listener::Listener;
use clap::Args;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::lease::take_lease;
use super::nats::NatsLogin;
use super::tls::TlsArgs;
use super::{ConsumerTimeout, Failure, rabbit_gate, remedy, signals};
use crate::control::{Audit, Cutover, Management, Parts};
use crate::control_api::Control;
use crate::dual::vhosts::JetStreamVhosts;
use crate::gate;
use crate::http::{self, Surface};
use crate::integrity;
use crate::ready;
use crate::standby::Standby;

/// Arguments of `sidecar`.
#[derive(Debug, Args)]
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
    /// Where AMQP clients connect to; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:5673", value_name = "HOST:PORT")]
    pub listen: String,
    /// AMQPS.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Where status and control are served; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8222", value_name = "HOST:PORT")]
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
    /// What the gate asks for, and when the sidecar rolls back by itself.
    #[command(flatten)]
    pub gate: GateLimits,
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
    let at = |flag: &'static str| move |error: String| Failure::cannot_run(format!("{flag}: {error}"));
    let rabbit = RabbitMqConfig::from_url(&args.rabbit).map_err(at("--rabbit"))?;
    let operator = operator(&args.rabbit).map_err(at("--rabbit"))?;
    let given = super::users_given(&args.users, args.user_file.as_deref())?;
    let users =
        given.iter().map(|(place, user)| login(user).map_err(|error| Failure::cannot_run(format!("{place}: {error}"))));
    let users = users.collect::<Result<Vec<_>, _>>()?;
    let audit = match &args.rabbit_management {
        Some(url) => Audit::Management(Management::from_url(url).map_err(at("--rabbit-management"))?),
        None if args.trust_declared => Audit::Trusted,
        None => Audit::Unknown,
    };
    let token = match &args.http_token_file {
        Some(file) => Some(super::token_in(file).map_err(at("--http-token-file"))?),
        None => args.http_token.clone(),
    };
    let (rabbit_shown, user) = (rabbit.to_string(), operator.user.clone());
    let shutdown = CancellationToken::new();
    signals::cancel(&shutdown)?;
    let metrics = http::metrics::install().map_err(Failure::cannot_run)?;

    // What costs nothing is tried first. Clients that come early wait until they are accepted.
    let listen_failed = |error| remedy::bind("--listen", &args.listen, &error);
    let mut listener = Listener::bind(&args.listen).await.map_err(listen_failed)?;
    let tls = args.tls.bind(&mut listener).await?;
    let listen = listener.local_addr().map_err(listen_failed)?;
    let http_failed = |error| remedy::bind("--http", &args.http, &error);
    let surface = Surface::bind(&args.http).await.map_err(http_failed)?;
    let http = surface.local_addr().map_err(http_failed)?;
    let bridge = args.nats_login.connect(&args.nats, "nats-bridge").await?;

    let Some(lease) = take_lease(&bridge, &args.nats, &shutdown).await? else { return Ok(()) };

    let config = JetStreamConfig {
        replicas: args.replicas.into(),
        quorum_fallback: !args.no_quorum_fallback,
        consumer_timeout: args.consumer_timeout.0,
        ..JetStreamConfig::default()
    };
    let vhosts = Arc::new(JetStreamVhosts::new(bridge.clone(), lease.clone(), config));
    let standby = Standby::start(bridge.clone(), vhosts.clone());
    let cutover = Cutover::start(Parts {
        rabbit_url: rabbit.to_string(),
        rabbit: Arc::new(RabbitMqBackend::new(rabbit)),
        operator,
        nats: vhosts.clone(),
        nats_url: remedy::without_password(&args.nats),
        bridge: bridge.clone(),
        routes: Some(vhosts),
        audit,
        shadow: Some(standby.clone()),
        users,
        fence_limit: Duration::from_millis(args.fence_timeout_ms),
        gate: gate::Limits {
            soak: args.gate.gate_soak,
            messages: args.gate.gate_messages,
            latency_factor: args.gate.gate_latency_factor,
            ..gate::Limits::default()
        },
        rollback_after: (!args.gate.no_auto_rollback).then_some(args.gate.rollback_after),
        integrity: integrity::Limits::default(),
    })
    .await
    .map_err(at("--nats"))?;

    if let Err(failure) = rabbit_gate::pass(&cutover, &rabbit_shown, &user).await {
        lease.release().await;
        return Err(failure);
    }
    let control: Arc<dyn Control> = cutover.clone();
    let options = http::Options { control, token, metrics: Some(metrics) };
    let serving_http = tokio::spawn(surface.run(options, shutdown.clone()));
    let serving = tokio::spawn(listener.run(cutover.backend(), shutdown.clone()));
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
    tokio::select! {
        () = shutdown.cancelled() => {}
        error = lease.lost() => {
            // At once: the other gateway serves already, and is not to be disturbed by last words.
            serving.abort();
            return Err(Failure::cannot_run(format!("--nats {}: {}", remedy::without_password(&args.nats), error.text)));
        }
    }
    cutover.drain();
    let served = serving.await;
    let served_http = serving_http.await;
    cutover.stop();
    standby.stop();
    lease.release().await;
    let _ = bridge.close(Duration::from_secs(5)).await;
    match (served, served_http) {
        (Ok(()), Ok(Ok(()))) => Ok(()),
        (Err(error), _) | (Ok(()), Err(error)) => Err(Failure::cannot_run(error)),
        (Ok(()), Ok(Err(error))) => Err(Failure::cannot_run(format!("--http {}: {error}", args.http))),
    }
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

    #[test]
    fn a_user_may_name_a_vhost() {
        let app = login("app:se:cret@orders").expect("valid");
        assert_eq!((&*app.user, &*app.password, &*app.vhost), ("app", "se:cret", "orders"));
        assert_eq!(login("app:secret").expect("valid").vhost, "/");
        assert!(login("app").is_err() && login(":x").is_err() && login("app:").is_err());
    }
}
