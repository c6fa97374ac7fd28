//! What publisher and handlers wrote down, independent of the SDK and the servers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nats_bridge::{Error, Landed, Published, Settled};

#[derive(Default)]
pub struct Record {
    /// By message number.
    pub published: Mutex<Vec<(usize, Outcome)>>,
    pub handled: Mutex<Vec<Handled>>,
    worker: AtomicU64,
    kills: AtomicU64,
    killed_at: Mutex<Option<Instant>>,
}

/// How long a delivery may have been on its way.
const IN_DOUBT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub enum Outcome {
    Stored { sequence: u64 },
    No(String),
    Unknown(String),
}

/// One call of the handler.
#[derive(Debug, Clone)]
pub struct Handled {
    pub number: usize,
    pub sequence: u64,
    pub attempt: u64,
    pub worker: u64,
    /// [`Record::era`] when it came.
    pub era: u64,
    pub at: SystemTime,
    pub did: Did,
    /// What the SDK said about the settlement; none while it has not.
    pub settled: Option<Result<Settled, String>>,
}

impl Handled {
    /// The SDK has taken its ack.
    pub fn acked(&self) -> bool {
        self.did == Did::Acked && matches!(self.settled, Some(Ok(_)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    Acked,
    Failed,
    Rejected,
    Dropped,
}

impl Record {
    pub fn publish_ended(&self, number: usize, outcome: Result<Published, Error>) {
        let outcome = match outcome {
            Ok(at) => Outcome::Stored { sequence: at.sequence },
            Err(error) => match error.landed() {
                Landed::No => Outcome::No(error.to_string()),
                Landed::Unknown => Outcome::Unknown(error.to_string()),
            },
        };
        self.published.lock().unwrap().push((number, outcome));
    }

    /// Once before a server is killed, and once after it.
    pub fn server_killed(&self) {
        self.kills.fetch_add(1, Ordering::SeqCst);
        *self.killed_at.lock().unwrap() = Some(Instant::now());
    }

    pub fn kills(&self) -> u64 {
        self.kills.load(Ordering::SeqCst) / 2
    }

    /// What a delivery is to remember that comes now. Odd while a server is being killed and shortly after, when it may be
    /// from before the kill; the same even number twice: none was killed since the first one was delivered.
    pub fn era(&self) -> u64 {
        let kills = self.kills.load(Ordering::SeqCst);
        let lately = self.killed_at.lock().unwrap().is_some_and(|at| at.elapsed() < IN_DOUBT);
        if lately { kills | 1 } else { kills }
    }

    /// What the present worker does from now on did not happen: its process is gone.
    pub fn worker_vanished(&self) {
        self.worker.fetch_add(1, Ordering::SeqCst);
    }

    pub fn worker(&self) -> u64 {
        self.worker.load(Ordering::SeqCst)
    }

    /// Notes a handling unless its worker is gone, and gives its place.
    pub fn handled(&self, handled: Handled) -> Option<usize> {
        let mut all = self.handled.lock().unwrap();
        if handled.worker != self.worker() {
            return None;
        }
        all.push(handled);
        Some(all.len() - 1)
    }

    pub fn settled(&self, place: usize, worker: u64, settled: Result<Settled, Error>) {
        let mut all = self.handled.lock().unwrap();
        if worker == self.worker() {
            all[place].settled = Some(settled.map_err(|e| e.to_string()));
        }
    }

    /// Whether every settlement of the worker that lives on has ended.
    pub fn all_settled(&self) -> bool {
        let (all, worker) = (self.handled.lock().unwrap(), self.worker());
        let mut of_it = all.iter().filter(|one| one.worker == worker && one.did != Did::Dropped);
        of_it.all(|one| one.settled.is_some())
    }
}
