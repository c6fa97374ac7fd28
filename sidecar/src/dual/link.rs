//! The task of one link: moves commands and events between the client, both sides and the [`Engine`].

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use amqp_compat::backend::{Backend, Command, Event, Link, Login};
use amqp_compat::error::{AmqpError, ReplyCode};
use futures::StreamExt as _;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use super::engine::Engine;
use super::half::Presence;
use super::signals::{self, Signal};
use crate::control_api::Phase;
use crate::ownership::Side;
use crate::phase::Position;

/// How many entries are taken from a channel before others have their turn.
const BATCH: usize = 256;
/// How long what the client sent before it went is still moved to the sides, and their ends are awaited.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The waits between attempts to open a lost side again: doubled from the first to the last.
const REOPEN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// One side's ends of its link.
#[derive(Default)]
struct Ends {
    to: Option<mpsc::Sender<Command>>,
    from: Option<mpsc::Receiver<Event>>,
    reopening: Option<Pin<Box<dyn Future<Output = Link> + Send>>>,
}

impl Ends {
    fn new(link: Option<Link>) -> Self {
        let (to, from) = link.map(|link| (link.commands, link.events)).unzip();
        Self { to, from, reopening: None }
    }

    /// Lets the side finish what it was sent, and hears no more of it.
    fn let_go(&mut self) {
        self.to = None;
        if let Some(mut from) = self.from.take() {
            tokio::spawn(async move { while from.recv().await.is_some() {} });
        }
    }
}

/// What a link needs to open its sides again.
pub(super) struct Sides {
    /// RabbitMQ first.
    pub backends: [Arc<dyn Backend>; 2],
    /// As the client has logged in.
    pub login: Login,
}

/// Runs a link until its client is gone or its authoritative side has closed it.
pub(super) async fn run(
    mut engine: Engine,
    sides: Sides,
    links: [Option<Link>; 2],
    mut commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
) {
    let mut ends = links.map(Ends::new);
    let mut signals = signals::of(&mut engine);
    let mut batch: Vec<Command> = Vec::with_capacity(BATCH);
    let mut incoming: [Vec<Event>; 2] = Default::default();
    // Given up while this link was being opened.
    if engine.shared.is_lost(Side::Rabbit) && engine.shared.position().borrow().phase != Phase::Native {
        engine.give_up_rabbit();
    }
    loop {
        if engine.shared.is_overtaken() {
            // Without last words: the brokers take back what was here when their links end.
            engine.shared.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            engine.lost_unsaid();
            engine.shared.returns().closed(engine.link);
            return;
        }
        follow_losses(&engine, &sides, &mut ends);
        for side in Side::BOTH {
            flush(&mut engine, side, &ends[side.index()]);
        }
        if flush_client(&mut engine, &events).is_err() {
            break;
        }
        if engine.ended && engine.events.is_empty() {
            break;
        }
        let [rabbit, nats] = &mut ends;
        let [from_rabbit, from_nats] = &mut incoming;
        tokio::select! {
            n = receive(rabbit.from.as_mut(), from_rabbit) => take(&mut engine, Side::Rabbit, rabbit, from_rabbit, n),
            n = receive(nats.from.as_mut(), from_nats) => take(&mut engine, Side::Nats, nats, from_nats, n),
            n = commands.recv_many(&mut batch, BATCH), if engine.takes_commands() => {
                if n == 0 {
                    break;
                }
                for command in batch.drain(..) {
                    engine.command(command);
                }
            }
            // Only to wake up when there is room again; what is to be sent is sent above.
            () = room(rabbit.to.as_ref()), if !engine.halves[0].outbox.is_empty() => {}
            () = room(nats.to.as_ref()), if !engine.halves[1].outbox.is_empty() => {}
            permit = events.reserve(), if !engine.events.is_empty() => {
                if permit.is_err() {
                    break;
                }
            }
            link = reopened(rabbit.reopening.as_mut()) => came_back(&mut engine, Side::Rabbit, rabbit, link),
            link = reopened(nats.reopening.as_mut()) => came_back(&mut engine, Side::Nats, nats, link),
            Some(heard) = signals.next() => heard.into_iter().for_each(|signal| follow(&mut engine, signal)),
        }
    }
    if !engine.ended {
        // What it said before it went counts: acks above all, which it was not answered.
        commands.close();
        while let Some(command) = commands.recv().await {
            engine.command(command);
        }
    }
    end(engine, ends, events).await;
}

fn follow(engine: &mut Engine, signal: Signal) {
    match signal {
        Signal::Moved(position) => {
            if position.phase == Phase::Native {
                engine.detach_rabbit();
            } else if engine.shared.is_lost(Side::Rabbit) {
                engine.give_up_rabbit();
            } else if engine.shared.nats_is_lost() {
                engine.detach_nats();
            }
            engine.follow_pauses();
        }
        Signal::Copied(copied) => engine.copied(copied),
        Signal::Lifted => engine.lifted(),
        Signal::Tick => engine.tick(),
    }
}

