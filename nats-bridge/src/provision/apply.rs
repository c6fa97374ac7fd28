//! Reading what is from the server, and making it as it should be.

use async_nats::jetstream;
use serde_json::{Map, Value, json};

use super::plan::{compare, cost};
use super::removal::removals;
use super::subjects::is_the_servers;
use super::words::{Object, in_words};
use super::{Action, BucketSpec, Change, ConsumerSpec, Manifest, Plan, Removal, StreamSpec, work_queue};
use crate::api::{ask, call};
use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Fsync;

const STREAM_FIXED: &[&str] = &["name", "retention", "storage"];
const CONSUMER_FIXED: &[&str] =
    &["durable_name", "name", "deliver_policy", "ack_policy", "replay_policy", "deliver_subject"];

/// How a manifest is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApplyConfig {
    /// How soon the servers sync; see [`Monitor::fsync`](crate::Monitor::fsync). Default: it is not known.
    pub fsync: Fsync,
    /// Lower limits although stored messages are beyond them, and so removed for good. Default: such a change is refused.
    pub allow_removal: bool,
}

impl Bridge {
    /// Compares a manifest with what is on the server and changes nothing. What the plan holds after everything was applied
    /// is drift.
    ///
    /// # Errors
    /// `Config`: the manifest is wrong, such as an unbounded stream that does not say so. Else as JetStream answers.
    pub async fn plan(&self, manifest: &Manifest) -> Result<Plan> {
        self.plan_on(manifest, Fsync::Unknown).await
    }

    /// As [`Bridge::plan`], for servers of which it is known how soon they sync; see [`Monitor::fsync`](crate::Monitor::fsync).
    ///
    /// # Errors
    /// As [`Bridge::plan`], and `Config`: a stream is to be `durable` and is not.
    pub async fn plan_on(&self, manifest: &Manifest, fsync: Fsync) -> Result<Plan> {
        manifest.check()?;
        self.unless_denied(self.planned(manifest, fsync)).await
    }

    async fn planned(&self, manifest: &Manifest, fsync: Fsync) -> Result<Plan> {
        let js = self.jetstream();
        let mut plan = Plan::default();
        let mut add = |object: String, found: &Found| {
            if let Some(action) = &found.action {
                plan.changes.push(Change {
                    object,
                    cost: cost(action, found.messages, &found.removes),
                    removes: found.removes.clone(),
                    action: action.clone(),
                });
            }
        };
        let mut before = Vec::new();
        for spec in manifest.all_streams() {
            let table = if before.len() < manifest.streams.len() { "streams" } else { "dead_letters" };
            let placed = |error: Error| error.within("table", table);
            spec.check_durable(fsync).map_err(placed)?;
            plan.warnings.extend(spec.warnings(self.config().publish.deadline, fsync));
            let found = stream_found(js, &spec).await?;
            before.push(spec.name.clone());
            if found.action.is_some() {
                let field = if table == "streams" { "subjects" } else { "of" };
                can_be_made(js, &spec, field, &found, &before).await.map_err(placed)?;
            }
            add(format!("stream {}", spec.name), &found);
        }
        for spec in &manifest.consumers {
            let found = match consumer_found(js, spec).await {
                Ok(found) => found,
                // Its stream is made first.
                Err(error) if no_stream(&error) && manifest.all_streams().any(|s| s.name == spec.stream) => {
                    Found { action: Some(Action::Create), ..Found::default() }
                }
                Err(error) if no_stream(&error) => {
                    return Err(Error::new(ErrorKind::NotFound)
                        .with("table", "consumers")
                        .with("consumer", &spec.name)
                        .with("field", "stream")
                        .with("why", format!("there is no stream {}, here or on the server", spec.stream)));
                }
                Err(error) => return Err(error),
            };
            plan.warnings.extend(backoff_warning(spec, &found.is));
            add(format!("consumer {}/{}", spec.stream, spec.name), &found);
        }
        for spec in &manifest.buckets {
            add(format!("bucket {}", spec.name), &bucket_found(js, spec).await?);
        }
        Ok(plan)
    }

    /// Makes everything as the manifest says and gives what was done. Nothing that the manifest does not name is touched, and no
    /// stored message is removed.
    ///
    /// # Errors
    /// `Config`: the manifest is wrong. `Conflict`: something cannot be changed in place; `WouldRemove`: a limit would be lowered so
    /// that stored messages are removed, with the stream, the limit, what it is and should be, and how many; nothing was changed.
    /// Another error leaves what was done before it; apply again.
    pub async fn apply(&self, manifest: &Manifest) -> Result<Plan> {
        self.apply_with(manifest, ApplyConfig::default()).await
    }

