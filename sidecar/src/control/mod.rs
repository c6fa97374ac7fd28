//! The running cutover: its state in NATS, the changes of phase and weight, and what it tells an operator.

pub mod audit;
mod history;
mod store;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use amqp_compat::backend::{Backend, Login};
use amqp_compat::error::AmqpError;
use async_trait::async_trait;
use nats_bridge::Bridge;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant as Deadline, timeout, timeout_at};

pub use audit::{Audit, Management};
pub use store::{BUCKET, State, Store, WriteError};

use crate::control_api::{
    Adopted, Change, ChangeRecord, Control, DETACHED, History, Phase, QueueParity, QueueStatus, Refused, RefusedCode,
    Side as SideStatus, Sides, Status, Target, Unmapped, Verdict, Weight,
};
use crate::dual::DualBackend;
use crate::dual::logins::{Accepted, Logins};
use crate::dual::operator::{Operator, publish_fences};
use crate::dual::shared::{Routes, Shadow, Shared};
use crate::dual::stamp::Ids;
use crate::fence::{Fences, QueueName, Shift};
use crate::gate;
use crate::integrity;
use crate::ownership::Side;
use crate::phase::{self, Facts, Position};

/// What a cutover is between.
pub struct Parts {
    /// RabbitMQ.
    pub rabbit: Arc<dyn Backend>,
    /// Its address, without user and password.
    pub rabbit_url: String,
    /// How the sidecar itself logs in to RabbitMQ, to publish fences and to ask for counts. Its vhost is replaced.
    pub operator: Login,
    /// JetStream; it has to let in whom RabbitMQ has let in.
    pub nats: Arc<dyn Backend>,
    /// Its address, without user and password.
    pub nats_url: String,
    /// Where the state is kept.
    pub bridge: Bridge,
    /// What JetStream has; `None` takes everything as known.
    pub routes: Option<Arc<dyn Routes>>,
    /// How it is known that JetStream routes like RabbitMQ.
    pub audit: Audit,
    /// Takes the copies of `shadow`.
    pub shadow: Option<Arc<dyn ShadowReport>>,
    /// Users that may log in when RabbitMQ cannot be asked, besides those that it accepted before: vhost, user and
    /// password.
    pub users: Vec<Login>,
    /// How long a hold may keep something waiting. Default of the command line: 30 s.
    pub fence_limit: Duration,
    /// What the gate asks for.
    pub gate: gate::Limits,
    /// How long JetStream may be silent at a weight above 0 before the sidecar rolls back by itself, as it does at once when
    /// messages are corrupted, dropped, reordered or duplicated. `None`: never.
    pub rollback_after: Option<Duration>,
    /// How much is remembered of the messages that JetStream owns.
    pub integrity: integrity::Limits,
}

/// What `shadow` compared.
pub trait ShadowReport: Shadow {
    /// RabbitMQ's queue holds nothing, unsettled deliveries included.
    fn emptied(&self, queue: &QueueName);
    /// By queue.
    fn parity(&self) -> Vec<QueueParity>;
    /// Copies that nothing has been compared with yet.
    fn lag(&self) -> u64;
    /// Copies that are taken and not read back yet.
    fn unread(&self) -> u64;
}

/// The running cutover of one sidecar.
pub struct Cutover {
    shared: Arc<Shared>,
    backend: Arc<DualBackend>,
    /// RabbitMQ's first.
    operators: [Arc<Operator>; 2],
    urls: [String; 2],
    bridge: Bridge,
    store: Store,
    audit: Audit,
    logins: Arc<Logins>,
    shadow: Option<Arc<dyn ShadowReport>>,
    state: Mutex<Saved>,
    draining: AtomicBool,
    /// The changes of what is unmapped that are in the bucket.
    unmapped_kept: AtomicU64,
    tasks: std::sync::Mutex<JoinSet<()>>,
    limits: gate::Limits,
    watch: watch::Watch,
}

