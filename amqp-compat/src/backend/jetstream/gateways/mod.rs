//! Several gateways that share one NATS account: its topology, its queues and what is in them.
//!
//! One of them *leads*: whoever has the account's lease. It alone changes the topology, runs the actors of all queues
//! that are not exclusive, and sends on what is delayed and dead-lettered. The others *follow*: each has the topology in
//! memory, routes and stores what its clients publish itself, and keeps its own clients' exclusive queues.
//!
//! - `window`, `conduit`: a conversation between a following gateway and the leading one; `wire`: what is said in it.
//! - `following`, `relay`: the following side; a `relay` stands in a queue's place there.
//! - `leading`, `agent`: the leading side; an `agent` stands there for one following gateway.
//! - `puts`: messages for queues that live in another gateway, or whose length and order it has to know.
//! - `direct`: direct replies to clients of another gateway.

mod agent;
mod conduit;
mod direct;
mod following;
mod leading;
mod puts;
mod relay;
mod window;
mod wire;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_nats::{Message as NatsMessage, Subject, Subscriber};
use bytes::Bytes;
use foldhash::HashMap;
use futures::StreamExt as _;
use nats_bridge::Bridge;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::lease::{self, Holder, LEASE, Lease, LeaseError};
use super::vhost::VhostRuntime;
use crate::error::{AmqpError, ReplyCode};
use crate::model::queue::Owner;

use conduit::Raw;
use following::{FromLeader, Session};
use leading::Leading;

pub(crate) use relay::start as start_relay;

/// The first token of every subject that gateways use among themselves.
const PREFIX: &str = "amqp-gateway";
/// The key whose revisions number the gateways of an account.
const NUMBERS: &str = "numbers";
/// Frames that wait for one conversation; what comes beyond it is sent again.
const FRAMES: usize = 8192;
/// How long a gateway that starts waits for the leading one.
const WELCOME: Duration = Duration::from_secs(30);

/// A gateway's place among those that share a NATS account; clones are the same place.
///
/// It ends with [`Gateways::leave`]. A process that ends without it is taken for dead after the lease.
#[derive(Debug, Clone)]
pub struct Gateways(Arc<Inner>);

struct Inner {
    bridge: Bridge,
    /// Unique among all that ever shared the account.
    number: u32,
    here: Holder,
    lease: Duration,
    role: watch::Sender<Role>,
    contest: Mutex<Option<Contest>>,
    tenure: Mutex<Option<Lease>>,
    /// Who leads, as the lease's document says.
    leads: watch::Sender<Option<Holder>>,
    vhosts: OnceLock<HashMap<String, Weak<VhostRuntime>>>,
    /// The conversation with the leading gateway, while the topology is as that one says.
    session: watch::Sender<Option<Arc<Session>>>,
    /// Whether messages may be routed by the topology that is here.
    routes: watch::Sender<bool>,
    /// Where deliveries go, by consumer.
    inlets: Mutex<HashMap<u64, mpsc::UnboundedSender<FromLeader>>>,
    leading: Mutex<Leading>,
    conversations: Mutex<HashMap<String, mpsc::Sender<Raw>>>,
    /// The number of the leading gateway; 0 while that is not known.
    leader: AtomicU32,
    /// The number of the one that led last.
    former: AtomicU32,
    next_ask: AtomicU64,
    stop: CancellationToken,
}

type Contest = JoinHandle<Result<(Lease, bool), LeaseError>>;

/// What a gateway is to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// Another one leads, or nobody.
    Following,
    /// It has the lease, and takes over.
    TakingOver,
    /// It leads.
    Leading,
    /// It has lost its place, or left it.
    Ended(String),
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("number", &self.number)
            .field("role", &*self.role.borrow())
            .finish_non_exhaustive()
    }
}

impl Gateways {
    /// Takes a place among the gateways that share an account: the leading one if there is none.
    ///
    /// # Errors
    /// `Held` when a gateway serves the account that does not share it; `Nats` when NATS does not answer.
    pub async fn join(bridge: &Bridge) -> Result<Self, LeaseError> {
        Self::join_for(bridge, LEASE).await
    }

