//! A channel that RabbitMQ has closed for something that the sidecar asked by itself, not its client: it is opened again.
//!
//! There is no question that goes the way of a requeue to the queue and cannot fail: RabbitMQ answers a passive declare, like a consume, with a
//! 404 that closes the channel when the queue has just been deleted. The client has not asked and does not hear of it. It hears what it would
//! have heard without the sidecar, that its consumers of that queue were cancelled; and what it had in hand on that channel comes again, as
//! from a side that was lost, because RabbitMQ has put it back.

use amq_protocol::types::ShortString;
use amqp_compat::backend::{ChannelId, Command};
use amqp_compat::error::AmqpError;

use super::channel::Consumer;
use super::engine::Engine;
use super::lane::Purpose;
use crate::control_api::Weight;
use crate::ownership::Side;

impl Engine {
    /// Whether RabbitMQ has closed a channel for what its client has not asked: what a client has published before can be at fault as well,
    /// but never with a queue.
    pub(super) fn is_own_fault(&self, channel: ChannelId, error: &AmqpError) -> bool {
        let awaited = self.half(Side::Rabbit).lanes.get(&channel).and_then(|lane| lane.awaited());
        let open = self.channels.get(&channel).is_some_and(|open| !open.failed);
        open && matches!(awaited, Some(Purpose::Returned(_) | Purpose::Consume(_))) && error.text.contains("queue '")
    }

    /// Opens a channel again that RabbitMQ has closed for the question that was on its way.
    pub(super) fn reopen(&mut self, channel: ChannelId, error: &AmqpError) {
        let Some(lane) = self.half_mut(Side::Rabbit).lanes.remove(&channel) else { return };
        let (asked, waiting) = lane.end();
        for command in [Command::CloseChannel { channel }, Command::OpenChannel { channel }] {
            self.half_mut(Side::Rabbit).request(command, Purpose::Nothing);
        }
        let is_gone = |tag: &ShortString, consumer: &Consumer| match &asked {
            Some(Purpose::Returned(queue)) => consumer.queue == *queue,
            Some(Purpose::Consume(asked)) => tag == asked,
            _ => false,
        };
        // One that its client is just beginning has its own answer.
        let live = self.channels.get(&channel).into_iter().flat_map(|open| &open.consumers).filter(|(_, c)| c.live);
        let (gone, rest): (Vec<_>, Vec<_>) =
            live.map(|(tag, c)| (tag.clone(), is_gone(tag, c))).partition(|(_, is_gone)| *is_gone);
        let text =
            format!("RabbitMQ closed a channel for a question of the sidecar's, and it was opened again: {error}");
        self.shared.warn("channel_reopened", text);
        self.give_up_deliveries(Side::Rabbit, Some(channel));
        // At 100 % a consumer goes on with what JetStream has.
        let goes_on = self.shared.order().fences.weight() == Weight::ALL;
        for (tag, _) in gone {
            match goes_on {
                true => self.consumer_refused(Side::Rabbit, channel, &tag, error),
                false => self.consumer_ended(Side::Rabbit, channel, tag),
            }
        }
        for (tag, _) in rest {
            if self.waits_for_reading(channel, &tag) {
                self.pause_consumer(channel, &tag);
            } else if let Some(command) = self.consume_command(channel, &tag, Side::Rabbit) {
                self.half_mut(Side::Rabbit).request(command, Purpose::Consume(tag));
            }
        }
        for (command, purpose) in waiting {
            match (command, purpose) {
                // Of deliveries that are back, and of consumers that begin above, with their whole credit, or have ended.
                (Command::Settle { .. } | Command::Credit { .. }, _) | (_, Some(Purpose::Consume(_))) => {}
                (command, Some(purpose)) => self.half_mut(Side::Rabbit).request(command, purpose),
                (command, None) => self.half_mut(Side::Rabbit).tell(command),
            }
        }
        if let Some(Purpose::Returned(queue)) = asked {
            self.returned(channel, &queue);
        }
    }
}
