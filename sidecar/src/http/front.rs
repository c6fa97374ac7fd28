//! The HTTP of a sidecar among several. One that follows answers probes and metrics itself, shows the page, and passes everything else on
//! to the one that leads; once it leads it answers everything.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::sync::watch;
use tower::ServiceExt;
use tracing::info;

use super::routes::LARGEST_BODY;
use super::{Options, access, ask, page, routes};
use crate::control_api::{Refused, RefusedCode};
use crate::sharing::Leader;

/// How long the one that leads may take to answer. A change waits until it is in force.
const PATIENCE: Duration = Duration::from_secs(60);
/// Says that a request was passed on already, so that it is not passed on for ever.
const PASSED_ON: HeaderName = HeaderName::from_static("x-nats-bridge-passed-on");

/// What a sidecar among several answers with.
#[derive(Clone)]
pub struct Front {
    /// Set once it leads.
    pub leads: watch::Receiver<Option<Options>>,
    /// Who leads while it follows; `None` while it does neither.
    pub leader: watch::Receiver<Option<Leader>>,
    /// As in [`Options`].
    pub token: Option<String>,
    /// As in [`Options`].
    pub metrics: Option<PrometheusHandle>,
}

pub(super) fn router(front: Front) -> Router {
    let following = Router::new()
        .route("/", get(page::page))
        .route("/livez", get(|| async { Json(json!({ "live": true })) }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/access", get(may_change))
        .fallback(pass_on)
        .with_state(front.clone());
    Router::new().fallback(dispatch).with_state((front, following))
}

async fn dispatch(State((front, following)): State<(Front, Router)>, request: Request) -> Response {
    let leads = front.leads.borrow().clone();
    gauge!("natsbridge_sidecar_leads").set(if leads.is_some() { 1.0 } else { 0.0 });
    let answered = match leads {
        Some(options) => routes::router(options).oneshot(request).await,
        None => following.oneshot(request).await,
    };
    answered.unwrap_or_else(|never| match never {})
}

async fn ready(State(front): State<Front>) -> Response {
    let leader = front.leader.borrow().clone();
    let (follows, reason) = match leader {
        None => (None, Some("no sidecar leads yet".to_owned())),
        Some(leader) => {
            let reason = match &leader.unreachable {
                Some(why) => Some(format!("the sidecar that leads cannot be reached: {why}")),
                None if leader.answers().await => None,
                None => Some(format!("the sidecar that leads does not answer: {}", leader.name)),
            };
            (Some(leader.name), reason)
        }
    };
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let reasons: Vec<String> = reason.into_iter().collect();
    (code, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons, "follows": follows }))).into_response()
}

async fn metrics(State(front): State<Front>) -> Response {
    let Some(handle) = &front.metrics else { return routes::not_found("metrics are not recorded here") };
    ([(header::CONTENT_TYPE, super::metrics::CONTENT_TYPE)], handle.render()).into_response()
}

async fn may_change(State(front): State<Front>, peer: ConnectInfo<SocketAddr>, request: Request) -> Response {
    let token = front.token.is_some();
    match access::check(front.token.as_deref(), peer.0, request.headers()) {
        Ok(()) => pass_on(State(front), peer, request).await,
        Err((_, Refused { reason, fix, .. })) => {
            Json(json!({ "changes": false, "token": token, "reason": reason, "fix": fix })).into_response()
        }
    }
}

async fn pass_on(State(front): State<Front>, ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request) -> Response {
    if request.method() != Method::GET
        && let Err((code, refused)) = access::check(front.token.as_deref(), peer, request.headers())
    {
        info!(%peer, reason = refused.reason, "a change was not taken");
        return (code, Json(refused)).into_response();
    }
    let leader = front.leader.borrow().clone();
    let Some(leader) = leader.filter(|_| !request.headers().contains_key(PASSED_ON)) else {
        return unavailable("no sidecar leads now".to_owned());
    };
    if let Some(why) = leader.unreachable {
        return unavailable(format!("the sidecar that leads cannot be reached: {why}"));
    }
    match exchange(&leader.http, request).await {
        Ok((code, body)) => (code, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(why) => {
            unavailable(format!("the sidecar that leads ({}) does not answer at {}: {why}", leader.name, leader.http))
        }
    }
}

/// Asks the one that leads the same. Its answers are JSON.
async fn exchange(address: &str, request: Request) -> Result<(StatusCode, Vec<u8>), String> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, LARGEST_BODY).await.map_err(|error| error.to_string())?;
    let body = std::str::from_utf8(&body).map_err(|_| "the request is not UTF-8".to_owned())?;
    let head =
        head(&parts.method, parts.uri.path_and_query().map_or("/", |path| path.as_str()), address, &parts.headers);
    let question = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let answer = match tokio::time::timeout(PATIENCE, ask::exchange(address, &question)).await {
        Ok(answer) => answer.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let (code, body) = ask::split(&answer).ok_or("what answers is not a sidecar")?;
    let code = StatusCode::from_u16(code).map_err(|error| error.to_string())?;
    Ok((code, body.to_vec()))
}

fn head(method: &Method, path: &str, address: &str, headers: &HeaderMap) -> String {
    let token = headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok());
    let token = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
    format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n{PASSED_ON}: 1\r\n{token}"
    )
}

fn unavailable(reason: String) -> Response {
    let refused = Refused::new(RefusedCode::SideDown, reason, "try again in a moment, or look at /readyz and the logs");
    (StatusCode::SERVICE_UNAVAILABLE, Json(refused)).into_response()
}
