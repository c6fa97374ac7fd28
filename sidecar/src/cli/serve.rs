//! `nats-bridge serve`: AMQP 0-9-1 on JetStream alone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use amqp_compat::backend::jetstream::{JetStreamBackend, JetStreamConfig, User};
use amqp_compat::listener::Listener;
use amqp_compat::session::Limits;
use clap::Args;
use metrics_exporter_prometheus::PrometheusHandle;
use nats_bridge::Bridge;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::lease::Place;
use super::nats::NatsLogin;
use super::tls::TlsArgs;
use super::{ConsumerTimeout, Failure, remedy, signals};
use crate::embedded::{Embedded, Plan};
use crate::http::{self, Gateway, Surface};
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
    /// How to log in there.
    #[command(flatten)]
    pub nats_login: NatsLogin,
    /// The nats-server program for --embedded; else $NATS_SERVER, a `.tools` folder, or PATH.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,
    /// The port on 127.0.0.1 at which the nats-server of --embedded takes NATS clients. Without it: a free one, another one at
    /// each start.
    #[arg(long, value_name = "PORT", requires = "embedded", value_parser = clap::value_parser!(u16).range(1..))]
    pub nats_port: Option<u16>,
    /// How often --embedded flushes to disk: `always` (before each confirm) or an interval such as `10s`; nats-server's
    /// default is 2m.
    #[arg(long, value_name = "INTERVAL", requires = "embedded", value_parser = sync_interval)]
    pub sync: Option<String>,
    /// How many servers of the cluster hold a durable classic queue that is made from now on. A quorum queue is on three
    /// where there are three, whatever this says.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5), conflicts_with = "embedded")]
    pub replicas: u8,
    /// Refuse a quorum queue (540) where the servers cannot hold three replicas. Without it, one is made there with as many as a
    /// classic queue, with a warning in the log, as RabbitMQ does on one node.
    #[arg(long)]
    pub no_quorum_fallback: bool,
    /// Serve the NATS account together with other gateways that say so too: clients of all of them share exchanges, queues
    /// and messages. Without it a second gateway is refused. New; docs/mapping.md says what is promised.
    #[arg(long, conflicts_with = "embedded")]
    pub shared: bool,
    /// Where AMQP clients connect to; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:5672", value_name = "HOST:PORT", value_parser = super::host_port)]
    pub listen: String,
    /// AMQPS.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Where RabbitMQ's HTTP API is served, for `rabbitmqadmin` and other tools; port 0 takes a free one. Not served unless
    /// given; RabbitMQ's own port is 15672.
    #[arg(long, value_name = "HOST:PORT", value_parser = super::host_port)]
    pub management: Option<String>,
    /// Where `/livez`, `/readyz` and `/metrics` (Prometheus) are served, without a login; port 0 takes a free one. Not served
    /// unless given.
    #[arg(long, value_name = "HOST:PORT", value_parser = super::host_port)]
    pub http: Option<String>,
    /// Who may log in; may be given more than once. Without it: guest:guest, on a loopback address only.
    #[arg(long = "user", value_name = "NAME:PASSWORD")]
    pub users: Vec<String>,
    /// More of them, from a file with one NAME:PASSWORD a line, so that no password stands on a command line. Blank lines and
    /// those that begin with `#` are passed over.
    #[arg(long, value_name = "FILE")]
    pub user_file: Option<PathBuf>,
    /// A virtual host; may be given more than once.
    #[arg(long = "vhost", value_name = "NAME", default_value = "/")]
    pub vhosts: Vec<String>,
    /// How long a client may take to settle a delivery before its channel is closed with 406: a number with ms, s, m or h, or
    /// `off`. A queue may say otherwise (x-consumer-timeout, and policies). RabbitMQ's default is 30 minutes too.
    #[arg(long, value_parser = super::consumer_timeout, default_value = "30m", value_name = "TIME")]
    pub consumer_timeout: ConsumerTimeout,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    pid: u32,
}

