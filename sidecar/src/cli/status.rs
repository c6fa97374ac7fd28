//! `nats-bridge status`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use clap::Args;

use super::{Control, Failure, request};
use crate::control_api::{
    BackfillProgress, DETACHED, FenceState, GIVEN_UP, ParityCounts, QueueStatus, Side, SidecarStatus, Status,
};

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nats-bridge status --watch 2")]
pub struct StatusArgs {
    /// Print again every so many seconds until interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub watch: Option<u64>,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Prints a sidecar's status.
///
/// # Errors
/// `refused` when the sidecar says no, `cannot_run` when it cannot be reached.
pub async fn run(args: StatusArgs) -> Result<(), Failure> {
    loop {
        let status: Status = request::get(&args.control, "/status").await?;
        if args.control.json {
            request::print_json(&status)?;
        } else {
            request::print(&text(&status));
        }
        let Some(seconds) = args.watch else { return Ok(()) };
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        if !args.control.json {
            request::print("\n");
        }
    }
}

/// The status for people.
fn text(status: &Status) -> String {
    let mut out = String::new();
    let draining = if status.draining { ", shutting down" } else { "" };
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{:<13}{value}", format!("{name}:"));
    };
    line("phase", format!("{}{draining}", status.phase));
    line("weight", format!("{} % of the ordering keys are owned by nats", status.weight_percent));
    let why = if status.reason.is_empty() { String::new() } else { format!(" ({})", status.reason) };
    line("epoch", format!("{}, since {} by {}{why}", status.epoch, status.at, status.by));
    line("rabbit", side(&status.sides.rabbit));
    line("nats", side(&status.sides.nats));
    line("connections", status.connections.to_string());
    for sidecar in &status.sidecars {
        let what = if sidecar.leads { "leads" } else { "follows" };
        let epoch = if sidecar.epoch == status.epoch { "" } else { ", NOT THE ONE IN FORCE" };
        let SidecarStatus { host, pid, epoch: knows, connections, http, .. } = sidecar;
        line(
            "sidecar",
            format!("process {pid} on {host} {what}, epoch {knows}{epoch}, {connections} connections, http {http}"),
        );
    }
    if let Some(why) = &status.rolled_back {
        line("ROLLED BACK", format!("by itself: {why}"));
    }
    if let Some(faults) = status.faults.words() {
        line("FAULTS", format!("messages of nats: {faults}"));
    }
    for (owner, keeper, standby) in [("nats", "rabbit", &status.standby), ("rabbit", "nats", &status.standby_rabbit)] {
        let Some(standby) = standby else { continue };
        let of = format!("{} on {keeper} of what {owner} owns, lag {}", standby.copies, standby.lag);
        let away = if standby.away { format!("; {} TAKES NONE NOW", keeper.to_uppercase()) } else { String::new() };
        line("copies", format!("{of}{away}"));
        if standby.no_copy_total > 0 {
            let why: Vec<String> = standby.no_copy_by.iter().map(|(why, count)| format!("{why} {count}")).collect();
            let (now, all) = (standby.no_copy, standby.no_copy_total);
            line("NO COPY", format!("{now} messages that {owner} may hold; {all} so far: {}", why.join(", ")));
        }
    }
    if let Some(rehearsal) = &status.rehearsal {
        line("rehearsal", format!("{}, {} by {}", rehearsal.verdict(), rehearsal.at, rehearsal.by));
    }
    if let Some(backfill) = &status.backfill {
        line("backfill", progress(backfill));
    }
    if status.standby_lag > 0 {
        line("standby lag", format!("{} copies", status.standby_lag));
    }
    if !status.queues.is_empty() || !status.parity.is_empty() {
        let _ = write!(out, "\n{}", queues(status));
    }
    if !status.unmapped.is_empty() {
        out.push_str("\nJetStream does not have (a weight above 0 is refused until it has):\n");
        for unmapped in &status.unmapped {
            let _ = writeln!(out, "  {} {} in {}: {}", unmapped.kind, unmapped.name, unmapped.vhost, unmapped.reason);
        }
    }
    if !status.warnings.is_empty() {
        out.push_str("\nwarnings:\n");
        for warning in &status.warnings {
            let _ = writeln!(out, "  {} ({} times): {}", warning.code, warning.count, warning.text);
        }
    }
    out
}

fn progress(backfill: &BackfillProgress) -> String {
    let BackfillProgress { held, read, copied, had, queues, queues_done, queues_refused, at, .. } = backfill;
    let state = match (&backfill.error, backfill.running, backfill.done) {
        (Some(error), _, _) => format!("STOPPED: {error}"),
        (None, true, _) => "running".to_owned(),
        (None, false, true) => "done".to_owned(),
        (None, false, false) => "not done".to_owned(),
    };
    let alone = if *queues_refused > 0 { format!(", {queues_refused} left alone") } else { String::new() };
    format!(
        "{state}, since {at}: {read} of {held} messages read, {copied} copied, {had} had one; {queues_done} of {queues} queues{alone}"
    )
}

fn side(side: &Side) -> String {
    let state = match (&side.error, side.connected) {
        (_, true) => "connected".to_owned(),
        // On purpose, and for good.
        (Some(error), false) if error == DETACHED || error == GIVEN_UP => error.clone(),
        (Some(error), false) => format!("NOT CONNECTED: {error}"),
        (None, false) => "NOT CONNECTED".to_owned(),
    };
    let Side { url, published, delivered, unsettled, .. } = side;
    format!("{state}, {url}, published {published}, delivered {delivered}, unsettled {unsettled}")
}

