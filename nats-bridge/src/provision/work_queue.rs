//! A work queue hands each message to one consumer: why the server refuses a second one that reads the same subjects.

use async_nats::jetstream;
use serde_json::Value;

use super::spec::ConsumerSpec;
use super::subjects::meet;
use crate::api::ask;
use crate::error::{Error, ErrorKind};

/// The server's refusal in words that name both consumers and what to do; another error stays what it is.
///
/// Codes from the server's `errors.json`: 10099 two consumers without filters, 10100 two whose filters meet.
pub(super) async fn explained(js: &jetstream::Context, spec: &ConsumerSpec, error: Error) -> Error {
    let code = error.context().iter().find(|(key, _)| *key == "err_code").map(|(_, code)| code.clone());
    let Some(code) = code.filter(|code| matches!(&**code, "10099" | "10100")) else { return error };
    let told = Error::new(ErrorKind::Conflict).with("stream", &spec.stream).with("consumer", &spec.name);
    let (told, other) = match other(js, spec).await {
        Some(other) => (told.with("other", &other), format!("consumer {other}")),
        None => (told, "another consumer".to_owned()),
    };
    let why = format!(
        "{} is a work queue, and {other} reads subjects that this one would read too: consume as that one to share its messages, \
         give each `filter_subjects` that do not overlap, or have the stream keep messages for all with retention `interest` or `limits`",
        spec.stream
    );
    told.with("err_code", code).with("why", why).because(error)
}

// The first of 256 consumers that meets this one.
async fn other(js: &jetstream::Context, spec: &ConsumerSpec) -> Option<String> {
    let listed = ask(js, format!("CONSUMER.LIST.{}", spec.stream)).await.ok()?;
    let consumers = listed.get("consumers")?.as_array()?;
    consumers.iter().find_map(|consumer| {
        let name = consumer.get("name")?.as_str().filter(|name| *name != spec.name)?;
        let theirs = filters(consumer.get("config")?);
        let all = spec.filter_subjects.is_empty() || theirs.is_empty();
        let meets = all || spec.filter_subjects.iter().any(|ours| theirs.iter().any(|other| meet(ours, other)));
        meets.then(|| name.to_owned())
    })
}

fn filters(config: &Value) -> Vec<&str> {
    let many = config.get("filter_subjects").and_then(Value::as_array).into_iter().flatten();
    many.chain(config.get("filter_subject")).filter_map(Value::as_str).filter(|subject| !subject.is_empty()).collect()
}
