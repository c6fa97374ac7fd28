//! What is reported of a run, and of all.

use std::collections::HashMap;

use serde::Serialize;

use super::schedule::Kind;
use super::topology::BRIEF_MS;
use crate::demo::ledger::{Event, Ledger};
use crate::demo::verdict::{Missing, Repeat, Verdict};

/// One run.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The seed that repeats its plan.
    pub seed: u64,
    /// Changes of phase or weight that were made.
    pub changes: u64,
    /// Changes that were not: refused, or the sidecar was killed under them.
    pub refused: Vec<String>,
    /// What was killed, and when.
    pub kills: Vec<String>,
    /// Messages confirmed a second, from the first to the last publish.
    pub rate: f64,
    /// Messages published a second while nothing was away.
    pub undisturbed: f64,
    /// Messages published in the busiest second.
    pub peak: u64,
    /// The counts from the applications' files.
    pub verdict: Verdict,
    /// What nobody can know after the kills that there were; see [`nobody_knows`].
    pub unknown: u64,
    /// Faults of JetStream that the sidecar reported.
    pub faults: u64,
    /// From the start of the first program to the end of the last, in seconds.
    pub seconds: f64,
    /// What does not hold, in words.
    pub wrong: Vec<String>,
}

/// All runs.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether everything that was promised holds in every run.
    pub right: bool,
    /// Each run.
    pub runs: Vec<Row>,
}

impl Row {
    /// Nothing happened yet.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            changes: 0,
            refused: Vec::new(),
            kills: Vec::new(),
            rate: 0.0,
            undisturbed: 0.0,
            peak: 0,
            verdict: Verdict::default(),
            unknown: 0,
            faults: 0,
            seconds: 0.0,
            wrong: Vec::new(),
        }
    }

    /// How fast it was, also between these times, in nanoseconds since 1970.
    pub fn measure(&mut self, ledgers: &[Ledger], undisturbed: &[(u64, u64)]) {
        let mut calm = 0_u64;
        let (mut seconds, mut confirmed) = (HashMap::<u64, u64>::new(), 0_u64);
        let (mut first, mut last) = (u64::MAX, 0);
        for record in ledgers.iter().flat_map(|ledger| &ledger.records) {
            match &record.event {
                Event::Published { attempt: 1, .. } => {
                    (first, last) = (first.min(record.t), last.max(record.t));
                    *seconds.entry(record.t / 1_000_000_000).or_default() += 1;
                    calm += u64::from(undisturbed.iter().any(|(from, to)| (*from..*to).contains(&record.t)));
                }
                Event::Confirmed { .. } => confirmed += 1,
                _ => {}
            }
        }
        self.peak = seconds.into_values().max().unwrap_or(0);
        let long: u64 = undisturbed.iter().map(|(from, to)| to - from).sum();
        self.undisturbed = calm as f64 / (long.max(1) as f64 / 1e9);
        self.rate = confirmed as f64 / (last.saturating_sub(first).max(1) as f64 / 1e9);
    }

    /// It as a line of the table.
    pub fn line(&self) -> String {
        let Verdict { published, confirmed, delivered, lost, duplicated, reordered, .. } = &self.verdict;
        let Verdict { again_flagged, again_resent, dead_lettered, expired, requeued, .. } = &self.verdict;
        format!(
            "{:>6} {:>7} {published:>9} {confirmed:>9} {delivered:>9} {:>6.0} {:>6.0} {:>6} {requeued:>7} {dead_lettered:>6} {expired:>7} {again_flagged:>8} {again_resent:>7} {lost:>5} {duplicated:>5} {reordered:>5} {:>5} {:>5.0}  {}",
            self.seed,
            self.changes,
            self.rate,
            self.undisturbed,
            self.peak,
            self.unknown,
            self.seconds,
            self.kills.join(", ")
        )
    }
}

/// The heads of [`Row::line`].
pub fn heads() -> String {
    format!(
        "{:>6} {:>7} {:>9} {:>9} {:>9} {:>6} {:>6} {:>6} {:>7} {:>6} {:>7} {:>8} {:>7} {:>5} {:>5} {:>5} {:>5} {:>5}  kill -9",
        "seed",
        "changes",
        "published",
        "confirmed",
        "delivered",
        "/s",
        "/s up",
        "peak",
        "requeue",
        "dead",
        "expired",
        "flagged",
        "resent",
        "lost",
        "twice",
        "order",
        "open",
        "s"
    )
}

