//! How a change of phase and weight is made: what it needs, what it asks, and in which order it is put in force.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::rehearse::is_last_step;
use super::{Audit, Cutover, Saved, State, WriteError, now};
use crate::control_api::{Adopted, Change, Phase, Refused, RefusedCode, Target, Unmapped, Weight};
use crate::fence::{Fences, QueueName, Shift};
use crate::gate::ROUTES_FIX;
use crate::ownership::Side;
use crate::phase::{self, Facts, Position};

/// Why a change is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Because {
    /// Somebody asks for it.
    Asked,
    /// It is a step of a rehearsal.
    Rehearsed,
    /// The sidecar makes it by itself.
    Itself(String),
}

/// How long a change waits for what was published before the one before it to be confirmed.
const BEFORE: Duration = Duration::from_millis(800);
/// How long a change waits, altogether, for its own fences to be in their queues. They go on when it is over.
const AFTER: Duration = Duration::from_millis(900);

impl Cutover {
    /// Makes a change.
    pub(super) async fn make(&self, request: Change, because: Because) -> Result<Adopted, Refused> {
        let began = Instant::now();
        if self.draining.load(Ordering::Relaxed) {
            let fix = "change the state through the sidecar that takes its place";
            return Err(Refused::new(RefusedCode::Draining, "the sidecar is shutting down", fix));
        }
        if self.shared.is_overtaken() {
            let fix = "change the state through the sidecar that leads now";
            return Err(Refused::new(RefusedCode::Draining, "another sidecar leads by now", fix));
        }
        if self.shared.nats_is_lost() {
            let reason = "NATS was given up by a failover: RabbitMQ has everything";
            let fix = "to begin again, give NATS an empty store and start the sidecar anew";
            return Err(Refused::new(RefusedCode::WrongPhase, reason, fix));
        }
        let mut saved = self.state.lock().await;
        let at = saved.state.position();
        if self.shared.is_lost(Side::Rabbit) && at.phase != Phase::Native {
            let reason = "RabbitMQ was given up by a failover that is not done";
            let fix = "`nats-bridge failover --lost rabbit --execute` goes on with it";
            return Err(Refused::new(RefusedCode::WrongPhase, reason, fix));
        }
        let facts = self.facts(at, request.to).await;
        let Some(next) = phase::change(at, request.to, facts)? else {
            return Ok(adopted(&saved.state, false, began));
        };
        // Only once NATS has caught up: what it has yet to be told is not missing.
        let mut forced = false;
        if next.weight > at.weight {
            self.routes_alike().await?;
            let verdict = self.verdict(&saved.state).await;
            // A rehearsal goes back to what the gate has let through before.
            forced = !verdict.may_go_on && because != Because::Rehearsed;
            if forced && !request.force {
                return Err(Refused::gate(verdict));
            }
            if is_last_step(at.weight, next.weight) && because == Because::Asked && !request.unrehearsed {
                self.is_rehearsed()?;
            }
            if forced {
                let because = verdict.because();
                tracing::warn!(because, by = request.by, to = %next.weight, "the weight is raised against the gate's no");
            }
        }
        if next.weight < at.weight {
            self.bind_again().await?;
        }
        let moves = next.weight != at.weight;
        if moves && !self.waits_for(Instant::now() + BEFORE, Fences::can_begin).await {
            let [rabbit, nats] = self.shared.order().fences.in_flight();
            let what = format!("{rabbit} publishes to RabbitMQ and {nats} to NATS are not confirmed");
            if next.weight > at.weight {
                let reason = format!("the change before is still being put in force: {what}");
                return Err(Refused::new(RefusedCode::Conflict, reason, "try again in a moment"));
            }
            // The way out is not refused. Order may then have to wait for the time limit.
            self.shared.warn("overlapping_changes", format!("keys were given back while {what}"));
        }
        let epoch = saved.state.epoch + 1;
        let earlier = if moves {
            let mut open = self.shared.order().fences.open_shifts(self.shared.now());
            open.split_off(open.len().saturating_sub(State::EARLIER))
        } else {
            saved.state.earlier.clone()
        };
        let state = State {
            phase: next.phase,
            weight_percent: next.weight,
            epoch,
            by: request.by,
            reason: request.reason,
            at: now(),
            nats_may_hold: saved.state.nats_may_hold || next.weight > Weight::NONE,
            shift: if moves { Some(Shift { epoch, from: at.weight, to: next.weight }) } else { saved.state.shift },
            earlier,
            forced,
            rolled_back: match &because {
                Because::Itself(why) => Some(why.clone()),
                // Looked into: everything is compared anew, or somebody takes it on himself.
                _ if next.phase == Phase::Observe || next.weight > at.weight => None,
                _ => saved.state.rolled_back.clone(),
            },
            rabbit_given_up: saved.state.rabbit_given_up,
            salt: saved.state.salt.clone(),
        };
        match self.store.save(&state, saved.revision).await {
            Ok(revision) => *saved = Saved { state, revision, unsaved: false },
            Err(WriteError::Conflict) => {
                let reason = "somebody else has changed the state at the same time";
                return Err(Refused::new(
                    RefusedCode::Conflict,
                    reason,
                    "look at `nats-bridge status`, then try again",
                ));
            }
            Err(WriteError::Unreachable(why)) if next.weight < at.weight => {
                self.shared.warn("state_unsaved", format!("in force, and written once NATS answers: {why}"));
                *saved = Saved { state, revision: saved.revision, unsaved: true };
            }
            Err(WriteError::Unreachable(why)) => {
                return Err(Refused::new(RefusedCode::SideDown, why, "wait until NATS answers"));
            }
        }
        self.shared.adopt(epoch, next);
        if next.phase == Phase::Native
            && let Some(copies) = self.shared.copies_of(Side::Rabbit)
        {
            // RabbitMQ's queues are empty: nobody needs them any more.
            let copies = std::sync::Arc::clone(copies);
            tokio::spawn(async move { copies.discard().await });
        }
        match &because {
            Because::Itself(why) => self.void_rehearsal(&format!("the sidecar rolled back by itself since: {why}")),
            _ if next.phase == Phase::Observe => self.void_rehearsal("the phase was observe since"),
            _ => {}
        }
        let state = saved.state.clone();
        self.stage_began(&state);
        if moves {
            self.waits_for(began + AFTER, Fences::all_stored).await;
        }
        let adopted = adopted(&state, true, began);
        tracing::info!(
            phase = %adopted.phase, weight = %adopted.weight_percent, epoch, by = adopted.by, reason = adopted.reason,
            took_ms = adopted.took_ms, "a change is in force"
        );
        Ok(adopted)
    }

