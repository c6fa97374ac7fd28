//! What the sidecar that leads does with its clients' messages, by the real [`Fences`] and [`Merge`]; and where clients connect.

use std::sync::LazyLock;
use std::time::Duration;

use super::brokers::{Delivery, Message, ToBroker, bucket};
use super::election::{Answer, Ask, Asked, State};
use super::{Broken, KEYS, QUEUES, SIDECARS, World};
use crate::control_api::{Target, Weight};
use crate::dual::merge::Merge;
use crate::fence::{Action, Fences, QueueName, Shift};
use crate::ownership::Side;
use crate::phase::{self, Facts};

/// How long a broker waits for a sign of life of a connection.
const SILENCE: [u64; 2] = [2_000, 1_500];

pub(super) struct Engine {
    fences: Fences,
    merges: [Option<Merge<Delivery>>; QUEUES],
    actions: Vec<Action>,
    state: State,
    revision: u64,
    /// A change that is being stored, or a look at what is.
    change: Option<(Asked, Option<State>)>,
}

static NAMES: LazyLock<[QueueName; QUEUES]> =
    LazyLock::new(|| ["q0", "q1"].map(|queue| QueueName { vhost: "/".into(), queue: queue.into() }));

fn name(queue: usize) -> &'static QueueName {
    &NAMES[queue]
}

fn queue_of(action: &Action) -> &QueueName {
    match action {
        Action::PublishFence { queue, .. } | Action::Lifted { queue, .. } => queue,
    }
}

impl Engine {
    pub(super) fn new(life: u64, state: State, revision: u64, broken: Broken) -> Self {
        let mut fences = Fences::new(life, state.epoch, state.position.weight, Duration::from_secs(1_000_000));
        match broken {
            Broken::NotResumed => {}
            Broken::LastResumed => fences.resume(state.shifts.last().copied().into_iter().collect(), Duration::ZERO),
            _ => fences.resume(state.shifts.clone(), Duration::ZERO),
        }
        let actions = (0..QUEUES).flat_map(|queue| fences.register(name(queue), Duration::ZERO)).collect();
        Self { fences, merges: [None, None], actions, state, revision, change: None }
    }

    fn adopts(&mut self, state: State, revision: u64) {
        self.revision = revision;
        if state.epoch > self.state.epoch {
            let actions = self.fences.begin(state.epoch, state.position.weight);
            self.state = state;
            self.actions.extend(actions);
        }
    }

    fn weight(&self) -> u16 {
        self.fences.weight().buckets()
    }
}

impl World {
    /// Bytes flow, also those of a process that stands still; brokers close what is silent for too long.
    pub(super) fn connections(&mut self) {
        for n in 0..SIDECARS {
            for side in Side::BOTH {
                let i = side.index();
                let (open, heard) = (self.brokers.connections[n][i].open, self.brokers.connections[n][i].heard);
                if !open {
                    continue;
                }
                if !self.processes[n].is_cut(i, self.now) {
                    if self.processes[n].runs(self.now) && self.processes[n].leads() {
                        self.brokers.connections[n][i].heard = self.now;
                    }
                    for _ in 0..3 {
                        let queue = self.random.below(QUEUES as u64) as usize;
                        match self.random.below(6) {
                            0 | 1 => self.brokers.arrive(n, side),
                            2 => self.brokers.arrive_fence(n, side),
                            3 => self.brokers.obey(n, side, queue),
                            _ => self.brokers.deliver(n, side, queue),
                        }
                    }
                }
                if self.now > heard + SILENCE[i] + self.now % 1_000 {
                    for (queue, number) in self.brokers.close(n, side) {
                        self.record.disturbs(queue, number);
                    }
                }
            }
        }
    }

