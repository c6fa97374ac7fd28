//! This module against `amq-protocol`'s parser and generator.

use amq_protocol::frame::parsing::parse_content_header;
use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame};
use amq_protocol::protocol::basic::{self, AMQPMethod, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, parse_class, queue};
use amq_protocol::types::{AMQPValue, DecimalValue, FieldTable, ShortString};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::reading::frequent_method;
use super::*;

fn short() -> impl Strategy<Value = ShortString> {
    prop_oneof![Just(String::new()), "[ -~]{1,20}", "\\PC{0,20}", "[a-z]{255}"]
        .prop_map(|text| ShortString::try_new(text).expect("at most 255 bytes"))
}

fn value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u32>().prop_map(|bits| AMQPValue::Float(f32::from_bits(bits))),
        any::<u64>().prop_map(|bits| AMQPValue::Double(f64::from_bits(bits))),
        any::<(u8, u32)>().prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
        // Has a letter that nobody reads.
        short().prop_map(AMQPValue::ShortString),
        vec(any::<u8>(), 0..300).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        vec(any::<u8>(), 0..20).prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
        Just(AMQPValue::Void),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|values| AMQPValue::FieldArray(values.into())),
            btree_map(short(), inner, 0..4).prop_map(|entries| AMQPValue::FieldTable(entries.into())),
        ]
    })
}

fn table() -> impl Strategy<Value = FieldTable> {
    btree_map(short(), value(), 0..5).prop_map(FieldTable::from)
}

fn properties() -> impl Strategy<Value = AMQPProperties> {
    type Setter = fn(AMQPProperties, ShortString) -> AMQPProperties;
    const SETTERS: [Setter; 10] = [
        AMQPProperties::with_content_type,
        AMQPProperties::with_content_encoding,
        AMQPProperties::with_correlation_id,
        AMQPProperties::with_reply_to,
        AMQPProperties::with_expiration,
        AMQPProperties::with_message_id,
        AMQPProperties::with_type,
        AMQPProperties::with_user_id,
        AMQPProperties::with_app_id,
        AMQPProperties::with_cluster_id,
    ];
    let texts = proptest::array::uniform10(option::of(short()));
    let numbers = any::<(Option<u8>, Option<u8>, Option<u64>)>();
    (texts, option::of(table()), numbers).prop_map(|(texts, headers, (mode, priority, timestamp))| {
        let mut made = AMQPProperties::default();
        for (set, text) in SETTERS.into_iter().zip(texts) {
            made = text.map_or(made.clone(), |text| set(made, text));
        }
        made = headers.map_or(made.clone(), |headers| made.with_headers(headers));
        made = mode.map_or(made.clone(), |mode| made.with_delivery_mode(mode));
        made = priority.map_or(made.clone(), |priority| made.with_priority(priority));
        timestamp.map_or(made.clone(), |timestamp| made.with_timestamp(timestamp))
    })
}

/// The methods that are read and written here.
fn frequent() -> impl Strategy<Value = AMQPMethod> {
    let fields = (any::<u64>(), any::<(bool, bool)>(), any::<u32>(), short(), short(), short());
    (0..6, fields).prop_map(|(which, (delivery_tag, (first, second), message_count, consumer_tag, exchange, key))| {
        let routing_key = key;
        match which {
            0 => AMQPMethod::Publish(basic::Publish { exchange, routing_key, mandatory: first, immediate: second }),
            1 => AMQPMethod::Deliver(basic::Deliver {
                consumer_tag,
                delivery_tag,
                redelivered: first,
                exchange,
                routing_key,
            }),
            2 => AMQPMethod::GetOk(basic::GetOk {
                delivery_tag,
                redelivered: first,
                exchange,
                routing_key,
                message_count,
            }),
            3 => AMQPMethod::Ack(basic::Ack { delivery_tag, multiple: first }),
            4 => AMQPMethod::Reject(basic::Reject { delivery_tag, requeue: first }),
            _ => AMQPMethod::Nack(basic::Nack { delivery_tag, multiple: first, requeue: second }),
        }
    })
}

