//! Why a call failed, and whether the message may have landed anyway.

use std::error::Error as StdError;
use std::fmt;

type BoxError = Box<dyn StdError + Send + Sync>;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed, and whether the message may have landed anyway.
///
/// Displays as `timeout: stream=ORDERS msg_id=o-17 (the message may have been stored)`. Callers ask [`Error::kind`],
/// [`Error::landed`] and [`Error::is_temporary`]; the text is for people.
/// ```no_run
/// # async fn example(bridge: nats_bridge::Bridge) -> nats_bridge::Result<()> {
/// use nats_bridge::{ErrorKind, Landed, Message};
///
/// let order = Message::new("orders.new", "one tea").id("order-17");
/// match bridge.publish(order.clone()).await {
///     Ok(stored) => println!("{} {}", stored.stream, stored.sequence),
///     // Nothing was sent, and nothing will be while it is open: answer 503.
///     Err(error) if error.kind() == ErrorKind::BreakerOpen => println!("busy, try again"),
///     // It may be stored: the same id keeps it from being stored twice.
///     Err(error) if error.landed() == Landed::Unknown => drop(bridge.publish(order).await?),
///     // `config: field=publish.ack_wait why=it is above 0`: by name, too.
///     Err(error) => println!("{error}; {:?}", error.context()),
/// }
/// # Ok(())
/// # }
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    landed: Landed,
    context: Vec<(&'static str, String)>,
    source: Option<BoxError>,
}

/// What went wrong, in the words that a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The delivery was settled before; nothing was sent.
    AlreadySettled,
    /// The publisher's circuit breaker is open: NATS confirms nothing at present. Nothing was sent.
    BreakerOpen,
    /// The connection, publisher or consumer was closed.
    Closed,
    /// A setting is wrong or contradicts another.
    Config,
    /// What exists on the server differs from what was asked for and cannot be changed in place.
    Conflict,
    /// A file is damaged, or is not what it is taken for.
    Corrupt,
    /// The message is not encrypted, was altered, or is not the one that was encrypted.
    Decrypt,
    /// The server refuses this user the subject or the call.
    Denied,
    /// A file cannot be read or written: the disk is full, the directory is not there, access is refused.
    Disk,
    /// A file is open in another process, or twice in this one.
    InUse,
    /// The message cannot be sent as it is: bad subject, reserved or illegal header, empty id.
    InvalidMessage,
    /// The stream or consumer does not exist, or no stream takes the subject.
    NotFound,
    /// The outbox has as many entries or bytes as it may have. Nothing was accepted.
    OutboxFull,
    /// JetStream refused to store the message, or refused the call.
    Rejected,
    /// The payload does not fit its schema, or names none; `path`, `value` and `why` say where and what.
    Schema,
    /// No answer within the time allowed.
    Timeout,
    /// Headers and payload exceed the server's `max_payload`.
    TooLarge,
    /// The key-encryption key that the message names is not there; `key` says which one.
    UnknownKey,
    /// No server could be reached, or nobody answers for this subject.
    Unreachable,
    /// The server is too old for what was asked.
    Unsupported,
    /// The window of unconfirmed messages is full; only `try_publish` says so, others wait.
    WindowFull,
    /// A limit would be lowered so that stored messages are removed, which was not allowed. Nothing was changed.
    WouldRemove,
}

/// Whether a message whose publish failed may be stored nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Landed {
    /// It is not stored: sending it again cannot duplicate it.
    No,
    /// It may be stored: send it again only with the same id.
    Unknown,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Error(Box::new(Inner { kind, landed: Landed::No, context: Vec::new(), source: None }))
    }

    /// A setting that is wrong or contradicts another: which one, and why.
    pub(crate) fn setting(field: &'static str, why: impl fmt::Display) -> Self {
        Error::new(ErrorKind::Config).with("field", field).with("why", why)
    }

    pub(crate) fn landed_unknown(mut self) -> Self {
        self.0.landed = Landed::Unknown;
        self
    }

    pub(crate) fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// As [`Error::with`], in front of what is known.
    pub(crate) fn within(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.insert(0, (key, value.to_string()));
        self
    }

    /// As [`Error::with`], in the place of what was said before.
    pub(crate) fn instead(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.retain(|(known, _)| *known != key);
        self.with(key, value)
    }

    pub(crate) fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error for another one who waits; what caused it is in its text.
    pub(crate) fn repeated(&self) -> Self {
        let Inner { kind, landed, context, .. } = &*self.0;
        Error(Box::new(Inner { kind: *kind, landed: *landed, context: context.clone(), source: None }))
    }

    /// The error for a second settlement, for bindings to languages that cannot consume a delivery.
    pub fn already_settled() -> Self {
        Error::new(ErrorKind::AlreadySettled)
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the message may be stored although the call failed. `No` for calls that store nothing.
    pub fn landed(&self) -> Landed {
        self.0.landed
    }

    /// Pairs such as `("stream", "ORDERS")`, in the order in which they became known.
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::BreakerOpen
                | ErrorKind::OutboxFull
                | ErrorKind::Timeout
                | ErrorKind::Unreachable
                | ErrorKind::WindowFull
        )
    }
}

impl ErrorKind {
    /// The kind as one word in snake case, as the language bindings name it (`already_settled`, `window_full`).
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::AlreadySettled => "already_settled",
            ErrorKind::BreakerOpen => "breaker_open",
            ErrorKind::Closed => "closed",
            ErrorKind::Config => "config",
            ErrorKind::Conflict => "conflict",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Decrypt => "decrypt",
            ErrorKind::Denied => "denied",
            ErrorKind::Disk => "disk",
            ErrorKind::InUse => "in_use",
            ErrorKind::InvalidMessage => "invalid_message",
            ErrorKind::NotFound => "not_found",
            ErrorKind::OutboxFull => "outbox_full",
            ErrorKind::Rejected => "rejected",
            ErrorKind::Schema => "schema",
            ErrorKind::Timeout => "timeout",
            ErrorKind::TooLarge => "too_large",
            ErrorKind::UnknownKey => "unknown_key",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::WindowFull => "window_full",
            ErrorKind::WouldRemove => "would_remove",
        }
    }
}

impl Landed {
    /// `no` or `unknown`, as the language bindings name it.
    pub fn name(self) -> &'static str {
        match self {
            Landed::No => "no",
            Landed::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.kind.name().replace('_', " "))?;
        for (i, (key, value)) in self.0.context.iter().enumerate() {
            f.write_str(if i == 0 { ": " } else { " " })?;
            write!(f, "{key}={value}")?;
        }
        if self.0.landed == Landed::Unknown {
            f.write_str(" (the message may have been stored)")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        match &self.0.source {
            Some(source) => write!(f, " <- {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_the_kind_the_context_and_what_landed() {
        let error = Error::new(ErrorKind::Timeout).with("stream", "ORDERS").with("msg_id", "o-17").landed_unknown();
        assert_eq!(error.to_string(), "timeout: stream=ORDERS msg_id=o-17 (the message may have been stored)");
        assert_eq!(Error::new(ErrorKind::WindowFull).to_string(), "window full");
    }
}