    /// Clients whose sidecar has ended connect to one that leads, or believes that it does; those of another find out that it changed.
    pub(super) fn applications(&mut self) {
        let leading: Vec<usize> = (0..SIDECARS).filter(|n| self.processes[*n].leads()).collect();
        let usable = |at: Option<usize>| at.filter(|n| leading.contains(n));
        let mut choose = |at: Option<usize>| match usable(at) {
            Some(_) if leading.len() > 1 && self.random.one_in(100) => None,
            Some(n) => Some(n),
            None if leading.is_empty() => None,
            None => Some(*self.random.pick(&leading)),
        };
        self.record.publisher = choose(self.record.publisher);
        for application in &mut self.record.applications {
            let at = choose(application.at);
            if at != application.at {
                (application.at, application.attached) = (at, false);
                application.hand.clear();
            }
        }
    }

    /// One thing that the sidecar that leads does.
    pub(super) fn works(&mut self, n: usize) -> Result<(), String> {
        let (now, unchecked) = (self.now, self.broken == Broken::LeaseUnchecked);
        let local = self.processes[n].local(now);
        let here = self.processes[n].holder();
        let Some(leads) = self.processes[n].leading() else { return Ok(()) };
        // Before anything is told to a broker or a client.
        if local >= leads.holding.until() && !unchecked {
            return Ok(());
        }
        let Some(mut engine) = leads.engine.take() else { return Ok(()) };
        let did = self.work(n, here, &mut engine);
        if let Some(leads) = self.processes[n].leading() {
            leads.engine = Some(engine);
        }
        did
    }

    fn work(&mut self, n: usize, here: (usize, u64), engine: &mut Engine) -> Result<(), String> {
        let side = Side::BOTH[self.random.below(2) as usize];
        let queue = self.random.below(QUEUES as u64) as usize;
        let is_cut = self.processes[n].is_cut(side.index(), self.now);
        self.clients(n, engine);
        match self.random.below(16) {
            0 | 1 => self.publish(n, here, engine)?,
            2 | 3 if !is_cut => {
                let confirms = &mut self.brokers.connections[n][side.index()].confirms;
                if !confirms.is_empty() {
                    let message = confirms.swap_remove(self.random.below(confirms.len() as u64) as usize);
                    engine.actions.extend(engine.fences.published(message.stamp));
                    self.record.acts(here, engine.fences.epoch(), engine.weight())?;
                    self.record.confirmed(message.number);
                }
            }
            4 | 5 => self.act(n, engine),
            6 if !is_cut => {
                if let Some((queue, fence)) = self.brokers.connections[n][side.index()].stored.pop() {
                    engine.fences.fence_stored(name(queue), fence);
                }
            }
            7..=10 if !is_cut => self.receive(n, here, engine, side, queue)?,
            11..=13 => self.settle(n, here, engine, queue)?,
            14 => {
                let actions = engine.fences.tick(Duration::from_millis(self.now));
                engine.actions.extend(actions);
                self.after(n, here, engine, queue)?;
            }
            15 => self.change(n, engine),
            _ => {}
        }
        Ok(())
    }

    fn publish(&mut self, n: usize, here: (usize, u64), engine: &mut Engine) -> Result<(), String> {
        // Spread over the time of trouble.
        let is_time = !self.in_trouble() || self.random.one_in(8);
        if self.record.publisher != Some(n) || self.record.published() >= self.messages || !is_time {
            return Ok(());
        }
        let key = self.random.below(KEYS);
        let stamp = engine.fences.publish(bucket(key));
        self.record.acts(here, stamp.epoch, engine.weight())?;
        let message = Message { number: self.record.publishes(key), key, stamp, fence: None };
        self.brokers.connections[n][stamp.owner.index()].publishes.push_back(message);
        Ok(())
    }

