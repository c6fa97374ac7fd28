//! The bucket, the lock on RabbitMQ, and how each sidecar comes to lead and stops, by the real rules.

use std::time::Duration;

use amqp_compat::backend::jetstream::lease::terms::{Candidate, Holding, Lock, Seen, Standing, Step, Write};

use super::brokers::Message;
use super::engine::Engine;
use super::{Broken, NATS, RABBIT, SIDECARS, TERMS, TICK, World};
use crate::control_api::{Phase, Weight};
use crate::fence::Shift;
use crate::ownership::Side;
use crate::phase::Position;

/// How often a candidate looks.
const LOOK: Duration = Duration::from_millis(25);

/// The state of the cutover, as it is stored.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) position: Position,
    pub(super) epoch: u64,
    /// The last change, and those before it that are not drained.
    pub(super) shifts: Vec<Shift>,
}

/// A sidecar in one of its lives.
type Holder = (usize, u64);

#[derive(Debug, Clone)]
pub(super) enum Ask {
    Look,
    Take,
    TakeOver(u64),
    Renew(u64),
    Read,
    /// The state, and the revision that it has to have; `None`: whatever it is.
    Save(State, Option<u64>),
    Lock,
}

#[derive(Debug, Clone)]
pub(super) enum Answer {
    Lease(Option<(Holder, u64)>),
    Written(u64),
    /// Somebody else was first.
    Refused,
    State(State, u64),
    Lock(Lock),
}

/// What is on its way: a question, an answer, or the publish of a sidecar that has ended.
#[derive(Debug, Clone)]
enum Flight {
    Ask(Ask),
    Answer(Answer),
    Late(Side, Message),
}

pub(super) struct Bucket {
    lease: Option<(Holder, u64)>,
    state: (State, u64),
    revision: u64,
    flights: Vec<(u64, Holder, u64, Flight)>,
}

impl Default for Bucket {
    fn default() -> Self {
        let position = Position { phase: Phase::Shadow, weight: Weight::NONE };
        Self {
            lease: None,
            state: (State { position, epoch: 1, shifts: Vec::new() }, 1),
            revision: 1,
            flights: Vec::new(),
        }
    }
}

impl Bucket {
    fn next(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn lease_to(&mut self, holder: Holder, may: bool) -> Answer {
        if !may {
            return Answer::Lease(self.lease);
        }
        let revision = self.next();
        self.lease = Some((holder, revision));
        Answer::Written(revision)
    }

    fn does(&mut self, of: Holder, ask: Ask) -> Answer {
        let revision = self.lease.map(|(_, revision)| revision);
        match ask {
            Ask::Look => Answer::Lease(self.lease),
            Ask::Take => self.lease_to(of, revision.is_none()),
            Ask::TakeOver(expected) | Ask::Renew(expected) => self.lease_to(of, revision == Some(expected)),
            Ask::Read => Answer::State(self.state.0.clone(), self.state.1),
            Ask::Save(_, Some(expected)) if expected != self.state.1 => Answer::Refused,
            Ask::Save(state, _) => {
                self.state = (state, self.next());
                Answer::Written(self.state.1)
            }
            Ask::Lock => Answer::Refused,
        }
    }
}

#[derive(Default)]
pub(super) struct RabbitLock {
    owner: Option<Holder>,
    heard: u64,
}

/// A question that is not answered yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    tag: u64,
    pub(super) sent: Duration,
}

enum Contends {
    Idle { next: Duration },
    Looks(Asked),
    Locks { asked: Asked, step: Step, seen: Seen, looked: Duration },
    Writes { asked: Asked, looked: Duration, overtakes: bool },
}

/// A sidecar that holds the lease.
pub(super) struct Leads {
    pub(super) holding: Holding,
    next: Duration,
    renews: Option<Asked>,
    locks: Option<Asked>,
    begins: Option<Asked>,
    /// The state that it is about to raise.
    raises: Option<State>,
    pub(super) engine: Option<Box<Engine>>,
}

enum Role {
    Down { until: u64 },
    Contends(Candidate, Contends),
    Leads(Box<Leads>),
}

