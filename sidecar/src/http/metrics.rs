//! `/metrics`: what the crates count, and the cutover as gauges.
//!
//! Labels are bounded: no queue, vhost, user or routing key is one.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use crate::control_api::{BackfillProgress, Faults, ParityCounts, Phase, Rehearsal, StandbyStatus, Status, Verdict};

/// Of Prometheus' text format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Makes Prometheus the recorder of this process.
///
/// # Errors
/// When the process has a recorder already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    describe();
    Ok(handle)
}

/// Trims what histograms keep until the task is aborted; without it they grow.
pub(super) async fn keep_up(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        handle.run_upkeep();
    }
}

/// Sets the gauges of the cutover to this status.
pub(super) fn observe(status: &Status) {
    gauge!("natsbridge_cutover_weight_percent").set(status.weight_percent.percent());
    gauge!("natsbridge_cutover_epoch").set(status.epoch as f64);
    for phase in [Phase::Observe, Phase::Shadow, Phase::Canary, Phase::Cutover, Phase::Native] {
        let now = if phase == status.phase { 1.0 } else { 0.0 };
        gauge!("natsbridge_cutover_phase", "phase" => phase.to_string()).set(now);
    }
    for (name, side) in [("rabbit", &status.sides.rabbit), ("nats", &status.sides.nats)] {
        gauge!("natsbridge_side_up", "side" => name).set(if side.connected { 1.0 } else { 0.0 });
        gauge!("natsbridge_side_unsettled", "side" => name).set(side.unsettled as f64);
        counter!("natsbridge_side_published_total", "side" => name).absolute(side.published);
        counter!("natsbridge_side_delivered_total", "side" => name).absolute(side.delivered);
    }
    let ready = |of: &dyn Fn(&crate::control_api::QueueStatus) -> Option<u64>| -> f64 {
        status.queues.iter().filter_map(of).sum::<u64>() as f64
    };
    gauge!("natsbridge_ready_messages", "side" => "rabbit").set(ready(&|queue| queue.rabbit_ready));
    gauge!("natsbridge_ready_messages", "side" => "nats").set(ready(&|queue| queue.nats_ready));
    gauge!("natsbridge_held_deliveries").set(ready(&|queue| Some(queue.held)));
    gauge!("natsbridge_queues").set(status.queues.len() as f64);
    gauge!("natsbridge_unmapped").set(status.unmapped.len() as f64);
    gauge!("natsbridge_standby_lag").set(status.standby_lag as f64);
    for (owner, standby) in [("nats", &status.standby), ("rabbit", &status.standby_rabbit)] {
        let none = StandbyStatus::default();
        let standby = match standby {
            Some(standby) => standby,
            // None are needed any more.
            None if status.phase == Phase::Native => &none,
            None => continue,
        };
        gauge!("natsbridge_standby_copies", "owner" => owner).set(standby.copies as f64);
        gauge!("natsbridge_standby_copies_lag", "owner" => owner).set(standby.lag as f64);
        gauge!("natsbridge_standby_no_copy", "owner" => owner).set(standby.no_copy as f64);
    }
    let rehearsed = status.rehearsal.as_ref().is_some_and(Rehearsal::counts);
    gauge!("natsbridge_rollback_rehearsed").set(if rehearsed { 1.0 } else { 0.0 });
    if let Some(backfill) = &status.backfill {
        gauge!("natsbridge_backfill_running").set(if backfill.running { 1.0 } else { 0.0 });
        let BackfillProgress { held, read, copied, had, .. } = backfill;
        for (state, count) in [("held", held), ("read", read), ("copied", copied), ("had", had)] {
            gauge!("natsbridge_backfill_messages", "state" => state).set(*count as f64);
        }
    }
    for (fault, count) in Faults::NAMES.into_iter().zip(status.faults.counts()) {
        gauge!("natsbridge_nats_faults", "fault" => fault).set(count as f64);
    }
    for warning in &status.warnings {
        counter!("natsbridge_warnings_total", "code" => warning.code.clone()).absolute(warning.count);
    }
    let sum = |of: &dyn Fn(&ParityCounts) -> u64| status.parity.iter().map(|queue| of(&queue.counts)).sum::<u64>();
    for (result, count) in [
        ("match", sum(&|counts| counts.matched)),
        ("mismatch_payload", sum(&|counts| counts.mismatched_payload)),
        ("mismatch_properties", sum(&|counts| counts.mismatched_properties)),
        ("mismatch_routing", sum(&|counts| counts.mismatched_routing)),
        ("extra", sum(&|counts| counts.extra)),
        ("unverified", sum(&|counts| counts.unverified)),
    ] {
        counter!("natsbridge_shadow_compared_total", "result" => result).absolute(count);
    }
    // Not a counter: a copy that comes late takes one away.
    gauge!("natsbridge_shadow_missing").set(sum(&|counts| counts.missing) as f64);
    gauge!("natsbridge_shadow_pending").set(sum(&|counts| counts.pending) as f64);
    counter!("natsbridge_shadow_late_total").absolute(sum(&|counts| counts.late));
}

