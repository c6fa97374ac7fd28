//! Reading what is from the server, and making it as it should be.

use async_nats::jetstream;
use serde_json::{Map, Value, json};

use super::plan::compare;
use super::{Action, Change, ConsumerSpec, Manifest, Plan, StreamSpec};
use crate::api::{ask, call};
use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};

const STREAM_FIXED: &[&str] = &["name", "retention", "storage"];
const CONSUMER_FIXED: &[&str] = &["durable_name", "name", "deliver_policy", "ack_policy", "replay_policy"];

impl Bridge {
    /// Compares a manifest with what is on the server and changes nothing.
    ///
    /// # Errors
    /// `Config`: the manifest is wrong, such as an unbounded stream that does not say so. Else as JetStream answers.
    pub async fn plan(&self, manifest: &Manifest) -> Result<Plan> {
        let mut plan = Plan::default();
        for spec in &manifest.streams {
            spec.check()?;
            plan.warnings.extend(spec.warnings(self.config().publish.deadline));
            if let (_, Some(action)) = stream_action(self.jetstream(), spec).await? {
                plan.changes.push(Change { object: format!("stream {}", spec.name), action });
            }
        }
        for spec in &manifest.consumers {
            spec.check()?;
            let action = match consumer_action(self.jetstream(), spec).await {
                Ok((_, action)) => action,
                // Its stream is made first.
                Err(error) if no_stream(&error) && manifest.streams.iter().any(|s| s.name == spec.stream) => {
                    Some(Action::Create)
                }
                Err(error) => return Err(error),
            };
            if let Some(action) = action {
                plan.changes.push(Change { object: format!("consumer {}/{}", spec.stream, spec.name), action });
            }
        }
        Ok(plan)
    }

    /// Makes everything as the manifest says and gives what was done. Nothing that the manifest does not name is touched.
    ///
    /// # Errors
    /// `Config`: the manifest is wrong. `Conflict`: something cannot be changed in place; nothing was changed. Another
    /// error leaves what was done before it; apply again.
    pub async fn apply(&self, manifest: &Manifest) -> Result<Plan> {
        let plan = self.plan(manifest).await?;
        if let Some(Change { object, action: Action::Conflict(differences) }) = plan.conflicts().next() {
            return Err(conflict(object, differences));
        }
        for spec in &manifest.streams {
            ensure_stream(self.jetstream(), spec).await?;
        }
        for spec in &manifest.consumers {
            ensure_consumer(self.jetstream(), spec).await?;
        }
        Ok(plan)
    }

    /// Makes one stream as it should be: creates it, changes it in place, or leaves it.
    ///
    /// # Errors
    /// `Config`: it is unbounded and does not say so, or a name is illegal. `Conflict`: it exists and cannot be changed in
    /// place, or its subjects belong to another stream.
    pub async fn ensure_stream(&self, spec: &StreamSpec) -> Result<()> {
        ensure_stream(self.jetstream(), spec).await
    }

    /// Makes one durable pull consumer as it should be.
    ///
    /// # Errors
    /// `Config`: a name is illegal. `NotFound`: there is no such stream. `Conflict`: it exists and cannot be changed in
    /// place.
    pub async fn ensure_consumer(&self, spec: &ConsumerSpec) -> Result<()> {
        ensure_consumer(self.jetstream(), spec).await
    }
}

pub(crate) async fn ensure_stream(js: &jetstream::Context, spec: &StreamSpec) -> Result<()> {
    spec.check()?;
    let object = || format!("stream {}", spec.name);
    let (is, action) = stream_action(js, spec).await?;
    let verb = match action {
        None => return Ok(()),
        Some(Action::Conflict(differences)) => return Err(conflict(&object(), &differences)),
        Some(Action::Create) => "CREATE",
        Some(Action::Update(_)) => "UPDATE",
    };
    tracing::info!(stream = spec.name, verb, "provisioning");
    call(js, format!("STREAM.{verb}.{}", spec.name), Some(&merged(is, spec.config()))).await.map(drop)
}

pub(crate) async fn ensure_consumer(js: &jetstream::Context, spec: &ConsumerSpec) -> Result<()> {
    spec.check()?;
    let (is, action) = consumer_action(js, spec).await?;
    match action {
        None => return Ok(()),
        Some(Action::Conflict(differences)) => {
            return Err(conflict(&format!("consumer {}/{}", spec.stream, spec.name), &differences));
        }
        Some(Action::Create | Action::Update(_)) => {}
    }
    tracing::info!(stream = spec.stream, consumer = spec.name, "provisioning");
    let body = json!({ "stream_name": spec.stream, "config": merged(is, spec.config()) });
    call(js, format!("CONSUMER.CREATE.{}.{}", spec.stream, spec.name), Some(&body)).await.map(drop)
}

async fn stream_action(js: &jetstream::Context, spec: &StreamSpec) -> Result<(Map<String, Value>, Option<Action>)> {
    let found = ask(js, format!("STREAM.INFO.{}", spec.name)).await;
    action(found, &spec.config(), STREAM_FIXED)
}

async fn consumer_action(js: &jetstream::Context, spec: &ConsumerSpec) -> Result<(Map<String, Value>, Option<Action>)> {
    let found = ask(js, format!("CONSUMER.INFO.{}.{}", spec.stream, spec.name)).await;
    match found {
        Err(error) if no_stream(&error) => Err(error),
        found => action(found, &spec.config(), CONSUMER_FIXED),
    }
}

fn no_stream(error: &Error) -> bool {
    error.context().contains(&("err_code", "10059".to_owned()))
}

fn action(
    found: Result<Value>,
    should: &Map<String, Value>,
    fixed: &[&str],
) -> Result<(Map<String, Value>, Option<Action>)> {
    match found {
        Ok(info) => {
            let is = info.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
            let action = compare(&is, should, fixed);
            Ok((is, action))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok((Map::new(), Some(Action::Create))),
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