pub(super) struct Process {
    number: usize,
    life: u64,
    /// How its clock runs, in thousandths.
    rate: u64,
    paused: u64,
    cut: [u64; 2],
    lock_tag: u64,
    role: Role,
}

impl Process {
    pub(super) fn new(number: usize, rate: u64) -> Self {
        let role = Role::Down { until: TICK * number as u64 };
        Self { number, life: 0, rate, paused: 0, cut: [0, 0], lock_tag: 0, role }
    }

    pub(super) fn pauses_until(&mut self, until: u64) {
        self.paused = self.paused.max(until);
    }

    pub(super) fn cut_until(&mut self, side: usize, until: u64) {
        self.cut[side] = self.cut[side].max(until);
    }

    pub(super) fn heal(&mut self) {
        (self.paused, self.cut) = (0, [0, 0]);
    }

    pub(super) fn runs(&self, now: u64) -> bool {
        now >= self.paused
    }

    pub(super) fn is_cut(&self, side: usize, now: u64) -> bool {
        now < self.cut[side]
    }

    fn is_up(&self) -> bool {
        !matches!(self.role, Role::Down { .. })
    }

    pub(super) fn local(&self, now: u64) -> Duration {
        Duration::from_micros(now * self.rate)
    }

    pub(super) fn holder(&self) -> Holder {
        (self.number, self.life)
    }

    /// Whether it has begun to serve.
    pub(super) fn leads(&self) -> bool {
        matches!(&self.role, Role::Leads(leads) if leads.engine.is_some())
    }

    pub(super) fn leading(&mut self) -> Option<&mut Leads> {
        match &mut self.role {
            Role::Leads(leads) => Some(leads),
            _ => None,
        }
    }
}

impl World {
    fn delay(&mut self) -> u64 {
        match self.random.one_in(25) && self.in_trouble() {
            true => self.random.below(2_500),
            false => self.random.below(30),
        }
    }

    pub(super) fn asks(&mut self, n: usize, ask: Ask) -> Asked {
        let (tag, due) = (self.random.draw(), self.now + self.delay());
        let process = &mut self.processes[n];
        if matches!(ask, Ask::Lock) {
            process.lock_tag = tag;
        }
        let (holder, sent) = (process.holder(), process.local(self.now));
        if self.in_trouble() && self.random.one_in(20) {
            let again = due + self.delay();
            self.bucket.flights.push((again, holder, tag, Flight::Ask(ask.clone())));
        }
        self.bucket.flights.push((due, holder, tag, Flight::Ask(ask)));
        Asked { tag, sent }
    }

    /// The answer to a question: `Some(None)` when it has been too long.
    pub(super) fn answered(&mut self, n: usize, asked: Asked) -> Option<Option<Answer>> {
        let (now, process) = (self.now, &self.processes[n]);
        let (holder, local) = (process.holder(), process.local(now));
        let is_it = |(due, of, tag, flight): &(u64, Holder, u64, Flight)| {
            *due <= now && *of == holder && *tag == asked.tag && matches!(flight, Flight::Answer(_))
        };
        if let Some(at) = self.bucket.flights.iter().position(is_it)
            && let (.., Flight::Answer(answer)) = self.bucket.flights.swap_remove(at)
        {
            return Some(Some(answer));
        }
        (local.saturating_sub(asked.sent) >= TERMS.renew()).then_some(None)
    }

