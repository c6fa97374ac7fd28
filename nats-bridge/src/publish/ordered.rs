//! Publishes that keep their order when the connection is lost.
//!
//! A client that connects again writes first what was handed to it meanwhile, and only then what is sent again because it was lost with
//! the connection before: newer messages would be stored before older ones, and there is no way to take back what the client holds. So
//! these publishes go over a connection of their own that is never made again: with its loss, all that the client holds is dropped. What
//! was not confirmed is its owner's to send again, in its order, over the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{
    Client, Event, HeaderMap, HeaderName, HeaderValue, ReconnectToServer, ServerAddr, Subject, Subscriber,
};
use bytes::Bytes;
use rand::seq::SliceRandom as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::inbox::{Confirms, Prefix};
use crate::bridge::{connect_error, reconnect_pause, with_common};
use crate::config::Config;
use crate::connection::{Connection, Events};
use crate::error::{Error, ErrorKind, Result};

/// A [`ConfirmInbox`](super::ConfirmInbox) on a connection that ends with its first loss, so that nothing newer is ever written before
/// what was lost with it and is sent again. From [`Bridge::ordered_inbox`](crate::Bridge::ordered_inbox); all of a bridge share that
/// connection, and another one takes its place.
///
/// When [`OrderedInbox::available`] says so, the caller takes the other connection with [`OrderedInbox::renew`], sends first over it all
/// that has no confirm, in its order, and then goes on; with message ids, so that what had been stored is not stored again.
#[derive(Debug)]
pub struct OrderedInbox {
    prefix: Prefix,
    /// The connection in use; none before the first one.
    writer: Option<Arc<Writer>>,
    subscribers: mpsc::UnboundedSender<Subscriber>,
    writers: Arc<Writers>,
    /// The connection that is there now: the same as `writer`, or another one.
    current: watch::Receiver<Option<Arc<Writer>>>,
}

