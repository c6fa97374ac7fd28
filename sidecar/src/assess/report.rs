//! The findings for people.

use std::fmt::Write as _;

use super::capacity::Sizes;
use super::code::Severity;
use super::finding::{Assessment, Entity, Finding, Verdict};
use super::inventory::Inventory;

/// How many names of one finding are shown; JSON has all.
const SHOWN: usize = 4;

/// How wide texts may become.
const WIDTH: usize = 110;

/// What was looked at, in a few words, and what it comes to on JetStream.
pub fn overview(inventory: &Inventory, source: &str, sizes: &Sizes) -> String {
    let count = |of: fn(&super::inventory::Declared) -> usize| inventory.vhosts.values().map(of).sum::<usize>();
    let mut out = format!(
        "RabbitMQ {} in {source}: {}, {}, {}, {}, {}\n",
        inventory.version,
        counted(inventory.vhosts.len(), "vhost"),
        counted(count(|vhost| vhost.exchanges.len()), "exchange"),
        counted(count(|vhost| vhost.queues.len()), "queue"),
        counted(count(|vhost| vhost.bindings.len()), "binding"),
        match inventory.policies.len() {
            1 => "1 policy".to_owned(),
            count => format!("{count} policies"),
        },
    );
    if let Some(live) = &inventory.live {
        let (messages, size) = live.backlog();
        let _ = writeln!(
            out,
            "now: {}, {}, {} ({}) in queues, {:.1} in and {:.1} out each second",
            counted(live.connections.len(), "connection"),
            counted(live.consumers.len(), "consumer"),
            counted(usize::try_from(messages).unwrap_or(usize::MAX), "message"),
            bytes(size),
            live.publish_rate.max(0.0),
            live.deliver_rate.max(0.0),
        );
    }
    let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let _ = write!(
        out,
        "on JetStream: {}, {}, {} on all servers together",
        counted(number(sizes.streams), "stream"),
        counted(number(sizes.consumers), "consumer"),
        match sizes.copies {
            1 => "1 copy of a stream".to_owned(),
            copies => format!("{copies} copies of streams"),
        },
    );
    let disk = sizes.disk.map(|disk| format!("; {} for what lies in queues now", bytes(disk)));
    let _ = writeln!(out, "{}", disk.unwrap_or_default());
    out
}

/// The findings, the worst first, and what they come to.
pub fn text(assessment: &Assessment) -> String {
    let mut out = String::new();
    for severity in [Severity::Blocker, Severity::Caveat, Severity::Info] {
        let of: Vec<&Finding> = assessment.findings.iter().filter(|finding| finding.severity == severity).collect();
        if !of.is_empty() {
            let _ = writeln!(out, "\n{}", counted(of.len(), severity.name()));
            groups(&mut out, &of);
        }
    }
    let maps = |verdict| assessment.verdicts(verdict);
    let _ = writeln!(
        out,
        "\n{} of {} exchanges, queues, bindings and policies map exactly, {} with a caveat, {} not.",
        maps(Verdict::Exact),
        assessment.entities.len(),
        maps(Verdict::Caveat),
        maps(Verdict::No)
    );
    let _ = match assessment.count(Severity::Blocker) {
        0 => writeln!(out, "Nothing blocks: the move with `{}` can begin.", assessment.way.name()),
        count => writeln!(out, "{} in the way of `{}`.", counted(count, "blocker"), assessment.way.name()),
    };
    out
}

/// Findings that differ in nothing but what they are about, together.
fn groups(out: &mut String, findings: &[&Finding]) {
    let same = |a: &&Finding, b: &&Finding| (a.code.name, &a.what, &a.fix) == (b.code.name, &b.what, &b.fix);
    for group in findings.chunk_by(same) {
        let Some(first) = group.first() else { continue };
        let mut names: Vec<String> = group.iter().take(SHOWN).map(|finding| name(&finding.entity)).collect();
        if group.len() > SHOWN {
            names.push(format!("and {} more (--json names all)", group.len() - SHOWN));
        }
        let width = 14;
        let _ = writeln!(out, "  {:<12}{}", first.code.name, wrapped(&names.join(", "), width));
        let _ = writeln!(out, "{:width$}{}", "", wrapped(&first.what, width));
        let _ = writeln!(out, "{:width$}fix: {}", "", wrapped(&first.fix, width + 5));
    }
}

fn name(entity: &Entity) -> String {
    match &entity.vhost {
        Some(vhost) if entity.kind == "vhost" => format!("vhost '{vhost}'"),
        Some(vhost) => format!("{} '{}' in vhost '{vhost}'", entity.kind, entity.name),
        None => format!("{} '{}'", entity.kind, entity.name),
    }
}

/// A text in lines, of which all but the first are indented.
fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut column = indent;
    for word in text.split_whitespace() {
        let long = word.chars().count();
        if column > indent && column + 1 + long > WIDTH {
            let _ = write!(out, "\n{:indent$}", "");
            column = indent;
        } else if column > indent {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += long;
    }
    out
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A size for people.
pub(super) fn bytes(size: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = size as f64;
    let mut unit = "bytes";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "bytes" { format!("{size} bytes") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_lines_are_for_people() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1024), bytes(3 << 20)],
            ["0 bytes", "1023 bytes", "1.0 KiB", "3.0 MiB"]
        );
        let lines = wrapped(&"word ".repeat(50), 10);
        assert!(lines.lines().all(|line| line.chars().count() <= WIDTH), "{lines}");
        assert!(lines.lines().skip(1).all(|line| line.starts_with("          word")), "{lines}");
    }
}
