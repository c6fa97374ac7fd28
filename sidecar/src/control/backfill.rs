//! The backlog from before `shadow` gets its standby copies on JetStream, so that RabbitMQ may be lost with its disk.
//!
//! Each queue is read to its end and given back ([`crate::copies::peek`]); what has no copy yet gets one, in the queue's order. Meanwhile its
//! consumers wait: what they would get from behind what is read would be out of order. RabbitMQ is changed in nothing but the flag
//! `redelivered` and, on quorum queues, the count of deliveries. A process that is killed in the middle has its messages put back by RabbitMQ; which
//! copies there are is read from where they are kept, so that nothing is copied twice.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use amqp_compat::backend::Message;
use amqp_compat::error::{AmqpError, ReplyCode};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Audit, Cutover, now};
use crate::control_api::{
    Backfill, BackfillCode, BackfillQueue, BackfillRefused, BackfillReport, BackfillState, Outcome, Phase, Refused,
    RefusedCode, fits,
};
use crate::copies::Copies;
use crate::copies::backlog::Survey;
use crate::copies::late::Late;
use crate::copies::peek::Peek;
use crate::dual::returns::Awaited;
use crate::dual::shared::Shared;
use crate::dual::stamp;
use crate::fence::QueueName;
use crate::ownership::Side;

/// Copies that are on their way at once.
const WINDOW: usize = 1_024;
/// How long consumers may take to settle what they have before their queue is read.
const SETTLE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// How long RabbitMQ may take to have everything back in its place when its link was lost.
const BACK: Duration = Duration::from_secs(20);

/// Consumers of a queue wait until it is dropped.
struct Pause<'a> {
    shared: &'a Shared,
    queue: &'a QueueName,
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.shared.pause(self.queue, false);
    }
}

/// Why a queue has not got all its copies.
enum Left {
    Alone(BackfillRefused),
    Stopped(String),
}

impl From<AmqpError> for Left {
    fn from(error: AmqpError) -> Self {
        Left::Stopped(error.to_string())
    }
}

fn alone(code: BackfillCode, reason: impl Into<String>, fix: &str) -> Left {
    Left::Alone(BackfillRefused { code, reason: reason.into(), fix: fix.to_owned() })
}

impl Cutover {
    /// How far a backfill is.
    pub(super) fn backfill_now(&self) -> Option<BackfillReport> {
        self.backfill.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn backfilled(&self, change: impl FnOnce(&mut BackfillReport)) {
        if let Some(report) = self.backfill.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(report);
        }
    }

    fn of_queue(&self, index: usize, change: impl FnOnce(&mut BackfillQueue)) {
        self.backfilled(|report| {
            if let Some(queue) = report.queues.get_mut(index) {
                change(queue);
            }
        });
    }

