//! A side that is lost and comes back, and the end of a link.

use std::sync::atomic::Ordering;

use amqp_compat::backend::{ChannelId, Command, Event, PublishOutcome, QueueDeclare, Reply, Topology};
use amqp_compat::error::{AmqpError, ReplyCode};
use foldhash::HashSet;

use super::channel::{Asked, Request};
use super::engine::Engine;
use super::half::{Half, Presence};
use super::lane::Purpose;
use crate::control_api::{Phase, Weight};
use crate::ownership::Side;

#[cfg(test)]
mod tests;

impl Engine {
    /// A side's link ended by itself.
    pub(super) fn side_closed(&mut self, side: Side, error: AmqpError) {
        if self.ended || !self.half(side).attached() {
            return;
        }
        let (phase, weight) = {
            let order = self.shared.order();
            (order.phase, order.fences.weight())
        };
        let goes_on = match side {
            // All that is published belongs to NATS: RabbitMQ is only drained, and can be away.
            Side::Rabbit => weight == Weight::ALL,
            Side::Nats => phase != Phase::Native,
        };
        // What the client did wrong is meant for the client; a loss is not.
        let lost = matches!(error.code, ReplyCode::ConnectionForced | ReplyCode::InternalError);
        if lost && side == Side::Rabbit {
            self.lost_unsaid();
        }
        if goes_on && lost {
            tracing::warn!(vhost = %self.vhost, %side, %error, "lost a side of a connection; it is opened again");
            self.lose(side);
        } else {
            self.events.push_back(Event::Closed { error });
            self.ended = true;
        }
    }

    /// Takes a side for lost, to be attached again. Nothing of the client's fails but what this side had in hand.
    pub(super) fn lose(&mut self, side: Side) {
        if side == Side::Rabbit {
            self.shared.rabbit_was_lost.store(true, Ordering::Release);
        }
        // It will not say that it takes publishes again.
        self.blocked(side, None);
        let half = self.half_mut(side);
        half.presence = Presence::Lost;
        half.generation += 1;
        // What was not sent yet can be sent later.
        let mut asked = Vec::new();
        for command in half.outbox.drain(..) {
            if let Command::Publish(publish) = command {
                half.parked.push_back(publish);
            }
        }
        for (channel, lane) in half.lanes.drain() {
            let (in_flight, waiting) = lane.end();
            asked.extend(in_flight.map(|purpose| (channel, purpose)));
            for (command, purpose) in waiting {
                asked.extend(purpose.map(|purpose| (channel, purpose)));
                if let Command::Publish(publish) = command {
                    half.parked.push_back(publish);
                }
            }
        }
        let parked: HashSet<(ChannelId, u64)> = half.parked.iter().map(|p| (p.channel, p.seq)).collect();
        self.fail_publishes(side, &parked);
        self.give_up_deliveries(side, None);
        for (channel, purpose) in asked {
            match purpose {
                Purpose::Client(number) => self.unanswered(side, channel, number),
                Purpose::Topology(topology) => self.replay(side, channel, *topology),
                Purpose::Consume(_) | Purpose::Cancel(_) | Purpose::Returned(_) | Purpose::Nothing => {}
            }
        }
        self.report_behind();
    }

    /// Ends the publishes that a side had and did not confirm: whether they are stored is unknown.
    fn fail_publishes(&mut self, side: Side, parked: &HashSet<(ChannelId, u64)>) {
        let mut failed = Vec::new();
        for (channel, open) in &mut self.channels {
            let lost: Vec<u64> = open
                .publishes
                .iter()
                .filter(|(seq, p)| {
                    p.stamp.map_or(Side::Nats, |s| s.owner) == side && !parked.contains(&(*channel, **seq))
                })
                .map(|(seq, _)| *seq)
                .collect();
            for seq in lost {
                failed.extend(open.publishes.remove(&seq).map(|p| (*channel, seq, p)));
            }
        }
        failed.sort_by_key(|(channel, seq, _)| (*channel, *seq));
        for (channel, seq, publish) in failed {
            self.shared.meters.failed(side);
            self.publish_ended(publish, PublishOutcome::Failed);
            self.events.push_back(Event::Confirm { channel, seq, outcome: PublishOutcome::Failed });
        }
    }

