//! Who may change something.
//!
//! With a token: whoever sends it. Without: callers on this machine, except web pages, which a browser here might have
//! loaded from anywhere; browsers name the page in `Origin`. The sidecar's own page may, when it was opened by an address of this
//! machine: a name could be anybody's, and lead here.

use std::net::SocketAddr;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};

use crate::control_api::{Refused, RefusedCode};

/// Whether a caller may change something.
///
/// # Errors
/// 401 for a missing or wrong token, 403 otherwise.
pub(super) fn check(token: Option<&str>, peer: SocketAddr, headers: &HeaderMap) -> Result<(), (StatusCode, Refused)> {
    let refused = |status, reason: &str, fix: &str| Err((status, Refused::new(RefusedCode::Forbidden, reason, fix)));
    if let Some(token) = token {
        let sent = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let sent = sent.and_then(|value| value.strip_prefix("Bearer "));
        return match sent {
            Some(sent) if same(sent.as_bytes(), token.as_bytes()) => Ok(()),
            Some(_) => refused(
                StatusCode::UNAUTHORIZED,
                "the token is not the one of this sidecar",
                "send the token that it was started with",
            ),
            None => refused(
                StatusCode::UNAUTHORIZED,
                "changes need a token here",
                "send it as `Authorization: Bearer TOKEN` (`--token` of the command line)",
            ),
        };
    }
    if !peer.ip().to_canonical().is_loopback() {
        return refused(
            StatusCode::FORBIDDEN,
            "changes are taken from this machine only",
            "run the command where the sidecar runs, or start the sidecar with --http-token-file",
        );
    }
    if headers.contains_key(ORIGIN) && !is_own_page(headers) {
        return refused(
            StatusCode::FORBIDDEN,
            "changes are not taken from web pages",
            "use the command line, or open the page by http://127.0.0.1, or start the sidecar with --http-token-file",
        );
    }
    Ok(())
}

/// Whether the page that asks was loaded from this sidecar, by an address of this machine.
fn is_own_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(origin), Some(host)) = (text(ORIGIN), text(HOST)) else { return false };
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.contains(']') { host } else { name });
    matches!(name, "127.0.0.1" | "[::1]" | "localhost") && origin.strip_prefix("http://") == Some(host)
}

/// Compares in a time that does not depend on where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(token: Option<&str>, peer: &str, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a valid value"));
        }
        match check(token, peer.parse().expect("an address"), &map) {
            Ok(()) => 200,
            Err((status, refused)) => {
                assert_eq!(refused.code, RefusedCode::Forbidden);
                status.as_u16()
            }
        }
    }

    #[test]
    fn without_a_token_only_this_machine_may_change_something_and_no_web_page() {
        assert_eq!(status(None, "127.0.0.1:1", &[]), 200);
        assert_eq!(status(None, "[::1]:1", &[]), 200);
        assert_eq!(status(None, "[::ffff:127.0.0.1]:1", &[]), 200);
        assert_eq!(status(None, "10.0.0.1:1", &[]), 403);
        assert_eq!(status(None, "127.0.0.1:1", &[("origin", "http://127.0.0.1:8222")]), 403);
    }

    #[test]
    fn the_sidecars_own_page_may_when_an_address_of_this_machine_led_to_it() {
        fn asked(peer: &str, origin: &str, host: &str) -> u16 {
            status(None, peer, &[("origin", origin), ("host", host)])
        }
        for host in ["127.0.0.1:8222", "[::1]:8222", "localhost:8222", "localhost", "[::1]"] {
            assert_eq!(asked("127.0.0.1:1", &format!("http://{host}"), host), 200, "{host}");
            assert_eq!(asked("10.0.0.1:1", &format!("http://{host}"), host), 403, "{host}");
        }
        for (origin, host) in [
            ("http://evil.example", "127.0.0.1:8222"),
            ("http://127.0.0.1:9", "127.0.0.1:8222"),
            ("https://127.0.0.1:8222", "127.0.0.1:8222"),
            ("null", "127.0.0.1:8222"),
            // A name of somebody else's that leads to this machine.
            ("http://evil.example:8222", "evil.example:8222"),
        ] {
            assert_eq!(asked("127.0.0.1:1", origin, host), 403, "{origin}");
        }
    }

    #[test]
    fn with_a_token_whoever_has_it_may() {
        let token = Some("secret");
        assert_eq!(status(token, "10.0.0.1:1", &[("authorization", "Bearer secret")]), 200);
        for wrong in ["Bearer secre", "Bearer secret2", "Bearer Secret", "secret", "Basic secret", ""] {
            assert_eq!(status(token, "127.0.0.1:1", &[("authorization", wrong)]), 401, "{wrong}");
        }
        assert_eq!(status(token, "127.0.0.1:1", &[]), 401);
    }
}
