//! Whether any stream takes a subject that nobody answers on: none does, or its stream has no leader for a moment.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Subject, jetstream};
use foldhash::HashSet;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api::call;

/// What is known of who takes a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    /// No stream does, and no retry helps.
    ByNobody,
    /// This stream does: it has no leader at present.
    By(Arc<str>),
    /// The server does not say, or would not know: nobody answers for the API, this user may not ask, or what is published lies in
    /// another account or domain.
    Unknown,
}

/// How long an answer is waited for: a user who may not ask gets none.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many subjects are asked for at once; others are when they are refused again.
const AT_ONCE: usize = 64;

/// Asks who takes subjects, each once at a time.
#[derive(Debug, Default)]
pub(super) struct Takers {
    asked: HashSet<String>,
    asking: JoinSet<(Subject, Taken)>,
}

impl Takers {
    pub fn ask(&mut self, jetstream: &jetstream::Context, subject: &Subject) {
        if self.asking.len() >= AT_ONCE || !self.asked.insert(subject.to_string()) {
            return;
        }
        let (jetstream, subject) = (jetstream.clone(), subject.clone());
        self.asking.spawn(async move {
            let of = serde_json::json!({ "subject": &*subject });
            let answer = timeout(PATIENCE, call(&jetstream, "STREAM.NAMES".to_owned(), Some(&of))).await;
            let taken = answer.ok().and_then(Result::ok).map_or(Taken::Unknown, |names| read(&names));
            (subject, taken)
        });
    }

    /// Waits for the next answer; never ready when nothing is asked.
    ///
    /// # Cancel safety
    /// Cancel safe: no answer is lost.
    pub async fn answer(&mut self) -> (Subject, Taken) {
        loop {
            match self.asking.join_next().await {
                Some(Ok((subject, taken))) => {
                    self.asked.remove(&*subject);
                    return (subject, taken);
                }
                // The runtime is shutting down.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}

// In a cluster the leader of the whole answers, who knows every stream, whether or not it has a leader of its own.
fn read(names: &Value) -> Taken {
    match (names.pointer("/streams/0").and_then(Value::as_str), names.get("total").and_then(Value::as_u64)) {
        (Some(stream), _) => Taken::By(stream.into()),
        (None, Some(0)) => Taken::ByNobody,
        (None, _) => Taken::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_counts_no_stream_says_that_there_is_none() {
        let none = serde_json::json!({ "total": 0, "offset": 0, "limit": 1024, "streams": null });
        assert_eq!(read(&none), Taken::ByNobody);
        assert_eq!(read(&serde_json::json!({ "total": 1, "streams": ["ORDERS"] })), Taken::By("ORDERS".into()));
        assert_eq!(read(&serde_json::json!({ "streams": [] })), Taken::Unknown);
    }
}