    /// Attaches clients that have come, and takes back what those had that are gone, or whose side was lost.
    fn clients(&mut self, n: usize, engine: &mut Engine) {
        for side in Side::BOTH {
            let i = side.index();
            if self.processes[n].is_cut(i, self.now) {
                continue;
            }
            let connection = &mut self.brokers.connections[n][i];
            if let Some(lost) = connection.failed.take() {
                (connection.open, connection.heard) = (true, self.now);
                for message in lost.publishes {
                    engine.actions.extend(engine.fences.published(message.stamp));
                }
                // Sent again until nobody waits for them.
                let again = lost.fences.into_iter().filter(|(queue, fence)| engine.fences.awaits(name(*queue), *fence));
                connection.fences.extend(again);
                if self.broken != Broken::NotReturned {
                    engine.actions.extend(engine.fences.returned(side));
                }
                for application in &mut self.record.applications {
                    if application.at == Some(n) {
                        (application.at, application.attached) = (None, false);
                        application.hand.clear();
                    }
                }
            }
        }
        for queue in 0..QUEUES {
            let application = &mut self.record.applications[queue];
            let is_here = application.at == Some(n);
            if engine.merges[queue].is_some() && !(is_here && application.attached) {
                engine.merges[queue] = None;
                for side in Side::BOTH {
                    for number in self.brokers.detach(n, side, queue) {
                        let key = crate::fence::MessageKey::Stamped(u128::from(number));
                        let now = Duration::from_millis(self.now);
                        engine.actions.extend(engine.fences.requeued(name(queue), side, key, now));
                    }
                }
            }
            if engine.merges[queue].is_none() && is_here {
                let mut merge = Merge::new(self.record.window, true);
                for side in Side::BOTH {
                    let credit = merge.attach(side);
                    self.brokers.attach(n, side, queue, credit);
                }
                engine.merges[queue] = Some(merge);
                self.record.applications[queue].attached = true;
            }
        }
    }

    fn act(&mut self, n: usize, engine: &mut Engine) {
        if engine.actions.is_empty() {
            return;
        }
        // They come in the order of a map, which is another one in each run.
        engine.actions.sort_by(|a, b| queue_of(a).cmp(queue_of(b)));
        let at = self.random.below(engine.actions.len() as u64) as usize;
        let Action::PublishFence { queue, side, fence } = engine.actions.remove(at) else { return };
        if self.broken == Broken::FenceDropped {
            engine.actions.extend(engine.fences.passed(&queue, fence, Duration::from_millis(self.now)));
            return;
        }
        let queue = usize::from(queue == *name(1));
        self.brokers.connections[n][side.index()].fences.push_back((queue, fence));
    }

    fn receive(
        &mut self,
        n: usize,
        here: (usize, u64),
        engine: &mut Engine,
        side: Side,
        queue: usize,
    ) -> Result<(), String> {
        let Some(merge) = &mut engine.merges[queue] else { return Ok(()) };
        let consumer = &mut self.brokers.connections[n][side.index()].consumers[queue];
        let Some((place, message, again)) = consumer.deliveries.pop_front() else { return Ok(()) };
        if let Some(fence) = message.fence {
            merge.fence(side);
            consumer.commands.push_back(ToBroker::Ack(place));
            engine.actions.extend(engine.fences.fence_out(name(queue), fence, Duration::from_millis(self.now)));
        } else {
            let (now, epoch) = (Duration::from_millis(self.now), self.epoch_of(&message));
            let received = engine.fences.received(name(queue), side, message.key(), message.bucket(), epoch, now);
            merge.received(side, received.place, received.waits, (place, message, again));
        }
        self.after(n, here, engine, queue)
    }

    fn epoch_of(&self, message: &Message) -> u64 {
        if self.broken == Broken::EpochUnchecked { u64::MAX } else { message.stamp.epoch }
    }

