//! Lists: filtered, sorted and cut into pages by the query, as RabbitMQ does it.

use std::cmp::Ordering;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value, json};

use super::refusal::Refusal;

/// The largest page that RabbitMQ gives.
const LARGEST_PAGE: u64 = 500;

/// How large a compiled pattern may be, in bytes.
const PATTERN_SIZE: usize = 1 << 20;

/// What a query asks of a list.
#[derive(Debug, Default)]
pub(in crate::management) struct Listing {
    page: Option<Page>,
    sort: Option<String>,
    reverse: bool,
    columns: Vec<String>,
}

#[derive(Debug)]
struct Page {
    number: u64,
    size: u64,
    name: Filter,
}

#[derive(Debug)]
enum Filter {
    All,
    Part(String),
    Pattern(Regex),
}

/// Some items of a list, and how they came to be.
#[derive(Debug)]
pub(in crate::management) struct Arranged {
    /// The items to show.
    pub(in crate::management) items: Vec<Value>,
    total: usize,
    filtered: usize,
}

impl Listing {
    /// Reads a query string.
    pub(in crate::management) fn read(query: &str) -> Result<Self, Refusal> {
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let value = |name: &str| pairs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let columns = value("columns").unwrap_or_default().split(',').filter(|column| !column.is_empty());
        Ok(Self {
            page: Page::read(value)?,
            sort: value("sort").filter(|column| !column.is_empty()).map(str::to_owned),
            reverse: value("sort_reverse") == Some("true"),
            columns: columns.map(str::to_owned).collect(),
        })
    }

    /// Whether any of these columns is needed to arrange items.
    pub(in crate::management) fn sorts_by(&self, columns: &[&str]) -> bool {
        self.sort.as_deref().is_some_and(|sort| columns.contains(&sort))
    }

    /// Whether any of these columns is shown.
    pub(in crate::management) fn shows(&self, columns: &[&str]) -> bool {
        self.columns.is_empty() || self.columns.iter().any(|shown| columns.contains(&shown.as_str()))
    }

    /// Filters, sorts and takes the page.
    pub(in crate::management) fn arrange(&self, mut items: Vec<Value>) -> Result<Arranged, Refusal> {
        let total = items.len();
        if let Some(page) = &self.page {
            items.retain(|item| page.name.takes(item["name"].as_str().unwrap_or_default()));
        }
        if let Some(sort) = &self.sort {
            // A stable sort: what is equal stays in the list's own order.
            items.sort_by(|a, b| compare(dotted(a, sort), dotted(b, sort)));
        }
        if self.reverse {
            items.reverse();
        }
        let filtered = items.len();
        if let Some(page) = &self.page {
            items = page.cut(items)?;
        }
        Ok(Arranged { items, total, filtered })
    }

    /// The answer: the items with the columns that were asked for, in the frame of a page if one was.
    pub(in crate::management) fn answer(&self, arranged: Arranged) -> Value {
        let Arranged { items, total, filtered } = arranged;
        let items: Vec<Value> = items.into_iter().map(|item| self.pick(item)).collect();
        let Some(page) = &self.page else { return Value::Array(items) };
        json!({
            "filtered_count": filtered,
            "item_count": items.len(),
            "items": items,
            "page": page.number,
            "page_count": (filtered as u64).div_ceil(page.size),
            "page_size": page.size,
            "total_count": total,
        })
    }

    /// The columns of one document that were asked for.
    pub(in crate::management) fn pick(&self, document: Value) -> Value {
        if self.columns.is_empty() {
            return document;
        }
        let mut picked = Map::new();
        for column in &self.columns {
            put(&mut picked, &document, column);
        }
        Value::Object(picked)
    }
}

impl Page {
    fn read<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Self>, Refusal> {
        let invalid = || Refusal::bad_request("Pagination parameters are invalid");
        let number = |name: &str| match value(name) {
            None | Some("") => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                let reason = format!("Pagination parameters are invalid: '{name}' is '{text}'");
                Refusal { reason, ..invalid() }
            }),
        };
        let (Some(page), size) = (number("page")?, number("page_size")?) else { return Ok(None) };
        if page == 0 || size.is_some_and(|size| size == 0 || size > LARGEST_PAGE) {
            let size = size.map_or_else(|| "undefined".to_owned(), |size| size.to_string());
            return Err(Refusal {
                status: 400,
                error: "invalid_pagination_parameters",
                reason: format!("Invalid pagination parameters: page number {page}, page size {size}"),
            });
        }
        let name = match value("name") {
            None | Some("") => Filter::All,
            Some(pattern) if value("use_regex") == Some("true") => {
                // As in RabbitMQ, upper and lower case are one.
                let regex = RegexBuilder::new(pattern).case_insensitive(true).size_limit(PATTERN_SIZE).build();
                let reason =
                    || format!("Pagination parameters are invalid: 'name' is no regular expression: {pattern}");
                Filter::Pattern(regex.map_err(|_| Refusal { reason: reason(), ..invalid() })?)
            }
            Some(part) => Filter::Part(part.to_lowercase()),
        };
        Ok(Some(Self { number: page, size: size.unwrap_or(100), name }))
    }

    fn cut(&self, items: Vec<Value>) -> Result<Vec<Value>, Refusal> {
        let length = items.len() as u64;
        let before = (self.number - 1).saturating_mul(self.size);
        if before >= length && self.number > 1 {
            let (number, size) = (self.number, self.size);
            return Err(Refusal {
                status: 400,
                error: "page_out_of_range",
                reason: format!("Page out of range, page: {number} page size: {size}, len: {length}"),
            });
        }
        let before = usize::try_from(before).unwrap_or(usize::MAX);
        Ok(items.into_iter().skip(before).take(usize::try_from(self.size).unwrap_or(usize::MAX)).collect())
    }
}