    /// A side has its deliveries back in its queues, of this channel or of all; the client cannot settle those that it has.
    pub(super) fn give_up_deliveries(&mut self, side: Side, of: Option<ChannelId>) {
        let now = self.shared.now();
        let is_meant = |channel: ChannelId| of.is_none_or(|of| of == channel);
        let mut actions = Vec::new();
        for open in
            self.unsettled.values_mut().filter(|o| o.side == side && o.generation != Half::NONE && is_meant(o.channel))
        {
            open.generation = Half::NONE;
            actions.extend(self.shared.order().fences.requeued(&open.queue, side, open.key, now));
        }
        self.shared.act(actions);
        let all: Vec<_> = self
            .channels
            .iter()
            .filter(|(id, _)| is_meant(**id))
            .flat_map(|(id, c)| c.consumers.keys().map(|tag| (*id, tag.clone())))
            .collect();
        for (channel, tag) in all {
            if let Some(consumer) = self.consumer(channel, &tag) {
                consumer.on[side.index()] = false;
            }
            self.drop_buffered(side, channel, &tag);
        }
    }

    /// The client's request was with a side that is lost.
    fn unanswered(&mut self, side: Side, channel: ChannelId, number: u64) {
        let request = self.channels.get_mut(&channel).and_then(|c| c.request.take_if(|r| r.number == number));
        let Some(mut request) = request else { return };
        request.waiting[side.index()] = false;
        match &request.asked {
            Asked::Open => {
                // The other side has been asked as well.
                if self.half(side.other()).attached() {
                    self.finish(channel, request);
                } else {
                    self.start(channel, request);
                }
            }
            Asked::Close | Asked::Cancel(_) => {
                if request.waiting == [false, false] {
                    self.finish(channel, request);
                } else if let Some(open) = self.channels.get_mut(&channel) {
                    open.request = Some(request);
                }
            }
            Asked::Topology(topology) => match request.first.take() {
                Some(reply) => {
                    let topology = topology.clone();
                    self.replay(side, channel, topology);
                    self.answer(channel, Ok(reply));
                }
                None => self.start(channel, request),
            },
            Asked::Consume(tag) => {
                let tag = tag.clone();
                if request.first.is_some() {
                    self.consumer_live(channel, &tag);
                } else {
                    self.start(channel, request);
                }
            }
            // The message is there; only the other side's count is not.
            Asked::Get { got: Some(_), .. } => {
                if let Asked::Get { got, .. } = request.asked {
                    self.answer(channel, Ok(Reply::Got(got)));
                }
            }
            Asked::Get { got: None, .. } => self.start(channel, request),
        }
    }

    /// A lost side is back, with nothing of this link on it: opens the channels, repeats the topology, attaches the
    /// consumers, and sends what waited.
    pub fn attach(&mut self, side: Side) {
        let half = self.half_mut(side);
        if half.presence != Presence::Lost {
            return;
        }
        half.presence = Presence::Attached;
        // What the client is just ending with the other side is not begun here.
        let ending = |request: &Request| request.waiting != [false, false];
        let mut open: Vec<ChannelId> = self
            .channels
            .iter()
            .filter(|(_, c)| !c.request.as_ref().is_some_and(|r| matches!(r.asked, Asked::Close) && ending(r)))
            .map(|(id, _)| *id)
            .collect();
        open.sort_unstable();
        for channel in &open {
            // A channel whose opening waits for a side is opened by its request.
            let waits = self.channels.get(channel).and_then(|c| c.request.as_ref());
            if !waits.is_some_and(|r| matches!(r.asked, Asked::Open) && r.waiting == [false, false]) {
                self.half_mut(side).request(Command::OpenChannel { channel: *channel }, Purpose::Nothing);
            }
        }
        if let Some(any) = open.first().copied() {
            let own: Vec<_> = self.own.clone();
            self.repeat_missed(side);
            let replay: Vec<_> = self.half_mut(side).replay.drain(..).collect();
            let repeated = own.iter().filter(|o| !replay.iter().any(|r| r.1 == o.1));
            for (channel, topology) in repeated.chain(&replay) {
                let channel = if self.channels.contains_key(channel) { *channel } else { any };
                let purpose = Purpose::Topology(Box::new(topology.clone()));
                let command = Command::Topology { channel, request: topology.clone() };
                self.half_mut(side).request(command, purpose);
            }
        }
        let mut consumers = Vec::new();
        for id in &open {
            let Some(channel) = self.channels.get(id) else { continue };
            let cancelled = channel.request.as_ref().filter(|r| ending(r)).and_then(|r| match &r.asked {
                Asked::Cancel(tag) => Some(tag),
                _ => None,
            });
            let live = channel.consumers.iter().filter(|(tag, c)| c.live && Some(*tag) != cancelled);
            consumers.extend(live.map(|(tag, _)| (*id, tag.clone())));
        }
        for (channel, tag) in consumers {
            if side == Side::Rabbit && self.waits_for_reading(channel, &tag) {
                self.pause_consumer(channel, &tag);
                continue;
            }
            if let Some(command) = self.consume_command(channel, &tag, side) {
                self.half_mut(side).request(command, Purpose::Consume(tag));
            }
        }
        let parked: Vec<_> = self.half_mut(side).parked.drain(..).collect();
        for publish in parked {
            self.half_mut(side).tell(Command::Publish(publish));
        }
        // Requests that found no side.
        for channel in open {
            let request =
                self.channels.get_mut(&channel).and_then(|c| c.request.take_if(|r| r.waiting == [false, false]));
            if let Some(request) = request {
                self.start(channel, request);
            }
        }
        self.report_behind();
    }

