//! Requests of the command line to a running sidecar: HTTP/1.0 over one TCP connection each.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Control, Failure};
use crate::control_api::{Adopted, Refused};
use crate::http::ask::{exchange, split};

/// How long a sidecar may take to answer. A change waits until it is in force everywhere.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks for `path` and reads the JSON that answers it.
///
/// # Errors
/// `refused` with the sidecar's own words, or `cannot_run` when no sidecar answers.
pub(super) async fn get<T: DeserializeOwned>(control: &Control, path: &str) -> Result<T, Failure> {
    accepted(control, send(control, "GET", path, "").await?)
}

// A refusal is printed for machines, and is a failure.
fn accepted<T>(control: &Control, answer: Result<T, Refused>) -> Result<T, Failure> {
    answer.or_else(|refused| {
        if control.json {
            print_json(&refused)?;
        }
        Err(Failure::refused(refused))
    })
}

/// What a change says besides its path.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked<'a> {
    /// Why.
    pub reason: &'a str,
    /// The weight, for `/weight`.
    pub percent: Option<f64>,
    /// Whether the gate's no is passed over.
    pub force: bool,
    /// Whether the last step is made without a rehearsed rollback.
    pub unrehearsed: bool,
}

/// Asks for a change.
///
/// # Errors
/// `cannot_run` when no sidecar answers.
pub(super) async fn post<T: DeserializeOwned>(
    control: &Control,
    path: &str,
    asked: Asked<'_>,
) -> Result<Result<T, Refused>, Failure> {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        percent: Option<f64>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        force: bool,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        unrehearsed: bool,
        by: &'a str,
        reason: &'a str,
    }
    let Asked { reason, percent, force, unrehearsed } = asked;
    let by = by(control);
    post_json(control, path, &Body { percent, force, unrehearsed, by: &by, reason }).await
}

/// Who asks.
pub(super) fn by(control: &Control) -> String {
    control.by.clone().or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "command line".to_owned())
}

/// Sends one JSON object.
///
/// # Errors
/// `cannot_run` when no sidecar answers.
async fn post_json<T: DeserializeOwned>(
    control: &Control,
    path: &str,
    body: &impl Serialize,
) -> Result<Result<T, Refused>, Failure> {
    let body = serde_json::to_string(body).map_err(Failure::cannot_run)?;
    send(control, "POST", path, &body).await
}

/// Begins what takes long; a refusal is printed for machines.
///
/// # Errors
/// `refused` with the sidecar's own words, or `cannot_run` when no sidecar answers.
pub(super) async fn begin<T: DeserializeOwned>(
    control: &Control,
    path: &str,
    body: &impl Serialize,
) -> Result<T, Failure> {
    accepted(control, post_json(control, path, body).await?)
}

/// How far that is, some time later.
///
/// # Errors
/// `cannot_run` when no sidecar answers, or one that has begun nothing.
pub(super) async fn later<T: DeserializeOwned>(control: &Control, path: &str) -> Result<T, Failure> {
    let now: Option<T> = get(control, path).await?;
    now.ok_or_else(|| Failure::cannot_run("the sidecar was started anew meanwhile; try again"))
}

/// Asks for a change, and prints what is in force afterwards.
///
/// # Errors
/// `refused` with the sidecar's own words, or `cannot_run` when no sidecar answers.
pub(super) async fn change(control: &Control, path: &str, asked: Asked<'_>) -> Result<(), Failure> {
    let adopted: Adopted = match post(control, path, asked).await? {
        Ok(adopted) => adopted,
        Err(refused) => {
            if control.json {
                print_json(&refused)?;
            } else if !refused.gate.is_empty() {
                print(&super::gate::reasons(&refused.gate));
            }
            return Err(Failure::refused(refused));
        }
    };
    if control.json {
        return print_json(&adopted);
    }
    let took = match adopted.changed {
        true => format!("in force after {} ms", adopted.took_ms),
        false => format!("was in force already, since {} by {}", adopted.at, adopted.by),
    };
    let Adopted { phase, weight_percent, epoch, .. } = adopted;
    print(&format!("phase:   {phase}\nweight:  {weight_percent} %\nepoch:   {epoch}\nchange:  {took}\n"));
    Ok(())
}

