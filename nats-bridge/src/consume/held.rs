//! Deliveries that are here and not settled: which, since when, and when the server was last told so.

use std::time::{Duration, Instant};

use async_nats::Subject;

use super::credit::Credit;
use super::place::Place;

/// Names a held delivery; a settled one's name is not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    index: u32,
    generation: u32,
}

/// The held deliveries and the credit that they use.
pub(crate) struct Held {
    pub credit: Credit,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

struct Slot {
    generation: u32,
    tenant: Option<Tenant>,
}

pub(crate) struct Tenant {
    pub reply: Subject,
    pub sequence: u64,
    pub stored_at: i128,
    pub delivery: u64,
    /// Which attempt it is.
    pub attempt: u64,
    pub count: Count,
    pub bytes: usize,
    /// When a sign of life went to the server last; its delivery was the first.
    pub signed: Instant,
    /// When the handler got it; none while it waits here.
    pub started: Option<Instant>,
    /// No more signs: it ran too long.
    pub overtime: bool,
    /// It is being handed over to the dead-letter stream: kept alive whatever time it takes.
    pub leaving: bool,
}

/// Whether it is known which attempt a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// It may be handed out.
    Known,
    /// What is kept about it has not been read.
    Asks,
    /// It is the last one, and that is not kept yet.
    Last,
}

impl Held {
    pub fn new(credit: Credit) -> Self {
        Held { credit, slots: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, reply: Subject, place: &Place, bytes: usize, now: Instant) -> Token {
        self.credit.received(bytes);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, tenant: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.tenant = Some(Tenant {
            reply,
            sequence: place.stream_sequence,
            stored_at: place.stored_at,
            delivery: place.delivered,
            attempt: place.delivered,
            count: Count::Known,
            bytes,
            signed: now,
            started: None,
            overtime: false,
            leaving: false,
        });
        Token { index, generation: slot.generation }
    }

    pub fn get_mut(&mut self, token: Token) -> Option<&mut Tenant> {
        let slot = self.slots.get_mut(token.index as usize)?;
        (slot.generation == token.generation).then_some(slot.tenant.as_mut()).flatten()
    }

    pub fn remove(&mut self, token: Token) -> Option<Tenant> {
        let slot = self.slots.get_mut(token.index as usize).filter(|slot| slot.generation == token.generation)?;
        let tenant = slot.tenant.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(token.index);
        self.credit.settled(tenant.bytes);
        Some(tenant)
    }

    /// The held delivery of a message that came again, told of its new name on the server. None: it is not held, or its
    /// handler ran too long and is not waited for.
    pub fn again(&mut self, sequence: u64, stored_at: i128, reply: &Subject) -> Option<&mut Tenant> {
        let tenants = self.slots.iter_mut().filter_map(|slot| slot.tenant.as_mut());
        let same =
            |tenant: &&mut Tenant| (tenant.sequence, tenant.stored_at) == (sequence, stored_at) && !tenant.overtime;
        let tenant = tenants.into_iter().find(same)?;
        tenant.reply = reply.clone();
        Some(tenant)
    }

    /// How many a handler has, or are on their way to the dead-letter stream.
    pub fn handed_out(&self) -> usize {
        let out = |tenant: &Tenant| tenant.started.is_some() || tenant.leaving;
        self.slots.iter().filter(|slot| slot.tenant.as_ref().is_some_and(out)).count()
    }

    /// How many wait here and no handler has seen.
    pub fn unbegun(&self) -> usize {
        self.credit.held() - self.handed_out()
    }

    /// Those that the server must hear of again, and those whose handler has just run too long: sequence, attempt, delivery.
    pub fn due(&mut self, now: Instant, every: Duration, max_run: Duration) -> (Vec<Subject>, Vec<(u64, u64, u64)>) {
        let (mut signs, mut overtime) = (Vec::new(), Vec::new());
        for tenant in self.slots.iter_mut().filter_map(|slot| slot.tenant.as_mut()) {
            if tenant.overtime || now.duration_since(tenant.signed) < every {
                continue;
            }
            let ran = tenant.started.map(|started| now.duration_since(started));
            if !tenant.leaving && ran.is_some_and(|ran| ran >= max_run) {
                tenant.overtime = true;
                overtime.push((tenant.sequence, tenant.attempt, tenant.delivery));
            } else {
                tenant.signed = now;
                signs.push(tenant.reply.clone());
            }
        }
        (signs, overtime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_handler_is_kept_alive_up_to_its_bound() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let (every, max_run) = (Duration::from_secs(10), Duration::from_secs(25));
        let mut held = Held::new(Credit::new(10, 1000));
        let place = |stream_sequence| Place { delivered: 1, stream_sequence, stored_at: 0, pending: 0 };
        let running = held.insert("r1".into(), &place(1), 5, start);
        let waiting = held.insert("r2".into(), &place(2), 5, start);
        held.get_mut(running).unwrap().started = Some(start);
        assert_eq!(held.handed_out(), 1);
        assert_eq!(held.due(at(5), every, max_run), (vec![], vec![]));
        assert_eq!(held.due(at(10), every, max_run).0.len(), 2);
        assert_eq!(held.due(at(30), every, max_run), (vec!["r2".into()], vec![(1, 1, 1)]));
        assert!(held.again(1, 0, &"r3".into()).is_none(), "another handler may have it");
        assert!(held.again(2, 7, &"r3".into()).is_none(), "another message");
        assert!(held.again(2, 0, &"r2".into()).is_some());
        // The one that ran too long is silent from now on; the one that waits is not.
        assert_eq!(held.due(at(40), every, max_run), (vec!["r2".into()], vec![]));
        assert!(held.remove(running).is_some() && held.remove(running).is_none());
        assert!(held.remove(waiting).is_some());
        assert_eq!(held.credit.held(), 0);
    }
}
