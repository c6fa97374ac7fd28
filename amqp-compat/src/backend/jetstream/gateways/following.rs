//! The following side: a conversation with the gateway that leads, anew whenever another one does; and the lease, when it
//! is free.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;
use foldhash::HashMap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::conduit::{self, Conduit};
use super::wire::{self, Answer, Down, Headers, Say, Up};
use super::{Contest, Gateways, PREFIX, Role, lock, number_of};
use crate::backend::jetstream::lease::{Holder, LeaseError};
use crate::error::{AmqpError, ReplyCode};
use crate::model::queue::Owner;

/// How long after a conversation ended the next one is tried.
const AGAIN: Duration = Duration::from_millis(250);
/// How long the leading gateway may take to say all that there is.
const WELCOME: Duration = Duration::from_secs(20);
/// How long a last word may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// For how long after a sign of life that the leading gateway has had a following one may route by the topology that it
/// knows. The leading one waits for it longer than that.
pub(super) fn license(lease: Duration) -> Duration {
    lease / 2
}

/// A conversation with the leading gateway in which everything was said that there is.
#[derive(Debug)]
pub(crate) struct Session {
    /// Grows with every conversation of this process.
    pub(super) number: u64,
    out: mpsc::Sender<Bytes>,
    asks: Mutex<HashMap<u64, oneshot::Sender<(Answer, Bytes)>>>,
    pub(super) ended: CancellationToken,
}

/// What a relay hears from the leading gateway.
#[derive(Debug)]
pub(super) enum FromLeader {
    /// A delivery, in the conversation of this number.
    Delivery { session: u64, consumer: u64, sequence: u64, redelivered: bool, headers: Headers, body: Bytes },
    /// A consumer has ended with its queue.
    Cancelled { session: u64, consumer: u64 },
    /// A consumer is gone: everything that came for it before is to reach its link before `done` is told.
    Gone { consumer: u64, done: oneshot::Sender<()> },
    /// A consumer was refused.
    Refused { consumer: u64 },
}

impl Session {
    /// Says something that has no answer. What is said in a conversation that has ended is lost with it.
    pub(super) async fn say(&self, say: Say) {
        let _ = self.out.send(wire::write(&Up { ask: 0, say }, &[])).await;
    }

    /// Asks; nothing when the conversation ends before the answer.
    async fn ask(&self, number: u64, say: Say) -> Option<(Answer, Bytes)> {
        let (answer, answered) = oneshot::channel();
        lock(&self.asks).insert(number, answer);
        // Ended in between: nobody will answer.
        if self.ended.is_cancelled() {
            lock(&self.asks).remove(&number);
            return None;
        }
        self.out.send(wire::write(&Up { ask: number, say }, &[])).await.ok()?;
        tokio::select! {
            answered = answered => answered.ok(),
            () = self.ended.cancelled() => None,
        }
    }
}

impl Gateways {
    /// Asks the leading gateway, and the next one when it goes before it has answered; nothing when this one leads itself.
    ///
    /// # Errors
    /// `ConnectionForced` when this gateway has lost its place.
    pub(super) async fn ask(&self, say: &Say) -> Result<Option<(Answer, Bytes)>, AmqpError> {
        let (mut sessions, mut role) = (self.0.session.subscribe(), self.0.role.subscribe());
        loop {
            match &*role.borrow_and_update() {
                Role::Following => {}
                Role::TakingOver | Role::Leading => return Ok(None),
                Role::Ended(why) => return Err(AmqpError::new(ReplyCode::ConnectionForced, why.as_str())),
            }
            let session = sessions.borrow_and_update().clone();
            if let Some(session) = session
                && !session.ended.is_cancelled()
            {
                let number = self.0.next_ask.fetch_add(1, Ordering::Relaxed);
                if let Some(answered) = session.ask(number, say.clone()).await {
                    return Ok(Some(answered));
                }
                continue;
            }
            let changed = tokio::select! {
                changed = sessions.changed() => changed,
                changed = role.changed() => changed,
            };
            if changed.is_err() {
                return Err(AmqpError::new(ReplyCode::ConnectionForced, "the gateway has ended"));
            }
        }
    }

    /// The conversation with the leading gateway.
    pub(super) fn sessions(&self) -> watch::Receiver<Option<Arc<Session>>> {
        self.0.session.subscribe()
    }

    pub(super) fn roles(&self) -> watch::Receiver<Role> {
        self.0.role.subscribe()
    }

    /// Deliveries to a consumer go there.
    pub(super) fn let_in(&self, consumer: u64, to: mpsc::UnboundedSender<FromLeader>) {
        lock(&self.0.inlets).insert(consumer, to);
    }

