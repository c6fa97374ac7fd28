//! The errors that AMQP peers see: a reply code and a text.

use std::fmt;

/// AMQP 0-9-1 reply codes (AMQP 0-9-1 specification, section 1.2 "Constants"; RabbitMQ uses the same ones).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ReplyCode {
    /// 200: the method completed.
    Success = 200,
    /// 311: the message is larger than the server takes.
    ContentTooLarge = 311,
    /// 312: a mandatory message could not be routed.
    NoRoute = 312,
    /// 313: an immediate message found no consumer.
    NoConsumers = 313,
    /// 320: an operator closed the connection.
    ConnectionForced = 320,
    /// 402: an unknown virtual host was named.
    InvalidPath = 402,
    /// 403: the user has no access.
    AccessRefused = 403,
    /// 404: the exchange, queue or binding does not exist.
    NotFound = 404,
    /// 405: somebody else has it exclusively.
    ResourceLocked = 405,
    /// 406: the request does not fit what exists.
    PreconditionFailed = 406,
    /// 501: a frame could not be decoded.
    FrameError = 501,
    /// 502: a frame held an illegal value.
    SyntaxError = 502,
    /// 503: the method does not fit the state of the connection.
    CommandInvalid = 503,
    /// 504: the channel is not open, or was opened twice.
    ChannelError = 504,
    /// 505: a frame came that was not expected here.
    UnexpectedFrame = 505,
    /// 506: a resource ran out.
    ResourceError = 506,
    /// 530: the operation is not allowed.
    NotAllowed = 530,
    /// 540: the server does not implement it.
    NotImplemented = 540,
    /// 541: the server failed.
    InternalError = 541,
}

impl ReplyCode {
    /// Whether the code closes the whole connection (a "hard" error) rather than one channel.
    ///
    /// Source: AMQP 0-9-1 specification, section 1.2; the class of each constant.
    pub fn closes_connection(self) -> bool {
        use ReplyCode::*;
        match self {
            Success | ContentTooLarge | NoRoute | NoConsumers | AccessRefused | NotFound | ResourceLocked
            | PreconditionFailed => false,
            ConnectionForced | InvalidPath | FrameError | SyntaxError | CommandInvalid | ChannelError
            | UnexpectedFrame | ResourceError | NotAllowed | NotImplemented | InternalError => true,
        }
    }

    /// The constant's name as RabbitMQ writes it at the head of a reply text, such as `NOT_FOUND`.
    pub fn name(self) -> &'static str {
        use ReplyCode::*;
        match self {
            Success => "SUCCESS",
            ContentTooLarge => "CONTENT_TOO_LARGE",
            NoRoute => "NO_ROUTE",
            NoConsumers => "NO_CONSUMERS",
            ConnectionForced => "CONNECTION_FORCED",
            InvalidPath => "INVALID_PATH",
            AccessRefused => "ACCESS_REFUSED",
            NotFound => "NOT_FOUND",
            ResourceLocked => "RESOURCE_LOCKED",
            PreconditionFailed => "PRECONDITION_FAILED",
            FrameError => "FRAME_ERROR",
            SyntaxError => "SYNTAX_ERROR",
            CommandInvalid => "COMMAND_INVALID",
            ChannelError => "CHANNEL_ERROR",
            UnexpectedFrame => "UNEXPECTED_FRAME",
            ResourceError => "RESOURCE_ERROR",
            NotAllowed => "NOT_ALLOWED",
            NotImplemented => "NOT_IMPLEMENTED",
            InternalError => "INTERNAL_ERROR",
        }
    }

    /// The code with this number, if AMQP 0-9-1 has one.
    pub fn from_u16(code: u16) -> Option<Self> {
        use ReplyCode::*;
        [
            Success,
            ContentTooLarge,
            NoRoute,
            NoConsumers,
            ConnectionForced,
            InvalidPath,
            AccessRefused,
            NotFound,
            ResourceLocked,
            PreconditionFailed,
            FrameError,
            SyntaxError,
            CommandInvalid,
            ChannelError,
            UnexpectedFrame,
            ResourceError,
            NotAllowed,
            NotImplemented,
            InternalError,
        ]
        .into_iter()
        .find(|c| *c as u16 == code)
    }
}

/// What a `channel.close` or `connection.close` says to the client.
///
/// `text` does not carry the constant's name; [`fmt::Display`] and the wire do: `NOT_FOUND - no queue 'q' in vhost '/'`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpError {
    /// The reply code; it decides between a channel and a connection error.
    pub code: ReplyCode,
    /// The text after `CODE_NAME - `.
    pub text: String,
}

impl AmqpError {
    /// An error with this code and text.
    pub fn new(code: ReplyCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// 540 for something that is part of AMQP or RabbitMQ but is not there yet. It is refused, never ignored.
    pub fn not_implemented(what: impl fmt::Display) -> Self {
        Self::new(ReplyCode::NotImplemented, what.to_string())
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.code.name(), self.text)
    }
}

impl std::error::Error for AmqpError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_text_begins_with_the_name_of_its_code() {
        let error = AmqpError::new(ReplyCode::NotFound, "no queue 'q' in vhost '/'");
        assert_eq!(error.to_string(), "NOT_FOUND - no queue 'q' in vhost '/'");
        assert!(!error.code.closes_connection());
        assert_eq!(ReplyCode::from_u16(540), Some(ReplyCode::NotImplemented));
        assert_eq!(ReplyCode::from_u16(1), None);
    }
}