    /// Lets what is on its way arrive, and the brokers find out who is gone.
    pub(super) fn network(&mut self) {
        let now = self.now;
        for (due, of, tag, flight) in std::mem::take(&mut self.bucket.flights) {
            if due > now {
                self.bucket.flights.push((due, of, tag, flight));
                continue;
            }
            let process = &self.processes[of.0];
            let lives = process.life == of.1 && process.is_up();
            match flight {
                Flight::Late(side, message) => self.brokers.store(side, message),
                Flight::Ask(Ask::Lock) => {
                    // What was given up is closed with its connection, and one that is cut off is not heard.
                    if lives && process.lock_tag == tag && !process.is_cut(RABBIT, now) {
                        let is_mine = self.lock.owner.is_none_or(|owner| owner == of);
                        if is_mine {
                            (self.lock.owner, self.lock.heard) = (Some(of), now);
                        }
                        let answer = Answer::Lock(if is_mine { Lock::Mine } else { Lock::NotMine });
                        let due = now + self.delay();
                        self.bucket.flights.push((due, of, tag, Flight::Answer(answer)));
                    }
                }
                // It lies in the buffer of its sender, or on the way: also what one that has ended had written.
                Flight::Ask(_) if process.is_cut(NATS, now) => {
                    self.bucket.flights.push((now + TICK, of, tag, flight));
                }
                Flight::Ask(ask) => {
                    let (answer, due) = (self.bucket.does(of, ask), now + self.delay());
                    self.bucket.flights.push((due, of, tag, Flight::Answer(answer)));
                }
                Flight::Answer(answer) => {
                    let side = if matches!(answer, Answer::Lock(_)) { RABBIT } else { NATS };
                    if lives && !process.is_cut(side, now) && now < due + 500 {
                        self.bucket.flights.push((due, of, tag, Flight::Answer(answer)));
                    }
                }
            }
        }
        if let Some(owner) = self.lock.owner {
            let process = &self.processes[owner.0];
            if process.holder() == owner && process.is_up() && process.runs(now) && !process.is_cut(RABBIT, now) {
                self.lock.heard = now;
            } else if now > self.lock.heard + 600 + now % 300 {
                self.lock.owner = None;
            }
        }
        self.connections();
    }

    /// Ends a process: it lost its place, was stopped or killed.
    fn ends(&mut self, n: usize) {
        let now = self.now;
        let holder = self.processes[n].holder();
        for side in Side::BOTH {
            // Of what it had written some arrives all the same, but nothing of what it wrote into a connection that was gone.
            let connection = &mut self.brokers.connections[n][side.index()];
            let mut written: Vec<Message> = connection.publishes.drain(..).collect();
            written.retain(|_| connection.open);
            let arrives = self.random.below(written.len() as u64 + 1) as usize;
            let mut due = now;
            for message in written.into_iter().take(arrives) {
                due += self.random.below(100);
                self.bucket.flights.push((due, holder, 0, Flight::Late(side, message)));
            }
        }
        if !self.processes[n].is_cut(RABBIT, now) {
            let is_followed = (0..SIDECARS).any(|other| other != n && self.processes[other].leads());
            for (queue, number) in self.brokers.close(n, Side::Rabbit) {
                // What it had comes back behind what its successor has had since.
                if is_followed {
                    self.record.disturbs(queue, number);
                }
            }
            if self.lock.owner == Some(holder) {
                self.lock.owner = None;
            }
        }
        let until = now + 50 + self.random.below(500);
        let process = &mut self.processes[n];
        process.life += 1;
        process.role = Role::Down { until };
    }

    pub(super) fn crash(&mut self, n: usize) {
        if self.processes[n].is_up() {
            self.ends(n);
        }
    }

    /// Stops one that leads as it should: it gives both locks back.
    pub(super) fn stop(&mut self, n: usize) {
        let (now, process) = (self.now, &self.processes[n]);
        if !process.leads() || !process.runs(now) || process.is_cut(NATS, now) {
            return;
        }
        if self.bucket.lease.is_some_and(|(holder, _)| holder == process.holder()) {
            self.bucket.lease = None;
        }
        self.ends(n);
    }

    pub(super) fn elect(&mut self, n: usize) -> Result<(), String> {
        let local = self.processes[n].local(self.now);
        match std::mem::replace(&mut self.processes[n].role, Role::Down { until: 0 }) {
            Role::Down { until } if self.now < until => self.processes[n].role = Role::Down { until },
            Role::Down { .. } => {
                let role = Role::Contends(Candidate::new(TERMS, local), Contends::Idle { next: local });
                self.processes[n].role = role;
            }
            Role::Contends(mut candidate, contends) => {
                // Its role counts while it asks: what is down is not answered.
                self.processes[n].role = Role::Contends(Candidate::new(TERMS, local), Contends::Idle { next: local });
                self.processes[n].role = match self.contends(n, local, &mut candidate, contends) {
                    Ok(contends) => Role::Contends(candidate, contends),
                    Err(leads) => Role::Leads(leads),
                };
            }
            Role::Leads(leads) => {
                self.processes[n].role = Role::Leads(leads);
                return self.keeps(n, local);
            }
        }
        Ok(())
    }