    /// [`Self::join`] with another lease: how long a gateway may be silent before it is taken for dead. All gateways of an
    /// account have to agree on it.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub async fn join_for(bridge: &Bridge, lease: Duration) -> Result<Self, LeaseError> {
        let here = Holder::here(true);
        let inner = Inner {
            bridge: bridge.clone(),
            number: take_number(bridge, &here).await?,
            here,
            lease,
            role: watch::Sender::new(Role::Following),
            contest: Mutex::default(),
            tenure: Mutex::default(),
            leads: watch::Sender::new(None),
            vhosts: OnceLock::new(),
            session: watch::Sender::new(None),
            routes: watch::Sender::new(false),
            inlets: Mutex::default(),
            leading: Mutex::default(),
            conversations: Mutex::default(),
            leader: AtomicU32::new(0),
            former: AtomicU32::new(0),
            next_ask: AtomicU64::new(1),
            stop: CancellationToken::new(),
        };
        let gateways = Self(Arc::new(inner));
        let mut led = gateways.0.leads.subscribe();
        let mut contest = gateways.contend();
        tokio::select! {
            won = &mut contest => {
                let (lease, overtakes) = won.map_err(|error| LeaseError::Nats(error.to_string()))??;
                gateways.take_lead(lease, overtakes);
            }
            _ = led.wait_for(Option::is_some) => {
                *lock(&gateways.0.contest) = Some(contest);
            }
        }
        Ok(gateways)
    }

    /// Tries to get the lease, for as long as it takes.
    fn contend(&self) -> Contest {
        let (bridge, lease, here) = (self.0.bridge.clone(), self.0.lease, self.0.here.clone());
        let leads = self.0.leads.clone();
        tokio::spawn(async move { Lease::share(&bridge, lease, here, &leads).await })
    }

    fn take_lead(&self, lease: Lease, overtakes: bool) {
        self.0.leader.store(self.0.number, Ordering::Release);
        lock(&self.0.leading).begin(overtakes.then_some(self.0.lease));
        *lock(&self.0.tenure) = Some(lease.clone());
        self.0.role.send_replace(Role::TakingOver);
        let gateways = self.clone();
        tokio::spawn(async move {
            let lost = lease.lost().await;
            gateways.end(&lost.text);
        });
    }

    fn end(&self, why: &str) {
        self.0.role.send_if_modified(|role| {
            let ends = !matches!(role, Role::Ended(_));
            if ends {
                *role = Role::Ended(why.to_owned());
            }
            ends
        });
        self.0.routes.send_replace(false);
        self.0.session.send_replace(None);
        self.0.stop.cancel();
    }

    /// Takes up the vhosts: those of a leading gateway are loaded, those of a following one are empty yet.
    pub(crate) async fn start(&self, vhosts: &HashMap<String, Arc<VhostRuntime>>) -> Result<(), AmqpError> {
        let weak = vhosts.iter().map(|(name, vhost)| (name.clone(), Arc::downgrade(vhost))).collect();
        if self.0.vhosts.set(weak).is_err() {
            return Err(AmqpError::new(ReplyCode::InternalError, "a gateway's place among others serves one backend"));
        }
        self.listen().await?;
        puts::start(self).await?;
        direct::start(self).await?;
        if self.is_taking_over() {
            self.lead();
            return Ok(());
        }
        let contest = lock(&self.0.contest).take();
        tokio::spawn(following::run(self.clone(), contest));
        let (mut role, mut routes) = (self.0.role.subscribe(), self.0.routes.subscribe());
        let welcomed = async {
            tokio::select! {
                role = role.wait_for(|role| matches!(role, Role::Ended(_))) => match role.as_deref() {
                    Ok(Role::Ended(why)) => Err(AmqpError::new(ReplyCode::ResourceLocked, why.as_str())),
                    _ => Ok(()),
                },
                _ = routes.wait_for(|routes| *routes) => Ok(()),
            }
        };
        match tokio::time::timeout(WELCOME, welcomed).await {
            Ok(welcomed) => welcomed,
            Err(_) => {
                self.end("it was not taken up");
                let text = "the gateway that leads those of this NATS account does not answer";
                Err(AmqpError::new(ReplyCode::InternalError, text))
            }
        }
    }

    /// It leads from now on.
    fn lead(&self) {
        let became = self.0.role.send_if_modified(|role| {
            let takes_over = *role == Role::TakingOver;
            if takes_over {
                *role = Role::Leading;
            }
            takes_over
        });
        if became {
            self.0.routes.send_replace(true);
            tracing::info!(number = self.0.number, "this gateway leads those of its NATS account");
        }
    }

    /// Takes in what other gateways say to this one.
    async fn listen(&self) -> Result<(), AmqpError> {
        let subject = format!("{PREFIX}.talk.{}.*", self.0.here.id);
        let mut subscriber = self.0.bridge.client().subscribe(subject).await.map_err(failed)?;
        let gateways = self.clone();
        tokio::spawn(async move {
            while let Some(message) = gateways.next_of(&mut subscriber).await {
                let (Some(raw), Some(session)) = (Raw::read(message.payload), message.subject.rsplit('.').next())
                else {
                    continue;
                };
                gateways.hear(session, raw, message.reply).await;
            }
        });
        Ok(())
    }

    /// The next message of a subscription; nothing once this gateway stops.
    async fn next_of(&self, subscriber: &mut Subscriber) -> Option<NatsMessage> {
        tokio::select! {
            () = self.0.stop.cancelled() => None,
            message = subscriber.next() => message,
        }
    }

    async fn hear(&self, session: &str, raw: Raw, reply: Option<Subject>) {
        let known = lock(&self.0.conversations).get(session).cloned();
        if let Some(known) = known {
            // What finds no room is sent again.
            let _ = known.try_send(raw);
            return;
        }
        let Some(reply) = reply.filter(|_| !raw.is_refusal()) else { return };
        let is_new = raw.is_first() && self.is_leading();
        match is_new {
            true => agent::start(self, session, reply, raw),
            false => conduit::refuse(self.0.bridge.client(), reply).await,
        }
    }

    /// Makes a conversation known under its name; gives where this end listens, and what comes there.
    fn open(&self, session: &str) -> (Subject, mpsc::Receiver<Raw>) {
        let (frames, received) = mpsc::channel(FRAMES);
        lock(&self.0.conversations).insert(session.to_owned(), frames);
        (Subject::from(format!("{PREFIX}.talk.{}.{session}", self.0.here.id)), received)
    }

    fn forget(&self, session: &str) {
        lock(&self.0.conversations).remove(session);
    }

    fn vhost(&self, name: &str) -> Option<Arc<VhostRuntime>> {
        self.0.vhosts.get()?.get(name)?.upgrade()
    }

    fn vhosts(&self) -> impl Iterator<Item = Arc<VhostRuntime>> {
        self.0.vhosts.get().into_iter().flat_map(HashMap::values).filter_map(Weak::upgrade)
    }

    /// Waits until the place is lost: another gateway leads, or one serves the account that does not share it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lost(&self) -> AmqpError {
        let mut role = self.0.role.subscribe();
        let why = match role.wait_for(|role| matches!(role, Role::Ended(_))).await.as_deref() {
            Ok(Role::Ended(why)) => why.clone(),
            _ => String::new(),
        };
        AmqpError::new(ReplyCode::ConnectionForced, why)
    }

    /// Whether the place is lost, or was left.
    pub fn is_lost(&self) -> bool {
        matches!(*self.0.role.borrow(), Role::Ended(_))
    }

    /// Whether this gateway leads.
    pub fn is_leading(&self) -> bool {
        *self.0.role.borrow() == Role::Leading
    }

    pub(crate) fn is_taking_over(&self) -> bool {
        *self.0.role.borrow() == Role::TakingOver
    }

    /// Gives the place back: the others need not wait. All links are to have ended before.
    pub async fn leave(&self) {
        let was = self.0.role.borrow().clone();
        if was == Role::Following {
            following::leave(self).await;
        }
        let lease = lock(&self.0.tenure).take();
        if was == Role::Leading && !leading::leave(self).await {
            // One that has not heard of it may route by what it knows for as long as it takes us for alive: whoever comes
            // next has to wait, as for a gateway that was killed.
            self.end("it has left");
            std::mem::forget(lease);
            return;
        }
        self.end("it has left");
        if let Some(lease) = lease {
            lease.release().await;
        }
    }

    /// A name for a link that no link of another gateway has.
    pub(crate) fn owner(&self, link: u64) -> Owner {
        Owner(u64::from(self.0.number) << 32 | (link & u64::from(u32::MAX)))
    }

    /// Whether a link is one of this gateway's.
    pub(crate) fn is_mine(&self, owner: Owner) -> bool {
        number_of(owner) == self.0.number
    }

    /// Whether the actors of queues that are no link's own run here.
    pub(crate) fn runs_queues(&self) -> bool {
        matches!(*self.0.role.borrow(), Role::Leading | Role::TakingOver)
    }

    /// Changes to true while messages may be routed by the topology that is here.
    pub(crate) fn routes(&self) -> watch::Receiver<bool> {
        self.0.routes.subscribe()
    }

    /// Where another gateway takes messages for a queue: its owner's, or else the leading one.
    pub(crate) fn put_subject(&self, vhost: &str, queue: &str, owner: Option<Owner>) -> Subject {
        let number = owner.map_or_else(|| self.0.leader.load(Ordering::Acquire), number_of);
        puts::subject(number, vhost, queue)
    }
}

fn number_of(owner: Owner) -> u32 {
    u32::try_from(owner.0 >> 32).unwrap_or_default()
}

/// Each write has another revision, so that no two gateways have the same number.
async fn take_number(bridge: &Bridge, here: &Holder) -> Result<u32, LeaseError> {
    let bucket = lease::open(bridge).await?;
    let revision = bucket.put(NUMBERS, Bytes::from(here.id.clone())).await;
    let revision = revision.map_err(|error| LeaseError::Nats(error.to_string()))?;
    u32::try_from(revision).map_err(|_| LeaseError::Nats("its numbers are used up".to_owned()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: impl std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, error.to_string())
}
