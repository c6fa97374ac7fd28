//! What is counted, docs/metrics.md, the dashboard and the alert rules name the same metrics.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

const PREFIX: &str = "natsbridge_";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The metrics that a text names, each after one of these characters, or all of them.
fn named(text: &str, after: Option<char>) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.match_indices(PREFIX)
        .filter(|(at, _)| {
            text[..*at].chars().next_back().is_none_or(|before| after.map_or(!word(before), |c| c == before))
        })
        .map(|(at, _)| text[at..].chars().take_while(|c| word(*c)).collect())
        .collect()
}

fn exported() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders: Vec<PathBuf> =
        ["nats-bridge/src", "amqp-compat/src", "sidecar/src"].map(|dir| root().join(dir)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of ours").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                names.extend(named(&fs::read_to_string(&path).expect("UTF-8"), Some('"')));
            }
        }
    }
    names
}

/// Every query of the dashboard and of the alert rules.
fn queries() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::from_str(&read("dashboards/nats-bridge.json")).expect("JSON"), &mut found);
    let rules = read("dashboards/alerts.yml");
    found.extend(rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned));
    found
}

#[test]
fn each_metric_is_described_and_nothing_else() {
    let (exported, described) = (exported(), named(&read("docs/metrics.md"), Some('`')));
    let described: BTreeSet<String> = described.into_iter().filter(|name| name != PREFIX).collect();
    assert!(exported.len() > 80, "{exported:?}");
    assert_eq!(exported.difference(&described).collect::<Vec<_>>(), Vec::<&String>::new(), "not in docs/metrics.md");
    assert_eq!(described.difference(&exported).collect::<Vec<_>>(), Vec::<&String>::new(), "counted nowhere");
}

#[test]
fn each_query_names_metrics_that_are_counted() {
    let (exported, queries) = (exported(), queries());
    assert!(queries.len() > 50, "{queries:?}");
    for query in &queries {
        let named = named(query, None);
        assert!(!named.is_empty() && named.is_subset(&exported), "{query}");
        for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
            assert_eq!(query.matches(open).count(), query.matches(close).count(), "{query}");
        }
        // A counter as it is says nothing but how long a process has run.
        let counters = named.iter().filter(|name| name.ends_with("_total"));
        assert!(counters.clone().count() == 0 || query.contains("rate(") || query.contains("increase("), "{query}");
    }
}
