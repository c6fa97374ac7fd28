//! Who gets the next message: consumers by priority, equal ones in turn, or the one that is active.
//!
//! Equal ones stand in a line, as in RabbitMQ: who was served goes to its end, and so does who was passed over for want of
//! credit, at the time when it gets some.
//!
//! Source: RabbitMQ, "Consumer Priorities" and "Single Active Consumer".

use std::collections::VecDeque;

use amq_protocol::types::ShortString;
use smallvec::SmallVec;
use tokio::sync::mpsc;

use crate::backend::{ChannelId, Event};
use crate::model::stream::Offset;

/// A consumer to add.
#[derive(Debug, Clone)]
pub(crate) struct NewConsumer {
    /// Its number, unique in the process and growing.
    pub(crate) id: u64,
    /// Its link.
    pub(crate) link: u64,
    /// Its channel.
    pub(crate) channel: ChannelId,
    /// Its tag, in what it is sent.
    pub(crate) tag: ShortString,
    /// The tag that its client gave it: the same, but for a consumer of another gateway.
    pub(crate) client_tag: ShortString,
    /// Whether it wants to be alone.
    pub(crate) exclusive: bool,
    /// Its `x-priority`.
    pub(crate) priority: i64,
    /// Where it begins, in a stream queue.
    pub(crate) offset: Offset,
    /// Since when it is ready for what comes, in nanoseconds since 1970, if its first credit is sure to follow.
    pub(crate) ready_ns: Option<u64>,
    /// The upper bits of its delivery ids; the lower ones are the stream sequence.
    pub(crate) base: u64,
    /// Where its deliveries go.
    pub(crate) events: mpsc::Sender<Event>,
}

/// A consumer of the queue.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) new: NewConsumer,
    pub(super) credit: u64,
    /// Events that the link had no room for yet; bounded by the credit that was given.
    pub(super) waiting: VecDeque<Event>,
    /// Whether it was its turn while it had no credit.
    is_passed_over: bool,
}

impl Consumer {
    fn is_ready(&self) -> bool {
        self.credit > 0 && self.waiting.is_empty()
    }

    /// How many messages it could be handed now.
    fn room(&self) -> u64 {
        if self.waiting.is_empty() { self.credit } else { 0 }
    }
}

/// Who takes over when the active one of several consumers goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Succession {
    /// All are active.
    None,
    /// The first of the highest priority, as with RabbitMQ's classic queues.
    Priority,
    /// The first to have come, as with RabbitMQ's quorum queues.
    Age,
}

/// Consumers of one priority.
#[derive(Debug)]
struct Line {
    priority: i64,
    /// Whose turn it is comes first.
    members: VecDeque<Consumer>,
}

/// The consumers of one queue.
#[derive(Debug)]
pub(super) struct Consumers {
    /// By priority, the highest first; none is empty.
    lines: SmallVec<[Line; 1]>,
    succession: Succession,
    /// The only one that is served, where not all are.
    active: Option<u64>,
}

