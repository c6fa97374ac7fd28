//! What is still to come, counted while the files grow: when it is nothing, a run may end. The verdict does not rest on it.

use std::collections::HashMap;

use crate::demo::ledger::{Event, Outcome, Record};
use crate::demo::topology::Queue;

/// Confirmed messages that have not ended in every queue that they belong in.
pub struct Outstanding {
    queues: Vec<Queue>,
    messages: HashMap<String, Message>,
    left: u64,
    /// Messages that were confirmed.
    pub confirmed: u64,
    /// Deliveries.
    pub delivered: u64,
}

#[derive(Default)]
struct Message {
    homes: u64,
    ended: u64,
    confirmed: bool,
}

impl Outstanding {
    /// Nothing was published yet.
    pub fn new(queues: Vec<Queue>) -> Self {
        Self { queues, messages: HashMap::new(), left: 0, confirmed: 0, delivered: 0 }
    }

    /// How many ends are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes one record of one application.
    pub fn take(&mut self, record: &Record) {
        match &record.event {
            Event::Published { id, exchange, key, attempt: 1, .. } => {
                let takes = |(_, queue): &(usize, &Queue)| queue.takes(exchange, key);
                let homes = self.queues.iter().enumerate().filter(takes).fold(0, |bits, (index, _)| bits | 1 << index);
                self.messages.entry(id.clone()).or_default().homes = homes;
            }
            Event::Confirmed { id } => {
                self.confirmed += 1;
                let message = self.messages.entry(id.clone()).or_default();
                if !std::mem::replace(&mut message.confirmed, true) {
                    self.left += u64::from((message.homes & !message.ended).count_ones());
                }
            }
            Event::Delivered { queue, id, outcome, died, .. } => {
                self.delivered += 1;
                let ended_in = died.as_ref().map_or(queue, |died| &died.queue);
                let Some(index) = self.queues.iter().position(|known| known.name == *ended_in) else { return };
                if *outcome != Outcome::Ack {
                    return;
                }
                // Its publisher's file may be read after its consumer's.
                let message = self.messages.entry(id.clone()).or_default();
                let bit = 1 << index;
                if message.confirmed && message.homes & !message.ended & bit != 0 {
                    self.left -= 1;
                }
                message.ended |= bit;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::topology::queues;
    use crate::demo::ledger::Died;

    fn delivered(queue: &str, outcome: Outcome, died: Option<Died>) -> Event {
        let (id, key) = ("j-1".to_owned(), "job.c1".to_owned());
        Event::Delivered { queue: queue.to_owned(), id, key, seq: 1, redelivered: false, intact: true, outcome, died }
    }

    #[test]
    fn a_message_is_outstanding_from_its_confirm_until_it_was_acknowledged_or_read_as_a_dead_letter() {
        let mut outstanding = Outstanding::new(queues());
        let mut take = |event| {
            outstanding.take(&Record { t: 1, event });
            outstanding.left()
        };
        let (id, key, exchange) = ("j-1".to_owned(), "job.c1".to_owned(), "chaos.work".to_owned());
        assert_eq!(take(Event::Published { id: id.clone(), exchange, key, seq: 1, attempt: 1 }), 0);
        assert_eq!(take(Event::Confirmed { id: id.clone() }), 1);
        assert_eq!(take(delivered("jobs", Outcome::Requeue, None)), 1);
        assert_eq!(take(delivered("jobs", Outcome::Reject, None)), 1);
        let died = Died { queue: "jobs".to_owned(), reason: "rejected".to_owned() };
        assert_eq!(take(delivered("dead", Outcome::Ack, Some(died.clone()))), 0);
        assert_eq!(take(delivered("dead", Outcome::Ack, Some(died))), 0);
    }
}
