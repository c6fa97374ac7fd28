//! What the client acknowledges, rejects and gives back, on the side that delivered it.

use std::time::Duration;

use amq_protocol::types::ShortString;
use amqp_compat::backend::{ChannelId, Command, DeliveryId, Outcome};
use smallvec::SmallVec;

use super::engine::Engine;
use crate::fence::MessageKey;
use crate::ownership::Side;

impl Engine {
    pub(super) fn settle(&mut self, channel: ChannelId, deliveries: &[DeliveryId], outcome: Outcome, now: Duration) {
        let mut run: Option<(Side, SmallVec<[DeliveryId; 1]>)> = None;
        let mut touched: SmallVec<[ShortString; 2]> = SmallVec::new();
        let mut actions = Vec::new();
        let mut rejected = [0, 0];
        for id in deliveries {
            let Some(mut open) = self.unsettled.remove(&id.0) else { continue };
            if let Some(tag) = open.tag {
                if let Some(consumer) = self.channels.get_mut(&channel).and_then(|c| c.consumers.get_mut(&tag)) {
                    consumer.merge.settled(open.side);
                }
                if !touched.contains(&tag) {
                    touched.push(tag);
                }
            }
            let half = &self.halves[open.side.index()];
            if !half.attached() || half.generation != open.generation {
                // Its side was lost meanwhile and has it back in its queue: it will come again, as redelivered.
                continue;
            }
            if let Some(span) = &mut open.span {
                span.outcome(match outcome {
                    Outcome::Ack => "acknowledged",
                    Outcome::Reject => "rejected",
                    Outcome::Requeue => "requeued",
                });
            }
            rejected[open.side.index()] += u64::from(outcome == Outcome::Reject);
            if outcome != Outcome::Requeue
                && open.side == Side::Rabbit
                && let (Some(shadow), MessageKey::Stamped(id)) = (&self.shared.shadow, open.key)
            {
                shadow.settled(&open.queue, id);
            }
            if outcome != Outcome::Requeue
                && let (Some(copies), MessageKey::Stamped(id)) = (self.shared.copies_of(open.side), open.key)
            {
                copies.settled(&open.queue, id, outcome == Outcome::Reject, &open.died_in);
            }
            if outcome != Outcome::Requeue
                && let (Some(copies), Some(likeness)) = (self.shared.copies_of(open.side), open.likeness)
            {
                copies.settled_alike(&open.queue, likeness, outcome == Outcome::Reject);
            }
            let mut order = self.shared.order();
            actions.extend(match outcome {
                Outcome::Ack | Outcome::Reject => order.fences.settled(&open.queue, open.side, open.key),
                Outcome::Requeue => order.fences.requeued(&open.queue, open.side, open.key, now),
            });
            drop(order);
            match &mut run {
                Some((side, ids)) if *side == open.side => ids.push(open.inner),
                _ => {
                    let next = (open.side, SmallVec::from_elem(open.inner, 1));
                    if let Some((side, deliveries)) = run.replace(next) {
                        self.halves[side.index()].tell(Command::Settle { channel, deliveries, outcome });
                    }
                }
            }
        }
        if let Some((side, deliveries)) = run {
            self.half_mut(side).tell(Command::Settle { channel, deliveries, outcome });
        }
        self.shared.act(actions);
        for side in Side::BOTH.into_iter().filter(|side| rejected[side.index()] > 0) {
            self.shared.meters.rejected(side, rejected[side.index()]);
        }
        for tag in touched {
            self.release(channel, &tag);
            self.pump(channel, &tag);
        }
    }

    /// Settles a delivery that the client never saw.
    pub(super) fn settle_inner(&mut self, side: Side, channel: ChannelId, inner: DeliveryId, outcome: Outcome) {
        self.half_mut(side).tell(Command::Settle { channel, deliveries: SmallVec::from_elem(inner, 1), outcome });
    }
}
