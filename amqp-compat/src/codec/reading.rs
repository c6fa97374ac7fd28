//! Bytes to methods, content headers and bodies.

use amq_protocol::frame::AMQPContentHeader;
use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, parse_class};
use amq_protocol::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use bytes::{Buf, Bytes, BytesMut};

use super::{HEAD, OVERHEAD, flag, id};
use crate::backend::ChannelId;

/// What comes before a frame's payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// The type of the frame.
    pub(crate) kind: u8,
    /// Its channel.
    pub(crate) channel: ChannelId,
    /// How long its payload is.
    pub(crate) size: usize,
}

impl Head {
    /// The head of the frame that begins `input`; `None` until it is there.
    pub(crate) fn of(input: &[u8]) -> Option<Self> {
        let [kind, c0, c1, s0, s1, s2, s3] = *input.first_chunk::<HEAD>()?;
        let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
        Some(Self { kind, channel: u16::from_be_bytes([c0, c1]), size })
    }
}

/// The method that a payload is; `None` when it is malformed or AMQP has no such method.
pub(crate) fn method(payload: &[u8]) -> Option<AMQPClass> {
    frequent_method(payload).map(AMQPClass::Basic).or_else(|| match parse_class(payload) {
        Ok(([], class)) => Some(class),
        _ => None,
    })
}

/// A method that goes with every message.
pub(super) fn frequent_method(payload: &[u8]) -> Option<basic::AMQPMethod> {
    let (ids, fields) = payload.split_first_chunk()?;
    let mut fields = Fields(fields);
    let method = match *ids {
        id::PUBLISH => {
            fields.u16()?; // reserved
            let (exchange, routing_key) = (fields.short()?, fields.short()?);
            let bits = fields.u8()?;
            let (mandatory, immediate) = (bits & 1 != 0, bits & 2 != 0);
            basic::AMQPMethod::Publish(basic::Publish { exchange, routing_key, mandatory, immediate })
        }
        id::DELIVER => basic::AMQPMethod::Deliver(basic::Deliver {
            consumer_tag: fields.short()?,
            delivery_tag: fields.u64()?,
            redelivered: fields.u8()? & 1 != 0,
            exchange: fields.short()?,
            routing_key: fields.short()?,
        }),
        id::GET_OK => basic::AMQPMethod::GetOk(basic::GetOk {
            delivery_tag: fields.u64()?,
            redelivered: fields.u8()? & 1 != 0,
            exchange: fields.short()?,
            routing_key: fields.short()?,
            message_count: fields.u32()?,
        }),
        id::ACK => basic::AMQPMethod::Ack(basic::Ack { delivery_tag: fields.u64()?, multiple: fields.u8()? & 1 != 0 }),
        id::REJECT => {
            basic::AMQPMethod::Reject(basic::Reject { delivery_tag: fields.u64()?, requeue: fields.u8()? & 1 != 0 })
        }
        id::NACK => {
            let (delivery_tag, bits) = (fields.u64()?, fields.u8()?);
            basic::AMQPMethod::Nack(basic::Nack { delivery_tag, multiple: bits & 1 != 0, requeue: bits & 2 != 0 })
        }
        _ => return None,
    };
    fields.0.is_empty().then_some(method)
}

/// The content header that a payload is; `None` when it is malformed.
///
/// Tables are read by recursion: [`crate::nesting`] has to have looked at them.
pub(crate) fn content_header(payload: &[u8]) -> Option<AMQPContentHeader> {
    let mut fields = Fields(payload);
    let class_id = fields.u16()?;
    fields.u16()?; // weight, unused
    let header = AMQPContentHeader { class_id, body_size: fields.u64()?, properties: fields.properties()? };
    fields.0.is_empty().then_some(header)
}

/// Takes a whole body frame with a payload of `size` bytes off `input`. A large body is not copied: it shares `input`'s memory.
pub(crate) fn take_body(input: &mut BytesMut, size: usize) -> Bytes {
    if size < SHARED_FROM {
        let body = Bytes::copy_from_slice(&input[HEAD..HEAD + size]);
        input.advance(size + OVERHEAD);
        return body;
    }
    let mut frame = input.split_to(size + OVERHEAD);
    frame.advance(HEAD);
    frame.truncate(size);
    frame.freeze()
}

/// From this size on a body keeps the read buffer alive instead of being copied; a smaller one would hold on to memory
/// many times its own size for as long as its message waits somewhere.
const SHARED_FROM: usize = 4096;

