//! What is said before a connection is open: who the server is, who the client is, and the limits they agree on.

use amq_protocol::protocol::{AMQPClass, connection};
use amq_protocol::types::parsing::parse_field_table;
use amq_protocol::types::{AMQPValue, FieldTable, LongString};

use super::frame::Fault;
use crate::error::{AmqpError, ReplyCode};
use crate::nesting;

/// What both sides have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tuned {
    /// How many channels may be open.
    pub(super) channel_max: u16,
    /// Largest frame in bytes.
    pub(super) frame_max: u32,
    /// Heartbeat interval in seconds; 0: none.
    pub(super) heartbeat: u16,
}

/// What the server proposes; RabbitMQ's defaults.
pub(super) const PROPOSED: Tuned = Tuned { channel_max: 2047, frame_max: 131_072, heartbeat: 60 };

/// The smallest frame size a client may ask for, and the one before it has (RabbitMQ's `FRAME_MIN_SIZE`).
pub(super) const FRAME_MIN: u32 = 4096;

/// What the client can do, from the `capabilities` of its properties.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// It wants `basic.cancel` when its consumer ends.
    pub(super) consumer_cancel_notify: bool,
    /// It wants `connection.blocked`.
    pub(super) blocked: bool,
    /// It wants `connection.close` for a refused login.
    pub(super) authentication_failure_close: bool,
}

impl Capabilities {
    pub(super) fn of(client_properties: &FieldTable) -> Self {
        let Some(AMQPValue::FieldTable(capabilities)) = client_properties.inner().get("capabilities") else {
            return Self::default();
        };
        let has = |name| matches!(capabilities.inner().get(name), Some(AMQPValue::Boolean(true)));
        Self {
            consumer_cancel_notify: has("consumer_cancel_notify"),
            blocked: has("connection.blocked"),
            authentication_failure_close: has("authentication_failure_close"),
        }
    }
}

/// The RabbitMQ whose behaviour is offered.
pub const RABBITMQ_VERSION: &str = "3.10.8";