    /// RabbitMQ is lost for good, and not everything is NATS's yet. Below 100 % the client has to begin anew.
    pub fn give_up_rabbit(&mut self) {
        if self.shared.order().fences.weight() == Weight::ALL {
            return self.detach_rabbit();
        }
        if !self.ended {
            let error =
                AmqpError::new(ReplyCode::ConnectionForced, "RabbitMQ was given up: NATS is about to own everything");
            self.events.push_back(Event::Closed { error });
            self.ended = true;
        }
    }

    /// RabbitMQ is detached for good.
    pub fn detach_rabbit(&mut self) {
        if self.half(Side::Rabbit).presence == Presence::Gone {
            return;
        }
        if self.half(Side::Rabbit).attached() {
            self.lose(Side::Rabbit);
        }
        let half = self.half_mut(Side::Rabbit);
        half.presence = Presence::Gone;
        half.replay.clear();
        let nats = self.half(Side::Nats).attached();
        let parked: Vec<_> = self.half_mut(Side::Rabbit).parked.drain(..).collect();
        for publish in parked {
            let half = self.half_mut(Side::Nats);
            if nats {
                half.tell(Command::Publish(publish));
            } else {
                half.parked.push_back(publish);
            }
        }
    }

    /// NATS is lost for good. What it had in hand has failed; what it did not get waits until RabbitMQ owns everything.
    pub fn detach_nats(&mut self) {
        if self.half(Side::Nats).presence != Presence::Gone {
            if self.half(Side::Nats).attached() {
                self.lose(Side::Nats);
            }
            let half = self.half_mut(Side::Nats);
            half.presence = Presence::Gone;
            half.replay.clear();
            self.report_behind();
            // NATS had them, and whether their copies are stored is not known yet.
            for (channel, open) in &mut self.channels {
                for (seq, _) in open.copying.drain() {
                    self.copying -= 1;
                    let outcome = PublishOutcome::Failed;
                    self.events.push_back(Event::Confirm { channel: *channel, seq, outcome });
                }
            }
        }
        if self.half(Side::Nats).parked.is_empty() || self.shared.order().fences.weight() > Weight::NONE {
            return;
        }
        let rabbit = self.half(Side::Rabbit).attached();
        let parked: Vec<_> = self.half_mut(Side::Nats).parked.drain(..).collect();
        for publish in parked {
            let half = self.half_mut(Side::Rabbit);
            match rabbit {
                true => half.tell(Command::Publish(publish)),
                false => half.parked.push_back(publish),
            }
        }
    }

    /// Time has passed: ends requests that have waited too long for the side that follows.
    pub fn tick(&mut self) {
        self.attach_late();
        self.repeat_missed(Side::Nats);
        let (now, phase, lead) = (self.shared.now(), self.phase(), self.lead());
        let follower = lead.other();
        let limit = if phase < Phase::Canary { Self::SHADOW_WAIT } else { Self::FOLLOW_WAIT };
        let over: Vec<ChannelId> = self
            .channels
            .iter()
            .filter(|(_, c)| {
                c.request
                    .as_ref()
                    .is_some_and(|r| r.waiting[follower.index()] && !r.waiting[lead.index()] && now >= r.since + limit)
            })
            .map(|(id, _)| *id)
            .collect();
        if over.is_empty() {
            return;
        }
        if phase < Phase::Canary && follower == Side::Nats {
            self.shared.warn("nats_silent", "NATS did not answer in time; its link is opened again".to_owned());
            return self.lose(Side::Nats);
        }
        for channel in over {
            let Some(request) = self.channels.get_mut(&channel).and_then(|c| c.request.take()) else { continue };
            match request.asked {
                Asked::Close | Asked::Cancel(_) => self.finish(channel, request),
                Asked::Open | Asked::Topology(_) | Asked::Consume(_) | Asked::Get { .. } => {
                    let text = format!("{follower} did not answer within {} s", limit.as_secs());
                    self.answer(channel, Err(AmqpError::new(ReplyCode::InternalError, text)));
                }
            }
        }
    }

