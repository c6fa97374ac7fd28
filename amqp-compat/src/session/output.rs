//! The bytes to write.

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame};
use amq_protocol::protocol::{AMQPClass, basic};

use super::frame::{OVERHEAD, PROTOCOL_HEADER};
use crate::backend::{ChannelId, Message};

/// Frames, encoded one after the other.
///
/// `basic.deliver`, `basic.ack` and body frames are written here, byte by byte; all others by `amq-protocol`, which is
/// also what the tests read these ones back with.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
}

impl Output {
    /// How many bytes are waiting.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Exchanges the bytes with `other`, which must be empty.
    pub(super) fn swap(&mut self, other: &mut Vec<u8>) {
        debug_assert!(other.is_empty());
        std::mem::swap(&mut self.bytes, other);
    }

    /// Writes the protocol header, the answer to a wrong one.
    pub(super) fn protocol_header(&mut self) {
        self.bytes.extend_from_slice(PROTOCOL_HEADER);
    }

    /// Writes a heartbeat frame.
    pub(super) fn heartbeat(&mut self) {
        self.frame(&AMQPFrame::Heartbeat);
    }

    /// Writes a method frame.
    pub(super) fn method(&mut self, channel: ChannelId, class: AMQPClass) {
        self.frame(&AMQPFrame::Method(channel, class));
    }

    /// Writes `basic.ack`.
    pub(super) fn ack(&mut self, channel: ChannelId, tag: u64, multiple: bool) {
        let start = self.begin(1, channel);
        self.bytes.extend_from_slice(&[0, 60, 0, 80]);
        self.bytes.extend_from_slice(&tag.to_be_bytes());
        self.bytes.push(u8::from(multiple));
        self.end(start);
    }

    /// Writes `basic.deliver`, without its content.
    pub(super) fn deliver(
        &mut self,
        channel: ChannelId,
        consumer: &str,
        tag: u64,
        redelivered: bool,
        message: &Message,
    ) {
        let start = self.begin(1, channel);
        self.bytes.extend_from_slice(&[0, 60, 0, 60]);
        self.short(consumer);
        self.bytes.extend_from_slice(&tag.to_be_bytes());
        self.bytes.push(u8::from(redelivered));
        self.short(message.exchange.as_str());
        self.short(message.routing_key.as_str());
        self.end(start);
    }

    /// Writes a message's header and its body, in frames of at most `frame_max` bytes (0: no limit).
    pub(super) fn content(
        &mut self,
        channel: ChannelId,
        properties: basic::AMQPProperties,
        body: &[u8],
        frame_max: u32,
    ) {
        let header = AMQPContentHeader { class_id: 60, body_size: body.len() as u64, properties };
        self.frame(&AMQPFrame::Header(channel, header));
        let largest = match frame_max as usize {
            0 => MAX_PAYLOAD,
            max => max.saturating_sub(OVERHEAD).max(1),
        };
        for part in body.chunks(largest) {
            let start = self.begin(3, channel);
            self.bytes.extend_from_slice(part);
            self.end(start);
        }
    }

    fn frame(&mut self, frame: &AMQPFrame) {
        let context = WriteContext { write: std::mem::take(&mut self.bytes), position: 0 };
        let done = gen_frame(frame)(context).expect("writing to a Vec does not fail");
        self.bytes = done.write;
    }

    fn begin(&mut self, kind: u8, channel: ChannelId) -> usize {
        let start = self.bytes.len();
        self.bytes.push(kind);
        self.bytes.extend_from_slice(&channel.to_be_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        start
    }

    fn end(&mut self, start: usize) {
        let size = u32::try_from(self.bytes.len() - start - 7).expect("a frame is smaller than 4 GiB");
        self.bytes[start + 3..start + 7].copy_from_slice(&size.to_be_bytes());
        self.bytes.push(0xCE);
    }

    /// A `ShortString` is never longer than 255 bytes.
    fn short(&mut self, text: &str) {
        debug_assert!(text.len() <= 255);
        self.bytes.push(text.len() as u8);
        self.bytes.extend_from_slice(text.as_bytes());
    }
}

/// The largest body frame when the client asked for no limit.
const MAX_PAYLOAD: usize = 1 << 20;
