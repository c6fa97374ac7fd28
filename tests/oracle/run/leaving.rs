//! Connections that end, with a word or without one.

use amq_protocol::protocol::basic;
use amq_protocol::protocol::{AMQPClass, channel, connection, queue};
use amq_protocol::types::{FieldTable, ShortString};
use tokio::time::Instant;

use super::doing::passive;
use super::{CONTROL, PATIENCE, Run};
use crate::program::{LAST, PLACE};
use crate::transcript::Place;

impl Run {
    /// Closes all channels of a connection but one. RabbitMQ ends the channels of a connection that closes one after the
    /// other, in any order, and what one of them held may go to a consumer of the next.
    pub(super) async fn close_others(&mut self, (number, id): Place) {
        let Some(connection) = self.connections.get(&number) else { return };
        let others: Vec<_> = connection.channels.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            let close = channel::Close { reply_code: 200, reply_text: "bye".into(), class_id: 0, method_id: 0 };
            self.call((number, other), AMQPClass::Channel(channel::AMQPMethod::Close(close)), true);
            self.flush().await;
            self.wait("a closed channel", |run| run.is_answered((number, other))).await;
            if other != CONTROL {
                self.rounds(number).await;
            }
        }
    }

    pub(super) fn disconnect(&mut self, number: usize) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.closing = true;
        let close = connection::Close { reply_code: 200, reply_text: "bye".into(), class_id: 0, method_id: 0 };
        connection.client.method(0, AMQPClass::Connection(connection::AMQPMethod::Close(close)));
    }

    /// Closes a connection's socket without a word, and waits until the broker has noticed: a queue that nothing else uses
    /// loses its consumer then, and the connection's own queues are gone.
    pub(super) async fn lose(&mut self, place: Place) {
        let (number, _) = place;
        self.close_others(place).await;
        let control = (LAST, CONTROL);
        let mark: ShortString = format!("{PLACE}mark").into();
        self.connect(LAST).await;
        self.open(control).await;
        let declare = queue::Declare {
            queue: mark.clone(),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments: FieldTable::default(),
        };
        self.ask(control, AMQPClass::Queue(queue::AMQPMethod::Declare(declare))).await;
        let consume = basic::Consume {
            queue: mark.clone(),
            consumer_tag: "mark".into(),
            no_local: false,
            no_ack: true,
            exclusive: false,
            nowait: false,
            arguments: FieldTable::default(),
        };
        self.ask(place, AMQPClass::Basic(basic::AMQPMethod::Consume(consume))).await;
        let own: Vec<_> =
            self.queues.iter().filter(|(_, owner)| **owner == Some(number)).map(|(q, _)| q.clone()).collect();
        self.forget(number);
        self.until_told(control, &mark, |told| told.consumers == 0).await;
        for queue in own {
            self.until_told(control, &queue, |told| told.code == 404).await;
        }
        self.open(control).await;
        let delete = queue::Delete { queue: mark.clone(), if_unused: false, if_empty: false, nowait: false };
        self.ask(control, AMQPClass::Queue(queue::AMQPMethod::Delete(delete))).await;
        self.queues.remove(&mark);
    }

    /// Says a method that is no part of the transcript, and waits for its answer.
    async fn ask(&mut self, place: Place, class: AMQPClass) {
        self.call(place, class, true);
        self.flush().await;
        self.wait("an answer", |run| run.is_answered(place)).await;
    }

    /// Asks for a queue until the answer is as it should be.
    async fn until_told(&mut self, control: Place, queue: &ShortString, is_so: impl Fn(&super::Told) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            self.open(control).await;
            self.told = super::Told { consumers: u32::MAX, code: 0 };
            self.ask(control, passive(queue)).await;
            if is_so(&self.told) {
                return;
            }
            if Instant::now() > until {
                self.log.wrong.push(format!("not within {PATIENCE:?}: the broker notices a lost connection"));
                return;
            }
        }
    }
}
