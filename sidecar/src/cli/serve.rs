//! `nats-bridge serve`: AMQP 0-9-1 on JetStream alone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig, User};
use amqp_compat::listener::Listener;
use amqp_compat::session::Limits;
use clap::Args;
use nats_bridge::Bridge;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::lease::Place;
use super::tls::TlsArgs;
use super::{Failure, remedy, signals};
use crate::embedded::{Embedded, Plan};
use crate::management::{Management, Shown};
use crate::ready;

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("broker").required(true).args(["embedded", "nats"]))]
pub struct ServeArgs {
    /// Start and supervise a local nats-server with JetStream that stores in DIR.
    #[arg(long, value_name = "DIR")]
    pub embedded: Option<PathBuf>,
    /// Use this NATS, which has JetStream; the servers of a cluster separated by commas.
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,
    /// The nats-server program for --embedded; else $NATS_SERVER, a `.tools` folder, or PATH.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
    /// How often --embedded flushes to disk: `always` (before each confirm) or an interval such as `10s`; nats-server's
    /// default is 2m.
    #[arg(long, value_name = "INTERVAL", requires = "embedded")]
    pub sync: Option<String>,
    /// How many servers of the cluster hold a durable classic queue that is made from now on. A quorum queue is on three
    /// where there are three, whatever this says.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5), conflicts_with = "embedded")]
    pub replicas: u8,
    /// Serve the NATS account together with other gateways that say so too: clients of all of them share exchanges, queues
    /// and messages. Without it a second gateway is refused. New; docs/mapping.md says what is promised.
    #[arg(long, conflicts_with = "embedded")]
    pub shared: bool,
    /// Where AMQP clients connect to; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:5672", value_name = "HOST:PORT")]
    pub listen: String,
    /// AMQPS.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Where RabbitMQ's HTTP API is served, for `rabbitmqadmin` and other tools; port 0 takes a free one. Not served unless
    /// given; RabbitMQ's own port is 15672.
    #[arg(long, value_name = "HOST:PORT")]
    pub management: Option<String>,
    /// Who may log in; may be given more than once. Without it: guest:guest, on a loopback address only.
    #[arg(long = "user", value_name = "NAME:PASSWORD")]
    pub users: Vec<String>,
    /// A virtual host; may be given more than once.
    #[arg(long = "vhost", value_name = "NAME", default_value = "/")]
    pub vhosts: Vec<String>,
    /// File that gets the real addresses as JSON once connections are accepted.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// What a ready file says.
#[derive(Debug, Serialize)]
struct Ready {
    listen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_tls: Option<String>,
    nats: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    management: Option<String>,
    pid: u32,
}

/// Serves until SIGTERM or SIGINT; then clients' publishes are answered and connections closed.
///
/// # Errors
/// `cannot_run`, naming the flag at fault.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let users = args.users.iter().map(|user| parse_user(user)).collect::<Result<Vec<_>, _>>()?;
    // What costs nothing is tried first. Clients that come early wait until they are accepted.
    let listen_failed = |error| remedy::bind("--listen", &args.listen, &error);
    let mut listener = Listener::bind(&args.listen).await.map_err(listen_failed)?;
    let tls = args.tls.bind(&mut listener).await?;
    let address = listener.local_addr().map_err(listen_failed)?;
    let places = [("--listen", Some(&args.listen), Some(address)), ("--listen-tls", args.tls.listen_tls.as_ref(), tls)];
    for (flag, place, address) in places {
        if let (Some(place), Some(address)) = (place, address)
            && users.is_empty()
            && !address.ip().is_loopback()
        {
            return Err(Failure::cannot_run(format!(
                "{flag} {place}: other machines can reach this address, so give --user NAME:PASSWORD (guest:guest is for a \
                 loopback address only)"
            )));
        }
    }
    let management = bind_management(&args, users.is_empty()).await?;
    let shutdown = CancellationToken::new();
    signals::cancel(&shutdown)?;
    let embedded = match &args.embedded {
        Some(dir) => {
            let plan = Plan { dir: dir.clone(), program: args.nats_server.clone(), sync: args.sync.clone() };
            Some(Embedded::start(plan).await.map_err(Failure::cannot_run)?)
        }
        None => None,
    };
    let nats = match (&embedded, &args.nats) {
        (Some(embedded), _) => embedded.url(),
        (None, Some(nats)) => nats.clone(),
        (None, None) => return Err(Failure::cannot_run("give --embedded DIR or --nats URL")),
    };
    let outcome = match Bridge::connect(&nats).await {
        Ok(bridge) => {
            let outcome = serve(args, (listener, tls, management), &nats, bridge.clone(), users, shutdown).await;
            // Before its server stops: a connection that is closed is not taken for a lost one.
            let _ = bridge.close(LAST_WORDS).await;
            outcome
        }
        Err(error) => Err(remedy::nats(&nats, &error)),
    };
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    outcome
}

/// How long the connection to NATS may take to close.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long requests to the HTTP API may take to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

