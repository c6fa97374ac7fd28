//! The table of what was handed over and is not confirmed: which token is whose, since when, after how many attempts.

use std::time::Instant;

use async_nats::Subject;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::Published;
use super::confirm::Rejection;
use super::takers::Taken;
use crate::error::Result;

/// One message that is not confirmed yet, with all that is needed to send it again.
pub(crate) struct Outstanding {
    pub subject: Subject,
    pub payload: Bytes,
    pub headers: Vec<(String, String)>,
    pub id: Option<String>,
    pub done: oneshot::Sender<Result<Published>>,
    /// When it was handed over first.
    pub started: Instant,
    /// When it was handed over last.
    pub sent: Instant,
    /// How often it was handed over.
    pub attempt: u32,
    /// Whether an attempt ended without an answer: it may be stored whatever later attempts say.
    pub unknown: bool,
    /// When to send it again after a rejection that may pass.
    pub resend_at: Option<Instant>,
    pub rejection: Option<Rejection>,
    /// Who takes the subject, once nobody answered on it and that was asked.
    pub taken: Option<Taken>,
    /// Bytes it takes of the window.
    pub size: u32,
    // Rises with each insertion, so that resends keep the order of the first sends.
    order: u64,
}

impl Outstanding {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        subject: Subject,
        payload: Bytes,
        headers: Vec<(String, String)>,
        id: Option<String>,
        size: u32,
        done: oneshot::Sender<Result<Published>>,
        now: Instant,
    ) -> Self {
        Outstanding {
            subject,
            payload,
            headers,
            id,
            done,
            started: now,
            sent: now,
            attempt: 1,
            unknown: false,
            resend_at: None,
            rejection: None,
            taken: None,
            size,
            order: 0,
        }
    }
}

/// A slab: a token is a slot's index and its generation, so that a late answer never meets the slot's next tenant.
#[derive(Default)]
pub(crate) struct Window {
    slots: Vec<Slot>,
    free: Vec<u32>,
    order: u64,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    tenant: Option<Outstanding>,
}

impl Window {
    pub fn insert(&mut self, mut outstanding: Outstanding) -> u64 {
        self.order += 1;
        outstanding.order = self.order;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.tenant = Some(outstanding);
        token(slot.generation, index)
    }

    pub fn get_mut(&mut self, token: u64) -> Option<&mut Outstanding> {
        let slot = self.slots.get_mut((token & 0xffff_ffff) as usize)?;
        (slot.generation == (token >> 32) as u32).then_some(slot.tenant.as_mut()).flatten()
    }

    pub fn remove(&mut self, token: u64) -> Option<Outstanding> {
        let index = (token & 0xffff_ffff) as u32;
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation != (token >> 32) as u32 {
            return None;
        }
        let tenant = slot.tenant.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(tenant)
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The tokens of those that `wanted` picks, in the order in which they were first sent.
    pub fn tokens(&self, mut wanted: impl FnMut(&Outstanding) -> bool) -> Vec<u64> {
        let mut found: Vec<(u64, u64)> = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some(tenant) = slot.tenant.as_ref().filter(|tenant| wanted(tenant)) {
                found.push((tenant.order, token(slot.generation, index as u32)));
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, token)| token).collect()
    }
}

fn token(generation: u32, index: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outstanding() -> Outstanding {
        let (done, _) = oneshot::channel();
        Outstanding::new("a".into(), "x".into(), Vec::new(), None, 1, done, Instant::now())
    }

    #[test]
    fn a_late_answer_never_meets_the_next_tenant() {
        let mut window = Window::default();
        let first = window.insert(outstanding());
        assert!(window.remove(first).is_some());
        let second = window.insert(outstanding());
        assert_ne!(first, second);
        assert!(window.remove(first).is_none());
        assert!(window.get_mut(first).is_none());
        assert_eq!(window.len(), 1);
        assert!(window.remove(second).is_some());
        assert!(window.remove(u64::MAX).is_none());
    }

    #[test]
    fn tokens_come_in_the_order_of_the_first_send() {
        let mut window = Window::default();
        let tokens: Vec<u64> = (0..4).map(|_| window.insert(outstanding())).collect();
        window.remove(tokens[1]);
        let last = window.insert(outstanding());
        assert_eq!(window.tokens(|_| true), [tokens[0], tokens[2], tokens[3], last]);
    }
}
