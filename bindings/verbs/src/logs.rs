//! What the core logs, on its way to the logger of a language.
//!
//! Whoever logs puts a record into a queue and goes on: it takes no lock of the language's and runs none of its code. The language
//! takes what has gathered, many at once. What does not fit is counted, and the count goes with the next batch.

use std::collections::VecDeque;
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Metadata, Subscriber, callsite, subscriber};

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// How bad it is.
    pub level: Level,
    /// The logger's name: `nats_bridge.` and the part that says it.
    pub name: String,
    /// What happened, for people, with the fields.
    pub text: String,
    /// What is known about it.
    pub fields: Vec<(&'static str, String)>,
    /// When.
    pub at: SystemTime,
}

/// What has gathered.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order in which it was logged.
    pub records: Vec<Record>,
    /// How many did not fit since the batch before.
    pub dropped: u64,
}

/// The records of one process that wait for its language.
pub struct Logs {
    pid: u32,
    queue: Mutex<Queue>,
    arrived: Condvar,
    wake: Box<dyn Fn() + Send + Sync>,
    // Of a child of that process. A lock that another thread held when it was forked stays locked there, so a child has its own.
    child: OnceLock<&'static Logs>,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<Record>,
    dropped: u64,
    closed: bool,
}

/// How many records wait at most.
pub const MOST: usize = 4096;
/// How many a batch has at most.
pub const BATCH: usize = 256;

static FIRST: OnceLock<&'static Logs> = OnceLock::new();
// 0: nothing is logged. Else as in `rank`.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The crates whose records are passed on, and what they are called there.
const PARTS: [(&str, &str); 4] = [
    ("nats_bridge", "nats_bridge"),
    ("amqp_compat", "nats_bridge.amqp"),
    ("sidecar", "nats_bridge.sidecar"),
    ("async_nats", "nats_bridge.async_nats"),
];

/// Begins to gather what this process logs, and calls `wake` when something comes into the empty queue. None: it is gathered already.
///
/// `wake` is called on any thread, under no lock, and must not wait.
pub fn start(level: Level, wake: impl Fn() + Send + Sync + 'static) -> Option<&'static Logs> {
    let pid = std::process::id();
    let mut place = &FIRST;
    while let Some(logs) = place.get() {
        if logs.pid == pid {
            return None;
        }
        place = &logs.child;
    }
    let logs: &'static Logs = Box::leak(Box::new(Logs::new(pid, Box::new(wake))));
    place.set(logs).ok()?;
    // Whoever had one before keeps it: a program that is a subscriber itself does not load this as a module.
    let _ = subscriber::set_global_default(Collector);
    set_level(level);
    Some(logs)
}

/// What this process gathers; none before [`start`].
pub fn here() -> Option<&'static Logs> {
    let pid = std::process::id();
    std::iter::successors(FIRST.get(), |logs| logs.child.get()).copied().find(|logs| logs.pid == pid)
}

/// From which level on records are gathered.
pub fn set_level(level: Level) {
    if LEVEL.swap(rank(level), Ordering::Relaxed) != rank(level) {
        callsite::rebuild_interest_cache();
    }
}

fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