async fn serve(
    args: ServeArgs,
    (mut listener, tls, management): (Listener, Option<SocketAddr>, Option<Management>),
    nats: &str,
    bridge: Bridge,
    users: Vec<User>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let listen_failed = |error| remedy::bind("--listen", &args.listen, &error);
    let address = listener.local_addr().map_err(listen_failed)?;
    let max_payload = bridge.client().server_info().max_payload;
    let limits = Limits::default().within(max_payload);
    listener.limit(limits);
    let login = users.first().map_or("guest:guest".to_owned(), |user| format!("{}:PASSWORD", user.name));
    let defaults = JetStreamConfig::default();
    let users = if users.is_empty() { defaults.users } else { users };
    let Some(place) = Place::take(args.shared, &bridge, nats, &shutdown).await? else { return Ok(()) };
    let config = JetStreamConfig { users, vhosts: args.vhosts, replicas: args.replicas.into(), ..defaults };
    let config = place.settle(config);
    let backend = JetStreamBackend::connect(bridge, config)
        .await
        .map_err(|error| Failure::cannot_run(format!("--nats {}: {error}", remedy::without_password(nats))))?;
    println!(
        "nats-bridge {}: AMQP clients connect to amqp://{login}@{}/  (JetStream at {})",
        env!("CARGO_PKG_VERSION"),
        reachable(address),
        remedy::without_password(nats),
    );
    if let Some(tls) = tls {
        println!("AMQPS at amqps://{login}@{}/", reachable(tls));
    }
    let (connections, amqps) = (listener.connections(), listener.tls());
    let shown = Shown { backend: backend.clone(), connections, amqp: address, amqps };
    let managed = management.as_ref().map(Management::local_addr).transpose();
    let managed = managed.map_err(|error| Failure::cannot_run(format!("--management: {error}")))?;
    let managing = management.map(|management| tokio::spawn(manage(management, shown, shutdown.clone())));
    let mut served = tokio::spawn(listener.run(backend, shutdown));
    if let Some(file) = &args.ready_file {
        let management = managed.map(|address| address.to_string());
        let (listen, nats) = (address.to_string(), nats.to_owned());
        let listen_tls = tls.map(|address| address.to_string());
        let ready = Ready { listen, listen_tls, nats, management, pid: std::process::id() };
        ready::write(file, &ready)
            .map_err(|error| Failure::cannot_run(format!("--ready-file {}: {error}", file.display())))?;
    }
    let shown = remedy::without_password(nats);
    info!(%address, nats = shown, max_message_bytes = limits.max_message, "accepting AMQP connections");
    let outcome = tokio::select! {
        ended = &mut served => ended.map_err(|error| Failure::cannot_run(format!("the listener failed: {error}"))),
        error = place.lost() => {
            // At once: the other gateway serves already, and is not to be disturbed by last words.
            served.abort();
            managing.iter().for_each(JoinHandle::abort);
            Err(Failure::cannot_run(format!("--nats {shown}: {}", error.text)))
        }
    };
    if let Some(managing) = managing {
        // The last answers; a caller that keeps its connection open does not hold the stop up.
        let _ = tokio::time::timeout(LAST_ANSWERS, managing).await;
    }
    place.release().await;
    if let Some(file) = &args.ready_file {
        // It speaks of a server that is gone; whether it can be removed is of no interest any more.
        let _ = std::fs::remove_file(file);
    }
    outcome
}

/// Binds the socket of the HTTP API, where one is asked for. Its logins are those of the AMQP listener.
async fn bind_management(args: &ServeArgs, only_guest: bool) -> Result<Option<Management>, Failure> {
    let Some(place) = &args.management else { return Ok(None) };
    let failed = |error| remedy::bind("--management", place, &error);
    let management = Management::bind(place).await.map_err(failed)?;
    if only_guest && !management.local_addr().map_err(failed)?.ip().is_loopback() {
        return Err(Failure::cannot_run(format!(
            "--management {place}: other machines can reach this address, so give --user NAME:PASSWORD (guest:guest is for a \
             loopback address only)"
        )));
    }
    Ok(Some(management))
}

async fn manage(management: Management, shown: Shown, shutdown: CancellationToken) {
    if let Ok(address) = management.local_addr() {
        info!(%address, "serving RabbitMQ's HTTP API");
    }
    if let Err(error) = management.run(shown, shutdown).await {
        tracing::error!(%error, "the HTTP API ended");
    }
}

fn parse_user(text: &str) -> Result<User, Failure> {
    match text.split_once(':') {
        Some((name, password)) if !name.is_empty() => Ok(User { name: name.to_owned(), password: password.to_owned() }),
        _ => Err(Failure::cannot_run("--user takes NAME:PASSWORD")),
    }
}

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { format!("localhost:{}", address.port()) } else { address.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_name_and_a_password_that_may_hold_anything() {
        let parsed = |text| parse_user(text).map(|user| (user.name, user.password)).ok();
        assert_eq!(parsed("a:b:c"), Some(("a".into(), "b:c".into())));
        assert_eq!(parsed("a:"), Some(("a".into(), String::new())));
        assert_eq!(parsed("a"), None);
        assert_eq!(parsed(":b"), None);
    }
}
