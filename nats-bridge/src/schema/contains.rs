//! Whether one JSON Schema accepts every value that another one accepts. Pure.
//!
//! The writer's schema is a list of schemas that all hold; each demand of the reader's must follow from it. What cannot be shown
//! counts as different: `if`, `contains` and their like only pass when the writer demands the very same.

mod array;
mod number;
mod object;
#[cfg(test)]
mod rules;

use std::collections::BTreeSet;

use foldhash::{HashSet, HashSetExt};
use serde::Serialize;
use serde_json::{Map, Value};

/// A demand of the reader's schema that does not follow from the writer's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Where in the value: a JSON Pointer in which `*` means any name or index that is not named.
    pub path: String,
    /// Which rule, in the words of Confluent's Schema Registry, such as `MAXIMUM_DECREASED`; `NOT_COMPARABLE` when it cannot be shown
    /// that all is accepted.
    pub rule: &'static str,
    /// What the reader demands, or a value that it refuses.
    pub detail: String,
}

/// The reader's demands that do not follow from the writer's schema.
pub(super) fn differences(writer: &Value, reader: &Value) -> Vec<Difference> {
    let mut compare = Compare { writer, reader, assumed: HashSet::new(), steps: 0, depth: 0 };
    let mut found = Vec::new();
    match compare.conjuncts(writer) {
        Ok(conjuncts) => compare.schema(&conjuncts, reader, "", &mut found),
        Err(why) => found.push(unknown("", why)),
    }
    found
}

struct Compare<'a> {
    writer: &'a Value,
    reader: &'a Value,
    /// Pairs that are being compared further up: a recursive schema comes back to them.
    assumed: HashSet<String>,
    steps: u32,
    depth: u32,
}

/// Comparisons after which it is given up, and how many of them may be in each other.
const STEPS: u32 = 20_000;
const DEPTH: u32 = 60;
/// How many of the writer's schemas may hold at once.
const CONJUNCTS: usize = 32;

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

/// Keywords that only pass when the writer demands the same.
const OPAQUE: [&[&str]; 4] =
    [&["if", "then", "else"], &["contains", "minContains", "maxContains"], &["propertyNames"], &["format"]];

/// Keywords whose meaning is all over the schema: only an equal schema passes.
const FAR: [&str; 5] = ["unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef", "extends"];

