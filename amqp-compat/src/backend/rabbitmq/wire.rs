//! Bytes to frames, and back.

use amq_protocol::frame::parsing::parse_content_header;
use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame};
use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::protocol::{AMQPClass, parse_class};
use bytes::{Buf, Bytes, BytesMut};

use crate::backend::ChannelId;
use crate::error::{AmqpError, ReplyCode};
use crate::nesting;

/// What a frame takes besides its payload: type, channel, size and the end octet.
const OVERHEAD: usize = 8;
const END: u8 = 0xCE;
/// From this size on a body keeps the read buffer alive instead of being copied.
const SHARED_FROM: usize = 4096;

/// One frame of RabbitMQ.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// A method.
    Method(ChannelId, AMQPClass),
    /// The header of a message: the size of its body and its properties.
    Header(ChannelId, u64, Box<AMQPProperties>),
    /// A part of a message's body.
    Body(ChannelId, Bytes),
    /// A sign of life.
    Heartbeat,
}

/// Takes the next frame off `input`; `None` until it is there as a whole. `frame_max` bounds what has to be buffered.
///
/// # Errors
/// The frame cannot be understood, and neither can what follows.
pub(super) fn decode(input: &mut BytesMut, frame_max: usize) -> Result<Option<Frame>, AmqpError> {
    let Some(head) = input.get(..7) else { return Ok(None) };
    if head.starts_with(b"AMQP") {
        return Err(broken(format!("it speaks another protocol version: {:?}", &head[4..])));
    }
    let kind = head[0];
    let channel = u16::from_be_bytes([head[1], head[2]]);
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    if size > frame_max.saturating_sub(OVERHEAD) {
        return Err(broken(format!("a frame of {size} bytes is larger than the negotiated {frame_max}")));
    }
    if input.len() < size + OVERHEAD {
        return Ok(None);
    }
    let mut whole = input.split_to(size + OVERHEAD);
    if whole[7 + size] != END {
        return Err(broken("a frame has an invalid end marker"));
    }
    let payload = &whole[7..7 + size];
    match kind {
        1 => match parse_class(payload) {
            Ok(([], class)) => Ok(Some(Frame::Method(channel, class))),
            _ => Err(broken(format!("a method could not be decoded: {:02x?}", &payload[..size.min(4)]))),
        },
        2 if !nesting::properties_are_shallow(payload) => Err(broken("the headers of a message nest too deep")),
        2 => match parse_content_header(payload) {
            Ok(([], header)) => Ok(Some(Frame::Header(channel, header.body_size, Box::new(header.properties)))),
            _ => Err(broken("the properties of a message could not be decoded")),
        },
        3 if size < SHARED_FROM => Ok(Some(Frame::Body(channel, Bytes::copy_from_slice(payload)))),
        3 => {
            whole.advance(7);
            whole.truncate(size);
            Ok(Some(Frame::Body(channel, whole.freeze())))
        }
        8 => Ok(Some(Frame::Heartbeat)),
        _ => Err(broken(format!("frame type {kind} does not exist"))),
    }
}

/// Frames on their way to RabbitMQ, encoded one after the other.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
}

impl Outbox {
    /// How many bytes are waiting.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Exchanges the bytes with `other`, which must be empty.
    pub(super) fn swap(&mut self, other: &mut Vec<u8>) {
        debug_assert!(other.is_empty());
        std::mem::swap(&mut self.bytes, other);
    }

    /// Adds the protocol header, which comes before all frames.
    pub(super) fn protocol_header(&mut self) {
        self.bytes.extend_from_slice(b"AMQP\x00\x00\x09\x01");
    }

    /// Adds a heartbeat.
    pub(super) fn heartbeat(&mut self) {
        self.frame(&AMQPFrame::Heartbeat);
    }

    /// Adds a method.
    pub(super) fn method(&mut self, channel: ChannelId, class: AMQPClass) {
        self.frame(&AMQPFrame::Method(channel, class));
    }

    /// Adds a message's header and its body, in frames of at most `frame_max` bytes.
    pub(super) fn content(&mut self, channel: ChannelId, properties: AMQPProperties, body: &[u8], frame_max: usize) {
        let header = AMQPContentHeader { class_id: 60, body_size: body.len() as u64, properties };
        self.frame(&AMQPFrame::Header(channel, header));
        for part in body.chunks(frame_max.saturating_sub(OVERHEAD).max(1)) {
            let size = u32::try_from(part.len()).expect("frame_max fits 32 bits");
            self.bytes.push(3);
            self.bytes.extend_from_slice(&channel.to_be_bytes());
            self.bytes.extend_from_slice(&size.to_be_bytes());
            self.bytes.extend_from_slice(part);
            self.bytes.push(END);
        }
    }

    fn frame(&mut self, frame: &AMQPFrame) {
        let context = WriteContext { write: std::mem::take(&mut self.bytes), position: 0 };
        self.bytes = gen_frame(frame)(context).expect("writing to a Vec does not fail").write;
    }
}

fn broken(what: impl std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, format!("RabbitMQ's answer was not understood: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use amq_protocol::protocol::channel;

    #[test]
    fn frames_are_read_back_as_they_were_written_however_they_are_cut() {
        let body: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        let properties = AMQPProperties::default().with_priority(3);
        let mut out = Outbox::default();
        out.method(7, AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {})));
        out.content(7, properties.clone(), &body, 4096 + OVERHEAD);
        out.heartbeat();
        let mut bytes = Vec::new();
        out.swap(&mut bytes);
        for step in [1, 7, 8, 100, bytes.len()] {
            let mut input = BytesMut::new();
            let mut frames = Vec::new();
            for part in bytes.chunks(step) {
                input.extend_from_slice(part);
                while let Some(frame) = decode(&mut input, 8192).expect("valid") {
                    frames.push(frame);
                }
            }
            assert_eq!(frames.len(), 6);
            assert_eq!(frames[1], Frame::Header(7, 10_000, Box::new(properties.clone())));
            let read: Vec<u8> = frames
                .iter()
                .filter_map(|frame| match frame {
                    Frame::Body(7, part) => Some(part.to_vec()),
                    _ => None,
                })
                .flatten()
                .collect();
            assert_eq!(read, body);
            assert_eq!(frames[5], Frame::Heartbeat);
        }
    }

    #[test]
    fn what_is_not_amqp_is_an_error_and_never_a_panic() {
        for bytes in [
            &b"AMQP\x01\x00\x00\x0a"[..],
            b"HTTP/1.1 400",
            &[1, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0],
            &[1, 0, 0, 0, 0, 0, 1, 9, 0xCE],
            &[2, 0, 1, 0, 0, 0, 2, 9, 9, 0xCE],
            &[3, 0, 1, 0, 0, 0, 1, 9, 0],
            &[9, 0, 1, 0, 0, 0, 0, 0xCE],
        ] {
            let error = decode(&mut BytesMut::from(bytes), 4096).expect_err("not AMQP");
            assert_eq!(error.code, ReplyCode::InternalError);
        }
    }
}
