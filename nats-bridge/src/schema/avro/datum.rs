//! Walks a payload along its schema: nothing is built, nothing is believed about lengths. Pure.

use super::model::{Kind, Model, Type};
use crate::schema::varint;
use crate::schema::violation::Violation;

/// Whether the bytes are one datum of the schema, and nothing behind it.
pub(super) fn check(model: &Model, payload: &[u8]) -> Result<(), Violation> {
    let mut walk = Walk { model, rest: payload, empty: 0 };
    let mut path = Vec::new();
    let walked = walk.datum(&model.root, &mut path).and_then(|()| match walk.rest.len() {
        0 => Ok(()),
        more => Err(format!("{more} bytes are behind it")),
    });
    walked.map_err(|why| Violation { path: path.iter().map(|part| format!("/{part}")).collect(), value: None, why })
}

/// How deep a value may be in others of its own type.
const DEPTH: usize = 200;
/// How many items that take no bytes, such as nulls, a payload may have.
const EMPTY: u64 = 100_000;

struct Walk<'a> {
    model: &'a Model,
    rest: &'a [u8],
    empty: u64,
}

impl Walk<'_> {
    // On an error the path stays where it is.
    fn datum(&mut self, schema: &Type, path: &mut Vec<String>) -> Result<(), String> {
        if path.len() > DEPTH {
            return Err(format!("values are more than {DEPTH} deep in each other"));
        }
        match schema {
            Type::Null => Ok(()),
            Type::Boolean => match self.take(1)? {
                [0 | 1] => Ok(()),
                _ => Err("a boolean is 0 or 1".into()),
            },
            Type::Int => match i32::try_from(self.long()?) {
                Ok(_) => Ok(()),
                Err(_) => Err("the number does not fit an int".into()),
            },
            Type::Long => self.long().map(drop),
            Type::Float => self.take(4).map(drop),
            Type::Double => self.take(8).map(drop),
            Type::Bytes | Type::Decimal(_) => self.bytes().map(drop),
            Type::String => match std::str::from_utf8(self.bytes()?) {
                Ok(_) => Ok(()),
                Err(_) => Err("a string is not UTF-8".into()),
            },
            Type::Array(items) => self.blocks(path, |walk, path| walk.datum(items, path)),
            Type::Map(values) => self.blocks(path, |walk, path| {
                let key = std::str::from_utf8(walk.bytes()?).map_err(|_| "a key is not UTF-8")?.to_owned();
                path.push(key);
                walk.datum(values, path)?;
                path.pop();
                Ok(())
            }),
            Type::Union(branches) => {
                let index = self.long()?;
                let branch = usize::try_from(index).ok().and_then(|index| branches.get(index));
                self.datum(branch.ok_or_else(|| format!("the union has no branch {index}"))?, path)
            }
            Type::Named(name) => self.named(name, path),
        }
    }

    fn named(&mut self, name: &str, path: &mut Vec<String>) -> Result<(), String> {
        let model = self.model;
        match &model.named.get(name).ok_or_else(|| format!("there is no type {name}"))?.kind {
            Kind::Fixed { size, .. } => self.take(*size).map(drop),
            Kind::Enum { symbols, .. } => {
                let index = self.long()?;
                let symbol = usize::try_from(index).ok().and_then(|index| symbols.get(index));
                symbol.map(drop).ok_or_else(|| format!("the enum has no symbol {index}"))
            }
            Kind::Record(fields) => {
                for field in fields {
                    path.push(field.name.clone());
                    self.datum(&field.schema, path)?;
                    path.pop();
                }
                Ok(())
            }
        }
    }

    // Items come in blocks: a count, or its negative with the block's bytes behind it, up to a count of 0.
    fn blocks(
        &mut self,
        path: &mut Vec<String>,
        mut item: impl FnMut(&mut Self, &mut Vec<String>) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut index = 0u64;
        loop {
            let count = self.long()?;
            let end = match count {
                0 => return Ok(()),
                1.. => None,
                _ => {
                    let bytes = usize::try_from(self.long()?).map_err(|_| "a block has less than no bytes")?;
                    Some(self.rest.len().checked_sub(bytes).ok_or("it ends in the middle of a block")?)
                }
            };
            for _ in 0..count.unsigned_abs() {
                let before = self.rest.len();
                path.push(index.to_string());
                item(self, path)?;
                path.pop();
                index += 1;
                if self.rest.len() == before {
                    self.empty += 1;
                    if self.empty > EMPTY {
                        return Err(format!("more than {EMPTY} items take no bytes"));
                    }
                }
            }
            if end.is_some_and(|end| end != self.rest.len()) {
                return Err("a block is not as long as it says".into());
            }
        }
    }

    // A variable-length zig-zag number.
    fn long(&mut self) -> Result<i64, String> {
        let number = varint::varint(&mut self.rest)?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn bytes(&mut self) -> Result<&[u8], String> {
        let length = usize::try_from(self.long()?).map_err(|_| "a length is below 0")?;
        self.take(length)
    }

    fn take(&mut self, count: usize) -> Result<&[u8], String> {
        varint::take(&mut self.rest, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apache_avro::reader::datum::GenericDatumReader;
    use apache_avro::types::Value;
    use apache_avro::writer::datum::GenericDatumWriter;
    use proptest::prelude::*;

    const ORDER: &str = r#"{"type": "record", "name": "Order", "fields": [
        {"name": "id", "type": "long"},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "PAID"]}},
        {"name": "notes", "type": {"type": "array", "items": "string"}},
        {"name": "tags", "type": {"type": "map", "values": "int"}},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 2}},
        {"name": "parent", "type": ["null", "Order"]}
    ]}"#;

    fn order(id: i64, notes: Vec<String>, parent: Option<Value>) -> Value {
        let parent = match parent {
            Some(parent) => Value::Union(1, Box::new(parent)),
            None => Value::Union(0, Box::new(Value::Null)),
        };
        Value::Record(vec![
            ("id".into(), Value::Long(id)),
            ("state".into(), Value::Enum(1, "PAID".into())),
            ("notes".into(), Value::Array(notes.into_iter().map(Value::String).collect())),
            ("tags".into(), Value::Map([("a".to_owned(), Value::Int(-7))].into())),
            ("hash".into(), Value::Fixed(2, vec![1, 2])),
            ("parent".into(), parent),
        ])
    }

    fn model(text: &str) -> Model {
        Model::read(&serde_json::from_str(text).unwrap()).unwrap()
    }

    fn written(value: Value) -> Vec<u8> {
        let schema = apache_avro::Schema::parse_str(ORDER).unwrap();
        GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(value).unwrap()
    }

    proptest! {
        #[test]
        fn what_the_crate_writes_fits_and_nothing_shorter_or_longer_does(
            id in any::<i64>(), notes in proptest::collection::vec(".{0,5}", 0..4), nested in any::<bool>()
        ) {
            let model = model(ORDER);
            let parent = nested.then(|| order(1, Vec::new(), None));
            let bytes = written(order(id, notes, parent));
            prop_assert_eq!(check(&model, &bytes), Ok(()));
            for end in 0..bytes.len() {
                prop_assert!(check(&model, &bytes[..end]).is_err());
            }
            prop_assert!(check(&model, &[&bytes[..], &[0]].concat()).is_err());
        }

        #[test]
        fn no_bytes_panic_and_what_fits_the_crate_reads(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let model = model(ORDER);
            if check(&model, &bytes).is_ok() {
                let schema = apache_avro::Schema::parse_str(ORDER).unwrap();
                let reader = GenericDatumReader::builder(&schema).build().unwrap();
                prop_assert!(reader.read_value(&mut &bytes[..]).is_ok());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_told_by_its_path() {
        let model = model(ORDER);
        let bytes = written(order(1, vec!["a".into(), "b".into()], None));
        // id, state, one block of two notes of two bytes each.
        for (at, byte, path, why) in [
            (1, 4, "/state", "no symbol 2"),
            (6, 0xff, "/notes/1", "UTF-8"),
            (bytes.len() - 1, 4, "/parent", "no branch 2"),
        ] {
            let mut wrong = bytes.clone();
            wrong[at] = byte;
            let violation = check(&model, &wrong).unwrap_err();
            assert!(violation.path == path && violation.why.contains(why), "{violation:?}");
        }
    }

    #[test]
    fn numbers_and_counts_that_lie_are_refused() {
        assert!(check(&model(r#""int""#), &[0xfe, 0xff, 0xff, 0xff, 0x0f]).is_ok());
        assert!(check(&model(r#""int""#), &[0x80, 0x80, 0x80, 0x80, 0x10]).is_err());
        assert!(check(&model(r#""long""#), &[0xff; 11]).is_err());
        assert!(check(&model(r#""bytes""#), &[0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
        let nulls = r#"{"type": "array", "items": "null"}"#;
        let endless = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0];
        assert!(check(&model(nulls), &endless).unwrap_err().why.contains("no bytes"));
        assert!(check(&model(nulls), &[3, 0, 0]).is_ok());
        assert!(check(&model(nulls), &[3, 2, 0]).is_err());
        assert!(check(&model(r#""boolean""#), &[2]).is_err());
    }
}
