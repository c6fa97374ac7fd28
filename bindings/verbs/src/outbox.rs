//! An outbox on disk as data. Messages do not cross here: they are put as they are published.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nats_bridge::outbox::{Outbox, OutboxConfig, Refused};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Fault, read};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    path: PathBuf,
    max_entries: Option<u64>,
    max_bytes: Option<u64>,
    max_in_flight: Option<usize>,
    first_pause_ms: Option<u64>,
    max_pause_ms: Option<u64>,
    no_stream_wait_ms: Option<u64>,
    region: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    #[serde(default)]
    number: u64,
    #[serde(default)]
    first: u64,
    #[serde(default)]
    limit: usize,
    #[serde(default)]
    budget_ms: u64,
}

/// The core's settings for an object of JSON.
///
/// # Errors
/// `Argument`: a field is wrong.
pub fn config(json: &str) -> Result<OutboxConfig, Fault> {
    let given: Given = read(json)?;
    let mut config = OutboxConfig { region: given.region, ..OutboxConfig::new(given.path) };
    let set = |to: &mut Duration, ms: Option<u64>| ms.into_iter().for_each(|ms| *to = Duration::from_millis(ms));
    set(&mut config.first_pause, given.first_pause_ms);
    set(&mut config.max_pause, given.max_pause_ms);
    set(&mut config.no_stream_wait, given.no_stream_wait_ms);
    config.max_entries = given.max_entries.unwrap_or(config.max_entries);
    config.max_bytes = given.max_bytes.unwrap_or(config.max_bytes);
    config.max_in_flight = given.max_in_flight.unwrap_or(config.max_in_flight);
    Ok(config)
}

/// Does what `verb` says with `arguments`, an object of JSON, and gives the answer as JSON.
///
/// # Errors
/// See [`Fault`].
pub async fn ask(core: Outbox, verb: String, arguments: String) -> Result<String, Fault> {
    let Arguments { number, first, limit, budget_ms } = read(&arguments)?;
    let budget = Duration::from_millis(budget_ms);
    let answer = match verb.as_str() {
        "refused" => core.refused(first, limit).await?.iter().map(refused).collect(),
        "retry" => json!(core.retry(number).await?),
        "discard" => json!(core.discard(number).await?),
        "drain" => json!(core.drain(budget).await?),
        "close" => json!(core.close(budget).await?),
        _ => return Err(Fault::argument("verb", format!("there is no verb '{verb}'"))),
    };
    Ok(answer.to_string())
}

/// What it holds, as JSON.
pub fn status(core: &Outbox) -> String {
    let status = core.status();
    json!({
        "waiting": status.waiting,
        "refused": status.refused,
        "bytes": status.bytes,
        "oldest_ms": status.oldest.map(|age| age.as_millis() as u64),
    })
    .to_string()
}

fn refused(one: &Refused) -> Value {
    json!({
        "number": one.number,
        "subject": one.message.subject(),
        "payload": STANDARD.encode(one.message.payload()),
        "headers": one.message.headers(),
        "id": one.id,
        "put_at_ms": since_1970(one.put_at),
        "refused_at_ms": since_1970(one.refused_at),
        "reason": one.reason,
        "why": one.why,
        "landed": one.landed.name(),
    })
}

fn since_1970(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
