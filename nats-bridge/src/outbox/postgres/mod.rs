//! A transactional outbox: messages that are published if, and only if, a transaction of PostgreSQL or CockroachDB is committed.
//!
//! A row in the table `nats_outbox` ([`TABLE`] makes it) is inserted in the transaction whose effect it tells of, by [`put`] or by any
//! language's `INSERT`. A [`Relay`] publishes committed rows with their `id` as `Nats-Msg-Id` and deletes them once JetStream has
//! confirmed them. What was rolled back was never there.
//!
//! - *At least once, and once within the window*: a relay that is killed between confirm and delete leaves the row to the next one, whose
//!   publish the stream recognises by its id within the duplicate window. Rows from before a relay's own start that are older than that
//!   window are looked for in the stream first, as by the [outbox on disk](super).
//! - *Order*: of one key, rows are published by `seq`, each after the confirm of the one before; several keys go at once. Transactions
//!   that insert for one key at the same time have no order between them: `seq` is drawn at the insert, not at the commit. Where that
//!   matters, lock what the key stands for, as `SELECT ... FOR UPDATE` of the order does.
//! - *Several relays* share the work: each takes the oldest row of a key with `FOR UPDATE SKIP LOCKED`, and by that the key; of the rows
//!   behind it only those up to the first that it could not lock. So no two publish rows of one key at once, and no row overtakes
//!   an older one that is committed. A relay that dies lets go of its rows when the database notices.
//! - *What passes by itself* (no connection, no leader, a full stream) waits, and its key with it. *What is refused* is tried
//!   [`RelayConfig::max_refusals`] times and is then a **dead row**: kept, counted, listed by [`dead`], and in nobody's way; [`revive`] and
//!   [`discard`] end that.
//! - *Bounds*: a relay holds [`RelayConfig::batch`] rows. The table is bounded by whoever owns the database; its depth and age are metrics.
//!
//! A transaction is open while a batch is published. Set `idle_in_transaction_session_timeout` above the deadline of
//! [`PublishConfig`](crate::PublishConfig) and below the streams' duplicate window, such as 90 s: without it, a relay whose connection to the
//! database is half open keeps its rows until TCP notices, which may be hours, and a relay that takes over a row after the window may store
//! it twice. On CockroachDB, which has no `LISTEN`, leave [`RelayConfig::listen`] off; nothing but SQL that it documents is used, and it was not
//! tested there.
//!
//! ```no_run
//! # async fn example(bridge: nats_bridge::Bridge, mut client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use nats_bridge::Message;
//! use nats_bridge::outbox::postgres::{self, NoTls, Relay, RelayConfig};
//!
//! client.batch_execute(postgres::TABLE).await?;
//! let relay = Relay::start(&bridge, RelayConfig::new("postgresql://app@localhost/app"), NoTls).await?;
//! let transaction = client.transaction().await?;
//! transaction.execute("UPDATE orders SET paid = true WHERE id = 17", &[]).await?;
//! postgres::put(&transaction, "order-17", Message::new("orders.paid", r#"{"order":17}"#)).await?;
//! transaction.commit().await?; // from now on it is published, whatever dies
//! # drop(relay); Ok(())
//! # }
//! ```

mod relay;
mod rows;

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use serde_json::Value;
pub use tokio_postgres::NoTls;
use tokio_postgres::{GenericClient, Row};

pub use relay::{Relay, RelayStatus};

use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::message_id::{Generator, MessageId};

/// The SQL that makes the table, which may be there already.
pub const TABLE: &str = include_str!("outbox.sql");

/// The SQL that has relays woken at each commit; optional, and for PostgreSQL only.
pub const NOTIFY: &str = include_str!("notify.sql");

