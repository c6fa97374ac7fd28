//! The running cutover: its state in NATS, the changes of phase and weight, and what it tells an operator.

pub mod audit;
mod backfill;
mod change;
mod failover;
mod history;
mod journal;
mod lookups;
mod rehearse;
mod status;
mod store;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use amqp_compat::backend::jetstream::Lease;
use amqp_compat::backend::{Backend, Login};
use amqp_compat::error::AmqpError;
use async_trait::async_trait;
use nats_bridge::Bridge;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

pub use audit::{Audit, Management};
pub use store::{BUCKET, State, Store, WriteError};

use self::change::Because;
use crate::assess::digest::OF_THE_SIDECAR;
use crate::control_api::{
    Adopted, Backfill, BackfillReport, Change, ChangeRecord, Control, Failover, FailoverReport, History, LogEntry,
    Outcome, Phase, QueueParity, Refused, RefusedCode, Rehearsal, Rehearse, SidecarStatus, Status, Target, Verdict,
    Weight,
};
use crate::copies::{Copies, Standby};
use crate::dual::DualBackend;
use crate::dual::fencing::publish_fences;
use crate::dual::logins::{Accepted, Logins};
use crate::dual::operator::Operator;
use crate::dual::shared::{Routes, Shadow, Shared};
use crate::dual::stamp::Ids;
use crate::fence::{Fences, QueueName};
use crate::gate;
use crate::integrity;
use crate::ownership::Side;
use crate::phase::Position;
use crate::traces::Traces;

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
    /// Of whose messages the other broker keeps copies, so that a broker can be lost.
    pub standby: Standby,
    /// Where spans of what passes through go; `None`: nowhere.
    pub traces: Option<Arc<Traces>>,
    /// Under what it leads other sidecars; `None`: it is the only one.
    pub lead: Option<Lead>,
}

/// What a sidecar leads others under.
#[derive(Debug, Clone)]
pub struct Lead {
    /// The lease.
    pub lease: Lease,
    /// How it came to it, for the history.
    pub how: String,
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
    failover: std::sync::Mutex<failover::Under>,
    /// The sidecars that share the account with this one.
    others: std::sync::OnceLock<tokio::sync::watch::Receiver<Vec<SidecarStatus>>>,
    /// The backfill of this run, or what is known of an earlier one.
    backfill: std::sync::Mutex<Option<BackfillReport>>,
    rehearsal: std::sync::Mutex<Option<Rehearsal>>,
    journal: journal::Journal,
    /// What RabbitMQ's queues held when it was last asked.
    held: std::sync::Mutex<foldhash::HashMap<QueueName, (u64, std::time::Instant)>>,
}

/// The state in force, and whether it is in the bucket.
struct Saved {
    state: State,
    revision: u64,
    unsaved: bool,
}

