//! What stands in the leading gateway for one that follows: it does what that one's relays and clients ask, and is the link
//! to which the queues' actors deliver.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::conduit::{self, Conduit, Raw};
use super::leading::Follower;
use super::wire::{self, Answer, At, Down, Say, Up};
use super::{Gateways, lock, number_of};
use crate::backend::jetstream::link::next_consumer;
use crate::backend::jetstream::memory::now_ns;
use crate::backend::jetstream::pump::{LastGone, NewConsumer, PumpCommand};
use crate::backend::jetstream::queue::{Queue, gone};
use crate::backend::jetstream::store::Wire;
use crate::backend::{Event, LINK_CAPACITY};
use crate::error::{AmqpError, ReplyCode};
use crate::model::policy::Scope;
use crate::model::queue::Owner;
use crate::model::stream::Offset;
use crate::model::vhost::{Change, no_queue};

/// How long a gateway that leaves may take to hear that it may.
const LAST_WORD: Duration = Duration::from_secs(1);

type Tell = mpsc::UnboundedSender<(Down, Bytes)>;

struct Agent {
    gateways: Gateways,
    session: String,
    number: u32,
    /// What it is told besides deliveries. Without a bound: an answer for each question, of which every channel of a client
    /// there has one at most, and changes of the topology, each of which is waited for.
    tell: Tell,
    events: mpsc::Sender<Event>,
    attached: HashMap<At, Attached>,
    /// By the number that a consumer has there: its queue and its number here.
    consumers: HashMap<u64, (At, u64)>,
    applied: watch::Sender<u64>,
    ended: CancellationToken,
    /// What its clients held has gone back.
    released: CancellationToken,
}

/// A queue that it has consumed or got from.
struct Attached {
    queue: Arc<Queue>,
    pump: mpsc::Sender<PumpCommand>,
    links: HashSet<u64>,
}

/// Starts the agent of a conversation that another gateway begins with `first`.
pub(super) fn start(gateways: &Gateways, session: &str, reply: Subject, first: Raw) {
    let (from, frames) = gateways.open(session);
    let conduit = conduit::start(&gateways.0.bridge, reply, from, frames, gateways.0.lease);
    if let Some(known) = lock(&gateways.0.conversations).get(session) {
        let _ = known.try_send(first);
    }
    let (tell, told) = mpsc::unbounded_channel();
    let (events, delivered) = mpsc::channel(LINK_CAPACITY);
    let Conduit { out, inbound, heard: _, ended } = conduit;
    let agent = Agent {
        gateways: gateways.clone(),
        session: session.to_owned(),
        number: 0,
        tell,
        events,
        attached: HashMap::new(),
        consumers: HashMap::new(),
        applied: watch::Sender::new(0),
        ended: ended.clone(),
        released: CancellationToken::new(),
    };
    tokio::spawn(speak(told, delivered, out, ended));
    tokio::spawn(agent.run(inbound));
}

/// Hands on what there is to say. An answer comes behind the deliveries that were made before it.
async fn speak(
    mut told: mpsc::UnboundedReceiver<(Down, Bytes)>,
    mut delivered: mpsc::Receiver<Event>,
    out: mpsc::Sender<Bytes>,
    ended: CancellationToken,
) {
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            next = told.recv() => {
                let Some((down, body)) = next else { return };
                for _ in 0..delivered.len() {
                    let Ok(event) = delivered.try_recv() else { break };
                    if !say_event(&out, event).await {
                        return;
                    }
                }
                let is_last = matches!(down, Down::Bye);
                if out.send(wire::write(&down, &body)).await.is_err() {
                    return;
                }
                if is_last {
                    return ended.cancelled().await;
                }
            }
            event = delivered.recv() => {
                let Some(event) = event else { return };
                if !say_event(&out, event).await {
                    return;
                }
            }
        }
    }
}