impl Compare<'_> {
    fn schema(&mut self, writer: &[Value], reader: &Value, path: &str, found: &mut Vec<Difference>) {
        self.steps += 1;
        if self.steps > STEPS || self.depth > DEPTH {
            found.push(unknown(path, "the schemas are too large to compare"));
            return;
        }
        let equal = |one: &Value| one == reader && !refers(reader);
        if writer.iter().any(|one| *one == Value::Bool(false) || equal(one)) {
            return;
        }
        let demands = match reader {
            Value::Object(demands) => demands,
            Value::Bool(true) => return,
            _ => {
                found.push(difference(path, "SCHEMA_REMOVED", "nothing is accepted any more"));
                return;
            }
        };
        // With the keywords in one order, equal pairs have equal texts.
        let pair = format!("{writer:?} {reader}");
        if !self.assumed.insert(pair.clone()) {
            return;
        }
        self.depth += 1;
        self.object_schema(writer, reader, demands, path, found);
        self.depth -= 1;
        self.assumed.remove(&pair);
    }

    fn object_schema(
        &mut self,
        writer: &[Value],
        reader: &Value,
        demands: &Map<String, Value>,
        path: &str,
        found: &mut Vec<Difference>,
    ) {
        if let Some(reference) = demands.get("$ref") {
            match resolved(self.reader, demands, reference) {
                Ok(target) => {
                    let target = target.clone();
                    self.schema(writer, &target, path, found);
                }
                Err(why) => found.push(unknown(path, why)),
            }
            return;
        }
        let mut missing = Vec::new();
        self.demands(writer, reader, demands, path, &mut missing);
        if missing.is_empty() {
            return;
        }
        // One by one, each alternative of the writer's may show what all together do not.
        match self.alternatives(writer) {
            Some(alternatives) => {
                for alternative in alternatives {
                    match alternative {
                        Ok(alternative) => self.schema(&alternative, reader, path, found),
                        Err(why) => found.push(unknown(path, why)),
                    }
                }
            }
            None => found.append(&mut missing),
        }
    }

    fn demands(
        &mut self,
        writer: &[Value],
        reader: &Value,
        demands: &Map<String, Value>,
        path: &str,
        found: &mut Vec<Difference>,
    ) {
        if let Some(values) = enumerated(writer) {
            return self.values(writer, values, reader, path, found);
        }
        if demands.contains_key("enum") || demands.contains_key("const") {
            found.push(difference(
                path,
                "ENUM_ARRAY_NARROWED",
                "only some values are accepted, and others were written",
            ));
        }
        let types = types(writer);
        let accepted = types_of(demands);
        let refused: Vec<&str> = types.iter().filter(|name| !accepted.contains(*name)).copied().collect();
        if !refused.is_empty() {
            let rule = if refused.len() == types.len() { "TYPE_CHANGED" } else { "TYPE_NARROWED" };
            found.push(difference(path, rule, format!("{} is refused", refused.join(", "))));
        }
        for branch in list(demands, "allOf") {
            let mut missing = Vec::new();
            self.schema(writer, branch, path, &mut missing);
            // What all of it says stands in the branch.
            found.extend(
                missing.into_iter().take(1).map(|first| difference(&first.path, "PRODUCT_TYPE_EXTENDED", first.detail)),
            );
        }
        self.negation(writer, demands, path, found);
        self.sum(writer, demands, path, found);
        if types.contains("number") || types.contains("integer") {
            number::compare(writer, demands, path, found);
        }
        if types.contains("string") {
            let rules = [["MIN_LENGTH_ADDED", "MIN_LENGTH_INCREASED"], ["MAX_LENGTH_ADDED", "MAX_LENGTH_DECREASED"]];
            lengths(writer, demands, ["minLength", "maxLength"], rules, path, found);
            if let Some(pattern) = demands.get("pattern")
                && !any(writer, |one| one.get("pattern") == Some(pattern))
            {
                let rule = changed(writer, &["pattern"], ["PATTERN_ADDED", "PATTERN_CHANGED"]);
                found.push(difference(path, rule, format!("the pattern {pattern} is demanded")));
            }
        }
        if types.contains("array") {
            self.array(writer, demands, path, found);
        }
        if types.contains("object") {
            self.object(writer, demands, path, found);
        }
        for keywords in OPAQUE {
            let same =
                |one: &Map<String, Value>| keywords.iter().all(|keyword| one.get(*keyword) == demands.get(*keyword));
            let demanded = keywords.iter().any(|keyword| demands.contains_key(*keyword));
            if demanded
                && (keywords.iter().any(|keyword| demands.get(*keyword).is_some_and(refers)) || !any(writer, same))
            {
                found.push(unknown(path, format!("`{}` is not the writer's", keywords[0])));
            }
        }
        for keyword in FAR.iter().filter(|keyword| demands.contains_key(**keyword)) {
            found.push(unknown(path, format!("`{keyword}` cannot be compared")));
        }
    }

    // What the reader refuses, the writer refuses as well.
    fn negation(&mut self, writer: &[Value], demands: &Map<String, Value>, path: &str, found: &mut Vec<Difference>) {
        let Some(refused) = demands.get("not") else { return };
        let refuses = |one: &Value| {
            let mut swapped = Compare {
                writer: self.reader,
                reader: self.writer,
                assumed: HashSet::new(),
                steps: self.steps,
                depth: self.depth,
            };
            let mut missing = Vec::new();
            match (one.get("not"), swapped.conjuncts(refused)) {
                (Some(refuses), Ok(conjuncts)) => swapped.schema(&conjuncts, refuses, path, &mut missing),
                _ => return false,
            }
            missing.is_empty()
        };
        if !writer.iter().any(refuses) {
            found.push(difference(path, "NOT_TYPE_EXTENDED", format!("{refused} is refused")));
        }
    }

    // The writer's values are known: each is tried.
    fn values(&self, writer: &[Value], values: Vec<&Value>, reader: &Value, path: &str, found: &mut Vec<Difference>) {
        let (Some(written), Some(read)) =
            (self.alone(writer, self.writer), self.alone(std::slice::from_ref(reader), self.reader))
        else {
            found.push(unknown(path, "a reference leads out of the schema"));
            return;
        };
        let known = enumerated(std::slice::from_ref(reader)).unwrap_or_default();
        let rule =
            if known.iter().all(|value| values.contains(value)) { "ENUM_ARRAY_NARROWED" } else { "ENUM_ARRAY_CHANGED" };
        let refused = values.into_iter().find(|value| written.is_valid(value) && !read.is_valid(value));
        found.extend(refused.map(|value| difference(path, rule, format!("{value} is refused"))));
    }

    // Parts of a schema as one of their own; references lead into the definitions of the whole.
    fn alone(&self, parts: &[Value], root: &Value) -> Option<jsonschema::Validator> {
        let mut whole = Map::new();
        for name in ["$schema", "$defs", "definitions"] {
            if let Some(value) = root.get(name) {
                whole.insert(name.to_owned(), value.clone());
            }
        }
        whole.insert("allOf".to_owned(), Value::Array(parts.to_vec()));
        jsonschema::validator_for(&Value::Object(whole)).ok()
    }

    fn sum(&mut self, writer: &[Value], demands: &Map<String, Value>, path: &str, found: &mut Vec<Difference>) {
        for keyword in ["anyOf", "oneOf"] {
            let branches = list(demands, keyword);
            if branches.is_empty() {
                continue;
            }
            let covered = branches.iter().enumerate().any(|(index, branch)| {
                let mut missing = Vec::new();
                self.schema(writer, branch, path, &mut missing);
                let alone =
                    || branches.iter().enumerate().all(|(other, branch)| other == index || disjoint(writer, branch));
                missing.is_empty() && (keyword == "anyOf" || alone())
            });
            if !covered {
                found.push(difference(
                    path,
                    "SUM_TYPE_NARROWED",
                    format!("no branch of `{keyword}`, or not exactly one, takes all"),
                ));
            }
        }
    }

    // What the writer's schema is the union of, if it says so: branches of one of its sums, or its types.
    fn alternatives(&self, writer: &[Value]) -> Option<Vec<Result<Vec<Value>, String>>> {
        let with = |index: usize, rest: Map<String, Value>, more: Vec<Value>| {
            let mut all: Vec<Value> = writer.to_vec();
            all[index] = Value::Object(rest);
            all.extend(more);
            all
        };
        for (index, one) in writer.iter().enumerate() {
            let Value::Object(one) = one else { continue };
            if let Some(keyword) = ["anyOf", "oneOf"].into_iter().find(|keyword| !list(one, keyword).is_empty()) {
                let mut rest = one.clone();
                rest.remove(keyword);
                let branches = list(one, keyword).iter();
                return Some(branches.map(|branch| Ok(with(index, rest.clone(), self.conjuncts(branch)?))).collect());
            }
            if let Some(Value::Array(names)) =
                one.get("type").filter(|names| names.as_array().is_some_and(|n| n.len() > 1))
            {
                let alone = |name: &Value| {
                    let mut rest = one.clone();
                    rest.insert("type".to_owned(), name.clone());
                    Ok(with(index, rest, Vec::new()))
                };
                return Some(names.iter().map(alone).collect());
            }
        }
        None
    }

    // The schemas that all hold where this one of the writer's does.
    fn conjuncts(&self, schema: &Value) -> Result<Vec<Value>, String> {
        self.all_of([schema])
    }

    // The schemas that all hold where these of the writer's do, each once.
    fn all_of<'s>(&self, schemas: impl IntoIterator<Item = &'s Value>) -> Result<Vec<Value>, String> {
        let mut all = Vec::new();
        for schema in schemas {
            self.collect(schema, 0, &mut all)?;
        }
        Ok(all)
    }

    fn collect(&self, schema: &Value, depth: u32, all: &mut Vec<Value>) -> Result<(), String> {
        if depth > 50 {
            return Err("references lead in a circle".into());
        }
        let mut add = |schema: Value| {
            if !all.contains(&schema) {
                all.push(schema);
            }
            if all.len() > CONJUNCTS { Err("too much of it holds at once".to_owned()) } else { Ok(()) }
        };
        let Value::Object(keywords) = schema else { return add(schema.clone()) };
        if let Some(reference) = keywords.get("$ref") {
            return self.collect(resolved(self.writer, keywords, reference)?, depth + 1, all);
        }
        let mut rest = keywords.clone();
        rest.remove("allOf");
        add(Value::Object(rest))?;
        for branch in list(keywords, "allOf") {
            self.collect(branch, depth + 1, all)?;
        }
        Ok(())
    }
}

