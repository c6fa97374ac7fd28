//! What differs between what is and what should be. Pure.

use serde_json::{Map, Value};

/// What applying a manifest would do.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// In the order in which they would be made; what is already as it should be is not in it.
    pub changes: Vec<Change>,
    /// What is allowed and may surprise, for people.
    pub warnings: Vec<String>,
}

/// One stream or consumer that is not as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// `stream ORDERS` or `consumer ORDERS/billing`.
    pub object: String,
    /// What would be done.
    pub action: Action,
}

/// What would be done to a stream or consumer.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// It does not exist and would be made.
    Create,
    /// It would be changed in place.
    Update(Vec<Difference>),
    /// It differs in something that cannot be changed in place; applying refuses.
    Conflict(Vec<Difference>),
}

/// A field that differs, under the server's name for it, durations in nanoseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The field.
    pub field: String,
    /// What is.
    pub is: Value,
    /// What should be.
    pub should: Value,
}

impl Plan {
    /// Whether everything is as it should be.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes that cannot be made in place.
    pub fn conflicts(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| matches!(change.action, Action::Conflict(_)))
    }
}

/// Compares the fields that we decide; none: all are as they should be.
pub(super) fn compare(is: &Map<String, Value>, should: &Map<String, Value>, fixed: &[&str]) -> Option<Action> {
    let differences: Vec<Difference> = should
        .iter()
        .filter_map(|(field, should)| {
            let is = is.get(field).unwrap_or(&Value::Null);
            (!same(is, should)).then(|| Difference { field: field.clone(), is: is.clone(), should: should.clone() })
        })
        .collect();
    if differences.is_empty() {
        return None;
    }
    let (conflicts, updates): (Vec<_>, Vec<_>) =
        differences.into_iter().partition(|difference| fixed.contains(&&*difference.field));
    Some(match conflicts.is_empty() {
        true => Action::Update(updates),
        false => Action::Conflict(conflicts),
    })
}

// The server leaves out what is zero or empty.
fn same(is: &Value, should: &Value) -> bool {
    let absent = |v: &Value| match v {
        Value::Null => true,
        Value::Number(n) => n.as_u64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        _ => false,
    };
    is == should || (absent(is) && absent(should))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn only_what_we_decide_is_compared_and_what_is_fixed_conflicts() {
        let is = map(json!({"storage": "file", "max_bytes": 5, "compression": "s2"}));
        assert_eq!(compare(&is, &map(json!({"storage": "file", "max_age": 0})), &["storage"]), None);
        let update = compare(&is, &map(json!({"max_bytes": 6})), &["storage"]);
        assert!(matches!(update, Some(Action::Update(d)) if d[0].is == json!(5)));
        let conflict = compare(&is, &map(json!({"max_bytes": 6, "storage": "memory"})), &["storage"]);
        assert!(matches!(conflict, Some(Action::Conflict(d)) if d.len() == 1 && d[0].field == "storage"));
    }
}