impl OrderedInbox {
    pub(crate) async fn open(bridge: &Client, writers: Arc<Writers>) -> Result<(OrderedInbox, Confirms)> {
        if writers.closed.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed));
        }
        let (prefix, current) = (Prefix::new(bridge), writers.current.clone());
        let (subscribers, further) = mpsc::unbounded_channel();
        let confirms = Confirms::new(&prefix, None, Some((further, writers.closed.clone())));
        let mut inbox = OrderedInbox { prefix, writer: None, subscribers, writers, current };
        inbox.renew().await;
        Ok((inbox, confirms))
    }

    /// Waits until there is another connection than the one in use.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn available(&mut self) {
        let used = self.number();
        let another = |now: &Option<Arc<Writer>>| now.as_ref().is_some_and(|writer| writer.number != used);
        if self.current.wait_for(another).await.is_err() {
            // The bridge was closed: there will be none.
            std::future::pending::<()>().await;
        }
    }

    /// Takes the other connection, if there is one: true. What has no confirm will have none, and is to be sent again before anything else.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped before it is ready, the connection before is in use.
    pub async fn renew(&mut self) -> bool {
        let used = self.number();
        let writer = self.current.borrow().as_ref().filter(|writer| writer.number != used).cloned();
        let Some(writer) = writer else { return false };
        // It is over already: there will be another.
        let Ok(subscriber) = self.prefix.subscribe(&writer.client).await else { return false };
        // The other end is gone when nobody wants to hear confirms.
        let _ = self.subscribers.send(subscriber);
        self.writer = Some(writer);
        true
    }

    /// Of the connection in use; they count from 1.
    fn number(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.number)
    }

    /// Hands one message to the connection in use; its confirm will carry `token`. False: that connection is over, and nothing was sent.
    ///
    /// Waits while the connection's command channel (2 048) is full, and no longer than there is that connection. Handed over is not
    /// stored, and not even written: only the confirm says that it is stored.
    ///
    /// # Errors
    /// Nothing was sent, so nothing landed.
    /// - `TooLarge`: headers and payload exceed the server's `max_payload`.
    /// - `InvalidMessage`: the subject is empty or has white space in it.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped before it is ready, nothing is sent.
    pub async fn publish(
        &self,
        token: u64,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<bool> {
        let Some(Writer { client, over, .. }) = self.writer.as_deref() else { return Ok(false) };
        if over.is_cancelled() {
            return Ok(false);
        }
        let published = tokio::select! {
            // Mostly there is room: the end is listened for only where there is none.
            biased;
            published = self.prefix.publish(client, token, subject, headers, payload) => published,
            () = over.cancelled() => return Ok(false),
        };
        match published {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Closed => {
                over.cancel();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the connection in use is over, or there was none when this was made.
    pub fn is_over(&self) -> bool {
        self.writer.as_ref().is_none_or(|writer| writer.over.is_cancelled())
    }

    /// Whether the server takes no message of this size: what [`OrderedInbox::publish`] would answer with `TooLarge`.
    pub fn is_too_large(&self, headers: Option<&HeaderMap>, payload: &[u8]) -> bool {
        let line = |(name, values): (&HeaderName, &Vec<HeaderValue>)| {
            // `name: value` and the end of the line.
            values.iter().map(|value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4).sum::<usize>()
        };
        let headers = headers.map_or(0, |headers| VERSION_AND_END + headers.iter().map(line).sum::<usize>());
        headers + payload.len() > self.writers.bridge.max_payload()
    }
}

/// `NATS/1.0` before the headers and the empty line behind them.
const VERSION_AND_END: usize = 12;

/// The connections for publishes of one bridge, of which one at a time is there.
#[derive(Debug)]
pub(crate) struct Writers {
    current: watch::Receiver<Option<Arc<Writer>>>,
    /// The bridge's own client.
    bridge: Client,
    /// There will be no other connection.
    closed: CancellationToken,
    _keeper: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Writer {
    number: u64,
    client: Client,
    over: CancellationToken,
}

impl Writers {
    /// Makes the first connection, and from then on another one after each loss.
    ///
    /// # Errors
    /// As [`Bridge::connect_with`](crate::Bridge::connect_with).
    pub(crate) async fn open(bridge: &Client, config: &Config, events: &Arc<Events>) -> Result<Writers> {
        let keeper = Keeper { bridge: bridge.clone(), config: config.clone(), events: events.clone() };
        let first = Arc::new(keeper.connect(1).await?);
        let (sender, current) = watch::channel(Some(first.clone()));
        let closed = CancellationToken::new();
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeper.run(first, sender, closed.clone().drop_guard())));
        Ok(Writers { current, bridge: bridge.clone(), closed, _keeper: keeper })
    }
}

struct Keeper {
    bridge: Client,
    config: Config,
    events: Arc<Events>,
}

impl Keeper {
    /// Until the bridge is closed.
    async fn run(self, first: Arc<Writer>, current: watch::Sender<Option<Arc<Writer>>>, _closed: DropGuard) {
        let mut bridge = self.events.watch();
        let mut next = Some(first);
        let up = metrics::gauge!("natsbridge_publish_connection_up");
        while let Some(writer) = next {
            up.set(1.0);
            current.send_replace(Some(writer.clone()));
            tokio::select! {
                () = writer.over.cancelled() => {
                    metrics::counter!("natsbridge_publish_connection_losses_total").increment(1);
                }
                () = closed(&mut bridge) => {
                    // What it was given is written; it fails only when the connection is over.
                    let _ = writer.client.drain().await;
                }
            }
            current.send_replace(None);
            up.set(0.0);
            next = tokio::select! {
                biased;
                () = closed(&mut bridge) => None,
                writer = self.replace(writer.number + 1) => Some(Arc::new(writer)),
            };
        }
    }

    async fn replace(&self, number: u64) -> Writer {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.connect(number).await {
                Ok(writer) => return writer,
                // While the bridge's own connection is lost, that one reports; and it may not have noticed yet.
                Err(error) if attempt > 1 && self.events.watch().borrow().connected => {
                    let text = format!("no connection for publishes: {error}");
                    self.events.report(Event::ClientError(async_nats::ClientError::Other(text)));
                }
                Err(_) => {}
            }
            // Not 0 at first: each time, all servers were tried.
            let pause = reconnect_pause(attempt + 1, self.config.reconnect_pause_max, rand::random());
            tokio::time::sleep(pause).await;
        }
    }

    /// Tries the servers in random order; those that the cluster told of come after those that were configured.
    async fn connect(&self, number: u64) -> Result<Writer> {
        let mut servers = self.config.servers.clone();
        servers.shuffle(&mut rand::rng());
        let mut told = self.bridge.server_info().connect_urls;
        told.shuffle(&mut rand::rng());
        servers.extend(told);
        let mut last = None;
        for server in &servers {
            match self.connect_to(server, number).await {
                Ok(writer) => return Ok(writer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::Unreachable)))
    }

    async fn connect_to(&self, server: &str, number: u64) -> Result<Writer> {
        let config = &self.config;
        let address = |url: &str| url.parse::<ServerAddr>().map_err(|e| Error::setting("servers", &e).because(e));
        let (server_address, nowhere) = (address(server)?, address(NOWHERE)?);
        let over = CancellationToken::new();
        let was_made = Arc::new(AtomicBool::new(false));
        let pool = [server_address.clone(), nowhere.clone()];
        let (lost, events) = (over.clone(), self.events.clone());
        let options = with_common(config, crate::login::options(config)?)
            .name(format!("{} publishes", config.name))
            .ignore_discovered_servers()
            // The first attempt is the connection; every later one goes where nobody is, and the second of those is one too many: then
            // the client ends, and drops what it holds.
            .max_reconnects(1)
            .reconnect_to_server_callback(move |_, _| {
                let again = was_made.swap(true, Ordering::Relaxed);
                let addr = if again { nowhere.clone() } else { server_address.clone() };
                async move { Some(ReconnectToServer { addr, delay: Some(Duration::ZERO) }) }
            })
            .event_callback(move |event| {
                match &event {
                    Event::Disconnected | Event::Closed => lost.cancel(),
                    Event::ServerError(_) => events.report(event),
                    _ => {}
                }
                async {}
            });
        let client = options.connect(&pool[..]).await.map_err(|e| connect_error(server, e))?;
        Ok(Writer { number, client, over })
    }
}

/// Its sender is gone only with the bridge.
async fn closed(bridge: &mut watch::Receiver<Connection>) {
    let _ = bridge.wait_for(|bridge| bridge.closed).await;
}

/// An address at which no server can be.
const NOWHERE: &str = "nats://127.0.0.1:0";
