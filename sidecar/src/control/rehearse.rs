//! A rollback is rehearsed: everything goes to RabbitMQ and back again under the traffic that there is, and what that did is measured and
//! kept. `cutover` rests on it: who cannot go back has no way out.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use foldhash::HashMap;

use super::change::Because;
use super::{Cutover, now};
use crate::control_api::{
    Adopted, Change, FenceState, Outcome, Phase, Refused, RefusedCode, Rehearsal, Rehearse, RehearsedQueue, Target,
    Weight,
};
use crate::fence::QueueName;

/// How often queues are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long queues may take until everything older has come out; a hold has a shorter limit of its own.
const SETTLE: Duration = Duration::from_secs(120);

/// What is counted before and after.
struct Counted {
    confirmed: u64,
    failed: u64,
    faults: u64,
    differences: u64,
    compared: u64,
    holds_timed_out: u64,
    connections: u64,
}

/// For how long deliveries of a queue waited, by direction.
type Waited = HashMap<QueueName, (u64, [Duration; 2])>;

impl Cutover {
    /// The rehearsal that is kept.
    pub(super) fn rehearsal_now(&self) -> Option<Rehearsal> {
        self.rehearsal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn keep_rehearsal(&self, rehearsal: Rehearsal) {
        *self.rehearsal.lock().unwrap_or_else(PoisonError::into_inner) = Some(rehearsal.clone());
        if let Err(error) = self.store.keep_rehearsal(&rehearsal).await {
            tracing::warn!(error, "a restart of the sidecar will not know of this rehearsal");
        }
    }

    /// Takes up the rehearsal that an earlier run has kept.
    pub(super) async fn resume_rehearsal(&self) {
        match self.store.rehearsal().await {
            Ok(Some(mut rehearsal)) => {
                if std::mem::take(&mut rehearsal.running) {
                    rehearsal.problems.push("the sidecar was stopped in the middle of it".to_owned());
                }
                *self.rehearsal.lock().unwrap_or_else(PoisonError::into_inner) = Some(rehearsal);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error, "an earlier rehearsal of a rollback is not known"),
        }
    }

    /// What was rehearsed counts no more.
    pub(super) fn void_rehearsal(&self, why: &str) {
        let Some(rehearsal) = self.rehearsal_now().filter(Rehearsal::counts) else { return };
        let void = Rehearsal { void: Some(why.to_owned()), ..rehearsal };
        *self.rehearsal.lock().unwrap_or_else(PoisonError::into_inner) = Some(void.clone());
        // The way out does not wait for it. What is not written is known by the state, which says that it rolled back.
        let store = self.store.clone();
        tokio::spawn(async move {
            if let Err(error) = store.keep_rehearsal(&void).await {
                tracing::warn!(error, "a restart of the sidecar will take the rehearsal of a rollback for valid");
            }
        });
    }

    /// Begins a rehearsal; [`Cutover::rehearsal_now`] tells how far it is.
    pub(super) async fn rehearse_rollback(self: Arc<Self>, asked: Rehearse) -> Result<Rehearsal, Refused> {
        if let Some(rehearsal) = self.rehearsal_now().filter(|rehearsal| rehearsal.running) {
            return Ok(rehearsal);
        }
        let (phase, weight, epoch) = {
            let saved = self.state.lock().await;
            (saved.state.phase, saved.state.weight_percent, saved.state.epoch)
        };
        if !matches!(phase, Phase::Canary | Phase::Cutover) {
            let reason = format!("the phase is {phase}: there is nothing to roll back");
            let fix = "raise the weight first, such as `nats-bridge weight 50`";
            return Err(Refused::new(RefusedCode::WrongPhase, reason, fix));
        }
        let Rehearse { by, reason, .. } = asked.clone();
        let rehearsal =
            Rehearsal { running: true, by, reason, at: now(), weight_percent: weight, epoch, ..Rehearsal::default() };
        self.keep_rehearsal(rehearsal.clone()).await;
        let cutover = Arc::clone(&self);
        let began = rehearsal.clone();
        // A caller that goes away does not leave it half done.
        tokio::spawn(async move {
            let work = Arc::clone(&cutover);
            let (asks, first) = (asked.clone(), began.clone());
            let done = tokio::spawn(async move { work.rehearse(&asks, first).await }).await;
            let mut rehearsal = done.unwrap_or_else(|error| Rehearsal {
                problems: vec![format!("the sidecar's own fault: {error}")],
                ..began
            });
            rehearsal.running = false;
            rehearsal.passed = rehearsal.problems.is_empty();
            let outcome = if rehearsal.passed { Outcome::Done } else { Outcome::Failed };
            tracing::info!(verdict = rehearsal.verdict(), "a rollback was rehearsed");
            let detail = rehearsal.verdict();
            cutover.keep_rehearsal(rehearsal).await;
            cutover.log("rollback rehearse", outcome, &asked.by, &asked.from, &asked.reason, detail).await;
        });
        Ok(rehearsal)
    }

    async fn rehearse(&self, asked: &Rehearse, mut rehearsal: Rehearsal) -> Rehearsal {
        let before = self.counted();
        let mut waited = Waited::default();
        let weight = rehearsal.weight_percent;
        let down = match self.step(Target::Rollback, asked, "down").await {
            Ok(down) => down,
            Err(refused) => {
                rehearsal.problems.push(format!("the rollback was refused: {refused}"));
                return rehearsal;
            }
        };
        rehearsal.down_ms = down.took_ms;
        let mut late = !self.settles(0, &mut waited, &mut rehearsal).await;
        let stays = Instant::now() + Duration::from_millis(asked.stay_ms);
        while Instant::now() < stays && self.shared.order().fences.epoch() == down.epoch {
            tokio::time::sleep(LOOK).await;
        }
        let middle = self.counted();
        if self.shared.order().fences.epoch() != down.epoch {
            rehearsal.problems.push("somebody else has changed the weight or the phase meanwhile".to_owned());
            return rehearsal;
        }
        match self.step(Target::Weight(weight), asked, "up").await {
            Ok(up) => (rehearsal.up_ms, rehearsal.epoch) = (up.took_ms, up.epoch),
            Err(refused) => {
                rehearsal
                    .problems
                    .push(format!("{weight} % was refused on the way up, RabbitMQ has everything: {refused}"));
                return rehearsal;
            }
        }
        // The counts of before would be for another stage after it: they are of the sidecar's whole run.
        late |= !self.settles(1, &mut waited, &mut rehearsal).await;
        let after = self.counted();
        rehearsal.confirmed = after.confirmed.saturating_sub(before.confirmed);
        rehearsal.failed = after.failed.saturating_sub(before.failed);
        rehearsal.faults = after.faults.saturating_sub(before.faults);
        rehearsal.differences = [before.differences, after.differences.saturating_sub(before.differences)];
        rehearsal.compared = [before.compared, after.compared.saturating_sub(before.compared)];
        rehearsal.holds_timed_out = after.holds_timed_out.saturating_sub(before.holds_timed_out);
        rehearsal.connections = [before.connections, after.connections];
        let queue = |(name, (held, paused)): (QueueName, (u64, [Duration; 2]))| RehearsedQueue {
            vhost: name.vhost.to_string(),
            name: name.queue.to_string(),
            paused_ms: paused.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            held,
        };
        rehearsal.queues = waited.into_iter().map(queue).collect();
        rehearsal.queues.sort_by(|a, b| (&a.vhost, &a.name).cmp(&(&b.vhost, &b.name)));
        let Rehearsal { failed, faults, differences, holds_timed_out, .. } = rehearsal;
        let at_zero = middle.confirmed.saturating_sub(before.confirmed);
        for (wrong, what) in [
            (failed > 0, format!("{failed} publishes were refused or lost")),
            (faults > 0, format!("{faults} messages were corrupted, dropped, reordered or duplicated")),
            (differences[1] > 0, format!("{} messages differed in the comparison", differences[1])),
            (holds_timed_out > 0, format!("{holds_timed_out} holds were lifted because their time was over")),
            (late, format!("queues had not let go of what is older after {} s", SETTLE.as_secs())),
            (at_zero == 0, "no publish was confirmed meanwhile: no data is no rehearsal".to_owned()),
        ] {
            if wrong {
                rehearsal.problems.push(what);
            }
        }
        rehearsal
    }

    async fn step(&self, to: Target, asked: &Rehearse, way: &str) -> Result<Adopted, Refused> {
        let reason = match asked.reason.as_str() {
            "" => format!("rehearsal, {way}"),
            reason => format!("rehearsal, {way}: {reason}"),
        };
        let (by, from) = (asked.by.clone(), asked.from.clone());
        let change = Change { to, by, reason, from, force: false, unrehearsed: false };
        self.make(change, Because::Rehearsed).await
    }

    /// Waits until everything older has come out of every queue; false when that takes too long.
    async fn settles(&self, way: usize, waited: &mut Waited, rehearsal: &mut Rehearsal) -> bool {
        let (began, mut last) = (Instant::now(), Instant::now());
        loop {
            let (open, held): (bool, Vec<(QueueName, u64)>) = {
                let order = self.shared.order();
                let waits = |q: &QueueName| {
                    // A fence comes out of a queue only when somebody consumes it.
                    order.consumers.contains_key(q)
                        && order
                            .fences
                            .view(q)
                            .is_some_and(|v| matches!(v.fence, FenceState::Waiting | FenceState::Sent))
                };
                let held = order.held.iter().map(|(queue, count)| (queue.clone(), *count)).collect();
                (order.fences.queues().any(waits), held)
            };
            let since = last.elapsed();
            last = Instant::now();
            for (queue, count) in &held {
                let (most, times) = waited.entry(queue.clone()).or_default();
                *most = (*most).max(*count);
                times[way] += since;
            }
            let elapsed = began.elapsed();
            rehearsal.settled_ms[way] = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            if !open && held.is_empty() {
                return true;
            }
            if elapsed > SETTLE {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn counted(&self) -> Counted {
        let totals = self.shared.meters.totals(&self.shared.delivered);
        let compared = self.compared().counts;
        Counted {
            confirmed: totals.confirmed.iter().sum(),
            failed: totals.failed.iter().sum(),
            faults: self.shared.integrity().faults().counts().iter().sum(),
            differences: compared.differences(),
            compared: compared.compared(),
            holds_timed_out: self.holds_timed_out(),
            connections: self.shared.connections.load(Ordering::Relaxed),
        }
    }

    /// Refuses the last step while no rehearsal counts.
    pub(super) fn is_rehearsed(&self) -> Result<(), Refused> {
        let rehearsal = self.rehearsal_now();
        if rehearsal.as_ref().is_some_and(Rehearsal::counts) {
            return Ok(());
        }
        let reason = match rehearsal {
            None => "no rollback was rehearsed".to_owned(),
            Some(rehearsal) => match &rehearsal.void {
                Some(void) => format!("the rehearsed rollback counts no more: {void}"),
                None if rehearsal.running => "the rehearsal of a rollback is not done".to_owned(),
                None => format!("the rehearsed rollback has not passed: {}", rehearsal.problems.join("; ")),
            },
        };
        let fix =
            "`nats-bridge rollback rehearse` at a weight above 0; --unrehearsed goes on without, and is written down";
        Err(Refused::new(RefusedCode::NotRehearsed, reason, fix))
    }
}

/// Whether a change is the last step up.
pub(super) fn is_last_step(from: Weight, to: Weight) -> bool {
    from < Weight::ALL && to == Weight::ALL
}