impl Consumers {
    pub(super) fn new(succession: Succession) -> Self {
        Self { lines: SmallVec::new(), succession, active: None }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.iter().map(|line| line.members.len()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether another consumer may be added, one that wants to be alone or one that does not.
    pub(super) fn admits(&self, exclusive: bool) -> bool {
        match self.succession {
            Succession::None => !self.iter().any(|consumer| consumer.new.exclusive) && (!exclusive || self.is_empty()),
            // RabbitMQ refuses it to the first one as well.
            Succession::Priority => !exclusive,
            // Only one is served anyway.
            Succession::Age => true,
        }
    }

    /// Adds a consumer, with no credit yet.
    pub(super) fn add(&mut self, new: NewConsumer) {
        let (id, priority) = (new.id, new.priority);
        let consumer = Consumer { new, credit: 0, waiting: VecDeque::new(), is_passed_over: false };
        let at = self.lines.iter().position(|line| line.priority <= priority).unwrap_or(self.lines.len());
        match self.lines.get_mut(at) {
            Some(line) if line.priority == priority => line.members.push_back(consumer),
            _ => self.lines.insert(at, Line { priority, members: VecDeque::from([consumer]) }),
        }
        if self.succession != Succession::None {
            self.active.get_or_insert(id);
        }
    }

    /// Removes consumers and hands them to `each`.
    pub(super) fn remove(&mut self, gone: impl Fn(&NewConsumer) -> bool, mut each: impl FnMut(Consumer)) {
        for line in &mut self.lines {
            let mut at = 0;
            while at < line.members.len() {
                if !gone(&line.members[at].new) {
                    at += 1;
                    continue;
                }
                line.members.remove(at).into_iter().for_each(&mut each);
            }
        }
        self.lines.retain(|line| !line.members.is_empty());
        if let Some(active) = self.active
            && !self.iter().any(|consumer| consumer.new.id == active)
        {
            self.active = match self.succession {
                Succession::Age => self.iter().map(|consumer| consumer.new.id).min(),
                Succession::Priority | Succession::None => self.iter().next().map(|consumer| consumer.new.id),
            };
        }
    }

    /// The consumer with this number.
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Consumer> {
        self.lines.iter_mut().flat_map(|line| &mut line.members).find(|consumer| consumer.new.id == id)
    }

    /// The tag that its client gave a consumer that is there.
    pub(super) fn client_tag(&self, id: u64) -> Option<&ShortString> {
        self.iter().find(|consumer| consumer.new.id == id).map(|consumer| &consumer.new.client_tag)
    }

    /// Who gets the next message; it is the next one's turn then.
    pub(super) fn next(&mut self) -> Option<&mut Consumer> {
        if self.succession != Succession::None {
            return self.get_mut(self.active?).filter(|consumer| consumer.is_ready());
        }
        self.lines.iter_mut().find_map(|line| {
            let at = line.members.iter_mut().position(|consumer| {
                consumer.is_passed_over |= consumer.credit == 0;
                consumer.is_ready()
            })?;
            let served = line.members.remove(at)?;
            line.members.push_back(served);
            line.members.back_mut()
        })
    }

    /// Gives a consumer credit. `is_short`: a message waits that nobody had credit for.
    pub(super) fn credit(&mut self, id: u64, amount: u64, is_short: bool) {
        if is_short && self.succession == Succession::None {
            let all = self.lines.iter_mut().flat_map(|line| &mut line.members);
            all.for_each(|consumer| consumer.is_passed_over |= consumer.credit == 0);
        }
        for line in &mut self.lines {
            let Some(at) = line.members.iter().position(|consumer| consumer.new.id == id) else { continue };
            let Some(consumer) = line.members.get_mut(at) else { continue };
            consumer.credit = consumer.credit.saturating_add(amount);
            consumer.new.ready_ns = None;
            if std::mem::take(&mut consumer.is_passed_over)
                && let Some(consumer) = line.members.remove(at)
            {
                line.members.push_back(consumer);
            }
        }
    }

    /// Whether a message that came now would be handed out.
    pub(super) fn is_ready(&self) -> bool {
        self.served().any(Consumer::is_ready)
    }

    /// Whether a message that came now would be handed out as soon as a new consumer's first credit is here.
    pub(super) fn is_about_to_be_ready(&self) -> bool {
        self.served().any(|consumer| consumer.new.ready_ns.is_some())
    }

    /// How many messages could be handed out now.
    pub(super) fn room(&self) -> u64 {
        self.served().map(Consumer::room).sum()
    }

    fn iter(&self) -> impl Iterator<Item = &Consumer> {
        self.lines.iter().flat_map(|line| &line.members)
    }

    fn served(&self) -> impl Iterator<Item = &Consumer> {
        let all = self.succession == Succession::None;
        self.iter().filter(move |consumer| all || self.active == Some(consumer.new.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(id: u64, priority: i64) -> NewConsumer {
        let (events, _) = mpsc::channel(1);
        NewConsumer {
            id,
            link: 1,
            channel: 1,
            tag: "".into(),
            client_tag: "".into(),
            exclusive: false,
            priority,
            offset: Offset::Next,
            ready_ns: None,
            base: 0,
            events,
        }
    }

    fn with(succession: Succession, consumers: &[(u64, i64, u64)]) -> Consumers {
        let mut all = Consumers::new(succession);
        for (id, priority, credit) in consumers {
            all.add(consumer(*id, *priority));
            all.credit(*id, *credit, false);
        }
        all
    }

    /// Who gets the next messages, until nobody takes any.
    fn served(consumers: &mut Consumers, most: usize) -> Vec<u64> {
        std::iter::from_fn(|| {
            let consumer = consumers.next()?;
            consumer.credit -= 1;
            Some(consumer.new.id)
        })
        .take(most)
        .collect()
    }

    #[test]
    fn equal_consumers_are_served_in_turn() {
        let mut consumers = with(Succession::None, &[(1, 0, 9), (2, 0, 1), (3, 0, 9)]);
        assert_eq!(served(&mut consumers, 6), [1, 2, 3, 1, 3, 1]);
    }

    #[test]
    fn a_higher_priority_comes_first_while_it_has_credit() {
        let mut consumers = with(Succession::None, &[(1, 0, 2), (2, 10, 2), (3, -5, 2), (4, 10, 1)]);
        assert_eq!(consumers.room(), 7);
        assert_eq!(served(&mut consumers, 9), [2, 4, 2, 1, 1, 3, 3]);
        assert!(!consumers.is_ready());
        consumers.credit(4, 1, false);
        consumers.credit(3, 1, false);
        assert_eq!(served(&mut consumers, 9), [4, 3]);
    }

    #[test]
    fn who_comes_waits_for_all_who_are_there() {
        let mut consumers = with(Succession::None, &[(1, 0, 9), (2, 0, 9)]);
        assert_eq!(served(&mut consumers, 1), [1]);
        consumers.add(consumer(3, 0));
        consumers.credit(3, 9, false);
        assert_eq!(served(&mut consumers, 4), [2, 1, 3, 2]);
    }

    #[test]
    fn who_had_no_credit_at_its_turn_goes_to_the_end_of_the_line() {
        let mut consumers = with(Succession::None, &[(1, 0, 1), (2, 0, 9), (3, 0, 9)]);
        assert_eq!(served(&mut consumers, 4), [1, 2, 3, 2]);
        consumers.credit(1, 1, false);
        assert_eq!(served(&mut consumers, 3), [3, 2, 1]);
        // It was not its turn again: it keeps its place.
        consumers.credit(1, 1, false);
        assert_eq!(served(&mut consumers, 3), [3, 2, 1]);
        let mut consumers = with(Succession::None, &[(1, 0, 1), (2, 0, 1), (3, 0, 1)]);
        assert_eq!(served(&mut consumers, 3), [1, 2, 3]);
        consumers.credit(3, 2, true);
        assert_eq!(served(&mut consumers, 1), [3]);
        consumers.credit(1, 1, false);
        assert_eq!(served(&mut consumers, 2), [3, 1]);
    }

    #[test]
    fn whose_turn_it_is_keeps_it_when_another_one_goes() {
        let mut consumers = with(Succession::None, &[(1, 0, 9), (2, 0, 9), (3, 0, 9), (4, 0, 9)]);
        assert_eq!(served(&mut consumers, 2), [1, 2]);
        consumers.remove(|new| new.id == 1, drop);
        assert_eq!(served(&mut consumers, 4), [3, 4, 2, 3]);
    }

    #[test]
    fn only_the_active_one_is_served_and_the_next_takes_over() {
        for (succession, order) in [(Succession::Priority, [1, 3, 2]), (Succession::Age, [1, 2, 3])] {
            let mut consumers = with(succession, &[(1, 0, 1), (2, 0, 1), (3, 7, 1)]);
            for id in order {
                assert_eq!(consumers.room(), 1);
                assert_eq!(served(&mut consumers, 9), [id], "{succession:?}");
                assert!(!consumers.is_ready());
                consumers.remove(|new| new.id == id, drop);
            }
            assert!(consumers.is_empty() && consumers.next().is_none());
        }
    }

    #[test]
    fn who_wants_to_be_alone_is_admitted_alone() {
        let mut consumers = with(Succession::None, &[]);
        assert!(consumers.admits(true) && consumers.admits(false));
        consumers.add(consumer(1, 0));
        assert!(!consumers.admits(true) && consumers.admits(false));
        let mut consumers = with(Succession::None, &[]);
        consumers.add(NewConsumer { exclusive: true, ..consumer(1, 0) });
        assert!(!consumers.admits(true) && !consumers.admits(false));
        for (succession, admits) in [(Succession::Priority, false), (Succession::Age, true)] {
            let consumers = with(succession, &[(1, 0, 1)]);
            assert!(consumers.admits(false));
            assert_eq!(consumers.admits(true), admits);
        }
    }
}
