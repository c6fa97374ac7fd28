//! What the cutover tells an operator.

use std::sync::atomic::Ordering;
use std::time::Duration;

use amqp_compat::ReplyCode;
use tokio::time::{Instant as Deadline, timeout_at};

use super::Cutover;
use crate::control_api::{DETACHED, GIVEN_UP, Phase, QueueParity, QueueStatus, Side as SideStatus, Sides, Status};
use crate::fence::QueueName;
use crate::ownership::Side;

/// How long status waits for both brokers.
const STATUS: Duration = Duration::from_millis(1500);

impl Cutover {
    pub(super) async fn tell(&self) -> Status {
        let deadline = Deadline::now() + STATUS;
        let saved = self.state.lock().await.state.clone();
        let mut queues: Vec<QueueName> = self.shared.order().fences.queues().cloned().collect();
        queues.sort();
        let native = saved.phase == Phase::Native;
        // At once: a broker that does not answer must not use up the other one's time.
        let (rabbit_ready, nats_ready, mut rabbit, mut nats) = tokio::join!(
            async {
                if native || self.shared.is_lost(Side::Rabbit) {
                    vec![None; queues.len()]
                } else {
                    self.depths(&queues, Side::Rabbit, deadline).await
                }
            },
            async {
                if self.shared.nats_is_lost() {
                    vec![None; queues.len()]
                } else {
                    self.depths(&queues, Side::Nats, deadline).await
                }
            },
            self.side(Side::Rabbit, 0, deadline),
            self.side(Side::Nats, 0, deadline),
        );
        let mut unsettled = [0, 0];
        let mut statuses = Vec::with_capacity(queues.len());
        for (i, queue) in queues.iter().enumerate() {
            let order = self.shared.order();
            let Some(view) = order.fences.view(queue) else { continue };
            unsettled[0] += view.unsettled[0];
            unsettled[1] += view.unsettled[1];
            let without = |ready: Option<u64>, side: Side| ready.map(|n| n.saturating_sub(view.fences[side.index()]));
            statuses.push(QueueStatus {
                vhost: queue.vhost.to_string(),
                name: queue.queue.to_string(),
                rabbit_ready: without(rabbit_ready[i], Side::Rabbit),
                nats_ready: without(nats_ready[i], Side::Nats),
                rabbit_unsettled: view.unsettled[0],
                nats_unsettled: view.unsettled[1],
                held: order.held.get(queue).copied().unwrap_or(0),
                fence: view.fence,
                consumers: order.consumers.get(queue).copied().unwrap_or(0),
            });
        }
        (rabbit.unsettled, nats.unsettled) = (unsettled[0], unsettled[1]);
        let copies = |owner| self.shared.copies_of(owner).filter(|_| !native).map(|copies| copies.status());
        Status {
            phase: saved.phase,
            weight_percent: saved.weight_percent,
            epoch: saved.epoch,
            by: saved.by,
            reason: saved.reason,
            at: saved.at,
            draining: self.draining.load(Ordering::Relaxed),
            sides: Sides { rabbit, nats },
            connections: self.shared.connections.load(Ordering::Relaxed),
            queues: statuses,
            parity: self.shadow.as_ref().map(|s| of_interest(s.parity(), &queues)).unwrap_or_default(),
            unmapped: self.shared.all_unmapped(),
            warnings: self.shared.warnings(),
            standby_lag: self.shadow.as_ref().map_or(0, |s| s.lag()),
            standby: copies(Side::Nats),
            standby_rabbit: copies(Side::Rabbit),
            losing: saved.shift.map(|shift| shift.losing()),
            rehearsal: self.rehearsal_now(),
            backfill: self.backfill_now().map(|report| report.progress()),
            faults: self.faults(),
            rolled_back: saved.rolled_back,
            sidecars: self.others.get().map(|others| others.borrow().clone()).unwrap_or_default(),
        }
    }

