//! What a failure of a publish means for the entry: it may pass, or the entry is refused. Pure.

use crate::error::{Error, ErrorKind};

/// What to do with an entry whose publish failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may pass: the entry waits.
    Later,
    /// No stream takes the subject, or its stream has no leader: it may pass, for a while.
    NoStream,
    /// It does not pass by itself.
    Refused,
}

/// Codes from the server's `errors.json`: 10002, 10023, 10028, 10047 no room for the account or on the server; 10008, 10009 no
/// leader; 10077 the stream is at a limit; 10158 the same id is being stored; 10167 too many requests.
pub(super) fn verdict(error: &Error) -> Verdict {
    let context = |name: &str| error.context().iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
    match error.kind() {
        ErrorKind::BreakerOpen | ErrorKind::Closed | ErrorKind::Timeout | ErrorKind::WindowFull => Verdict::Later,
        // With a code it is JetStream's answer; without, a provider of keys is away.
        ErrorKind::NotFound | ErrorKind::Unreachable if context("code").is_some() => Verdict::NoStream,
        ErrorKind::Unreachable => Verdict::Later,
        ErrorKind::Rejected => match (context("err_code"), context("code")) {
            (Some("10002" | "10008" | "10009" | "10023" | "10028" | "10047" | "10158" | "10167"), _)
            | (_, Some("429")) => Verdict::Later,
            // One message for a subject, and new ones refused: it stays so until somebody removes it.
            (Some("10077"), _) if context("why").is_some_and(|why| why.contains("per subject")) => Verdict::Refused,
            (Some("10077"), _) => Verdict::Later,
            _ => Verdict::Refused,
        },
        _ => Verdict::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_waits_and_what_does_not_is_refused() {
        let rejected = |err_code: u32, why: &str| {
            Error::new(ErrorKind::Rejected).with("code", 503).with("err_code", err_code).with("why", why)
        };
        let no_stream = |kind| Error::new(kind).with("code", 503);
        let cases = [
            (rejected(10077, "maximum messages exceeded"), Verdict::Later),
            (rejected(10077, "maximum messages per subject exceeded"), Verdict::Refused),
            (rejected(10047, "insufficient storage resources available"), Verdict::Later),
            (rejected(10054, "message size exceeds maximum allowed"), Verdict::Refused),
            (rejected(10071, "wrong last sequence: 1"), Verdict::Refused),
            (no_stream(ErrorKind::NotFound), Verdict::NoStream),
            (no_stream(ErrorKind::Unreachable), Verdict::NoStream),
            (Error::new(ErrorKind::NotFound).with("schema", "order"), Verdict::Refused),
            (Error::new(ErrorKind::Unreachable).with("provider", "keys"), Verdict::Later),
            (Error::new(ErrorKind::Timeout).landed_unknown(), Verdict::Later),
            (Error::new(ErrorKind::Closed), Verdict::Later),
            (Error::new(ErrorKind::TooLarge), Verdict::Refused),
            (Error::new(ErrorKind::Denied), Verdict::Refused),
            (Error::new(ErrorKind::Schema), Verdict::Refused),
        ];
        for (error, expected) in cases {
            assert_eq!(verdict(&error), expected, "{error}");
        }
    }
}
