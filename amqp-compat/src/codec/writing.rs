//! Methods, content headers and bodies to bytes.

use amq_protocol::frame::WriteContext;
use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, gen_class};
use amq_protocol::types::{AMQPValue, FieldTable, ShortString};

use super::{BODY, CLASS_BASIC, END, HEAD, HEADER, HEARTBEAT, METHOD, OVERHEAD, PROTOCOL_HEADER, flag, id};
use crate::backend::ChannelId;

/// Frames on their way, encoded one after the other.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
}

impl Output {
    /// How many bytes are waiting.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Exchanges the bytes with `other`, which must be empty.
    pub(crate) fn swap(&mut self, other: &mut Vec<u8>) {
        debug_assert!(other.is_empty());
        std::mem::swap(&mut self.bytes, other);
    }

    /// Adds the protocol header.
    pub(crate) fn protocol_header(&mut self) {
        self.bytes.extend_from_slice(PROTOCOL_HEADER);
    }

    /// Adds a heartbeat.
    pub(crate) fn heartbeat(&mut self) {
        let start = self.begin(HEARTBEAT, 0);
        self.end(start);
    }

    /// Adds a method.
    pub(crate) fn method(&mut self, channel: ChannelId, class: AMQPClass) {
        let start = self.begin(METHOD, channel);
        match &class {
            AMQPClass::Basic(basic::AMQPMethod::Publish(publish)) => {
                self.bytes.extend_from_slice(&id::PUBLISH);
                self.bytes.extend_from_slice(&[0; 2]); // reserved
                self.short(&publish.exchange);
                self.short(&publish.routing_key);
                self.bits(publish.mandatory, publish.immediate);
            }
            AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver)) => {
                self.bytes.extend_from_slice(&id::DELIVER);
                self.short(&deliver.consumer_tag);
                self.bytes.extend_from_slice(&deliver.delivery_tag.to_be_bytes());
                self.bits(deliver.redelivered, false);
                self.short(&deliver.exchange);
                self.short(&deliver.routing_key);
            }
            AMQPClass::Basic(basic::AMQPMethod::GetOk(ok)) => {
                self.tagged(id::GET_OK, ok.delivery_tag, ok.redelivered, false);
                self.short(&ok.exchange);
                self.short(&ok.routing_key);
                self.bytes.extend_from_slice(&ok.message_count.to_be_bytes());
            }
            AMQPClass::Basic(basic::AMQPMethod::Ack(ack)) => {
                self.tagged(id::ACK, ack.delivery_tag, ack.multiple, false);
            }
            AMQPClass::Basic(basic::AMQPMethod::Reject(reject)) => {
                self.tagged(id::REJECT, reject.delivery_tag, reject.requeue, false);
            }
            AMQPClass::Basic(basic::AMQPMethod::Nack(nack)) => {
                self.tagged(id::NACK, nack.delivery_tag, nack.multiple, nack.requeue);
            }
            other => {
                let context = WriteContext { write: std::mem::take(&mut self.bytes), position: 0 };
                self.bytes = gen_class(other)(context).expect("writing to a Vec does not fail").write;
            }
        }
        self.end(start);
    }

    /// Adds a message's header and its body, in frames of at most `frame_max` bytes (0: no limit).
    pub(crate) fn content(&mut self, channel: ChannelId, properties: &AMQPProperties, body: &[u8], frame_max: usize) {
        let start = self.begin(HEADER, channel);
        self.bytes.extend_from_slice(&CLASS_BASIC.to_be_bytes());
        self.bytes.extend_from_slice(&[0; 2]); // weight, unused
        self.bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
        self.properties(properties);
        self.end(start);
        let largest = match frame_max {
            0 => MAX_PAYLOAD,
            max => max.saturating_sub(OVERHEAD).max(1),
        };
        for part in body.chunks(largest) {
            let start = self.begin(BODY, channel);
            self.bytes.extend_from_slice(part);
            self.end(start);
        }
    }

    /// Begins a frame; its size is not known yet.
    fn begin(&mut self, kind: u8, channel: ChannelId) -> usize {
        let start = self.bytes.len();
        let [c0, c1] = channel.to_be_bytes();
        self.bytes.extend_from_slice(&[kind, c0, c1, 0, 0, 0, 0]);
        start
    }

    fn end(&mut self, start: usize) {
        self.fill_in_size(start + HEAD);
        self.bytes.push(END);
    }

    /// Writes the size of all that follows `start` into the four bytes before it.
    fn fill_in_size(&mut self, start: usize) {
        let size = u32::try_from(self.bytes.len() - start).expect("a frame is smaller than 4 GiB");
        self.bytes[start - 4..start].copy_from_slice(&size.to_be_bytes());
    }

    /// What the acknowledgements and `basic.get-ok` begin with.
    fn tagged(&mut self, id: [u8; 4], delivery_tag: u64, first: bool, second: bool) {
        self.bytes.extend_from_slice(&id);
        self.bytes.extend_from_slice(&delivery_tag.to_be_bytes());
        self.bits(first, second);
    }

    fn bits(&mut self, first: bool, second: bool) {
        self.bytes.push(u8::from(first) | u8::from(second) << 1);
    }

    /// A `ShortString` is never longer than 255 bytes.
    fn short(&mut self, text: &ShortString) {
        let text = text.as_str();
        debug_assert!(text.len() <= 255);
        self.bytes.push(text.len() as u8);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn long(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("a frame is smaller than 4 GiB");
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    fn properties(&mut self, properties: &AMQPProperties) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        let mut flags = self.short_property(flag::CONTENT_TYPE, properties.content_type())
            | self.short_property(flag::CONTENT_ENCODING, properties.content_encoding());
        if let Some(headers) = properties.headers() {
            flags |= flag::HEADERS;
            self.table(headers);
        }
        if let Some(mode) = properties.delivery_mode() {
            flags |= flag::DELIVERY_MODE;
            self.bytes.push(*mode);
        }
        if let Some(priority) = properties.priority() {
            flags |= flag::PRIORITY;
            self.bytes.push(*priority);
        }
        flags |= self.short_property(flag::CORRELATION_ID, properties.correlation_id());
        flags |= self.short_property(flag::REPLY_TO, properties.reply_to());
        flags |= self.short_property(flag::EXPIRATION, properties.expiration());
        flags |= self.short_property(flag::MESSAGE_ID, properties.message_id());
        if let Some(timestamp) = properties.timestamp() {
            flags |= flag::TIMESTAMP;
            self.bytes.extend_from_slice(&timestamp.to_be_bytes());
        }
        flags |= self.short_property(flag::TYPE, properties.kind());
        flags |= self.short_property(flag::USER_ID, properties.user_id());
        flags |= self.short_property(flag::APP_ID, properties.app_id());
        flags |= self.short_property(flag::CLUSTER_ID, properties.cluster_id());
        self.bytes[start..start + 2].copy_from_slice(&flags.to_be_bytes());
    }

    /// Writes a property, if there is one, and returns what it adds to the flags.
    fn short_property(&mut self, flag: u16, text: &Option<ShortString>) -> u16 {
        let Some(text) = text else { return 0 };
        self.short(text);
        flag
    }

    fn table(&mut self, table: &FieldTable) {
        self.bytes.extend_from_slice(&[0; 4]);
        let start = self.bytes.len();
        for (name, value) in table {
            self.short(name);
            self.value(value);
        }
        self.fill_in_size(start);
    }

    fn value(&mut self, value: &AMQPValue) {
        self.bytes.push(value.get_type().get_id() as u8);
        match value {
            AMQPValue::Boolean(value) => self.bytes.push(u8::from(*value)),
            AMQPValue::ShortShortInt(value) => self.bytes.extend_from_slice(&value.to_be_bytes()),
            AMQPValue::ShortShortUInt(value) => self.bytes.push(*value),
            AMQPValue::ShortInt(value) => self.bytes.extend_from_slice(&value.to_be_bytes()),
            AMQPValue::ShortUInt(value) => self.bytes.extend_from_slice(&value.to_be_bytes()),
            AMQPValue::LongInt(value) => self.bytes.extend_from_slice(&value.to_be_bytes()),
            AMQPValue::LongUInt(value) => self.bytes.extend_from_slice(&value.to_be_bytes()),
            AMQPValue::LongLongInt(value) => self.bytes.extend_from_slice(&value.to_be_bytes()),
            AMQPValue::Float(value) => self.bytes.extend_from_slice(&value.to_be_bytes()),
            AMQPValue::Double(value) => self.bytes.extend_from_slice(&value.to_be_bytes()),
            AMQPValue::DecimalValue(value) => {
                self.bytes.push(value.scale);
                self.bytes.extend_from_slice(&value.value.to_be_bytes());
            }
            AMQPValue::ShortString(text) => self.short(text),
            AMQPValue::LongString(text) => self.long(text.as_bytes()),
            AMQPValue::FieldArray(array) => {
                self.bytes.extend_from_slice(&[0; 4]);
                let start = self.bytes.len();
                array.as_slice().iter().for_each(|value| self.value(value));
                self.fill_in_size(start);
            }
            AMQPValue::Timestamp(value) => self.bytes.extend_from_slice(&value.to_be_bytes()),
            AMQPValue::FieldTable(table) => self.table(table),
            AMQPValue::ByteArray(bytes) => self.long(bytes.as_slice()),
            AMQPValue::Void => {}
        }
    }
}

/// The largest body frame when the other side asked for no limit.
const MAX_PAYLOAD: usize = 1 << 20;
