//! What is different between two collections of things.

use serde_json::{Value, json};

use super::things::{Key, Things};

/// A thing that is not as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Which.
    pub key: Key,
    /// In which way.
    pub how: How,
}

/// How a thing is not as it should be.
#[derive(Debug, Clone, PartialEq)]
pub enum How {
    /// It is not there.
    Missing,
    /// It is there, and should not be.
    Extra,
    /// It is there, and is another one.
    Differs(Vec<Field>),
}

/// A field with another value.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Where it is, such as `arguments.x-message-ttl`.
    pub path: String,
    /// What it should be; null where it should not be there.
    pub wanted: Value,
    /// What it is; null where it is not there.
    pub found: Value,
}

impl Field {
    /// Whether it is part of the definition, not of how JetStream keeps a queue.
    fn is_of_definition(&self) -> bool {
        !self.path.starts_with("stream") && self.path != "consumer"
    }
}

impl Difference {
    /// Whether a thing of that name is defined otherwise, so that declaring it would be refused.
    pub fn is_conflict(&self) -> bool {
        matches!(&self.how, How::Differs(fields) if fields.iter().any(Field::is_of_definition))
    }

    /// In one word.
    pub fn word(&self) -> &'static str {
        match self.how {
            How::Missing => "missing",
            How::Extra => "extra",
            How::Differs(_) => "differs",
        }
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let mut document = self.key.json();
        document["how"] = json!(self.word());
        if let How::Differs(fields) = &self.how {
            let each =
                fields.iter().map(|field| json!({ "field": field.path, "wanted": field.wanted, "found": field.found }));
            document["fields"] = each.collect();
        }
        document
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<8} {}", self.word(), self.key)?;
        let How::Differs(fields) = &self.how else { return Ok(()) };
        for field in fields {
            write!(f, "\n         {}: {} is wanted, {} is there", field.path, field.wanted, field.found)?;
        }
        Ok(())
    }
}

/// What is different in `found`, by name.
pub fn compare(wanted: &Things, found: &Things) -> Vec<Difference> {
    let mut differences: Vec<Difference> = Vec::new();
    for (key, thing) in wanted {
        let how = match found.get(key) {
            None => How::Missing,
            Some(other) => {
                let mut fields = Vec::new();
                fields_of(thing, other, "", &mut fields);
                if fields.is_empty() {
                    continue;
                }
                How::Differs(fields)
            }
        };
        differences.push(Difference { key: key.clone(), how });
    }
    let extra = found.keys().filter(|key| !wanted.contains_key(key));
    differences.extend(extra.map(|key| Difference { key: key.clone(), how: How::Extra }));
    differences.sort_by(|a, b| a.key.cmp(&b.key));
    differences
}

/// A queue that was declared again after its deletion has a stream with another name.
const NOT_COMPARED: &str = "stream.name";

fn fields_of(wanted: &Value, found: &Value, path: &str, fields: &mut Vec<Field>) {
    if wanted == found || path == NOT_COMPARED {
        return;
    }
    if let (Value::Object(ours), Value::Object(theirs)) = (wanted, found) {
        let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            fields_of(&wanted[name.as_str()], &found[name.as_str()], &path, fields);
        }
        return;
    }
    fields.push(Field { path: path.to_owned(), wanted: wanted.clone(), found: found.clone() });
}
