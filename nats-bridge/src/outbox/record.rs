//! One message as it stands in the file. Pure.
//!
//! Format 1, integers little-endian: `1`, when it was put (milliseconds since 1970), then, each with its length before it, id,
//! subject, payload, schema (empty: none), the number of headers and their names and values; last, xxh3 over all of that.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::message::Message;
use crate::message_id::MessageId;

const FORMAT: u8 = 1;
const CHECKSUM: usize = 8;

/// A message with the time at which it was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub put_ms: u64,
    pub id: String,
    /// With its id.
    pub message: Message,
}

/// Why and when the server, or the publisher, refused a message for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub at_ms: u64,
    /// The error's kind, such as `too_large`.
    pub reason: String,
    pub why: String,
    /// Whether an earlier attempt may have been stored nevertheless.
    pub unknown: bool,
}

/// The bytes of a message whose id is `id`.
pub(super) fn encode(message: &Message, id: &str, put_ms: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.size() + id.len() + 64);
    out.push(FORMAT);
    out.extend(put_ms.to_le_bytes());
    put(&mut out, id.as_bytes());
    put(&mut out, message.subject.as_bytes());
    put(&mut out, &message.payload);
    put(&mut out, message.schema.as_deref().unwrap_or_default().as_bytes());
    out.extend((message.headers.len() as u32).to_le_bytes());
    for (name, value) in &message.headers {
        put(&mut out, name.as_bytes());
        put(&mut out, value.as_bytes());
    }
    seal(out)
}

/// The message of these bytes; `None` when they were not written by [`encode`] or have changed since.
pub(super) fn decode(bytes: &[u8]) -> Option<Record> {
    let mut rest = opened(bytes)?;
    let put_ms = u64::from_le_bytes(fixed(&mut rest)?);
    let id = text(&mut rest)?;
    let subject = text(&mut rest)?;
    let payload = Bytes::copy_from_slice(take(&mut rest)?);
    let schema = text(&mut rest)?;
    let mut message = Message::new(subject, payload).message_id(MessageId::Given(id.clone()));
    if !schema.is_empty() {
        message = message.schema(schema);
    }
    let headers = u32::from_le_bytes(fixed(&mut rest)?);
    for _ in 0..headers {
        let (name, value) = (text(&mut rest)?, text(&mut rest)?);
        message = message.header(name, value);
    }
    rest.is_empty().then_some(Record { put_ms, id, message })
}

/// The bytes of a refusal.
pub(super) fn encode_refusal(refusal: &Refusal) -> Vec<u8> {
    let mut out = vec![FORMAT];
    out.extend(refusal.at_ms.to_le_bytes());
    put(&mut out, refusal.reason.as_bytes());
    put(&mut out, refusal.why.as_bytes());
    out.push(u8::from(refusal.unknown));
    seal(out)
}

/// The refusal of these bytes; `None` when they were not written by [`encode_refusal`] or have changed since.
pub(super) fn decode_refusal(bytes: &[u8]) -> Option<Refusal> {
    let mut rest = opened(bytes)?;
    let at_ms = u64::from_le_bytes(fixed(&mut rest)?);
    let (reason, why) = (text(&mut rest)?, text(&mut rest)?);
    let [unknown] = fixed(&mut rest)?;
    rest.is_empty().then_some(Refusal { at_ms, reason, why, unknown: unknown != 0 })
}

fn seal(mut out: Vec<u8>) -> Vec<u8> {
    let sum = xxh3_64(&out);
    out.extend(sum.to_le_bytes());
    out
}

// What stands between the format's number and the checksum.
fn opened(bytes: &[u8]) -> Option<&[u8]> {
    let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
    if xxh3_64(content) != u64::from_le_bytes(sum.try_into().ok()?) {
        return None;
    }
    let (format, rest) = content.split_first()?;
    (*format == FORMAT).then_some(rest)
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

fn fixed<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_at_checked(N)?;
    *rest = tail;
    head.try_into().ok()
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(fixed(rest)?) as usize;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn text(rest: &mut &[u8]) -> Option<String> {
    String::from_utf8(take(rest)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn messages() -> impl Strategy<Value = Message> {
        let headers = proptest::collection::vec((".{0,8}", ".{0,8}"), 0..4);
        (".{1,12}", proptest::collection::vec(any::<u8>(), 0..64), headers, proptest::option::of("[a-z]{1,5}"))
            .prop_map(|(subject, payload, headers, schema)| {
                let mut message = Message::new(subject, payload);
                for (name, value) in headers {
                    message = message.header(name, value);
                }
                match schema {
                    Some(schema) => message.schema(schema),
                    None => message,
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in messages(), id in ".{1,12}", put_ms in any::<u64>()) {
            let bytes = encode(&message, &id, put_ms);
            let record = decode(&bytes).expect("it was written");
            prop_assert_eq!((record.put_ms, &record.id), (put_ms, &id));
            prop_assert_eq!(record.message, message.id(id));
        }

        #[test]
        fn what_was_altered_or_cut_is_not_read(message in messages(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let bytes = encode(&message, "id", 1);
            let mut altered = bytes.clone();
            altered[at.index(bytes.len())] ^= 1 << bit;
            prop_assert_eq!(decode(&altered), None);
            prop_assert_eq!(decode(&bytes[..at.index(bytes.len())]), None);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            // Sealed, so that what stands inside is looked at.
            let sealed = seal([&[FORMAT][..], &bytes].concat());
            let _ = (decode(&bytes), decode(&sealed), decode_refusal(&bytes), decode_refusal(&sealed));
        }

        #[test]
        fn a_refusal_is_read(at_ms in any::<u64>(), reason in ".{0,9}", why in ".{0,20}", unknown in any::<bool>()) {
            let refusal = Refusal { at_ms, reason, why, unknown };
            prop_assert_eq!(decode_refusal(&encode_refusal(&refusal)), Some(refusal));
        }
    }
}
