//! Bytes to frames.

use amq_protocol::frame::AMQPContentHeader;
use amq_protocol::protocol::AMQPClass;
use bytes::{Buf, Bytes, BytesMut};

use crate::backend::ChannelId;
use crate::codec::{self, BODY, END, HEAD, HEADER, HEARTBEAT, Head, METHOD, OVERHEAD};
use crate::error::{AmqpError, ReplyCode};
use crate::nesting;

/// One frame of a client.
#[derive(Debug)]
pub(super) enum Frame {
    /// A method.
    Method(ChannelId, AMQPClass),
    /// A method that cannot be carried out, whatever the state of its channel.
    Refused(ChannelId, Fault),
    /// A content header that cannot be read, which matters only where one is due.
    BadHeader(ChannelId, Fault),
    /// The header of a message.
    Header(ChannelId, Box<AMQPContentHeader>),
    /// A part of a message's body.
    Body(ChannelId, Bytes),
    /// A sign of life.
    Heartbeat,
}

impl Frame {
    /// The channel it came on.
    pub(super) fn channel(&self) -> ChannelId {
        match self {
            Frame::Method(channel, _)
            | Frame::Refused(channel, _)
            | Frame::BadHeader(channel, _)
            | Frame::Header(channel, _)
            | Frame::Body(channel, _) => *channel,
            Frame::Heartbeat => 0,
        }
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Frame::Body(_, body) => body.len() + 64,
            Frame::Method(..) | Frame::Refused(..) | Frame::BadHeader(..) | Frame::Header(..) | Frame::Heartbeat => 512,
        }
    }
}

/// An error, and the method that caused it (0, 0 when none did); what a `close` method says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// What went wrong.
    pub(super) error: AmqpError,
    /// Class and method id.
    pub(super) method: (u16, u16),
}

impl Fault {
    /// A fault that no method caused.
    pub(super) fn new(code: ReplyCode, text: impl Into<String>) -> Self {
        Self { error: AmqpError::new(code, text), method: (0, 0) }
    }

    /// Whether frames came that make no method, which ends all else.
    pub(super) fn is_of_framing(&self) -> bool {
        matches!(self.error.code, ReplyCode::UnexpectedFrame | ReplyCode::FrameError)
    }

    /// A fault of this method.
    pub(super) fn of(error: AmqpError, method: (u16, u16)) -> Self {
        Self { error, method }
    }
}

/// Takes the next frame off `input`; `None` until it is there as a whole.
///
/// `frame_max` bounds what has to be buffered: a payload of that many bytes at most. Bodies are not copied when they are large:
/// they share `input`'s memory.
///
/// # Errors
/// A connection error; nothing after it in `input` can be understood.
pub(super) fn decode(input: &mut BytesMut, frame_max: usize) -> Result<Option<Frame>, Fault> {
    let Some(Head { kind, channel, size }) = Head::of(input) else { return Ok(None) };
    if !matches!(kind, METHOD | HEADER | BODY | HEARTBEAT) {
        return Err(Fault::new(ReplyCode::FrameError, format!("unknown frame type {kind} on channel {channel}")));
    }
    // RabbitMQ forgives clients that count the payload alone.
    if size > frame_max {
        let largest = frame_max.saturating_sub(OVERHEAD);
        let text = format!("type {kind}, all octets = <<>>: {{frame_too_large,{size},{largest}}}");
        return Err(Fault::new(ReplyCode::FrameError, text));
    }
    if input.len() < size + OVERHEAD {
        return Ok(None);
    }
    if input[HEAD + size] != END {
        let text = format!("type {kind} frame on channel {channel} of {size} bytes has an invalid end marker");
        return Err(Fault::new(ReplyCode::FrameError, text));
    }
    if kind == BODY {
        return Ok(Some(Frame::Body(channel, codec::take_body(input, size))));
    }
    let payload = &input[HEAD..HEAD + size];
    let frame = match kind {
        METHOD => method(channel, payload)?,
        HEADER => header(channel, payload),
        _ if channel == 0 && size == 0 => Frame::Heartbeat,
        _ => return Err(Fault::new(ReplyCode::UnexpectedFrame, format!("heartbeat frame on channel {channel}"))),
    };
    input.advance(size + OVERHEAD);
    Ok(Some(frame))
}

fn method(channel: ChannelId, payload: &[u8]) -> Result<Frame, Fault> {
    let Some(ids) = payload.get(..4) else {
        return Err(Fault::new(ReplyCode::FrameError, "method frame without a method"));
    };
    let ids = (u16::from_be_bytes([ids[0], ids[1]]), u16::from_be_bytes([ids[2], ids[3]]));
    if !nesting::method_is_shallow(payload) {
        let text = format!("a table nests deeper than {}", nesting::MAX_DEPTH);
        return Err(Fault::of(AmqpError::new(ReplyCode::SyntaxError, text), ids));
    }
    match codec::method(payload) {
        // `amq-protocol` leaves prefetch-size out of `Qos`; RabbitMQ's text.
        Some(AMQPClass::Basic(_)) if ids == BASIC_QOS && payload[4..8] != [0; 4] => {
            let size = u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]);
            let error = AmqpError::not_implemented(format!("prefetch_size!=0 ({size})"));
            Ok(Frame::Refused(channel, Fault::of(error, ids)))
        }
        Some(class) => Ok(Frame::Method(channel, class)),
        None if is_known(ids) => {
            let text = format!("malformed fields in method {}.{} (short strings must be UTF-8)", ids.0, ids.1);
            Err(Fault::of(AmqpError::new(ReplyCode::SyntaxError, text), ids))
        }
        None => Err(Fault::of(AmqpError::not_implemented(format!("unknown method {}.{}", ids.0, ids.1)), ids)),
    }
}

fn header(channel: ChannelId, payload: &[u8]) -> Frame {
    let bad = |text: String| Frame::BadHeader(channel, Fault::new(ReplyCode::SyntaxError, text));
    if !nesting::properties_are_shallow(payload) {
        return bad(format!("the headers of a message nest deeper than {}", nesting::MAX_DEPTH));
    }
    match codec::content_header(payload) {
        Some(header) => Frame::Header(channel, Box::new(header)),
        None => bad("malformed content header (short strings must be UTF-8)".to_owned()),
    }
}

/// Whether AMQP 0-9-1, with RabbitMQ's extensions, has this method.
fn is_known((class, method): (u16, u16)) -> bool {
    let methods: &[u16] = match class {
        10 => &[10, 11, 20, 21, 30, 31, 40, 41, 50, 51, 60, 61, 70, 71],
        20 => &[10, 11, 20, 21, 40, 41],
        30 => &[10, 11],
        40 => &[10, 11, 20, 21, 30, 31, 40, 51],
        50 => &[10, 11, 20, 21, 30, 31, 40, 41, 50, 51],
        60 => &[10, 11, 20, 21, 30, 31, 40, 50, 60, 70, 71, 72, 80, 90, 100, 110, 111, 120],
        85 => &[10, 11],
        90 => &[10, 11, 20, 21, 30, 31],
        _ => &[],
    };
    methods.contains(&method)
}

const BASIC_QOS: (u16, u16) = (60, 10);
