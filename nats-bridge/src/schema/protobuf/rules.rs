//! The table of buf's breaking rules: those of its category `WIRE_JSON`, but for those of services, and of `FILE` the two that we take instead
//! of their `WIRE_JSON` counterparts. Each with a change that it lets pass and one that it refuses.

use super::ProtobufSchema;

const YES: &str = "";

// Rule, old, new, and what is refused: nothing, or the path. `p2:` and `p3:` stand for the syntax.
#[rustfmt::skip]
const RULES: &[(&str, &str, &str, &str)] = &[
    ("FIELD_SAME_TYPE", "p3: message A { int32 n = 1; B b = 2; } message B {}", "p3: message A { int32 n = 1; B b = 2; string more = 3; } message B {}", YES),
    ("FIELD_SAME_TYPE", "p3: message A { int32 n = 1; }", "p3: message A { string n = 1; }", "/A/n"),
    ("FIELD_SAME_TYPE", "p3: message A { B b = 1; } message B {} message C {}", "p3: message A { C b = 1; } message B {} message C {}", "/A/b"),
    ("FIELD_SAME_TYPE", "p3: message A { E e = 1; } enum E { X = 0; } enum F { Y = 0; }", "p3: message A { F e = 1; } enum E { X = 0; } enum F { Y = 0; }", "/A/e"),
    ("FIELD_SAME_TYPE", "p3: message A { map<string, int32> m = 1; }", "p3: message A { map<string, bool> m = 1; }", "/A/MEntry/value"),
    ("FIELD_SAME_TYPE", "p2: message A { optional group B = 1 {} }", "p2: message A { optional B b = 1; message B {} }", "/A/b"),
    ("FIELD_SAME_CARDINALITY", "p3: message A { repeated int32 n = 1 [packed = true]; }", "p3: message A { repeated int32 n = 1 [packed = false]; }", YES),
    ("FIELD_SAME_CARDINALITY", "p3: message A { repeated string n = 1; }", "p3: message A { string n = 1; }", "/A/n"),
    ("FIELD_SAME_CARDINALITY", "p3: message A { string n = 1; }", "p3: message A { repeated string n = 1; }", "/A/n"),
    ("FIELD_SAME_CARDINALITY", "p3: message A { map<string, int32> m = 1; }", "p3: message A { repeated MEntry m = 1; message MEntry { string key = 1; int32 value = 2; } }", "/A/m"),
    ("FIELD_SAME_NAME", "p3: message A { int32 n = 1; }", "p3: message A { int32 n = 1 [deprecated = true]; }", YES),
    ("FIELD_SAME_NAME", "p3: message A { int32 n = 1; }", "p3: message A { int32 m = 1; }", "/A/n"),
    ("FIELD_SAME_JSON_NAME", "p3: message A { int32 a_b = 1; }", "p3: message A { int32 a_b = 1 [json_name = \"aB\"]; }", YES),
    ("FIELD_SAME_JSON_NAME", "p3: message A { int32 a_b = 1; }", "p3: message A { int32 a_b = 1 [json_name = \"c\"]; }", "/A/a_b"),
    ("FIELD_SAME_ONEOF", "p3: message A { oneof o { int32 n = 1; } }", "p3: message A { oneof o { int32 n = 1; string s = 2; } }", YES),
    ("FIELD_SAME_ONEOF", "p3: message A { oneof o { int32 n = 1; } }", "p3: message A { optional int32 n = 1; }", "/A/n"),
    ("FIELD_SAME_ONEOF", "p3: message A { optional int32 n = 1; }", "p3: message A { oneof o { int32 n = 1; } }", "/A/n"),
    ("FIELD_SAME_ONEOF", "p3: message A { oneof o { int32 n = 1; } }", "p3: message A { oneof p { int32 n = 1; } }", "/A/n"),
    ("FIELD_SAME_DEFAULT", "p2: message A { optional int32 n = 1; }", "p2: message A { optional int32 n = 1 [default = 0]; }", YES),
    ("FIELD_SAME_DEFAULT", "p2: message A { optional int32 n = 1 [default = 1]; }", "p2: message A { optional int32 n = 1 [default = 2]; }", "/A/n"),
    ("FIELD_SAME_DEFAULT", "p2: message A { optional string s = 1; }", "p2: message A { optional string s = 1 [default = \"a\"]; }", "/A/s"),
    ("FIELD_NO_DELETE_UNLESS_NUMBER_RESERVED", "p3: message A { int32 n = 1; }", "p3: message A { reserved 1; reserved \"n\"; }", YES),
    ("FIELD_NO_DELETE_UNLESS_NUMBER_RESERVED", "p3: message A { int32 n = 1; }", "p3: message A { reserved \"n\"; }", "/A/n"),
    ("FIELD_NO_DELETE_UNLESS_NAME_RESERVED", "p3: message A { int32 n = 3; }", "p3: message A { reserved 2 to 4; reserved \"n\"; }", YES),
    ("FIELD_NO_DELETE_UNLESS_NAME_RESERVED", "p3: message A { int32 n = 1; }", "p3: message A { reserved 1; }", "/A/n"),
    ("ENUM_VALUE_NO_DELETE_UNLESS_NUMBER_RESERVED", "p3: message A {} enum E { X = 0; Y = 1; }", "p3: message A {} enum E { X = 0; reserved 1; reserved \"Y\"; }", YES),
    ("ENUM_VALUE_NO_DELETE_UNLESS_NUMBER_RESERVED", "p3: message A {} enum E { X = 0; Y = 1; }", "p3: message A {} enum E { X = 0; reserved \"Y\"; }", "/E/Y"),
    ("ENUM_VALUE_NO_DELETE_UNLESS_NAME_RESERVED", "p3: message A {} enum E { X = 0; Y = 1; }", "p3: message A {} enum E { X = 0; Z = 2; reserved 1; reserved \"Y\"; }", YES),
    ("ENUM_VALUE_NO_DELETE_UNLESS_NAME_RESERVED", "p3: message A { enum E { X = 0; Y = 1; } }", "p3: message A { enum E { X = 0; reserved 1; } }", "/A/E/Y"),
    ("ENUM_VALUE_SAME_NAME", "p3: message A {} enum E { X = 0; }", "p3: message A {} enum E { option allow_alias = true; X = 0; Y = 0; }", YES),
    ("ENUM_VALUE_SAME_NAME", "p3: message A {} enum E { X = 0; }", "p3: message A {} enum E { Y = 0; }", "/E/X"),
    ("ENUM_SAME_JSON_FORMAT", "p2: message A {} enum E { X = 0; }", "p3: message A {} enum E { X = 0; }", YES),
    ("ENUM_SAME_JSON_FORMAT", "p3: message A {} enum E { X = 0; }", "p2: message A {} enum E { X = 0; }", "/E"),
    ("MESSAGE_SAME_JSON_FORMAT", "p2: message A {}", "p3: message A {}", YES),
    ("MESSAGE_SAME_JSON_FORMAT", "p3: message A {}", "p2: message A {}", "/A"),
    ("MESSAGE_SAME_REQUIRED_FIELDS", "p2: message A { required int32 n = 1; }", "p2: message A { required int32 n = 1; optional int32 m = 2; }", YES),
    ("MESSAGE_SAME_REQUIRED_FIELDS", "p2: message A {}", "p2: message A { required int32 n = 1; }", "/A/n"),
    ("MESSAGE_SAME_REQUIRED_FIELDS", "p2: message A { required int32 n = 1; }", "p2: message A { reserved 1; reserved \"n\"; }", "/A/n"),
    ("RESERVED_MESSAGE_NO_DELETE", "p3: message A { reserved 2 to 4, 6; reserved \"x\"; }", "p3: message A { reserved 1 to 3, 4 to 6; reserved \"y\", \"x\"; }", YES),
    ("RESERVED_MESSAGE_NO_DELETE", "p3: message A { reserved 2 to 6; }", "p3: message A { reserved 2 to 3, 5 to 6; }", "/A"),
    ("RESERVED_MESSAGE_NO_DELETE", "p3: message A { reserved \"x\"; }", "p3: message A { int32 x = 1; }", "/A"),
    ("RESERVED_ENUM_NO_DELETE", "p3: message A {} enum E { X = 0; reserved -3 to -1; }", "p3: message A {} enum E { X = 0; reserved -5 to -1, 7; }", YES),
    ("RESERVED_ENUM_NO_DELETE", "p3: message A {} enum E { X = 0; reserved 2 to max; }", "p3: message A {} enum E { X = 0; reserved 2 to 9; }", "/E"),
    ("RESERVED_ENUM_NO_DELETE", "p3: message A {} enum E { X = 0; reserved \"Y\"; }", "p3: message A {} enum E { X = 0; Y = 1; }", "/E"),
    ("FILE_SAME_PACKAGE", "p3: package a; message A { A a = 1; }", "p3: package a; message A { A a = 1; } message B {}", YES),
    ("FILE_SAME_PACKAGE", "p3: package a; message A {}", "p3: package b; message A {}", "/"),
    // Of the category FILE, for the message that a payload is.
    ("MESSAGE_NO_DELETE", "p3: message A {} message B {}", "p3: message A {}", YES),
    ("MESSAGE_NO_DELETE", "p3: message A { int32 n = 1; }", "p3: message B { int32 n = 1; }", "/A"),
    ("MESSAGE_NO_DELETE", "p3: message A {} message B {}", "p3: message B {} message A {}", "/A"),
];

