//! Messages of exclusive queues live in the gateway: such a queue ends with its connection, and so with its gateway, so
//! that a store that outlives both would keep nothing that anybody could ask for.
//!
//! The queue's actor is the same as for a stream. What a publisher stores waits here until the actor takes it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::Notify;

/// Smaller bodies are copied, so that they do not keep the buffer that they were read into.
const COPIED: usize = 32 << 10;

/// About what a message costs besides its body and headers, in bytes.
const OVERHEAD: u64 = 256;

/// How much memory the messages of exclusive queues may take, over all queues that share the limit.
///
/// At the limit a publish fails: `basic.nack` where the client asked for confirms, and a warning in the log.
#[derive(Debug, Clone)]
pub struct MemoryLimit {
    most: u64,
    used: Arc<AtomicU64>,
}

impl MemoryLimit {
    /// A limit in bytes.
    pub fn new(most: u64) -> Self {
        Self { most, used: Arc::default() }
    }

    /// How many bytes are in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The limit in bytes.
    pub fn most(&self) -> u64 {
        self.most
    }

    fn charge(&self, bytes: u64) -> Option<Charge> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.most);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Charge { bytes, used: Arc::clone(&self.used) })
    }
}

impl Default for MemoryLimit {
    fn default() -> Self {
        Self::new(256 << 20)
    }
}

/// A message's share of the limit, given back when the message goes.
#[derive(Debug)]
pub(crate) struct Charge {
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A message that was stored.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) sequence: u64,
    pub(crate) priority: u8,
    /// Nanoseconds since 1970.
    pub(crate) stored_ns: u64,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) body: Bytes,
    pub(crate) charge: Charge,
}

/// The messages of one queue that its actor has not taken yet.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: MemoryLimit,
    inner: Mutex<Inner>,
    stored: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    arrived: VecDeque<Arrived>,
}

impl Memory {
    pub(crate) fn new(limit: MemoryLimit) -> Self {
        Self { limit, inner: Mutex::default(), stored: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Stores a message; gives its sequence, from 1 on, or nothing when the limit is reached.
    pub(crate) fn store(&self, headers: Option<HeaderMap>, body: &Bytes, priority: u8, stored_ns: u64) -> Option<u64> {
        let of_headers: usize = headers
            .iter()
            .flat_map(|headers| headers.iter())
            .map(|(name, values)| 64 + AsRef::<[u8]>::as_ref(name).len() + length(values))
            .sum();
        let charge = self.limit.charge(OVERHEAD + (of_headers + body.len()) as u64)?;
        let body = if body.len() < COPIED { Bytes::copy_from_slice(body) } else { body.clone() };
        let mut inner = self.inner();
        inner.last += 1;
        let sequence = inner.last;
        inner.arrived.push_back(Arrived { sequence, priority, stored_ns, headers, body, charge });
        drop(inner);
        self.stored.notify_one();
        Some(sequence)
    }

    /// Takes what has arrived, at most `most`.
    pub(crate) fn take(&self, most: usize, into: &mut Vec<Arrived>) {
        let mut inner = self.inner();
        let count = inner.arrived.len().min(most);
        into.extend(inner.arrived.drain(..count));
        if !inner.arrived.is_empty() {
            self.stored.notify_one();
        }
    }

    /// Waits until something has arrived.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn wait(&self) {
        self.stored.notified().await;
    }
}

/// The time by the system's clock, in nanoseconds since 1970, as JetStream gives it to what it stores.
pub(crate) fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

fn length(values: &[async_nats::HeaderValue]) -> usize {
    values.iter().map(|value| value.as_str().len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_order_and_give_their_room_back() {
        let limit = MemoryLimit::new(3 * (OVERHEAD + 100));
        let memory = Memory::new(limit.clone());
        let other = Memory::new(limit.clone());
        let body = Bytes::from_static(&[7; 100]);
        assert_eq!(memory.store(None, &body, 0, 1), Some(1));
        assert_eq!(memory.store(None, &body, 0, 2), Some(2));
        assert_eq!(other.store(None, &body, 0, 3), Some(1));
        assert_eq!((memory.store(None, &body, 0, 4), other.store(None, &body, 0, 4)), (None, None));
        let mut taken = Vec::new();
        memory.take(1, &mut taken);
        assert_eq!(taken.iter().map(|message| message.sequence).collect::<Vec<_>>(), [1]);
        assert_eq!(limit.used(), limit.most());
        taken.clear();
        assert_eq!(other.store(None, &body, 0, 5), Some(2));
        memory.take(9, &mut taken);
        assert_eq!(taken.iter().map(|message| (message.sequence, message.stored_ns)).collect::<Vec<_>>(), [(2, 2)]);
        drop((taken, memory, other));
        assert_eq!(limit.used(), 0);
    }
}
