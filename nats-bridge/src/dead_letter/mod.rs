//! Dead letters: messages that were given up on, kept whole, with why.
//!
//! The headers below are a contract: their names and meanings do not change. A dead letter has the original payload,
//! the original headers, and these. Original headers that the server would act on (`Nats-*`), and those of an earlier
//! dead letter, are kept under the prefix [`ORIGINAL_PREFIX`].
//!
//! [`DeadLetters`] is what can be done with them: list, peek, show, redrive, park, export, purge, import.

mod file;
mod kept;
mod letter;
mod redrive;
mod store;
mod text;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
pub use file::Imported;
pub(crate) use kept::first_id;
pub use kept::{Filter, Group, GroupBy, Letter};
pub use letter::original_name;
pub(crate) use letter::{Facts, letter};
pub use redrive::{Redrive, Redriven};
pub use store::DeadLetters;

/// Why it was given up: a [`Reason`].
pub const REASON: &str = "Dead-Letter-Reason";
/// What the last failure said: at most 512 bytes, credentials in URLs removed, control characters escaped.
pub const DETAIL: &str = "Dead-Letter-Detail";
/// 16 hexadecimal digits, the same for failures of the same consumer, reason and class.
pub const FINGERPRINT: &str = "Dead-Letter-Fingerprint";
/// The stream that it was in.
pub const STREAM: &str = "Dead-Letter-Stream";
/// The subject that it was published to.
pub const SUBJECT: &str = "Dead-Letter-Subject";
/// Its sequence in that stream.
pub const SEQUENCE: &str = "Dead-Letter-Sequence";
/// The consumer that gave it up.
pub const CONSUMER: &str = "Dead-Letter-Consumer";
/// How often it was delivered to a handler.
pub const ATTEMPTS: &str = "Dead-Letter-Attempts";
/// When it failed first, RFC 3339, as far as the process that gave it up knows.
pub const FIRST_FAILED_AT: &str = "Dead-Letter-First-Failed-At";
/// When it failed last, RFC 3339.
pub const LAST_FAILED_AT: &str = "Dead-Letter-Last-Failed-At";
/// The host that gave it up.
pub const HOST: &str = "Dead-Letter-Host";
/// How often it was put back into a stream after having been a dead letter.
pub const REDRIVES: &str = "Dead-Letter-Redrives";
/// What the names of original `Nats-*` and `Dead-Letter-*` headers are prefixed with; `Nats-` in them is written
/// `Nats_-`. [`original_name`] gives the name back.
pub const ORIGINAL_PREFIX: &str = "Dead-Letter-Original-";

/// Why a message was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The handler failed and the retry policy has no attempt left.
    HandlerError,
    /// The handler ran longer than its maximum run time.
    Timeout,
    /// The payload does not fit its schema.
    Schema,
    /// The payload cannot be decrypted.
    Decrypt,
    /// No handler takes such messages.
    NoHandler,
    /// It is older than it may become.
    Expired,
    /// The server delivered it as often as it may.
    MaxDeliver,
    /// The handler refused it.
    Rejected,
    /// It is larger than may be handled.
    TooLarge,
    /// It was delivered as often as the policy allows and the last time nobody reported an outcome: the process that
    /// held it died, or was cut off.
    CrashLoop,
}

impl Reason {
    /// The value of the header [`REASON`].
    pub fn name(self) -> &'static str {
        match self {
            Reason::HandlerError => "handler_error",
            Reason::Timeout => "timeout",
            Reason::Schema => "schema",
            Reason::Decrypt => "decrypt",
            Reason::NoHandler => "no_handler",
            Reason::Expired => "expired",
            Reason::MaxDeliver => "max_deliver",
            Reason::Rejected => "rejected",
            Reason::TooLarge => "too_large",
            Reason::CrashLoop => "crash_loop",
        }
    }
}

impl Reason {
    /// All that there are.
    pub const ALL: [Reason; 10] = [
        Reason::HandlerError,
        Reason::Timeout,
        Reason::Schema,
        Reason::Decrypt,
        Reason::NoHandler,
        Reason::Expired,
        Reason::MaxDeliver,
        Reason::Rejected,
        Reason::TooLarge,
        Reason::CrashLoop,
    ];
}

impl FromStr for Reason {
    type Err = Error;

    fn from_str(name: &str) -> Result<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.name() == name).ok_or_else(|| {
            let all = Reason::ALL.map(Reason::name).join(", ");
            Error::setting("reason", format!("it is one of {all}")).with("value", name.escape_debug())
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a handler says when it could not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure, such as an exception's class; failures of one class share a fingerprint.
    pub class: String,
    /// What happened. It goes to the log and, cut and redacted, into the dead letter.
    pub detail: String,
    /// The reason for which the message is given up at once, whatever the policy says; default none.
    pub give_up: Option<Reason>,
}

impl Failure {
    /// A failure of class `error`.
    pub fn new(detail: impl Into<String>) -> Failure {
        Failure { class: "error".into(), detail: detail.into(), give_up: None }
    }

    /// A failure of a class, such as an exception's name.
    pub fn of(class: impl Into<String>, detail: impl Into<String>) -> Failure {
        Failure { class: class.into(), detail: detail.into(), give_up: None }
    }

    /// The same failure, of a message that no further attempt can help: it becomes a dead letter at once, for this reason.
    #[must_use]
    pub fn giving_up(self, reason: Reason) -> Failure {
        Failure { give_up: Some(reason), ..self }
    }
}

impl From<&str> for Failure {
    fn from(detail: &str) -> Self {
        Failure::new(detail)
    }
}

impl From<String> for Failure {
    fn from(detail: String) -> Self {
        Failure::new(detail)
    }
}

/// The name of a stream's dead-letter stream unless another is given: `{stream}_DLQ`.
pub fn default_stream(stream: &str) -> String {
    format!("{stream}_DLQ")
}

/// The subject of a consumer's dead letters: `dlq.{stream}.{consumer}`.
pub fn subject(stream: &str, consumer: &str) -> String {
    format!("dlq.{stream}.{consumer}")
}
