//! Walks a payload along its message: nothing is built, nothing is believed about lengths. Pure.
//!
//! A payload says which version it has, so whatever that version does not have does not fit: a field, a symbol, bits beyond a number's
//! type. A decoder would keep the first two aside, or drop them, and cut the third off.

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};

use crate::schema::varint;
use crate::schema::violation::Violation;

/// Whether the bytes are one message, and nothing but what it has.
pub(super) fn check(message: &MessageDescriptor, payload: &[u8]) -> Result<(), Violation> {
    let mut walk = Walk { rest: payload, path: Vec::new(), value: None };
    match walk.message(message, None) {
        Ok(()) => Ok(()),
        Err(why) => {
            let path = walk.path.iter().map(|part| format!("/{part}")).collect();
            Err(Violation { path, value: walk.value, why })
        }
    }
}

/// How deep messages may be in each other, as in Protobuf's own libraries.
const DEPTH: usize = 100;

// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const GROUP: u64 = 3;
const GROUP_END: u64 = 4;
const FIXED32: u64 = 5;

struct Walk<'a> {
    rest: &'a [u8],
    /// On an error it stays where it is.
    path: Vec<String>,
    /// What stands there, where that can be told.
    value: Option<String>,
}

/// A field or an extension.
struct Slot {
    name: String,
    kind: Kind,
    repeated: bool,
}

impl Slot {
    fn of(message: &MessageDescriptor, number: u32) -> Option<Slot> {
        if let Some(field) = message.get_field(number) {
            let repeated = field.cardinality() == Cardinality::Repeated;
            return Some(Slot { name: field.name().to_owned(), kind: field.kind(), repeated });
        }
        let extension = message.get_extension(number)?;
        let repeated = extension.cardinality() == Cardinality::Repeated;
        Some(Slot { name: format!("[{}]", extension.full_name()), kind: extension.kind(), repeated })
    }
}

impl Walk<'_> {
    // `group`: the number whose end ends it; else the end of the bytes does.
    fn message(&mut self, message: &MessageDescriptor, group: Option<u32>) -> Result<(), String> {
        if self.path.len() > 2 * DEPTH {
            return Err(format!("messages are more than {DEPTH} deep in each other"));
        }
        let mut counts: HashMap<u32, u64> = HashMap::new();
        let mut seen = HashSet::new();
        loop {
            if self.rest.is_empty() {
                match group {
                    None => break,
                    Some(_) => return Err("it ends in the middle of a group".into()),
                }
            }
            let tag = self.varint()?;
            let (number, wire) = (u32::try_from(tag >> 3).unwrap_or(0), tag & 7);
            if wire == GROUP_END && group == Some(number) {
                break;
            }
            let Some(slot) = Slot::of(message, number) else {
                return Err(format!("{} has no field {number}", message.full_name()));
            };
            seen.insert(number);
            let parts = self.path.len();
            self.path.push(slot.name);
            let index = counts.entry(number).or_default();
            if slot.repeated && wire == LENGTH && wire_type(&slot.kind) != LENGTH {
                self.packed(&slot.kind, index)?;
            } else {
                if slot.repeated {
                    self.path.push(index.to_string());
                    *index += 1;
                }
                self.value(&slot.kind, number, wire)?;
            }
            self.path.truncate(parts);
        }
        let missing = |field: &FieldDescriptor| field.is_required() && !seen.contains(&field.number());
        match message.fields().find(missing) {
            Some(field) => Err(format!("the required field `{}` is missing", field.name())),
            None => Ok(()),
        }
    }

    fn packed(&mut self, kind: &Kind, index: &mut u64) -> Result<(), String> {
        let bytes = self.bytes()?;
        let behind = std::mem::replace(&mut self.rest, bytes);
        while !self.rest.is_empty() {
            self.path.push(index.to_string());
            *index += 1;
            self.scalar(kind)?;
            self.path.pop();
        }
        self.rest = behind;
        Ok(())
    }

    fn value(&mut self, kind: &Kind, number: u32, wire: u64) -> Result<(), String> {
        match (kind, wire) {
            (Kind::Message(message), LENGTH) => {
                let bytes = self.bytes()?;
                let behind = std::mem::replace(&mut self.rest, bytes);
                self.message(message, None)?;
                self.rest = behind;
                Ok(())
            }
            (Kind::Message(message), GROUP) => self.message(message, Some(number)),
            (kind, wire) if wire == wire_type(kind) => self.scalar(kind),
            (kind, wire) => Err(format!("it has wire type {wire}, and {kind:?} has {}", wire_type(kind))),
        }
    }

    fn scalar(&mut self, kind: &Kind) -> Result<(), String> {
        match kind {
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => self.take(8).map(drop),
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => self.take(4).map(drop),
            Kind::Int64 | Kind::Uint64 | Kind::Sint64 => self.varint().map(drop),
            Kind::Int32 => {
                let number = self.varint()? as i64;
                self.demand(i32::try_from(number).is_ok(), number, "the number does not fit an int32")
            }
            Kind::Uint32 | Kind::Sint32 => {
                let number = self.varint()?;
                self.demand(u32::try_from(number).is_ok(), number, "the number does not fit 32 bits")
            }
            Kind::Bool => {
                let number = self.varint()?;
                self.demand(number < 2, number, "a bool is 0 or 1")
            }
            Kind::Enum(symbols) => {
                let number = self.varint()? as i64;
                let known = i32::try_from(number).is_ok_and(|number| symbols.get_value(number).is_some());
                self.demand(known, number, &format!("{} has no such number", symbols.full_name()))
            }
            Kind::String => match std::str::from_utf8(self.bytes()?) {
                Ok(_) => Ok(()),
                Err(_) => Err("a string is not UTF-8".into()),
            },
            Kind::Bytes => self.bytes().map(drop),
            // Its wire type was looked at.
            Kind::Message(_) => Err("a message is not packed".into()),
        }
    }

    fn demand(&mut self, holds: bool, number: impl ToString, why: &str) -> Result<(), String> {
        if holds {
            return Ok(());
        }
        self.value = Some(number.to_string());
        Err(why.to_owned())
    }

    fn varint(&mut self) -> Result<u64, String> {
        varint::varint(&mut self.rest)
    }
}

