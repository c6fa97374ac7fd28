//! The HTTP of `serve`: probes and metrics, nothing to change.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use nats_bridge::Bridge;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::probes::Readiness;

/// What the probes of a gateway look at.
#[derive(Clone)]
pub struct Gateway {
    /// Its connection to NATS.
    pub bridge: Bridge,
    /// What renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Cancelled when it shuts down.
    pub shutdown: CancellationToken,
}

pub(super) fn router(gateway: Gateway) -> Router {
    Router::new()
        .route("/livez", get(|| async { Json(json!({ "live": true })) }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|| async {
            let fix = "see GET /livez, /readyz, /metrics; RabbitMQ's HTTP API is served with --management";
            (StatusCode::NOT_FOUND, Json(json!({ "error": "not_found", "fix": fix })))
        })
        .with_state(gateway)
}

// A gateway whose NATS is away takes connections and publishes, and confirms nothing: new clients are better off elsewhere.
async fn ready(State(gateway): State<Gateway>) -> Response {
    let mut reasons = Vec::new();
    if gateway.shutdown.is_cancelled() {
        reasons.push("the gateway is shutting down".to_owned());
    }
    if !gateway.bridge.connection().borrow().connected {
        reasons.push("nats does not answer".to_owned());
    }
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, reasons })).into_response()
}

async fn metrics(State(gateway): State<Gateway>) -> Response {
    ([(header::CONTENT_TYPE, super::metrics::CONTENT_TYPE)], gateway.metrics.render()).into_response()
}