    /// What a link does after any event: releases what waits no longer, gives the client what it may have, replenishes.
    fn after(&mut self, n: usize, here: (usize, u64), engine: &mut Engine, queue: usize) -> Result<(), String> {
        let (now, unchecked) = (Duration::from_millis(self.now), self.broken == Broken::EpochUnchecked);
        let Engine { fences, merges, actions, .. } = engine;
        let Some(merge) = &mut merges[queue] else { return Ok(()) };
        merge.release(|side, (_, message, _)| {
            let epoch = if unchecked { u64::MAX } else { message.stamp.epoch };
            fences.must_wait(name(queue), side, message.bucket(), epoch, now)
        });
        while let Some((side, (place, message, again))) = merge.pop() {
            self.record.acts(here, fences.epoch(), fences.weight().buckets())?;
            self.record.gets(queue, side, place, message, again)?;
            if self.broken == Broken::SettledEarly {
                actions.extend(fences.settled(name(queue), side, message.key()));
            }
        }
        for side in Side::BOTH {
            let more = merge.grant(side);
            if more > 0 {
                let consumer = &mut self.brokers.connections[n][side.index()].consumers[queue];
                consumer.commands.push_back(ToBroker::Credit(more));
            }
        }
        Ok(())
    }

    fn settle(&mut self, n: usize, here: (usize, u64), engine: &mut Engine, queue: usize) -> Result<(), String> {
        let application = &mut self.record.applications[queue];
        let Some(merge) = engine.merges[queue].as_mut().filter(|_| !application.hand.is_empty()) else { return Ok(()) };
        let at = if self.random.one_in(4) { self.random.below(application.hand.len() as u64) as usize } else { 0 };
        let (side, place, message) = application.hand.remove(at);
        let requeues = self.random.one_in(8);
        let (name, now) = (name(queue), Duration::from_millis(self.now));
        let actions = match requeues {
            true => engine.fences.requeued(name, side, message.key(), now),
            false => engine.fences.settled(name, side, message.key()),
        };
        engine.actions.extend(actions);
        let command = if requeues { ToBroker::Requeue(place) } else { ToBroker::Ack(place) };
        self.brokers.connections[n][side.index()].consumers[queue].commands.push_back(command);
        merge.settled(side);
        merge.credit(1);
        if !requeues {
            self.record.acks(queue, message.number);
        }
        self.after(n, here, engine, queue)
    }

    /// Begins a change, or takes up what became of one.
    fn change(&mut self, n: usize, engine: &mut Engine) {
        if let Some((asked, wanted)) = engine.change.take() {
            let Some(answer) = self.answered(n, asked) else {
                engine.change = Some((asked, wanted));
                return;
            };
            match (answer, wanted) {
                (Some(Answer::Written(revision)), Some(state)) => {
                    self.record.changed += 1;
                    engine.adopts(state, revision);
                }
                (Some(Answer::State(state, revision)), None) if revision > engine.revision => {
                    engine.adopts(state, revision);
                }
                (Some(Answer::State(..)), None) => {}
                // It may have been stored: what is watched tells.
                _ => engine.change = Some((self.asks(n, Ask::Read), None)),
            }
            return;
        }
        if self.changes == 0 || !self.in_trouble() || !self.random.one_in(30) || !engine.fences.can_begin() {
            return;
        }
        let to = *self.random.pick(&[0, 500, 2_500, 5_000, 7_500, 10_000]);
        let to =
            Weight::from_buckets(to).filter(|weight| *weight > Weight::NONE).map_or(Target::Rollback, Target::Weight);
        let facts = Facts { unmapped: 0, nats_connected: true, rabbit_connected: true, rabbit_messages: Some(0) };
        let at = engine.state.position;
        let Ok(Some(next)) = phase::change(at, to, facts) else { return };
        self.changes -= 1;
        let epoch = engine.state.epoch + 1;
        let mut shifts = engine.fences.open_shifts(Duration::from_millis(self.now));
        shifts.push(Shift { epoch, from: at.weight, to: next.weight });
        let state = State { position: next, epoch, shifts };
        let revision = (self.broken != Broken::WrittenBlindly).then_some(engine.revision);
        engine.change = Some((self.asks(n, Ask::Save(state.clone(), revision)), Some(state)));
    }
}
