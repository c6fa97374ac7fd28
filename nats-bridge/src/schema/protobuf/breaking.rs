//! What breaks whoever has the other version: buf's rules, by buf's names. Pure.
//!
//! The rules are those of buf's category `WIRE_JSON`, with `FIELD_SAME_TYPE` and `FIELD_SAME_CARDINALITY` of its category `FILE` in place of
//! the two that only ask whether what was written can be decoded somehow: an `int32` of -1 is a `uint32` of 4294967295 then. Services
//! are not looked at: no payload has one.

use std::ops::RangeInclusive;

use foldhash::HashMap;
use prost_reflect::{EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor, Syntax};

use super::ProtobufSchema;
use crate::schema::contains::Difference;

/// What the new version has changed that may not be.
pub(super) fn differences(old: &ProtobufSchema, new: &ProtobufSchema) -> Vec<Difference> {
    let mut found = Found(Vec::new());
    let (old_package, new_package) = (old.file.package_name(), new.file.package_name());
    if old_package != new_package {
        found.push("", "FILE_SAME_PACKAGE", format!("the package was `{old_package}` and is `{new_package}`"));
    }
    let (was, is) = (nested(old.payload.full_name(), old_package), nested(new.payload.full_name(), new_package));
    if was != is {
        found.push(
            was,
            "MESSAGE_NO_DELETE",
            format!("a payload was a {was} and is a {is}: the first message says what"),
        );
    }
    let messages: HashMap<String, MessageDescriptor> = messages(&new.file);
    for message in ordered(&old.file) {
        if let Some(new) = messages.get(nested(message.full_name(), old_package)) {
            compare_messages(&message, new, &mut found);
        }
    }
    let enums: HashMap<String, EnumDescriptor> =
        enums(&new.file).map(|one| (nested(one.full_name(), new_package).to_owned(), one)).collect();
    for symbols in self::enums(&old.file) {
        if let Some(new) = enums.get(nested(symbols.full_name(), old_package)) {
            compare_enums(&symbols, new, &mut found);
        }
    }
    found.0
}

struct Found(Vec<Difference>);

impl Found {
    // Names joined by dots become a pointer.
    fn push(&mut self, place: &str, rule: &'static str, detail: String) {
        let path = if place.is_empty() { String::new() } else { format!("/{}", place.replace('.', "/")) };
        self.0.push(Difference { path, rule, detail });
    }
}

fn compare_messages(old: &MessageDescriptor, new: &MessageDescriptor, found: &mut Found) {
    let place = nested(old.full_name(), old.package_name()).to_owned();
    if loses_json(old.parent_file().syntax(), new.parent_file().syntax()) {
        found.push(&place, "MESSAGE_SAME_JSON_FORMAT", LOSES_JSON.to_owned());
    }
    for field in old.fields() {
        let (name, number) = (field.name(), field.number());
        let at = format!("{place}.{name}");
        match new.get_field(number) {
            Some(new) => compare_fields(&field, &new, &at, found),
            None => {
                if !new.reserved_ranges().any(|range| range.contains(&number)) {
                    let rule = "FIELD_NO_DELETE_UNLESS_NUMBER_RESERVED";
                    found.push(&at, rule, format!("field {number} is gone, and its number not reserved"));
                }
                if !new.reserved_names().any(|reserved| reserved == name) {
                    let rule = "FIELD_NO_DELETE_UNLESS_NAME_RESERVED";
                    found.push(&at, rule, format!("field {number} is gone, and its name `{name}` not reserved"));
                }
            }
        }
    }
    required(old, new, &place, found);
    let ranges = |one: &MessageDescriptor| -> Vec<RangeInclusive<i64>> {
        one.reserved_ranges().map(|range| range.start.into()..=i64::from(range.end) - 1).collect()
    };
    let names = |one: &MessageDescriptor| one.reserved_names().map(str::to_owned).collect();
    let rule = "RESERVED_MESSAGE_NO_DELETE";
    reserved(&place, rule, (ranges(old), names(old)), (ranges(new), names(new)), found);
}

// A message without a required field is refused by whoever demands it, whichever version that is.
fn required(old: &MessageDescriptor, new: &MessageDescriptor, place: &str, found: &mut Found) {
    let demanded =
        |one: &MessageDescriptor, number: u32| one.get_field(number).is_some_and(|field| field.is_required());
    for (one, other, what) in [(old, new, "was required, and is not"), (new, old, "is required, and was not")] {
        for field in one.fields().filter(|field| field.is_required() && !demanded(other, field.number())) {
            let at = format!("{place}.{}", field.name());
            found.push(&at, "MESSAGE_SAME_REQUIRED_FIELDS", format!("field {} {what}", field.number()));
        }
    }
}

fn compare_fields(old: &FieldDescriptor, new: &FieldDescriptor, at: &str, found: &mut Found) {
    let number = old.number();
    let mut changed = |rule: &'static str, was: &str, is: &str| {
        if was != is {
            found.push(at, rule, format!("field {number} was {was} and is {is}"));
        }
    };
    let same_type = type_name(old) == type_name(new);
    changed("FIELD_SAME_TYPE", &type_name(old), &type_name(new));
    if !old.parent_message().is_map_entry() {
        changed("FIELD_SAME_CARDINALITY", cardinality(old), cardinality(new));
    }
    changed("FIELD_SAME_NAME", &quoted(old.name()), &quoted(new.name()));
    changed("FIELD_SAME_JSON_NAME", &quoted(old.json_name()), &quoted(new.json_name()));
    changed("FIELD_SAME_ONEOF", &oneof(old), &oneof(new));
    if same_type && !old.is_list() && !matches!(old.kind(), Kind::Message(_)) {
        let default = |field: &FieldDescriptor| format!("{:?} by default", field.default_value());
        changed("FIELD_SAME_DEFAULT", &default(old), &default(new));
    }
}

