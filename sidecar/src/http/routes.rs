//! Requests to answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tracing::info;

use super::probes::{Readiness, readiness};
use super::{Options, access, body, metrics, page};
use crate::control_api::{
    Backfill, BackfillReport, Change, ChangeRecord, Control, Failover, FailoverReport, History, Refused, RefusedCode,
    Rehearsal, Rehearse, Status, Target, Verdict,
};

/// The largest body of a request, in bytes.
pub(super) const LARGEST_BODY: usize = 64 * 1024;
/// How long a status may take before probes and metrics go on without it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

type Shared = State<Arc<Options>>;
type Caller = ConnectInfo<SocketAddr>;

/// All requests that are answered.
pub(super) fn router(options: Options) -> Router {
    let change = |target: Option<Target>| {
        post(move |State(options): Shared, ConnectInfo(peer): Caller, headers: HeaderMap, body: Bytes| async move {
            answer(&options, target, peer, &headers, &body).await
        })
    };
    Router::new()
        .route("/", get(page::page))
        .route("/status", get(status))
        .route("/gate", get(gate))
        .route("/history", get(history))
        .route("/changes", get(changes))
        .route("/access", get(may_change))
        .route("/observe", change(Some(Target::Observe)))
        .route("/shadow", change(Some(Target::Shadow)))
        .route("/weight", change(None))
        .route("/rollback", change(Some(Target::Rollback)))
        .route("/detach", change(Some(Target::Detach)))
        .route("/failover", get(failover_status).post(failover))
        .route("/rehearse", get(rehearsal).post(rehearse))
        .route("/log", get(log))
        .route("/backfill", get(backfill_status).post(backfill))
        .route("/livez", get(|| async { Json(json!({ "live": true })) }))
        .route("/readyz", get(ready))
        .route("/metrics", get(render))
        .fallback(|| async { not_found("there is nothing here") })
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(Arc::new(options))
}

async fn status(State(options): Shared) -> Json<Status> {
    Json(options.control.status().await)
}

async fn gate(State(options): Shared) -> Json<Verdict> {
    Json(options.control.gate().await)
}

async fn history(State(options): Shared) -> Json<History> {
    Json(options.control.history().await)
}

async fn changes(State(options): Shared) -> Json<Vec<ChangeRecord>> {
    Json(options.control.changes().await)
}

/// Whether this caller may change something, and whether that takes a token.
async fn may_change(State(options): Shared, ConnectInfo(peer): Caller, headers: HeaderMap) -> Response {
    let token = options.token.is_some();
    Json(match access::check(options.token.as_deref(), peer, &headers) {
        Ok(()) => json!({ "changes": true, "token": token }),
        Err((_, refused)) => json!({ "changes": false, "token": token, "reason": refused.reason, "fix": refused.fix }),
    })
    .into_response()
}

async fn ready(State(options): Shared) -> Response {
    let readiness = match in_time(&*options.control).await {
        Some(status) => readiness(&status),
        None => Readiness { ready: false, reasons: vec!["the sidecar does not answer in time".to_owned()] },
    };
    let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(readiness)).into_response()
}

async fn render(State(options): Shared) -> Response {
    let Some(handle) = &options.metrics else { return not_found("metrics are not recorded here") };
    // Without it the gauges keep their last values; what the crates count is shown in any case.
    if let Some(status) = in_time(&*options.control).await {
        metrics::observe(&status);
    }
    if let Ok(verdict) = tokio::time::timeout(STATUS_TIMEOUT, options.control.gate()).await {
        metrics::observe_gate(&verdict);
    }
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], handle.render()).into_response()
}

async fn in_time(control: &dyn Control) -> Option<Status> {
    tokio::time::timeout(STATUS_TIMEOUT, control.status()).await.ok()
}

async fn answer(
    options: &Options,
    target: Option<Target>,
    peer: SocketAddr,
    headers: &HeaderMap,
    body: &[u8],
) -> Response {
    if let Err((code, refused)) = access::check(options.token.as_deref(), peer, headers) {
        info!(%peer, reason = refused.reason, "a change was not taken");
        return (code, Json(refused)).into_response();
    }
    let change = match body::change(target, body) {
        Ok(change) => Change { from: peer.to_string(), ..change },
        Err(refused) => return refusal(refused),
    };
    let asked = change.clone();
    // A caller that goes away does not leave a change half made.
    let control = Arc::clone(&options.control);
    let changed = tokio::spawn(async move { control.change(change).await }).await;
    let (to, by, why, force) = (asked.to, asked.by, asked.reason, asked.force);
    match changed {
        Ok(Ok(adopted)) => {
            let (epoch, took_ms) = (adopted.epoch, adopted.took_ms);
            info!(?to, by, why, force, %peer, changed = adopted.changed, epoch, took_ms, "a change was asked for and is in force");
            Json(adopted).into_response()
        }
        Ok(Err(refused)) => {
            info!(?to, by, why, force, %peer, code = ?refused.code, reason = refused.reason, "a change was refused");
            refusal(refused)
        }
        Err(error) => {
            tracing::error!(?to, by, %error, "the task of a change panicked");
            let refused =
                Refused::new(RefusedCode::Conflict, "the change failed", "look at the sidecar's log and at its status");
            (StatusCode::INTERNAL_SERVER_ERROR, Json(refused)).into_response()
        }
    }
}