    async fn facts(&self, at: Position, to: Target) -> Facts {
        let wants_more = match to {
            Target::Weight(weight) => weight > at.weight,
            Target::Shadow | Target::Detach => true,
            Target::Observe | Target::Rollback => false,
        };
        let gives_back = match to {
            Target::Weight(weight) => weight < at.weight,
            Target::Rollback => at.weight > Weight::NONE,
            Target::Shadow | Target::Detach | Target::Observe => false,
        };
        Facts {
            unmapped: self.shared.all_unmapped().len(),
            nats_connected: !wants_more || self.nats_is_ready().await,
            rabbit_connected: !gives_back || matches!(timeout(BEFORE, self.operators[0].ping()).await, Ok(Ok(()))),
            rabbit_messages: if to == Target::Detach { self.rabbit_messages().await } else { None },
        }
    }

    /// Refuses when RabbitMQ routes what JetStream would not, or when that cannot be known.
    pub(super) async fn routes_alike(&self) -> Result<(), Refused> {
        let answer = self.compare_routes().await;
        self.watch.routes_were(answer.as_ref().err().map(|refused| refused.reason.clone()));
        answer
    }

    async fn compare_routes(&self) -> Result<(), Refused> {
        let (management, routes) = match (&self.audit, &self.shared.routes) {
            (Audit::Management(management), Some(routes)) => (management, routes),
            (Audit::Trusted, _) | (_, None) => return Ok(()),
            (Audit::Unknown, Some(_)) => {
                return Err(Refused::new(
                    RefusedCode::Unmapped,
                    "it is not known whether RabbitMQ has bindings or policies that were not declared through this sidecar",
                    "start it with --rabbit-management http://USER:PASSWORD@HOST:15672, or vouch with --trust-declared",
                ));
            }
        };
        let findings = management.findings(&self.logins.vhosts(), routes.as_ref()).await.map_err(|why| {
            let fix = "start the management plugin, or vouch for what is declared with --trust-declared";
            Refused::new(RefusedCode::SideDown, why, fix)
        })?;
        if findings.is_empty() {
            return Ok(());
        }
        Err(Refused::new(RefusedCode::Unmapped, named(&findings), format!("{ROUTES_FIX}; then try again")))
    }

