//! JetStream's API as plain requests: exact about what is sent, and the same for every server version.

use std::time::{Duration, Instant};

use bytes::Bytes;
use nats_bridge::Bridge;
use serde_json::{Value, json};

use crate::error::{AmqpError, ReplyCode};

/// Why an API call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    /// JetStream refused it.
    #[error("{text} (JetStream error {err_code})")]
    Refused {
        /// JetStream's error code.
        err_code: u64,
        /// Its text.
        text: String,
    },
    /// No answer came: it may have been done.
    #[error("no answer from JetStream to {call}: {text}")]
    NoAnswer {
        /// What was asked.
        call: String,
        /// Why there is no answer.
        text: String,
    },
}

impl ApiError {
    /// Whether the stream or consumer is not there (10059, 10014).
    pub(crate) fn not_found(&self) -> bool {
        matches!(self, ApiError::Refused { err_code: 10059 | 10014, .. })
    }

    /// Whether a stream of that name is there with another configuration (10058), or its subject is taken (10065).
    pub(crate) fn in_use(&self) -> bool {
        matches!(self, ApiError::Refused { err_code: 10058 | 10065, .. })
    }

    /// Whether a message of that sequence is not there (10037, 10043, 10057).
    pub(crate) fn no_message(&self) -> bool {
        matches!(self, ApiError::Refused { err_code: 10037 | 10043 | 10057, .. })
    }

    /// Whether the servers cannot hold that many replicas (10074 not clustered, 10005 no suitable peers). One that is down
    /// for now is not too few.
    pub(crate) fn too_few_servers(&self) -> bool {
        match self {
            ApiError::Refused { err_code: 10074, .. } => true,
            ApiError::Refused { err_code: 10005, text } => !text.contains("offline"),
            _ => false,
        }
    }
}

impl From<ApiError> for AmqpError {
    fn from(error: ApiError) -> Self {
        AmqpError::new(ReplyCode::InternalError, error.to_string())
    }
}

const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends one API request and waits for the answer, at most 5 s.
pub(crate) async fn call(bridge: &Bridge, subject: &str, body: &Value) -> Result<Value, ApiError> {
    let payload = match body {
        Value::Null => Bytes::new(),
        body => Bytes::from(body.to_string()),
    };
    let request = async_nats::Request::new().payload(payload).timeout(Some(TIMEOUT));
    let no_answer = |text: String| ApiError::NoAnswer { call: subject.to_owned(), text };
    let answer = bridge
        .client()
        .send_request(format!("$JS.API.{subject}"), request)
        .await
        .map_err(|error| no_answer(error.to_string()))?;
    let mut answer: Value = serde_json::from_slice(&answer.payload).map_err(|error| no_answer(error.to_string()))?;
    match answer.get_mut("error") {
        Some(error) => Err(ApiError::Refused {
            err_code: error["err_code"].as_u64().unwrap_or_default(),
            text: error["description"].as_str().unwrap_or_default().to_owned(),
        }),
        None => Ok(answer),
    }
}

/// For how long something that is to be there in the end is asked for: a cluster that has just lost a server does not answer
/// until it has new leaders.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// The pause before it is asked for again.
pub(crate) const PAUSE: Duration = Duration::from_millis(250);

/// [`call`] for what may be repeated, such as making something that may be there: asks again for [`PATIENCE`] while no answer
/// comes.
pub(crate) async fn call_again(bridge: &Bridge, subject: &str, body: &Value) -> Result<Value, ApiError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call(bridge, subject, body).await {
            Err(ApiError::NoAnswer { .. }) if Instant::now() < deadline => {
                tracing::warn!(subject, "no answer from JetStream; asked again");
                tokio::time::sleep(PAUSE).await;
            }
            answered => return answered,
        }
    }
}

/// Every stream whose subjects overlap `subject`, as the server describes it.
pub(crate) async fn streams(bridge: &Bridge, subject: &str) -> Result<Vec<Value>, ApiError> {
    let mut found = Vec::new();
    loop {
        let mut answer = call(bridge, "STREAM.LIST", &json!({ "offset": found.len(), "subject": subject })).await?;
        let total = answer["total"].as_u64().unwrap_or_default();
        match answer["streams"].take() {
            Value::Array(page) if !page.is_empty() => found.extend(page),
            _ => return Ok(found),
        }
        if found.len() as u64 >= total {
            return Ok(found);
        }
    }
}