    fn contends(
        &mut self,
        n: usize,
        local: Duration,
        candidate: &mut Candidate,
        contends: Contends,
    ) -> Result<Contends, Box<Leads>> {
        let here = self.processes[n].holder();
        match contends {
            Contends::Idle { next } if local < next => Ok(Contends::Idle { next }),
            Contends::Idle { .. } => Ok(Contends::Looks(self.asks(n, Ask::Look))),
            Contends::Looks(asked) => {
                let Some(answer) = self.answered(n, asked) else { return Ok(Contends::Looks(asked)) };
                let seen = match answer {
                    Some(Answer::Lease(None)) => Seen::Free,
                    // Its own write, whose answer was lost.
                    Some(Answer::Lease(Some((holder, revision)))) if holder == here => {
                        return Err(self.leads_from(revision, asked.sent));
                    }
                    Some(Answer::Lease(Some(((other, life), revision)))) => {
                        let is_dead = self.same_machine && self.processes[other].life != life;
                        Seen::Held { revision, is_dead }
                    }
                    _ => Seen::Nothing,
                };
                let step = candidate.look(seen, asked.sent);
                if candidate.wants_lock(seen, asked.sent) {
                    let lock = self.asks(n, Ask::Lock);
                    return Ok(Contends::Locks { asked: lock, step, seen, looked: asked.sent });
                }
                self.processes[n].lock_tag = 0;
                if self.lock.owner == Some(here) && !self.processes[n].is_cut(RABBIT, self.now) {
                    self.lock.owner = None;
                }
                let step = candidate.with_lock(step, seen, Lock::NotMine, asked.sent);
                Ok(self.does(n, local, candidate, step, asked.sent))
            }
            Contends::Locks { asked, step, seen, looked } => {
                let Some(answer) = self.answered(n, asked) else {
                    return Ok(Contends::Locks { asked, step, seen, looked });
                };
                let lock = match answer {
                    _ if self.broken == Broken::LockUnchecked => Lock::NotNeeded,
                    Some(Answer::Lock(lock)) => lock,
                    _ => Lock::NotMine,
                };
                let step = candidate.with_lock(step, seen, lock, looked);
                Ok(self.does(n, local, candidate, step, looked))
            }
            Contends::Writes { asked, looked, overtakes } => match self.answered(n, asked) {
                None => Ok(Contends::Writes { asked, looked, overtakes }),
                Some(Some(Answer::Written(revision))) => {
                    self.record.overtaken += u64::from(overtakes);
                    Err(self.leads_from(revision, looked))
                }
                Some(_) => Ok(Contends::Idle { next: local }),
            },
        }
    }

    fn does(&mut self, n: usize, local: Duration, candidate: &mut Candidate, step: Step, looked: Duration) -> Contends {
        match step {
            Step::Take => Contends::Writes { asked: self.asks(n, Ask::Take), looked, overtakes: false },
            Step::TakeOver(revision) => {
                Contends::Writes { asked: self.asks(n, Ask::TakeOver(revision)), looked, overtakes: true }
            }
            Step::GiveUp => {
                *candidate = Candidate::new(TERMS, local);
                Contends::Idle { next: local + LOOK }
            }
            Step::Wait => Contends::Idle { next: local + LOOK },
        }
    }

    fn leads_from(&mut self, revision: u64, sent: Duration) -> Box<Leads> {
        self.record.leaders += 1;
        Box::new(Leads {
            holding: Holding::new(TERMS, revision, sent),
            next: sent,
            renews: None,
            locks: None,
            begins: None,
            raises: None,
            engine: None,
        })
    }

