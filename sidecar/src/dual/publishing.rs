//! The client's publishes: stamped, given to their owner, copied to the other side, confirmed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use amqp_compat::backend::{ChannelId, Command, Event, Message, Publish, PublishOutcome};
use amqp_compat::error::{AmqpError, ReplyCode};

use super::channel::{Copying, InFlight};
use super::engine::Engine;
use super::shared::Why;
use super::stamp;
use crate::control_api::Phase;
use crate::copies::{Copied, Waiter};
use crate::fence::QueueName;
use crate::ownership::Side;
use crate::parity;

impl Engine {
    pub(super) fn publish(&mut self, mut publish: Box<Publish>) {
        let (channel, seq) = (publish.channel, publish.seq);
        if !self.channels.contains_key(&channel) {
            return;
        }
        if let Some(name) = stamp::reserved(&publish.message) {
            let text = format!("the header '{name}' is reserved for the bridge; publish without it");
            return self.refuse_publish(channel, seq, AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        let Ok(named) = self.reply_names(&publish) else { return };
        let shared = Arc::clone(&self.shared);
        if shared.nats_is_lost() {
            // What waits for NATS comes first, once it has another owner.
            self.detach_nats();
        }
        let bucket = shared.bucket(&publish.message);
        let rabbit = self.half(Side::Rabbit).attached();
        let mut why = None;
        let taken = shared.publish(bucket, || {
            why = if rabbit { shared.only_for_rabbit(&self.vhost, &publish.message) } else { None };
            why.is_some()
        });
        let missed = (why == Some(Why::NoExchange)).then(|| publish.message.exchange.clone());
        let id = shared.ids.next();
        if let Some(named) = named
            && taken.is_none_or(|(_, stamp)| stamp.owner == Side::Nats)
        {
            publish.message.properties = named;
        }
        let traced = taken.map_or(Side::Nats, |(_, stamp)| stamp.owner);
        let span = shared.traces.as_ref().and_then(|traces| traces.publish(&self.vhost, &publish.message, traced));
        let mut copying = false;
        let owner = match taken {
            None => Side::Nats,
            Some((phase, taken)) => {
                let compares = phase == Phase::Shadow && taken.owner == Side::Rabbit;
                let shadow = shared.shadow.as_ref().filter(|_| compares);
                let copies = shared.copies_of(taken.owner).filter(|_| has_copies(phase));
                if taken.owner == Side::Nats || copies.is_some() || shadow.is_some() {
                    let routed = shared.routed(&self.vhost, &publish.message);
                    let others = shared.others_of(&routed);
                    if let Some(shadow) = shadow {
                        shadow.published(id, taken.epoch, &publish.message, &routed, shared.behind() > 0);
                    }
                    let queues = routed.unwrap_or_default();
                    if taken.owner == Side::Nats {
                        self.remember(id, channel, &publish.message, &queues);
                    }
                    if let Some(copies) = copies {
                        // In `shadow` nobody waits for NATS.
                        let waiter = Waiter { to: self.copied.clone(), copied: Copied { channel, seq, id } };
                        let waiter = (phase != Phase::Shadow).then_some(waiter);
                        copying = copies.keep(&queues, id, taken.epoch, &publish.message, waiter);
                        if let Some(why) = others.filter(|_| taken.owner == Side::Rabbit) {
                            copies.cannot_keep(id, why);
                        }
                    }
                }
                stamp::stamp(&mut publish.message, id, taken.epoch);
                taken.owner
            }
        };
        if let Some(open) = self.channels.get_mut(&channel) {
            let since = shared.now();
            let stamp = taken.map(|(_, stamp)| stamp);
            open.publishes.insert(seq, InFlight { stamp, id, since, missed, copying, span });
            self.in_flight += 1;
        }
        let half = self.half_mut(owner);
        if half.attached() {
            half.tell(Command::Publish(publish));
        } else {
            half.parked.push_back(publish);
        }
    }

    pub(super) fn confirmed(&mut self, channel: ChannelId, seq: u64, outcome: PublishOutcome) {
        let Some(mut in_flight) = self.channels.get_mut(&channel).and_then(|c| c.publishes.remove(&seq)) else {
            return;
        };
        let owner = in_flight.stamp.map_or(Side::Nats, |stamp| stamp.owner);
        match outcome {
            PublishOutcome::Stored => {
                self.shared.meters.confirmed(owner, self.shared.now().saturating_sub(in_flight.since));
            }
            PublishOutcome::Failed => self.shared.meters.failed(owner),
        }
        let copying = in_flight.copying && outcome == PublishOutcome::Stored;
        let waits = copying.then(|| Copying { id: in_flight.id, span: in_flight.span.take() });
        self.publish_ended(in_flight, outcome);
        match waits.and_then(|waits| Some((self.channels.get_mut(&channel)?, waits))) {
            Some((open, mut waits)) => {
                if let Some(span) = &mut waits.span {
                    span.event("stored by its owner");
                }
                open.copying.insert(seq, waits);
                self.copying += 1;
            }
            None => self.events.push_back(Event::Confirm { channel, seq, outcome }),
        }
    }

    /// The standby copies of a publish are stored, or given up.
    pub fn copied(&mut self, Copied { channel, seq, id }: Copied) {
        let Some(open) = self.channels.get_mut(&channel) else { return };
        // The number may be another publish's: its channel was opened again.
        if let Some(in_flight) = open.publishes.get_mut(&seq).filter(|in_flight| in_flight.id == id) {
            in_flight.copying = false;
            if let Some(span) = &mut in_flight.span {
                span.event("standby copy stored");
            }
        } else if open.copying.get(&seq).is_some_and(|waits| waits.id == id) {
            if let Some(Copying { span: Some(mut span), .. }) = open.copying.remove(&seq) {
                span.event("standby copy stored");
                span.outcome("confirmed");
            }
            self.copying -= 1;
            self.events.push_back(Event::Confirm { channel, seq, outcome: PublishOutcome::Stored });
        }
    }

    /// A publish needs no confirm any more.
    pub(super) fn publish_ended(&mut self, mut in_flight: InFlight, outcome: PublishOutcome) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(span) = &mut in_flight.span {
            match outcome {
                PublishOutcome::Stored => span.outcome("confirmed"),
                PublishOutcome::Failed => span.failed("not confirmed"),
            }
        }
        if let Some(stamp) = in_flight.stamp {
            let actions = self.shared.order().fences.published(stamp);
            self.shared.act(actions);
            let stored = outcome == PublishOutcome::Stored;
            if stamp.owner == Side::Nats {
                self.shared.integrity().confirmed(in_flight.id, stored, self.shared.now());
            }
            if let Some(copies) = self.shared.copies_of(stamp.owner) {
                copies.answered(in_flight.id, stored);
            }
        }
        // Declared meanwhile, it is not missed any more.
        if outcome == PublishOutcome::Stored
            && let Some(exchange) = &in_flight.missed
            && self.shared.lacks_exchange(&self.vhost, exchange)
        {
            let reason = "published to, and not in JetStream: let the application that owns it declare it";
            self.shared.unmapped(&self.vhost, "exchange", exchange.as_str(), reason);
        }
        if outcome == PublishOutcome::Failed
            && let Some(shadow) = &self.shared.shadow
        {
            shadow.failed(in_flight.id);
        }
    }

    /// Remembers what is given to JetStream, to be looked at when it comes back.
    fn remember(&self, id: u128, channel: ChannelId, message: &Message, queues: &[QueueName]) {
        if queues.is_empty() {
            return;
        }
        let mut flow = DefaultHasher::new();
        (self.link, channel, message.exchange.as_str(), message.routing_key.as_str()).hash(&mut flow);
        message.properties.priority().hash(&mut flow);
        let (digest, expires) = (parity::digest(message), message.properties.expiration().is_some());
        self.shared.integrity().published(id, digest, flow.finish(), queues, expires);
    }
}

/// Whether what is published has copies.
fn has_copies(phase: Phase) -> bool {
    matches!(phase, Phase::Shadow | Phase::Canary | Phase::Cutover)
}