    pub(super) fn shut_out(&self, consumer: u64) {
        lock(&self.0.inlets).remove(&consumer);
    }
}

/// Follows until this gateway leads, or has lost its place.
pub(super) async fn run(gateways: Gateways, contest: Option<Contest>) {
    let mut contest = contest.unwrap_or_else(|| gateways.contend());
    let mut leads = gateways.0.leads.subscribe();
    let mut numbers = 0;
    // One that has said that it leaves.
    let mut left = None;
    loop {
        let leader = leads.borrow_and_update().clone().filter(|leader| left.as_ref() != Some(&leader.id));
        let id = leader.as_ref().map(|leader| leader.id.clone());
        numbers += 1;
        let won = tokio::select! {
            () = gateways.0.stop.cancelled() => {
                contest.abort();
                return;
            }
            won = &mut contest => won,
            has_left = converse(&gateways, leader, numbers) => {
                if has_left {
                    left = id;
                }
                // With the next one as soon as it is known, or with the same one again.
                let _ = tokio::time::timeout(AGAIN, leads.changed()).await;
                continue;
            }
        };
        leave_conversation(&gateways);
        match won {
            Ok(Ok((lease, overtakes))) => {
                gateways.take_lead(lease, overtakes);
                lock(&gateways.0.leading).succeed(gateways.0.lease);
                return take_over(&gateways).await;
            }
            Ok(Err(LeaseError::Held(holder))) => {
                let why = format!("a gateway that does not share it serves the NATS account now: {holder}");
                tracing::error!(why, "this gateway has lost its place");
                return gateways.end(&why);
            }
            Ok(Err(LeaseError::Nats(why))) => tracing::warn!(why, "the lease cannot be looked at; trying again"),
            Err(error) => tracing::error!(%error, "the lease cannot be looked at; trying again"),
        }
        tokio::time::sleep(AGAIN).await;
        contest = gateways.contend();
    }
}

/// It has the lease: its topology becomes everybody's, and the queues' actors start here.
async fn take_over(gateways: &Gateways) {
    tracing::info!("taking over from the gateway that led");
    let former = gateways.0.former.load(Ordering::Acquire);
    for vhost in gateways.vhosts() {
        while let Err(error) = vhost.take_over(|owner| number_of(owner) == former).await {
            tracing::warn!(vhost = &*vhost.name, %error, "a vhost cannot be taken over yet");
            tokio::select! {
                () = gateways.0.stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
    gateways.lead();
    // Whoever has not come by then is gone, and its clients' exclusive queues with it.
    tokio::time::sleep(gateways.0.lease).await;
    for vhost in gateways.vhosts() {
        let is_gone = |owner: Owner| {
            let number = number_of(owner);
            number != gateways.0.number && !lock(&gateways.0.leading).is_followed_by(number)
        };
        if gateways.is_leading() {
            vhost.discard_exclusive(is_gone).await;
        }
    }
}

/// No conversation: nothing may be routed by what it has said.
fn leave_conversation(gateways: &Gateways) {
    gateways.0.routes.send_replace(false);
    gateways.0.leader.store(0, Ordering::Release);
    if let Some(session) = gateways.0.session.send_replace(None) {
        session.ended.cancel();
    }
}

/// One conversation with the leading gateway, until it ends; whether that one has said that it leaves.
async fn converse(gateways: &Gateways, leader: Option<Holder>, number: u64) -> bool {
    let Some(leader) = leader else { return false };
    let id = ulid::Ulid::new().to_string();
    let (from, frames) = gateways.open(&id);
    let to = Subject::from(format!("{PREFIX}.talk.{}.{id}", leader.id));
    let conduit = conduit::start(&gateways.0.bridge, to, from, frames, gateways.0.lease);
    let _forgets = Forgets { gateways, id, ended: conduit.ended.clone() };
    let Conduit { out, mut inbound, heard, ended } = conduit;
    let vhosts = gateways.vhosts().map(|vhost| (vhost.name.to_string(), vhost.own_exclusive())).collect();
    let hello = Up { ask: 0, say: Say::Hello { number: gateways.0.number, vhosts } };
    if out.send(wire::write(&hello, &[])).await.is_err() {
        return false;
    }
    let session = Arc::new(Session { number, out, asks: Mutex::default(), ended: ended.clone() });
    let mut license = License { gateways, heard, lasts: license(gateways.0.lease), is_welcome: false };
    let welcome_by = tokio::time::Instant::now() + WELCOME;
    let mut leads = gateways.0.leads.subscribe();
    let mut has_left = false;
    loop {
        let is_welcome = license.is_welcome;
        let next = async {
            tokio::select! {
                message = inbound.recv() => message,
                // The one that led may not know yet that it does not lead any more.
                () = other_than(&mut leads, &leader.id) => None,
                () = tokio::time::sleep_until(welcome_by), if !is_welcome => None,
            }
        };
        let Some(message) = license.keep(next).await else { break };
        let Some((down, body)) = wire::read::<Down>(message) else {
            tracing::error!("the leading gateway said something that cannot be read; is it of another version?");
            break;
        };
        if matches!(down, Down::Bye) {
            set(&gateways.0.routes, false);
            session.say(Say::Heard).await;
            has_left = true;
            break;
        }
        let welcomes = matches!(down, Down::Welcome { .. });
        license.keep(hear(gateways, &session, down, body)).await;
        if welcomes {
            license.is_welcome = true;
            gateways.0.session.send_replace(Some(session.clone()));
        }
    }
    leave_conversation(gateways);
    has_left
}

/// The right to route by what the leading gateway has said.
struct License<'a> {
    gateways: &'a Gateways,
    heard: watch::Receiver<Instant>,
    lasts: Duration,
    is_welcome: bool,
}

impl License<'_> {
    /// Does something, and meanwhile lets messages be routed as long as the right to it lasts.
    async fn keep<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut is_renewed = true;
        loop {
            let until = *self.heard.borrow_and_update() + self.lasts;
            let may_route = self.is_welcome && Instant::now() < until;
            set(&self.gateways.0.routes, may_route);
            tokio::select! {
                done = &mut work => return done,
                changed = self.heard.changed(), if is_renewed => is_renewed = changed.is_ok(),
                () = tokio::time::sleep_until(until.into()), if may_route => {
                    tracing::warn!("the leading gateway does not answer; publishes wait for it");
                }
            }
        }
    }
}