// What a reference in this document means.
fn resolved<'v>(root: &'v Value, beside: &Map<String, Value>, reference: &Value) -> Result<&'v Value, String> {
    const NOTHING: [&str; 8] = ["$ref", "$schema", "$id", "$defs", "definitions", "title", "description", "$comment"];
    // Whether it counts depends on the draft.
    if let Some(name) = beside.keys().find(|name| !NOTHING.contains(&name.as_str())) {
        return Err(format!("`{name}` stands beside a reference"));
    }
    let reference = reference.as_str().unwrap_or_default();
    let pointer =
        reference.strip_prefix('#').ok_or_else(|| format!("the reference {reference} leads out of the schema"))?;
    root.pointer(pointer).ok_or_else(|| format!("the reference {reference} is not a pointer to anything"))
}

fn refers(value: &Value) -> bool {
    match value {
        Value::Object(keywords) => {
            keywords.iter().any(|(name, value)| name.ends_with("Ref") || name == "$ref" || refers(value))
        }
        Value::Array(values) => values.iter().any(refers),
        _ => false,
    }
}

// The writer's values, when one of its schemas names them.
fn enumerated(writer: &[Value]) -> Option<Vec<&Value>> {
    writer.iter().find_map(|one| match (one.get("const"), one.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(Value::Array(values))) => Some(values.iter().collect()),
        _ => None,
    })
}

