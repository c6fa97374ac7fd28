//! What publishes committed rows and deletes those that JetStream has.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use futures::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, Connection, Row, Socket};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{RelayConfig, failed, message, rows};
use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Landed, Result};
use crate::outbox::record::Record;
use crate::outbox::send::Sender;
use crate::outbox::shared::now_ms;
use crate::outbox::verdict::{Verdict, verdict};

/// How often the depth of the table is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Of how many rows it is remembered that they may have been sent, or were confirmed and could not be deleted.
const REMEMBERED: usize = 10_000;

/// Publishes committed rows and deletes those that JetStream has. Dropped, it ends after the batch that it is at.
#[derive(Debug)]
pub struct Relay {
    stop: DropGuard,
    task: JoinHandle<()>,
    status: watch::Receiver<RelayStatus>,
}

/// A relay and its table, as it was at most 5 s ago.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayStatus {
    /// Whether the database answers.
    pub connected: bool,
    /// Rows that this relay has published and deleted.
    pub sent: u64,
    /// Rows that wait; 10 000 for more.
    pub waiting: u64,
    /// Dead rows; 10 000 for more.
    pub dead: u64,
    /// How long ago the oldest that waits was inserted.
    pub oldest: Option<Duration>,
}

struct Runner<T> {
    bridge: Bridge,
    config: RelayConfig,
    database: tokio_postgres::Config,
    tls: T,
    sender: Arc<Sender>,
    started_ms: u64,
    status: watch::Sender<RelayStatus>,
    stop: CancellationToken,
    notified: Arc<Notify>,
    // When rows were sent first whose outcome is not known, in milliseconds since 1970.
    unknown: HashMap<String, u64>,
    // Rows that were confirmed, and whose deletion may have failed.
    confirmed: HashSet<String>,
}

struct Taken {
    record: Record,
    attempts: u32,
}

// What became of the rows of one key: those that are stored, and the one at which it stopped.
struct Outcome {
    sent: Vec<String>,
    stopped: Option<(Taken, u64, Error)>,
}

impl Relay {
    /// Connects to the database and begins. Lost connections, of either side, are made again for ever.
    ///
    /// `tls` is how the database is spoken to: [`NoTls`](super::NoTls), or any crate's connector for tokio-postgres.
    ///
    /// # Errors
    /// - `Config`: a setting is out of range, or the URL is wrong.
    /// - `Unreachable`, `Rejected`: the database does not answer, or refuses the login.
    /// - `NotFound`: there is no table `nats_outbox`.
    /// - As [`Bridge::publisher`].
    pub async fn start<T>(bridge: &Bridge, config: RelayConfig, tls: T) -> Result<Relay>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send + 'static,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let database = config.check()?;
        let publish = crate::PublishConfig { breaker: None, ..bridge.config().publish.clone() };
        let publisher = bridge.publisher(publish).await?;
        let sender = Arc::new(Sender::new(bridge.clone(), publisher, "postgres".into()));
        let (status, receiver) = watch::channel(RelayStatus::default());
        let stop = CancellationToken::new();
        let runner = Runner {
            bridge: bridge.clone(),
            config,
            database,
            tls,
            sender,
            started_ms: now_ms(),
            status,
            stop: stop.clone(),
            notified: Arc::new(Notify::new()),
            unknown: HashMap::new(),
            confirmed: HashSet::new(),
        };
        let client = runner.connect().await?;
        runner.look(&client).await.map_err(|error| {
            match error.context().iter().any(|(_, value)| value == "42P01") {
                true => {
                    let why = "there is no such table: run the SQL of outbox::postgres::TABLE";
                    Error::new(ErrorKind::NotFound).with("table", "nats_outbox").with("why", why)
                }
                false => error,
            }
        })?;
        let task = tokio::spawn(runner.run(client));
        Ok(Relay { stop: stop.drop_guard(), task, status: receiver })
    }

    /// The relay and its table; the receiver awaits changes.
    pub fn status(&self) -> watch::Receiver<RelayStatus> {
        self.status.clone()
    }

    /// Ends after the batch that it is at, or when `budget` is over; rows that are not done stay.
    ///
    /// # Errors
    /// `Timeout`: the batch was not done within `budget`. What was published of it is published again by the next relay, with the same ids.
    pub async fn stop(self, budget: Duration) -> Result<()> {
        drop(self.stop);
        let mut task = self.task;
        if tokio::time::timeout(budget, &mut task).await.is_err() {
            task.abort();
            return Err(Error::new(ErrorKind::Timeout).with("call", "stop"));
        }
        Ok(())
    }
}