    /// As [`Bridge::apply`], for servers of which it is known how soon they sync, or with leave to remove messages.
    ///
    /// # Errors
    /// As [`Bridge::apply`], and `Config`: a stream is to be `durable` and is not.
    pub async fn apply_with(&self, manifest: &Manifest, config: ApplyConfig) -> Result<Plan> {
        let plan = self.plan_on(manifest, config.fsync).await?;
        if let Some(Change { object, action: Action::Conflict(differences), .. }) = plan.conflicts().next() {
            return Err(conflict(object, differences));
        }
        let allowed = config.allow_removal;
        if let Some(change) = plan.changes.iter().find(|change| !allowed && !change.removes.is_empty()) {
            return Err(would_remove(&change.object, &change.removes));
        }
        let made = async {
            for spec in manifest.all_streams() {
                ensure_stream(self.jetstream(), &spec, allowed).await?;
            }
            for spec in &manifest.consumers {
                ensure_consumer(self.jetstream(), spec).await?;
            }
            for spec in &manifest.buckets {
                ensure_bucket(self.jetstream(), spec, allowed).await?;
            }
            Ok(())
        };
        self.unless_denied(made).await?;
        Ok(plan)
    }

    /// Makes one key-value bucket as it should be.
    ///
    /// # Errors
    /// `Config`: it is unbounded and does not say so, or its name is illegal. `Conflict`: it exists and cannot be changed in
    /// place. `WouldRemove`: it holds values that the change would remove; [`Bridge::apply_with`] can be allowed to.
    pub async fn ensure_bucket(&self, spec: &BucketSpec) -> Result<()> {
        self.unless_denied(ensure_bucket(self.jetstream(), spec, false)).await
    }

    /// Makes one stream as it should be: creates it, changes it in place, or leaves it.
    ///
    /// # Errors
    /// `Config`: it is unbounded and does not say so, is to be `durable` with less than three replicas, or a name is
    /// illegal. `Conflict`: it exists and cannot be changed in place, or its subjects belong to another stream. `WouldRemove`: it
    /// holds messages that the change would remove; [`Bridge::apply_with`] can be allowed to.
    pub async fn ensure_stream(&self, spec: &StreamSpec) -> Result<()> {
        spec.check_durable(Fsync::Unknown)?;
        self.unless_denied(ensure_stream(self.jetstream(), spec, false)).await
    }

    /// Makes one durable pull consumer as it should be.
    ///
    /// # Errors
    /// `Config`: a name is illegal. `NotFound`: there is no such stream. `Conflict`: it exists and cannot be changed in
    /// place.
    pub async fn ensure_consumer(&self, spec: &ConsumerSpec) -> Result<()> {
        self.unless_denied(ensure_consumer(self.jetstream(), spec)).await
    }
}

async fn ensure_stream(js: &jetstream::Context, spec: &StreamSpec, allow_removal: bool) -> Result<()> {
    spec.check()?;
    let found = stream_found(js, spec).await?;
    make(js, &format!("stream {}", spec.name), &spec.name, found, spec.config(), allow_removal).await
}

/// Makes a stream that does not exist. One that does is left as it is: its bounds are the operator's.
pub(crate) async fn make_stream_if_absent(js: &jetstream::Context, spec: &StreamSpec) -> Result<()> {
    match ask(js, format!("STREAM.INFO.{}", spec.name)).await {
        Err(error) if error.kind() == ErrorKind::NotFound => ensure_stream(js, spec, false).await,
        known => known.map(drop),
    }
}

/// How many servers keep a stream: what belongs to it is kept by as many.
///
/// # Errors
/// As JetStream answers.
pub(crate) async fn replicas_of(js: &jetstream::Context, stream: &str) -> Result<u8> {
    let info = ask(js, format!("STREAM.INFO.{stream}")).await?;
    Ok(info["config"]["num_replicas"].as_u64().and_then(|n| u8::try_from(n).ok()).unwrap_or(1))
}

/// As [`make_stream_if_absent`], for a bucket.
pub(crate) async fn make_bucket_if_absent(js: &jetstream::Context, spec: &BucketSpec) -> Result<()> {
    spec.check()?;
    match ask(js, format!("STREAM.INFO.{}", spec.stream())).await {
        Err(error) if error.kind() == ErrorKind::NotFound => ensure_bucket(js, spec, false).await,
        known => known.map(drop),
    }
}