/// What happens to a payload before it is read.
#[derive(Debug, Clone)]
enum Damage {
    None,
    Cut(Index),
    Extended(Vec<u8>),
    Changed(Index, u8),
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            Just(Damage::None),
            any::<Index>().prop_map(Damage::Cut),
            vec(any::<u8>(), 1..5).prop_map(Damage::Extended),
            any::<(Index, u8)>().prop_map(|(at, byte)| Damage::Changed(at, byte)),
        ]
    }

    fn of(self, mut payload: Vec<u8>) -> Vec<u8> {
        match self {
            Damage::None => {}
            Damage::Cut(at) => payload.truncate(at.index(payload.len())),
            Damage::Extended(bytes) => payload.extend(bytes),
            Damage::Changed(at, byte) => {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
        }
        payload
    }
}

fn written_by_amq_protocol(frame: &AMQPFrame) -> Vec<u8> {
    gen_frame(frame)(WriteContext { write: Vec::new(), position: 0 }).expect("encodes").write
}

fn payload_of(frame: &AMQPFrame) -> Vec<u8> {
    let bytes = written_by_amq_protocol(frame);
    bytes[HEAD..bytes.len() - 1].to_vec()
}

/// As text and as bytes: a NaN is not equal to itself.
fn shown(header: Option<AMQPContentHeader>) -> (String, Option<Vec<u8>>) {
    (format!("{header:?}"), header.map(|header| payload_of(&AMQPFrame::Header(1, header))))
}

fn same_header(payload: &[u8]) -> Result<(), TestCaseError> {
    let theirs = match parse_content_header(payload) {
        Ok(([], header)) => Some(header),
        _ => None,
    };
    prop_assert_eq!(shown(content_header(payload)), shown(theirs));
    Ok(())
}

fn same_method(payload: &[u8]) -> Result<(), TestCaseError> {
    let theirs = match parse_class(payload) {
        Ok(([], class)) => Some(class),
        _ => None,
    };
    let is_frequent = payload.first_chunk().is_some_and(|ids| FREQUENT.contains(ids));
    if is_frequent {
        prop_assert_eq!(&frequent_method(payload).map(AMQPClass::Basic), &theirs);
    }
    prop_assert_eq!(method(payload), theirs);
    Ok(())
}

const FREQUENT: [[u8; 4]; 6] = [id::PUBLISH, id::DELIVER, id::GET_OK, id::ACK, id::REJECT, id::NACK];

/// Bytes that are often the length of what follows, and sometimes the type of a value.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => 0u8..4, 1 => select(&b"tbBsUuIiLlfdDSATFxV_"[..]), 1 => any::<u8>()];
    vec(byte, 0..40)
}

/// A table's entries, with every letter, and those that no value has.
fn entries() -> impl Strategy<Value = Vec<u8>> {
    let name = select(vec![&b""[..], b"a", b"key", "é".as_bytes(), b"\xff"]);
    vec((name, select(&b"tbBsUuIiLlfdDSATFxV_"[..]), any::<[u8; 8]>()), 0..5).prop_map(|entries| {
        let mut bytes = Vec::new();
        for (name, letter, value) in entries {
            bytes.push(name.len() as u8);
            bytes.extend(name);
            bytes.push(letter);
            match letter {
                b't' | b'b' | b'B' => bytes.extend(&value[..1]),
                b's' | b'U' | b'u' => bytes.extend(&value[..2]),
                b'I' | b'i' | b'f' => bytes.extend(&value[..4]),
                b'D' => bytes.extend(&value[..5]),
                b'S' | b'x' | b'A' | b'F' => {
                    let length = value[0] % 4;
                    bytes.extend([0, 0, 0, length]);
                    // An array of booleans; not a table.
                    let content = [b't', value[1], b'V'];
                    bytes.extend(&content[..usize::from(length)]);
                }
                b'V' => {}
                _ => bytes.extend(value),
            }
        }
        bytes
    })
}