/// One row for each queue that has a state or a comparison.
fn queues(status: &Status) -> String {
    type Row<'a> = (Option<&'a QueueStatus>, Option<&'a ParityCounts>);
    let mut rows: BTreeMap<(&str, &str), Row> = BTreeMap::new();
    for queue in &status.queues {
        rows.entry((&queue.vhost, &queue.name)).or_default().0 = Some(queue);
    }
    for queue in &status.parity {
        rows.entry((&queue.vhost, &queue.queue)).or_default().1 = Some(&queue.counts);
    }
    let mut table = vec![
        [
            "vhost",
            "queue",
            "rabbit",
            "nats",
            "unsettled",
            "held",
            "fence",
            "match",
            "mismatch",
            "missing",
            "extra",
            "unverified",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for ((vhost, name), (queue, parity)) in rows {
        let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let of_queue = |of: fn(&QueueStatus) -> u64| count(queue.map(of));
        let of_parity = |of: fn(&ParityCounts) -> u64| count(parity.map(of));
        table.push(vec![
            vhost.to_owned(),
            name.to_owned(),
            count(queue.and_then(|queue| queue.rabbit_ready)),
            count(queue.and_then(|queue| queue.nats_ready)),
            of_queue(|queue| queue.rabbit_unsettled + queue.nats_unsettled),
            of_queue(|queue| queue.held),
            queue.map_or("-", |queue| fence(queue.fence)).to_owned(),
            of_parity(|counts| counts.matched),
            of_parity(|counts| counts.mismatched_payload + counts.mismatched_properties + counts.mismatched_routing),
            of_parity(|counts| counts.missing),
            of_parity(|counts| counts.extra),
            of_parity(|counts| counts.unverified),
        ]);
    }
    aligned(&table)
}

fn fence(state: FenceState) -> &'static str {
    match state {
        FenceState::None => "-",
        FenceState::Waiting => "waiting",
        FenceState::Sent => "sent",
        FenceState::Passed => "passed",
        FenceState::TimedOut => "TIMED OUT",
    }
}

/// Columns as wide as their widest cell: names to the left, numbers to the right.
fn aligned(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in table {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if column < 2 { write!(line, "{cell:<width$}  ") } else { write!(line, "{cell:>width$}  ") };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rabbitmq_that_was_let_go_of_is_detached_and_not_broken() {
        let rabbit = |error: &str| side(&Side { error: Some(error.to_owned()), ..Side::default() });
        assert!(rabbit("detached").starts_with("detached, "), "{}", rabbit("detached"));
        assert!(rabbit("refused").starts_with("NOT CONNECTED: refused, "), "{}", rabbit("refused"));
    }

    #[test]
    fn sidecars_are_listed_and_one_that_is_behind_says_so() {
        let json = r#"{"phase":"shadow","weight_percent":0,"epoch":3,"by":"","reason":"","at":"","draining":false,"connections":2,
            "standby_lag":0,"sides":{"rabbit":{"connected":true,"url":"","published":0,"delivered":0,"unsettled":0},
            "nats":{"connected":true,"url":"","published":0,"delivered":0,"unsettled":0}},"queues":[],"parity":[],"unmapped":[],"warnings":[],
            "sidecars":[{"host":"a","pid":7,"since":"","leads":true,"epoch":3,"connections":2,"amqp":"a:1","http":"a:2"},
                        {"host":"b","pid":8,"since":"","leads":false,"epoch":2,"connections":1,"amqp":"b:1","http":"b:2"}]}"#;
        let status: Status = serde_json::from_str(json).expect("a valid status");
        let text = text(&status);
        assert!(text.contains("sidecar:     process 7 on a leads, epoch 3, 2 connections, http a:2\n"), "{text}");
        assert!(
            text.contains("process 8 on b follows, epoch 2, NOT THE ONE IN FORCE, 1 connections, http b:2\n"),
            "{text}"
        );
    }

    #[test]
    fn a_status_reads_as_a_table_of_queues() {
        let json = r#"{"phase":"canary","weight_percent":5,"epoch":3,"by":"ann","reason":"try","at":"2030-01-02T03:04:05Z",
            "draining":false,"connections":2,"standby_lag":0,
            "sides":{"rabbit":{"connected":true,"url":"amqp://r:1","published":95,"delivered":90,"unsettled":1},
                     "nats":{"connected":false,"url":"nats://n:2","error":"refused","published":5,"delivered":5,"unsettled":0}},
            "queues":[{"vhost":"/","name":"orders","rabbit_ready":4,"nats_ready":null,"rabbit_unsettled":1,"nats_unsettled":2,
                       "held":7,"fence":"sent"}],
            "parity":[{"vhost":"/","queue":"orders","matched":10,"mismatched_payload":1,"mismatched_properties":1,
                       "mismatched_routing":0,"missing":2,"extra":0,"late":0,"unverified":3,"pending":0}],
            "unmapped":[{"vhost":"/","kind":"queue","name":"old","reason":"x-max-priority"}],
            "warnings":[{"code":"hold_timed_out","count":1,"text":"orders"}]}"#;
        let expected = "\
phase:       canary
weight:      5 % of the ordering keys are owned by nats
epoch:       3, since 2030-01-02T03:04:05Z by ann (try)
rabbit:      connected, amqp://r:1, published 95, delivered 90, unsettled 1
nats:        NOT CONNECTED: refused, nats://n:2, published 5, delivered 5, unsettled 0
connections: 2

vhost  queue   rabbit  nats  unsettled  held  fence  match  mismatch  missing  extra  unverified
/      orders       4     -          3     7   sent     10         2        2      0           3

JetStream does not have (a weight above 0 is refused until it has):
  queue old in /: x-max-priority

warnings:
  hold_timed_out (1 times): orders
";
        let status: Status = serde_json::from_str(json).expect("a valid status");
        assert_eq!(text(&status), expected);
    }
}