async fn say_event(out: &mpsc::Sender<Bytes>, event: Event) -> bool {
    let said = match event {
        Event::Delivery { consumer_tag, delivery, .. } => {
            let Ok(consumer) = consumer_tag.as_str().parse() else { return true };
            let headers = wire::headers(&delivery.message);
            let (sequence, redelivered) = (delivery.id.0, delivery.redelivered);
            let down = Down::Delivery { consumer, sequence, redelivered, headers };
            wire::write(&down, &delivery.message.body)
        }
        Event::ConsumerCancelled { consumer_tag, .. } => {
            let Ok(consumer) = consumer_tag.as_str().parse() else { return true };
            wire::write(&Down::Cancelled { consumer }, &[])
        }
        // A queue's actor says nothing else.
        _ => return true,
    };
    out.send(said).await.is_ok()
}

impl Agent {
    async fn run(mut self, mut inbound: mpsc::Receiver<Bytes>) {
        let mut roles = self.gateways.roles();
        let mut has_left = false;
        loop {
            let message = tokio::select! {
                message = inbound.recv() => message,
                // It leads no more: nothing of the queues is to be touched.
                _ = roles.wait_for(|role| *role != super::Role::Leading) => {
                    return self.end();
                }
            };
            let Some(message) = message else { break };
            let Some((Up { ask, say }, _)) = wire::read::<Up>(message) else {
                tracing::error!("a gateway said something that cannot be read; is it of another version?");
                break;
            };
            match say {
                Say::Bye => {
                    has_left = true;
                    break;
                }
                Say::Heard => return self.end(),
                Say::Hello { number, vhosts } => self.welcome(number, vhosts).await,
                say => self.hear(ask, say).await,
            }
        }
        let leaves = lock(&self.gateways.0.leading).leaves();
        if leaves {
            return self.end();
        }
        self.release_all().await;
        self.released.cancel();
        if has_left {
            let _ = self.tell.send((Down::Bye, Bytes::new()));
            let heard = async {
                while let Some(message) = inbound.recv().await {
                    if matches!(wire::read::<Up>(message), Some((Up { say: Say::Heard, .. }, _))) {
                        return;
                    }
                }
            };
            let _ = tokio::time::timeout(LAST_WORD, heard).await;
        }
        self.part().await;
    }

    fn end(&self) {
        lock(&self.gateways.0.leading).remove(&self.session);
        self.gateways.forget(&self.session);
        self.ended.cancel();
        self.released.cancel();
    }

    /// The gateway is gone, unless it has begun another conversation: its clients' exclusive queues go with it.
    async fn part(self) {
        lock(&self.gateways.0.leading).remove(&self.session);
        let is_back = lock(&self.gateways.0.leading).is_followed_by(self.number);
        if self.number != 0 && !is_back && self.gateways.is_leading() {
            tracing::info!(number = self.number, "a gateway that followed has gone");
            for vhost in self.gateways.vhosts() {
                vhost.discard_exclusive(|owner| number_of(owner) == self.number).await;
            }
        }
        self.end();
    }

    /// Says all that there is, and from now on every change.
    async fn welcome(&mut self, number: u32, vhosts: Vec<(String, Vec<Wire>)>) {
        self.number = number;
        // An earlier conversation of this gateway is over, though it may not look so.
        let before = lock(&self.gateways.0.leading).end_of(number);
        let follower = Follower {
            number,
            tell: self.tell.clone(),
            applied: self.applied.subscribe(),
            ended: self.ended.clone(),
            released: self.released.clone(),
            vhosts: Vec::new(),
        };
        lock(&self.gateways.0.leading).add(&self.session, follower);
        if let Some(released) = before {
            // Its links are the same, and are not to be released when they have come here.
            released.cancelled().await;
        }
        let mut all = Vec::new();
        let mut held = Vec::new();
        for (name, own) in vhosts {
            let Some(vhost) = self.gateways.vhost(&name) else {
                tracing::warn!(vhost = name, number, "a gateway serves a vhost that the leading one does not serve");
                continue;
            };
            vhost.take_in(number, &own).await;
            held.push(vhost);
        }
        // In the same order for everybody.
        held.sort_by(|a, b| a.name.cmp(&b.name));
        // No vhost changes between what is said of it now and the changes that are said from now on.
        let mut guards = Vec::new();
        for vhost in &held {
            guards.push(vhost.changing.lock().await);
            lock(&self.gateways.0.leading).include(&self.session, &vhost.name);
            all.push((vhost.name.to_string(), vhost.snapshot()));
        }
        let version = lock(&self.gateways.0.leading).version();
        let _ = self.tell.send((Down::Welcome { number: self.gateways.0.number, version, vhosts: all }, Bytes::new()));
        drop(guards);
        tracing::info!(number, "a gateway follows");
    }

