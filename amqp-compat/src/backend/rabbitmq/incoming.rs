//! A message, put together from its frames.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::ShortString;
use bytes::{Bytes, BytesMut};

use super::errors::unexpected;
use crate::backend::Message;
use crate::error::AmqpError;

/// The largest body that is put together, in bytes: RabbitMQ's own upper limit ("max_message_size").
const MAX_BODY: u64 = 512 << 20;
/// The most memory that is taken for a body before it comes.
const RESERVE: usize = 4 << 20;

/// A message whose frames are still coming.
#[derive(Debug)]
pub(super) struct Incoming {
    cause: Cause,
    exchange: ShortString,
    routing_key: ShortString,
    header: Option<(usize, Box<AMQPProperties>)>,
    whole: Bytes,
    parts: BytesMut,
}

/// Why RabbitMQ sends a message.
#[derive(Debug)]
pub(super) enum Cause {
    /// `basic.deliver`
    Deliver { consumer_tag: ShortString, tag: u64, redelivered: bool },
    /// `basic.get-ok`
    Get { tag: u64, redelivered: bool, message_count: u32 },
    /// `basic.return`
    Return(AmqpError),
}

impl Incoming {
    /// A message of which the method came.
    pub(super) fn new(cause: Cause, exchange: ShortString, routing_key: ShortString) -> Self {
        Self { cause, exchange, routing_key, header: None, whole: Bytes::new(), parts: BytesMut::new() }
    }

    /// Takes its header. True when nothing more is to come.
    ///
    /// # Errors
    /// It has one already, or its body is larger than 512 MiB.
    pub(super) fn header(&mut self, size: u64, properties: Box<AMQPProperties>) -> Result<bool, AmqpError> {
        if self.header.is_some() {
            return Err(unexpected("a second content header"));
        }
        let whole = usize::try_from(size).ok().filter(|_| size <= MAX_BODY);
        let Some(whole) = whole else { return Err(unexpected(format_args!("a message of {size} bytes"))) };
        self.header = Some((whole, properties));
        Ok(whole == 0)
    }

    /// Takes a part of its body. True when nothing more is to come.
    ///
    /// # Errors
    /// There was no header, or it announced less.
    pub(super) fn body(&mut self, part: Bytes) -> Result<bool, AmqpError> {
        let Some((size, _)) = self.header else { return Err(unexpected("a content body without a header")) };
        if self.parts.is_empty() && part.len() == size {
            self.whole = part;
            return Ok(true);
        }
        if part.len() > size - self.parts.len() {
            return Err(unexpected("a body that is longer than announced"));
        }
        if self.parts.is_empty() {
            self.parts.reserve(size.min(RESERVE));
        }
        self.parts.extend_from_slice(&part);
        Ok(self.parts.len() == size)
    }

    /// The message; `None` without a header.
    pub(super) fn finish(self) -> Option<(Cause, Message)> {
        let Self { cause, exchange, routing_key, header, whole, parts } = self;
        let (_, properties) = header?;
        let body = if parts.is_empty() { whole } else { parts.freeze() };
        Some((cause, Message { exchange, routing_key, properties: *properties, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming() -> Incoming {
        Incoming::new(Cause::Return(unexpected("test")), "e".into(), "k".into())
    }

    #[test]
    fn a_body_is_put_together_from_its_parts() {
        let mut message = incoming();
        assert_eq!(message.header(5, Box::default()), Ok(false));
        assert_eq!(message.body(Bytes::from_static(b"ab")), Ok(false));
        assert_eq!(message.body(Bytes::from_static(b"cde")), Ok(true));
        assert_eq!(message.finish().expect("whole").1.body, "abcde");
    }

    #[test]
    fn more_or_other_than_announced_is_an_error() {
        let mut message = incoming();
        assert!(message.body(Bytes::from_static(b"a")).is_err());
        assert!(message.header(u64::MAX, Box::default()).is_err());
        assert_eq!(message.header(2, Box::default()), Ok(false));
        assert!(message.header(2, Box::default()).is_err());
        assert!(message.body(Bytes::from_static(b"abc")).is_err());
    }
}