impl Report {
    /// The end of the table.
    pub fn text(&self) -> String {
        let sum = |count: fn(&Row) -> u64| self.runs.iter().map(count).sum::<u64>();
        let kills =
            |name: &str| self.runs.iter().flat_map(|run| &run.kills).filter(|kill| kill.starts_with(name)).count();
        let all: usize = self.runs.iter().map(|run| run.kills.len()).sum();
        let servers = [kills("RabbitMQ"), kills("nats-server"), kills("sidecar")];
        let mut text = format!(
            "\n{} runs: {} changes of weight or phase, {all} kills (RabbitMQ {}, nats-server {}, sidecar {}, applications {})\n",
            self.runs.len(),
            sum(|run| run.changes),
            servers[0],
            servers[1],
            servers[2],
            all - servers.iter().sum::<usize>()
        );
        text.push_str(&format!(
            "published {}, confirmed {}, delivered {}, dead letters {}, lost {}, duplicated {}, reordered {}\n",
            sum(|run| run.verdict.published),
            sum(|run| run.verdict.confirmed),
            sum(|run| run.verdict.delivered),
            sum(|run| run.verdict.dead_lettered),
            sum(|run| run.verdict.lost),
            sum(|run| run.verdict.duplicated),
            sum(|run| run.verdict.reordered),
        ));
        let own = sum(|run| run.unknown);
        if own > 0 {
            text.push_str(&format!(
                "{own} dead letters that RabbitMQ itself had on their way when it was killed, and deliveries whose flag nobody could know (docs/benchmarks.md)\n"
            ));
        }
        for run in self.runs.iter().filter(|run| !run.wrong.is_empty()) {
            for wrong in &run.wrong {
                text.push_str(&format!("wrong: seed {}: {wrong}\n", run.seed));
            }
            for sample in run.verdict.samples.iter().filter(|sample| !sample.starts_with("dropped")) {
                text.push_str(&format!("  {sample}\n"));
            }
        }
        let up: Vec<f64> = self.runs.iter().map(|run| run.undisturbed).collect();
        let (least, most) = (up.iter().copied().fold(f64::INFINITY, f64::min), up.iter().copied().fold(0.0, f64::max));
        let mean = up.iter().sum::<f64>() / up.len().max(1) as f64;
        text.push_str(&format!("messages a second while nothing was away: {mean:.0} ({least:.0} to {most:.0})\n"));
        if self.right {
            text.push_str("right: nothing was lost\n");
        }
        text
    }
}

/// Takes out what nobody can know after some kills, and answers how much of it there was:
///
/// - RabbitMQ by itself, without a sidecar, loses dead letters that are on their way when it is killed (the consumer rejected the
///   message, or it expired, in the seconds before), and delivers again without its flag what it delivered in the seconds before: the
///   mark was not on disk yet.
/// - A nats-server that is killed forgets the delivery counts of the last moments; the sidecar remembers them. When both are killed at the
///   same time nobody does (decision 17).
pub fn nobody_knows(verdict: &mut Verdict, kills: &[(Kind, u64)]) -> u64 {
    let of = |kind| kills.iter().filter(move |(killed, _)| *killed == kind).map(|(_, at)| *at);
    let within = |from: u64, to: u64, kill: u64, ns: u64| from <= kill && kill <= to + ns;
    let soon = |from, to, kill| within(from, to, kill, SOON_NS);
    let lost = |missing: &Missing| {
        let (from, to) = match missing.rejected {
            Some(at) => (at, at),
            None if missing.queue == "brief" => (missing.published, missing.published + 2 * BRIEF_MS * 1_000_000),
            None => return false,
        };
        of(Kind::Rabbit).any(|kill| within(from, to, kill, UNWRITTEN_NS))
    };
    let forgotten = |Repeat { published, before, again }: &Repeat| {
        let both =
            |nats: u64| of(Kind::Sidecar).any(|sidecar| sidecar < *again && sidecar.abs_diff(nats) < TOGETHER_NS);
        // A dead letter may have died twice: it was stored, and the message that it was made of still there after the kill.
        let from = published.unwrap_or(*before);
        of(Kind::Rabbit).any(|kill| kill < *again && soon(from, *before, kill))
            || of(Kind::Nats)
                .any(|kill| kill < *again && soon(before.saturating_sub(ON_ITS_WAY_NS), *before, kill) && both(kill))
    };
    let was = (verdict.missing.len(), verdict.repeats.len());
    verdict.missing.retain(|missing| !lost(missing));
    verdict.repeats.retain(|repeat| !forgotten(repeat));
    let unknown = ((was.0 - verdict.missing.len()) as u64, (was.1 - verdict.repeats.len()) as u64);
    verdict.lost -= unknown.0;
    verdict.duplicated -= unknown.1;
    unknown.0 + unknown.1
}

