//! Bytes to frames.

use amq_protocol::protocol::AMQPClass;
use amq_protocol::protocol::basic::AMQPProperties;
use bytes::{Buf, Bytes, BytesMut};

use crate::backend::ChannelId;
use crate::codec::{self, BODY, END, HEAD, HEADER, HEARTBEAT, Head, METHOD, OVERHEAD};
use crate::error::{AmqpError, ReplyCode};
use crate::nesting;

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
    let Some(Head { kind, channel, size }) = Head::of(input) else { return Ok(None) };
    if input.starts_with(b"AMQP") {
        return Err(broken(format!("it speaks another protocol version: {:?}", &input[4..HEAD])));
    }
    if size > frame_max.saturating_sub(OVERHEAD) {
        return Err(broken(format!("a frame of {size} bytes is larger than the negotiated {frame_max}")));
    }
    if input.len() < size + OVERHEAD {
        return Ok(None);
    }
    if input[HEAD + size] != END {
        return Err(broken("a frame has an invalid end marker"));
    }
    if kind == BODY {
        return Ok(Some(Frame::Body(channel, codec::take_body(input, size))));
    }
    let payload = &input[HEAD..HEAD + size];
    let frame = match kind {
        METHOD => match codec::method(payload) {
            Some(class) => Frame::Method(channel, class),
            None => return Err(broken(format!("a method could not be decoded: {:02x?}", &payload[..size.min(4)]))),
        },
        HEADER if !nesting::properties_are_shallow(payload) => {
            return Err(broken("the headers of a message nest too deep"));
        }
        HEADER => match codec::content_header(payload) {
            Some(header) => Frame::Header(channel, header.body_size, Box::new(header.properties)),
            None => return Err(broken("the properties of a message could not be decoded")),
        },
        HEARTBEAT => Frame::Heartbeat,
        _ => return Err(broken(format!("frame type {kind} does not exist"))),
    };
    input.advance(size + OVERHEAD);
    Ok(Some(frame))
}

fn broken(what: impl std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, format!("RabbitMQ's answer was not understood: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use amq_protocol::protocol::channel;

    use crate::codec::Output;

    #[test]
    fn frames_are_read_back_as_they_were_written_however_they_are_cut() {
        let body: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        let properties = AMQPProperties::default().with_priority(3);
        let mut out = Output::default();
        out.method(7, AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {})));
        out.content(7, &properties, &body, 4096 + OVERHEAD);
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