// What `WIRE_JSON` lets pass and we refuse, and who refuses it.
#[rustfmt::skip]
const STRICTER: &[(&str, &str, &str, &str)] = &[
    ("FIELD_WIRE_JSON_COMPATIBLE_TYPE", "p3: message A { int32 n = 1; }", "p3: message A { uint32 n = 1; }", "FIELD_SAME_TYPE"),
    ("FIELD_WIRE_JSON_COMPATIBLE_TYPE", "p3: message A { fixed64 n = 1; }", "p3: message A { sfixed64 n = 1; }", "FIELD_SAME_TYPE"),
    ("FIELD_WIRE_JSON_COMPATIBLE_TYPE", "p3: message A { B.E e = 1; message B { enum E { X = 0; } } }", "p3: message A { E e = 1; enum E { X = 0; } }", "FIELD_SAME_TYPE"),
    ("FIELD_WIRE_JSON_COMPATIBLE_CARDINALITY", "p3: message A { int32 n = 1; }", "p3: message A { optional int32 n = 1; }", "FIELD_SAME_CARDINALITY"),
];

// What `WIRE_JSON` and `WIRE` refuse of types and cardinalities, we refuse.
#[rustfmt::skip]
const NO_LESS_STRICT: &[(&str, &str)] = &[
    ("p3: message A { int32 n = 1; }", "p3: message A { int64 n = 1; }"),
    ("p3: message A { int32 n = 1; }", "p3: message A { sint32 n = 1; }"),
    ("p3: message A { string n = 1; }", "p3: message A { bytes n = 1; }"),
    ("p3: message A { bytes n = 1; }", "p3: message A { string n = 1; }"),
    ("p3: message A { bool n = 1; }", "p3: message A { int32 n = 1; }"),
    ("p3: message A { E n = 1; } enum E { X = 0; }", "p3: message A { int32 n = 1; }"),
    ("p2: message A { optional int32 n = 1; }", "p2: message A { repeated int32 n = 1; }"),
];

