//! The table of the rules: the specification's "Schema Resolution", and what Confluent's "Schema Evolution and Compatibility" says of Avro.

use super::AvroSchema;

const RECORD: &str = r#"{"type": "record", "name": "Order", "fields": [FIELDS]}"#;

fn record(fields: &str) -> String {
    RECORD.replace("FIELDS", fields)
}

fn refused(writer: &str, reader: &str) -> Vec<(String, &'static str)> {
    let read = |text: &str| AvroSchema::read(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let found = read(reader).refuses_of(&read(writer));
    found.into_iter().map(|difference| (difference.path, difference.rule)).collect()
}

// Writer, reader, and where the reader refuses by which rule.
type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

fn assert_table(table: &[Row]) {
    for (writer, reader, expected) in table {
        let found = refused(writer, reader);
        let found: Vec<(&str, &str)> = found.iter().map(|(path, rule)| (path.as_str(), *rule)).collect();
        assert_eq!(&found[..], *expected, "writer {writer} reader {reader}");
    }
}

#[test]
fn primitives_are_read_as_the_specification_says_and_not_otherwise() {
    let types = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];
    let promoted = [
        ("int", "long"),
        ("int", "float"),
        ("int", "double"),
        ("long", "float"),
        ("long", "double"),
        ("float", "double"),
        ("string", "bytes"),
        ("bytes", "string"),
    ];
    for writer in types {
        for reader in types {
            let found = refused(&format!("\"{writer}\""), &format!("\"{reader}\""));
            let reads = writer == reader || promoted.contains(&(writer, reader));
            assert_eq!(found.is_empty(), reads, "{writer} as {reader}");
            assert!(found.iter().all(|(_, rule)| *rule == "TYPE_MISMATCH"));
        }
    }
}

