//! The priorities of one queue: where their messages go, and what is known to be stored.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use amq_protocol::protocol::basic::AMQPProperties;
use async_nats::Subject;
use tokio::sync::Notify;

/// One priority of a queue; a queue without priorities has one.
#[derive(Debug)]
struct Level {
    subject: Subject,
    /// The highest sequence that a confirm has named, so that a get knows when the server is about to have more.
    last_stored: AtomicU64,
    /// Up to which sequence it is known to have been empty once.
    drained: AtomicU64,
    /// Whether it has a consumer.
    is_open: AtomicBool,
}

/// The priorities of one queue, from 0 on.
#[derive(Debug)]
pub(crate) struct Levels {
    levels: Box<[Level]>,
    /// A priority without a consumer has got a message, or a confirm has come that the actor waits for.
    wanted: Notify,
    /// Whether the actor waits for any confirm.
    awaits_confirm: AtomicBool,
}

impl Levels {
    pub(crate) fn new(subject: &str, highest: u8) -> Self {
        let level = |priority: u8| Level {
            subject: Subject::from(match priority {
                0 => subject.to_owned(),
                priority => format!("{subject}.{priority}"),
            }),
            last_stored: AtomicU64::new(0),
            drained: AtomicU64::new(0),
            is_open: AtomicBool::new(priority == 0),
        };
        Self {
            levels: (0..=highest).map(level).collect(),
            wanted: Notify::new(),
            awaits_confirm: AtomicBool::new(false),
        }
    }

    /// The highest priority that makes a difference.
    pub(crate) fn highest(&self) -> u8 {
        u8::try_from(self.levels.len() - 1).unwrap_or(u8::MAX)
    }

    /// The priority that a message has in this queue.
    pub(crate) fn of(&self, properties: &AMQPProperties) -> u8 {
        properties.priority().unwrap_or_default().min(self.highest())
    }

    fn level(&self, priority: u8) -> &Level {
        &self.levels[usize::from(priority.min(self.highest()))]
    }

    /// Where messages of a priority are published.
    pub(crate) fn subject(&self, priority: u8) -> &Subject {
        &self.level(priority).subject
    }

    /// Notes a confirm.
    pub(crate) fn stored(&self, priority: u8, sequence: u64) {
        let level = self.level(priority);
        level.last_stored.fetch_max(sequence, Ordering::AcqRel);
        if !level.is_open.load(Ordering::Acquire) || self.awaits_confirm.swap(false, Ordering::AcqRel) {
            self.wanted.notify_one();
        }
    }

    /// Notes that a priority has a consumer.
    pub(crate) fn set_open(&self, priority: u8) {
        self.level(priority).is_open.store(true, Ordering::Release);
    }

    /// The next confirm ends [`Self::wanted`].
    pub(crate) fn await_confirm(&self) {
        self.awaits_confirm.store(true, Ordering::Release);
    }

    /// Waits until a priority without a consumer has got a message, or for the confirm that is awaited.
    pub(crate) fn wanted(&self) -> impl Future<Output = ()> + use<'_> {
        self.wanted.notified()
    }

    pub(crate) fn last_stored(&self, priority: u8) -> u64 {
        self.level(priority).last_stored.load(Ordering::Acquire)
    }

    /// [`Self::last_stored`] over all priorities.
    pub(crate) fn last_stored_of_all(&self) -> u64 {
        self.levels.iter().map(|level| level.last_stored.load(Ordering::Acquire)).max().unwrap_or_default()
    }

    pub(crate) fn drained(&self, priority: u8) -> u64 {
        self.level(priority).drained.load(Ordering::Acquire)
    }

    pub(crate) fn set_drained(&self, priority: u8, sequence: u64) {
        self.level(priority).drained.fetch_max(sequence, Ordering::AcqRel);
    }
}
