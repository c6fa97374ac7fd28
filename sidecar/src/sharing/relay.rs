//! Passes clients' bytes on to the sidecar that leads, and back: as they are, TLS untouched.
//!
//! Bounds: 10 000 clients; 16 KiB in each direction of each, then the sockets' own; a client that finds no leader waits for 30 s at
//! most, and 1 024 of them. What is beyond a bound is closed and counted. The end of a stream is passed on in its
//! direction, a failure ends both. When another sidecar leads, the connections to the former one are closed: it may stand still.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use amqp_compat::backend::jetstream::lease::Holder;
use amqp_compat::listener::Listener;
use metrics::{counter, gauge};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Clients at once.
const CLIENTS: usize = 10_000;
/// Clients that wait for a leader at once, and for how long.
const PARKED: usize = 1_024;
const PARK: Duration = Duration::from_secs(30);
/// Bytes that are under way in each direction.
const BUFFER: usize = 16 * 1024;
/// How long an attempt to connect may take, and the pause before the next one.
const CONNECT: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(250);

/// The sidecar that leads, as this one reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Its tenure.
    id: String,
    /// For people.
    pub name: String,
    amqp: String,
    amqps: Option<String>,
    /// Where its status and control are.
    pub http: String,
    /// Why it cannot be reached from here.
    pub unreachable: Option<String>,
}

impl Leader {
    /// The holder of the lease, seen from `here`.
    pub(super) fn of(holder: &Holder, here: &Holder) -> Self {
        let reached = holder.sidecar.clone().unwrap_or_default();
        let elsewhere = holder.host != here.host && is_loopback(&reached.amqp);
        let own = here.sidecar.as_deref().cloned().unwrap_or_default();
        let own_lock = own.lock;
        // One that was started again in its place before its lease had run out: a client that is passed on there would come back here, for ever.
        let is_own_address = holder.id != here.id && reached.amqp == own.amqp;
        let unreachable = if elsewhere {
            Some(format!("{} is an address of its own machine: start it with another --listen", reached.amqp))
        } else if is_own_address {
            Some(format!(
                "{} is where this one is reached: who led from there is gone, unless two sidecars have the same address",
                reached.amqp
            ))
        } else if reached.lock != own_lock {
            Some(format!("its --rabbit names {}, and ours {own_lock}: both have to name the same", reached.lock))
        } else {
            None
        };
        let (id, name) = (holder.id.clone(), holder.to_string());
        Self { id, name, amqp: reached.amqp, amqps: reached.amqps, http: reached.http, unreachable }
    }

    /// This sidecar itself.
    pub(super) fn own(here: &Holder, amqp: SocketAddr, amqps: Option<SocketAddr>) -> Self {
        let http = here.sidecar.as_ref().map(|reached| reached.http.clone()).unwrap_or_default();
        let (amqp, amqps) = (reachable(amqp), amqps.map(reachable));
        Self { id: here.id.clone(), name: here.to_string(), amqp, amqps, http, unreachable: None }
    }

    fn address(&self, is_tls: bool) -> Option<&str> {
        match self.unreachable {
            Some(_) => None,
            None if is_tls => self.amqps.as_deref(),
            None => Some(&self.amqp),
        }
    }

    /// Whether it takes a connection now.
    pub async fn answers(&self) -> bool {
        match self.address(false) {
            Some(address) => matches!(timeout(CONNECT, TcpStream::connect(address)).await, Ok(Ok(_))),
            None => false,
        }
    }
}

/// An address that this machine reaches itself by.
fn reachable(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port()).to_string()
}

fn is_loopback(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
}

/// What passes clients on. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Relay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    leader: watch::Sender<Option<Leader>>,
    clients: Arc<Semaphore>,
    parked: Semaphore,
    open: AtomicU64,
    closed: CancellationToken,
}

/// Counts a client for as long as it is there.
struct Counted(Arc<Inner>);

impl Drop for Counted {
    fn drop(&mut self) {
        let left = self.0.open.fetch_sub(1, Ordering::Relaxed).saturating_sub(1);
        gauge!("natsbridge_passed_on_connections").set(left as f64);
    }
}

