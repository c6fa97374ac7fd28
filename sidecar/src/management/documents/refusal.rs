//! What is answered instead of what was asked for: `{"error": ..., "reason": ...}` as from RabbitMQ.

use amqp_compat::{AmqpError, ReplyCode};
use serde_json::{Value, json};

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The HTTP status.
    pub(crate) status: u16,
    /// RabbitMQ's word for the kind of error.
    pub(crate) error: &'static str,
    /// What is wrong, with the name of the field or thing at fault.
    pub(crate) reason: String,
}

impl Refusal {
    /// 400: the request is not valid, or asks for what is not there.
    pub(crate) fn bad_request(reason: impl Into<String>) -> Self {
        Self { status: 400, error: "bad_request", reason: reason.into() }
    }

    /// 404 for a path that names nothing.
    pub(crate) fn object_not_found() -> Self {
        Self { status: 404, error: "Object Not Found", reason: "Not Found".to_owned() }
    }

    /// 404 for a vhost that a change names.
    pub(crate) fn vhost_not_found() -> Self {
        Self { status: 404, error: "not_found", reason: "vhost_not_found".to_owned() }
    }

    /// 401 for what a user may not do or see.
    pub(crate) fn not_authorised(reason: impl Into<String>) -> Self {
        Self { status: 401, error: "not_authorised", reason: reason.into() }
    }

    /// 405.
    pub(crate) fn method_not_allowed() -> Self {
        Self { status: 405, error: "Method Not Allowed", reason: "the method does not fit the path".to_owned() }
    }

    /// 503: JetStream does not answer.
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self { status: 503, error: "service_unavailable", reason: reason.into() }
    }

    /// What the broker said to a declaration, a binding or a deletion.
    pub(crate) fn of_change(error: AmqpError) -> Self {
        match error.code {
            ReplyCode::NotFound => Self { status: 404, error: "not_found", reason: error.text },
            ReplyCode::AccessRefused | ReplyCode::NotAllowed => Self::not_authorised(error.text),
            ReplyCode::InternalError | ReplyCode::ConnectionForced => Self::unavailable(error.text),
            _ => Self::bad_request(error.text),
        }
    }

    /// What the broker said to a publish or a get: RabbitMQ shows the whole reply there.
    pub(crate) fn of_message(error: AmqpError) -> Self {
        match error.code {
            ReplyCode::InternalError | ReplyCode::ConnectionForced => Self::unavailable(error.text),
            code => Self::bad_request(format!("{} {error}", code as u16)),
        }
    }

    /// The answer's body.
    pub(crate) fn body(&self) -> Value {
        json!({ "error": self.error, "reason": self.reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_errors_get_rabbitmqs_statuses_and_texts() {
        let of = |code, text: &str| Refusal::of_change(AmqpError::new(code, text));
        assert_eq!(of(ReplyCode::PreconditionFailed, "x").body(), json!({ "error": "bad_request", "reason": "x" }));
        assert_eq!((of(ReplyCode::NotFound, "x").status, of(ReplyCode::AccessRefused, "x").status), (404, 401));
        assert_eq!((of(ReplyCode::NotImplemented, "x").status, of(ReplyCode::InternalError, "x").status), (400, 503));
        let publish = Refusal::of_message(AmqpError::new(ReplyCode::NotFound, "no exchange 'x' in vhost '/'"));
        assert_eq!(publish.reason, "404 NOT_FOUND - no exchange 'x' in vhost '/'");
    }
}