impl Logs {
    fn new(pid: u32, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Logs { pid, queue: Mutex::default(), arrived: Condvar::new(), wake, child: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // What is behind the lock is whole at every step.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, record: Record) {
        let first = {
            let mut queue = self.lock();
            if queue.closed {
                return;
            }
            if queue.records.len() >= MOST {
                queue.dropped += 1;
                return;
            }
            queue.records.push_back(record);
            queue.records.len() == 1
        };
        if first {
            self.arrived.notify_one();
            (self.wake)();
        }
    }

    /// What has gathered, at most [`BATCH`] records; empty when there are none.
    pub fn take(&self) -> Batch {
        batch(&mut self.lock())
    }

    /// Waits for the next batch; none once it is closed and everything was taken.
    pub fn wait(&self) -> Option<Batch> {
        let mut queue = self.lock();
        while queue.records.is_empty() && queue.dropped == 0 && !queue.closed {
            queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let batch = batch(&mut queue);
        (!batch.records.is_empty() || batch.dropped > 0).then_some(batch)
    }

    /// Takes nothing more; what is there can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }
}

fn batch(queue: &mut Queue) -> Batch {
    let count = queue.records.len().min(BATCH);
    Batch { records: queue.records.drain(..count).collect(), dropped: std::mem::take(&mut queue.dropped) }
}

struct Collector;

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let wanted = metadata.is_event() && rank(*metadata.level()) <= LEVEL.load(Ordering::Relaxed);
        wanted && name(metadata.target()).is_some()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn event(&self, event: &Event<'_>) {
        let (Some(logs), Some(name)) = (here(), name(event.metadata().target())) else { return };
        let mut said = Said::default();
        event.record(&mut said);
        let Said { text, fields } = said;
        logs.push(Record { level: *event.metadata().level(), name, text, fields, at: SystemTime::now() });
    }

    // Spans are not asked for.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The logger of a target such as `nats_bridge::consume::shared`: the crate and the part of it.
fn name(target: &str) -> Option<String> {
    let mut words = target.split("::");
    let this = words.next()?;
    let (_, called) = PARTS.iter().find(|(part, _)| *part == this)?;
    Some(match words.next() {
        Some(part) => format!("{called}.{part}"),
        None => (*called).to_owned(),
    })
}

#[derive(Default)]
struct Said {
    text: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.text.insert_str(0, value),
            name => {
                // Writing into a text does not fail.
                let _ = write!(self.text, " {name}={value}");
                self.fields.push((name, value.to_owned()));
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: usize) -> Record {
        let name = "nats_bridge.test".to_owned();
        Record { level: Level::INFO, name, text: number.to_string(), fields: Vec::new(), at: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_the_count_is_told_once() {
        let logs = Logs::new(0, Box::new(|| {}));
        for number in 0..MOST + 3 {
            logs.push(record(number));
        }
        let first = logs.take();
        assert_eq!((first.records.len(), first.dropped), (BATCH, 3));
        assert_eq!(first.records[0].text, "0");
        let rest: usize = std::iter::from_fn(|| Some(logs.take()).filter(|batch| !batch.records.is_empty()))
            .map(|batch| batch.records.len() + batch.dropped as usize)
            .sum();
        assert_eq!(rest, MOST - BATCH);
    }

    #[test]
    fn only_what_comes_into_the_empty_queue_wakes() {
        let wakes = std::sync::Arc::new(AtomicU8::new(0));
        let logs = Logs::new(0, {
            let wakes = wakes.clone();
            Box::new(move || {
                wakes.fetch_add(1, Ordering::Relaxed);
            })
        });
        logs.push(record(1));
        logs.push(record(2));
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        assert_eq!(logs.take().records.len(), 2);
        logs.push(record(3));
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn whoever_waits_gets_what_came_before_the_end_and_then_nothing() {
        let logs = Logs::new(0, Box::new(|| {}));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| std::iter::from_fn(|| logs.wait()).flat_map(|batch| batch.records).count());
            logs.push(record(1));
            logs.push(record(2));
            logs.close();
            logs.push(record(3));
            assert_eq!(waits.join().unwrap(), 2);
        });
    }

    #[test]
    fn loggers_are_named_by_the_part_that_logs() {
        let named = |target| name(target).unwrap_or_default();
        assert_eq!(named("nats_bridge::consume::shared"), "nats_bridge.consume");
        assert_eq!(named("amqp_compat::listener"), "nats_bridge.amqp.listener");
        // Targets begin with the name of the library, as paths of types do.
        let types = std::any::type_name::<sidecar::control_api::Backfill>();
        assert_eq!(named(types), "nats_bridge.sidecar.control_api");
        assert_eq!(named("nats_bridge"), "nats_bridge");
        assert_eq!(name("rustls::client"), None);
    }

    #[test]
    fn a_record_has_its_message_first_and_its_fields_by_name() {
        let seen = std::sync::Arc::new(Mutex::new(Vec::new()));
        struct Keeps(std::sync::Arc<Mutex<Vec<Said>>>);
        impl Subscriber for Keeps {
            fn enabled(&self, _: &Metadata<'_>) -> bool {
                true
            }
            fn event(&self, event: &Event<'_>) {
                let mut said = Said::default();
                event.record(&mut said);
                self.0.lock().unwrap().push(said);
            }
            fn new_span(&self, _: &Attributes<'_>) -> Id {
                Id::from_u64(1)
            }
            fn record(&self, _: &Id, _: &tracing::span::Record<'_>) {}
            fn record_follows_from(&self, _: &Id, _: &Id) {}
            fn enter(&self, _: &Id) {}
            fn exit(&self, _: &Id) {}
        }
        subscriber::with_default(Keeps(seen.clone()), || {
            tracing::warn!(stream = "ORDERS", attempt = 3, "it was given up");
        });
        let said = seen.lock().unwrap().pop().unwrap();
        assert_eq!(said.text, "it was given up stream=ORDERS attempt=3");
        assert_eq!(said.fields, [("stream", "ORDERS".to_owned()), ("attempt", "3".to_owned())]);
    }
}