/// `connection.start`. `external`: a client may log in by its certificate.
///
/// `product` and `version` name the broker whose behaviour is offered, because clients choose theirs by them: Celery's
/// kombu, for one, sets its prefetch per channel only for RabbitMQ from 3.3 on, and stalls with another meaning of
/// `basic.qos`. `platform` and `information` say what it really is. Only capabilities that are honoured are listed.
pub(super) fn start(external: bool) -> AMQPClass {
    let mut capabilities = FieldTable::default();
    for name in [
        "publisher_confirms",
        "exchange_exchange_bindings",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "per_consumer_qos",
        "authentication_failure_close",
    ] {
        capabilities.insert(name.into(), AMQPValue::Boolean(true));
    }
    let mut properties = FieldTable::default();
    properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    for (name, value) in [
        ("product", "RabbitMQ"),
        ("version", RABBITMQ_VERSION),
        ("platform", concat!("nats-bridge ", env!("CARGO_PKG_VERSION"), ", NATS JetStream")),
        ("information", "An AMQP 0-9-1 listener of nats-bridge, with the behaviour of the named RabbitMQ version"),
        ("cluster_name", "nats-bridge"),
    ] {
        properties.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    AMQPClass::Connection(connection::AMQPMethod::Start(connection::Start {
        version_major: 0,
        version_minor: 9,
        server_properties: properties,
        mechanisms: if external { "EXTERNAL PLAIN AMQPLAIN" } else { "PLAIN AMQPLAIN" }.into(),
        locales: "en_US".into(),
    }))
}

/// User name and password of a login response.
///
/// # Errors
/// 503 for an unknown mechanism, 403 for a response that is not one.
pub(super) fn credentials(mechanism: &str, response: &LongString) -> Result<(String, String), AmqpError> {
    let found = match mechanism {
        "PLAIN" => plain(response.as_bytes()),
        "AMQPLAIN" => amqplain(response.as_bytes()),
        other => {
            let text = format!("unknown authentication mechanism '{}'", other.escape_default());
            return Err(AmqpError::new(ReplyCode::CommandInvalid, text));
        }
    };
    found.ok_or_else(|| refused_login(mechanism))
}

/// RabbitMQ's text for a login that is not let in; it does not say what was wrong.
pub(super) fn refused_login(mechanism: &str) -> AmqpError {
    AmqpError::new(
        ReplyCode::AccessRefused,
        format!("Login was refused using authentication mechanism {mechanism}. For details see the broker logfile."),
    )
}

/// RFC 4616: authorisation identity (not used), NUL, user name, NUL, password.
fn plain(response: &[u8]) -> Option<(String, String)> {
    let mut parts = response.splitn(3, |byte| *byte == 0);
    let (_, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    Some((String::from_utf8(user.to_vec()).ok()?, String::from_utf8(password.to_vec()).ok()?))
}

/// A field table without its length, with `LOGIN` and `PASSWORD`.
fn amqplain(response: &[u8]) -> Option<(String, String)> {
    if !nesting::table_is_shallow(response) {
        return None;
    }
    let mut table = u32::try_from(response.len()).ok()?.to_be_bytes().to_vec();
    table.extend_from_slice(response);
    let (_, table) = parse_field_table(table.as_slice()).ok()?;
    let text = |name| match table.inner().get(name) {
        Some(AMQPValue::LongString(text)) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        _ => None,
    };
    Some((text("LOGIN")?, text("PASSWORD")?))
}

/// Checks `connection.tune-ok` as RabbitMQ does: a client may lower what was proposed, not raise it, and "no limit" (0)
/// is a raise. The heartbeat interval is the client's to choose.
///
/// # Errors
/// 530 for a value out of range.
pub(super) fn tune(answer: &connection::TuneOk) -> Result<Tuned, Fault> {
    negotiated("frame_max", FRAME_MIN, PROPOSED.frame_max, answer.frame_max)?;
    negotiated("channel_max", 1, PROPOSED.channel_max.into(), answer.channel_max.into())?;
    Ok(Tuned { channel_max: answer.channel_max, frame_max: answer.frame_max, heartbeat: answer.heartbeat })
}

fn negotiated(name: &str, min: u32, max: u32, value: u32) -> Result<(), Fault> {
    let (relation, bound, limit) = if value != 0 && value < min {
        ("lower", "minimum", min)
    } else if value == 0 || value > max {
        ("higher", "maximum", max)
    } else {
        return Ok(());
    };
    let text = format!("negotiated {name} = {value} is {relation} than the {bound} allowed value ({limit})");
    Err(Fault::of(AmqpError::new(ReplyCode::NotAllowed, text), (10, 31)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_login_mechanisms_give_the_same_credentials() {
        let expected = Some(("guest".to_owned(), "secret".to_owned()));
        assert_eq!(credentials("PLAIN", &"\0guest\0secret".into()).ok(), expected);
        let amqplain = b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x06secret".to_vec();
        assert_eq!(credentials("AMQPLAIN", &amqplain.into()).ok(), expected);
    }

    #[test]
    fn a_response_that_is_none_is_refused() {
        for (mechanism, response, code) in [
            ("PLAIN", &b"guest"[..], ReplyCode::AccessRefused),
            ("PLAIN", b"\0\xff\0x", ReplyCode::AccessRefused),
            ("AMQPLAIN", b"\x05LOGIN", ReplyCode::AccessRefused),
            ("AMQPLAIN", b"", ReplyCode::AccessRefused),
            ("EXTERNAL", b"", ReplyCode::CommandInvalid),
        ] {
            let error = credentials(mechanism, &response.to_vec().into()).expect_err("not a login");
            assert_eq!(error.code, code, "{mechanism} {response:?}");
        }
    }

    #[test]
    fn a_client_may_lower_what_was_proposed_and_nothing_else() {
        let check = |channel_max, frame_max, text: Option<&str>| {
            let answer = tune(&connection::TuneOk { channel_max, frame_max, heartbeat: 7 });
            assert_eq!(answer.err().map(|fault| fault.error.text).as_deref(), text);
        };
        check(2047, 131_072, None);
        check(1, 4096, None);
        check(0, 131_072, Some("negotiated channel_max = 0 is higher than the maximum allowed value (2047)"));
        check(2048, 131_072, Some("negotiated channel_max = 2048 is higher than the maximum allowed value (2047)"));
        check(10, 0, Some("negotiated frame_max = 0 is higher than the maximum allowed value (131072)"));
        check(10, 4095, Some("negotiated frame_max = 4095 is lower than the minimum allowed value (4096)"));
    }
}