impl Relay {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            leader: watch::Sender::new(None),
            clients: Arc::new(Semaphore::new(CLIENTS)),
            parked: Semaphore::new(PARKED),
            open: AtomicU64::new(0),
            closed: CancellationToken::new(),
        }))
    }

    /// Passes clients on to this one from now on, and closes those of another.
    pub(super) fn follow(&self, leader: Leader) {
        self.0.leader.send_if_modified(|known| {
            let is_new = known.as_ref() != Some(&leader);
            if is_new {
                *known = Some(leader);
            }
            is_new
        });
    }

    /// Whom it passes clients on to.
    pub(super) fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.0.leader.subscribe()
    }

    /// Clients that it has.
    pub(super) fn clients(&self) -> u64 {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Closes the connections that it has.
    pub(super) fn close(&self) {
        self.0.closed.cancel();
    }

    /// Takes clients until it is dropped; those that it has stay.
    pub(super) async fn run(&self, listener: &Listener) {
        loop {
            let (client, peer, is_tls) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept an AMQP connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&self.0.clients).try_acquire_owned() else {
                refused(peer, "full", "too many AMQP connections, one is closed");
                continue;
            };
            let open = self.0.open.fetch_add(1, Ordering::Relaxed) + 1;
            gauge!("natsbridge_passed_on_connections").set(open as f64);
            let counted = Counted(Arc::clone(&self.0));
            tokio::spawn(async move {
                tokio::select! {
                    () = carry(&counted.0, client, peer, is_tls) => {}
                    () = counted.0.closed.cancelled() => {}
                }
                drop((place, counted));
            });
        }
    }
}

fn refused(peer: SocketAddr, reason: &'static str, text: &str) {
    counter!("natsbridge_passed_on_refused_total", "reason" => reason).increment(1);
    warn!(%peer, reason, "{text}");
}

/// Passes one client on to its end.
async fn carry(relay: &Inner, mut client: TcpStream, peer: SocketAddr, is_tls: bool) {
    let mut leader = relay.leader.subscribe();
    let Some((mut upstream, id)) = connect(relay, &mut leader, peer, is_tls).await else { return };
    for stream in [&client, &upstream] {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "cannot switch Nagle's algorithm off");
        }
    }
    let from = upstream.local_addr().map(|address| address.to_string()).unwrap_or_default();
    info!(%peer, from, "an AMQP connection is passed on to the sidecar that leads, which sees it come from there");
    let another = leader.wait_for(|leader| leader.as_ref().is_some_and(|leader| leader.id != id));
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER) => match copied {
            Ok((up, down)) => debug!(%peer, up, down, "an AMQP connection that was passed on has ended"),
            Err(error) => debug!(%peer, %error, "an AMQP connection that was passed on has failed"),
        },
        _ = another => info!(%peer, "another sidecar leads: an AMQP connection is closed, to come again"),
    }
}

