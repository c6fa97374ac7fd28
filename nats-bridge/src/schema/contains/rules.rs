//! The rules of Confluent's Schema Registry for JSON Schema (strict), one by one: which change may be made where the new schema has to
//! read what the old one wrote. Left out are those about the metadata of that registry itself (`RESERVED_PROPERTY_*`).

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::differences;

const YES: bool = true;
const NO: bool = false;

/// The rule as Confluent names it, the old schema, the new one, and whether Confluent calls it compatible.
#[rustfmt::skip]
const RULES: &[(&str, &str, &str, bool)] = &[
    ("TYPE_CHANGED", r#"{"type":"string"}"#, r#"{"type":"integer"}"#, NO),
    ("TYPE_EXTENDED", r#"{"type":"integer"}"#, r#"{"type":"number"}"#, YES),
    ("TYPE_EXTENDED", r#"{"type":"integer"}"#, r#"{"type":["integer","null"]}"#, YES),
    ("TYPE_NARROWED", r#"{"type":"number"}"#, r#"{"type":"integer"}"#, NO),
    ("TITLE_CHANGED", r#"{"title":"a","type":"string"}"#, r#"{"title":"b","type":"string"}"#, YES),
    ("DESCRIPTION_CHANGED", r#"{"description":"a"}"#, r#"{"description":"b"}"#, YES),
    ("DEFAULT_CHANGED", r#"{"default":1}"#, r#"{"default":2}"#, YES),
    ("ID_CHANGED", r#"{"$id":"http://a/1","type":"string"}"#, r#"{"$id":"http://a/2","type":"string"}"#, YES),
    ("MAX_LENGTH_ADDED", r#"{"type":"string"}"#, r#"{"type":"string","maxLength":3}"#, NO),
    ("MAX_LENGTH_REMOVED", r#"{"type":"string","maxLength":3}"#, r#"{"type":"string"}"#, YES),
    ("MAX_LENGTH_INCREASED", r#"{"type":"string","maxLength":3}"#, r#"{"type":"string","maxLength":4}"#, YES),
    ("MAX_LENGTH_DECREASED", r#"{"type":"string","maxLength":3}"#, r#"{"type":"string","maxLength":2}"#, NO),
    ("MIN_LENGTH_ADDED", r#"{"type":"string"}"#, r#"{"type":"string","minLength":1}"#, NO),
    ("MIN_LENGTH_REMOVED", r#"{"type":"string","minLength":1}"#, r#"{"type":"string"}"#, YES),
    ("MIN_LENGTH_INCREASED", r#"{"type":"string","minLength":1}"#, r#"{"type":"string","minLength":2}"#, NO),
    ("MIN_LENGTH_DECREASED", r#"{"type":"string","minLength":2}"#, r#"{"type":"string","minLength":1}"#, YES),
    ("PATTERN_ADDED", r#"{"type":"string"}"#, r#"{"type":"string","pattern":"^a"}"#, NO),
    ("PATTERN_REMOVED", r#"{"type":"string","pattern":"^a"}"#, r#"{"type":"string"}"#, YES),
    ("PATTERN_CHANGED", r#"{"type":"string","pattern":"^a"}"#, r#"{"type":"string","pattern":"^b"}"#, NO),
    ("MAXIMUM_ADDED", r#"{"type":"number"}"#, r#"{"type":"number","maximum":9}"#, NO),
    ("MAXIMUM_REMOVED", r#"{"type":"number","maximum":9}"#, r#"{"type":"number"}"#, YES),
    ("MAXIMUM_INCREASED", r#"{"type":"number","maximum":9}"#, r#"{"type":"number","maximum":9.5}"#, YES),
    ("MAXIMUM_DECREASED", r#"{"type":"number","maximum":9}"#, r#"{"type":"number","maximum":8}"#, NO),
    ("MINIMUM_ADDED", r#"{"type":"number"}"#, r#"{"type":"number","minimum":1}"#, NO),
    ("MINIMUM_REMOVED", r#"{"type":"number","minimum":1}"#, r#"{"type":"number"}"#, YES),
    ("MINIMUM_INCREASED", r#"{"type":"number","minimum":1}"#, r#"{"type":"number","minimum":2}"#, NO),
    ("MINIMUM_INCREASED", r#"{"minimum":9007199254740992}"#, r#"{"minimum":9007199254740993}"#, NO),
    ("MINIMUM_DECREASED", r#"{"type":"number","minimum":1}"#, r#"{"type":"number","minimum":0}"#, YES),
    ("EXCLUSIVE_MAXIMUM_ADDED", r#"{"type":"number"}"#, r#"{"type":"number","exclusiveMaximum":9}"#, NO),
    ("EXCLUSIVE_MAXIMUM_REMOVED", r#"{"type":"number","exclusiveMaximum":9}"#, r#"{"type":"number"}"#, YES),
    ("EXCLUSIVE_MAXIMUM_INCREASED", r#"{"exclusiveMaximum":9}"#, r#"{"exclusiveMaximum":10}"#, YES),
    ("EXCLUSIVE_MAXIMUM_DECREASED", r#"{"exclusiveMaximum":9}"#, r#"{"exclusiveMaximum":8}"#, NO),
    ("EXCLUSIVE_MINIMUM_ADDED", r#"{"type":"number"}"#, r#"{"type":"number","exclusiveMinimum":1}"#, NO),
    ("EXCLUSIVE_MINIMUM_REMOVED", r#"{"exclusiveMinimum":1}"#, r#"{}"#, YES),
    ("EXCLUSIVE_MINIMUM_INCREASED", r#"{"exclusiveMinimum":1}"#, r#"{"exclusiveMinimum":2}"#, NO),
    ("EXCLUSIVE_MINIMUM_DECREASED", r#"{"exclusiveMinimum":2}"#, r#"{"exclusiveMinimum":1}"#, YES),
    ("MULTIPLE_OF_ADDED", r#"{"type":"number"}"#, r#"{"type":"number","multipleOf":2}"#, NO),
    ("MULTIPLE_OF_REMOVED", r#"{"type":"number","multipleOf":2}"#, r#"{"type":"number"}"#, YES),
    ("MULTIPLE_OF_EXPANDED", r#"{"multipleOf":2}"#, r#"{"multipleOf":4}"#, NO),
    ("MULTIPLE_OF_REDUCED", r#"{"multipleOf":4}"#, r#"{"multipleOf":2}"#, YES),
    ("MULTIPLE_OF_CHANGED", r#"{"multipleOf":4}"#, r#"{"multipleOf":3}"#, NO),
    ("REQUIRED_ATTRIBUTE_ADDED", r#"{"type":"object","properties":{"a":{}}}"#, r#"{"type":"object","properties":{"a":{}},"required":["a"]}"#, NO),
    ("REQUIRED_ATTRIBUTE_WITH_DEFAULT_ADDED", r#"{"type":"object","properties":{"a":{"default":1}}}"#, r#"{"type":"object","properties":{"a":{"default":1}},"required":["a"]}"#, YES),
    ("REQUIRED_ATTRIBUTE_REMOVED", r#"{"properties":{"a":{}},"required":["a"]}"#, r#"{"properties":{"a":{}}}"#, YES),
    ("MAX_PROPERTIES_ADDED", r#"{"type":"object"}"#, r#"{"type":"object","maxProperties":2}"#, NO),
    ("MAX_PROPERTIES_REMOVED", r#"{"maxProperties":2}"#, r#"{}"#, YES),
    ("MAX_PROPERTIES_INCREASED", r#"{"maxProperties":2}"#, r#"{"maxProperties":3}"#, YES),
    ("MAX_PROPERTIES_DECREASED", r#"{"maxProperties":2}"#, r#"{"maxProperties":1}"#, NO),
    ("MIN_PROPERTIES_ADDED", r#"{"type":"object"}"#, r#"{"type":"object","minProperties":1}"#, NO),
    ("MIN_PROPERTIES_REMOVED", r#"{"minProperties":1}"#, r#"{}"#, YES),
    ("MIN_PROPERTIES_INCREASED", r#"{"minProperties":1}"#, r#"{"minProperties":2}"#, NO),
    ("MIN_PROPERTIES_DECREASED", r#"{"minProperties":2}"#, r#"{"minProperties":1}"#, YES),
    ("ADDITIONAL_PROPERTIES_ADDED", r#"{"additionalProperties":false}"#, r#"{}"#, YES),
    ("ADDITIONAL_PROPERTIES_REMOVED", r#"{"type":"object"}"#, r#"{"type":"object","additionalProperties":false}"#, NO),
    ("ADDITIONAL_PROPERTIES_EXTENDED", r#"{"additionalProperties":{"type":"string"}}"#, r#"{"additionalProperties":{"type":["string","null"]}}"#, YES),
    ("ADDITIONAL_PROPERTIES_NARROWED", r#"{"type":"object"}"#, r#"{"type":"object","additionalProperties":{"type":"string"}}"#, NO),
    ("DEPENDENCY_ARRAY_ADDED", r#"{"type":"object"}"#, r#"{"type":"object","dependencies":{"a":["b"]}}"#, NO),
    ("DEPENDENCY_ARRAY_REMOVED", r#"{"dependencies":{"a":["b"]}}"#, r#"{}"#, YES),
    ("DEPENDENCY_ARRAY_EXTENDED", r#"{"dependentRequired":{"a":["b"]}}"#, r#"{"dependentRequired":{"a":["b","c"]}}"#, NO),
    ("DEPENDENCY_ARRAY_NARROWED", r#"{"dependencies":{"a":["b","c"]}}"#, r#"{"dependencies":{"a":["b"]}}"#, YES),
    ("DEPENDENCY_ARRAY_CHANGED", r#"{"dependencies":{"a":["b"]}}"#, r#"{"dependencies":{"a":["c"]}}"#, NO),
    ("DEPENDENCY_SCHEMA_ADDED", r#"{"type":"object"}"#, r#"{"type":"object","dependentSchemas":{"a":{"minProperties":2}}}"#, NO),
    ("DEPENDENCY_SCHEMA_REMOVED", r#"{"dependencies":{"a":{"minProperties":2}}}"#, r#"{}"#, YES),
    ("PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL", r#"{"type":"object"}"#, r#"{"type":"object","properties":{"a":{"type":"string"}}}"#, NO),
    ("PROPERTY_WITH_EMPTY_SCHEMA_ADDED_TO_OPEN_CONTENT_MODEL", r#"{"type":"object"}"#, r#"{"type":"object","properties":{"a":{}}}"#, YES),
    ("REQUIRED_PROPERTY_ADDED_TO_UNOPEN_CONTENT_MODEL", r#"{"type":"object","additionalProperties":false}"#, r#"{"type":"object","properties":{"a":{}},"required":["a"],"additionalProperties":false}"#, NO),
    ("REQUIRED_PROPERTY_WITH_DEFAULT_ADDED_TO_UNOPEN_CONTENT_MODEL", r#"{"type":"object","additionalProperties":false}"#, r#"{"type":"object","properties":{"a":{"default":1}},"required":["a"],"additionalProperties":false}"#, YES),
    ("OPTIONAL_PROPERTY_ADDED_TO_UNOPEN_CONTENT_MODEL", r#"{"additionalProperties":false}"#, r#"{"properties":{"a":{"type":"string"}},"additionalProperties":false}"#, YES),
    ("PROPERTY_REMOVED_FROM_OPEN_CONTENT_MODEL", r#"{"properties":{"a":{"type":"string"}}}"#, r#"{}"#, YES),
    ("PROPERTY_WITH_FALSE_REMOVED_FROM_CLOSED_CONTENT_MODEL", r#"{"properties":{"a":false},"additionalProperties":false}"#, r#"{"additionalProperties":false}"#, YES),
    ("PROPERTY_REMOVED_FROM_CLOSED_CONTENT_MODEL", r#"{"type":"object","properties":{"a":{}},"additionalProperties":false}"#, r#"{"type":"object","additionalProperties":false}"#, NO),
    ("PROPERTY_ADDED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL", r#"{"additionalProperties":{"type":"string"}}"#, r#"{"properties":{"a":{"type":"string"}},"additionalProperties":{"type":"string"}}"#, YES),
    ("PROPERTY_ADDED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL", r#"{"type":"object","additionalProperties":{"type":"string"}}"#, r#"{"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":{"type":"string"}}"#, NO),
    ("PROPERTY_REMOVED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL", r#"{"properties":{"a":{"type":"string"}},"additionalProperties":false}"#, r#"{"additionalProperties":{"type":"string"}}"#, YES),
    ("PROPERTY_REMOVED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL", r#"{"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":false}"#, r#"{"type":"object","additionalProperties":{"type":"string"}}"#, NO),
    ("MAX_ITEMS_ADDED", r#"{"type":"array"}"#, r#"{"type":"array","maxItems":2}"#, NO),
    ("MAX_ITEMS_REMOVED", r#"{"maxItems":2}"#, r#"{}"#, YES),
    ("MAX_ITEMS_INCREASED", r#"{"maxItems":2}"#, r#"{"maxItems":3}"#, YES),
    ("MAX_ITEMS_DECREASED", r#"{"maxItems":2}"#, r#"{"maxItems":1}"#, NO),
    ("MIN_ITEMS_ADDED", r#"{"type":"array"}"#, r#"{"type":"array","minItems":1}"#, NO),
    ("MIN_ITEMS_REMOVED", r#"{"minItems":1}"#, r#"{}"#, YES),
    ("MIN_ITEMS_INCREASED", r#"{"minItems":1}"#, r#"{"minItems":2}"#, NO),
    ("MIN_ITEMS_DECREASED", r#"{"minItems":2}"#, r#"{"minItems":1}"#, YES),
    ("UNIQUE_ITEMS_ADDED", r#"{"type":"array"}"#, r#"{"type":"array","uniqueItems":true}"#, NO),
    ("UNIQUE_ITEMS_REMOVED", r#"{"uniqueItems":true}"#, r#"{}"#, YES),
    ("ADDITIONAL_ITEMS_ADDED", r#"{"items":[{}],"additionalItems":false}"#, r#"{"items":[{}]}"#, YES),
    ("ADDITIONAL_ITEMS_REMOVED", r#"{"type":"array","items":[{}]}"#, r#"{"type":"array","items":[{}],"additionalItems":false}"#, NO),
    ("ADDITIONAL_ITEMS_EXTENDED", r#"{"items":[{}],"additionalItems":{"type":"string"}}"#, r#"{"items":[{}],"additionalItems":{}}"#, YES),
    ("ADDITIONAL_ITEMS_NARROWED", r#"{"type":"array","prefixItems":[{}]}"#, r#"{"type":"array","prefixItems":[{}],"items":{"type":"string"}}"#, NO),
    ("ITEM_ADDED_TO_OPEN_CONTENT_MODEL", r#"{"type":"array","items":[{}]}"#, r#"{"type":"array","items":[{},{"type":"string"}]}"#, NO),
    ("ITEM_WITH_EMPTY_SCHEMA_ADDED_TO_OPEN_CONTENT_MODEL", r#"{"items":[{}]}"#, r#"{"items":[{},{}]}"#, YES),
    ("ITEM_ADDED_TO_CLOSED_CONTENT_MODEL", r#"{"items":[{}],"additionalItems":false}"#, r#"{"items":[{},{"type":"string"}],"additionalItems":false}"#, YES),
    ("ITEM_REMOVED_FROM_OPEN_CONTENT_MODEL", r#"{"items":[{},{"type":"string"}]}"#, r#"{"items":[{}]}"#, YES),
    ("ITEM_WITH_FALSE_REMOVED_FROM_CLOSED_CONTENT_MODEL", r#"{"items":[{},false],"additionalItems":false}"#, r#"{"items":[{}],"additionalItems":false}"#, YES),
    ("ITEM_REMOVED_FROM_CLOSED_CONTENT_MODEL", r#"{"type":"array","items":[{},{}],"additionalItems":false}"#, r#"{"type":"array","items":[{}],"additionalItems":false}"#, NO),
    ("ITEM_ADDED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL", r#"{"items":[{}],"additionalItems":{"type":"string"}}"#, r#"{"items":[{},{"type":"string"}],"additionalItems":{"type":"string"}}"#, YES),
    ("ITEM_ADDED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL", r#"{"items":[{}],"additionalItems":{"type":"string"}}"#, r#"{"items":[{},{"type":"integer"}],"additionalItems":{"type":"string"}}"#, NO),
    ("ITEM_REMOVED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL", r#"{"items":[{},{"type":"string"}],"additionalItems":false}"#, r#"{"items":[{}],"additionalItems":{"type":"string"}}"#, YES),
    ("ITEM_REMOVED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL", r#"{"items":[{},{"type":"integer"}],"additionalItems":false}"#, r#"{"items":[{}],"additionalItems":{"type":"string"}}"#, NO),
    ("ENUM_ARRAY_EXTENDED", r#"{"enum":["a"]}"#, r#"{"enum":["a","b"]}"#, YES),
    ("ENUM_ARRAY_NARROWED", r#"{"enum":["a","b"]}"#, r#"{"enum":["a"]}"#, NO),
    ("ENUM_ARRAY_CHANGED", r#"{"enum":["a","b"]}"#, r#"{"enum":["a","c"]}"#, NO),
    ("ENUM_ARRAY_CHANGED", r#"{"const":1}"#, r#"{"const":2}"#, NO),
    ("COMBINED_TYPE_EXTENDED", r#"{"allOf":[{"type":"string"},{"maxLength":3}]}"#, r#"{"anyOf":[{"type":"string"},{"maxLength":3}]}"#, YES),
    ("COMBINED_TYPE_CHANGED", r#"{"anyOf":[{"type":"string"},{"maxLength":3}]}"#, r#"{"allOf":[{"type":"string"},{"maxLength":3}]}"#, NO),
    ("PRODUCT_TYPE_EXTENDED", r#"{"allOf":[{"type":"string"}]}"#, r#"{"allOf":[{"type":"string"},{"maxLength":3}]}"#, NO),
    ("PRODUCT_TYPE_NARROWED", r#"{"allOf":[{"type":"string"},{"maxLength":3}]}"#, r#"{"allOf":[{"type":"string"}]}"#, YES),
    ("SUM_TYPE_EXTENDED", r#"{"oneOf":[{"type":"string"}]}"#, r#"{"oneOf":[{"type":"string"},{"type":"integer"}]}"#, YES),
    ("SUM_TYPE_EXTENDED", r#"{"type":"string"}"#, r#"{"anyOf":[{"type":"string"},{"type":"null"}]}"#, YES),
    ("SUM_TYPE_NARROWED", r#"{"oneOf":[{"type":"string"},{"type":"integer"}]}"#, r#"{"oneOf":[{"type":"string"}]}"#, NO),
    ("COMBINED_TYPE_SUBSCHEMAS_CHANGED", r#"{"oneOf":[{"type":"string"},{"type":"integer"}]}"#, r#"{"oneOf":[{"type":"boolean"},{"type":"null"}]}"#, NO),
    ("NOT_TYPE_EXTENDED", r#"{"not":{"type":"integer"}}"#, r#"{"not":{"type":"number"}}"#, NO),
    ("NOT_TYPE_NARROWED", r#"{"not":{"type":"number"}}"#, r#"{"not":{"type":"integer"}}"#, YES),
    ("SCHEMA_ADDED", r#"{"type":"array"}"#, r#"{"type":"array","items":{"type":"string"}}"#, NO),
    ("SCHEMA_REMOVED", r#"{"type":"array","items":{"type":"string"}}"#, r#"{"type":"array"}"#, YES),
    ("OPTIONAL_PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL", r#"{"type":"object"}"#, r#"{"type":"object","properties":{"a":{"type":"string"}}}"#, NO),
    ("REQUIRED_PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL", r#"{"type":"object"}"#, r#"{"type":"object","properties":{"a":{}},"required":["a"]}"#, NO),
    ("REQUIRED_PROPERTY_WITH_DEFAULT_ADDED_TO_OPEN_CONTENT_MODEL", r#"{"type":"object"}"#, r#"{"type":"object","properties":{"a":{"type":"integer","default":1}},"required":["a"]}"#, NO),
    ("MAX_CONTAINS_ADDED", r#"{"type":"array","contains":{"const":1}}"#, r#"{"type":"array","contains":{"const":1},"maxContains":3}"#, NO),
    ("MAX_CONTAINS_REMOVED", r#"{"type":"array","contains":{"const":1},"maxContains":3}"#, r#"{"type":"array","contains":{"const":1}}"#, YES),
    ("MAX_CONTAINS_INCREASED", r#"{"type":"array","contains":{"const":1},"maxContains":3}"#, r#"{"type":"array","contains":{"const":1},"maxContains":4}"#, YES),
    ("MAX_CONTAINS_DECREASED", r#"{"type":"array","contains":{"const":1},"maxContains":3}"#, r#"{"type":"array","contains":{"const":1},"maxContains":2}"#, NO),
    ("MIN_CONTAINS_ADDED", r#"{"type":"array","contains":{"const":1}}"#, r#"{"type":"array","contains":{"const":1},"minContains":2}"#, NO),
    ("MIN_CONTAINS_REMOVED", r#"{"type":"array","contains":{"const":1},"minContains":2}"#, r#"{"type":"array","contains":{"const":1}}"#, YES),
    ("MIN_CONTAINS_INCREASED", r#"{"type":"array","contains":{"const":1},"minContains":2}"#, r#"{"type":"array","contains":{"const":1},"minContains":3}"#, NO),
    ("MIN_CONTAINS_DECREASED", r#"{"type":"array","contains":{"const":1},"minContains":3}"#, r#"{"type":"array","contains":{"const":1},"minContains":2}"#, YES),
    ("UNEVALUATED_PROPERTIES_ADDED", r#"{"type":"object","unevaluatedProperties":false}"#, r#"{"type":"object"}"#, YES),
    ("UNEVALUATED_PROPERTIES_REMOVED", r#"{"type":"object"}"#, r#"{"type":"object","unevaluatedProperties":false}"#, NO),
    ("UNEVALUATED_PROPERTIES_EXTENDED", r#"{"type":"object","unevaluatedProperties":false}"#, r#"{"type":"object","unevaluatedProperties":{"type":"string"}}"#, YES),
    ("UNEVALUATED_PROPERTIES_NARROWED", r#"{"type":"object","unevaluatedProperties":{"type":"string"}}"#, r#"{"type":"object","unevaluatedProperties":{"type":"string","maxLength":2}}"#, NO),
    ("UNEVALUATED_ITEMS_ADDED", r#"{"type":"array","unevaluatedItems":false}"#, r#"{"type":"array"}"#, YES),
    ("UNEVALUATED_ITEMS_REMOVED", r#"{"type":"array"}"#, r#"{"type":"array","unevaluatedItems":false}"#, NO),
    ("UNEVALUATED_ITEMS_EXTENDED", r#"{"type":"array","unevaluatedItems":false}"#, r#"{"type":"array","unevaluatedItems":{"type":"string"}}"#, YES),
    ("UNEVALUATED_ITEMS_NARROWED", r#"{"type":"array","unevaluatedItems":{"type":"string"}}"#, r#"{"type":"array","unevaluatedItems":{"type":"string","maxLength":2}}"#, NO),
];

/// Where we say no and Confluent says yes: a default would have to be filled in, and nothing is; or the keywords are among those that only pass
/// when they are the same.
const STRICTER: [&str; 8] = [
    "REQUIRED_ATTRIBUTE_WITH_DEFAULT_ADDED",
    "REQUIRED_PROPERTY_WITH_DEFAULT_ADDED_TO_UNOPEN_CONTENT_MODEL",
    "MAX_CONTAINS_REMOVED",
    "MAX_CONTAINS_INCREASED",
    "MIN_CONTAINS_REMOVED",
    "MIN_CONTAINS_DECREASED",
    "UNEVALUATED_PROPERTIES_EXTENDED",
    "UNEVALUATED_ITEMS_EXTENDED",
];

#[test]
fn each_rule_of_confluents_is_ours() {
    let mut wrong = Vec::new();
    for (rule, old, new, compatible) in RULES {
        let (old, new): (Value, Value) = (serde_json::from_str(old).unwrap(), serde_json::from_str(new).unwrap());
        let found = differences(&old, &new);
        if found.is_empty() != (*compatible && !STRICTER.contains(rule)) {
            wrong.push(format!("{rule}: {old} -> {new}: {found:?}"));
        }
        assert!(differences(&old, &old).is_empty(), "{old} reads itself");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_told_has_the_rules_name() {
    for rule in [
        "TYPE_CHANGED",
        "MAXIMUM_ADDED",
        "MAXIMUM_DECREASED",
        "PATTERN_CHANGED",
        "ENUM_ARRAY_NARROWED",
        "ENUM_ARRAY_CHANGED",
        "REQUIRED_ATTRIBUTE_ADDED",
        "PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL",
        "PROPERTY_REMOVED_FROM_CLOSED_CONTENT_MODEL",
        "ADDITIONAL_PROPERTIES_REMOVED",
        "MIN_ITEMS_INCREASED",
        "UNIQUE_ITEMS_ADDED",
        "NOT_TYPE_EXTENDED",
        "PRODUCT_TYPE_EXTENDED",
    ] {
        let (_, old, new, _) = RULES.iter().find(|(name, ..)| *name == rule).unwrap();
        let found = differences(&serde_json::from_str(old).unwrap(), &serde_json::from_str(new).unwrap());
        assert!(found.iter().any(|difference| difference.rule == rule), "{rule}: {found:?}");
    }
}

#[test]
fn references_recursion_and_what_cannot_be_compared() {
    let same =
        |old: &str, new: &str| differences(&serde_json::from_str(old).unwrap(), &serde_json::from_str(new).unwrap());
    let tree = r##"{"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"next":{"$ref":"#/$defs/node"},"n":{"type":"integer"}}}}}"##;
    let wider = tree.replace("\"integer\"", "\"number\"");
    assert!(same(tree, &wider).is_empty());
    let narrowed = same(&wider, tree);
    assert!(narrowed.iter().any(|difference| difference.path == "/n"), "{narrowed:?}");
    let condition = r#"{"type":"object","if":{"required":["a"]},"then":{"required":["b"]}}"#;
    assert!(same(condition, condition).is_empty());
    for new in [
        r#"{"type":"object","if":{"required":["a"]},"then":{"required":["c"]}}"#,
        r#"{"type":"object","unevaluatedProperties":false}"#,
        r#"{"type":"object","propertyNames":{"maxLength":3}}"#,
        r#"{"type":"object","patternProperties":{"^a":{"type":"string"}}}"#,
        r##"{"$ref":"#/$defs/gone"}"##,
    ] {
        let found = same(condition, new);
        assert!(found.iter().any(|difference| difference.rule == "NOT_COMPARABLE"), "{new}: {found:?}");
    }
    // Each level of it says more than the one above.
    let grows = r##"{"type":"object","properties":{"a":{"allOf":[{"$ref":"#"},{"properties":{"a":{"$ref":"#"},"b":{"type":"integer"}}}]}}}"##;
    assert!(!same(&grows.replace("integer", "number"), grows).is_empty());
    let _ = same(grows, &grows.replace("integer", "number"));
    // Whoever takes one of two kinds by a property that tells them apart takes each.
    let kinds = r#"{"oneOf":[
        {"type":"object","required":["kind"],"properties":{"kind":{"const":"a"}}},
        {"type":"object","required":["kind"],"properties":{"kind":{"const":"b"},"n":{"type":"integer"}}}]}"#;
    assert!(same(kinds, kinds).is_empty());
    assert!(same(kinds, &kinds.replace("integer", "number")).is_empty());
    assert!(!same(&kinds.replace("integer", "number"), kinds).is_empty());
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-2i64..5).prop_map(Value::from),
        Just(json!(1.5)),
        "[ab]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[abc]", inner, 0..3).prop_map(|all| all.into_iter().collect()),
        ]
    })
}

fn schemas() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec!["null", "boolean", "integer", "number", "string", "array", "object"]);
    let leaf = prop_oneof![
        Just(json!({})),
        Just(json!(false)),
        name.clone().prop_map(|name| json!({ "type": name })),
        prop::collection::btree_set(name, 1..3).prop_map(|names| json!({ "type": names })),
        (-1i64..3, 0i64..4).prop_map(|(min, more)| json!({ "type": "integer", "minimum": min, "maximum": min + more })),
        (-1i64..3).prop_map(|min| json!({ "exclusiveMinimum": min })),
        (1i64..4).prop_map(|step| json!({ "multipleOf": step })),
        (0i64..3).prop_map(|most| json!({ "type": "string", "maxLength": most })),
        values().prop_map(|value| json!({ "const": value })),
        prop::collection::vec(values(), 1..3).prop_map(|values| json!({ "enum": values })),
    ];
    leaf.prop_recursive(2, 12, 3, |inner| {
        let some = prop::collection::vec(inner.clone(), 1..3);
        let properties = prop::collection::btree_map("[ab]", inner.clone(), 0..3);
        let object =
            (properties, prop::collection::btree_set("[ab]", 0..2), prop::option::of(inner.clone()), any::<bool>());
        prop_oneof![
            object.prop_map(|(properties, required, rest, only)| {
                let mut schema = json!({ "properties": properties, "required": required });
                rest.into_iter().for_each(|rest| schema["additionalProperties"] = rest);
                if only {
                    schema["type"] = json!("object");
                }
                schema
            }),
            inner.clone().prop_map(|pattern| json!({ "type": "object", "patternProperties": { "^a": pattern } })),
            (inner.clone(), 0u64..3)
                .prop_map(|(items, least)| json!({ "type": "array", "items": items, "minItems": least })),
            (some.clone(), inner.clone())
                .prop_map(|(first, rest)| json!({ "type": "array", "prefixItems": first, "items": rest })),
            some.clone().prop_map(|all| json!({ "allOf": all })),
            some.clone().prop_map(|any| json!({ "anyOf": any })),
            some.prop_map(|one| json!({ "oneOf": one })),
            inner.prop_map(|not| json!({ "not": not })),
        ]
    })
}

// What is called compatible is: each value that the writer's schema takes, the reader's takes.
#[test]
fn no_value_shows_that_a_compatible_schema_is_not() {
    let mut runner = TestRunner::deterministic();
    let mut drawn = |strategy: &BoxedStrategy<Value>| strategy.new_tree(&mut runner).unwrap().current();
    let (schemas, values) = (schemas().boxed(), values().boxed());
    let values: Vec<Value> = (0..300).map(|_| drawn(&values)).collect();
    let (mut compatible, mut taken) = (0, 0);
    for _ in 0..6000 {
        let (writer, reader) = (drawn(&schemas), drawn(&schemas));
        if !differences(&writer, &reader).is_empty() {
            continue;
        }
        let (writes, reads) =
            (jsonschema::validator_for(&writer).unwrap(), jsonschema::validator_for(&reader).unwrap());
        for value in values.iter().filter(|value| writes.is_valid(value)) {
            assert!(reads.is_valid(value), "{writer} -> {reader}: {value}");
            taken += 1;
        }
        compatible += 1;
    }
    assert!(compatible > 500 && taken > 5000, "{compatible} pairs, {taken} values: it shows nothing");
}