    /// Takes up what an earlier run has left: a queue with late copies settles them by what they look like.
    pub(super) async fn resume_backfill(self: &Arc<Self>) {
        let report = match self.store.backfill().await {
            Ok(Some(report)) => report,
            Ok(None) => return,
            Err(error) => return tracing::warn!(error, "what an earlier backfill did is not known"),
        };
        let stopped = || Some("the sidecar was stopped; the same command goes on".to_owned());
        let error = if report.running { stopped() } else { report.error.clone() };
        let report = BackfillReport { running: false, error, ..report };
        let Some(copies) = self.shared.copies_of(Side::Rabbit).filter(|_| self.shared.order().phase != Phase::Native)
        else {
            return;
        };
        let touched = |queue: &&BackfillQueue| queue.state != BackfillState::Waiting;
        let name =
            |queue: &BackfillQueue| QueueName { vhost: queue.vhost.as_str().into(), queue: queue.name.as_str().into() };
        let queues: Vec<QueueName> = report.queues.iter().filter(touched).map(name).collect();
        queues.iter().for_each(|queue| copies.expect_late(queue));
        *self.backfill.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        let copies = Arc::clone(copies);
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
            for queue in queues {
                match copies.known(&queue).await {
                    Ok(known) => copies.load_late(&queue, &known),
                    Err(error) => tracing::warn!(%queue, %error, "which late copies there are is not known"),
                }
            }
        });
    }

    /// Begins a backfill, or tells what it would do; [`Cutover::backfill_now`] tells how far it is.
    pub(super) async fn fill_back(self: Arc<Self>, asked: Backfill) -> Result<BackfillReport, Refused> {
        if let Some(report) = self.backfill_now().filter(|report| report.running) {
            return Ok(report);
        }
        let copies = self.may_fill_back()?;
        let unmapped = self.shared.all_unmapped().len() as u64;
        let mut names: Vec<QueueName> = self.shared.order().fences.queues().cloned().collect();
        names.retain(|q| asked.queues.is_empty() || asked.queues.iter().any(|pattern| fits(pattern, &q.queue)));
        names.retain(|q| self.declared(q).is_some());
        names.sort();
        if names.is_empty() && !asked.queues.is_empty() {
            let reason = format!("no durable queue that JetStream has is named {}", asked.queues.join(" or "));
            return Err(Refused::invalid("queues", reason, "`nats-bridge status` lists the queues"));
        }
        let down = |error: AmqpError| {
            Refused::new(RefusedCode::SideDown, format!("RabbitMQ: {error}"), "start RabbitMQ, then try again")
        };
        let mut queues = Vec::with_capacity(names.len());
        for name in &names {
            let depth = self.operators[Side::Rabbit.index()].depth(name).await.map_err(down)?;
            let fences = self.shared.order().fences.view(name).map_or(0, |view| view.fences[0]);
            let mut queue = BackfillQueue {
                vhost: name.vhost.to_string(),
                name: name.queue.to_string(),
                held: depth.map_or(0, |depth| depth.ready.saturating_sub(fences)),
                ..BackfillQueue::default()
            };
            if let Err(Left::Alone(refused)) = self.may_be_read(name).await {
                (queue.state, queue.refused) = (BackfillState::Refused, Some(refused));
            }
            queues.push(queue);
        }
        let Backfill { dry_run, by, reason, from, queues: patterns } = asked;
        let report = BackfillReport { dry_run, by, reason, at: now(), unmapped, queues, ..BackfillReport::default() };
        if dry_run {
            return Ok(report);
        }
        let report = BackfillReport { running: true, ..report };
        *self.backfill.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        tracing::info!(by = report.by, reason = report.reason, queues = names.len(), "a backfill begins");
        let cutover = Arc::clone(&self);
        let (by, reason) = (report.by.clone(), report.reason.clone());
        let what = if patterns.is_empty() { "backfill".to_owned() } else { format!("backfill {}", patterns.join(" ")) };
        self.log(&what, Outcome::Begun, &by, &from, &reason, String::new()).await;
        // A caller that goes away does not leave it half done.
        tokio::spawn(async move {
            let work = Arc::clone(&cutover);
            let done = tokio::spawn(async move { work.fill_queues(&names, &copies).await }).await;
            let done = done.unwrap_or_else(|error| Err(format!("the sidecar's own fault: {error}")));
            cutover.backfilled(|report| {
                report.running = false;
                report.done = done.is_ok();
                report.error = done.err();
            });
            cutover.keep_backfill().await;
            let Some(report) = cutover.backfill_now() else { return };
            let (outcome, detail) = match &report.error {
                Some(why) => (Outcome::Failed, why.clone()),
                None => (Outcome::Done, format!("{} copied, {} left", report.progress().copied, report.left())),
            };
            cutover.log(&what, outcome, &by, &from, &reason, detail).await;
        });
        Ok(report)
    }

    fn declared(&self, queue: &QueueName) -> Option<crate::dual::shared::Declared> {
        let routes = self.shared.routes.as_ref()?;
        routes.outlives(&queue.vhost, &queue.queue)?;
        routes.declared(&queue.vhost, &queue.queue)
    }

    fn may_fill_back(&self) -> Result<Arc<Copies>, Refused> {
        let refused = |reason: String, fix: &str| Err(Refused::new(RefusedCode::WrongPhase, reason, fix));
        let phase = self.shared.order().phase;
        if phase == Phase::Observe {
            let reason = "in observe NATS keeps no copies".to_owned();
            return refused(reason, "`nats-bridge shadow` begins to keep them; then backfill");
        }
        if phase == Phase::Native || self.shared.is_lost(Side::Rabbit) || self.shared.nats_is_lost() {
            return refused(
                "a broker is let go of: there is nothing to copy".to_owned(),
                "look at `nats-bridge status`",
            );
        }
        match self.shared.copies_of(Side::Rabbit) {
            Some(copies) => Ok(Arc::clone(copies)),
            None => refused(
                "the sidecar keeps no standby copies of what RabbitMQ owns (--standby)".to_owned(),
                "start it with --standby both",
            ),
        }
    }

    /// Whether reading a queue leaves it as it is.
    async fn may_be_read(&self, queue: &QueueName) -> Result<(), Left> {
        let Some(declared) = self.declared(queue) else { return Ok(()) };
        if declared.auto_delete {
            let reason = "it is deleted with its last consumer, and reading it is consuming";
            return Err(alone(BackfillCode::AutoDelete, reason, "let its consumers drain it"));
        }
        if !declared.quorum {
            return Ok(());
        }
        let limit = match (&self.audit, declared.delivery_limit) {
            (_, Some(limit)) => Some(limit),
            (Audit::Trusted, None) => None,
            (Audit::Unknown, None) => {
                let reason = "whether a policy limits how often its messages are returned is not known";
                let fix = "start the sidecar with --rabbit-management, or vouch with --trust-declared";
                return Err(alone(BackfillCode::PolicyUnknown, reason, fix));
            }
            (Audit::Management(management), None) => {
                let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let name = |text: &str| encode(text).replace('+', "%20");
                let path = format!("/api/queues/{}/{}", name(&queue.vhost), name(&queue.queue));
                let known: Value = management.ask(&path).await.map_err(|why| {
                    let reason = format!("whether a policy limits how often its messages are returned: {why}");
                    alone(BackfillCode::PolicyUnknown, reason, "mend the management API, then try again")
                })?;
                let by_policy = known["effective_policy_definition"]["delivery-limit"].as_u64();
                by_policy.or_else(|| known["delivery_limit"].as_u64())
            }
        };
        match limit {
            None => Ok(()),
            Some(limit) => Err(alone(
                BackfillCode::DeliveryLimit,
                format!("what is read counts as returned, and at {limit} returns a message is dead-lettered"),
                "let its consumers drain it, or lift the limit meanwhile",
            )),
        }
    }

    async fn fill_queues(&self, names: &[QueueName], copies: &Copies) -> Result<(), String> {
        let mut stopped = None;
        for (index, name) in names.iter().enumerate() {
            let skip = self.backfill_now().and_then(|r| r.queues.get(index).map(|q| q.state == BackfillState::Refused));
            if skip == Some(true) {
                continue;
            }
            match self.fill_queue(index, name, copies).await {
                Ok(()) => self.of_queue(index, |queue| queue.state = BackfillState::Done),
                Err(Left::Alone(refused)) => {
                    tracing::warn!(queue = %name, reason = refused.reason, "a queue was not backfilled");
                    self.of_queue(index, |queue| {
                        (queue.state, queue.refused) = (BackfillState::Refused, Some(refused));
                    });
                }
                Err(Left::Stopped(why)) => {
                    tracing::warn!(queue = %name, why, "a backfill stopped");
                    self.of_queue(index, |queue| queue.state = BackfillState::Stopped);
                    stopped = Some(format!("queue {name}: {why}"));
                }
            }
            self.keep_backfill().await;
            if let Some(why) = stopped {
                return Err(why);
            }
        }
        Ok(())
    }

    async fn keep_backfill(&self) {
        let Some(mut report) = self.backfill_now() else { return };
        // An entry of a bucket has a bound.
        report.queues.retain(|queue| queue.state != BackfillState::Waiting);
        if let Err(error) = self.store.keep_backfill(&report).await {
            tracing::warn!(error, "how far the backfill is would not be known to another run of the sidecar");
        }
    }

    async fn fill_queue(&self, index: usize, name: &QueueName, copies: &Copies) -> Result<(), Left> {
        let began = Instant::now();
        let _pause = Pause { shared: &self.shared, queue: name };
        let (ready, fences) = self.stand_still(name).await?;
        let held = ready.saturating_sub(fences);
        self.of_queue(index, |queue| (queue.state, queue.held) = (BackfillState::Reading, held));
        // As many as there are fences may be messages: RabbitMQ may have lost a fence.
        if ready == 0 {
            self.of_queue(index, |queue| queue.paused_ms = millis(began));
            return Ok(());
        }
        // Of this queue late copies may be from here on: another run has to know it.
        self.keep_backfill().await;
        let before = copies.under_way(self.shared.ids.next());
        copies.expect_late(name);
        let known = copies.known(name).await?;
        copies.load_late(name, &known);
        let mut survey = Survey::new(known, before);
        let (told, mut hears) = mpsc::unbounded_channel();
        let mut on_their_way = 0;
        let mut talk = self.operators[Side::Rabbit.index()].talk(&name.vhost).await?;
        let mut peek = Peek::new(&mut talk, Side::Rabbit, &name.queue);
        let mut done = peek.begin().await.map(|_| ());
        while done.is_ok() {
            let mut message = match peek.next().await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    done = Err(error);
                    break;
                }
            };
            if stamp::is_fence(&message).is_some() {
                continue;
            }
            let read = stamp::unstamp(&mut message);
            stamp::without_count(&mut message);
            self.of_queue(index, |queue| queue.read += 1);
            if self.not_carried(name, &message) {
                self.of_queue(index, |queue| queue.not_carried += 1);
                continue;
            }
            let Some((id, place)) = survey.sees(read.id, &message) else {
                self.of_queue(index, |queue| queue.had += 1);
                continue;
            };
            copies.keep_late(name, Late { id, epoch: read.epoch, place, message }, told.clone());
            on_their_way += 1;
            if on_their_way >= WINDOW {
                on_their_way -= 1;
                done = self.stored(index, hears.recv().await);
            }
        }
        while on_their_way > 0 && done.is_ok() {
            on_their_way -= 1;
            done = self.stored(index, hears.recv().await);
        }
        if let Err(error) = peek.give_back().await {
            drop(talk);
            self.is_back(name).await;
            done = done.and(Err(error));
        }
        self.of_queue(index, |queue| queue.paused_ms = millis(began));
        Ok(done?)
    }

    fn stored(&self, index: usize, told: Option<(u128, bool)>) -> Result<(), AmqpError> {
        match told {
            Some((_, true)) => {
                self.of_queue(index, |queue| queue.copied += 1);
                Ok(())
            }
            Some((_, false)) | None => {
                let text = "NATS has not taken a copy: it is away, or its store is full";
                Err(AmqpError::new(ReplyCode::InternalError, text))
            }
        }
    }

    /// Whether a message is larger than NATS takes.
    fn not_carried(&self, queue: &QueueName, message: &Message) -> bool {
        let too_large = |error: AmqpError| error.code == ReplyCode::ContentTooLarge;
        self.shared.routes.as_ref().is_some_and(|r| r.route(&queue.vhost, message).is_err_and(too_large))
    }

    /// Lets go of the consumers of a queue, and waits until nothing of it is in anybody's hands and RabbitMQ has back what was; answers what
    /// it holds, and how many fences are awaited of it.
    async fn stand_still(&self, queue: &QueueName) -> Result<(u64, u64), Left> {
        let deadline = Instant::now() + SETTLE;
        loop {
            // Again: of a consumer that was just beginning.
            self.shared.pause(queue, true);
            // Before the depth, which is of no use as long as something is on its way.
            let awaited = self.shared.awaited(queue);
            let depth = match self.operators[Side::Rabbit.index()].depth(queue).await? {
                Some(depth) => depth,
                None => return Ok((0, 0)),
            };
            let (in_hand, fences) = {
                let order = self.shared.order();
                order.fences.view(queue).map_or((0, 0), |view| (view.unsettled[0], view.fences[0]))
            };
            if depth.consumers == 0 && in_hand == 0 && awaited == Awaited::Nothing {
                return Ok((depth.ready, fences));
            }
            if Instant::now() >= deadline {
                let seconds = SETTLE.as_secs();
                return Err(match (in_hand, awaited) {
                    (0, Awaited::Lost(left)) => alone(
                        BackfillCode::InHand,
                        "RabbitMQ may not have noticed yet that a connection is gone which had messages of it",
                        &format!("run it again in {} s", left.as_secs() + 1),
                    ),
                    (0, Awaited::Links(links)) if depth.consumers == 0 => alone(
                        BackfillCode::InHand,
                        format!(
                            "RabbitMQ has not answered {links} connections, which gave messages of it back, within {seconds} s"
                        ),
                        "run it again when it does; `rabbitmqctl list_connections name state` says which it does not read",
                    ),
                    (0, _) => alone(
                        BackfillCode::ConsumedPastTheSidecar,
                        format!("it has {} consumers that the sidecar does not know", depth.consumers),
                        "point them at the sidecar, or stop them meanwhile",
                    ),
                    (some, _) => alone(
                        BackfillCode::InHand,
                        format!("its consumers have not settled {some} messages within {seconds} s"),
                        "run it again when they have",
                    ),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until RabbitMQ has everything back whose link was lost: consumers would get what lies behind it first.
    async fn is_back(&self, queue: &QueueName) {
        let deadline = Instant::now() + BACK;
        while Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
            match self.operators[Side::Rabbit.index()].depth(queue).await {
                Ok(Some(depth)) if depth.consumers > 0 => {}
                Ok(_) => return,
                Err(_) => {}
            }
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
