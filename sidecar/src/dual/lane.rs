//! One channel on one side: what is sent to it, and what each of its replies is for. Pure.

use std::collections::VecDeque;

use amq_protocol::types::ShortString;
use amqp_compat::backend::{Command, Topology};

use crate::fence::QueueName;

/// What a reply of a side is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Purpose {
    /// Step of the client's request with this number.
    Client(u64),
    /// Topology that was repeated here; a refusal is recorded.
    Topology(Box<Topology>),
    /// A consumer that was attached here.
    Consume(ShortString),
    /// A consumer that was cancelled here because its other half ended.
    Cancel(ShortString),
    /// RabbitMQ has taken what was sent on the channel before, of this queue.
    Returned(QueueName),
    /// Nothing depends on it.
    Nothing,
}

/// One channel on one side.
///
/// A backend takes nothing on a channel while a request is in flight on it, so what comes meanwhile waits here.
#[derive(Debug, Default)]
pub struct Lane {
    in_flight: Option<Purpose>,
    waiting: VecDeque<(Command, Option<Purpose>)>,
}

impl Lane {
    /// Sends a request, or lets it wait for the one in flight.
    pub fn request(&mut self, command: Command, purpose: Purpose, out: &mut VecDeque<Command>) {
        self.push(command, Some(purpose), out);
    }

    /// Sends what has no reply.
    pub fn tell(&mut self, command: Command, out: &mut VecDeque<Command>) {
        self.push(command, None, out);
    }

    fn push(&mut self, command: Command, purpose: Option<Purpose>, out: &mut VecDeque<Command>) {
        if self.in_flight.is_none() {
            self.in_flight = purpose;
            out.push_back(command);
        } else {
            self.waiting.push_back((command, purpose));
        }
    }

    /// A reply came: answers what it is for, and sends what waited for it.
    pub fn replied(&mut self, out: &mut VecDeque<Command>) -> Option<Purpose> {
        let done = self.in_flight.take();
        while self.in_flight.is_none()
            && let Some((command, purpose)) = self.waiting.pop_front()
        {
            self.in_flight = purpose;
            out.push_back(command);
        }
        done
    }

    /// What the awaited reply is for.
    pub fn awaited(&self) -> Option<&Purpose> {
        self.in_flight.as_ref()
    }

    /// Whether no reply is awaited.
    pub fn idle(&self) -> bool {
        self.in_flight.is_none()
    }

    /// Whether it has repeated everything that was told to it without waiting.
    pub fn caught_up(&self) -> bool {
        let follows = |p: &Purpose| !matches!(p, Purpose::Client(_));
        !self.in_flight.as_ref().is_some_and(follows)
            && !self.waiting.iter().any(|(_, p)| p.as_ref().is_some_and(follows))
    }

    /// Whether topology is being repeated.
    pub fn repeats(&self) -> bool {
        let topology = |p: &Purpose| matches!(p, Purpose::Topology(_));
        self.in_flight.as_ref().is_some_and(topology)
            || self.waiting.iter().any(|(_, p)| p.as_ref().is_some_and(topology))
    }

    /// How much waits.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Ends the lane: what was asked and not answered, and what was not sent.
    pub fn end(self) -> (Option<Purpose>, VecDeque<(Command, Option<Purpose>)>) {
        (self.in_flight, self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_on_a_channel_while_a_request_is_in_flight() {
        let (mut lane, mut out) = (Lane::default(), VecDeque::new());
        let open = || Command::OpenChannel { channel: 1 };
        let credit = || Command::Credit { channel: 1, consumer_tag: "t".into(), amount: 1 };
        lane.tell(credit(), &mut out);
        lane.request(open(), Purpose::Client(1), &mut out);
        lane.tell(credit(), &mut out);
        lane.request(open(), Purpose::Nothing, &mut out);
        lane.tell(credit(), &mut out);
        assert_eq!((out.len(), lane.waiting()), (2, 3));
        assert_eq!(lane.replied(&mut out), Some(Purpose::Client(1)));
        assert_eq!((out.len(), lane.waiting()), (4, 1));
        assert_eq!(lane.replied(&mut out), Some(Purpose::Nothing));
        assert_eq!((out.len(), lane.idle()), (5, true));
        assert_eq!(lane.replied(&mut out), None);
    }
}