/// How long before the kill a dead letter may have set out that nobody has taken from RabbitMQ yet. Nobody waits for its confirm, so that RabbitMQ
/// writes it when it comes to that: up to 4 s later where builds ran beside it.
const UNWRITTEN_NS: u64 = 5_000_000_000;

/// How long before the kill a delivery may have been made.
const SOON_NS: u64 = 2_000_000_000;

/// How long what nats-server had sent before its kill began may be on its way to an application.
const ON_ITS_WAY_NS: u64 = 100_000_000;

/// How close the kills of nats-server and the sidecar are, for one not to have told the other anything in between.
const TOGETHER_NS: u64 = 5_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dead_letter_that_was_on_its_way_when_rabbitmq_was_killed_is_its_own_loss() {
        const S: u64 = 1_000_000_000;
        let missing = |queue: &str, rejected| Missing {
            id: "x".to_owned(),
            queue: queue.to_owned(),
            published: 10 * S,
            rejected,
        };
        let lost = |missing: Missing, kills: &[u64]| {
            let mut verdict = Verdict { lost: 1, missing: vec![missing], ..Verdict::default() };
            let kills: Vec<_> = kills.iter().map(|at| (Kind::Rabbit, *at)).collect();
            let own = nobody_knows(&mut verdict, &kills);
            assert_eq!(own + verdict.lost, 1);
            verdict.lost
        };
        assert_eq!(lost(missing("jobs", Some(11 * S)), &[12 * S]), 0);
        assert_eq!(lost(missing("jobs", Some(11 * S)), &[10 * S]), 1, "rejected after it");
        assert_eq!(lost(missing("jobs", Some(11 * S)), &[17 * S]), 1, "long before it");
        assert_eq!(lost(missing("jobs", Some(11 * S)), &[]), 1);
        assert_eq!(lost(missing("brief", None), &[11 * S]), 0);
        assert_eq!(lost(missing("orders.eu", None), &[11 * S]), 1, "nothing expires there");
    }

    #[test]
    fn only_what_was_delivered_just_before_rabbitmq_was_killed_may_come_again_without_its_flag() {
        const S: u64 = 1_000_000_000;
        let judged = |before: u64, again: u64, kills: &[(Kind, u64)]| {
            let mut verdict = Verdict {
                duplicated: 1,
                repeats: vec![Repeat { published: None, before, again }],
                ..Verdict::default()
            };
            nobody_knows(&mut verdict, kills);
            verdict.duplicated
        };
        let twice = |before: u64, again: u64, kills: &[u64]| {
            let kills: Vec<_> = kills.iter().map(|at| (Kind::Rabbit, *at)).collect();
            judged(before, again, &kills)
        };
        assert_eq!(twice(10 * S, 20 * S, &[11 * S]), 0);
        assert_eq!(twice(10 * S, 20 * S, &[14 * S]), 1, "long before the kill");
        assert_eq!(twice(10 * S, 11 * S, &[12 * S]), 1, "both before it");
        assert_eq!(twice(10 * S, 20 * S, &[]), 1);
        // Of a nats-server the sidecar knows it, unless it is killed as well.
        assert_eq!(judged(10 * S, 20 * S, &[(Kind::Nats, 11 * S)]), 1);
        assert_eq!(judged(10 * S, 20 * S, &[(Kind::Nats, 11 * S), (Kind::Sidecar, 12 * S)]), 0);
        assert_eq!(judged(10 * S, 30 * S, &[(Kind::Nats, 11 * S), (Kind::Sidecar, 20 * S)]), 1);
        let both = [(Kind::Nats, 11 * S), (Kind::Sidecar, 12 * S)];
        assert_eq!(judged(11 * S + S / 20, 20 * S, &both), 0, "it was on its way");
        assert_eq!(judged(11 * S + S / 2, 20 * S, &both), 1, "nats-server was gone");
    }
}