fn read(text: &str) -> ProtobufSchema {
    let text = text.replacen("p2:", "syntax = \"proto2\";", 1).replacen("p3:", "syntax = \"proto3\";", 1);
    ProtobufSchema::read(&text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn broken(old: &str, new: &str) -> Vec<(String, &'static str)> {
    let found = read(new).breaks(&read(old));
    found.into_iter().map(|difference| (difference.path, difference.rule)).collect()
}

#[test]
fn each_rule_of_bufs_lets_one_change_pass_and_refuses_another() {
    let mut wrong = Vec::new();
    for (rule, old, new, refused) in RULES {
        let found = broken(old, new);
        let path = if *refused == "/" { "" } else { refused };
        let as_expected = match *refused {
            YES => found.is_empty(),
            _ => found.iter().any(|(at, by)| at == path && by == rule),
        };
        if !as_expected {
            wrong.push(format!("{rule}: {old} -> {new}: {found:?}"));
        }
        assert_eq!(broken(old, old), [], "{old} breaks nothing of itself");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let rules: std::collections::BTreeSet<&str> = RULES.iter().map(|row| row.0).collect();
    for rule in rules {
        let rows = || RULES.iter().filter(|row| row.0 == rule);
        assert!(rows().any(|row| row.3 == YES) && rows().any(|row| row.3 != YES), "{rule} has one row only");
    }
}

#[test]
fn what_would_be_read_as_something_else_is_refused_where_wire_json_lets_it_pass() {
    for (rule, old, new, by) in STRICTER {
        let found = broken(old, new);
        assert!(found.iter().any(|(_, rule)| rule == by), "{rule}: {old} -> {new}: {found:?}");
    }
    for (old, new) in NO_LESS_STRICT {
        assert_ne!(broken(old, new), [], "{old} -> {new}");
    }
}

#[test]
fn a_difference_says_what_was_and_what_is() {
    let found = read("p3: message A { string n = 1; }").breaks(&read("p3: message A { int32 n = 1; }"));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].detail, "field 1 was int32 and is string");
}

#[test]
fn a_file_that_does_not_compile_is_refused_with_its_line() {
    for (text, why) in [
        ("", "no message"),
        ("syntax = \"proto3\";\nenum E { X = 0; }", "no message"),
        ("syntax = \"proto3\";\nmessage A {\n  B b = 1;\n}", ":3:"),
        ("{\"type\": \"object\"}", ":1:1"),
        ("syntax = \"proto3\"; import \"other.proto\"; message A {}", "other.proto"),
        ("edition = \"2023\"; message A {}", "edition"),
        ("syntax = \"proto3\"; message A { int32 n = 1; int32 m = 1; }", "m"),
    ] {
        let error = ProtobufSchema::read(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    let imported = "p3: import \"google/protobuf/timestamp.proto\"; message A { google.protobuf.Timestamp at = 1; }";
    assert_eq!(broken(imported, imported), []);
}
