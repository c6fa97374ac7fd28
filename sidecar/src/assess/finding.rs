//! Findings, and what they come to.

use serde_json::{Value, json};

use super::Way;
use super::code::{Code, Severity};

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entity {
    /// The vhost, where it is of one.
    pub vhost: Option<String>,
    /// What it is: `queue`, `exchange`, `binding`, `policy`, `user`, ...
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}

impl Entity {
    /// A thing of a vhost.
    pub fn of(vhost: &str, kind: &'static str, name: impl Into<String>) -> Self {
        Self { vhost: Some(vhost.to_owned()), kind, name: name.into() }
    }

    /// A thing of the whole broker.
    pub fn broker(kind: &'static str, name: impl Into<String>) -> Self {
        Self { vhost: None, kind, name: name.into() }
    }

    fn json(&self) -> Value {
        json!({ "vhost": self.vhost, "kind": self.kind, "name": self.name })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Which kind of thing.
    pub code: &'static Code,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub entity: Entity,
    /// What is the matter, without the entity's name.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// Whether a thing maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does what it did.
    Exact,
    /// It works, with a difference.
    Caveat,
    /// It does not map.
    No,
}

impl Verdict {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Exact => "exact",
            Verdict::Caveat => "caveat",
            Verdict::No => "no",
        }
    }
}

/// The findings so far.
#[derive(Debug)]
pub struct Findings {
    /// How the applications are to move.
    pub way: Way,
    list: Vec<Finding>,
}

impl Findings {
    pub(super) fn new(way: Way, list: Vec<Finding>) -> Self {
        Self { way, list }
    }

    /// Adds one.
    pub fn add(&mut self, code: &'static Code, entity: &Entity, what: impl Into<String>, fix: impl Into<String>) {
        let severity = code.severity(self.way);
        self.list.push(Finding { code, severity, entity: entity.clone(), what: what.into(), fix: fix.into() });
    }
}

/// All that was found.
#[derive(Debug)]
pub struct Assessment {
    /// How the applications are to move.
    pub way: Way,
    /// The worst first.
    pub findings: Vec<Finding>,
    /// Exchanges, queues, bindings and policies, each with whether it maps.
    pub entities: Vec<(Entity, Verdict)>,
}

impl Assessment {
    /// How many findings are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// How many things map in this way.
    pub fn verdicts(&self, verdict: Verdict) -> usize {
        self.entities.iter().filter(|(_, each)| *each == verdict).count()
    }

    /// Whether nothing blocks.
    pub fn can_begin(&self) -> bool {
        self.count(Severity::Blocker) == 0
    }

    /// As JSON, without what it was assessed from.
    pub fn json(&self) -> Value {
        let findings = self.findings.iter().map(|finding| {
            json!({
                "code": finding.code.name, "severity": finding.severity.name(), "entity": finding.entity.json(),
                "what": finding.what, "fix": finding.fix,
            })
        });
        let entities = self.entities.iter().map(|(entity, verdict)| {
            let mut entity = entity.json();
            entity["maps"] = json!(verdict.name());
            entity
        });
        json!({
            "way": self.way.name(),
            "can_begin": self.can_begin(),
            "summary": {
                "blockers": self.count(Severity::Blocker),
                "caveats": self.count(Severity::Caveat),
                "infos": self.count(Severity::Info),
                "exact": self.verdicts(Verdict::Exact),
                "with_caveat": self.verdicts(Verdict::Caveat),
                "not": self.verdicts(Verdict::No),
            },
            "findings": findings.collect::<Vec<_>>(),
            "entities": entities.collect::<Vec<_>>(),
        })
    }
}

/// Sorts the findings, and tells of each entity whether it maps.
pub(super) fn conclude(findings: Findings, entities: Vec<Entity>) -> Assessment {
    let Findings { way, mut list } = findings;
    list.sort_by(|a, b| {
        (a.severity, a.code.name, &a.what, &a.entity).cmp(&(b.severity, b.code.name, &b.what, &b.entity))
    });
    let mut worst = std::collections::BTreeMap::new();
    for finding in &list {
        // The list begins with the worst.
        worst.entry(&finding.entity).or_insert(finding.severity);
    }
    let judged = entities.into_iter().map(|entity| {
        let verdict = match worst.get(&entity) {
            Some(Severity::Blocker) => Verdict::No,
            Some(Severity::Caveat) => Verdict::Caveat,
            Some(Severity::Info) | None => Verdict::Exact,
        };
        (entity, verdict)
    });
    let entities = judged.collect();
    Assessment { way, findings: list, entities }
}