fn compare_enums(old: &EnumDescriptor, new: &EnumDescriptor, found: &mut Found) {
    let place = nested(old.full_name(), old.package_name()).to_owned();
    if loses_json(old.parent_file().syntax(), new.parent_file().syntax()) {
        found.push(&place, "ENUM_SAME_JSON_FORMAT", LOSES_JSON.to_owned());
    }
    for value in old.values() {
        let (name, number) = (value.name(), value.number());
        let at = format!("{place}.{name}");
        let names: Vec<String> =
            new.values().filter(|one| one.number() == number).map(|one| one.name().to_owned()).collect();
        if !names.is_empty() {
            if !names.iter().any(|one| one == name) {
                let detail = format!("{number} was `{name}` and is `{}`", names.join("`, `"));
                found.push(&at, "ENUM_VALUE_SAME_NAME", detail);
            }
            continue;
        }
        if !new.reserved_ranges().any(|range| range.contains(&number)) {
            let rule = "ENUM_VALUE_NO_DELETE_UNLESS_NUMBER_RESERVED";
            found.push(&at, rule, format!("{number} is gone, and its number not reserved"));
        }
        if !new.reserved_names().any(|reserved| reserved == name) {
            let rule = "ENUM_VALUE_NO_DELETE_UNLESS_NAME_RESERVED";
            found.push(&at, rule, format!("{number} is gone, and its name `{name}` not reserved"));
        }
    }
    let ranges = |one: &EnumDescriptor| -> Vec<RangeInclusive<i64>> {
        one.reserved_ranges().map(|range| i64::from(*range.start())..=i64::from(*range.end())).collect()
    };
    let names = |one: &EnumDescriptor| one.reserved_names().map(str::to_owned).collect();
    let rule = "RESERVED_ENUM_NO_DELETE";
    reserved(&place, rule, (ranges(old), names(old)), (ranges(new), names(new)), found);
}

type Reserved = (Vec<RangeInclusive<i64>>, Vec<String>);

// What was reserved stays it: else it could come back as something else.
fn reserved(place: &str, rule: &'static str, old: Reserved, new: Reserved, found: &mut Found) {
    for range in old.0 {
        // The first number that no range has; each step goes behind one of them.
        let mut next = *range.start();
        while let Some(over) = new.0.iter().find(|one| next <= *range.end() && one.contains(&next)) {
            next = *over.end() + 1;
        }
        if next <= *range.end() {
            found.push(place, rule, format!("{next} is not reserved any more"));
        }
    }
    for name in old.1.iter().filter(|name| !new.1.contains(name)) {
        found.push(place, rule, format!("`{name}` is not reserved any more"));
    }
}

const LOSES_JSON: &str = "in proto3 it had a JSON format that is sure to work, and in proto2 it has none";

fn loses_json(old: Syntax, new: Syntax) -> bool {
    old == Syntax::Proto3 && new == Syntax::Proto2
}

fn type_name(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(message) if field.is_group() => format!("group {}", message.full_name()),
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(symbols) => symbols.full_name().to_owned(),
        plain => format!("{plain:?}"),
    }
}

fn cardinality(field: &FieldDescriptor) -> &'static str {
    match field {
        field if field.is_map() => "a map",
        field if field.is_list() => "repeated",
        field if field.is_required() => "required",
        field if field.supports_presence() => "optional",
        _ => "without presence",
    }
}

fn oneof(field: &FieldDescriptor) -> String {
    match field.containing_oneof().filter(|oneof| !oneof.is_synthetic()) {
        Some(oneof) => format!("in the oneof `{}`", oneof.name()),
        None => "in no oneof".to_owned(),
    }
}

fn quoted(name: &str) -> String {
    format!("`{name}`")
}

// A name without its package.
fn nested<'a>(name: &'a str, package: &str) -> &'a str {
    name.strip_prefix(package).map_or(name, |rest| rest.strip_prefix('.').unwrap_or(rest))
}

fn messages(file: &FileDescriptor) -> HashMap<String, MessageDescriptor> {
    ordered(file).into_iter().map(|one| (nested(one.full_name(), file.package_name()).to_owned(), one)).collect()
}

// Each message before those inside it.
fn ordered(file: &FileDescriptor) -> Vec<MessageDescriptor> {
    let mut all: Vec<MessageDescriptor> = file.messages().collect();
    let mut index = 0;
    while let Some(message) = all.get(index).cloned() {
        all.splice(index + 1..index + 1, message.child_messages());
        index += 1;
    }
    all
}

fn enums(file: &FileDescriptor) -> impl Iterator<Item = EnumDescriptor> {
    let inner: Vec<EnumDescriptor> =
        ordered(file).iter().flat_map(|one| one.child_enums().collect::<Vec<_>>()).collect();
    file.enums().collect::<Vec<_>>().into_iter().chain(inner)
}
