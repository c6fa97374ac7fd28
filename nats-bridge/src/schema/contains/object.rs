//! Properties of objects.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Compare, Difference, any, below, difference, lengths, list, refers, unknown};

impl Compare<'_> {
    /// Compares what is demanded of objects.
    pub(super) fn object(
        &mut self,
        writer: &[Value],
        demands: &Map<String, Value>,
        path: &str,
        found: &mut Vec<Difference>,
    ) {
        let rules = [
            ["MIN_PROPERTIES_ADDED", "MIN_PROPERTIES_INCREASED"],
            ["MAX_PROPERTIES_ADDED", "MAX_PROPERTIES_DECREASED"],
        ];
        lengths(writer, demands, ["minProperties", "maxProperties"], rules, path, found);
        dependencies(writer, demands, path, found);
        let writers: Vec<&Map<String, Value>> = writer.iter().filter_map(Value::as_object).collect();
        let known = |name: &str| writers.iter().any(|one| properties(one).is_some_and(|all| all.contains_key(name)));
        for name in list(demands, "required").iter().filter_map(Value::as_str) {
            if !any(writer, |one| list(one, "required").iter().any(|other| other == name)) {
                let rule = if known(name) {
                    "REQUIRED_ATTRIBUTE_ADDED"
                } else {
                    "REQUIRED_PROPERTY_ADDED_TO_UNOPEN_CONTENT_MODEL"
                };
                found.push(difference(&below(path, name), rule, "it may be missing, and is required"));
            }
        }
        let (theirs, patterns) = (properties(demands), object_of(demands, "patternProperties"));
        let names: BTreeSet<&String> =
            writers.iter().filter_map(|one| properties(one)).chain(theirs).flat_map(Map::keys).collect();
        for name in names {
            let place = below(path, name);
            let named = theirs.and_then(|all| all.get(name));
            // Where a pattern may match the name, the pattern's schema is compared below and this one as well.
            let reader = named.unwrap_or_else(|| additional(demands));
            let rule = match (known(name), named.is_some()) {
                (true, true) => None,
                (false, _) if writers.iter().any(|one| one.contains_key("additionalProperties")) => {
                    Some("PROPERTY_ADDED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL")
                }
                (false, _) => Some("PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL"),
                (true, false) if *reader == Value::Bool(false) => Some("PROPERTY_REMOVED_FROM_CLOSED_CONTENT_MODEL"),
                (true, false) => Some("PROPERTY_REMOVED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL"),
            };
            let reader = reader.clone();
            let written = writers.iter().map(|one| match properties(one).and_then(|all| all.get(name)) {
                Some(schema) => schema,
                // A pattern may match it, and then it is not an additional one.
                None if object_of(one, "patternProperties").is_some() => ANY,
                None => additional(one),
            });
            let mut below = Vec::new();
            self.each(written.cloned().collect(), &reader, &place, &mut below);
            match (rule, below.first()) {
                (Some(rule), Some(first)) => found.push(difference(&place, rule, first.detail.clone())),
                _ => found.append(&mut below),
            }
        }
        // Names that match a pattern of the writer's, and all that nobody names.
        let others: Vec<Value> = writers.iter().map(|one| additional(one).clone()).collect();
        let place = format!("{path}/*");
        let reader = additional(demands).clone();
        let mut below = Vec::new();
        for schema in writers.iter().filter_map(|one| object_of(one, "patternProperties")).flat_map(Map::values) {
            self.each(vec![schema.clone()], &reader, &place, &mut below);
        }
        self.each(others, &reader, &place, &mut below);
        if let Some(first) = below.first() {
            let rule = if reader == Value::Bool(false) {
                "ADDITIONAL_PROPERTIES_REMOVED"
            } else {
                "ADDITIONAL_PROPERTIES_NARROWED"
            };
            found.push(difference(&place, rule, first.detail.clone()));
        }
        for (pattern, schema) in patterns.into_iter().flatten() {
            let same = |one: &&Map<String, Value>| {
                object_of(one, "patternProperties").and_then(|all| all.get(pattern)).cloned()
            };
            match writers.iter().filter_map(same).collect::<Vec<_>>() {
                none if none.is_empty() => {
                    if *schema != Value::Bool(true) {
                        found.push(unknown(&place, format!("the pattern {pattern:?} is not the writer's")));
                    }
                }
                written => self.each(written, &schema.clone(), &place, found),
            }
        }
    }

    // What several of the writer's schemas say of one value.
    fn each(&mut self, written: Vec<Value>, reader: &Value, place: &str, found: &mut Vec<Difference>) {
        match self.all_of(&written) {
            Ok(all) => self.schema(&all, reader, place, found),
            Err(why) => found.push(unknown(place, why)),
        }
    }
}

// Names that are required where another one is there.
fn dependencies(writer: &[Value], demands: &Map<String, Value>, path: &str, found: &mut Vec<Difference>) {
    const KEYWORDS: [&str; 3] = ["dependentRequired", "dependentSchemas", "dependencies"];
    let demanded = KEYWORDS.iter().filter_map(|keyword| object_of(demands, keyword)).flatten();
    for (name, needs) in demanded {
        let same = |one: &Map<String, Value>| {
            KEYWORDS.iter().any(|keyword| object_of(one, keyword).and_then(|all| all.get(name)) == Some(needs))
        };
        if any(writer, same) && !refers(needs) {
            continue;
        }
        let Some(needs) = needs.as_array() else {
            found.push(difference(
                &below(path, name),
                "DEPENDENCY_SCHEMA_ADDED",
                "another schema holds where it is there",
            ));
            continue;
        };
        let has = |keyword: &str, need: &Value| {
            any(writer, |one| object_of(one, keyword).is_some_and(|all| list(all, name).contains(need)))
        };
        let required = |need: &Value| any(writer, |one| list(one, "required").contains(need));
        let met = |need: &&Value| required(need) || has("dependentRequired", need) || has("dependencies", need);
        if let Some(need) = needs.iter().find(|need| !met(need)) {
            let known = any(writer, |one| {
                KEYWORDS.iter().any(|keyword| object_of(one, keyword).is_some_and(|all| all.contains_key(name)))
            });
            let rule = if known { "DEPENDENCY_ARRAY_EXTENDED" } else { "DEPENDENCY_ARRAY_ADDED" };
            found.push(difference(&below(path, name), rule, format!("{need} is required where it is there")));
        }
    }
}

const ANY: &Value = &Value::Bool(true);

fn properties(schema: &Map<String, Value>) -> Option<&Map<String, Value>> {
    object_of(schema, "properties")
}

fn object_of<'v>(schema: &'v Map<String, Value>, keyword: &str) -> Option<&'v Map<String, Value>> {
    schema.get(keyword).and_then(Value::as_object)
}

fn additional(schema: &Map<String, Value>) -> &Value {
    schema.get("additionalProperties").unwrap_or(ANY)
}
