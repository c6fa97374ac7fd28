//! A publish is put together from its frames: the method, the content header, and body frames until the size is reached.

use amq_protocol::frame::AMQPContentHeader;
use amq_protocol::protocol::basic;
use bytes::{Bytes, BytesMut};

use super::frame::Fault;
use crate::backend::Message;
use crate::error::{AmqpError, ReplyCode};

/// Class and method id of `basic.publish`.
pub(super) const PUBLISH: (u16, u16) = (60, 40);

/// The publish that a channel is in the middle of.
#[derive(Debug, Default)]
pub(super) enum Assembly {
    /// None.
    #[default]
    Idle,
    /// The method has come.
    Method(basic::Publish),
    /// The content header has come; `size` bytes of body are to come, `body` is there.
    Body {
        /// The method.
        publish: basic::Publish,
        /// The properties.
        properties: Box<basic::AMQPProperties>,
        /// The size of the whole body.
        size: usize,
        /// What has come of it.
        body: BytesMut,
    },
}

/// A publish that is complete.
#[derive(Debug)]
pub(super) struct Complete {
    /// Whether it is to be returned when nothing takes it.
    pub(super) mandatory: bool,
    /// The message.
    pub(super) message: Message,
}

impl Assembly {
    /// Begins with `basic.publish`.
    ///
    /// # Errors
    /// 540 for `immediate`, as in RabbitMQ.
    pub(super) fn begin(&mut self, publish: basic::Publish) -> Result<(), Fault> {
        if publish.immediate {
            return Err(Fault::of(AmqpError::not_implemented("immediate=true"), PUBLISH));
        }
        *self = Assembly::Method(publish);
        Ok(())
    }

    /// Whether a content frame is due, so that no method may come.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self, Assembly::Idle)
    }

    /// How many bytes of body it holds.
    pub(super) fn held(&self) -> usize {
        match self {
            Assembly::Body { body, .. } => body.len(),
            Assembly::Idle | Assembly::Method(_) => 0,
        }
    }

    /// Whether a content header is due.
    pub(super) fn awaits_header(&self) -> bool {
        matches!(self, Assembly::Method(_))
    }

    /// What a content header that is not due is answered with.
    fn no_header(&self) -> Fault {
        match self {
            Assembly::Body { .. } => unexpected("expected content body, got non content body frame instead"),
            Assembly::Idle | Assembly::Method(_) => unexpected("expected method frame, got non method frame instead"),
        }
    }

    /// Takes a content header that cannot be read; answers which of both faults counts.
    pub(super) fn bad_header(&self, fault: Fault) -> Fault {
        if self.awaits_header() { fault } else { self.no_header() }
    }

    /// Takes the content header; a message without a body is complete with it.
    ///
    /// # Errors
    /// 505 when no header is due, 406 when the body would be larger than `max_message` bytes.
    pub(super) fn header(&mut self, header: AMQPContentHeader, max_message: usize) -> Result<Option<Complete>, Fault> {
        let fault = self.no_header();
        let Assembly::Method(publish) = std::mem::take(self) else { return Err(fault) };
        if header.class_id != PUBLISH.0 {
            let text = format!("expected content header for class 60, got one for class {} instead", header.class_id);
            return Err(Fault::of(AmqpError::new(ReplyCode::UnexpectedFrame, text), PUBLISH));
        }
        let size = usize::try_from(header.body_size).unwrap_or(usize::MAX);
        if size > max_message {
            let text = format!("message size {size} is larger than configured max size {max_message}");
            return Err(Fault::of(AmqpError::new(ReplyCode::PreconditionFailed, text), PUBLISH));
        }
        if size == 0 {
            return Ok(Some(Complete::new(publish, header.properties, Bytes::new())));
        }
        *self = Assembly::Body { publish, properties: Box::new(header.properties), size, body: BytesMut::new() };
        Ok(None)
    }

    /// Takes a body frame. A body that comes in one frame is not copied.
    ///
    /// # Errors
    /// 505 when no body is due, 501 when there is more of it than the header said.
    pub(super) fn body(&mut self, part: Bytes) -> Result<Option<Complete>, Fault> {
        match self {
            Assembly::Idle => Err(unexpected("expected method frame, got non method frame instead")),
            Assembly::Method(_) => {
                Err(unexpected("expected content header for class 60, got non content header frame instead"))
            }
            Assembly::Body { size, body, .. } => {
                let so_far = body.len() + part.len();
                if so_far > *size {
                    let text = format!("content body of {so_far} bytes or more, its header said {size}");
                    return Err(Fault::of(AmqpError::new(ReplyCode::FrameError, text), PUBLISH));
                }
                let complete = so_far == *size;
                if !complete || !body.is_empty() {
                    body.extend_from_slice(&part);
                }
                if !complete {
                    return Ok(None);
                }
                match std::mem::take(self) {
                    Assembly::Body { publish, properties, body, .. } => {
                        let body = if body.is_empty() { part } else { body.freeze() };
                        Ok(Some(Complete::new(publish, *properties, body)))
                    }
                    Assembly::Idle | Assembly::Method(_) => Ok(None),
                }
            }
        }
    }
}

impl Complete {
    fn new(publish: basic::Publish, properties: basic::AMQPProperties, body: Bytes) -> Self {
        let basic::Publish { exchange, routing_key, mandatory, .. } = publish;
        Self { mandatory, message: Message { exchange, routing_key, properties, body } }
    }
}

fn unexpected(text: &str) -> Fault {
    Fault::new(ReplyCode::UnexpectedFrame, text)
}