/// Connects to whoever leads; `None` when there was nobody for too long.
async fn connect(
    relay: &Inner,
    leader: &mut watch::Receiver<Option<Leader>>,
    peer: SocketAddr,
    is_tls: bool,
) -> Option<(TcpStream, String)> {
    let mut parked = None;
    let deadline = Instant::now() + PARK;
    loop {
        let now = leader.borrow_and_update().clone();
        if let Some(now) = now
            && let Some(address) = now.address(is_tls)
            && let Ok(Ok(stream)) = timeout(CONNECT, TcpStream::connect(address)).await
        {
            return Some((stream, now.id));
        }
        if parked.is_none() {
            match relay.parked.try_acquire() {
                Ok(place) => parked = Some(place),
                Err(_) => {
                    refused(peer, "full", "no sidecar leads, and too many AMQP connections wait: one is closed");
                    return None;
                }
            }
            debug!(%peer, "an AMQP connection waits for a sidecar that leads");
        }
        tokio::select! {
            Ok(()) = leader.changed() => {}
            () = sleep(AGAIN) => {}
            () = sleep_until(deadline) => {
                refused(peer, "no_leader", "no sidecar has led for too long: an AMQP connection is closed");
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use amqp_compat::backend::jetstream::lease::Reached;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn leader(id: &str, amqp: SocketAddr) -> Leader {
        let reached = Reached { amqp: amqp.to_string(), ..Reached::default() };
        let holder = Holder { id: id.into(), sidecar: Some(reached.into()), ..Holder::default() };
        Leader::of(&holder, &Holder { sidecar: Some(Box::default()), ..Holder::default() })
    }

    async fn relay() -> (Relay, SocketAddr) {
        let (relay, listener) = (Relay::new(), Listener::bind("127.0.0.1:0").await.expect("bound"));
        let address = listener.local_addr().expect("an address");
        let running = relay.clone();
        tokio::spawn(async move { running.run(&listener).await });
        (relay, address)
    }

    #[tokio::test]
    async fn a_client_waits_for_a_leader_and_both_halves_end_each_for_itself() {
        let (relay, address) = relay().await;
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(b"early").await.expect("written");
        relay.follow(leader("1", upstream.local_addr().expect("an address")));
        let (mut server, _) = upstream.accept().await.expect("accepted");
        client.shutdown().await.expect("its half is closed");
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.expect("read to the end");
        assert_eq!(heard, "early");
        server.write_all(b"an answer all the same").await.expect("written");
        drop(server);
        heard.clear();
        client.read_to_string(&mut heard).await.expect("read to the end");
        assert_eq!(heard, "an answer all the same");
    }

    #[tokio::test]
    async fn when_another_one_leads_the_connections_to_the_former_one_are_closed() {
        let (relay, address) = relay().await;
        let (first, second) = (TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await);
        let (first, second) = (first.expect("bound"), second.expect("bound"));
        relay.follow(leader("1", first.local_addr().expect("an address")));
        let mut client = TcpStream::connect(address).await.expect("connected");
        let (_stands_still, _) = first.accept().await.expect("accepted");
        relay.follow(leader("2", second.local_addr().expect("an address")));
        assert!(matches!(client.read(&mut [0; 8]).await, Ok(0) | Err(_)), "it was closed");
        let _again = TcpStream::connect(address).await.expect("connected");
        second.accept().await.expect("the next one is passed on to the new leader");
    }

    #[tokio::test]
    async fn a_client_is_not_passed_on_to_where_it_came_from() {
        let (relay, address) = relay().await;
        let at = |id: &str| {
            let reached = Reached { amqp: address.to_string(), ..Reached::default() };
            Holder { id: id.into(), sidecar: Some(reached.into()), ..Holder::default() }
        };
        // Killed, and started again by its supervisor: who holds the lease has the address of this one.
        let gone = Leader::of(&at("before"), &at("now"));
        assert!(!gone.answers().await);
        relay.follow(gone);
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(b"AMQP").await.expect("written");
        let read = timeout(Duration::from_millis(500), client.read(&mut [0; 8])).await;
        assert!(read.is_err() && relay.clients() == 1, "it waits, alone: {read:?}, {}", relay.clients());
        let another = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        relay.follow(leader("2", another.local_addr().expect("an address")));
        another.accept().await.expect("it is passed on to who leads next");
    }

    #[test]
    fn a_leader_that_only_its_own_machine_reaches_is_named_as_such() {
        let reached = |lock: &str| {
            Some(Box::new(Reached { amqp: "127.0.0.1:5673".into(), lock: lock.into(), ..Reached::default() }))
        };
        let holder = Holder { host: "a".into(), sidecar: reached("vhost /"), ..Holder::default() };
        let here = |host: &str, lock| Holder { host: host.into(), sidecar: reached(lock), ..Holder::default() };
        assert_eq!(Leader::of(&holder, &here("a", "vhost /")).unreachable, None);
        let why = |leader: Leader| leader.unreachable.expect("unreachable");
        assert!(why(Leader::of(&holder, &here("b", "vhost /"))).contains("--listen"));
        assert!(why(Leader::of(&holder, &here("a", "vhost v"))).contains("vhost v"));
    }
}
