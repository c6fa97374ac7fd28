//! What the core logs, for `lib/logs.ts` to pass on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use napi::Status;
use napi::bindgen_prelude::{Env, Function};
use napi::threadsafe_function::ThreadsafeFunctionCallMode;
use napi_derive::napi;
use nats_bridge_verbs::logs::{self, Record};
use serde_json::{Value, json};

use crate::errors;

type Wake = Arc<dyn Fn() + Send + Sync>;

/// Wakes the event loop of the thread that is given the records, until that thread ends.
static WAKE: Mutex<Option<Wake>> = Mutex::new(None);

fn wake() -> std::sync::MutexGuard<'static, Option<Wake>> {
    WAKE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to gather what this process logs, and calls `wake` on the event loop when there is something to take. It does not keep the
/// process running.
#[napi]
pub fn collect_logs(env: &Env, wake: Function<'_, (), ()>) -> napi::Result<()> {
    let function = wake.build_threadsafe_function::<()>().weak::<true>().callee_handled::<false>().build()?;
    let own: Wake = Arc::new(move || {
        // Otherwise the event loop has ended.
        let _: Status = function.call((), ThreadsafeFunctionCallMode::NonBlocking);
    });
    {
        let mut place = self::wake();
        if place.is_some() {
            return Err(errors::invalid("onLog", "another thread of this process is given the records"));
        }
        *place = Some(own);
    }
    // A thread that ends leaves the place to another one.
    env.add_env_cleanup_hook((), |()| drop(self::wake().take()))?;
    // None: an earlier thread has begun it.
    if logs::start(tracing::Level::INFO, || {
        let wake = self::wake().clone();
        if let Some(wake) = wake {
            wake();
        }
    })
    .is_none()
        && let Some(logs) = logs::here()
    {
        // What nobody has taken; only what comes into an empty queue wakes.
        while !logs.take().records.is_empty() {}
    }
    Ok(())
}

/// From which level on records are gathered: `error`, `warn`, `info` or `debug`.
#[napi]
pub fn set_log_level(level: String) -> napi::Result<()> {
    let level = level.parse().map_err(|_| errors::invalid("level", "error, warn, info or debug"))?;
    logs::set_level(level);
    Ok(())
}

/// What has gathered, as JSON.
#[napi]
pub fn take_logs() -> String {
    let batch = logs::here().map(logs::Logs::take).unwrap_or_default();
    let records: Vec<Value> = batch.records.into_iter().map(convert).collect();
    json!({ "records": records, "dropped": batch.dropped }).to_string()
}

fn convert(record: Record) -> Value {
    let at = record.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0;
    let fields: serde_json::Map<_, _> =
        record.fields.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let level = record.level.as_str().to_lowercase();
    json!({ "level": level, "name": record.name, "message": record.text, "fields": fields, "atMs": at })
}
