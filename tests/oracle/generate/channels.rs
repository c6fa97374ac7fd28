//! What channels are told, and what hardly any client sends.

use amq_protocol::protocol::{AMQPClass, basic, channel, exchange, queue, tx};
use rand::Rng;

use super::Maker;
use super::queue_name;
use super::queues::plain_queue;
use crate::program::Operation;

impl Maker {
    pub(super) fn tx(&mut self, place: (usize, u16)) -> Operation {
        use tx::AMQPMethod as T;
        let confirms = self.confirms.contains(&place);
        let method = match self.random.random_range(0..12) {
            _ if confirms && !self.one_in(10) => return self.settle(),
            _ if !self.transactions.contains(&place) && !self.one_in(10) => {
                self.transactions.push(place);
                self.in_transaction = true;
                T::Select(tx::Select {})
            }
            0..8 => T::Commit(tx::Commit {}),
            8..11 => T::Rollback(tx::Rollback {}),
            _ => {
                self.transactions.push(place);
                T::Select(tx::Select {})
            }
        };
        Operation::Call(AMQPClass::Tx(method))
    }

    /// What hardly any client sends.
    pub(super) fn odd(&mut self) -> Operation {
        let mut declare = plain_queue("amq.mine".into());
        Operation::Call(match self.random.random_range(0..8) {
            0 => AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {})),
            1 => AMQPClass::Channel(channel::AMQPMethod::Flow(channel::Flow { active: false })),
            2 => AMQPClass::Queue(queue::AMQPMethod::Declare(declare)),
            3 => {
                declare.passive = true;
                AMQPClass::Queue(queue::AMQPMethod::Declare(declare))
            }
            4 => AMQPClass::Basic(basic::AMQPMethod::QosOk(basic::QosOk {})),
            5 => AMQPClass::Queue(queue::AMQPMethod::BindOk(queue::BindOk {})),
            6 => AMQPClass::Exchange(exchange::AMQPMethod::Delete(exchange::Delete {
                exchange: self.pick(&["amq.direct", "", "amq.none"]).into(),
                if_unused: false,
                nowait: false,
            })),
            _ => AMQPClass::Tx(tx::AMQPMethod::SelectOk(tx::SelectOk {})),
        })
    }
}

/// Puts a name where none is. RabbitMQ looks for the last declared queue also on a channel that it has just closed, and
/// closes it a second time.
pub(super) fn with_names(operation: &mut Operation) {
    use queue::AMQPMethod as Q;
    let Operation::Call(class) = operation else { return };
    let name = match class {
        AMQPClass::Basic(basic::AMQPMethod::Get(get)) => &mut get.queue,
        AMQPClass::Basic(basic::AMQPMethod::Consume(consume)) => &mut consume.queue,
        AMQPClass::Queue(Q::Bind(bind)) => &mut bind.queue,
        AMQPClass::Queue(Q::Unbind(unbind)) => &mut unbind.queue,
        AMQPClass::Queue(Q::Purge(purge)) => &mut purge.queue,
        AMQPClass::Queue(Q::Delete(delete)) => &mut delete.queue,
        _ => return,
    };
    if name.as_str().is_empty() {
        *name = queue_name(0);
    }
}
