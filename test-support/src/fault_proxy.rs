//! A TCP proxy that misbehaves on demand, from a seed: delays, splits, cuts, resets, half-open and refused connections.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::random::Random;

/// Stands between a client and a server on 127.0.0.1. Its port stays the same until it is dropped.
///
/// It does nothing unusual until [`FaultProxy::set`] or one of the verbs says so. A direction in which bytes were swallowed
/// stays dead until its connection ends, also when the weather is calm again: TCP never goes on behind a gap.
pub struct FaultProxy {
    port: u16,
    orders: watch::Sender<Orders>,
    counts: Arc<Counts>,
    accept: JoinHandle<()>,
}

/// How bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// As they come.
    Calm,
    /// Each piece is held back for a random time up to this one.
    Slow(Duration),
    /// In writes of at most this many bytes, with a random length each.
    Split(usize),
    /// What the client sends reaches the server; what the server says is swallowed. Both connections stay open.
    DeafClient,
    /// What the client sends is swallowed; what the server says arrives. Both connections stay open.
    MuteClient,
    /// Nothing passes in either direction, and the connections stay open.
    HalfOpen,
}

#[derive(Debug, Clone, Copy)]
struct Orders {
    weather: Weather,
    open: bool,
    // Rises with each order to end all connections; how they end.
    endings: u64,
    with_reset: bool,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    swallowed: AtomicU64,
}

impl FaultProxy {
    /// Listens on a free port and passes on to `target` on 127.0.0.1. `seed` decides every random choice.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start(target: u16, seed: u64) -> FaultProxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("a bound listener").port();
        let orders = watch::Sender::new(Orders { weather: Weather::Calm, open: true, endings: 0, with_reset: false });
        let counts = Arc::new(Counts::default());
        let accept = tokio::spawn(accept(listener, target, seed, orders.subscribe(), counts.clone()));
        FaultProxy { port, orders, counts, accept }
    }

    /// Where clients connect.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Sets how bytes pass from now on, on connections that are there and on new ones.
    pub fn set(&self, weather: Weather) {
        self.orders.send_modify(|orders| orders.weather = weather);
    }

    /// Ends all connections in an orderly way (FIN); new ones are let in.
    pub fn cut(&self) {
        self.orders.send_modify(|orders| (orders.endings, orders.with_reset) = (orders.endings + 1, false));
    }

    /// Ends all connections with a reset (RST): what is on its way is lost on both sides.
    pub fn reset(&self) {
        self.orders.send_modify(|orders| (orders.endings, orders.with_reset) = (orders.endings + 1, true));
    }

    /// Resets all connections and lets none in: the network is gone.
    pub fn shut(&self) {
        self.orders.send_modify(|orders| {
            (orders.open, orders.endings, orders.with_reset) = (false, orders.endings + 1, true);
        });
    }

    /// Lets connections in again.
    pub fn open(&self) {
        self.orders.send_modify(|orders| orders.open = true);
    }

    /// How many connections reached the server through it.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// How many bytes were swallowed.
    pub fn swallowed(&self) -> u64 {
        self.counts.swallowed.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accept.abort();
        self.shut();
    }
}

async fn accept(listener: TcpListener, target: u16, seed: u64, orders: watch::Receiver<Orders>, counts: Arc<Counts>) {
    let mut seeds = Random::new(seed);
    while let Ok((client, _)) = listener.accept().await {
        let (up, down) = (seeds.draw(), seeds.draw());
        if !orders.borrow().open {
            end(client, true);
            continue;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
            end(client, true);
            continue;
        };
        counts.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(pass(client, server, (up, down), orders.clone(), counts.clone()));
    }
}

async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    seeds: (u64, u64),
    mut orders: watch::Receiver<Orders>,
    counts: Arc<Counts>,
) {
    let before = orders.borrow_and_update().endings;
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let told = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let swallow_up = |w| matches!(w, Weather::MuteClient | Weather::HalfOpen);
        let swallow_down = |w| matches!(w, Weather::DeafClient | Weather::HalfOpen);
        let (up_orders, down_orders) = (orders.clone(), orders.clone());
        tokio::select! {
            told = orders.wait_for(|orders| orders.endings > before) => told.is_ok(),
            // One side ended by itself: so does the other.
            _ = pump(client_read, server_write, Random::new(seeds.0), up_orders, swallow_up, &counts) => false,
            _ = pump(server_read, client_write, Random::new(seeds.1), down_orders, swallow_down, &counts) => false,
        }
    };
    let with_reset = told && orders.borrow().with_reset;
    end(client, with_reset);
    end(server, with_reset);
}

fn end(stream: TcpStream, with_reset: bool) {
    if with_reset {
        let _ = stream.set_zero_linger();
    }
    drop(stream);
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut random: Random,
    orders: watch::Receiver<Orders>,
    swallow: impl Fn(Weather) -> bool,
    counts: &Counts,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut hole = false;
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..n];
        let weather = orders.borrow().weather;
        match weather {
            weather if hole || swallow(weather) => {
                hole = true;
                counts.swallowed.fetch_add(n as u64, Ordering::Relaxed);
                continue;
            }
            Weather::Slow(longest) => {
                let micros = random.below(longest.as_micros() as u64 + 1);
                tokio::time::sleep(Duration::from_micros(micros)).await;
            }
            Weather::Split(most) => {
                while !rest.is_empty() {
                    let n = (1 + random.below(most.max(1) as u64) as usize).min(rest.len());
                    to.write_all(&rest[..n]).await?;
                    rest = &rest[n..];
                    // Lets the other side read this piece alone.
                    tokio::task::yield_now().await;
                }
            }
            _ => {}
        }
        to.write_all(rest).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A server that says back what it hears.
    async fn echo() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        port
    }

    async fn said_back(socket: &mut TcpStream, text: &[u8]) -> Option<Vec<u8>> {
        socket.write_all(text).await.ok()?;
        let mut answer = vec![0; text.len()];
        let read = tokio::time::timeout(Duration::from_millis(300), socket.read_exact(&mut answer)).await;
        read.ok()?.ok()?;
        Some(answer)
    }

    #[tokio::test]
    async fn it_passes_on_in_pieces_swallows_resets_and_refuses() {
        let proxy = FaultProxy::start(echo().await, 1).await;
        let connect = || TcpStream::connect(("127.0.0.1", proxy.port()));
        let mut socket = connect().await.unwrap();
        assert_eq!(said_back(&mut socket, b"calm").await.as_deref(), Some(&b"calm"[..]));
        proxy.set(Weather::Split(3));
        assert_eq!(said_back(&mut socket, b"in small pieces").await.as_deref(), Some(&b"in small pieces"[..]));
        proxy.set(Weather::HalfOpen);
        assert_eq!(said_back(&mut socket, b"lost").await, None);
        assert!(proxy.swallowed() >= 4);
        proxy.set(Weather::Calm);
        assert_eq!(said_back(&mut socket, b"again").await, None, "a hole does not heal");
        let mut socket = connect().await.unwrap();
        assert_eq!(said_back(&mut socket, b"again").await.as_deref(), Some(&b"again"[..]));
        proxy.reset();
        let error = socket.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        proxy.shut();
        let mut refused = connect().await.unwrap();
        assert!(!matches!(refused.read(&mut [0; 1]).await, Ok(1..)));
        proxy.open();
        let mut socket = connect().await.unwrap();
        assert_eq!(said_back(&mut socket, b"back").await.as_deref(), Some(&b"back"[..]));
        proxy.cut();
        assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(proxy.connections(), 3);
    }
}
