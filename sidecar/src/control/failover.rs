//! A broker is lost for good: the other one gets what was kept of it, and everything from then on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{Cutover, Saved, State, now};
use crate::control_api::{Failover, FailoverReport, Phase, Refused, RefusedCode, Weight};
use crate::copies::{Copies, Progress};
use crate::fence::QueueName;
use crate::ownership::Side;
use crate::phase::Position;

/// How long links may take to let go of the lost side.
const LET_GO: Duration = Duration::from_secs(3);
/// How long a broker may take for a sign of life.
const SIGN: Duration = Duration::from_secs(2);
/// The queue on RabbitMQ that says that NATS was given up; it outlives the sidecar.
const MARK: &str = "nats-bridge.lost.nats";

/// The failover of this run, if there is one.
#[derive(Default)]
pub(super) struct Under {
    report: Option<FailoverReport>,
    progress: Arc<Progress>,
}

impl Cutover {
    /// How far a failover is.
    pub(super) fn failover_now(&self) -> Option<FailoverReport> {
        let under = self.failover.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = under.report.clone()?;
        let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
        if report.executed {
            report.copies = report.copies.max(count(&under.progress.found));
        }
        report.replayed = count(&under.progress.replayed);
        report.not_needed = count(&under.progress.not_needed);
        report.left = count(&under.progress.left);
        Some(report)
    }

    fn report(&self, change: impl FnOnce(&mut FailoverReport)) {
        let mut under = self.failover.lock().unwrap_or_else(PoisonError::into_inner);
        change(under.report.get_or_insert_default());
    }

    /// Looks at what a failover would do, or begins it; [`Cutover::failover_now`] tells how far it is.
    pub(super) async fn fail_over(self: Arc<Self>, asked: Failover) -> Result<FailoverReport, Refused> {
        if let Some(report) = self.failover_now().filter(|report| report.running || report.done) {
            return Ok(report);
        }
        let copies = self.may_give_up_nats(&asked).await?;
        let queues = self.known_queues();
        let rabbit_down = |error: amqp_compat::AmqpError| {
            let reason = format!("RabbitMQ, which is to have everything, says: {error}");
            Refused::new(RefusedCode::SideDown, reason, "start RabbitMQ, then try again")
        };
        let count = match timeout(SIGN * 3, copies.count(&queues)).await {
            Ok(count) => count.map_err(rabbit_down)?,
            Err(_) => {
                return Err(Refused::new(
                    RefusedCode::SideDown,
                    "RabbitMQ does not answer",
                    "start RabbitMQ, then try again",
                ));
            }
        };
        let standby = copies.status();
        let report = FailoverReport {
            lost: asked.lost,
            executed: asked.execute,
            running: asked.execute,
            copies: count,
            no_copy: standby.no_copy,
            ..FailoverReport::default()
        };
        if !asked.execute {
            return Ok(report);
        }
        self.report(|under| *under = report);
        let cutover = Arc::clone(&self);
        // A caller that goes away does not leave it half done.
        tokio::spawn(async move {
            let work = Arc::clone(&cutover);
            let done = tokio::spawn(async move { work.give_up_nats(&asked, &copies, &queues).await }).await;
            let done = done.unwrap_or_else(|error| Err(format!("the sidecar's own fault: {error}")));
            cutover.report(|report| {
                report.running = false;
                report.done = done.is_ok();
                report.error = done.err();
            });
        });
        Ok(self.failover_now().unwrap_or_default())
    }

    /// Whether NATS may be given up, and what was kept of it.
    async fn may_give_up_nats(&self, asked: &Failover) -> Result<Arc<Copies>, Refused> {
        if asked.lost == Side::Rabbit {
            let reason = "what RabbitMQ owns has no standby copy yet, so that nothing could be replayed";
            return Err(Refused::new(
                RefusedCode::WrongPhase,
                reason,
                "start RabbitMQ again; at 100 % with empty queues, `nats-bridge detach`",
            ));
        }
        let phase = self.shared.order().phase;
        if phase == Phase::Native {
            let reason = "RabbitMQ is detached: it has nothing, and cannot take over";
            return Err(Refused::new(RefusedCode::WrongPhase, reason, "restore NATS from its own replicas or backup"));
        }
        let Some(copies) = &self.shared.copies else {
            let reason = "the sidecar keeps no standby copies (--standby off): what NATS holds is lost with it";
            return Err(Refused::new(
                RefusedCode::WrongPhase,
                reason,
                "`nats-bridge rollback` gives new messages to RabbitMQ",
            ));
        };
        let answers =
            !self.shared.nats_is_lost() && matches!(timeout(SIGN, self.store.sign_of_life()).await, Ok(Ok(())));
        if answers && !asked.force {
            let fix = "`nats-bridge rollback` loses nothing; --force gives NATS up although it answers";
            return Err(Refused::new(RefusedCode::Conflict, "NATS answers: it is not lost", fix));
        }
        Ok(Arc::clone(copies))
    }