/// How often holds are looked at whose time may be over.
const TICK: Duration = Duration::from_millis(100);
/// How often RabbitMQ's queues are looked at, in `shadow`.
const EMPTY: Duration = Duration::from_secs(2);
/// How often queues are looked for that hold nothing, while there are standby copies of them, and RabbitMQ is asked what its queues hold.
const FORGET: Duration = Duration::from_secs(5);
/// How often RabbitMQ's bindings and policies are compared with JetStream's while NATS owns anything.
const AUDIT: Duration = Duration::from_secs(30);

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
            earlier: Vec::new(),
            forced: false,
            rolled_back: None,
            rabbit_given_up: false,
        };
        let (mut state, mut revision) = store.load(first.clone()).await?;
        if let Some(lead) = parts.lead.as_ref().filter(|_| state != first) {
            (state, revision) = store.succeed(state, revision, &lead.how).await?;
        }
        let mut fences = Fences::new(ids.run(), state.epoch, state.weight_percent, parts.fence_limit);
        fences.resume(state.earlier.iter().copied().chain(state.shift).collect(), Duration::ZERO);
        let operators = [
            Arc::new(Operator::new(Side::Rabbit, Arc::clone(&parts.rabbit), parts.operator.clone())),
            Arc::new(Operator::new(Side::Nats, Arc::clone(&parts.nats), parts.operator)),
        ];
        let mut shared = Shared::new(ids, state.salt(), state.position(), fences, state.nats_may_hold);
        for owner in Side::BOTH.into_iter().filter(|owner| parts.standby.of(*owner)) {
            let keeper = &operators[owner.other().index()];
            let copies = |routes| Arc::new(Copies::new(owner, Arc::clone(keeper), Arc::clone(routes)));
            shared.copies[owner.index()] = parts.routes.as_ref().map(copies);
        }
        if state.rabbit_given_up {
            shared.give_up(Side::Rabbit);
        }
        shared.lease = parts.lead.map(|lead| lead.lease);
        shared.traces = parts.traces;
        shared.routes = parts.routes;
        shared.remember(parts.integrity);
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
                    if queue.as_str().starts_with(OF_THE_SIDECAR) {
                        if let Some(copies) = shared.copies_of(Side::Rabbit).filter(|_| state.phase != Phase::Native) {
                            copies.take_up(&name);
                        }
                        continue;
                    }
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
        tracing::info!(phase = %state.phase, weight = %state.weight_percent, epoch = state.epoch, "the cutover is here");
        let journal = journal::Journal::open(parts.bridge.clone()).await?;
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
            failover: std::sync::Mutex::default(),
            others: std::sync::OnceLock::new(),
            backfill: std::sync::Mutex::default(),
            rehearsal: std::sync::Mutex::default(),
            journal,
            held: std::sync::Mutex::default(),
        });
        let (phase, rabbit_is_lost) = (cutover.shared.order().phase, cutover.shared.is_lost(Side::Rabbit));
        if phase != Phase::Native && rabbit_is_lost {
            tracing::warn!(
                "RabbitMQ was given up, and NATS does not own everything yet: `nats-bridge failover` goes on"
            );
        } else if phase != Phase::Native {
            cutover.not_given_up().await?;
        }
        match cutover.store.history().await {
            Ok(states) => states.iter().for_each(|state| cutover.watch.note(state)),
            Err(error) => tracing::warn!(error, "earlier changes are not listed"),
        }
        cutover.resume_rehearsal().await;
        cutover.resume_backfill().await;
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

    /// The sidecars that share the account with this one, itself included, are listed in its status from now on.
    pub fn know_others(&self, all: tokio::sync::watch::Receiver<Vec<SidecarStatus>>) {
        // It leads once.
        let _ = self.others.set(all);
    }

    /// Whether NATS was given up for good in this run.
    pub fn has_given_up_nats(&self) -> bool {
        self.shared.nats_is_lost()
    }

    /// Whether RabbitMQ lets the sidecar itself in; it is not asked once it is detached.
    ///
    /// # Errors
    /// RabbitMQ's own for a refused login (403) or vhost (530), or that it does not answer.
    pub async fn try_rabbit(&self) -> Result<(), AmqpError> {
        if self.shared.order().phase == Phase::Native || self.shared.is_lost(Side::Rabbit) {
            return Ok(());
        }
        self.operators[Side::Rabbit.index()].ping().await
    }

    /// Refuses changes from now on: the sidecar is shutting down.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// No client is there any more: waits until the other broker has the copies that it is to have, for 5 s at most.
    pub async fn last_words(&self) {
        for copies in Side::BOTH.into_iter().filter_map(|side| self.shared.copies_of(side)) {
            copies.last_words().await;
        }
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
        let forgetter = Arc::downgrade(self);
        tasks.spawn(async move {
            let mut before: [foldhash::HashMap<_, _>; 2] = Default::default();
            loop {
                tokio::time::sleep(FORGET).await;
                let Some(cutover) = forgetter.upgrade() else { return };
                for owner in Side::BOTH {
                    cutover.forget_copies(owner, &mut before[owner.index()]).await;
                }
                cutover.look_at_rabbit().await;
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
        tasks.spawn(lookups::look(Arc::downgrade(self)));
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
            && !self.shared.nats_is_lost()
            && self.store.keep_unmapped(&self.shared.all_unmapped()).await.is_ok()
        {
            self.unmapped_kept.store(changes, Ordering::Relaxed);
        }
        if self.shared.nats_is_lost() {
            return;
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
            state.earlier = Vec::new();
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
        let given_up = Side::BOTH.into_iter().any(|side| self.shared.is_lost(side));
        if revision <= saved.revision || given_up && saved.state.phase != Phase::Native {
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
}

#[async_trait]
impl Control for Cutover {
    async fn status(&self) -> Status {
        self.tell().await
    }

    async fn change(&self, request: Change) -> Result<Adopted, Refused> {
        let Change { by, from, reason, .. } = request.clone();
        let what = request.words();
        let without = request.unrehearsed && request.to == Target::Weight(Weight::ALL) && self.is_rehearsed().is_err();
        let made = self.make(request, Because::Asked).await;
        let (outcome, detail) = match &made {
            Ok(adopted) if !adopted.changed => (Outcome::Unchanged, String::new()),
            Ok(_) if without => (Outcome::Done, UNREHEARSED.to_owned()),
            Ok(adopted) => (Outcome::Done, format!("in force after {} ms", adopted.took_ms)),
            Err(refused) => (Outcome::Refused, refused.reason.clone()),
        };
        self.log(&what, outcome, &by, &from, &reason, detail).await;
        made
    }

    async fn gate(&self) -> Verdict {
        let state = self.state.lock().await.state.clone();
        self.verdict(&state).await
    }

    async fn failover(self: Arc<Self>, asked: Failover) -> Result<FailoverReport, Refused> {
        self.fail_over(asked).await
    }

    async fn failover_status(&self) -> Option<FailoverReport> {
        self.failover_now()
    }

    async fn backfill(self: Arc<Self>, asked: Backfill) -> Result<BackfillReport, Refused> {
        self.fill_back(asked).await
    }

    async fn backfill_status(&self) -> Option<BackfillReport> {
        self.backfill_now()
    }

    async fn rehearse(self: Arc<Self>, asked: Rehearse) -> Result<Rehearsal, Refused> {
        self.rehearse_rollback(asked).await
    }

    async fn rehearsal(&self) -> Option<Rehearsal> {
        self.rehearsal_now()
    }

    async fn log(&self, last: u64) -> Result<Vec<LogEntry>, Refused> {
        let down = |why| Refused::new(RefusedCode::SideDown, format!("the log: {why}"), "wait until NATS answers");
        self.journal.last(last).await.map_err(down)
    }

    async fn history(&self) -> History {
        self.watch.history()
    }

    async fn changes(&self) -> Vec<ChangeRecord> {
        self.watch.changes()
    }
}

/// What the log says of a last step up that no rehearsal stands behind.
const UNREHEARSED: &str = "without a rehearsed rollback";

fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