    /// Makes the bindings of a RabbitMQ again that was away, before it gets keys back. One that is killed was seen to forget
    /// a binding, and to confirm what it then dropped; its applications, which noticed nothing, do not declare it again.
    async fn bind_again(&self) -> Result<(), Refused> {
        let Some(routes) = &self.shared.routes else { return Ok(()) };
        if !self.shared.rabbit_was_lost.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        for vhost in self.logins.vhosts() {
            let bindings = match routes.bindings(&vhost).await {
                Ok(bindings) => bindings,
                // The way out is not refused for what NATS does not say.
                Err(error) => {
                    self.shared
                        .warn("bindings_unknown", format!("vhost {vhost}: RabbitMQ's may be incomplete: {error}"));
                    continue;
                }
            };
            if let Err(error) = self.operators[Side::Rabbit.index()].bind(&vhost.as_str().into(), &bindings).await {
                self.shared.rabbit_was_lost.store(true, Ordering::Release);
                let what = format!("RabbitMQ has not taken the bindings of vhost {vhost} again: {error}");
                return Err(Refused::new(RefusedCode::SideDown, what, "try again once RabbitMQ answers"));
            }
        }
        Ok(())
    }

    /// Whether NATS is connected and every link has caught up with it; links get a moment to.
    async fn nats_is_ready(&self) -> bool {
        let deadline = Instant::now() + BEFORE;
        loop {
            let connected = self.bridge.connection().borrow().connected;
            if connected && self.shared.behind.load(Ordering::Relaxed) == 0 {
                return true;
            }
            if !connected || Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What RabbitMQ's known queues hold, fences excluded; `None` when it does not say.
    async fn rabbit_messages(&self) -> Option<u64> {
        let (queues, unsettled) = {
            let order = self.shared.order();
            let queues: Vec<QueueName> = order.fences.queues().cloned().collect();
            let unsettled: u64 = queues.iter().filter_map(|q| order.fences.view(q)).map(|v| v.unsettled[0]).sum();
            (queues, unsettled)
        };
        let mut sum = unsettled;
        for queue in queues {
            let ready = match self.operators[0].depth(&queue).await {
                Ok(depth) => depth.map_or(0, |d| d.ready),
                // A queue that belongs to a connection cannot be asked for by another; it goes with its connection.
                Err(error) if error.code == amqp_compat::ReplyCode::ResourceLocked => 0,
                Err(_) => return None,
            };
            let fences = self.shared.order().fences.view(&queue).map_or(0, |v| v.fences[0]);
            sum += if (1..=fences).contains(&ready) {
                // A fence that RabbitMQ has lost is counted still: what is there may be a message.
                self.operators[0].besides_fences(&queue, ready).await.ok()?
            } else {
                ready.saturating_sub(fences)
            };
        }
        Some(sum)
    }

    /// Waits until the fences are so far; whether they were in time.
    async fn waits_for(&self, deadline: Instant, so_far: fn(&Fences) -> bool) -> bool {
        loop {
            if so_far(&self.shared.order().fences) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn adopted(state: &State, changed: bool, began: Instant) -> Adopted {
    Adopted {
        changed,
        phase: state.phase,
        weight_percent: state.weight_percent,
        epoch: state.epoch,
        by: state.by.clone(),
        reason: state.reason.clone(),
        at: state.at.clone(),
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

/// How many findings are named; the others are counted.
const NAMED: usize = 10;

fn named(findings: &[Unmapped]) -> String {
    let one = |Unmapped { kind, name, vhost, reason }: &Unmapped| format!("{kind} {name} in vhost {vhost}: {reason}");
    let all: Vec<String> = findings.iter().take(NAMED).map(one).collect();
    match findings.len().saturating_sub(NAMED) {
        0 => all.join("; "),
        more => format!("{} (and {more} more)", all.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_named_up_to_a_bound() {
        let finding = |n: usize| Unmapped {
            vhost: "/".to_owned(),
            kind: "policy".to_owned(),
            name: format!("p{n}"),
            reason: "in force".to_owned(),
        };
        let text = |count: usize| named(&(0..count).map(finding).collect::<Vec<_>>());
        assert_eq!(text(2), "policy p0 in vhost /: in force; policy p1 in vhost /: in force");
        assert!(text(12).contains("policy p9 ") && text(12).ends_with(" (and 2 more)"), "{}", text(12));
    }
}
