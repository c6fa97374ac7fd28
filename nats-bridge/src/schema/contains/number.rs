//! Bounds and multiples of numbers.

use std::cmp::Ordering;

use serde_json::{Map, Number, Value};

use super::{Difference, any, changed, difference, types_of, unknown};

/// Compares what is demanded of numbers.
pub(super) fn compare(writer: &[Value], demands: &Map<String, Value>, path: &str, found: &mut Vec<Difference>) {
    let bounds = [
        (
            ["minimum", "exclusiveMinimum"],
            Ordering::Greater,
            [["MINIMUM_ADDED", "MINIMUM_INCREASED"], ["EXCLUSIVE_MINIMUM_ADDED", "EXCLUSIVE_MINIMUM_INCREASED"]],
        ),
        (
            ["maximum", "exclusiveMaximum"],
            Ordering::Less,
            [["MAXIMUM_ADDED", "MAXIMUM_DECREASED"], ["EXCLUSIVE_MAXIMUM_ADDED", "EXCLUSIVE_MAXIMUM_DECREASED"]],
        ),
    ];
    for ([with, without], inside, [rules, exclusive_rules]) in bounds {
        if demands.get(without).is_some_and(Value::is_boolean)
            || any(writer, |one| one.get(without).is_some_and(Value::is_boolean))
        {
            found.push(unknown(path, format!("`{without}` as in draft 4 cannot be compared")));
            continue;
        }
        // The writer's bound lies inside of this one, or on it.
        let holds = |keyword: &str, bound: &Number, or_on_it: bool| {
            any(writer, |one| match one.get(keyword) {
                Some(Value::Number(has)) => {
                    let place = order(has, bound);
                    place == Some(inside) || or_on_it && place == Some(Ordering::Equal)
                }
                _ => false,
            })
        };
        if let Some(Value::Number(bound)) = demands.get(with)
            && !holds(with, bound, true)
            && !holds(without, bound, true)
        {
            found.push(difference(
                path,
                changed(writer, &[with, without], rules),
                format!("{with} {bound} is demanded"),
            ));
        }
        if let Some(Value::Number(bound)) = demands.get(without)
            && !holds(with, bound, false)
            && !holds(without, bound, true)
        {
            found.push(difference(
                path,
                changed(writer, &[with, without], exclusive_rules),
                format!("{without} {bound} is demanded"),
            ));
        }
    }
    if let Some(Value::Number(step)) = demands.get("multipleOf") {
        let whole = any(writer, |one| !types_of(one).contains("number")) && whole(step) == Some(1);
        let multiple = |one: &Map<String, Value>| match one.get("multipleOf") {
            Some(Value::Number(has)) => match (whole_of(has), whole_of(step)) {
                (Some(has), Some(step)) if step != 0 => has % step == 0,
                _ => has == step,
            },
            _ => false,
        };
        if !whole && !any(writer, multiple) {
            let rule = changed(writer, &["multipleOf"], ["MULTIPLE_OF_ADDED", "MULTIPLE_OF_CHANGED"]);
            found.push(difference(path, rule, format!("multipleOf {step} is demanded")));
        }
    }
}

// Whole numbers exactly: some are beyond what a float tells apart.
fn order(one: &Number, other: &Number) -> Option<Ordering> {
    match (whole_of(one), whole_of(other)) {
        (Some(one), Some(other)) => Some(one.cmp(&other)),
        _ => one.as_f64()?.partial_cmp(&other.as_f64()?),
    }
}

fn whole_of(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

fn whole(number: &Number) -> Option<i128> {
    whole_of(number).or_else(|| (number.as_f64() == Some(1.0)).then_some(1))
}
