//! `nats-bridge failover`: a broker is lost for good.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Control, Failure, request};
use crate::control_api::{FailoverQueue, FailoverReport};

/// Arguments of `failover`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nats-bridge failover --lost nats --execute --reason 'the disk of nats-1 is gone'\n  nats-bridge failover --lost rabbit    # only looks: what would be moved, and what cannot be\n\nSafe to repeat: it goes on where it stopped.\n\nExit codes: 0 done, or looked at; 1 refused, or done with copies left over or messages without a copy; 2 no sidecar answers, or it stopped."
)]
pub struct FailoverArgs {
    /// The broker that will not come back with what it held.
    #[arg(long, value_enum)]
    pub lost: Lost,
    /// Do it. Without it, only what it would do is printed.
    #[arg(long)]
    pub execute: bool,
    /// Although the broker answers.
    #[arg(long)]
    pub force: bool,
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// A broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lost {
    /// NATS: RabbitMQ gets everything.
    Nats,
    /// RabbitMQ: NATS gets everything, and there is no way back. Refused in `observe`, where NATS has no copies.
    Rabbit,
}

/// How often the sidecar is asked how far it is.
const EVERY: Duration = Duration::from_millis(200);

/// Gives a broker up, and waits until the other one has everything.
///
/// # Errors
/// `refused` when the sidecar says no, or not everything could be saved; `cannot_run` when it cannot be reached, or stopped.
pub async fn run(args: FailoverArgs) -> Result<(), Failure> {
    let FailoverArgs { lost, execute, force, reason, control } = &args;
    #[derive(Serialize)]
    struct Body<'a> {
        lost: Lost,
        execute: bool,
        force: bool,
        by: &'a str,
        reason: &'a str,
    }
    let by = request::by(control);
    let body = Body { lost: *lost, execute: *execute, force: *force, by: &by, reason };
    let mut report: FailoverReport = request::begin(control, "/failover", &body).await?;
    let bar = request::bar(control.json, "replaying");
    while report.running {
        bar.set_length(report.copies);
        bar.set_position(report.replayed + report.not_needed + report.left);
        tokio::time::sleep(EVERY).await;
        report = request::later(control, "/failover").await?;
    }
    bar.finish_and_clear();
    match control.json {
        true => request::print_json(&report)?,
        false => request::print(&text(&report)),
    }
    match &report.error {
        Some(error) => Err(Failure::cannot_run(format!("it stopped: {error}; the same command goes on from here"))),
        None if report.executed && report.left + report.no_copy > 0 => {
            let FailoverReport { left, no_copy, .. } = report;
            Err(Failure::refused(format!("{no_copy} messages had no copy, and {left} copies have no queue to go to")))
        }
        None => Ok(()),
    }
}

fn text(report: &FailoverReport) -> String {
    let FailoverReport { lost, copies, replayed, not_needed, left, no_copy, epoch, .. } = report;
    if !report.executed {
        return format!(
            "lost:     {lost}\ncopies:   {copies} on {}\nno copy:  {no_copy} messages, which would be lost\n{}nothing was changed; --execute does it\n",
            lost.other(),
            besides(report)
        );
    }
    let state =
        if report.done { format!("{} has everything, epoch {epoch}", lost.other()) } else { "stopped".to_owned() };
    format!(
        "lost:     {lost}\nstate:    {state}\nreplayed: {replayed} of {copies} copies, {not_needed} not needed, {left} left over\nno copy:  {no_copy} messages\n{}",
        besides(report)
    )
}

/// What a lost RabbitMQ held, by queue, and what JetStream does not have.
fn besides(report: &FailoverReport) -> String {
    let mut out = String::new();
    if report.unmapped > 0 {
        let _ = writeln!(
            out,
            "unmapped: {} exchanges, queues or bindings that nats does not have (`status`): of what they held there are no copies",
            report.unmapped
        );
    }
    if let Some(age) = report.held_before_s {
        let (held, beyond) = report.queues.iter().fold((0, 0), |(sum, beyond), queue| {
            let held = queue.held.unwrap_or(0);
            (sum + held, beyond + held.saturating_sub(queue.copies))
        });
        let more =
            if beyond > 0 { format!(": {beyond} more than there are copies, which are lost") } else { String::new() };
        let _ = writeln!(out, "held:     {held} messages when {} last answered, {age} s before{more}", report.lost);
    }
    if report.queues.is_empty() {
        return out;
    }
    let seen = if report.held_before_s.is_some() { format!("  {:>9}", "held") } else { String::new() };
    let _ = writeln!(out, "{:<36}  {:>9}{seen}", "queue", "copies");
    for FailoverQueue { vhost, name, copies, held } in &report.queues {
        let held = held.map_or(String::new(), |held| format!("  {held:>9}"));
        let _ = writeln!(out, "{:<36}  {copies:>9}{held}", format!("{vhost} {name}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_says_that_nothing_was_changed() {
        let report = FailoverReport { copies: 3, no_copy: 1, ..FailoverReport::default() };
        let text = text(&report);
        assert!(text.contains("copies:   3 on rabbit") && text.contains("nothing was changed"), "{text}");
    }

    #[test]
    fn of_a_lost_rabbitmq_each_queue_is_named_with_its_copies_and_what_it_held() {
        let queue = FailoverQueue { vhost: "/".into(), name: "orders".into(), copies: 3, held: Some(5) };
        let (lost, held_before_s) = (crate::ownership::Side::Rabbit, Some(4));
        let report =
            FailoverReport { lost, copies: 3, held_before_s, unmapped: 2, queues: vec![queue], ..Default::default() };
        let text = text(&report);
        for part in ["copies:   3 on nats", "unmapped: 2 ", "4 s before: 2 more ", "/ orders  "] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.lines().any(|line| line.split_whitespace().eq(["/", "orders", "3", "5"])), "{text}");
    }
}
