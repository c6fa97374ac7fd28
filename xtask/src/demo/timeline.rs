//! The applications' records, step by step: how many messages, how fast, the longest pause. Pure, like the verdict.

use std::collections::HashMap;

use serde::Serialize;

use super::ledger::{Event, Ledger};
use super::topology::Queue;

/// When a step began and ended, on the wall clock, in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The step.
    pub name: String,
    /// Its first moment.
    pub from_unix_ns: u64,
    /// The moment after its last.
    pub until_unix_ns: u64,
}

/// One step, as the applications saw it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The step.
    pub step: String,
    /// Messages published in it.
    pub messages: u64,
    /// Deliveries of those messages.
    pub deliveries: u64,
    /// Publish to delivery, median, in milliseconds.
    pub p50_ms: f64,
    /// Publish to delivery, 99th percentile, in milliseconds.
    pub p99_ms: f64,
    /// The longest time without a delivery on one queue, ended in this step, in milliseconds.
    pub longest_pause_ms: f64,
}

/// Sorts what happened into the steps. Latencies belong to the step in which the message was published first.
pub fn rows(ledgers: &[Ledger], queues: &[Queue], marks: &[Mark]) -> Vec<Row> {
    let Some(ahead) = wall_clock_ahead(ledgers) else { return Vec::new() };
    let step_of = |t: u64| {
        let unix = i128::from(t) + ahead;
        marks.iter().position(|mark| (i128::from(mark.from_unix_ns)..i128::from(mark.until_unix_ns)).contains(&unix))
    };
    let mut published: HashMap<&str, u64> = HashMap::new();
    let mut last_published: Vec<u64> = vec![0; queues.len()];
    let mut messages = vec![0; marks.len()];
    for record in ledgers.iter().flat_map(|ledger| &ledger.records) {
        if let Event::Published { id, exchange, key, attempt: 1, .. } = &record.event {
            published.insert(id, record.t);
            if let Some(step) = step_of(record.t) {
                messages[step] += 1;
            }
            for (queue, last) in queues.iter().zip(&mut last_published) {
                if queue.takes(exchange, key) {
                    *last = record.t.max(*last);
                }
            }
        }
    }
    let mut latencies: Vec<Vec<u64>> = vec![Vec::new(); marks.len()];
    let mut pauses = vec![0; marks.len()];
    for (queue, last_published) in queues.iter().zip(last_published) {
        let mut times = Vec::new();
        for record in ledgers.iter().flat_map(|ledger| &ledger.records) {
            if let Event::Delivered { queue: from, id, .. } = &record.event
                && *from == queue.name
            {
                times.push(record.t);
                if let Some(published) = published.get(id.as_str())
                    && let Some(step) = step_of(*published)
                {
                    latencies[step].push(record.t.saturating_sub(*published));
                }
            }
        }
        times.sort_unstable();
        for pair in times.windows(2) {
            if pair[0] <= last_published
                && let Some(step) = step_of(pair[1])
            {
                pauses[step] = pauses[step].max(pair[1] - pair[0]);
            }
        }
    }
    marks
        .iter()
        .zip(messages)
        .zip(latencies.iter_mut().zip(pauses))
        .map(|((mark, messages), (latencies, pause))| {
            latencies.sort_unstable();
            Row {
                step: mark.name.clone(),
                messages,
                deliveries: latencies.len() as u64,
                p50_ms: percentile(latencies, 50),
                p99_ms: percentile(latencies, 99),
                longest_pause_ms: milliseconds(pause),
            }
        })
        .collect()
}

/// Nanoseconds in milliseconds.
pub fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// How far the wall clock is ahead of the applications' clock: both were read at one moment when an application began.
fn wall_clock_ahead(ledgers: &[Ledger]) -> Option<i128> {
    ledgers.iter().flat_map(|ledger| &ledger.records).find_map(|record| match &record.event {
        Event::Started { unix_ns, .. } => Some(i128::from(*unix_ns) - i128::from(record.t)),
        _ => None,
    })
}

fn percentile(sorted: &[u64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).map_or(0.0, |ns| milliseconds(*ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::ledger::{Outcome, Record};
    use crate::demo::topology::{EMAILS, queues};

    #[test]
    fn each_message_counts_in_the_step_in_which_it_was_published() {
        let ms = 1_000_000;
        let mut records =
            vec![Record { t: 0, event: Event::Started { app: "emails".to_owned(), unix_ns: 7_000 * ms } }];
        // One message a millisecond; the first hundred take 2 ms, the others 30 ms.
        for number in 0..200_u64 {
            let id = format!("e-{number}");
            let took = if number < 100 { 2 } else { 30 };
            let (exchange, key) = (String::new(), EMAILS.to_owned());
            let published = Event::Published { id: id.clone(), exchange, key: key.clone(), seq: number, attempt: 1 };
            records.push(Record { t: number * ms, event: published });
            let queue = EMAILS.to_owned();
            let delivered = Event::Delivered {
                queue,
                id,
                key,
                seq: number,
                redelivered: false,
                intact: true,
                outcome: Outcome::Ack,
                died: None,
            };
            records.push(Record { t: (number + took) * ms, event: delivered });
        }
        let ledgers = [Ledger { app: "emails".to_owned(), killed: false, records }];
        let mark = |name: &str, from: u64, until: u64| Mark {
            name: name.to_owned(),
            from_unix_ns: (7_000 + from) * ms,
            until_unix_ns: (7_000 + until) * ms,
        };
        let rows = rows(&ledgers, &queues(), &[mark("first", 0, 100), mark("second", 100, 300)]);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].messages, rows[0].deliveries, rows[0].p50_ms, rows[0].p99_ms), (100, 100, 2.0, 2.0));
        assert_eq!((rows[1].messages, rows[1].deliveries, rows[1].p50_ms), (100, 100, 30.0));
        // From the last fast delivery, at 101 ms, to the first slow one, at 130 ms.
        assert_eq!((rows[0].longest_pause_ms, rows[1].longest_pause_ms), (1.0, 29.0));
    }

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let ns: Vec<u64> = (1..=200).map(|n| n * 1_000_000).collect();
        assert_eq!((percentile(&ns, 50), percentile(&ns, 99)), (100.0, 198.0));
        assert_eq!((percentile(&ns[..1], 99), percentile(&[], 50)), (1.0, 0.0));
    }
}
