//! The client's requests over two sides: who is asked first, and what the client is told.

use std::collections::VecDeque;
use std::time::Duration;

use amqp_compat::backend::reply_to::is_pseudo_queue;
use amqp_compat::backend::{ChannelId, Command, Event, Outcome, PublishOutcome, Reply};
use amqp_compat::error::AmqpError;

use super::channel::{Asked, Channel, Consumer, Late, Request};
use super::engine::Engine;
use super::lane::Purpose;
use super::merge::Merge;
use crate::fence::QueueName;
use crate::ownership::Side;

impl Engine {
    /// How long a client waits for NATS in `observe` and `shadow`, when NATS may hold something; then NATS is given up
    /// for this link and opened again.
    pub const SHADOW_WAIT: Duration = Duration::from_secs(1);

    /// How long a client's request waits for the side that follows, in `canary` and `cutover`.
    pub const FOLLOW_WAIT: Duration = Duration::from_secs(10);

    /// Takes a request of the client.
    pub(super) fn ask(&mut self, command: Command, now: Duration) {
        let channel = command.channel();
        if let Some(answer) = self.begin_replies(&command) {
            return self.answer(channel, answer);
        }
        let asked = match command {
            Command::OpenChannel { .. } => {
                self.channels.insert(channel, Channel::default());
                Asked::Open
            }
            Command::CloseChannel { .. } => Asked::Close,
            Command::Topology { request, .. } => Asked::Topology(request),
            Command::Consume { consume, .. } => {
                let tag = consume.consumer_tag.clone();
                let queue = self.queue_name(&consume.queue);
                // Before anything of it can come: after a restart it may have a hold. Direct replies have no queue that a
                // fence could go through.
                if !is_pseudo_queue(consume.queue.as_str()) {
                    self.register(&queue, now);
                }
                let consumer = Consumer {
                    queue,
                    merge: Merge::new(consume.credit, !consume.no_limit),
                    consume,
                    on: [false, false],
                    late: Late::No,
                    live: false,
                    lifted: 0,
                    held: 0,
                    paused: false,
                };
                if let Some(open) = self.channels.get_mut(&channel) {
                    open.read.note(&consumer.queue);
                    open.consumers.insert(tag.clone(), consumer);
                }
                Asked::Consume(tag)
            }
            Command::Cancel { consumer_tag, .. } => Asked::Cancel(consumer_tag),
            Command::Get { queue, .. } => {
                let queue = self.queue_name(&queue);
                self.register(&queue, now);
                if let Some(open) = self.channels.get_mut(&channel) {
                    open.read.note(&queue);
                }
                let first = self.shared.order().fences.losing_side(&queue).unwrap_or(Side::Rabbit);
                let mut next: VecDeque<Side> = [first, first.other()].into();
                next.retain(|side| self.half(*side).attached() && self.waits_for(*side));
                Asked::Get { queue, next, got: None }
            }
            // Not requests; the engine takes them elsewhere.
            Command::Publish(_) | Command::Credit { .. } | Command::Settle { .. } => return,
        };
        self.next_request += 1;
        let request = Request { number: self.next_request, since: now, waiting: [false, false], first: None, asked };
        self.start(channel, request);
    }

    pub(super) fn register(&self, queue: &QueueName, now: Duration) {
        let actions = self.shared.order().fences.register(queue, now);
        self.shared.act(actions);
    }

    /// Asks the side that leads. With none attached, the request waits for one.
    pub(super) fn start(&mut self, channel: ChannelId, mut request: Request) {
        let lead = self.lead();
        if !self.half(lead).attached() {
            self.park(channel, request);
            return;
        }
        let mine = Purpose::Client(request.number);
        match &mut request.asked {
            Asked::Open => {
                request.waiting[lead.index()] = true;
                self.half_mut(lead).request(Command::OpenChannel { channel }, mine);
                if self.half(lead.other()).attached() {
                    self.half_mut(lead.other()).request(Command::OpenChannel { channel }, Purpose::Nothing);
                }
            }
            Asked::Close => self.ask_both(&mut request, || Command::CloseChannel { channel }),
            Asked::Cancel(tag) => {
                let tag = tag.clone();
                self.ask_both(&mut request, || Command::Cancel { channel, consumer_tag: tag.clone() });
            }
            Asked::Topology(topology) => {
                request.waiting[lead.index()] = true;
                let command = Command::Topology { channel, request: topology.clone() };
                self.half_mut(lead).request(command, mine);
            }
            Asked::Consume(tag) => {
                let tag = tag.clone();
                if self.replies_begin_here(channel, &tag) {
                    return self.consumer_live(channel, &tag);
                }
                if lead == Side::Rabbit && self.waits_for_reading(channel, &tag) {
                    return self.park(channel, request);
                }
                if let Some(command) = self.consume_command(channel, &tag, lead) {
                    request.waiting[lead.index()] = true;
                    self.half_mut(lead).request(command, mine);
                }
            }
            Asked::Get { .. } => return self.get_next(channel, request),
        }
        self.park(channel, request);
    }

