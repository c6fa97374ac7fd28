//! Calls of JetStream's API, with its errors as ours.

use async_nats::{Request, RequestErrorKind, jetstream};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

/// Calls `$JS.API.{subject}` and gives the answer's object.
///
/// Codes from the server's `errors.json`: 10014 consumer not found, 10059 stream not found; 10013, 10058, 10065, 10148:
/// it exists and is different; 10039, 10076: JetStream is not enabled.
pub(crate) async fn call<B: Serialize>(js: &jetstream::Context, subject: String, body: Option<&B>) -> Result<Value> {
    let failed = |kind, e: BoxError| Error::new(kind).with("call", &subject).because(e);
    // Calls without arguments must have an empty body: the server refuses `null` in some.
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(|e| failed(ErrorKind::Config, e.into()))?,
        None => Vec::new(),
    };
    let request = Request::new().payload(body.into());
    let answer = js.client().send_request(format!("$JS.API.{subject}"), request).await.map_err(|e| {
        let kind = match e.kind() {
            RequestErrorKind::NoResponders => ErrorKind::Unreachable,
            RequestErrorKind::TimedOut => ErrorKind::Timeout,
            RequestErrorKind::InvalidSubject => ErrorKind::Config,
            // The client was closed: it takes nothing, or gives no answer any more.
            RequestErrorKind::Other => ErrorKind::Closed,
            _ => ErrorKind::Rejected,
        };
        failed(kind, e.into())
    })?;
    let answer: Value = serde_json::from_slice(&answer.payload).map_err(|e| failed(ErrorKind::Rejected, e.into()))?;
    let Some(error) = answer.get("error") else { return Ok(answer) };
    let err_code = error.get("err_code").and_then(Value::as_u64).unwrap_or(0);
    let kind = match err_code {
        10014 | 10059 => ErrorKind::NotFound,
        10013 | 10058 | 10065 | 10148 => ErrorKind::Conflict,
        10039 | 10076 => ErrorKind::Unsupported,
        10008 | 10009 | 10023 => ErrorKind::Unreachable,
        _ => ErrorKind::Rejected,
    };
    let text = error.get("description").and_then(Value::as_str).unwrap_or("no text").to_owned();
    Err(Error::new(kind).with("call", subject).with("err_code", err_code).with("why", text))
}

/// Calls `$JS.API.{subject}` without arguments.
pub(crate) async fn ask(js: &jetstream::Context, subject: String) -> Result<Value> {
    call::<()>(js, subject, None).await
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
