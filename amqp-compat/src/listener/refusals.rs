//! What clients were refused, as log lines: each kind at once, and its repetitions as a count, once a minute at most.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use tracing::{info, warn};

use crate::backend::Login;
use crate::session::Refusal;

/// The refusals of one listener.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    seen: Mutex<Seen>,
}

/// What was refused lately: user, vhost and text, with when it was told and how often it came since.
#[derive(Debug, Default)]
struct Seen(HashMap<(String, String, String), (Instant, u64)>);

/// How long the same refusal is only counted after it was told.
const QUIET: Duration = Duration::from_secs(60);

/// How many kinds are known at once; when there are more, all are forgotten, and told again.
const KINDS: usize = 1024;

impl Refusals {
    /// Logs a refusal, unless it is only a repetition.
    pub(super) fn tell(&self, peer: &str, login: &Login, refusal: &Refusal, now: Instant) {
        let Refusal { channel, method, error } = refusal;
        let kind = (login.user.clone(), login.vhost.clone(), error.to_string());
        let before = self.seen.lock().unwrap_or_else(PoisonError::into_inner).note(kind, now);
        let Some(before) = before else { return };
        let (user, vhost) = (&login.user, &login.vhost);
        let method = name(*method);
        // Asking for what may not be there is an everyday thing; it closes a channel and no more.
        if error.code.closes_connection() {
            warn!(%peer, user, vhost, channel, method, %error, repeated = before, "AMQP connection closed for an error");
        } else {
            info!(%peer, user, vhost, channel, method, %error, repeated = before, "AMQP channel closed for an error");
        }
    }
}

impl Seen {
    /// How often this came and was not told since the last time it was told; `None` when it is not to be told now.
    fn note(&mut self, kind: (String, String, String), now: Instant) -> Option<u64> {
        if let Some((told, untold)) = self.0.get_mut(&kind) {
            if now.duration_since(*told) < QUIET {
                *untold += 1;
                return None;
            }
            *told = now;
            return Some(std::mem::take(untold));
        }
        if self.0.len() >= KINDS {
            self.0.clear();
        }
        self.0.insert(kind, (now, 0));
        Some(0)
    }
}

/// A method's name in AMQP 0-9-1, by class and method id.
fn name((class, method): (u16, u16)) -> String {
    let (class_name, methods): (_, &[(u16, &str)]) = match class {
        10 => ("connection", &[(11, "start-ok"), (31, "tune-ok"), (40, "open"), (70, "update-secret")]),
        20 => ("channel", &[(10, "open"), (20, "flow"), (40, "close")]),
        40 => ("exchange", &[(10, "declare"), (20, "delete"), (30, "bind"), (40, "unbind")]),
        50 => ("queue", &[(10, "declare"), (20, "bind"), (30, "purge"), (40, "delete"), (50, "unbind")]),
        60 => (
            "basic",
            &[
                (10, "qos"),
                (20, "consume"),
                (30, "cancel"),
                (40, "publish"),
                (70, "get"),
                (80, "ack"),
                (90, "reject"),
                (100, "recover-async"),
                (110, "recover"),
                (120, "nack"),
            ],
        ),
        85 => ("confirm", &[(10, "select")]),
        90 => ("tx", &[(10, "select"), (20, "commit"), (30, "rollback")]),
        0 => return "none".to_owned(),
        _ => return format!("{class}.{method}"),
    };
    match methods.iter().find(|(id, _)| *id == method) {
        Some((_, name)) => format!("{class_name}.{name}"),
        None => format!("{class_name}.{method}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> (String, String, String) {
        ("guest".to_owned(), "/".to_owned(), text.to_owned())
    }

    #[test]
    fn a_repetition_is_counted_and_told_with_the_next_one_after_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Seen::default();
        assert_eq!(seen.note(kind("a"), at(0)), Some(0));
        assert_eq!(seen.note(kind("a"), at(1)), None);
        assert_eq!(seen.note(kind("b"), at(1)), Some(0));
        assert_eq!(seen.note(kind("a"), at(59)), None);
        assert_eq!(seen.note(kind("a"), at(60)), Some(2));
        assert_eq!(seen.note(kind("a"), at(61)), None);
    }

    #[test]
    fn a_client_that_makes_up_texts_fills_nothing() {
        let mut seen = Seen::default();
        for n in 0..10 * KINDS {
            seen.note(kind(&n.to_string()), Instant::now());
            assert!(seen.0.len() <= KINDS);
        }
    }

    #[test]
    fn methods_have_the_names_of_the_specification() {
        assert_eq!(name((50, 10)), "queue.declare");
        assert_eq!(name((60, 40)), "basic.publish");
        assert_eq!((name((60, 99)), name((99, 1)), name((0, 0))), ("basic.99".into(), "99.1".into(), "none".into()));
    }
}