/// Serves until SIGTERM or SIGINT; then clients' publishes are answered and connections closed.
///
/// # Errors
/// `cannot_run`, naming the flag at fault.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let users = users(&args)?;
    if args.embedded.is_some() {
        args.nats_login.none_because("the nats-server that --embedded starts asks for no login; use it with --nats")?;
    }
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
    let http = bind_http(&args).await?;
    let shutdown = CancellationToken::new();
    signals::cancel(&shutdown)?;
    let embedded = match &args.embedded {
        Some(dir) => {
            let plan = Plan {
                dir: dir.clone(),
                program: args.nats_server.clone(),
                sync: args.sync.clone(),
                port: args.nats_port,
            };
            Some(Embedded::start(plan).await.map_err(Failure::cannot_run)?)
        }
        None => None,
    };
    let nats = match (&embedded, &args.nats) {
        (Some(embedded), _) => embedded.url(),
        (None, Some(nats)) => nats.clone(),
        (None, None) => return Err(Failure::cannot_run("give --embedded DIR or --nats URL")),
    };
    let outcome = match args.nats_login.connect(&nats, "nats-bridge").await {
        Ok(bridge) => {
            let outcome =
                serve(args, Sockets { listener, tls, management, http }, &nats, bridge.clone(), users, shutdown).await;
            // Before its server stops: a connection that is closed is not taken for a lost one.
            let _ = bridge.close(LAST_WORDS).await;
            outcome
        }
        Err(failure) => Err(failure),
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

/// What is listened on.
struct Sockets {
    listener: Listener,
    tls: Option<SocketAddr>,
    management: Option<Management>,
    http: Option<(Surface, SocketAddr, PrometheusHandle)>,
}

async fn serve(
    args: ServeArgs,
    sockets: Sockets,
    nats: &str,
    bridge: Bridge,
    users: Vec<User>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let Sockets { mut listener, tls, management, http } = sockets;
    let listen_failed = |error| remedy::bind("--listen", &args.listen, &error);
    let address = listener.local_addr().map_err(listen_failed)?;
    let max_payload = bridge.client().server_info().max_payload;
    let limits = Limits::default().within(max_payload);
    listener.limit(limits);
    let login = users.first().map_or("guest:guest".to_owned(), |user| format!("{}:PASSWORD", user.name));
    let defaults = JetStreamConfig::default();
    let users = if users.is_empty() { defaults.users } else { users };
    let Some(place) = Place::take(args.shared, &bridge, nats, &shutdown).await? else { return Ok(()) };
    let config = JetStreamConfig {
        users,
        vhosts: args.vhosts,
        replicas: args.replicas.into(),
        quorum_fallback: !args.no_quorum_fallback,
        consumer_timeout: args.consumer_timeout.0,
        ..defaults
    };
    let config = place.settle(config);
    let watched = bridge.clone();
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
    let probed = http.as_ref().map(|(_, address, _)| *address);
    let probing = http.map(|(surface, address, metrics)| {
        info!(%address, "serving /livez, /readyz and /metrics");
        let gateway = Gateway { bridge: watched, metrics, shutdown: shutdown.clone() };
        tokio::spawn(surface.run_gateway(gateway, shutdown.clone()))
    });
    let mut served = tokio::spawn(listener.run(backend, shutdown));
    if let Some(file) = &args.ready_file {
        let management = managed.map(|address| address.to_string());
        let (listen, nats) = (address.to_string(), nats.to_owned());
        let listen_tls = tls.map(|address| address.to_string());
        let http = probed.map(|address| address.to_string());
        let ready = Ready { listen, listen_tls, nats, management, http, pid: std::process::id() };
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
            probing.iter().for_each(JoinHandle::abort);
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

/// Binds the socket of probes and metrics, where one is asked for, and begins to record: before anything is counted.
async fn bind_http(args: &ServeArgs) -> Result<Option<(Surface, SocketAddr, PrometheusHandle)>, Failure> {
    let Some(place) = &args.http else { return Ok(None) };
    let failed = |error| remedy::bind("--http", place, &error);
    let surface = Surface::bind(place).await.map_err(failed)?;
    let address = surface.local_addr().map_err(failed)?;
    Ok(Some((surface, address, http::metrics::install().map_err(Failure::cannot_run)?)))
}

async fn manage(management: Management, shown: Shown, shutdown: CancellationToken) {
    if let Ok(address) = management.local_addr() {
        info!(%address, "serving RabbitMQ's HTTP API");
    }
    if let Err(error) = management.run(shown, shutdown).await {
        tracing::error!(%error, "the HTTP API ended");
    }
}

/// Who may log in: `--user` and `--user-file`.
/// What can be told of the arguments without a server.
///
/// # Errors
/// `cannot_run`, naming the flag at fault.
pub(super) fn check(args: &ServeArgs) -> Result<(), Failure> {
    users(args).map(drop)
}

fn users(args: &ServeArgs) -> Result<Vec<User>, Failure> {
    let given = super::users_given(&args.users, args.user_file.as_deref())?;
    if let Some(file) = &args.user_file
        && given.len() == args.users.len()
    {
        return Err(Failure::cannot_run(format!("--user-file {}: nobody is in it", file.display())));
    }
    given.into_iter().map(|(place, user)| parse_user(&place, &user)).collect()
}

fn parse_user(place: &str, text: &str) -> Result<User, Failure> {
    match text.split_once(':') {
        Some((name, password)) if !name.is_empty() => Ok(User { name: name.to_owned(), password: password.to_owned() }),
        _ => Err(Failure::cannot_run(format!("{place}: NAME:PASSWORD is expected"))),
    }
}

fn sync_interval(text: &str) -> Result<String, String> {
    let is_time = super::duration(text).is_ok_and(|time| !time.is_zero());
    if text != "always" && !is_time {
        return Err("`always`, or a time with ms, s, m or h is expected, such as 10s".to_owned());
    }
    Ok(text.to_owned())
}

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { format!("localhost:{}", address.port()) } else { address.to_string() }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn a_user_is_a_name_and_a_password_that_may_hold_anything() {
        let parsed = |text| parse_user("--user", text).map(|user| (user.name, user.password)).ok();
        assert_eq!(parsed("a:b:c"), Some(("a".into(), "b:c".into())));
        assert_eq!(parsed("a:"), Some(("a".into(), String::new())));
        assert_eq!(parsed("a"), None);
        assert_eq!(parsed(":b"), None);
    }

    #[test]
    fn users_of_a_file_are_read_and_a_bad_line_is_named() {
        let file = tempfile::NamedTempFile::new().expect("created");
        let read = |text: &str| {
            std::fs::write(file.path(), text).expect("written");
            let path = file.path().to_str().expect("a path");
            let cli =
                Cli::parse_from(["nats-bridge", "serve", "--nats", "nats://a", "--user", "a:1", "--user-file", path]);
            let Command::Serve(args) = cli.command else { panic!("serve") };
            users(&args).map(|users| users.into_iter().map(|user| user.name).collect::<Vec<_>>()).map_err(|e| e.text)
        };
        assert_eq!(read("# ours\n\nb:2\r\n c:3:4\n"), Ok(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]));
        assert!(read("b:2\nsecret\n").is_err_and(|text| text.ends_with(", line 2: NAME:PASSWORD is expected")));
        assert!(read("# nobody\n").is_err_and(|text| text.ends_with(": nobody is in it")));
    }

    #[test]
    fn a_sync_interval_is_always_or_a_time() {
        for good in ["always", "10s", "500ms", "2m"] {
            assert_eq!(sync_interval(good).as_deref(), Ok(good));
        }
        for bad in ["", "never", "0s", "10", "10 s"] {
            assert!(sync_interval(bad).is_err_and(|why| why.starts_with("`always`")), "{bad}");
        }
    }
}
