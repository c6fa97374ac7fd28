//! A ledger whose entries are committed with the effect, in PostgreSQL or CockroachDB: exactly once, whatever dies.
//!
//! ```no_run
//! # async fn example(mut client: tokio_postgres::Client, delivery: nats_bridge::Delivery) -> Result<(), Box<dyn std::error::Error>> {
//! use nats_bridge::ledger::postgres;
//!
//! client.batch_execute(postgres::TABLE).await?;
//! let transaction = client.transaction().await?;
//! let id = delivery.id().ok_or("a message without an id")?.to_owned();
//! if postgres::first(&transaction, "billing", &id).await? {
//!     transaction.execute("UPDATE accounts SET balance = balance - 5 WHERE id = 17", &[]).await?;
//! }
//! transaction.commit().await?;
//! delivery.ack().await?; // if this is lost, the message comes again and changes nothing
//! # Ok(())
//! # }
//! ```

use std::time::Duration;

use tokio_postgres::{GenericClient, Transaction};

use crate::error::{Error, ErrorKind, Result};
use crate::outbox::postgres::failed;

/// The SQL that makes the table, which may be there already.
pub const TABLE: &str = "
CREATE TABLE IF NOT EXISTS nats_ledger (
    consumer TEXT NOT NULL,
    id TEXT NOT NULL,
    done_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, id)
);
CREATE INDEX IF NOT EXISTS nats_ledger_done_at ON nats_ledger (done_at);
";

/// Whether this consumer handles the message with this id for the first time; noted in the caller's transaction, and so only if
/// that is committed. Where another transaction has noted it and is open, its end is waited for.
///
/// # Errors
/// `InvalidMessage`: the id is empty. `Rejected`, `Unreachable`: the database refused it, or is away; `sqlstate` and `why` say more. The
/// transaction is over then.
pub async fn first(transaction: &Transaction<'_>, consumer: &str, id: &str) -> Result<bool> {
    if id.is_empty() {
        return Err(Error::new(ErrorKind::InvalidMessage).with("why", "a ledger needs ids"));
    }
    let insert = "INSERT INTO nats_ledger (consumer, id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    Ok(transaction.execute(insert, &[&consumer, &id]).await.map_err(failed)? == 1)
}

/// Forgets at most `limit` entries that are older than `keep`, which is longer than a message may come again; gives how many. For a job that
/// runs now and then.
///
/// # Errors
/// `Rejected`, `Unreachable`: as [`first`].
pub async fn forget(client: &impl GenericClient, keep: Duration, limit: u32) -> Result<u64> {
    let delete = "DELETE FROM nats_ledger WHERE (consumer, id) IN (SELECT consumer, id FROM nats_ledger
        WHERE done_at < now() - $1::FLOAT8 * INTERVAL '1 second' ORDER BY done_at LIMIT $2)";
    client.execute(delete, &[&keep.as_secs_f64(), &i64::from(limit)]).await.map_err(failed)
}