impl<'a> Walk<'a> {
    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let length = usize::try_from(self.varint()?).map_err(|_| "a length is too large")?;
        self.take(length)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        varint::take(&mut self.rest, count)
    }
}

fn wire_type(kind: &Kind) -> u64 {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => FIXED64,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => FIXED32,
        Kind::String | Kind::Bytes | Kind::Message(_) => LENGTH,
        _ => VARINT,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ProtobufSchema;
    use proptest::prelude::*;
    use prost_reflect::prost::Message;
    use prost_reflect::{DynamicMessage, MapKey, Value};

    const ORDER: &str = r#"
        syntax = "proto3";
        import "google/protobuf/timestamp.proto";
        message Order {
            int64 id = 1;
            State state = 2;
            repeated string notes = 3;
            map<string, sint32> tags = 4;
            repeated int32 amounts = 5;
            Order parent = 6;
            google.protobuf.Timestamp at = 7;
            oneof paid { bool cash = 8; fixed32 card = 9; }
            enum State { NEW = 0; PAID = 1; }
        }"#;

    fn schema(text: &str) -> ProtobufSchema {
        ProtobufSchema::read(text).unwrap()
    }

    fn order(id: i64, notes: Vec<String>, amounts: Vec<i32>, parent: Option<Value>) -> DynamicMessage {
        let mut order = DynamicMessage::new(schema(ORDER).payload);
        let mut set = |name: &str, value: Value| order.set_field_by_name(name, value);
        set("id", Value::I64(id));
        set("state", Value::EnumNumber(1));
        set("notes", Value::List(notes.into_iter().map(Value::String).collect()));
        set("tags", Value::Map([(MapKey::String("a".into()), Value::I32(-7))].into()));
        set("amounts", Value::List(amounts.into_iter().map(Value::I32).collect()));
        set("card", Value::U32(9));
        if let Some(parent) = parent {
            set("parent", parent);
        }
        order
    }

    proptest! {
        #[test]
        fn what_the_crate_writes_fits(
            id in any::<i64>(), notes in proptest::collection::vec(".{0,5}", 0..4),
            amounts in proptest::collection::vec(any::<i32>(), 0..4), nested in any::<bool>()
        ) {
            let parent = nested.then(|| Value::Message(order(1, Vec::new(), vec![3], None)));
            let bytes = order(id, notes, amounts, parent).encode_to_vec();
            prop_assert_eq!(schema(ORDER).check(&bytes), Ok(()));
            // One more byte begins a field that is not there.
            let longer = [&bytes[..], &[0]].concat();
            prop_assert!(schema(ORDER).check(&longer).is_err());
        }

        #[test]
        fn no_bytes_panic_and_what_fits_the_crate_reads(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let schema = schema(ORDER);
            if schema.check(&bytes).is_ok() {
                let read = DynamicMessage::decode(schema.payload.clone(), &bytes[..]);
                prop_assert!(read.is_ok_and(|message| message.unknown_fields().count() == 0));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_told_by_path_and_value() {
        let schema = schema(ORDER);
        for (bytes, path, value, why) in [
            (&[0x10, 7][..], "/state", Some("7"), "no such number"),
            (&[0x1a, 1, b'a', 0x1a, 1, 0xff], "/notes/1", None, "UTF-8"),
            (&[0x2a, 2, 5, 0x80], "/amounts/1", None, "middle of a value"),
            (&[0x2a, 6, 5, 0xff, 0xff, 0xff, 0xff, 0x0f], "/amounts/1", Some("4294967295"), "int32"),
            (&[0x32, 2, 0x10, 9], "/parent/state", Some("9"), "Order.State"),
            (&[0x22, 2, 0x18, 1], "/tags/0", None, "has no field 3"),
            (&[0x40, 2], "/cash", Some("2"), "0 or 1"),
            (&[0x0a, 1, 1], "/id", None, "wire type 2"),
            (&[0x50, 1], "", None, "Order has no field 10"),
            (br#"{"id": 17}"#, "", None, "has no field 15"),
            (&[0x08], "/id", None, "middle of a value"),
            (&[0x0c], "/id", None, "wire type 4"),
        ] {
            let violation = schema.check(bytes).unwrap_err();
            assert!(
                (violation.path.as_str(), violation.value.as_deref()) == (path, value) && violation.why.contains(why),
                "{bytes:x?}: {violation:?}"
            );
        }
        assert_eq!(schema.check(&[]), Ok(()));
        // Not packed, as an older writer has it; and a negative number.
        let minus_one = [0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0x28, 5];
        assert_eq!(schema.check(&minus_one), Ok(()));
        let mut deep = Vec::new();
        for _ in 0..500 {
            let length = prost_reflect::prost::encoding::encoded_len_varint(deep.len() as u64);
            let mut outer = Vec::with_capacity(deep.len() + length + 1);
            outer.push(0x32);
            prost_reflect::prost::encoding::encode_varint(deep.len() as u64, &mut outer);
            outer.extend(deep);
            deep = outer;
        }
        assert!(schema.check(&deep).unwrap_err().why.contains("deep"));
    }

    #[test]
    fn required_fields_groups_and_extensions_are_those_of_proto2() {
        let text = r#"
            syntax = "proto2";
            message Order {
                required int32 id = 1;
                repeated group Item = 2 { optional string name = 3; }
                extensions 100 to 200;
            }
            extend Order { optional bool urgent = 100; }"#;
        let schema = schema(text);
        assert_eq!(schema.check(&[8, 1, 0x13, 0x1a, 1, b'a', 0x14, 0xa0, 6, 1]), Ok(()));
        for (bytes, path, why) in [
            (&[0x13, 0x14][..], "", "required field `id`"),
            (&[8, 1, 0x13, 0x1a, 0], "/item/0", "middle of a group"),
            (&[8, 1, 0xa0, 6, 3], "/[urgent]", "0 or 1"),
            (&[8, 1, 0xa8, 6, 3], "", "no field 101"),
        ] {
            let violation = schema.check(bytes).unwrap_err();
            assert!(violation.path == path && violation.why.contains(why), "{bytes:x?}: {violation:?}");
        }
    }
}