#[test]
fn unions_enums_fixed_arrays_and_maps() {
    let a = r#"{"type": "enum", "name": "E", "symbols": ["A"]}"#;
    let ab = r#"{"type": "enum", "name": "E", "symbols": ["A", "B"]}"#;
    let a_default = r#"{"type": "enum", "name": "E", "symbols": ["A"], "default": "A"}"#;
    let other = r#"{"type": "enum", "name": "F", "symbols": ["A"]}"#;
    let renamed = r#"{"type": "enum", "name": "F", "aliases": ["E"], "symbols": ["A"]}"#;
    let moved = r#"{"type": "enum", "name": "E", "namespace": "elsewhere", "symbols": ["A"]}"#;
    let four = r#"{"type": "fixed", "name": "X", "size": 4}"#;
    let eight = r#"{"type": "fixed", "name": "X", "size": 8}"#;
    let money = r#"{"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2}"#;
    let cents = r#"{"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 3}"#;
    let day = r#"{"type": "int", "logicalType": "date"}"#;
    assert_table(&[
        (r#""int""#, r#"["null", "int"]"#, &[]),
        (r#""int""#, r#"["null", "long"]"#, &[]),
        (r#""int""#, r#"["null", "string"]"#, &[("", "MISSING_UNION_BRANCH")]),
        (r#"["null", "int"]"#, r#""int""#, &[("", "TYPE_MISMATCH")]),
        (r#"["int"]"#, r#""long""#, &[]),
        (r#"["int", "long"]"#, r#""int""#, &[("", "TYPE_MISMATCH")]),
        (r#"["null", "int"]"#, r#"["int", "null"]"#, &[]),
        (r#"["null", "int", "string"]"#, r#"["null", "int"]"#, &[("", "MISSING_UNION_BRANCH")]),
        (r#"["null", "int"]"#, r#"["null", "int", "boolean"]"#, &[]),
        (a, ab, &[]),
        (ab, a, &[("", "MISSING_ENUM_SYMBOLS")]),
        (ab, a_default, &[]),
        (a, other, &[("", "NAME_MISMATCH")]),
        (a, renamed, &[]),
        (renamed, a, &[("", "NAME_MISMATCH")]),
        (a, moved, &[]),
        (four, four, &[]),
        (four, eight, &[("", "FIXED_SIZE_MISMATCH")]),
        (four, a, &[("", "TYPE_MISMATCH")]),
        (four, r#""bytes""#, &[("", "TYPE_MISMATCH")]),
        (money, money, &[]),
        (money, cents, &[("", "TYPE_MISMATCH")]),
        (money, r#""bytes""#, &[]),
        (day, r#""int""#, &[]),
        (day, r#""long""#, &[]),
        (r#"{"type": "array", "items": "int"}"#, r#"{"type": "array", "items": "long"}"#, &[]),
        (r#"{"type": "array", "items": "long"}"#, r#"{"type": "array", "items": "int"}"#, &[("/*", "TYPE_MISMATCH")]),
        (r#"{"type": "map", "values": "int"}"#, r#"{"type": "map", "values": "string"}"#, &[("/*", "TYPE_MISMATCH")]),
        (r#"{"type": "map", "values": "int"}"#, r#"{"type": "array", "items": "int"}"#, &[("", "TYPE_MISMATCH")]),
    ]);
}

#[test]
fn records() {
    let id = r#"{"name": "id", "type": "long"}"#;
    let note = r#"{"name": "note", "type": "string"}"#;
    let note_default = r#"{"name": "note", "type": "string", "default": ""}"#;
    let maybe_note = r#"{"name": "note", "type": ["null", "string"], "default": null}"#;
    let remark = r#"{"name": "remark", "type": "string"}"#;
    let remark_alias = r#"{"name": "remark", "type": "string", "aliases": ["note"]}"#;
    let both = |one: &str, other: &str| record(&format!("{one}, {other}"));
    let (one, two) = (record(id), both(id, note));
    let missing: &[(&str, &str)] = &[("/note", "READER_FIELD_MISSING_DEFAULT_VALUE")];
    assert_table(&[
        // Backward: fields go, and come with a default. Forward: the other way round. Full: both have defaults.
        (&two, &one, &[]),
        (&one, &two, missing),
        (&one, &both(id, note_default), &[]),
        (&both(id, note_default), &one, &[]),
        (&one, &both(id, maybe_note), &[]),
        (&two, &both(note, id), &[]),
        (&two, &both(id, maybe_note), &[]),
        (&both(id, maybe_note), &two, &[("/note", "TYPE_MISMATCH")]),
        (&two, &both(id, remark), &[("/remark", "READER_FIELD_MISSING_DEFAULT_VALUE")]),
        (&two, &both(id, remark_alias), &[]),
        (&record(r#"{"name": "id", "type": "int"}"#), &one, &[]),
        (&one, &record(r#"{"name": "id", "type": "int"}"#), &[("/id", "TYPE_MISMATCH")]),
        (&one, &one.replace("Order", "Receipt"), &[("", "NAME_MISMATCH")]),
        (&one, r#""string""#, &[("", "TYPE_MISMATCH")]),
    ]);
}

#[test]
fn what_is_inside_itself_is_compared_to_its_end() {
    let list = |kind: &str, more: &str| {
        let next = r#"{"name": "next", "type": ["null", "Node"]}"#;
        format!(
            r#"{{"type": "record", "name": "Node", "fields": [{{"name": "value", "type": "{kind}"}}, {next}{more}]}}"#
        )
    };
    assert_eq!(refused(&list("int", ""), &list("long", "")), []);
    let narrow = refused(&list("long", ""), &list("int", ""));
    assert!(narrow.contains(&("/value".to_owned(), "TYPE_MISMATCH")), "{narrow:?}");
    let nested = |inner: &str| {
        record(&format!(r#"{{"name": "at", "type": {{"type": "record", "name": "Place", "fields": [{inner}]}}}}"#))
    };
    let wide = nested(r#"{"name": "x", "type": "int"}, {"name": "y", "type": "int"}"#);
    assert_eq!(
        refused(&nested(r#"{"name": "x", "type": "int"}"#), &wide),
        [("/at/y".to_owned(), "READER_FIELD_MISSING_DEFAULT_VALUE")]
    );
}

#[test]
fn a_schema_that_is_not_one_is_refused() {
    for text in
        ["x", "{}", r#""colour""#, r#"{"type": "enum", "name": "E", "symbols": ["A", "A"]}"#, r#"["int", "int"]"#]
    {
        assert!(AvroSchema::read(text).is_err(), "{text}");
    }
}