impl Filter {
    fn takes(&self, name: &str) -> bool {
        match self {
            Filter::All => true,
            Filter::Part(part) => name.to_lowercase().contains(part),
            Filter::Pattern(pattern) => pattern.is_match(name),
        }
    }
}

/// The value at `a.b.c`.
fn dotted<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(document, |value, name| value.get(name))
}

/// Puts what is at `a.b.c` of a document to the same place.
fn put(picked: &mut Map<String, Value>, document: &Value, path: &str) {
    let Some((name, rest)) = path.split_once('.') else {
        if let Some(value) = document.get(path) {
            picked.insert(path.to_owned(), value.clone());
        }
        return;
    };
    let Some(inner) = document.get(name).filter(|inner| inner.is_object()) else { return };
    if let Value::Object(place) = picked.entry(name).or_insert_with(|| json!({})) {
        put(place, inner, rest);
    }
}

/// Erlang's order of terms: numbers, then flags and null, then objects, lists and texts. What is not there counts as 0.
fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    let zero = json!(0);
    let (a, b) = (a.unwrap_or(&zero), b.unwrap_or(&zero));
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::Bool(_) | Value::Null => 1,
        Value::Object(_) => 2,
        Value::Array(_) => 3,
        Value::String(_) => 4,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queues() -> Vec<Value> {
        let row = |name, messages| json!({ "name": name, "messages": messages, "totals": { "a": 1, "b": 2 } });
        vec![row("Orders", 3), row("bills", 1), row("orders.dead", 2)]
    }

    fn names(query: &str) -> Result<Vec<String>, Refusal> {
        let listing = Listing::read(query)?;
        let items = listing.arrange(queues())?.items;
        Ok(items.iter().map(|item| item["name"].as_str().unwrap_or_default().to_owned()).collect())
    }

    #[test]
    fn a_page_is_filtered_sorted_and_counted() {
        assert_eq!(names("").expect("all"), ["Orders", "bills", "orders.dead"]);
        assert_eq!(names("name=bills").expect("without a page nothing is filtered").len(), 3);
        assert_eq!(names("page=1&name=orders").expect("two"), ["Orders", "orders.dead"]);
        assert_eq!(names("page=1&name=%5Eo.*s%24&use_regex=true").expect("one"), ["Orders"]);
        assert_eq!(names("sort=messages").expect("sorted"), ["bills", "orders.dead", "Orders"]);
        assert_eq!(names("sort=name&sort_reverse=true").expect("sorted"), ["orders.dead", "bills", "Orders"]);
        let listing = Listing::read("page=2&page_size=2&columns=name,totals.b,none").expect("read");
        let answer = listing.answer(listing.arrange(queues()).expect("a page"));
        assert_eq!(
            answer,
            json!({
                "filtered_count": 3, "item_count": 1, "items": [{ "name": "orders.dead", "totals": { "b": 2 } }],
                "page": 2, "page_count": 2, "page_size": 2, "total_count": 3
            })
        );
    }

    #[test]
    fn bad_queries_are_refused_with_rabbitmqs_words() {
        for (query, error, reason) in [
            ("page=9&page_size=2", "page_out_of_range", "Page out of range, page: 9 page size: 2, len: 3"),
            (
                "page=0",
                "invalid_pagination_parameters",
                "Invalid pagination parameters: page number 0, page size undefined",
            ),
            (
                "page=1&page_size=501",
                "invalid_pagination_parameters",
                "Invalid pagination parameters: page number 1, page size 501",
            ),
            ("page=x", "bad_request", "Pagination parameters are invalid: 'page' is 'x'"),
            (
                "page=1&name=%5B&use_regex=true",
                "bad_request",
                "Pagination parameters are invalid: 'name' is no regular expression: [",
            ),
        ] {
            let refusal = names(query).expect_err(query);
            assert_eq!((refusal.status, refusal.error, refusal.reason.as_str()), (400, error, reason));
        }
        let huge = format!("page=1&use_regex=true&name={}", "(a{1000}){1000}");
        assert!(names(&huge).is_err(), "a pattern that would take much memory");
    }

    proptest! {
        #[test]
        fn pages_together_are_the_list(count in 0usize..50, size in 1u64..12) {
            let all: Vec<Value> = (0..count).map(|n| json!({ "name": format!("q{n}") })).collect();
            let pages = (count as u64).div_ceil(size).max(1);
            let mut seen = Vec::new();
            for page in 1..=pages {
                let listing = Listing::read(&format!("page={page}&page_size={size}")).expect("valid");
                seen.extend(listing.arrange(all.clone()).expect("in range").items);
            }
            prop_assert_eq!(seen, all);
        }
    }
}