/// How far a failover is; `null` when there was none.
async fn failover_status(State(options): Shared) -> Json<Option<FailoverReport>> {
    Json(options.control.failover_status().await)
}

async fn failover(State(options): Shared, ConnectInfo(peer): Caller, headers: HeaderMap, body: Bytes) -> Response {
    if let Err((code, refused)) = access::check(options.token.as_deref(), peer, &headers) {
        info!(%peer, reason = refused.reason, "a failover was not taken");
        return (code, Json(refused)).into_response();
    }
    let asked = match body::failover(&body) {
        Ok(asked) => Failover { from: peer.to_string(), ..asked },
        Err(refused) => return refusal(refused),
    };
    let Failover { lost, execute, force, by, reason, .. } = &asked;
    info!(%lost, execute, force, by, reason, %peer, "a failover is asked for");
    match Arc::clone(&options.control).failover(asked).await {
        Ok(report) => Json(report).into_response(),
        Err(refused) => {
            info!(%peer, code = ?refused.code, reason = refused.reason, "a failover was refused");
            refusal(refused)
        }
    }
}

/// The last entries of the log.
async fn log(State(options): Shared, RawQuery(query): RawQuery) -> Response {
    let asked = query.as_deref().unwrap_or("last=100").strip_prefix("last=").and_then(|last| last.parse().ok());
    let Some(last) = asked.filter(|last| (1..=1_000).contains(last)) else {
        let fix = "send a number from 1 to 1000, such as /log?last=50";
        return refusal(Refused::invalid("last", "`last` is not such a number", fix));
    };
    match options.control.log(last).await {
        Ok(entries) => Json(entries).into_response(),
        Err(refused) => refusal(refused),
    }
}

/// The last rehearsal; `null` when there was none.
async fn rehearsal(State(options): Shared) -> Json<Option<Rehearsal>> {
    Json(options.control.rehearsal().await)
}

async fn rehearse(State(options): Shared, ConnectInfo(peer): Caller, headers: HeaderMap, body: Bytes) -> Response {
    if let Err((code, refused)) = access::check(options.token.as_deref(), peer, &headers) {
        info!(%peer, reason = refused.reason, "a rehearsal was not taken");
        return (code, Json(refused)).into_response();
    }
    let asked = match body::rehearse(&body) {
        Ok(asked) => Rehearse { from: peer.to_string(), ..asked },
        Err(refused) => return refusal(refused),
    };
    match Arc::clone(&options.control).rehearse(asked).await {
        Ok(rehearsal) => Json(rehearsal).into_response(),
        Err(refused) => {
            info!(%peer, code = ?refused.code, reason = refused.reason, "a rehearsal was refused");
            refusal(refused)
        }
    }
}

/// How far a backfill is; `null` when there was none.
async fn backfill_status(State(options): Shared) -> Json<Option<BackfillReport>> {
    Json(options.control.backfill_status().await)
}

async fn backfill(State(options): Shared, ConnectInfo(peer): Caller, headers: HeaderMap, body: Bytes) -> Response {
    if let Err((code, refused)) = access::check(options.token.as_deref(), peer, &headers) {
        info!(%peer, reason = refused.reason, "a backfill was not taken");
        return (code, Json(refused)).into_response();
    }
    let asked = match body::backfill(&body) {
        Ok(asked) => Backfill { from: peer.to_string(), ..asked },
        Err(refused) => return refusal(refused),
    };
    let Backfill { queues, dry_run, by, reason, .. } = &asked;
    info!(?queues, dry_run, by, reason, %peer, "a backfill is asked for");
    match Arc::clone(&options.control).backfill(asked).await {
        Ok(report) => Json(report).into_response(),
        Err(refused) => {
            info!(%peer, code = ?refused.code, reason = refused.reason, "a backfill was refused");
            refusal(refused)
        }
    }
}

fn refusal(refused: Refused) -> Response {
    let code = match refused.code {
        RefusedCode::Invalid => StatusCode::BAD_REQUEST,
        RefusedCode::Forbidden => StatusCode::FORBIDDEN,
        RefusedCode::WrongPhase
        | RefusedCode::Unmapped
        | RefusedCode::Gate
        | RefusedCode::NotRehearsed
        | RefusedCode::NotDrained
        | RefusedCode::Conflict => StatusCode::CONFLICT,
        RefusedCode::SideDown | RefusedCode::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(refused)).into_response()
}

pub(super) fn not_found(what: &str) -> Response {
    let fix = "see GET /, /status, /gate, /history, /changes, /access, /livez, /readyz, /failover, /backfill, /rehearse, /log, /metrics and POST /observe, /shadow, /weight, /rollback, /detach, /failover, /backfill, /rehearse";
    (StatusCode::NOT_FOUND, Json(Refused::new(RefusedCode::Invalid, what, fix))).into_response()
}

async fn wrong_method() -> Response {
    let refused = Refused::new(RefusedCode::Invalid, "the method does not fit the path", "GET reads, POST changes");
    (StatusCode::METHOD_NOT_ALLOWED, Json(refused)).into_response()
}