async fn ensure_bucket(js: &jetstream::Context, spec: &BucketSpec, allow_removal: bool) -> Result<()> {
    spec.check()?;
    let found = bucket_found(js, spec).await?;
    make(js, &format!("bucket {}", spec.name), &spec.stream(), found, spec.config(), allow_removal).await
}

async fn make(
    js: &jetstream::Context,
    object: &str,
    stream: &str,
    found: Found,
    should: Map<String, Value>,
    allow_removal: bool,
) -> Result<()> {
    let verb = match found.action {
        None => return Ok(()),
        Some(Action::Conflict(differences)) => return Err(conflict(object, &differences)),
        Some(_) if !allow_removal && !found.removes.is_empty() => return Err(would_remove(object, &found.removes)),
        Some(Action::Create) => "CREATE",
        Some(Action::Update(_)) => "UPDATE",
    };
    tracing::info!(object, verb, "provisioning");
    let asked = should.get("max_bytes").cloned();
    let made = call(js, format!("STREAM.{verb}.{stream}"), Some(&merged(found.is, should))).await;
    made.map(drop).map_err(|error| match asked {
        Some(bytes) if is_no_room(&error) => {
            let fix =
                "the server sets all of `max_bytes` aside at once: ask for less, or give JetStream or the account more";
            error.with("stream", stream).with("max_bytes", bytes).with("fix", fix)
        }
        _ => error,
    })
}

/// Codes from the server's `errors.json`: 10002 the account's limits, 10023 the server's, 10028 its memory, 10047 its
/// storage.
fn is_no_room(error: &Error) -> bool {
    let code = error.context().iter().find(|(key, _)| *key == "err_code").map(|(_, code)| code.as_str());
    matches!(code, Some("10002" | "10023" | "10028" | "10047"))
}

pub(crate) async fn ensure_consumer(js: &jetstream::Context, spec: &ConsumerSpec) -> Result<()> {
    spec.check()?;
    let found = consumer_found(js, spec).await?;
    match found.action {
        None => return Ok(()),
        Some(Action::Conflict(differences)) => {
            return Err(conflict(&format!("consumer {}/{}", spec.stream, spec.name), &differences));
        }
        Some(Action::Create | Action::Update(_)) => {}
    }
    tracing::info!(stream = spec.stream, consumer = spec.name, "provisioning");
    let body = json!({ "stream_name": spec.stream, "config": merged(found.is, spec.config()) });
    match call(js, format!("CONSUMER.CREATE.{}.{}", spec.stream, spec.name), Some(&body)).await {
        Ok(_) => Ok(()),
        Err(error) => Err(work_queue::explained(js, spec, error).await),
    }
}

// What is on the server under a name, and what is to be done about it.
#[derive(Default)]
struct Found {
    is: Map<String, Value>,
    messages: u64,
    action: Option<Action>,
    removes: Vec<Removal>,
}

async fn stream_found(js: &jetstream::Context, spec: &StreamSpec) -> Result<Found> {
    let found = ask(js, format!("STREAM.INFO.{}", spec.name)).await;
    stream_compared(js, found, Object::Stream, &spec.config()).await
}

/// Refuses what the server would refuse when the stream is made: subjects of another stream, unless that is one of those `before`, whose
/// subjects are others by then; and copies on one server.
async fn can_be_made(
    js: &jetstream::Context,
    spec: &StreamSpec,
    field: &'static str,
    found: &Found,
    before: &[String],
) -> Result<()> {
    let server = js.client().server_info();
    if spec.replicas > 1 && server.jetstream && server.cluster.is_none() {
        return Err(Error::new(ErrorKind::Config).with("stream", &spec.name).with("field", "replicas").with(
            "why",
            format!("{} copies need a cluster of as many servers, and this server is in none", spec.replicas),
        ));
    }
    let present = found.is.get("subjects").and_then(Value::as_array).cloned().unwrap_or_default();
    for subject in spec.subjects().into_iter().filter(|subject| !present.contains(&json!(subject))) {
        if js.client().is_server_compatible(2, 15, 0) && is_the_servers(&subject) {
            return Err(Error::new(ErrorKind::Config)
                .with("stream", &spec.name)
                .with("field", field)
                .with("why", format!("`{subject}` takes in the server's own subjects ($JS, $JSC, $NRG, $SYS)")));
        }
        // Who may not list streams is told when the stream is made.
        let body = json!({ "subject": subject });
        let Ok(listed) = call(js, "STREAM.NAMES".to_owned(), Some(&body)).await else { return Ok(()) };
        let names = listed.get("streams").and_then(Value::as_array).cloned().unwrap_or_default();
        let other = names.iter().filter_map(Value::as_str).find(|name| before.iter().all(|known| known != name));
        if let Some(other) = other {
            return Err(Error::new(ErrorKind::Conflict)
                .with("stream", &spec.name)
                .with("field", field)
                .with("why", format!("`{subject}` overlaps the subjects of stream {other}")));
        }
    }
    Ok(())
}