impl<T> Runner<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    async fn run(mut self, mut client: Client) {
        let mut failures = 0u32;
        while !self.stop.is_cancelled() {
            match self.serve(&mut client).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "the relay of the outbox lost its database; it goes on when that is back");
                    metrics::counter!("natsbridge_relay_errors_total", "reason" => error.kind().name()).increment(1);
                    self.status.send_modify(|status| status.connected = false);
                }
            }
            loop {
                let pause = self.config.first_pause.saturating_mul(1 << failures.min(16)).min(self.config.max_pause);
                failures = failures.saturating_add(1);
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(pause.mul_f64(rand::random())) => {}
                }
                match self.connect().await {
                    Ok(made) => {
                        client = made;
                        failures = 0;
                        break;
                    }
                    Err(error) => tracing::debug!(%error, "the database does not answer"),
                }
            }
        }
    }

    // Until it is stopped, or the database is lost.
    async fn serve(&mut self, client: &mut Client) -> Result<()> {
        let mut looked = tokio::time::Instant::now();
        self.look(client).await?;
        loop {
            let mut connection = self.bridge.connection();
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                // While NATS is away no transaction is kept open for it.
                _ = connection.wait_for(|connection| connection.connected || connection.closed) => {}
            }
            if connection.borrow().closed {
                tracing::warn!("the connection to NATS was closed; rows stay in the outbox");
                return Ok(());
            }
            let took = self.round(client).await?;
            if looked.elapsed() >= LOOK {
                looked = tokio::time::Instant::now();
                self.look(client).await?;
            }
            if took == 0 {
                tokio::select! {
                    () = self.stop.cancelled() => return Ok(()),
                    () = self.notified.notified() => {}
                    () = tokio::time::sleep(self.config.poll) => {}
                }
            } else if self.stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    async fn connect(&self) -> Result<Client> {
        let (client, connection) = self.database.connect(self.tls.clone()).await.map_err(failed)?;
        tokio::spawn(attend(connection, self.notified.clone()));
        if self.config.listen {
            client.batch_execute("LISTEN nats_outbox").await.map_err(failed)?;
        }
        Ok(client)
    }

    // One batch; gives how many rows it took.
    async fn round(&mut self, client: &mut Client) -> Result<usize> {
        let batch = i64::from(self.config.batch);
        let transaction = client.transaction().await.map_err(failed)?;
        let heads = transaction.query(rows::HEADS, &[&batch]).await.map_err(failed)?;
        let keys: Vec<String> = heads.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)?;
        if keys.is_empty() {
            transaction.rollback().await.map_err(failed)?;
            return Ok(0);
        }
        let locked = transaction.query(rows::ROWS, &[&keys, &batch]).await.map_err(failed)?;
        let locked: Vec<(i64, String, Taken)> = locked.iter().map(read).collect::<Result<_, _>>().map_err(failed)?;
        let last = locked.last().map_or(0, |(seq, _, _)| *seq);
        let seen = transaction.query(rows::SEEN, &[&keys, &last]).await.map_err(failed)?;
        let seen = seen.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<Vec<_>, _>>();
        let keys = rows::in_order(locked, seen.map_err(failed)?);
        let outcomes: Vec<Outcome> = {
            let (runner, width) = (&*self, keys.len().max(1));
            let publishing = keys.into_iter().map(|rows| runner.publish(rows));
            futures::stream::iter(publishing).buffer_unordered(width).collect().await
        };
        let mut took = 0;
        let mut sent = Vec::new();
        for outcome in outcomes {
            took += outcome.sent.len() + usize::from(outcome.stopped.is_some());
            sent.extend(outcome.sent);
            if let Some((taken, sent_ms, error)) = outcome.stopped {
                let (sql, pause, id) = self.judge(taken, sent_ms, &error);
                let (why, seconds) = (error.to_string(), pause.as_secs_f64());
                let limit = i32::try_from(self.config.max_refusals).unwrap_or(i32::MAX);
                let updated = match sql {
                    rows::REFUSED => transaction.execute(sql, &[&id, &why, &seconds, &limit]).await,
                    _ => transaction.execute(sql, &[&id, &why, &seconds]).await,
                };
                updated.map_err(failed)?;
            }
        }
        // Should the commit fail, they are deleted next time, and not published again.
        if self.confirmed.len() + sent.len() > REMEMBERED {
            self.confirmed.clear();
        }
        self.confirmed.extend(sent.iter().cloned());
        transaction.execute(rows::SENT, &[&sent]).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        for id in &sent {
            self.confirmed.remove(id);
            self.unknown.remove(id);
        }
        self.status.send_modify(|status| status.sent += sent.len() as u64);
        Ok(took)
    }

    // Of one key, one after the other, up to the first that is not stored.
    async fn publish(&self, rows: Vec<Taken>) -> Outcome {
        let mut sent = Vec::with_capacity(rows.len());
        for taken in rows {
            let id = taken.record.id.clone();
            if self.confirmed.contains(&id) {
                sent.push(id);
                continue;
            }
            let before = self.unknown.get(&id).copied();
            let earlier = (taken.record.put_ms < self.started_ms).then_some(taken.record.put_ms);
            let now = now_ms();
            match self.sender.send(&taken.record, before.or(earlier)).await {
                Ok(result) => {
                    metrics::counter!("natsbridge_relay_sent_total", "result" => result).increment(1);
                    sent.push(id);
                }
                Err(error) => return Outcome { sent, stopped: Some((taken, now, error)) },
            }
        }
        Outcome { sent, stopped: None }
    }

    fn judge(&mut self, taken: Taken, sent_ms: u64, error: &Error) -> (&'static str, Duration, String) {
        let Taken { record, attempts } = taken;
        if error.landed() == Landed::Unknown {
            if self.unknown.len() >= REMEMBERED {
                self.unknown.clear();
            }
            self.unknown.entry(record.id.clone()).or_insert(sent_ms);
        }
        let grown = self.config.first_pause.saturating_mul(1 << attempts.min(16)).min(self.config.max_pause);
        let reason = error.kind().name();
        if verdict(error) == Verdict::Later {
            tracing::warn!(%error, msg_id = record.id, "a row of the outbox waits");
            metrics::counter!("natsbridge_relay_retries_total", "reason" => reason).increment(1);
            return (rows::LATER, grown, record.id);
        }
        let last = attempts + 1 >= self.config.max_refusals;
        match last {
            true => {
                tracing::error!(%error, msg_id = record.id, "a row of the outbox is dead; it is kept, and listed");
                metrics::counter!("natsbridge_relay_dead_total", "reason" => reason).increment(1);
            }
            false => {
                tracing::warn!(%error, msg_id = record.id, attempts = attempts + 1, "a row of the outbox was refused");
                metrics::counter!("natsbridge_relay_refused_total", "reason" => reason).increment(1);
            }
        }
        (rows::REFUSED, grown, record.id)
    }

    async fn look(&self, client: &Client) -> Result<()> {
        let row = client.query_one(rows::DEPTH, &[]).await.map_err(failed)?;
        let read = || -> Result<_, tokio_postgres::Error> {
            let (waiting, dead): (i64, i64) = (row.try_get("waiting")?, row.try_get("dead")?);
            let (oldest, now): (Option<SystemTime>, SystemTime) = (row.try_get("oldest")?, row.try_get("now")?);
            Ok((
                waiting.unsigned_abs(),
                dead.unsigned_abs(),
                oldest.map(|at| now.duration_since(at).unwrap_or_default()),
            ))
        };
        let (waiting, dead, oldest) = read().map_err(failed)?;
        metrics::gauge!("natsbridge_relay_waiting").set(waiting as f64);
        metrics::gauge!("natsbridge_relay_dead").set(dead as f64);
        metrics::gauge!("natsbridge_relay_oldest_seconds").set(oldest.unwrap_or_default().as_secs_f64());
        self.status.send_modify(|status| {
            *status = RelayStatus { connected: true, waiting, dead, oldest, ..*status };
        });
        Ok(())
    }
}

// Drives the connection, and passes on that something was inserted.
async fn attend<S, U>(mut connection: Connection<S, U>, notified: Arc<Notify>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    U: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notification(_))) => notified.notify_one(),
            Some(Ok(AsyncMessage::Notice(notice))) => tracing::debug!(%notice, "the database remarks"),
            Some(Ok(_)) => {}
            // Whoever asks it something next is told so.
            Some(Err(_)) | None => return,
        }
    }
}

fn read(row: &Row) -> Result<(i64, String, Taken), tokio_postgres::Error> {
    let created: SystemTime = row.try_get("created_at")?;
    let put_ms = created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let record =
        Record { put_ms: u64::try_from(put_ms).unwrap_or(u64::MAX), id: row.try_get("id")?, message: message(row)? };
    let attempts: i32 = row.try_get("attempts")?;
    Ok((row.try_get("seq")?, row.try_get("key")?, Taken { record, attempts: u32::try_from(attempts).unwrap_or(0) }))
}