/// Sets the gauges of the gate to this verdict.
pub(super) fn observe_gate(verdict: &Verdict) {
    gauge!("natsbridge_gate_may_go_on").set(if verdict.may_go_on { 1.0 } else { 0.0 });
    gauge!("natsbridge_gate_reasons").set(verdict.against().count() as f64);
}

fn describe() {
    describe_gauge!("natsbridge_sidecar_leads", "Whether this sidecar leads those of its NATS account");
    describe_gauge!(
        "natsbridge_passed_on_connections",
        "AMQP connections that are passed on to the sidecar that leads, or wait for one"
    );
    describe_counter!("natsbridge_passed_on_refused_total", "AMQP connections that could not be passed on, by reason");
    describe_gauge!("natsbridge_gate_may_go_on", "Whether the gate lets the cutover go on");
    describe_gauge!("natsbridge_gate_reasons", "Reasons of the gate that block or wait");
    describe_gauge!("natsbridge_nats_faults", "Messages of JetStream that were not as they should be, by fault");
    describe_gauge!("natsbridge_integrity_messages", "Messages of JetStream that are remembered");
    describe_counter!(
        "natsbridge_integrity_lookups_total",
        "Questions to JetStream whether its streams still have the messages that are remembered"
    );
    describe_gauge!("natsbridge_spans_waiting", "Spans that wait to be sent to the collector");
    describe_counter!("natsbridge_spans_exported_total", "Spans that the collector took");
    describe_counter!("natsbridge_spans_dropped_total", "Spans that the collector does not have, by reason");
    describe_counter!("natsbridge_automatic_rollbacks_total", "Rollbacks that the sidecar made by itself");
    describe_gauge!("natsbridge_cutover_weight_percent", "Share of the ordering keys that NATS owns");
    describe_gauge!("natsbridge_cutover_epoch", "Grows by one with every change of phase or weight");
    describe_gauge!("natsbridge_cutover_phase", "1 for the phase in force");
    describe_gauge!("natsbridge_side_up", "Whether a broker answers");
    describe_gauge!("natsbridge_side_unsettled", "Deliveries that are not settled");
    describe_counter!("natsbridge_side_published_total", "Messages a broker took as their owner");
    describe_counter!("natsbridge_side_delivered_total", "Messages of a broker that were delivered");
    describe_gauge!("natsbridge_ready_messages", "Messages that are ready for delivery, over all queues");
    describe_gauge!("natsbridge_held_deliveries", "Deliveries that wait for the fence of a change of weight");
    describe_gauge!("natsbridge_queues", "Queues that the sidecar knows");
    describe_gauge!("natsbridge_unmapped", "Exchanges, queues and bindings that JetStream does not have");
    describe_gauge!("natsbridge_rollback_rehearsed", "Whether a rehearsed rollback has passed and counts");
    describe_gauge!("natsbridge_backfill_running", "Whether the backlog from before shadow gets its copies now");
    describe_gauge!("natsbridge_backfill_messages", "Messages of the last backfill: held, read, copied, had a copy");
    describe_gauge!("natsbridge_shadow_heard", "Deliveries and settlements that the comparison has yet to take in");
    describe_gauge!("natsbridge_standby_lag", "Copies that nothing has been compared with yet");
    describe_counter!("natsbridge_warnings_total", "Warnings by code");
    describe_counter!("natsbridge_shadow_compared_total", "Messages by the class their comparison ended in");
    describe_gauge!("natsbridge_shadow_missing", "Deliveries of RabbitMQ whose copy did not come");
    describe_gauge!("natsbridge_shadow_pending", "Copies and deliveries that wait for their other half");
    describe_counter!("natsbridge_shadow_late_total", "Messages compared after the window");
}