/// The state in force, and whether it is in the bucket.
struct Saved {
    state: State,
    revision: u64,
    unsaved: bool,
}

/// How long a change waits for the fences of the one before it.
const BEFORE: Duration = Duration::from_millis(800);
/// How long a change waits, altogether, for its own fences to be in their queues. They go on when it is over.
const AFTER: Duration = Duration::from_millis(900);
/// How often holds are looked at whose time may be over.
const TICK: Duration = Duration::from_millis(100);
/// How often RabbitMQ's queues are looked at, in `shadow`.
const EMPTY: Duration = Duration::from_secs(2);
/// How often RabbitMQ's bindings and policies are compared with JetStream's while NATS owns anything.
const AUDIT: Duration = Duration::from_secs(30);
/// How long status waits for both brokers.
const STATUS: Duration = Duration::from_millis(1500);

impl Cutover {
    /// Takes up the cutover where its state says that it is, and begins to keep it.
    ///
    /// # Errors
    /// A text for people: the state cannot be read, so that it is not known who owns what.
    pub async fn start(parts: Parts) -> Result<Arc<Self>, String> {
        let ids = Ids::new();
        let store = Store::open(&parts.bridge).await?;
        let first = State {
            phase: Position::START.phase,
            weight_percent: Position::START.weight,
            epoch: 1,
            salt: format!("{:016x}", ulid::Ulid::new().0 as u64),
            by: "nats-bridge".to_owned(),
            reason: "first start".to_owned(),
            at: now(),
            nats_may_hold: false,
            shift: None,
            forced: false,
            rolled_back: None,
        };
        let (state, revision) = store.load(first).await?;
        let mut fences = Fences::new(ids.run(), state.epoch, state.weight_percent, parts.fence_limit);
        if let Some(shift) = state.shift {
            fences.resume(shift, Duration::ZERO);
        }
        let mut shared = Shared::new(ids, state.salt(), state.position(), fences, state.nats_may_hold);
        shared.remember(parts.integrity);
        shared.routes = parts.routes;
        shared.shadow = parts.shadow.clone().map(|shadow| shadow as Arc<dyn Shadow>);
        if let Some(shadow) = &shared.shadow {
            shadow.phase(state.phase, state.epoch, shared.ids.run());
        }
        let shared = Arc::new(shared);
        let logins = Arc::new(Logins::default());
        for accepted in store.logins().await? {
            logins.remember(accepted);
        }
        for login in &parts.users {
            logins.accept(login);
        }
        for unmapped in store.unmapped().await? {
            shared.unmapped(&unmapped.vhost, &unmapped.kind, &unmapped.name, unmapped.reason);
        }
        // Queues of earlier runs: what they hold counts, whether or not their applications are back.
        if let Some(routes) = &shared.routes {
            for vhost in logins.vhosts() {
                let queues = routes.durable_queues(&vhost).await.map_err(|e| format!("vhost {vhost}: {e}"))?;
                let vhost: Arc<str> = vhost.into();
                for queue in queues {
                    let name = QueueName { vhost: vhost.clone(), queue: queue.as_str().into() };
                    let actions = shared.order().fences.register(&name, Duration::ZERO);
                    shared.act(actions);
                }
            }
        }
        let (accepted, new_logins) = mpsc::channel(256);
        let backend = Arc::new(DualBackend::new(
            Arc::clone(&shared),
            Arc::clone(&parts.rabbit),
            Arc::clone(&parts.nats),
            Arc::clone(&logins),
            accepted,
        ));
        let operators = [
            Arc::new(Operator::new(Side::Rabbit, parts.rabbit, parts.operator.clone())),
            Arc::new(Operator::new(Side::Nats, parts.nats, parts.operator)),
        ];
        tracing::info!(phase = %state.phase, weight = %state.weight_percent, epoch = state.epoch, "the cutover is here");
        let cutover = Arc::new(Self {
            shared,
            backend,
            operators,
            urls: [parts.rabbit_url, parts.nats_url],
            bridge: parts.bridge,
            store,
            audit: parts.audit,
            logins,
            shadow: parts.shadow,
            state: Mutex::new(Saved { state, revision, unsaved: false }),
            draining: AtomicBool::new(false),
            unmapped_kept: AtomicU64::new(0),
            tasks: std::sync::Mutex::new(JoinSet::new()),
            limits: parts.gate,
            watch: watch::Watch::default(),
        });
        match cutover.store.history().await {
            Ok(states) => states.iter().for_each(|state| cutover.watch.note(state)),
            Err(error) => tracing::warn!(error, "earlier changes are not listed"),
        }
        cutover.stage_began(&cutover.state.lock().await.state);
        cutover.spawn(new_logins, parts.rollback_after);
        Ok(cutover)
    }

