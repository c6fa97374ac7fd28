//! A ledger in Redis.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{ErrorKind as RedisKind, RedisError, Script};
use sha2::{Digest, Sha256};
use ulid::Ulid;

use super::{Known, Ledger, Place};
use crate::error::{Error, ErrorKind, Result};

pub(super) struct Redis {
    connection: ConnectionManager,
    prefix: String,
    keep: Duration,
    lease: Duration,
    done: Script,
    undo: Script,
}

#[derive(Debug)]
pub(super) struct Claim {
    redis: Arc<Redis>,
    key: String,
    token: String,
}

const DONE: &str = "done";

// Only whoever has begun it may end it.
const DONE_SCRIPT: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1";
const UNDO_SCRIPT: &str =
    "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end redis.call('DEL', KEYS[1]) return 1";

/// How long an answer is waited for, and a connection.
const ANSWER: Duration = Duration::from_secs(5);

impl Ledger {
    /// Opens a ledger in Redis: keys `{prefix}:{id}`. The URL is `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    ///
    /// `keep` is how long a message may come again: longer than its stream keeps it. `lease` is how long an entry that was begun and
    /// not done is left to the worker that began it; longer than a handler runs. A connection that breaks is made anew.
    ///
    /// A Redis that forgets lets an effect happen twice: keep it with `appendonly yes`, and know that a failover to a replica may lose
    /// the last writes. One that may throw keys away to save memory is refused.
    ///
    /// # Errors
    /// `Config`: the URL, the prefix or a time is not legal, or `maxmemory` is set with a `maxmemory-policy` other than `noeviction`.
    /// `Denied`: a wrong user or password. `Unreachable`: no answer within 5 s.
    pub async fn redis(url: &str, prefix: impl Into<String>, keep: Duration, lease: Duration) -> Result<Ledger> {
        let prefix = prefix.into();
        let wrong =
            |field: &'static str, why: &str| Error::new(ErrorKind::Config).with("field", field).with("why", why);
        if prefix.is_empty() {
            return Err(wrong("prefix", "it is empty: other keys of this Redis could be meant"));
        }
        for (field, time) in [("keep", keep), ("lease", lease)] {
            if time < Duration::from_millis(1) || time > Duration::from_secs(100 * 365 * 24 * 3600) {
                return Err(wrong(field, "it is 1 ms to 100 years"));
            }
        }
        // The error names no password.
        let client = redis::Client::open(url).map_err(|e| wrong("url", "it is no URL of a Redis").because(e))?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(2)
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER));
        let connected = tokio::time::timeout(ANSWER, client.get_connection_manager_with_config(config)).await;
        let connection = connected
            .map_err(|_| Error::new(ErrorKind::Unreachable).with("why", "no answer from Redis within 5 s"))?
            .map_err(failed)?;
        refuse_eviction(connection.clone()).await?;
        let (done, undo) = (Script::new(DONE_SCRIPT), Script::new(UNDO_SCRIPT));
        Ok(Ledger(Place::Redis(Arc::new(Redis { connection, prefix, keep, lease, done, undo }))))
    }
}

async fn refuse_eviction(mut connection: ConnectionManager) -> Result<()> {
    let said: std::result::Result<String, RedisError> =
        redis::cmd("INFO").arg("memory").query_async(&mut connection).await;
    let said = match said {
        Ok(said) => said,
        Err(error) if error.kind() == RedisKind::Server(redis::ServerErrorKind::NoPerm) => {
            tracing::warn!(%error, "whether this Redis may evict keys of a ledger cannot be asked for");
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    };
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("");
    match (field("maxmemory"), field("maxmemory_policy")) {
        ("0" | "", _) | (_, "noeviction" | "") => Ok(()),
        (_, policy) => {
            let why = "keys of a ledger could be evicted, and their messages handled twice: use noeviction";
            Err(Error::new(ErrorKind::Config).with("field", "maxmemory-policy").with("value", policy).with("why", why))
        }
    }
}

impl Redis {
    pub async fn begin(self: &Arc<Self>, id: &str) -> Result<Known<Claim>> {
        let (key, token) = (self.key(id), Ulid::new().to_string());
        let mut connection = self.connection.clone();
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(&token).arg("NX").arg("PX").arg(millis(self.lease));
        let begun: Option<String> = set.query_async(&mut connection).await.map_err(failed)?;
        if begun.is_some() {
            return Ok(Known::First(Claim { redis: self.clone(), key, token }));
        }
        let value: Option<String> = redis::cmd("GET").arg(&key).query_async(&mut connection).await.map_err(failed)?;
        match value.as_deref() {
            Some(DONE) => Ok(Known::Done),
            // It was sent twice by a connection that broke between: this worker has it.
            Some(value) if value == token => Ok(Known::First(Claim { redis: self.clone(), key, token })),
            // Or it ran out a moment ago.
            _ => Ok(Known::Elsewhere),
        }
    }

    // Redis takes any bytes; a long id costs memory for as long as it is kept.
    fn key(&self, id: &str) -> String {
        match id.len() <= 180 {
            true => format!("{}:i:{id}", self.prefix),
            false => format!("{}:h:{}", self.prefix, URL_SAFE_NO_PAD.encode(Sha256::digest(id))),
        }
    }
}

impl Claim {
    pub async fn done(self) -> Result<()> {
        let mut script = self.redis.done.key(&self.key);
        script.arg(&self.token).arg(DONE).arg(millis(self.redis.keep));
        let ended: i32 = script.invoke_async(&mut self.redis.connection.clone()).await.map_err(failed)?;
        self.unless_lost(ended)
    }

    pub async fn undo(self) -> Result<()> {
        let mut script = self.redis.undo.key(&self.key);
        script.arg(&self.token);
        let ended: i32 = script.invoke_async(&mut self.redis.connection.clone()).await.map_err(failed)?;
        self.unless_lost(ended)
    }

    fn unless_lost(&self, ended: i32) -> Result<()> {
        match ended {
            1 => Ok(()),
            _ => Err(Error::new(ErrorKind::Conflict).with("key", &self.key)),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn failed(error: RedisError) -> Error {
    let kind = match error.kind() {
        _ if matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) => ErrorKind::Denied,
        RedisKind::AuthenticationFailed => ErrorKind::Denied,
        RedisKind::Server(redis::ServerErrorKind::NoPerm) => ErrorKind::Denied,
        RedisKind::InvalidClientConfig => ErrorKind::Config,
        RedisKind::Io | RedisKind::ClusterConnectionNotFound => ErrorKind::Unreachable,
        RedisKind::Server(redis::ServerErrorKind::BusyLoading | redis::ServerErrorKind::TryAgain) => {
            ErrorKind::Unreachable
        }
        _ => ErrorKind::Rejected,
    };
    Error::new(kind).with("why", &error).because(error)
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redis({})", self.prefix)
    }
}
