//! The standby queues of one vhost: one link to the side that keeps them, a channel for what is published, and a channel for each queue that is
//! read.
//!
//! When that side does not take copies (its link is lost, or it has confirmed none for [`DEGRADE`]), those on their way are given up, and
//! so are new ones, but for one a second that tries. Publishers wait no longer than that.

mod state;

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amqp_compat::backend::{Event, Link, Message};
use amqp_compat::error::AmqpError;
use foldhash::HashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use self::state::Store;
use super::backlog;
use super::held::Held;
use super::ledger::Ledger;
use super::tally::Tally;
use super::{UnderWay, lock};
use crate::dual::operator::Operator;

/// What a store has to do.
pub(super) enum Job {
    Keep(Box<Keep>),
    Settled {
        queue: Arc<str>,
        id: u128,
    },
    Over {
        queue: Arc<str>,
        before: u128,
    },
    TakeUp {
        queue: Arc<str>,
    },
    /// Which copies the reader has, or are on their way.
    Here {
        queue: Arc<str>,
        answer: oneshot::Sender<Vec<(u128, backlog::Place)>>,
    },
    /// Copies are held back: they are to be made in time.
    LookAfter,
    /// Those that are held back are made now.
    HoldNothing,
    LetGo(oneshot::Sender<HashMap<Arc<str>, Ledger>>),
}

/// A copy to store.
pub(super) struct Keep {
    pub queue: Arc<str>,
    pub id: u128,
    pub message: Message,
    pub waiter: Arc<UnderWay>,
}

/// What the name of a queue of copies begins with.
pub(super) const PREFIX: &str = "nats-bridge.standby.";

/// The queue that holds the copies of a queue.
pub(super) fn name(queue: &str) -> String {
    format!("{PREFIX}{queue}")
}

/// How long the keeper may take for a copy before publishes are confirmed without.
const DEGRADE: Duration = Duration::from_secs(5);
const BATCH: usize = 256;
const TICK: Duration = Duration::from_millis(200);
const REOPEN: Duration = Duration::from_millis(500);
/// How often copies that are held back are looked at.
const LOOK: Duration = Duration::from_millis(20);

type Opening = Pin<Box<dyn Future<Output = Result<Link, AmqpError>> + Send>>;

/// Runs until it is let go of, or nobody can ask it for anything.
pub(super) async fn run(
    (operator, vhost): (Arc<Operator>, Arc<str>),
    mut jobs: mpsc::UnboundedReceiver<Job>,
    held: Arc<Mutex<Held>>,
    tally: Arc<Tally>,
) {
    let mut store = Store::new(vhost.clone(), tally);
    let open = |wait: Duration| -> Opening {
        let (operator, vhost) = (Arc::clone(&operator), vhost.clone());
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            operator.link(&vhost).await
        })
    };
    let mut opening = Some(open(Duration::ZERO));
    let mut link: Option<Link> = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut holds = false;
    let (mut batch, mut events) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
    loop {
        store.remove_settled();
        if let Some(link) = &link {
            while let Some(command) = store.outbox.pop_front() {
                if let Err(error) = link.commands.try_send(command) {
                    store.outbox.push_front(error.into_inner());
                    break;
                }
            }
        }
        let (commands, from) = match &mut link {
            Some(link) => (Some(&link.commands), Some(&mut link.events)),
            None => (None, None),
        };
        tokio::select! {
            n = jobs.recv_many(&mut batch, BATCH) => {
                if n == 0 {
                    return;
                }
                for job in batch.drain(..) {
                    match job {
                        Job::Keep(keep) => store.keep(*keep),
                        Job::Settled { queue, id } => store.settled(queue, id),
                        Job::Over { queue, before } => store.over(queue, before),
                        Job::TakeUp { queue } => store.take_up(&queue),
                        Job::Here { queue, answer } => {
                            let mut here = store.here(&queue);
                            here.extend(lock(&held).of(&queue).map(|id| (id, backlog::Place::stamped(id))));
                            drop(answer.send(here));
                        }
                        Job::LookAfter => holds = store.look_after(&held),
                        Job::HoldNothing => store.keep_all(lock(&held).all()),
                        Job::LetGo(answer) => {
                            store.keep_all(lock(&held).all());
                            let ledgers = store.end();
                            let Some(mut link) = link else { let _ = answer.send(ledgers); return };
                            // What was removed is heard before the keeper has the rest back in its queues.
                            while let Some(command) = store.outbox.pop_front() {
                                let sent = tokio::time::timeout(DEGRADE, link.commands.send(command)).await;
                                if !matches!(sent, Ok(Ok(()))) {
                                    break;
                                }
                            }
                            drop(link.commands);
                            let _ = tokio::time::timeout(DEGRADE, async { while link.events.recv().await.is_some() {} }).await;
                            let _ = answer.send(ledgers);
                            return;
                        }
                    }
                }
            }
            n = async { match from { Some(from) => from.recv_many(&mut events, BATCH).await, None => pending().await } } => {
                let closed = n == 0 || events.iter().any(|event| matches!(event, Event::Closed { .. }));
                for event in events.drain(..) {
                    store.event(event);
                }
                if closed {
                    link = None;
                    store.lost();
                    opening = Some(open(REOPEN));
                }
            }
            room = async { match commands { Some(to) => to.reserve().await.is_ok(), None => pending().await } }, if !store.outbox.is_empty() => {
                if !room {
                    // Its events say why.
                    tokio::task::yield_now().await;
                }
            }
            opened = async { match &mut opening { Some(opening) => opening.await, None => pending().await } } => match opened {
                Ok(opened) => {
                    (link, opening) = (Some(opened), None);
                    store.attached();
                }
                Err(error) => {
                    tracing::debug!(%error, %vhost, keeper = %store.keeper(), "no standby copies are taken yet");
                    opening = Some(open(REOPEN));
                }
            },
            _ = look.tick(), if holds => holds = store.look_after(&held),
            _ = tick.tick() => store.tick(),
        }
    }
}