    /// Asks both brokers for the depth of every queue, until the deadline.
    async fn depths(&self, queues: &[QueueName], side: Side, deadline: Deadline) -> Vec<Option<u64>> {
        let mut all = vec![None; queues.len()];
        let asked = timeout_at(deadline, async {
            for (queue, depth) in queues.iter().zip(&mut all) {
                *depth = match self.operators[side.index()].depth(queue).await {
                    Ok(Some(depth)) => Some(depth.ready),
                    Ok(None) => {
                        self.maybe_gone(queue, side);
                        Some(0)
                    }
                    Err(error) if error.code == ReplyCode::ResourceLocked => None,
                    // Every further question would take as long.
                    Err(_) => break,
                };
            }
        });
        // Out of time: what is known so far.
        let _ = asked.await;
        all
    }

    /// Forgets a queue that went by itself (auto-delete): its side does not have it, and nothing of it is here.
    fn maybe_gone(&self, queue: &QueueName, side: Side) {
        let actions = {
            let mut order = self.shared.order();
            let leads = side == if order.phase == Phase::Native { Side::Nats } else { Side::Rabbit };
            let idle = order.fences.view(queue).is_some_and(|v| v.unsettled == [0, 0]);
            if !leads || !idle || order.consumers.contains_key(queue) {
                return;
            }
            order.fences.forget(queue)
        };
        self.shared.act(actions);
        self.shared.queue_gone(&queue.vhost, &queue.queue);
        self.shared.integrity().discarded(queue);
    }

    pub(super) async fn side(&self, side: Side, unsettled: u64, deadline: Deadline) -> SideStatus {
        let answer = match side {
            side if self.shared.is_lost(side) => Err(GIVEN_UP.to_owned()),
            Side::Rabbit if self.shared.order().phase == Phase::Native => Err(DETACHED.to_owned()),
            Side::Nats if !self.bridge.connection().borrow().connected => Err("not connected".to_owned()),
            Side::Rabbit | Side::Nats => match timeout_at(deadline, self.operators[side.index()].ping()).await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err("no answer in time".to_owned()),
            },
        };
        let totals = self.shared.meters.totals(&self.shared.delivered);
        SideStatus {
            rejected: totals.rejected[side.index()],
            failed: totals.failed[side.index()],
            blocked: self.shared.meters.blocked_now()[side.index()],
            connected: answer.is_ok(),
            url: self.urls[side.index()].clone(),
            error: answer.err(),
            published: self.shared.published[side.index()].load(Ordering::Relaxed),
            delivered: self.shared.delivered[side.index()].load(Ordering::Relaxed),
            unsettled,
        }
    }
}

/// The comparisons of queues that are there, and of deleted ones where not everything was alike.
fn of_interest(mut parity: Vec<QueueParity>, queues: &[QueueName]) -> Vec<QueueParity> {
    let is_there = |of: &QueueParity| queues.iter().any(|q| *q.vhost == *of.vhost && *q.queue == *of.queue);
    parity.retain(|of| {
        let counts = &of.counts;
        let mismatched = counts.mismatched_payload + counts.mismatched_properties + counts.mismatched_routing;
        mismatched + counts.missing + counts.extra + counts.unverified > 0 || is_there(of)
    });
    parity
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_api::ParityCounts;

    #[test]
    fn a_deleted_queue_is_listed_only_while_its_comparison_says_something() {
        let counted = |queue: &str, missing: u64| QueueParity {
            vhost: "/".to_owned(),
            queue: queue.to_owned(),
            counts: ParityCounts { matched: 3, missing, ..ParityCounts::default() },
            unverified_by: Default::default(),
            samples: Vec::new(),
        };
        let there = [QueueName { vhost: "/".into(), queue: "there".into() }];
        let parity = vec![counted("there", 0), counted("deleted", 0), counted("deleted and differed", 1)];
        let names: Vec<String> = of_interest(parity, &there).into_iter().map(|of| of.queue).collect();
        assert_eq!(names, ["there", "deleted and differed"]);
    }
}