    /// The client is gone: both sides requeue what it had. Call [`Engine::abandon_publishes`] once their links ended.
    pub fn client_gone(&mut self) {
        self.ended = true;
        self.replies.end();
        for half in self.halves.iter_mut().filter(|half| half.blocked) {
            half.blocked = false;
            self.shared.meters.blocked(half.side, false);
        }
        let now = self.shared.now();
        let mut actions = Vec::new();
        for (_, open) in self.unsettled.drain() {
            actions.extend(self.shared.order().fences.requeued(&open.queue, open.side, open.key, now));
        }
        self.shared.act(actions);
        let consumers: Vec<_> = self.channels.values_mut().flat_map(|c| c.consumers.drain()).collect();
        for (_, consumer) in consumers {
            self.put_back(None, consumer);
        }
        for side in Side::BOTH {
            self.leave_missed(side);
        }
        for queue in std::mem::take(&mut self.own_queues) {
            let name = self.queue_name(&queue);
            let actions = self.shared.order().fences.forget(&name);
            self.shared.act(actions);
            self.shared.queue_gone(&self.vhost, queue.as_str());
            self.shared.integrity().discarded(&name);
        }
        self.report_behind();
    }

    /// Leaves to other connections what this side has not repeated. Deletions are not left: by then somebody else may have
    /// declared the same name again, and what is one too many loses nothing.
    fn leave_missed(&mut self, side: Side) {
        let half = self.half_mut(side);
        let mut missed: Vec<Topology> = half.replay.drain(..).map(|(_, topology)| topology).collect();
        for (_, lane) in half.lanes.drain() {
            let (in_flight, waiting) = lane.end();
            for purpose in in_flight.into_iter().chain(waiting.into_iter().filter_map(|(_, purpose)| purpose)) {
                if let Purpose::Topology(topology) = purpose {
                    missed.push(*topology);
                }
            }
        }
        if side != self.lead() {
            let asked = self.channels.values_mut().filter_map(|c| c.request.take());
            missed.extend(asked.filter(|r| r.first.is_some()).filter_map(|r| match r.asked {
                Asked::Topology(topology) => Some(topology),
                _ => None,
            }));
        }
        missed.retain(|topology| match topology {
            Topology::ExchangeDeclare(_) | Topology::ExchangeBind(_) => true,
            Topology::QueueDeclare(QueueDeclare { queue, .. }) => !self.own_queues.contains(queue),
            Topology::QueueBind(binding) => !self.own_queues.contains(&binding.destination),
            Topology::ExchangeDelete { .. }
            | Topology::ExchangeUnbind(_)
            | Topology::QueueUnbind(_)
            | Topology::QueuePurge { .. }
            | Topology::QueueDelete { .. } => false,
        });
        if !missed.is_empty() {
            tracing::debug!(%side, vhost = %self.vhost, count = missed.len(), "left to other connections to repeat");
            self.shared.leave_missed(side, &self.vhost, missed.into_iter());
        }
    }

    /// Repeats what connections that are gone have left.
    fn repeat_missed(&mut self, side: Side) {
        let Some(any) = self.channels.keys().min().copied().filter(|_| self.half(side).attached()) else { return };
        let missed = self.shared.take_missed(side, &self.vhost);
        if missed.is_empty() {
            return;
        }
        for request in missed {
            let purpose = Purpose::Topology(Box::new(request.clone()));
            self.half_mut(side).request(Command::Topology { channel: any, request }, purpose);
        }
        self.report_behind();
        self.shared.repeats_missed(side);
    }

    /// Ends the publishes whose confirms nobody waits for any more.
    pub fn abandon_publishes(&mut self) {
        let left: Vec<_> = self.channels.values_mut().flat_map(|c| c.publishes.drain()).collect();
        for (_, publish) in left {
            self.publish_ended(publish, PublishOutcome::Failed);
        }
    }
}