    fn answer(&self, ask: u64, answer: Answer) {
        reply(&self.tell, ask, answer, Bytes::new());
    }

    /// The queue that is meant, and its actor.
    async fn attach(&mut self, at: &At) -> Result<&mut Attached, AmqpError> {
        let missing = || no_queue(&at.vhost, &at.queue);
        let queue =
            self.gateways.vhost(&at.vhost).and_then(|vhost| vhost.queue_named(&at.queue)).ok_or_else(missing)?;
        let is_known = self.attached.get(at).is_some_and(|attached| Arc::ptr_eq(&attached.queue, &queue));
        if !is_known {
            let pump = queue.pump().await.clone();
            self.attached.insert(at.clone(), Attached { queue, pump, links: HashSet::new() });
        }
        self.attached.get_mut(at).ok_or_else(missing)
    }

    async fn hear(&mut self, ask: u64, say: Say) {
        match say {
            Say::Hello { .. } | Say::Bye | Say::Heard => {}
            Say::Applied { version } => drop(self.applied.send_replace(version)),
            Say::Topology { vhost, owner, request } => {
                let (gateways, tell) = (self.gateways.clone(), self.tell.clone());
                tokio::spawn(async move {
                    let Some(vhost) = gateways.vhost(&vhost) else {
                        return reply(&tell, ask, Answer::refused(&no_vhost(&vhost)), Bytes::new());
                    };
                    match gateways.change(&vhost, request, Owner(owner)).await {
                        Ok((done, cancelled)) => {
                            reply(&tell, ask, Answer::of_reply(done), Bytes::new());
                            cancelled.into_iter().for_each(super::super::pump::Cancelled::tell);
                        }
                        Err(error) => reply(&tell, ask, Answer::refused(&error), Bytes::new()),
                    }
                });
            }
            Say::Discard { at, owner } => {
                let (gateways, tell) = (self.gateways.clone(), self.tell.clone());
                tokio::spawn(async move {
                    let vhost = gateways.vhost(&at.vhost);
                    let queue = vhost.as_ref().and_then(|vhost| vhost.queue_named(&at.queue));
                    let queue = queue.filter(|queue| queue.definition.owner.map(|owner| owner.0) == owner);
                    let done = match (vhost, queue) {
                        (Some(vhost), Some(queue)) => vhost.discard_here(&queue).await,
                        _ => Ok(()),
                    };
                    gateways.barrier().await;
                    let answer = done.map_or_else(|error| Answer::refused(&error), |()| Answer::Done);
                    reply(&tell, ask, answer, Bytes::new());
                });
            }
            Say::Policy { vhost, is_operator, name, policy } => {
                let (gateways, tell) = (self.gateways.clone(), self.tell.clone());
                tokio::spawn(async move {
                    let scope = if is_operator { Scope::Operator } else { Scope::User };
                    let is_put = policy.is_some();
                    let policy = policy.and_then(|policy| match policy.change(&vhost)?.0 {
                        Change::PutPolicy(policy) => Some(policy),
                        _ => None,
                    });
                    let answer = match gateways.vhost(&vhost) {
                        None => Answer::refused(&no_vhost(&vhost)),
                        Some(_) if is_put != policy.is_some() => Answer::refused(&unreadable()),
                        Some(vhost) => match gateways.change_policy(&vhost, scope, &name, policy).await {
                            Ok(was_there) => Answer::WasThere(was_there),
                            Err(error) => Answer::refused(&error),
                        },
                    };
                    reply(&tell, ask, answer, Bytes::new());
                });
            }
            Say::Consume { at, consumer, link, channel, tag, exclusive, priority, ready_ns } => {
                let known = self.consumers.get(&consumer).is_some_and(|(known, _)| *known == at);
                if known {
                    return self.answer(ask, Answer::Done);
                }
                let new = NewConsumer {
                    id: next_consumer(),
                    link,
                    channel,
                    tag: consumer.to_string().into(),
                    client_tag: tag.into(),
                    exclusive,
                    priority,
                    offset: Offset::default(),
                    ready_ns,
                    base: 0,
                    events: self.events.clone(),
                };
                self.consume(ask, at, consumer, new).await;
            }
            Say::Work { at, settled, credit } => {
                let credit: Vec<(u64, u32)> =
                    credit.into_iter().filter_map(|(id, amount)| Some((self.consumers.get(&id)?.1, amount))).collect();
                let settled = settled.into_iter().map(|(sequence, ended)| (sequence, ended.into())).collect();
                if let Ok(attached) = self.attach(&at).await {
                    // The actor of a deleted queue is gone, and with it what there was to settle.
                    let _ = attached.pump.send(PumpCommand::Work { settled, credit, at_ns: now_ns() }).await;
                }
            }
            Say::Cancel { at, consumer } => {
                let known = self.consumers.remove(&consumer);
                let (Some((_, id)), Ok(attached)) = (known, self.attach(&at).await) else {
                    return self.answer(ask, Answer::Done);
                };
                let (answer, gone) = oneshot::channel();
                let sent = attached.pump.send(PumpCommand::Cancel { consumer: id, answer }).await.is_ok();
                let queue = attached.queue.clone();
                self.await_last(ask, sent.then_some(gone), queue);
            }
            Say::Release { at, link, channel } => {
                let Ok(attached) = self.attach(&at).await else { return self.answer(ask, Answer::Done) };
                if channel.is_none() {
                    attached.links.remove(&link);
                }
                let (answer, gone) = oneshot::channel();
                let sent = attached.pump.send(PumpCommand::Release { link, channel, answer }).await.is_ok();
                let queue = attached.queue.clone();
                self.await_last(ask, sent.then_some(gone), queue);
            }
            Say::Get { at, link, channel } => {
                let (answer, got) = oneshot::channel();
                match self.attach(&at).await {
                    Ok(attached) => {
                        attached.links.insert(link);
                        attached.queue.touch();
                        let _ = attached.pump.send(PumpCommand::Get { link, channel, base: 0, answer }).await;
                    }
                    Err(error) => return self.answer(ask, Answer::refused(&error)),
                }
                let tell = self.tell.clone();
                tokio::spawn(async move {
                    let (answer, body) = match got.await {
                        Ok(Ok(got)) => Answer::of_got(got),
                        Ok(Err(error)) => (Answer::refused(&error), Bytes::new()),
                        Err(_) => (Answer::refused(&gone()), Bytes::new()),
                    };
                    reply(&tell, ask, answer, body);
                });
            }
            Say::Counts { at } => {
                let queue = self.attach(&at).await.map(|attached| attached.queue.clone());
                let tell = self.tell.clone();
                tokio::spawn(async move {
                    let counts = match queue {
                        Ok(queue) => queue.counts().await,
                        Err(error) => Err(error),
                    };
                    reply(
                        &tell,
                        ask,
                        counts.map_or_else(|error| Answer::refused(&error), Answer::of_counts),
                        Bytes::new(),
                    );
                });
            }
            Say::WatchExpiry { at } => {
                if let Ok(attached) = self.attach(&at).await {
                    let queue = attached.queue.clone();
                    queue.watch_expiry().await;
                }
            }
        }
    }