/// Where the table is and how it is relayed. All fields but the URL have defaults; see each.
#[derive(Clone, PartialEq)]
pub struct RelayConfig {
    /// How to reach the database: `postgresql://user:password@host/database`, or `host=... user=...`. The table is looked for in its
    /// `search_path`.
    pub url: String,
    /// The pause after a look that found nothing; default 500 ms.
    pub poll: Duration,
    /// How many rows one transaction takes; 1 to 10 000; default 256.
    pub batch: u32,
    /// How often a row may be refused before it is dead; default 10.
    pub max_refusals: u32,
    /// The pause after the first failure of a row; doubled for each further refusal; default 1 s.
    pub first_pause: Duration,
    /// The longest pause; default 60 s.
    pub max_pause: Duration,
    /// Whether to be woken by what [`NOTIFY`] makes; default false. It polls nevertheless.
    pub listen: bool,
}

/// A row that was given up.
#[derive(Debug, Clone)]
pub struct Dead {
    /// The message, with its id.
    pub message: Message,
    /// The id.
    pub id: String,
    /// Its key.
    pub key: String,
    /// When it was inserted.
    pub created_at: SystemTime,
    /// When it was given up.
    pub dead_at: SystemTime,
    /// How often it was refused.
    pub attempts: u32,
    /// What was said last.
    pub last_error: String,
}

// The URL may have a password in it.
impl std::fmt::Debug for RelayConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayConfig").field("batch", &self.batch).field("poll", &self.poll).finish_non_exhaustive()
    }
}

impl RelayConfig {
    /// A relay of the table at this URL, with defaults.
    pub fn new(url: impl Into<String>) -> Self {
        RelayConfig {
            url: url.into(),
            poll: Duration::from_millis(500),
            batch: 256,
            max_refusals: 10,
            first_pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(60),
            listen: false,
        }
    }

    fn check(&self) -> Result<tokio_postgres::Config> {
        let wrong = |field: &'static str, why: &'static str| Err(Error::setting(field, why));
        match self {
            c if c.batch == 0 || c.batch > 10_000 => wrong("batch", "it is 1 to 10000"),
            c if c.max_refusals == 0 => wrong("max_refusals", "it is at least 1"),
            c if c.poll.is_zero() => wrong("poll", "it is above 0"),
            c if c.first_pause.is_zero() => wrong("first_pause", "it is above 0"),
            c if c.first_pause > c.max_pause => wrong("first_pause", "it is longer than the longest pause"),
            // The text of the error says what is wrong, and not the URL.
            c => c.url.parse().map_err(|e| Error::setting("url", &e).because(e)),
        }
    }
}

/// Inserts a message in the caller's transaction, under a key whose order is kept; gives its id.
///
/// Given a client instead of a transaction, it is committed at once.
///
/// # Errors
/// - `InvalidMessage`: it cannot be sent as it is, or says that it carries no id.
/// - `Conflict`: a row with this id waits already. The transaction goes on.
/// - `Rejected`, `Unreachable`: the database refused it, or is away; `sqlstate` and `why` say more.
pub async fn put(client: &impl GenericClient, key: &str, message: Message) -> Result<String> {
    static IDS: LazyLock<Generator> = LazyLock::new(|| Generator::new(None));
    message.check()?;
    let id = match &message.id {
        MessageId::Given(id) => id.clone(),
        MessageId::Generated => IDS.generate(),
        MessageId::None => {
            let why = "an outbox needs ids: what was sent before a crash is sent again";
            return Err(Error::new(ErrorKind::InvalidMessage).with("subject", &message.subject).with("why", why));
        }
    };
    let headers = serde_json::json!(message.headers);
    let (subject, payload, schema) = (&*message.subject, &message.payload[..], message.schema.as_deref());
    let inserted = client.execute(rows::INSERT, &[&id, &key, &subject, &payload, &headers, &schema]).await;
    match inserted.map_err(failed)? {
        0 => Err(Error::new(ErrorKind::Conflict).with("msg_id", id).with("why", "a row with this id waits already")),
        _ => Ok(id),
    }
}

/// At most `limit` dead rows, the oldest first.
///
/// # Errors
/// `Rejected`, `Unreachable`: as [`put`].
pub async fn dead(client: &impl GenericClient, limit: u32) -> Result<Vec<Dead>> {
    let found = client.query(rows::DEAD, &[&i64::from(limit)]).await.map_err(failed)?;
    found.iter().map(|row| read_dead(row).map_err(failed)).collect()
}

