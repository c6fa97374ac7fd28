//! What the server says about a pull instead of sending a message. Pure.

use async_nats::HeaderMap;

/// What a status means for the consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    /// The pull is alive.
    Heartbeat,
    /// The pull ended as pulls do; ask again.
    PullOver,
    /// The next message is larger than the bytes asked for; the pull ended.
    TooLarge,
    /// The consumer or its stream may be gone; look.
    Gone(String),
    /// The server cannot serve pulls at present; ask again after a pause.
    Busy(String),
}

/// Reads a status code and its description.
///
/// Source: NATS ADR-37 "JetStream Simplification", section on status messages, and the server's `consumer.go`.
pub(crate) fn read(code: u16, description: &str) -> Status {
    let text = description.to_ascii_lowercase();
    match code {
        100 => Status::Heartbeat,
        404 | 408 => Status::PullOver,
        409 if text.contains("exceeds maxbytes") => Status::TooLarge,
        409 if text.contains("batch completed") => Status::PullOver,
        409 if text.contains("deleted") || text.contains("push based") => Status::Gone(description.to_owned()),
        503 => Status::Gone("no responders".to_owned()),
        _ => Status::Busy(format!("{code} {description}")),
    }
}

/// How many messages and bytes a pull that ended had left; none where the server does not say.
pub(crate) fn left(headers: Option<&HeaderMap>) -> Option<(usize, usize)> {
    let number = |name: &str| headers?.get(name)?.as_str().parse().ok();
    Some((number("Nats-Pending-Messages")?, number("Nats-Pending-Bytes")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_understood() {
        assert_eq!(read(100, "Idle Heartbeat"), Status::Heartbeat);
        assert_eq!(read(408, "Request Timeout"), Status::PullOver);
        assert_eq!(read(409, "Message Size Exceeds MaxBytes"), Status::TooLarge);
        assert_eq!(read(409, "Batch Completed"), Status::PullOver);
        assert_eq!(read(409, "Consumer Deleted"), Status::Gone("Consumer Deleted".into()));
        assert_eq!(read(409, "Server Shutdown"), Status::Busy("409 Server Shutdown".into()));
        assert_eq!(read(409, "Leadership Change"), Status::Busy("409 Leadership Change".into()));
        assert!(matches!(read(503, ""), Status::Gone(_)));
    }

    #[test]
    fn what_a_pull_had_left_is_read_where_it_is_said() {
        let mut headers = HeaderMap::new();
        assert_eq!((left(None), left(Some(&headers))), (None, None));
        headers.insert("Nats-Pending-Messages", "3");
        assert_eq!(left(Some(&headers)), None);
        headers.insert("Nats-Pending-Bytes", "70");
        assert_eq!(left(Some(&headers)), Some((3, 70)));
    }
}