/// The fields that are left to read; each read is `None` when too little is there.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*chunk)
    }

    fn u8(&mut self) -> Option<u8> {
        self.chunk().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.chunk().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.chunk().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.chunk().map(u64::from_be_bytes)
    }

    /// A short string, which has to be UTF-8.
    fn short(&mut self) -> Option<ShortString> {
        let length = self.u8()?;
        let text = std::str::from_utf8(self.bytes(length.into())?).ok()?;
        ShortString::try_new(text).ok()
    }

    /// Bytes behind their length.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(length.try_into().ok()?)
    }

    fn properties(&mut self) -> Option<AMQPProperties> {
        let flags = self.u16()?;
        let has = |flag: u16| flags & flag != 0;
        let mut read = AMQPProperties::default();
        if has(flag::CONTENT_TYPE) {
            read = read.with_content_type(self.short()?);
        }
        if has(flag::CONTENT_ENCODING) {
            read = read.with_content_encoding(self.short()?);
        }
        if has(flag::HEADERS) {
            read = read.with_headers(self.table()?);
        }
        if has(flag::DELIVERY_MODE) {
            read = read.with_delivery_mode(self.u8()?);
        }
        if has(flag::PRIORITY) {
            read = read.with_priority(self.u8()?);
        }
        if has(flag::CORRELATION_ID) {
            read = read.with_correlation_id(self.short()?);
        }
        if has(flag::REPLY_TO) {
            read = read.with_reply_to(self.short()?);
        }
        if has(flag::EXPIRATION) {
            read = read.with_expiration(self.short()?);
        }
        if has(flag::MESSAGE_ID) {
            read = read.with_message_id(self.short()?);
        }
        if has(flag::TIMESTAMP) {
            read = read.with_timestamp(self.u64()?);
        }
        if has(flag::TYPE) {
            read = read.with_type(self.short()?);
        }
        if has(flag::USER_ID) {
            read = read.with_user_id(self.short()?);
        }
        if has(flag::APP_ID) {
            read = read.with_app_id(self.short()?);
        }
        if has(flag::CLUSTER_ID) {
            read = read.with_cluster_id(self.short()?);
        }
        Some(read)
    }

    fn table(&mut self) -> Option<FieldTable> {
        let mut entries = Fields(self.long()?);
        let mut table = FieldTable::default();
        while !entries.0.is_empty() {
            table.insert(entries.short()?, entries.value()?);
        }
        Some(table)
    }

    fn array(&mut self) -> Option<FieldArray> {
        let mut entries = Fields(self.long()?);
        let mut array = FieldArray::default();
        while !entries.0.is_empty() {
            array.push(entries.value()?);
        }
        Some(array)
    }

    /// A value behind the letter of its type, as RabbitMQ uses them.
    fn value(&mut self) -> Option<AMQPValue> {
        Some(match self.u8()? {
            b't' => AMQPValue::Boolean(self.u8()? != 0),
            b'b' => AMQPValue::ShortShortInt(self.chunk().map(i8::from_be_bytes)?),
            b'B' => AMQPValue::ShortShortUInt(self.u8()?),
            b's' | b'U' => AMQPValue::ShortInt(self.chunk().map(i16::from_be_bytes)?),
            b'u' => AMQPValue::ShortUInt(self.u16()?),
            b'I' => AMQPValue::LongInt(self.chunk().map(i32::from_be_bytes)?),
            b'i' => AMQPValue::LongUInt(self.u32()?),
            b'L' | b'l' => AMQPValue::LongLongInt(self.chunk().map(i64::from_be_bytes)?),
            b'f' => AMQPValue::Float(self.chunk().map(f32::from_be_bytes)?),
            b'd' => AMQPValue::Double(self.chunk().map(f64::from_be_bytes)?),
            b'D' => AMQPValue::DecimalValue(DecimalValue { scale: self.u8()?, value: self.u32()? }),
            b'S' => AMQPValue::LongString(self.long()?.into()),
            b'A' => AMQPValue::FieldArray(self.array()?),
            b'T' => AMQPValue::Timestamp(self.u64()?),
            b'F' => AMQPValue::FieldTable(self.table()?),
            b'x' => AMQPValue::ByteArray(self.long()?.into()),
            b'V' => AMQPValue::Void,
            _ => return None,
        })
    }
}
