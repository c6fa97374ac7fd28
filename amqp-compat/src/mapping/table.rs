//! AMQP field tables as the bytes of the AMQP wire, and as base64 text for headers and stored documents.

use amq_protocol::types::FieldTable;
use amq_protocol::types::generation::gen_field_table;
use amq_protocol::types::parsing::parse_field_table;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The deepest nesting of tables and arrays that is read; AMQP clients use two or three. The parser recurses, so a
/// bound keeps a hostile table from using up the stack.
pub const MAX_DEPTH: usize = 64;

/// A table's bytes as on the AMQP wire. Equal tables have equal bytes: entries are sorted by name.
pub fn to_bytes(table: &FieldTable) -> Vec<u8> {
    let context = gen_field_table(table)(Vec::new().into());
    // Writing to a `Vec` cannot fail, and a table that came over the wire fits its own length field.
    context.map(|context| context.into_inner().0).unwrap_or_default()
}

/// A table from its bytes, or `None` for bytes that are none, or that nest deeper than [`MAX_DEPTH`].
pub fn from_bytes(bytes: &[u8]) -> Option<FieldTable> {
    if !depth_is_bounded(bytes) {
        return None;
    }
    match parse_field_table(bytes) {
        Ok(([], table)) => Some(table),
        _ => None,
    }
}

/// [`to_bytes`] in base64.
pub fn to_base64(table: &FieldTable) -> String {
    STANDARD.encode(to_bytes(table))
}

/// [`from_bytes`] of base64, or `None`.
pub fn from_base64(text: &str) -> Option<FieldTable> {
    from_bytes(&STANDARD.decode(text).ok()?)
}

/// A table as [`to_base64`] in what serde reads and writes.
pub mod as_base64 {
    use amq_protocol::types::FieldTable;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    /// Writes a table.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(table: &FieldTable, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::to_base64(table))
    }

    /// Reads a table.
    ///
    /// # Errors
    /// For a text that is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FieldTable, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::from_base64(&text).ok_or_else(|| de::Error::custom("not a table in base64"))
    }
}

/// Walks the table without recursion and without building it.
fn depth_is_bounded(bytes: &[u8]) -> bool {
    walk(bytes).is_some()
}

fn walk(bytes: &[u8]) -> Option<()> {
    // Each open container: where it ends, and whether its entries have names.
    let mut open: Vec<(usize, bool)> = Vec::new();
    let mut at = 0usize;
    let length = |at: usize| -> Option<usize> {
        let field: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(field)).ok()
    };
    let end = 4usize.checked_add(length(0)?)?;
    open.push((end, true));
    at += 4;
    while let Some(&(end, named)) = open.last() {
        if end > bytes.len() {
            return None;
        }
        if at >= end {
            open.pop();
            continue;
        }
        if named {
            at += 1 + usize::from(*bytes.get(at)?);
        }
        let kind = *bytes.get(at)?;
        at += 1;
        match kind {
            b't' | b'b' | b'B' => at += 1,
            b's' | b'U' | b'u' => at += 2,
            b'I' | b'i' | b'f' => at += 4,
            b'D' => at += 5,
            b'l' | b'L' | b'd' | b'T' => at += 8,
            b'S' | b'x' => at = at.checked_add(4)?.checked_add(length(at)?)?,
            b'F' | b'A' => {
                if open.len() >= MAX_DEPTH {
                    return None;
                }
                let inner = at.checked_add(4)?.checked_add(length(at)?)?;
                at += 4;
                open.push((inner, kind == b'F'));
            }
            b'V' => {}
            _ => return None,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use amq_protocol::types::{AMQPValue, DecimalValue, FieldArray};

    use super::*;

    fn sample() -> FieldTable {
        let mut inner = FieldTable::default();
        inner.insert("n".into(), AMQPValue::Void);
        let mut table = FieldTable::default();
        table.insert("text".into(), AMQPValue::LongString("a\u{0}b".into()));
        table.insert("table".into(), AMQPValue::FieldTable(inner));
        table.insert(
            "list".into(),
            AMQPValue::FieldArray(vec![AMQPValue::Boolean(true), AMQPValue::LongLongInt(-1)].into()),
        );
        table.insert("decimal".into(), AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 }));
        table.insert("time".into(), AMQPValue::Timestamp(1));
        table.insert("bytes".into(), AMQPValue::ByteArray(vec![0, 255].into()));
        table.insert("double".into(), AMQPValue::Double(0.5));
        table.insert("u8".into(), AMQPValue::ShortShortUInt(255));
        table
    }

    #[test]
    fn every_type_comes_back() {
        assert_eq!(from_base64(&to_base64(&sample())), Some(sample()));
        assert_eq!(from_bytes(&to_bytes(&FieldTable::default())), Some(FieldTable::default()));
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let bytes = to_bytes(&sample());
        for cut in 0..bytes.len() {
            assert_eq!(from_bytes(&bytes[..cut]), None, "cut at {cut}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(from_bytes(&longer), None);
        assert_eq!(from_base64("*"), None);
    }

    #[test]
    fn a_hostile_depth_is_refused_without_recursion() {
        let mut value = AMQPValue::Void;
        for _ in 0..MAX_DEPTH + 1 {
            value = AMQPValue::FieldArray(FieldArray::from(vec![value]));
        }
        let mut table = FieldTable::default();
        table.insert("deep".into(), value);
        assert_eq!(from_bytes(&to_bytes(&table)), None);
    }
}
