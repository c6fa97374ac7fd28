//! HTTP: who asks, how much at once, and answers as statuses and bodies.

use std::sync::Arc;

use amqp_compat::backend::Backend as _;
use amqp_compat::model::access::Account;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::sync::Semaphore;
use tracing::{debug, error, info};

use super::answers::{self, Answer, Request};
use super::broker::Broker;
use super::client::Caller;
use super::documents::refusal::Refusal;
use super::documents::route::{self, Route};

/// The largest body of a request, in bytes: the largest message in base64, and room.
const LARGEST_BODY: usize = 24 << 20;

/// How many requests are worked on at once; more wait.
const REQUESTS: usize = 64;

#[derive(Clone)]
struct Shared {
    broker: Arc<Broker>,
    places: Arc<Semaphore>,
}

/// All requests that are answered.
pub(super) fn router(broker: Broker) -> Router {
    let shared = Shared { broker: Arc::new(broker), places: Arc::new(Semaphore::new(REQUESTS)) };
    Router::new().fallback(answer).layer(DefaultBodyLimit::max(LARGEST_BODY)).with_state(shared)
}

async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (path, verb) = (uri.path().to_owned(), method.clone());
    let route = route::read(uri.path());
    let (caller, viewer) = match caller(&shared.broker, &headers).await {
        Some(found) => found,
        // How to log in is for everybody.
        None if route == Some(Route::Auth) => (Caller::nobody(), Arc::new(Account::nobody())),
        None => {
            info!(path, "a request to the HTTP API was refused: wrong user or password");
            return unauthorised();
        }
    };
    let user = caller.user.clone();
    let broker = shared.broker.seen_by(viewer);
    // A caller that goes away does not leave a change half made.
    let work = tokio::spawn(async move {
        let _place = shared.places.acquire().await;
        let route = route.ok_or_else(Refusal::object_not_found)?;
        let body = body.map_err(|rejection| too_large(&rejection))?;
        let query = uri.query().unwrap_or_default();
        let request = Request { method: &method, query, headers: &headers, body: &body, caller: &caller };
        answers::answer(&broker, route, request).await
    });
    let answered = match work.await {
        Ok(answered) => answered,
        Err(failure) => {
            error!(path, %failure, "the task of a request to the HTTP API panicked");
            Err(Refusal { status: 500, error: "internal_error", reason: "the request failed; see the log".to_owned() })
        }
    };
    debug!(user, %verb, path, refused = answered.is_err(), "a request to the HTTP API");
    match answered {
        Ok(Answer::Document(document)) => json(StatusCode::OK, &document),
        Ok(Answer::Status(status, document)) => json(code(status), &document),
        Ok(Answer::Created(location)) => {
            let mut response = empty(StatusCode::CREATED);
            if let Some(location) = location.and_then(|location| HeaderValue::from_str(&location).ok()) {
                response.headers_mut().insert(LOCATION, location);
            }
            response
        }
        Ok(Answer::Done) => empty(StatusCode::NO_CONTENT),
        Err(refusal) => json(code(refusal.status), &refusal.body()),
    }
}

/// Who asks, if the login is right.
async fn caller(broker: &Broker, headers: &HeaderMap) -> Option<(Caller, Arc<Account>)> {
    let (scheme, credentials) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let credentials = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    let (user, password) = credentials.split_once(':')?;
    let caller = Caller { user: user.to_owned(), password: password.to_owned() };
    broker.backend.authenticate(&caller.login("")).await.ok()?;
    let account = broker.backend.user(user)?;
    Some((caller, account))
}

fn unauthorised() -> Response {
    let refusal = Refusal { status: 401, error: "not_authorized", reason: "Login failed".to_owned() };
    let mut response = json(StatusCode::UNAUTHORIZED, &refusal.body());
    let realm = HeaderValue::from_static("Basic realm=\"RabbitMQ Management\"");
    response.headers_mut().insert(WWW_AUTHENTICATE, realm);
    response
}

fn too_large(rejection: &BytesRejection) -> Refusal {
    let reason = format!("the body could not be read: {rejection}; it may have {LARGEST_BODY} bytes at most");
    Refusal { status: rejection.status().as_u16(), error: "bad_request", reason }
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn json(status: StatusCode, document: &Value) -> Response {
    let mut response = Response::new(Body::from(document.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