/// Drops the link of a side that the engine has given up, and begins to open it again.
fn follow_losses(engine: &Engine, sides: &Sides, ends: &mut [Ends; 2]) {
    for (half, ends) in engine.halves.iter().zip(ends) {
        let i = half.side.index();
        match half.presence {
            Presence::Attached => {}
            Presence::Lost => {
                ends.let_go();
                if ends.reopening.is_none() {
                    let position = engine.shared.position();
                    let reopening = reopen(Arc::clone(&sides.backends[i]), sides.login.clone(), position);
                    ends.reopening = Some(Box::pin(reopening));
                }
            }
            Presence::Gone => {
                ends.let_go();
                ends.reopening = None;
            }
        }
    }
}

/// Opens a side again, however long that takes. When ownership changes it is tried anew at once: what is published may
/// wait for this side from then on, and an attempt that began while the side was starting may take long.
async fn reopen(backend: Arc<dyn Backend>, login: Login, mut position: watch::Receiver<Position>) -> Link {
    let mut wait = REOPEN.0;
    loop {
        let attempt = async {
            match backend.open(login.clone()).await {
                Ok(link) => return Some(link),
                Err(error) => tracing::debug!(%error, peer = login.peer, "a side cannot be opened yet"),
            }
            tokio::time::sleep(wait).await;
            None
        };
        tokio::select! {
            opened = attempt => match opened {
                Some(link) => return link,
                None => wait = (wait * 2).min(REOPEN.1),
            },
            Ok(()) = position.changed() => wait = REOPEN.0,
        }
    }
}

fn came_back(engine: &mut Engine, side: Side, ends: &mut Ends, link: Link) {
    *ends = Ends::new(Some(link));
    engine.attach(side);
}

async fn reopened(reopening: Option<&mut Pin<Box<dyn Future<Output = Link> + Send>>>) -> Link {
    match reopening {
        Some(reopening) => reopening.await,
        None => pending().await,
    }
}

async fn receive(from: Option<&mut mpsc::Receiver<Event>>, into: &mut Vec<Event>) -> usize {
    match from {
        Some(from) => from.recv_many(into, BATCH).await,
        None => pending().await,
    }
}

fn take(engine: &mut Engine, side: Side, ends: &mut Ends, events: &mut Vec<Event>, n: usize) {
    if n == 0 {
        ends.let_go();
        let error = AmqpError::new(ReplyCode::InternalError, format!("the link to {side} ended"));
        engine.event(side, Event::Closed { error });
    }
    for event in events.drain(..) {
        engine.event(side, event);
    }
}

async fn room(to: Option<&mpsc::Sender<Command>>) {
    match to {
        // A closed one ends its events as well; that is where its end is seen.
        Some(to) => match to.reserve().await {
            Ok(_) => {}
            Err(_) => pending().await,
        },
        None => pending().await,
    }
}

/// Sends a side as much as it takes now.
fn flush(engine: &mut Engine, side: Side, ends: &Ends) {
    let Some(to) = &ends.to else { return };
    let outbox = &mut engine.halves[side.index()].outbox;
    while let Some(command) = outbox.pop_front() {
        if let Err(TrySendError::Full(command) | TrySendError::Closed(command)) = to.try_send(command) {
            outbox.push_front(command);
            return;
        }
    }
}

/// Tells the client as much as it takes now.
fn flush_client(engine: &mut Engine, events: &mpsc::Sender<Event>) -> Result<(), ()> {
    while let Some(event) = engine.events.pop_front() {
        match events.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(event)) => {
                engine.events.push_front(event);
                return Ok(());
            }
            Err(TrySendError::Closed(_)) => return Err(()),
        }
    }
    Ok(())
}

/// The client is gone: moves its last words to the sides, lets them requeue what it had, and waits for their ends, so
/// that its publishes are counted until they can land no more.
async fn end(mut engine: Engine, mut ends: [Ends; 2], events: mpsc::Sender<Event>) {
    let deadline = tokio::time::Instant::now() + LAST_WORDS;
    for side in Side::BOTH {
        let Some(to) = &ends[side.index()].to else { continue };
        let outbox = std::mem::take(&mut engine.halves[side.index()].outbox);
        for command in outbox {
            let sent = tokio::time::timeout_at(deadline, to.send(command)).await;
            if !matches!(sent, Ok(Ok(()))) {
                break;
            }
        }
    }
    drop(events);
    engine.client_gone();
    for side in Side::BOTH {
        ends[side.index()].to = None;
    }
    for side in Side::BOTH {
        let Some(from) = &mut ends[side.index()].from else { continue };
        let mut said = false;
        while let Ok(event) = tokio::time::timeout_at(deadline, from.recv()).await {
            match event {
                Some(event @ Event::Confirm { .. }) => engine.event(side, event),
                Some(Event::Closed { .. }) => break,
                Some(_) => {}
                None => {
                    said = true;
                    break;
                }
            }
        }
        if side == Side::Rabbit && !said {
            engine.lost_unsaid();
        }
    }
    engine.abandon_publishes();
    engine.shared.returns().closed(engine.link);
    engine.shared.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
}