fn types(writer: &[Value]) -> BTreeSet<&'static str> {
    let mut all: BTreeSet<&'static str> = TYPES.into_iter().collect();
    for one in writer.iter().filter_map(Value::as_object) {
        all = all.intersection(&types_of(one)).copied().collect();
    }
    all
}

// Each number is an integer or not; who takes numbers takes both.
fn types_of(schema: &Map<String, Value>) -> BTreeSet<&'static str> {
    let named: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => return TYPES.into_iter().collect(),
    };
    let takes = |name: &&str| named.contains(name) || *name == "integer" && named.contains(&"number");
    TYPES.into_iter().filter(|name| takes(name)).collect()
}

// No value is of both: they have no type in common, or a property that both have differs.
fn disjoint(writer: &[Value], branch: &Value) -> bool {
    let Value::Object(branch) = branch else { return *branch == Value::Bool(false) };
    let (ours, theirs) = (types(writer), types_of(branch));
    if ours.is_disjoint(&theirs) {
        return true;
    }
    let only_objects = ours.iter().all(|name| *name == "object");
    only_objects
        && list(branch, "required").iter().filter_map(Value::as_str).any(|name| {
            let theirs =
                branch.get("properties").and_then(|all| all.get(name)).map(std::slice::from_ref).and_then(enumerated);
            let needs = any(writer, |one| list(one, "required").iter().any(|other| other == name));
            let ours =
                writer.iter().find_map(|one| enumerated(std::slice::from_ref(one.get("properties")?.get(name)?)));
            match (ours, theirs) {
                (Some(ours), Some(theirs)) => {
                    needs && !ours.iter().any(|one| theirs.iter().any(|other| may_equal(one, other)))
                }
                _ => false,
            }
        })
}

// 1 and 1.0 are the same value; what has parts is not looked into.
fn may_equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(_), Value::Array(_)) | (Value::Object(_), Value::Object(_)) => true,
        _ => one == other,
    }
}

// `minX` and `maxX`.
fn lengths(
    writer: &[Value],
    demands: &Map<String, Value>,
    [min, max]: [&str; 2],
    [min_rules, max_rules]: [[&'static str; 2]; 2],
    path: &str,
    found: &mut Vec<Difference>,
) {
    let of = |schema: &Map<String, Value>, name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(least) = of(demands, min)
        && least > 0.0
        && !any(writer, |one| of(one, min).is_some_and(|has| has >= least))
    {
        found.push(difference(path, changed(writer, &[min], min_rules), format!("{min} {least} is demanded")));
    }
    if let Some(most) = of(demands, max)
        && !any(writer, |one| of(one, max).is_some_and(|has| has <= most))
    {
        found.push(difference(path, changed(writer, &[max], max_rules), format!("{max} {most} is demanded")));
    }
}

/// The first rule where the writer says nothing of the kind, else the second.
fn changed(writer: &[Value], keywords: &[&str], [added, changed]: [&'static str; 2]) -> &'static str {
    if any(writer, |one| keywords.iter().any(|keyword| one.contains_key(*keyword))) { changed } else { added }
}

fn any(writer: &[Value], holds: impl Fn(&Map<String, Value>) -> bool) -> bool {
    writer.iter().filter_map(Value::as_object).any(holds)
}

fn list<'v>(schema: &'v Map<String, Value>, keyword: &str) -> &'v [Value] {
    schema.get(keyword).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn difference(path: &str, rule: &'static str, detail: impl Into<String>) -> Difference {
    Difference { path: path.to_owned(), rule, detail: detail.into() }
}

fn unknown(path: &str, why: impl Into<String>) -> Difference {
    difference(path, "NOT_COMPARABLE", why)
}

// A name as a part of a JSON Pointer.
fn below(path: &str, name: &str) -> String {
    format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"))
}