    async fn consume(&mut self, ask: u64, at: At, consumer: u64, new: NewConsumer) {
        let (id, link) = (new.id, new.link);
        let (answer, taken) = oneshot::channel();
        let refusal = match self.attach(&at).await {
            Ok(attached) => {
                attached.links.insert(link);
                attached.queue.touch();
                let _ = attached.pump.send(PumpCommand::Consume { consumer: new, answer }).await;
                None
            }
            Err(error) => Some(error),
        };
        self.consumers.insert(consumer, (at, id));
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let result = match (refusal, taken.await) {
                (Some(refusal), _) => Err(refusal),
                (None, Ok(result)) => result,
                (None, Err(_)) => Err(gone()),
            };
            match result {
                Ok(()) => reply(&tell, ask, Answer::Done, Bytes::new()),
                // One that was a consumer before is told as if its queue was gone.
                Err(_) if ask == 0 => drop(tell.send((Down::Cancelled { consumer }, Bytes::new()))),
                Err(error) => reply(&tell, ask, Answer::refused(&error), Bytes::new()),
            }
        });
    }

    /// Answers when consumers are gone, and deletes a queue that goes with its last one.
    fn await_last(&self, ask: u64, gone: Option<oneshot::Receiver<LastGone>>, queue: Arc<Queue>) {
        let (gateways, tell) = (self.gateways.clone(), self.tell.clone());
        tokio::spawn(async move {
            let last = match gone {
                Some(gone) => gone.await.ok(),
                None => None,
            };
            if last == Some(LastGone(true)) {
                gateways.last_consumer_gone(&queue).await;
            }
            reply(&tell, ask, Answer::Done, Bytes::new());
        });
    }

    /// What its clients held goes back, and its consumers are gone.
    async fn release_all(&mut self) {
        for (_, attached) in self.attached.drain() {
            for link in attached.links {
                let (answer, gone) = oneshot::channel();
                let release = PumpCommand::Release { link, channel: None, answer };
                if attached.pump.send(release).await.is_ok() && gone.await.ok() == Some(LastGone(true)) {
                    let (gateways, queue) = (self.gateways.clone(), attached.queue.clone());
                    tokio::spawn(async move { gateways.last_consumer_gone(&queue).await });
                }
            }
        }
    }
}