/// A bar on stderr, where that is a terminal and nothing else is printed for programs.
pub(super) fn bar(json: bool, what: &'static str) -> ProgressBar {
    let shown = !json && std::io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}, {eta} left") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

/// Prints one JSON object.
///
/// # Errors
/// `cannot_run` when it cannot be written as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(Failure::cannot_run)?;
    print(&format!("{text}\n"));
    Ok(())
}

/// Prints text. That nobody reads it, as behind `head`, is not an error.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

async fn send<T: DeserializeOwned>(
    control: &Control,
    method: &str,
    path: &str,
    body: &str,
) -> Result<Result<T, Refused>, Failure> {
    let address = address(control)?;
    let token = match &control.token_file {
        Some(file) => Some(super::token_in(file).map_err(|why| Failure::cannot_run(format!("--token-file {why}")))?),
        None => control.token.clone(),
    };
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n{token}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = match tokio::time::timeout(PATIENCE, exchange(&address, &request)).await {
        Ok(answer) => answer.map_err(|error| {
            let hint = "is it running? Name its address with --http HOST:PORT or --ready-file FILE";
            Failure::cannot_run(format!("no sidecar answers at {address}: {error}; {hint}"))
        })?,
        Err(_) => {
            let text = format!("the sidecar at {address} did not answer within {PATIENCE:?}; its log says more");
            return Err(Failure::cannot_run(text));
        }
    };
    let (status, body) = split(&answer).ok_or_else(|| {
        Failure::cannot_run(format!("what answers at {address} is not a sidecar: --http names its HTTP address"))
    })?;
    if status == 200 {
        return serde_json::from_slice(body).map(Ok).map_err(|error| {
            Failure::cannot_run(format!("the answer of {address}{path} was not understood: {error}"))
        });
    }
    let refused: Refused = serde_json::from_slice(body).map_err(|_| {
        Failure::cannot_run(format!("{address}{path} answered with HTTP status {status}: is it a sidecar?"))
    })?;
    Ok(Err(refused))
}

/// `HOST:PORT` of the sidecar.
fn address(control: &Control) -> Result<String, Failure> {
    let given = match &control.ready_file {
        None => control.http.clone(),
        Some(file) => {
            let failed = |why: String| Failure::cannot_run(format!("--ready-file {}: {why}", file.display()));
            let text = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
            let value: Value = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
            value["http"].as_str().map(str::to_owned).ok_or_else(|| failed("it names no `http` address".to_owned()))?
        }
    };
    let address = given.strip_prefix("http://").unwrap_or(&given).trim_end_matches('/');
    if address.contains("://") || !address.contains(':') || address.contains(['/', ' ']) {
        return Err(Failure::cannot_run(format!("--http {given}: not HOST:PORT or http://HOST:PORT")));
    }
    Ok(address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(http: &str) -> Control {
        Control { http: http.to_owned(), ready_file: None, token: None, token_file: None, by: None, json: false }
    }

    #[test]
    fn an_address_is_a_host_with_a_port_or_a_url() {
        for (given, expected) in [
            ("127.0.0.1:8222", "127.0.0.1:8222"),
            ("http://sidecar:1/", "sidecar:1"),
            ("http://[::1]:8222", "[::1]:8222"),
        ] {
            assert_eq!(address(&control(given)).expect("valid"), expected);
        }
        for bad in ["8222", "https://a:1", "http://a:1/status", "a b:1", ""] {
            assert_eq!(address(&control(bad)).expect_err(bad).code, 2);
        }
    }
}