    fn ask_both(&mut self, request: &mut Request, command: impl Fn() -> Command) {
        for side in Side::BOTH {
            if !self.half(side).attached() {
                continue;
            }
            let waits = self.waits_for(side);
            request.waiting[side.index()] = waits;
            let purpose = if waits { Purpose::Client(request.number) } else { Purpose::Nothing };
            self.half_mut(side).request(command(), purpose);
        }
    }

    pub(super) fn park(&mut self, channel: ChannelId, request: Request) {
        if let Some(open) = self.channels.get_mut(&channel) {
            open.request = Some(request);
        }
    }

    /// Takes a reply of a side.
    pub(super) fn replied(&mut self, side: Side, channel: ChannelId, reply: Result<Reply, AmqpError>) {
        if let Err(error) = &reply
            && side == Side::Rabbit
            && self.is_own_fault(channel, error)
        {
            return self.reopen(channel, error);
        }
        match self.half_mut(side).replied(channel) {
            Some(Purpose::Client(number)) => {
                let request = self.channels.get_mut(&channel).and_then(|c| c.request.take_if(|r| r.number == number));
                match request {
                    Some(request) => self.step(side, channel, request, reply),
                    // Nobody waits for it any more.
                    None => {
                        if let Ok(Reply::Got(Some(got))) = reply {
                            self.settle_inner(side, channel, got.delivery.id, Outcome::Requeue);
                        }
                    }
                }
            }
            Some(Purpose::Topology(topology)) => {
                self.is_discarded(&topology);
                match reply {
                    Ok(_) => self.is_mapped(&topology),
                    Err(error) => self.not_mapped(&topology, &error),
                }
            }
            Some(Purpose::Consume(tag)) => match reply {
                Ok(_) => self.consumer_began(side, channel, &tag),
                Err(error) => self.consumer_refused(side, channel, &tag, &error),
            },
            Some(Purpose::Returned(queue)) => {
                self.returned(channel, &queue);
                // What the client sent before the question was at fault.
                if let (Err(error), Some(open)) = (reply, self.channels.get_mut(&channel))
                    && !std::mem::replace(&mut open.failed, true)
                {
                    self.events.push_back(Event::ChannelFailed { channel, error });
                }
            }
            Some(Purpose::Cancel(_) | Purpose::Nothing) | None => {}
        }
    }

    fn step(&mut self, side: Side, channel: ChannelId, mut request: Request, reply: Result<Reply, AmqpError>) {
        request.waiting[side.index()] = false;
        match &mut request.asked {
            Asked::Open => {
                if reply.is_err() {
                    self.channels.remove(&channel);
                }
                self.answer(channel, reply);
            }
            Asked::Close | Asked::Cancel(_) => {
                if request.waiting == [false, false] {
                    self.finish(channel, request);
                } else {
                    self.park(channel, request);
                }
            }
            Asked::Topology(_) => self.topology_step(side, channel, request, reply),
            Asked::Consume(tag) => {
                let tag = tag.clone();
                self.consume_step(side, channel, tag, request, reply);
            }
            Asked::Get { .. } => self.get_step(side, channel, request, reply),
        }
    }

    /// Every reply that was waited for is there: ends a close or a cancel.
    pub(super) fn finish(&mut self, channel: ChannelId, request: Request) {
        match request.asked {
            Asked::Close => self.close_channel(channel),
            Asked::Cancel(tag) => {
                if let Some(consumer) = self.channels.get_mut(&channel).and_then(|c| c.consumers.remove(&tag)) {
                    self.put_back(Some(channel), consumer);
                }
            }
            Asked::Open | Asked::Topology(_) | Asked::Consume(_) | Asked::Get { .. } => {}
        }
        self.answer(channel, Ok(Reply::Done));
    }

    /// Ends a channel: both sides have everything of it back.
    pub(super) fn close_channel(&mut self, channel: ChannelId) {
        let Some(mut open) = self.channels.remove(&channel) else { return };
        let now = self.shared.now();
        let closed: Vec<u64> = self.unsettled.iter().filter(|(_, o)| o.channel == channel).map(|(id, _)| *id).collect();
        let mut actions = Vec::new();
        for id in closed {
            if let Some(open) = self.unsettled.remove(&id) {
                actions.extend(self.shared.order().fences.requeued(&open.queue, open.side, open.key, now));
            }
        }
        self.shared.act(actions);
        for (_, consumer) in open.consumers.drain() {
            self.put_back(None, consumer);
        }
        for half in &mut self.halves {
            let before = half.parked.len();
            half.parked.retain(|p| p.channel != channel);
            if half.parked.len() < before {
                let text = format!(
                    "{} publishes waited for {} when their channel was closed",
                    before - half.parked.len(),
                    half.side
                );
                self.shared.warn("publishes_dropped", text);
            }
        }
        for (_, in_flight) in open.publishes.drain() {
            self.publish_ended(in_flight, PublishOutcome::Failed);
        }
        self.copying -= open.copying.len();
        self.channel_returned(channel);
    }
}