impl Gateways {
    /// A queue's last consumer has gone, as far as is known: one that is to go with it goes.
    pub(crate) async fn last_consumer_gone(&self, queue: &Arc<Queue>) {
        if !queue.definition.auto_delete {
            return;
        }
        let complete_at = lock(&self.0.leading).complete_at();
        let Some(at) = complete_at else { return self.discard_or_log(queue).await };
        let (gateways, queue) = (self.clone(), queue.clone());
        tokio::spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            if !queue.has_consumers() {
                gateways.discard_or_log(&queue).await;
            }
        });
    }

    async fn discard_or_log(&self, queue: &Arc<Queue>) {
        let Some(vhost) = self.vhost(&queue.vhost) else { return };
        if let Err(error) = self.discard(&vhost, queue).await {
            tracing::error!(queue = queue.name(), %error, "a queue that should go could not be deleted");
        }
    }
}

fn reply(tell: &Tell, ask: u64, answer: Answer, body: Bytes) {
    if ask != 0 {
        let _ = tell.send((Down::Answer { ask, answer }, body));
    }
}

fn unreadable() -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, "the policy cannot be read; are all gateways of the same version?")
}

fn no_vhost(vhost: &str) -> AmqpError {
    AmqpError::new(ReplyCode::NotAllowed, format!("vhost '{vhost}' is not served by the gateway that leads"))
}