    /// The backend to run sessions against.
    pub fn backend(&self) -> Arc<DualBackend> {
        Arc::clone(&self.backend)
    }

    /// What all its links share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether RabbitMQ lets the sidecar itself in; it is not asked once it is detached.
    ///
    /// # Errors
    /// RabbitMQ's own for a refused login (403) or vhost (530), or that it does not answer.
    pub async fn try_rabbit(&self) -> Result<(), AmqpError> {
        if self.shared.order().phase == Phase::Native {
            return Ok(());
        }
        self.operators[Side::Rabbit.index()].ping().await
    }

    /// Refuses changes from now on: the sidecar is shutting down.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Ends its tasks. Nothing is lost: what a restart needs is in the bucket already.
    pub fn stop(&self) {
        self.drain();
        self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).abort_all();
    }

    fn spawn(self: &Arc<Self>, mut new_logins: mpsc::Receiver<Accepted>, rollback_after: Option<Duration>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for operator in &self.operators {
            tasks.spawn(publish_fences(Arc::clone(&self.shared), Arc::clone(operator)));
        }
        let store = self.store.clone();
        tasks.spawn(async move {
            while let Some(accepted) = new_logins.recv().await {
                if let Err(error) = store.keep_login(&accepted).await {
                    tracing::warn!(error, user = accepted.user, "a login is not known to the next run of the sidecar");
                }
            }
        });
        let keeper = Arc::downgrade(self);
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(TICK);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let Some(cutover) = keeper.upgrade() else { return };
                cutover.keep().await;
            }
        });
        let comparer = Arc::downgrade(self);
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(EMPTY).await;
                let Some(cutover) = comparer.upgrade() else { return };
                cutover.look_for_empty_queues().await;
            }
        });
        let sampler = Arc::downgrade(self);
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(history::EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let Some(cutover) = sampler.upgrade() else { return };
                cutover.sample().await;
            }
        });
        if let Some(silence) = rollback_after {
            tasks.spawn(Self::guard(Arc::downgrade(self), silence));
        }
        let auditor = Arc::downgrade(self);
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(AUDIT).await;
                let Some(cutover) = auditor.upgrade() else { return };
                let phase = cutover.shared.order().phase;
                if matches!(phase, Phase::Canary | Phase::Cutover)
                    && let Err(refused) = cutover.routes_alike().await
                {
                    cutover.shared.warn("routes_differ", refused.reason);
                }
            }
        });
        let (written, mut heard) = mpsc::channel(16);
        let store = self.store.clone();
        tasks.spawn(async move {
            while !written.is_closed() {
                if let Err(error) = store.watch(&written).await {
                    tracing::debug!(error, "the state cannot be watched for now");
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let watcher = Arc::downgrade(self);
        tasks.spawn(async move {
            while let Some((state, revision)) = heard.recv().await {
                let Some(cutover) = watcher.upgrade() else { return };
                cutover.changed_elsewhere(state, revision).await;
            }
        });
    }

    /// Lifts holds whose time is over, and writes what could not be written, or is no longer needed.
    async fn keep(&self) {
        let now = self.shared.now();
        let (actions, holds) = {
            let mut order = self.shared.order();
            let actions = order.fences.tick(now);
            (actions, order.fences.any_hold())
        };
        self.shared.act(actions);
        let changes = self.shared.unmapped_changes.load(Ordering::Relaxed);
        if changes != self.unmapped_kept.load(Ordering::Relaxed)
            && self.store.keep_unmapped(&self.shared.all_unmapped()).await.is_ok()
        {
            self.unmapped_kept.store(changes, Ordering::Relaxed);
        }
        // A change that is under way has the lock, and writes itself.
        let Ok(mut saved) = self.state.try_lock() else { return };
        let drained = saved.state.shift.is_some() && !holds && now > Fences::RESUME_FOR;
        if !saved.unsaved && !drained {
            return;
        }
        let mut state = saved.state.clone();
        if drained {
            state.shift = None;
        }
        match self.store.save(&state, saved.revision).await {
            Ok(revision) => *saved = Saved { state, revision, unsaved: false },
            Err(WriteError::Conflict) => {
                saved.unsaved = false;
                self.shared.warn("state_conflict", "the state was changed elsewhere while NATS was away".to_owned());
            }
            Err(WriteError::Unreachable(_)) => {}
        }
    }

    /// Tells `shadow` which queues of RabbitMQ are empty: copies that are left of them were one too many.
    async fn look_for_empty_queues(&self) {
        let Some(shadow) = &self.shadow else { return };
        let queues: Vec<QueueName> = {
            let order = self.shared.order();
            if order.phase != Phase::Shadow {
                return;
            }
            let settled = |q: &&QueueName| order.fences.view(q).is_some_and(|v| v.unsettled[0] == 0);
            order.fences.queues().filter(settled).cloned().collect()
        };
        for queue in queues {
            match self.operators[0].depth(&queue).await {
                Ok(Some(depth)) if depth.ready == 0 => {
                    let unsettled = self.shared.order().fences.view(&queue).map_or(0, |v| v.unsettled[0]);
                    if unsettled == 0 {
                        shadow.emptied(&queue);
                    }
                }
                Ok(_) => {}
                Err(error) if error.code == amqp_compat::ReplyCode::ResourceLocked => {}
                Err(_) => return,
            }
        }
    }

    /// Adopts a change that another sidecar, or a human with a KV client, has made.
    async fn changed_elsewhere(&self, state: State, revision: u64) {
        let mut saved = self.state.lock().await;
        if revision <= saved.revision {
            return;
        }
        let newer = state.epoch > saved.state.epoch;
        *saved = Saved { state: state.clone(), revision, unsaved: false };
        if newer {
            tracing::info!(phase = %state.phase, weight = %state.weight_percent, by = state.by, "adopts a change");
            self.shared.adopt(state.epoch, state.position());
            self.stage_began(&state);
        }
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
    async fn routes_alike(&self) -> Result<(), Refused> {
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
        let Some(first) = findings.first() else { return Ok(()) };
        let more = match findings.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        let Unmapped { kind, name, vhost, reason } = first;
        Err(Refused::new(
            RefusedCode::Unmapped,
            format!("{kind} {name} in vhost {vhost}: {reason}{more}"),
            "let its application declare it through the sidecar, or remove it; then try again",
        ))
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
            sum += ready.saturating_sub(fences);
        }
        Some(sum)
    }

    /// Waits until the fences of all changes so far are in their queues.
    async fn fences_are_sent(&self, deadline: Instant) -> bool {
        loop {
            if self.shared.order().fences.can_begin() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
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
                    Err(error) if error.code == amqp_compat::ReplyCode::ResourceLocked => None,
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

    async fn side(&self, side: Side, unsettled: u64, deadline: Deadline) -> SideStatus {
        let answer = match side {
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

#[async_trait]
impl Control for Cutover {
    async fn status(&self) -> Status {
        let deadline = Deadline::now() + STATUS;
        let saved = self.state.lock().await.state.clone();
        let mut queues: Vec<QueueName> = self.shared.order().fences.queues().cloned().collect();
        queues.sort();
        let native = saved.phase == Phase::Native;
        let (rabbit_ready, nats_ready) = tokio::join!(
            async {
                if native { vec![None; queues.len()] } else { self.depths(&queues, Side::Rabbit, deadline).await }
            },
            self.depths(&queues, Side::Nats, deadline),
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
            });
        }
        let (rabbit, nats) = tokio::join!(
            self.side(Side::Rabbit, unsettled[0], deadline),
            self.side(Side::Nats, unsettled[1], deadline)
        );
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
            faults: self.faults(),
            rolled_back: saved.rolled_back,
        }
    }

    async fn change(&self, request: Change) -> Result<Adopted, Refused> {
        self.make(request, None).await
    }

    async fn gate(&self) -> Verdict {
        let state = self.state.lock().await.state.clone();
        self.verdict(&state).await
    }

    async fn history(&self) -> History {
        self.watch.history()
    }

    async fn changes(&self) -> Vec<ChangeRecord> {
        self.watch.changes()
    }
}

impl Cutover {
    /// Makes a change; `itself` is why the sidecar makes it by itself.
    async fn make(&self, request: Change, itself: Option<String>) -> Result<Adopted, Refused> {
        let began = Instant::now();
        if self.draining.load(Ordering::Relaxed) {
            let fix = "change the state through the sidecar that takes its place";
            return Err(Refused::new(RefusedCode::Draining, "the sidecar is shutting down", fix));
        }
        let mut saved = self.state.lock().await;
        let at = saved.state.position();
        let facts = self.facts(at, request.to).await;
        let Some(next) = phase::change(at, request.to, facts)? else {
            return Ok(adopted(&saved.state, false, began));
        };
        // Only once NATS has caught up: what it has yet to be told is not missing.
        if next.weight > at.weight {
            self.routes_alike().await?;
        }
        let mut forced = false;
        if next.weight > at.weight {
            let verdict = self.verdict(&saved.state).await;
            forced = !verdict.may_go_on;
            if forced && !request.force {
                return Err(Refused::gate(verdict));
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
        if moves && !self.fences_are_sent(Instant::now() + BEFORE).await {
            let [rabbit, nats] = self.shared.order().fences.in_flight();
            let what = format!("{rabbit} publishes to RabbitMQ and {nats} to NATS are not confirmed");
            if next.weight > at.weight {
                let reason = format!("the change before is still being put in force: {what}, or a fence is not stored");
                return Err(Refused::new(RefusedCode::Conflict, reason, "try again in a moment"));
            }
            // The way out is not refused. Order may then have to wait for the time limit.
            self.shared.warn("overlapping_changes", format!("keys were given back while {what}"));
        }
        let epoch = saved.state.epoch + 1;
        let state = State {
            phase: next.phase,
            weight_percent: next.weight,
            epoch,
            by: request.by,
            reason: request.reason,
            at: now(),
            nats_may_hold: saved.state.nats_may_hold || next.weight > Weight::NONE,
            shift: if moves { Some(Shift { epoch, from: at.weight, to: next.weight }) } else { saved.state.shift },
            forced,
            rolled_back: match itself {
                Some(why) => Some(why),
                // Looked into: everything is compared anew, or somebody takes it on himself.
                None if next.phase == Phase::Observe || next.weight > at.weight => None,
                None => saved.state.rolled_back.clone(),
            },
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
        let state = saved.state.clone();
        self.stage_began(&state);
        if moves {
            self.fences_are_sent(began + AFTER).await;
        }
        let adopted = adopted(&state, true, began);
        tracing::info!(
            phase = %adopted.phase, weight = %adopted.weight_percent, epoch, by = adopted.by, reason = adopted.reason,
            took_ms = adopted.took_ms, "a change is in force"
        );
        Ok(adopted)
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

fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
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