    fn known_queues(&self) -> Vec<QueueName> {
        self.shared.order().fences.queues().cloned().collect()
    }

    async fn give_up_nats(&self, asked: &Failover, copies: &Copies, queues: &[QueueName]) -> Result<(), String> {
        let mut saved = self.state.lock().await;
        let rabbit = &self.operators[Side::Rabbit.index()];
        // First of all: a NATS that comes back with what it held is not to be taken up by another run.
        rabbit.mark(MARK, &saved.state.salt).await.map_err(|error| format!("RabbitMQ: {error}"))?;
        tracing::warn!(
            by = asked.by,
            reason = asked.reason,
            "NATS is given up: RabbitMQ gets the standby copies of what it held"
        );
        self.shared.give_up_nats();
        let deadline = Instant::now() + LET_GO;
        while self.shared.behind.load(Ordering::Relaxed) < self.shared.connections.load(Ordering::Relaxed)
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let progress = {
            let under = self.failover.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&under.progress)
        };
        copies.replay(queues, &progress).await.map_err(|error| format!("RabbitMQ: {error}"))?;
        let position = Position { phase: Phase::Observe, weight: Weight::NONE };
        let epoch = saved.state.epoch + 1;
        let state = State {
            phase: position.phase,
            weight_percent: position.weight,
            epoch,
            by: asked.by.clone(),
            reason: asked.reason.clone(),
            at: now(),
            nats_may_hold: false,
            shift: None,
            forced: false,
            rolled_back: None,
            salt: saved.state.salt.clone(),
        };
        // There is no NATS to write it to.
        *saved = Saved { state: state.clone(), revision: saved.revision, unsaved: false };
        self.shared.adopt_without_nats(epoch, position);
        self.stage_began(&state);
        self.report(|report| report.epoch = epoch);
        tracing::warn!(epoch, replayed = progress.replayed.load(Ordering::Relaxed), "RabbitMQ owns everything");
        Ok(())
    }

    /// Refuses a NATS that was given up in an earlier run and still has what it held: it would be delivered twice.
    pub(super) async fn not_given_up(&self) -> Result<(), String> {
        let rabbit = &self.operators[Side::Rabbit.index()];
        let salt = self.state.lock().await.state.salt.clone();
        match rabbit.marked(MARK).await {
            Ok(Some(given_up)) if given_up == salt => Err(
                "it was given up by `failover --lost nats`, and RabbitMQ has delivered what it still holds: stop it, empty its store \
                 directory, start it again"
                    .to_owned(),
            ),
            // Another one has taken its place.
            Ok(Some(_)) => rabbit.unmark(MARK).await.map_err(|error| error.to_string()),
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "RabbitMQ does not say whether this NATS was given up before");
                Ok(())
            }
        }
    }

    /// Removes the copies of queues that NATS has nothing of: of messages that expired or were dropped without anybody's doing. A queue was
    /// seen empty twice, and with it, when it has dead letters, all others.
    pub(super) async fn forget_copies(&self, before: &mut std::collections::HashMap<QueueName, u128>) {
        let Some(copies) = self.shared.copies.as_ref().filter(|_| !self.shared.nats_is_lost()) else {
            return;
        };
        let next = copies.under_way(self.shared.ids.next());
        let all = copies.queues();
        let mut empty = Vec::new();
        for (queue, dead_letters) in &all {
            let idle = || {
                let order = self.shared.order();
                order.fences.view(queue).is_none_or(|view| view.unsettled[Side::Nats.index()] == 0)
                    && !order.held.contains_key(queue)
            };
            let none = idle()
                && matches!(self.operators[Side::Nats.index()].depth(queue).await, Ok(Some(depth)) if depth.ready == 0)
                && idle();
            if none {
                empty.push((queue, *dead_letters));
            } else {
                before.remove(queue);
            }
        }
        let others = self.known_queues().len() > all.len();
        let everything = empty.len() == all.len() && !others;
        for (queue, dead_letters) in empty {
            if dead_letters && !everything {
                before.remove(queue);
            } else if let Some(before) = before.insert(queue.clone(), next) {
                copies.over(queue, before);
            }
        }
    }
}