/// Waits until somebody else leads.
async fn other_than(leads: &mut watch::Receiver<Option<Holder>>, id: &str) {
    let _ = leads.wait_for(|leads| leads.as_ref().is_some_and(|leads| leads.id != id)).await;
}

/// Whatever ends a conversation, also being dropped in the middle.
struct Forgets<'a> {
    gateways: &'a Gateways,
    id: String,
    ended: CancellationToken,
}

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.gateways.forget(&self.id);
        self.ended.cancel();
    }
}

async fn hear(gateways: &Gateways, session: &Arc<Session>, down: Down, body: Bytes) {
    match down {
        Down::Welcome { number, version, vhosts } => {
            gateways.0.leader.store(number, Ordering::Release);
            gateways.0.former.store(number, Ordering::Release);
            for (name, all) in vhosts {
                if let Some(vhost) = gateways.vhost(&name) {
                    vhost.become_as(&all).await;
                }
            }
            session.say(Say::Applied { version }).await;
        }
        Down::Changed { version, vhost, changes } => {
            if let Some(vhost) = gateways.vhost(&vhost) {
                vhost.follow(&changes).await;
            }
            session.say(Say::Applied { version }).await;
        }
        Down::Answer { ask, answer } => {
            if let Some(asked) = lock(&session.asks).remove(&ask) {
                // Whoever asked may have gone.
                let _ = asked.send((answer, body));
            }
        }
        Down::Delivery { consumer, sequence, redelivered, headers } => {
            let session = session.number;
            tell(gateways, consumer, FromLeader::Delivery { session, consumer, sequence, redelivered, headers, body });
        }
        Down::Cancelled { consumer } => {
            tell(gateways, consumer, FromLeader::Cancelled { session: session.number, consumer });
        }
        Down::Bye => {}
    }
}

/// What comes for a consumer that is gone is the leading gateway's to take back: it has been told.
fn tell(gateways: &Gateways, consumer: u64, what: FromLeader) {
    let inlet = lock(&gateways.0.inlets).get(&consumer).cloned();
    if let Some(inlet) = inlet {
        let _ = inlet.send(what);
    }
}

fn set(flag: &watch::Sender<bool>, to: bool) {
    flag.send_if_modified(|now| std::mem::replace(now, to) != to);
}

/// Tells the leading gateway that this one leaves.
pub(super) async fn leave(gateways: &Gateways) {
    let session = gateways.0.session.borrow().clone();
    if let Some(session) = session {
        session.say(Say::Bye).await;
        // It ends the conversation.
        let _ = tokio::time::timeout(LAST_WORDS, session.ended.cancelled()).await;
    }
}
