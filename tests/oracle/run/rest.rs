//! Rounds through all channels and queues, until nothing follows any more.

use std::collections::BTreeSet;
use std::time::Duration;

use amq_protocol::protocol::{AMQPClass, channel};

use tokio::time::Instant;

use super::doing::passive;
use super::{CONTROL, Run};
use crate::transcript::Place;

/// How long a quorum queue may say nothing before it is taken to have nothing to say.
const SILENCE: Duration = Duration::from_millis(60);

impl Run {
    /// Two rounds, and more until one brings nothing.
    pub(super) async fn rounds(&mut self, acted: usize) {
        for round in 0..20 {
            let before = self.events;
            self.flow().await;
            self.ask_queues(acted).await;
            self.flow().await;
            if round > 0 && self.events == before && !self.is_late().await {
                return;
            }
        }
        self.log.wrong.push("it does not come to rest".to_owned());
    }

    /// Whether something comes from a quorum queue, which takes in messages behind everything else that it is asked.
    async fn is_late(&mut self) -> bool {
        self.has_quorum && self.hear(Instant::now() + SILENCE).await
    }

    async fn flow(&mut self) {
        let places: Vec<Place> = self
            .connections
            .iter()
            .filter(|(_, connection)| !connection.closing)
            .flat_map(|(number, connection)| connection.channels.keys().map(|channel| (*number, *channel)))
            .collect();
        for place in &places {
            let flow = AMQPClass::Channel(channel::AMQPMethod::Flow(channel::Flow { active: true }));
            self.call(*place, flow, true);
        }
        self.flush().await;
        self.wait("channel.flow-ok", |run| places.iter().all(|place| run.is_answered(*place))).await;
    }

    /// Asks every queue for its counts, on the connection that acted or the one that owns it.
    async fn ask_queues(&mut self, acted: usize) {
        let acted = if self.connections.contains_key(&acted) { acted } else { 2 };
        let mut left: Vec<_> = self.queues.iter().map(|(name, owner)| (name.clone(), owner.unwrap_or(acted))).collect();
        while !left.is_empty() {
            let mut places = BTreeSet::new();
            for (_, number) in &left {
                self.connect(*number).await;
                self.open((*number, CONTROL)).await;
                places.insert((*number, CONTROL));
            }
            for (name, number) in &left {
                self.call((*number, CONTROL), passive(name), true);
            }
            self.flush().await;
            self.wait("what queues have", |run| places.iter().all(|place| run.is_answered(*place))).await;
            // A queue that is gone has closed its channel; those behind it were not asked.
            let gone = |place: &Place, run: &mut Run| run.channel(*place).is_none();
            let closed: BTreeSet<usize> =
                places.iter().filter(|place| gone(place, self)).map(|(number, _)| *number).collect();
            let known = &self.queues;
            left.retain(|(name, number)| closed.contains(number) && known.contains_key(name));
            // The one that was at fault was taken off when its channel closed; else this would not end.
            left.truncate(left.len().min(50));
        }
    }
}