proptest! {
    #[test]
    fn methods_are_read_as_by_amq_protocol(method in frequent(), damage in Damage::any()) {
        let payload = payload_of(&AMQPFrame::Method(1, AMQPClass::Basic(method)));
        same_method(&damage.of(payload))?;
    }

    #[test]
    fn a_method_with_another_byte_is_what_it_is_to_amq_protocol(method in frequent(), byte in any::<u8>()) {
        let mut payload = payload_of(&AMQPFrame::Method(1, AMQPClass::Basic(method)));
        for at in 0..payload.len() {
            let before = std::mem::replace(&mut payload[at], byte);
            same_method(&payload)?;
            payload[at] = before;
        }
    }

    #[test]
    fn any_bytes_are_the_method_that_they_are_to_amq_protocol(ids in select(&FREQUENT[..]), fields in bytes()) {
        same_method(&[&ids[..], &fields].concat())?;
        same_method(&fields)?;
    }

    #[test]
    fn content_headers_are_read_as_by_amq_protocol(
        properties in properties(), body_size in any::<u64>(), damage in Damage::any(),
    ) {
        let header = AMQPContentHeader { class_id: 60, body_size, properties };
        same_header(&damage.of(payload_of(&AMQPFrame::Header(1, header))))?;
    }

    #[test]
    fn any_bytes_are_the_content_header_that_they_are_to_amq_protocol(
        flags in any::<u16>(), start in vec(any::<u8>(), 12), fields in bytes(),
    ) {
        same_header(&[&start[..], &flags.to_be_bytes(), &fields].concat())?;
    }

    #[test]
    fn any_bytes_are_the_table_that_they_are_to_amq_protocol(entries in prop_oneof![bytes(), entries()]) {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0b0010_0000, 0];
        payload.extend((entries.len() as u32).to_be_bytes());
        payload.extend(entries);
        same_header(&payload)?;
    }

    #[test]
    fn frames_are_written_as_by_amq_protocol(
        channel in any::<u16>(), method in frequent(), properties in properties(), arguments in table(),
        body in vec(any::<u8>(), 0..100), frame_max in prop_oneof![Just(0), 1usize..120],
    ) {
        let declare = AMQPClass::Queue(queue::AMQPMethod::Declare(queue::Declare { arguments, ..Default::default() }));
        let method = AMQPClass::Basic(method);
        let mut output = Output::default();
        output.method(channel, declare.clone());
        output.method(channel, method.clone());
        output.content(channel, &properties, &body, frame_max);
        output.heartbeat();
        let mut written = Vec::new();
        output.swap(&mut written);

        let header = AMQPContentHeader { class_id: 60, body_size: body.len() as u64, properties };
        let mut frames = vec![
            AMQPFrame::Method(channel, declare),
            AMQPFrame::Method(channel, method),
            AMQPFrame::Header(channel, header),
        ];
        let largest = if frame_max == 0 { 100 } else { frame_max.saturating_sub(8).max(1) };
        frames.extend(body.chunks(largest).map(|part| AMQPFrame::Body(channel, part.to_vec())));
        frames.push(AMQPFrame::Heartbeat);
        let theirs: Vec<u8> = frames.iter().flat_map(written_by_amq_protocol).collect();
        prop_assert_eq!(written, theirs);
    }
}

#[test]
fn only_large_bodies_share_the_memory_of_what_was_read() {
    for (size, shares) in [(0, false), (4095, false), (4096, true), (10_000, true)] {
        let frame = [&[BODY, 0, 1], &(size as u32).to_be_bytes()[..], &vec![7; size], &[END], b"next"].concat();
        let mut input = bytes::BytesMut::from(&frame[..]);
        let place = input.as_ptr() as usize + HEAD;
        let body = take_body(&mut input, size);
        assert_eq!(body, vec![7; size]);
        assert_eq!(body.as_ptr() as usize == place, shares, "{size}");
        assert_eq!(&input[..], b"next");
    }
}
