//! Items of arrays.

use serde_json::{Map, Value};

use super::{Compare, Difference, any, difference, lengths, list};

impl Compare<'_> {
    /// Compares what is demanded of arrays.
    pub(super) fn array(
        &mut self,
        writer: &[Value],
        demands: &Map<String, Value>,
        path: &str,
        found: &mut Vec<Difference>,
    ) {
        let rules = [["MIN_ITEMS_ADDED", "MIN_ITEMS_INCREASED"], ["MAX_ITEMS_ADDED", "MAX_ITEMS_DECREASED"]];
        lengths(writer, demands, ["minItems", "maxItems"], rules, path, found);
        if demands.get("uniqueItems") == Some(&Value::Bool(true))
            && !any(writer, |one| one.get("uniqueItems") == Some(&Value::Bool(true)))
        {
            found.push(difference(path, "UNIQUE_ITEMS_ADDED", "items have to differ"));
        }
        let named =
            writer.iter().filter_map(Value::as_object).chain([demands]).map(|one| first(one).len()).max().unwrap_or(0);
        let longest = writer.iter().filter_map(|one| one.get("maxItems")?.as_u64()).min();
        for index in 0..=named {
            // The last one stands for all behind those that are named.
            let name = if index == named { "*".to_owned() } else { index.to_string() };
            if longest.is_some_and(|longest| index as u64 >= longest) {
                return;
            }
            let reader = item(demands, index).clone();
            let items = writer.iter().filter_map(Value::as_object).map(|one| item(one, index));
            match self.all_of(items) {
                Ok(all) => self.schema(&all, &reader, &format!("{path}/{name}"), found),
                Err(why) => found.push(super::unknown(path, why)),
            }
        }
    }
}

const ANY: &Value = &Value::Bool(true);

// The schemas for the first items: `prefixItems`, or before draft 2020-12 `items`.
fn first(schema: &Map<String, Value>) -> &[Value] {
    match list(schema, "prefixItems") {
        [] => list(schema, "items"),
        first => first,
    }
}

fn item(schema: &Map<String, Value>, index: usize) -> &Value {
    let rest = if list(schema, "items").is_empty() { "items" } else { "additionalItems" };
    first(schema).get(index).or_else(|| schema.get(rest)).filter(|found| !found.is_array()).unwrap_or(ANY)
}
