//! Whether JetStream has room for messages, as RabbitMQ's disk and memory alarms say it of a RabbitMQ.
//!
//! There is no word of nats-server's for it: it refuses the publish that is too much. So the alarm is raised by the first copy
//! that is refused, and over when no copy waits any more. Each link sends one of those that wait again now and then, and
//! the others when that one was stored ([`super::publisher`]). Nothing that asks for limits and usage would do as well:
//! a server's own limits are not told to its clients, and in a cluster each server has its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// What is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// The room for durable queues.
    Disk,
    /// The room for transient queues.
    Memory,
}

impl Resource {
    /// Its name in RabbitMQ's alarms.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Disk => "disk",
            Resource::Memory => "memory",
        }
    }

    /// What clients are told, in RabbitMQ's words.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Resource::Disk => "low on disk",
            Resource::Memory => "low on memory",
        }
    }
}

/// The alarm of a JetStream; clones are the same one.
#[derive(Debug, Clone)]
pub struct Alarm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// How many copies of messages wait.
    waiting: Mutex<usize>,
    raised: watch::Sender<Option<Resource>>,
}

impl Default for Alarm {
    fn default() -> Self {
        Self(Arc::new(Inner { waiting: Mutex::default(), raised: watch::Sender::new(None) }))
    }
}

impl Alarm {
    /// What is used up, while something is.
    pub fn raised(&self) -> Option<Resource> {
        *self.0.raised.borrow()
    }

    /// Tells of changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Resource>> {
        self.0.raised.subscribe()
    }

    /// A copy was refused and waits from now on.
    pub(crate) fn refused(&self, resource: Resource, why: &str) {
        let mut waiting = self.waiting();
        *waiting += 1;
        if *waiting == 1 {
            tracing::warn!(
                resource = resource.name(),
                why,
                "JetStream has no room: connections that publish are blocked"
            );
            self.0.raised.send_replace(Some(resource));
        }
    }

    /// Copies wait no longer.
    pub(crate) fn ended(&self, count: usize) {
        let mut waiting = self.waiting();
        let before = *waiting;
        *waiting = before.saturating_sub(count);
        if before > 0 && *waiting == 0 {
            tracing::info!("JetStream has room again, or nobody waits for it: connections that publish go on");
            self.0.raised.send_replace(None);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, usize> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_raised_while_anything_waits() {
        let alarm = Alarm::default();
        let seen = alarm.clone();
        assert_eq!(seen.raised(), None);
        alarm.refused(Resource::Memory, "insufficient resources");
        alarm.refused(Resource::Disk, "insufficient resources");
        assert_eq!(seen.raised(), Some(Resource::Memory), "the first one");
        alarm.ended(1);
        assert_eq!(seen.raised(), Some(Resource::Memory));
        alarm.ended(0);
        alarm.ended(1);
        assert_eq!(seen.raised(), None);
        alarm.ended(1);
        alarm.refused(Resource::Disk, "");
        assert_eq!(seen.raised(), Some(Resource::Disk));
    }
}
