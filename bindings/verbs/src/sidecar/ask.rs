//! What a cutover is asked: of a sidecar that is alone directly, of one among others over HTTP, wherever the one that leads is.

use std::future::Future;
use std::sync::{Arc, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};
use sidecar::control_api::{Backfill, Change, Control, Refused, RefusedCode, Rehearse, Status, Target, Weight};
use sidecar::sharing::Shared;

use super::{Kind, Running};
use crate::{Fault, read};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    by: String,
    reason: String,
    percent: Option<f64>,
    force: bool,
    unrehearsed: bool,
    stay_ms: u64,
    queues: Vec<String>,
    dry_run: bool,
    last: u64,
}

impl Default for Asked {
    fn default() -> Self {
        Asked {
            by: String::new(),
            reason: String::new(),
            percent: None,
            force: false,
            unrehearsed: false,
            stay_ms: 5_000,
            queues: Vec::new(),
            dry_run: false,
            last: 50,
        }
    }
}

/// The longest stay of a rehearsal.
const LONGEST_STAY_MS: u64 = 86_400_000;

/// What is asked.
enum Question {
    Status,
    Drain,
    Gate,
    Changes,
    Log(u64),
    Rehearsal,
    BackfillReport,
    Change(Change),
    Rehearse(Rehearse),
    Backfill(Backfill),
}

impl Running {
    /// Asks its cutover what `verb` says with `arguments`, an object of JSON, and gives the answer as JSON. What takes long is begun; how
    /// far it is, another verb tells.
    ///
    /// # Errors
    /// `Argument`, or `Told` with the code of the refusal.
    pub fn ask(
        self: &Arc<Self>,
        verb: String,
        arguments: String,
    ) -> impl Future<Output = Result<String, Fault>> + Send + 'static {
        let running = Arc::clone(self);
        async move {
            let question = question(&verb, read(&arguments)?)?;
            let drains = matches!(question, Question::Drain);
            let answer = match &running.kind {
                Kind::Alone(sidecar) => asked_here(sidecar.control(), question).await,
                Kind::Shared(shared) => asked_of(Arc::clone(shared), question).await,
            }?;
            if drains { running.left(&answer) } else { Ok(answer) }
        }
    }

    fn left(&self, status: &str) -> Result<String, Fault> {
        let status: Status =
            serde_json::from_str(status).map_err(|error| Fault::told("rejected", error.to_string(), Vec::new()))?;
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        match rates.look(&status, self.began.elapsed()) {
            Ok(drain) => Ok(json!(drain).to_string()),
            Err(why) => Err(Refused::new(RefusedCode::SideDown, why, "wait until that broker answers").into()),
        }
    }
}

fn question(verb: &str, asked: Asked) -> Result<Question, Fault> {
    let Asked { by, reason, percent, force, unrehearsed, stay_ms, queues, dry_run, last } = asked;
    let by = if by.is_empty() { format!("process {}", std::process::id()) } else { by };
    let from = String::new();
    let to = match verb {
        "status" => return Ok(Question::Status),
        "drain" => return Ok(Question::Drain),
        "gate" => return Ok(Question::Gate),
        "changes" => return Ok(Question::Changes),
        "rehearsal" => return Ok(Question::Rehearsal),
        "backfill_report" => return Ok(Question::BackfillReport),
        "log" if (1..=1_000).contains(&last) => return Ok(Question::Log(last)),
        "log" => return Err(Fault::argument("last", "1 to 1000")),
        "rehearse" if stay_ms > LONGEST_STAY_MS || stay_ms % 1_000 != 0 => {
            return Err(Fault::argument("stay_ms", "whole seconds, 86400000 at most"));
        }
        "rehearse" => return Ok(Question::Rehearse(Rehearse { stay_ms, by, reason, from })),
        "backfill" => return Ok(Question::Backfill(Backfill { queues, dry_run, by, reason, from })),
        "observe" => Target::Observe,
        "shadow" => Target::Shadow,
        "weight" => {
            let weight = percent.and_then(Weight::from_percent);
            Target::Weight(weight.ok_or_else(|| Fault::argument("percent", "0 to 100, with at most two decimals"))?)
        }
        "rollback" => Target::Rollback,
        "detach" => Target::Detach,
        _ => return Err(Fault::argument("verb", format!("there is no verb '{verb}' of a sidecar"))),
    };
    Ok(Question::Change(Change { to, by, reason, force, unrehearsed, from }))
}

async fn asked_here(control: Arc<dyn Control>, question: Question) -> Result<String, Fault> {
    let answer = match question {
        Question::Status | Question::Drain => json!(control.status().await),
        Question::Gate => json!(control.gate().await),
        Question::Changes => json!(control.changes().await),
        Question::Log(last) => json!(control.log(last).await?),
        Question::Rehearsal => json!(control.rehearsal().await),
        Question::BackfillReport => json!(control.backfill_status().await),
        Question::Change(change) => json!(carried_through(async move { control.change(change).await }).await?),
        Question::Rehearse(asked) => json!(carried_through(control.rehearse(asked)).await?),
        Question::Backfill(asked) => json!(carried_through(control.backfill(asked)).await?),
    };
    Ok(answer.to_string())
}

async fn asked_of(shared: Arc<Shared>, question: Question) -> Result<String, Fault> {
    let (method, path, body) = match question {
        Question::Status | Question::Drain => ("GET", "/status".to_owned(), None),
        Question::Gate => ("GET", "/gate".to_owned(), None),
        Question::Changes => ("GET", "/changes".to_owned(), None),
        Question::Log(last) => ("GET", format!("/log?last={last}"), None),
        Question::Rehearsal => ("GET", "/rehearse".to_owned(), None),
        Question::BackfillReport => ("GET", "/backfill".to_owned(), None),
        Question::Rehearse(Rehearse { stay_ms, by, reason, .. }) => {
            let body = json!({ "stay_s": stay_ms / 1_000, "by": by, "reason": reason });
            ("POST", "/rehearse".to_owned(), Some(body))
        }
        Question::Backfill(Backfill { queues, dry_run, by, reason, .. }) => {
            let body = json!({ "queues": queues, "dry_run": dry_run, "by": by, "reason": reason });
            ("POST", "/backfill".to_owned(), Some(body))
        }
        Question::Change(change) => {
            let (path, body) = change_as_sent(change);
            ("POST", path.to_owned(), Some(body))
        }
    };
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    carried_through(async move { shared.ask(method, &path, &body).await }).await
}

fn change_as_sent(change: Change) -> (&'static str, Value) {
    let Change { to, by, reason, force, unrehearsed, .. } = change;
    let body = json!({ "by": by, "reason": reason });
    match to {
        Target::Observe => ("/observe", body),
        Target::Shadow => ("/shadow", body),
        Target::Rollback => ("/rollback", body),
        Target::Detach => ("/detach", body),
        Target::Weight(weight) => {
            let percent = weight.percent();
            let body =
                json!({ "percent": percent, "by": by, "reason": reason, "force": force, "unrehearsed": unrehearsed });
            ("/weight", body)
        }
    }
}

/// Carried through although nobody may wait for it any more: half a change would be neither one thing nor the other.
async fn carried_through<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::spawn(work).await {
        Ok(done) => Ok(done?),
        Err(ended) => Err(Fault::told("closed", format!("the sidecar ended: {ended}"), Vec::new())),
    }
}
