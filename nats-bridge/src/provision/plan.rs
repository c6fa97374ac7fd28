//! What differs between what is and what should be. Pure.

use serde::Serialize;
use serde_json::{Map, Value};

use super::Removal;

/// What applying a manifest would do.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Plan {
    /// In the order in which they would be made; what is already as it should be is not in it.
    pub changes: Vec<Change>,
    /// What is allowed and may surprise, for people.
    pub warnings: Vec<String>,
}

/// One stream or consumer that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// `stream ORDERS`, `consumer ORDERS/billing` or `bucket sessions`.
    pub object: String,
    /// What would be done.
    pub action: Action,
    /// What it would cost, and what going back would cost, for people.
    pub cost: String,
    /// The limits by which it would remove stored messages; applying refuses unless that is allowed.
    pub removes: Vec<Removal>,
}

/// What would be done to a stream or consumer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It does not exist and would be made.
    Create,
    /// It would be changed in place.
    Update(Vec<Difference>),
    /// It differs in something that cannot be changed in place; applying refuses.
    Conflict(Vec<Difference>),
}

/// A field that differs, by the manifest's word for it: `max_age_ms` in milliseconds, `null` for a limit that there is not.
#[derive(Debug, Clone, PartialEq, Serialize)]
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

/// What a change costs, given how many messages the stream holds at present.
pub(super) fn cost(action: &Action, messages: u64, removes: &[Removal]) -> String {
    match action {
        Action::Create => "nothing; going back deletes it with what it then holds".to_owned(),
        Action::Conflict(_) => format!(
            "not possible in place: make it under another name and move its {messages} messages, or delete it and lose them"
        ),
        Action::Update(_) if removes.is_empty() => "nothing; the old values can be set again".to_owned(),
        Action::Update(_) => {
            let told: Vec<String> = removes.iter().map(Removal::to_string).collect();
            format!("{}; going back does not bring them back", told.join("; "))
        }
    }
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
    fn a_lowered_limit_costs_messages() {
        let update = Action::Update(Vec::new());
        let gone = Removal { limit: "max_bytes".into(), is: Value::Null, should: json!(10), messages: 3, of: 5 };
        assert!(cost(&update, 5, &[]).starts_with("nothing"));
        assert_eq!(
            cost(&update, 5, &[gone]),
            "max_bytes is none and should be 10, which removes about 3 of 5 messages; going back does not bring them back"
        );
        assert!(cost(&Action::Conflict(Vec::new()), 17, &[]).contains("17 messages"));
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