async fn bucket_found(js: &jetstream::Context, spec: &BucketSpec) -> Result<Found> {
    let found = ask(js, format!("STREAM.INFO.{}", spec.stream())).await;
    stream_compared(js, found, Object::Bucket, &spec.config()).await
}

async fn stream_compared(
    js: &jetstream::Context,
    found: Result<Value>,
    object: Object,
    should: &Map<String, Value>,
) -> Result<Found> {
    let info = found.as_ref().ok().cloned();
    let mut compared = compared(found, object, should, STREAM_FIXED)?;
    if let (Some(Action::Update(_)), Some(info)) = (&compared.action, info) {
        compared.removes = removals(js, object, &info, should).await;
    }
    Ok(compared)
}

async fn consumer_found(js: &jetstream::Context, spec: &ConsumerSpec) -> Result<Found> {
    let found = ask(js, format!("CONSUMER.INFO.{}.{}", spec.stream, spec.name)).await;
    match found {
        Err(error) if no_stream(&error) => Err(error),
        found => {
            let info = found.as_ref().ok().cloned().unwrap_or_default();
            let mut should = spec.config();
            // A push consumer gives nothing to those who ask.
            should.insert("deliver_subject".to_owned(), Value::Null);
            let has_delivered = info.pointer("/delivered/consumer_seq").and_then(Value::as_u64).unwrap_or(0) > 0;
            // With other subjects it would go on where it is, and what it has passed of them would reach nobody.
            let begun: &[&str] = if has_delivered { &["filter_subjects"] } else { &[] };
            compared(found, Object::Consumer, &should, &[CONSUMER_FIXED, begun].concat())
        }
    }
}

// The first pause of a server-side backoff takes the place of `ack_wait`: work that takes longer is delivered twice.
fn backoff_warning(spec: &ConsumerSpec, is: &Map<String, Value>) -> Option<String> {
    let first = is.get("backoff")?.as_array()?.first()?.as_u64()?;
    (first < 5_000_000_000).then(|| {
        format!(
            "consumer {}/{}: its backoff delivers un-acked work again after {} ms, whatever ack_wait says; retries are the \
             policy's business",
            spec.stream,
            spec.name,
            first / 1_000_000
        )
    })
}

fn no_stream(error: &Error) -> bool {
    error.context().contains(&("err_code", "10059".to_owned()))
}

fn compared(found: Result<Value>, object: Object, should: &Map<String, Value>, fixed: &[&str]) -> Result<Found> {
    match found {
        Ok(info) => {
            let is = info.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
            let action = compare(&in_words(object, &is), &in_words(object, should), fixed);
            let messages = info.pointer("/state/messages").and_then(Value::as_u64).unwrap_or(0);
            Ok(Found { is, messages, action, removes: Vec::new() })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(Found { action: Some(Action::Create), ..Found::default() })
        }
        Err(error) => Err(error),
    }
}

// What we do not decide stays as it is.
fn merged(mut is: Map<String, Value>, should: Map<String, Value>) -> Map<String, Value> {
    is.extend(should);
    is
}

fn conflict(object: &str, differences: &[super::Difference]) -> Error {
    let text: Vec<String> =
        differences.iter().map(|d| format!("{} is {} and should be {}", d.field, d.is, d.should)).collect();
    Error::new(ErrorKind::Conflict).with("object", object).with("why", text.join(", "))
}

// `stream ORDERS`, or `bucket sessions`.
fn would_remove(object: &str, removes: &[Removal]) -> Error {
    let (what, name) = match object.split_once(' ') {
        Some(("bucket", name)) => ("bucket", name),
        Some((_, name)) => ("stream", name),
        None => ("stream", object),
    };
    let mut error = Error::new(ErrorKind::WouldRemove).with(what, name);
    if let Some(first) = removes.first() {
        error = error
            .with("limit", &first.limit)
            .with("is", first.present())
            .with("should", &first.should)
            .with("messages", first.messages);
    }
    let told: Vec<String> = removes.iter().map(Removal::to_string).collect();
    error.with("why", format!("{}; nothing was changed, and `apply` with allow_removal permits it", told.join("; ")))
}