/// Has a dead row published again, at its old place among those of its key; its refusals are counted anew.
///
/// # Errors
/// `NotFound`: there is no dead row with this id. Else as [`put`].
pub async fn revive(client: &impl GenericClient, id: &str) -> Result<()> {
    end_of_a_dead_one(client, rows::REVIVE, id).await
}

/// Deletes a dead row. What it was, [`dead`] told.
///
/// # Errors
/// As [`revive`].
pub async fn discard(client: &impl GenericClient, id: &str) -> Result<()> {
    end_of_a_dead_one(client, rows::DISCARD, id).await
}

async fn end_of_a_dead_one(client: &impl GenericClient, sql: &str, id: &str) -> Result<()> {
    match client.execute(sql, &[&id]).await.map_err(failed)? {
        0 => Err(Error::new(ErrorKind::NotFound).with("msg_id", id).with("why", "there is no dead row with this id")),
        _ => Ok(()),
    }
}

fn read_dead(row: &Row) -> std::result::Result<Dead, tokio_postgres::Error> {
    let attempts: i32 = row.try_get("attempts")?;
    Ok(Dead {
        message: message(row)?,
        id: row.try_get("id")?,
        key: row.try_get("key")?,
        created_at: row.try_get("created_at")?,
        dead_at: row.try_get("dead_at")?,
        attempts: u32::try_from(attempts).unwrap_or(0),
        last_error: row.try_get::<_, Option<String>>("last_error")?.unwrap_or_default(),
    })
}

// What a row says, which any language may have inserted: it is checked when it is published.
fn message(row: &Row) -> std::result::Result<Message, tokio_postgres::Error> {
    let mut message = Message::new(row.try_get::<_, String>("subject")?, row.try_get::<_, Vec<u8>>("payload")?)
        .id(row.try_get::<_, String>("id")?);
    if let Some(schema) = row.try_get::<_, Option<String>>("schema")? {
        message = message.schema(schema);
    }
    match headers(&row.try_get("headers")?) {
        Some(headers) => message.headers = headers,
        // A name that no message may have: it is refused for it, and listed with it.
        None => message = message.header("headers: [[\"name\", \"value\"], ...] is expected", ""),
    }
    Ok(message)
}

fn headers(json: &Value) -> Option<Vec<(String, String)>> {
    serde_json::from_value(json.clone()).ok()
}

pub(crate) fn failed(error: tokio_postgres::Error) -> Error {
    let (kind, sqlstate) = match error.code() {
        Some(code) => (ErrorKind::Rejected, Some(code.code().to_owned())),
        None => (ErrorKind::Unreachable, None),
    };
    let why = match error.as_db_error() {
        Some(told) => told.message().to_owned(),
        None => error.to_string(),
    };
    let made = Error::new(kind).with("database", "postgres").with("why", why);
    match sqlstate {
        Some(sqlstate) => made.with("sqlstate", sqlstate),
        None => made,
    }
    .because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn headers_of_another_shape_are_not_read() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(headers(&json!([["a", "1"], ["a", "2"]])), Some(vec![pair("a", "1"), pair("a", "2")]));
        assert_eq!(headers(&json!([])), Some(Vec::new()));
        for wrong in [json!({"a": "1"}), json!([["a"]]), json!([["a", 1]]), json!([["a", "1", "2"]]), json!(null)] {
            assert_eq!(headers(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named_and_the_password_is_not() {
        let config = RelayConfig::new("postgresql://app:s3cret@localhost/app");
        assert!(config.check().is_ok());
        for (wrong, field) in [
            (RelayConfig { batch: 0, ..config.clone() }, "batch"),
            (RelayConfig { max_refusals: 0, ..config.clone() }, "max_refusals"),
            (RelayConfig { poll: Duration::ZERO, ..config.clone() }, "poll"),
            (RelayConfig { first_pause: Duration::from_secs(90), ..config.clone() }, "first_pause"),
            (RelayConfig { url: "postgresql://app:s3cret@localhost:port/app".into(), ..config.clone() }, "url"),
        ] {
            let error = format!("{:?}", wrong.check().err());
            assert!(error.contains(field) && !error.contains("s3cret"), "{error}");
        }
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
