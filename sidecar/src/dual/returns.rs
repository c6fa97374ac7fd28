//! What RabbitMQ has yet to take back of a queue that the sidecar is about to read itself. Pure.
//!
//! What a client gave back may still be on its way when nothing is in anybody's hands any more. Read then, the queue would be without it: it
//! would have no copy, or one in the wrong place. So a queue is read only when RabbitMQ has answered, after the last settlement, on every
//! channel that was given anything of it, and has closed every connection that ended.

use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashSet};

use crate::fence::QueueName;

/// How long RabbitMQ may take to notice that a connection is gone: twice its own heartbeat of 60 s, and a little more.
pub const UNNOTICED: Duration = Duration::from_secs(130);

/// Queues that are paused, and who has yet to be answered for them.
#[derive(Debug, Default)]
pub struct Returns {
    /// Links that may have something of RabbitMQ's, and their vhosts.
    links: HashMap<u64, Arc<str>>,
    /// By queue, the links that were there when it was paused and that RabbitMQ has not answered since.
    paused: HashMap<QueueName, HashSet<u64>>,
    /// By queue, or by vhost, until when RabbitMQ may not know that a link is gone which had something of it.
    lost: HashMap<(Arc<str>, Option<Arc<str>>), Duration>,
}

/// What of a queue RabbitMQ may not have back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// Nothing.
    Nothing,
    /// What so many connections had.
    Links(usize),
    /// What a connection had that was lost; RabbitMQ will have noticed by then.
    Lost(Duration),
}

impl Returns {
    /// A link begins.
    pub fn opened(&mut self, link: u64, vhost: &Arc<str>) {
        self.links.insert(link, Arc::clone(vhost));
    }

    /// A link has ended, and RabbitMQ has everything back; or it was said that it is [`Returns::lost`].
    pub fn closed(&mut self, link: u64) {
        self.links.remove(&link);
        for waits in self.paused.values_mut() {
            waits.remove(&link);
        }
    }

    /// A link has lost RabbitMQ without a word, and may have had something of this queue, or of any.
    pub fn lost(&mut self, vhost: &Arc<str>, queue: Option<&Arc<str>>, now: Duration) {
        self.lost.retain(|_, until| *until > now);
        self.lost.insert((Arc::clone(vhost), queue.cloned()), now + UNNOTICED);
    }

    /// Consumers of a queue are let go of. What a later link is given of it is not before [`Returns::resume`].
    pub fn pause(&mut self, queue: &QueueName) {
        let links = &self.links;
        self.paused.entry(queue.clone()).or_insert_with(|| {
            links.iter().filter(|(_, vhost)| **vhost == queue.vhost).map(|(link, _)| *link).collect()
        });
    }

    /// Consumers have the queue again.
    pub fn resume(&mut self, queue: &QueueName) {
        self.paused.remove(queue);
    }

    /// Whether a queue is paused.
    pub fn is_paused(&self, queue: &QueueName) -> bool {
        self.paused.contains_key(queue)
    }

    /// Whether any is.
    pub fn any_paused(&self) -> bool {
        !self.paused.is_empty()
    }

    /// The paused queues for which a link has to be answered.
    pub fn of_link(&self, link: u64) -> Vec<QueueName> {
        self.paused.iter().filter(|(_, waits)| waits.contains(&link)).map(|(queue, _)| queue.clone()).collect()
    }

    /// RabbitMQ has answered a link on every channel that was given anything of a queue.
    pub fn answered(&mut self, link: u64, queue: &QueueName) {
        if let Some(waits) = self.paused.get_mut(queue) {
            waits.remove(&link);
        }
    }

    /// What RabbitMQ may not have back.
    pub fn awaited(&self, queue: &QueueName, now: Duration) -> Awaited {
        let key = |name: Option<&Arc<str>>| (Arc::clone(&queue.vhost), name.cloned());
        let until = [key(Some(&queue.queue)), key(None)].iter().filter_map(|key| self.lost.get(key)).max().copied();
        match (until.filter(|until| *until > now), self.paused.get(queue).map_or(0, HashSet::len)) {
            (Some(until), _) => Awaited::Lost(until - now),
            (None, 0) => Awaited::Nothing,
            (None, links) => Awaited::Links(links),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(vhost: &str, queue: &str) -> QueueName {
        QueueName { vhost: vhost.into(), queue: queue.into() }
    }

    const NOW: Duration = Duration::from_secs(7);

    #[test]
    fn every_link_of_the_vhost_that_was_there_is_awaited_until_it_is_answered_or_gone() {
        let (mut returns, orders) = (Returns::default(), queue("/", "orders"));
        for (link, vhost) in [(1, "/"), (2, "/"), (3, "other")] {
            returns.opened(link, &vhost.into());
        }
        returns.pause(&orders);
        // Once more, as consumers that were just beginning need; and a link that begins now is given nothing of it.
        returns.opened(4, &"/".into());
        returns.pause(&orders);
        assert_eq!(returns.awaited(&orders, NOW), Awaited::Links(2));
        assert_eq!(
            (returns.of_link(1), returns.of_link(3), returns.of_link(4)),
            (vec![orders.clone()], vec![], vec![])
        );
        returns.answered(1, &orders);
        assert_eq!(returns.awaited(&orders, NOW), Awaited::Links(1));
        returns.closed(2);
        assert_eq!(returns.awaited(&orders, NOW), Awaited::Nothing);
        returns.resume(&orders);
        assert!(!returns.any_paused());
        returns.pause(&orders);
        assert_eq!(returns.awaited(&orders, NOW), Awaited::Links(2), "another pause begins anew");
    }

    #[test]
    fn what_a_lost_connection_had_is_awaited_until_rabbitmq_has_noticed() {
        let (mut returns, orders, mails) = (Returns::default(), queue("/", "orders"), queue("/", "mails"));
        returns.lost(&orders.vhost, Some(&orders.queue), NOW);
        assert_eq!(returns.awaited(&orders, NOW), Awaited::Lost(UNNOTICED));
        assert_eq!(returns.awaited(&mails, NOW), Awaited::Nothing);
        assert_eq!(returns.awaited(&orders, NOW + UNNOTICED), Awaited::Nothing);
        returns.lost(&orders.vhost, None, NOW);
        assert_eq!(returns.awaited(&mails, NOW), Awaited::Lost(UNNOTICED));
        assert_eq!(returns.awaited(&queue("other", "mails"), NOW), Awaited::Nothing);
    }
}