    /// What one that has the lease does to keep it, and to begin.
    fn keeps(&mut self, n: usize, local: Duration) -> Result<(), String> {
        let here = self.processes[n].holder();
        let Some(leads) = self.processes[n].leading() else { return Ok(()) };
        let (renews, locks, begins, next) = (leads.renews, leads.locks, leads.begins, leads.next);
        if local >= leads.holding.until() && self.broken != Broken::LeaseUnchecked {
            self.ends(n);
            return Ok(());
        }
        let renewed = renews.and_then(|asked| Some((asked, self.answered(n, asked)?)));
        let locked = locks.and_then(|asked| Some((asked, self.answered(n, asked)?)));
        let begun = begins.and_then(|asked| self.answered(n, asked));
        let may_ask = renews.is_none() && locks.is_none() && local >= next;
        let asked = may_ask.then(|| {
            let revision = self.processes[n].leading().map_or(0, |leads| leads.holding.revision());
            (self.asks(n, Ask::Renew(revision)), self.asks(n, Ask::Lock))
        });
        let reads = (begins.is_none() && !self.processes[n].leads()).then(|| self.asks(n, Ask::Read));
        let Some(leads) = self.processes[n].leading() else { return Ok(()) };
        if let Some((renews, locks)) = asked {
            (leads.renews, leads.locks) = (Some(renews), Some(locks));
        }
        if let Some((asked, lock)) = locked {
            leads.locks = None;
            leads.holding.asked(if let Some(Answer::Lock(lock)) = lock { lock } else { Lock::NotMine }, asked.sent);
        }
        if let Some((asked, answer)) = renewed {
            leads.renews = None;
            let write = match answer {
                Some(Answer::Written(revision)) => Write::Stored(revision),
                Some(Answer::Lease(Some((holder, revision)))) if holder == here => Write::Behind(revision),
                Some(Answer::Lease(_)) => Write::Overtaken,
                _ => Write::NoAnswer,
            };
            leads.next = local + if matches!(write, Write::Stored(_)) { TERMS.renew() } else { LOOK };
            if leads.holding.wrote(write, asked.sent, local) == Standing::Lost {
                self.ends(n);
                return Ok(());
            }
        }
        match reads {
            Some(asked) => {
                if let Some(leads) = self.processes[n].leading() {
                    leads.begins = Some(asked);
                }
                Ok(())
            }
            None => begun.map_or(Ok(()), |answer| self.begins(n, answer)),
        }
    }

    /// Reads the state, raises the epoch, and takes the cutover up.
    fn begins(&mut self, n: usize, answer: Option<Answer>) -> Result<(), String> {
        let raised = match answer {
            Some(Answer::State(state, revision)) => {
                self.record.reads(state.epoch, state.position.weight.buckets())?;
                if self.broken == Broken::EpochNotRaised {
                    self.serves(n, state, revision);
                    return Ok(());
                }
                let state = State { epoch: state.epoch + 1, ..state };
                let asked = self.asks(n, Ask::Save(state.clone(), Some(revision)));
                Some((state, asked))
            }
            Some(Answer::Written(revision)) => {
                let raised = self.processes[n].leading().and_then(|leads| leads.raises.take());
                if let Some(state) = raised {
                    self.serves(n, state, revision);
                }
                return Ok(());
            }
            _ => None,
        };
        if let Some(leads) = self.processes[n].leading() {
            (leads.raises, leads.begins) = raised.unzip();
        }
        Ok(())
    }

    fn serves(&mut self, n: usize, state: State, revision: u64) {
        for side in Side::BOTH {
            // Of an earlier life.
            for (queue, number) in self.brokers.close(n, side) {
                self.record.disturbs(queue, number);
            }
            let connection = &mut self.brokers.connections[n][side.index()];
            (connection.open, connection.heard, connection.failed) = (true, self.now, None);
        }
        let engine = Engine::new(self.random.draw(), state, revision, self.broken);
        if let Some(leads) = self.processes[n].leading() {
            (leads.begins, leads.raises, leads.engine) = (None, None, Some(Box::new(engine)));
        }
    }
}
