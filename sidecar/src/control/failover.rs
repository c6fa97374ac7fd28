//! A broker is lost for good: the other one gets what was kept of it, and everything from then on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};
use tokio::time::timeout;

use super::{Cutover, Saved, State, WriteError, now};
use crate::control_api::{Failover, FailoverQueue, FailoverReport, Outcome, Phase, Refused, RefusedCode, Weight};
use crate::copies::{Copies, Progress};
use crate::fence::QueueName;
use crate::ownership::Side;

/// How long links may take to let go of the lost side.
const LET_GO: Duration = Duration::from_secs(3);
/// How long links may take to end when RabbitMQ is given up; a link moves its last words for 5 s.
const LAST_WORDS: Duration = Duration::from_secs(8);
/// How many queues of RabbitMQ are looked at.
const HELD_MOST: usize = 2_000;
const BEGIN_ANEW: &str = "start RabbitMQ again, or restore it from its own mirrors or backup; `nats-bridge serve` begins anew on JetStream, without these messages";
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
            if report.lost == asked.lost {
                return Ok(report);
            }
            let reason = format!("{} was given up: {} has everything", report.lost, asked.lost);
            return Err(Refused::new(RefusedCode::WrongPhase, reason, "look at `nats-bridge status`"));
        }
        let keeper = asked.lost.other();
        if asked.lost == Side::Rabbit && self.shared.order().phase == Phase::Native {
            let epoch = self.state.lock().await.state.epoch;
            let (lost, executed) = (asked.lost, asked.execute);
            return Ok(FailoverReport { lost, executed, done: true, epoch, ..FailoverReport::default() });
        }
        let copies = self.may_give_up(&asked).await?;
        let queues = self.known_queues();
        let down = |why: String| {
            let reason = format!("{}, which is to have everything, {why}", product(keeper));
            Refused::new(RefusedCode::SideDown, reason, format!("start {}, then try again", product(keeper)))
        };
        let counts = match timeout(SIGN * 3, copies.count(&queues)).await {
            Ok(counts) => counts.map_err(|error| down(format!("says: {error}")))?,
            Err(_) => return Err(down("does not answer".to_owned())),
        };
        let held = if asked.lost == Side::Rabbit { self.held_by_rabbit() } else { HashMap::new() };
        let of = |(queue, copies): (&QueueName, &u64)| FailoverQueue {
            vhost: queue.vhost.to_string(),
            name: queue.queue.to_string(),
            copies: *copies,
            held: held.get(queue).map(|(held, _)| *held),
        };
        let report = FailoverReport {
            lost: asked.lost,
            executed: asked.execute,
            running: asked.execute,
            copies: counts.values().sum(),
            no_copy: copies.status().no_copy,
            unmapped: if asked.lost == Side::Rabbit { self.shared.all_unmapped().len() as u64 } else { 0 },
            held_before_s: held.values().map(|(_, age)| age.as_secs()).max(),
            queues: counts.iter().map(of).filter(|q| q.copies > 0 || q.held.is_some_and(|held| held > 0)).collect(),
            ..FailoverReport::default()
        };
        if !asked.execute {
            return Ok(report);
        }
        self.report(|under| *under = report);
        let Failover { by, from, reason, .. } = asked.clone();
        let what = format!("failover --lost {}", asked.lost);
        let cutover = Arc::clone(&self);
        // A caller that goes away does not leave it half done.
        tokio::spawn(async move {
            let work = Arc::clone(&cutover);
            let done = tokio::spawn(async move {
                match asked.lost {
                    Side::Nats => work.give_up_nats(&asked, &copies, &queues).await,
                    Side::Rabbit => work.give_up_rabbit(&asked, &copies, &queues).await,
                }
            });
            let done = done.await.unwrap_or_else(|error| Err(format!("the sidecar's own fault: {error}")));
            let (outcome, detail) = match &done {
                Ok(()) => (Outcome::Done, String::new()),
                Err(why) => (Outcome::Failed, why.clone()),
            };
            cutover.report(|report| {
                report.running = false;
                report.done = done.is_ok();
                report.error = done.err();
            });
            let replayed = cutover.failover_now().map_or(0, |report| report.replayed);
            let detail = if detail.is_empty() { format!("{replayed} copies replayed") } else { detail };
            cutover.log(&what, outcome, &by, &from, &reason, detail).await;
        });
        Ok(self.failover_now().unwrap_or_default())
    }

    /// Whether a side may be given up, and what was kept of it.
    async fn may_give_up(&self, asked: &Failover) -> Result<Arc<Copies>, Refused> {
        let (lost, phase) = (asked.lost, self.shared.order().phase);
        let refused = |reason: String, fix: &str| Err(Refused::new(RefusedCode::WrongPhase, reason, fix));
        if lost == Side::Nats && phase == Phase::Native {
            let reason = "RabbitMQ is detached: it has nothing, and cannot take over".to_owned();
            return refused(reason, "restore NATS from its own replicas or backup");
        }
        if lost == Side::Rabbit && phase == Phase::Observe && !self.shared.is_lost(Side::Rabbit) {
            let reason = format!("in observe NATS has no copies: {}", self.lost_with_rabbit());
            return refused(reason, BEGIN_ANEW);
        }
        let Some(copies) = self.shared.copies_of(lost) else {
            return match lost {
                Side::Nats => refused(
                    "the sidecar keeps no standby copies (--standby off): what NATS holds is lost with it".to_owned(),
                    "`nats-bridge rollback` gives new messages to RabbitMQ",
                ),
                Side::Rabbit => refused(
                    format!(
                        "the sidecar keeps no standby copies of RabbitMQ's (--standby): {}",
                        self.lost_with_rabbit()
                    ),
                    BEGIN_ANEW,
                ),
            };
        };
        let answers = !self.shared.is_lost(lost)
            && match lost {
                Side::Nats => matches!(timeout(SIGN, self.store.sign_of_life()).await, Ok(Ok(()))),
                Side::Rabbit => matches!(timeout(SIGN, self.operators[0].ping()).await, Ok(Ok(()))),
            };
        if answers && !asked.force {
            let (reason, fix) = match lost {
                Side::Nats => (
                    "NATS answers: it is not lost",
                    "`nats-bridge rollback` loses nothing; --force gives NATS up although it answers",
                ),
                Side::Rabbit => (
                    "RabbitMQ answers: it is not lost",
                    "`nats-bridge weight 100`, then `detach`, loses nothing; --force gives up a RabbitMQ that came back without what it held",
                ),
            };
            return Err(Refused::new(RefusedCode::Conflict, reason, fix));
        }
        Ok(Arc::clone(copies))
    }

    fn known_queues(&self) -> Vec<QueueName> {
        self.shared.order().fences.queues().cloned().collect()
    }

    /// What RabbitMQ's queues held when it last answered, and how long ago that was.
    fn held_by_rabbit(&self) -> HashMap<QueueName, (u64, Duration)> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().map(|(queue, (held, at))| (queue.clone(), (*held, at.elapsed()))).collect()
    }

    /// What is lost with RabbitMQ where there are no copies, for people.
    fn lost_with_rabbit(&self) -> String {
        let held = self.held_by_rabbit();
        let (messages, queues) = (held.values().map(|(held, _)| held).sum::<u64>(), held.len());
        match held.values().map(|(_, age)| age.as_secs()).max() {
            Some(age) => format!(
                "what RabbitMQ held is lost with it, {messages} messages in {queues} queues when it last answered, {age} s ago"
            ),
            None => "what RabbitMQ held is lost with it, and it did not say how much that was".to_owned(),
        }
    }

    async fn give_up_rabbit(&self, asked: &Failover, copies: &Copies, queues: &[QueueName]) -> Result<(), String> {
        let unwritten = |error: WriteError| format!("NATS: {error}");
        {
            let mut saved = self.state.lock().await;
            // First of all: another run lets nobody in before NATS has everything.
            if !saved.state.rabbit_given_up {
                let state = State { rabbit_given_up: true, ..saved.state.clone() };
                let revision = self.store.save(&state, saved.revision).await.map_err(unwritten)?;
                *saved = Saved { state, revision, unsaved: false };
            }
            self.shared.give_up(Side::Rabbit);
        }
        tracing::warn!(
            by = asked.by,
            reason = asked.reason,
            "RabbitMQ is given up: NATS gets the standby copies of what it held"
        );
        let everything = self.shared.order().fences.weight() == Weight::ALL;
        let deadline = Instant::now() + LAST_WORDS;
        while !everything && self.shared.connections.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // RabbitMQ has confirmed their messages.
        copies.arrive().await?;
        let replayed = self.replay(Side::Rabbit, copies, queues).await?;
        let mut saved = self.state.lock().await;
        let state = state_without(Side::Rabbit, &saved.state, asked);
        let revision = self.store.save(&state, saved.revision).await.map_err(unwritten)?;
        *saved = Saved { state, revision, unsaved: false };
        self.adopt_without(Side::Rabbit, &saved.state, replayed);
        Ok(())
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
        self.shared.give_up(Side::Nats);
        let deadline = Instant::now() + LET_GO;
        while self.shared.behind.load(Ordering::Relaxed) < self.shared.connections.load(Ordering::Relaxed)
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let replayed = self.replay(Side::Nats, copies, queues).await?;
        // There is no NATS to write it to.
        let state = state_without(Side::Nats, &saved.state, asked);
        *saved = Saved { state, revision: saved.revision, unsaved: false };
        self.adopt_without(Side::Nats, &saved.state, replayed);
        Ok(())
    }

    /// Gives the other side all copies of what the lost one held, and how many those were.
    async fn replay(&self, lost: Side, copies: &Copies, queues: &[QueueName]) -> Result<u64, String> {
        let progress = {
            let under = self.failover.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&under.progress)
        };
        copies.replay(queues, &progress).await.map_err(|error| format!("{}: {error}", product(lost.other())))?;
        Ok(progress.replayed.load(Ordering::Relaxed))
    }

    /// Puts in force that the other side owns everything.
    fn adopt_without(&self, lost: Side, state: &State, replayed: u64) {
        self.shared.adopt_without(lost, state.epoch, state.position());
        self.stage_began(state);
        self.report(|report| report.epoch = state.epoch);
        tracing::warn!(epoch = state.epoch, replayed, "{} owns everything", product(lost.other()));
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

    /// Removes the copies of queues of which their owner has nothing: of messages that expired or were dropped without anybody's doing. A
    /// queue was seen empty twice, and with it, when it has dead letters, all others.
    pub(super) async fn forget_copies(&self, owner: Side, before: &mut HashMap<QueueName, u128>) {
        let gone = self.shared.is_lost(owner) || self.shared.order().phase == Phase::Native && owner == Side::Rabbit;
        let Some(copies) = self.shared.copies_of(owner).filter(|_| !gone) else { return };
        let next = copies.under_way(self.shared.ids.next());
        let all = copies.queues();
        let mut empty = Vec::new();
        for (queue, dead_letters) in &all {
            let idle = || {
                let order = self.shared.order();
                order.fences.view(queue).is_none_or(|view| view.unsettled[owner.index()] == 0)
                    && !order.held.contains_key(queue)
            };
            let none = idle()
                && matches!(self.operators[owner.index()].depth(queue).await, Ok(Some(depth)) if depth.ready == 0)
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

    /// Notes what RabbitMQ's queues hold, for when it cannot be asked any more.
    pub(super) async fn look_at_rabbit(&self) {
        if self.shared.is_lost(Side::Rabbit) || self.shared.order().phase == Phase::Native {
            return;
        }
        let queues = self.known_queues();
        let known: std::collections::HashSet<&QueueName> = queues.iter().collect();
        self.held.lock().unwrap_or_else(PoisonError::into_inner).retain(|queue, _| known.contains(queue));
        for queue in queues.iter().take(HELD_MOST) {
            let ready = match self.operators[Side::Rabbit.index()].depth(queue).await {
                Ok(depth) => depth.map_or(0, |depth| depth.ready),
                // It goes with its connection.
                Err(error) if error.code == amqp_compat::ReplyCode::ResourceLocked => continue,
                Err(_) => return,
            };
            let held = {
                let order = self.shared.order();
                let view = order.fences.view(queue);
                view.map_or(ready, |view| ready.saturating_sub(view.fences[0]) + view.unsettled[0])
            };
            let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(queue.clone(), (held, Instant::now()));
        }
    }
}

/// The state in which the other side owns everything.
fn state_without(lost: Side, before: &State, asked: &Failover) -> State {
    let (phase, weight_percent) = match lost {
        Side::Rabbit => (Phase::Native, Weight::ALL),
        Side::Nats => (Phase::Observe, Weight::NONE),
    };
    State {
        phase,
        weight_percent,
        epoch: before.epoch + 1,
        by: asked.by.clone(),
        reason: asked.reason.clone(),
        at: now(),
        nats_may_hold: lost == Side::Rabbit,
        shift: None,
        earlier: Vec::new(),
        forced: false,
        rolled_back: None,
        rabbit_given_up: lost == Side::Rabbit,
        salt: before.salt.clone(),
    }
}

fn product(side: Side) -> &'static str {
    match side {
        Side::Rabbit => "RabbitMQ",
        Side::Nats => "NATS",
    }
}
