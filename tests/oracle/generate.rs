//! Programs from seeds.
//!
//! Each program prefers some operations to others, by the luck of its seed, so that rare ones meet often in some.

use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, channel, confirm, exchange, queue, tx};
use amq_protocol::types::ShortString;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::program::{How, LAST, Operation, PLACE, Program, Publish, Settle, Step, Which};
use crate::values;

const QUEUES: usize = 4;
const EXCHANGES: usize = 4;
const KEYS: [&str; 10] = ["", "a", "b", "a.b", "a.b.c", "a..b", "*", "#", "a.*", "#.b"];
const KINDS: [&str; 4] = ["direct", "fanout", "topic", "headers"];

/// The program of a seed, with `length` steps after those that make queues and exchanges.
pub fn program(seed: u64, length: usize) -> Program {
    let mut maker = Maker::new(seed);
    let mut steps = maker.prologue();
    while steps.len() < length {
        let step = maker.step();
        steps.push(step);
    }
    Program { seed, steps }
}

/// What is done at the end of every program: the connections are closed, and all that is left is looked at and removed.
pub fn epilogue() -> Vec<Step> {
    let step = |connection, operations| Step { connection, channel: 1, as_it_is: false, operations };
    let mut steps: Vec<_> = (0..LAST).map(|connection| step(connection, vec![Operation::Disconnect])).collect();
    steps.extend((0..QUEUES).map(|queue| step(LAST, vec![Operation::Drain(queue_name(queue))])));
    steps.extend((0..EXCHANGES).map(|number| {
        let declare = exchange::Declare {
            exchange: exchange_name(number),
            kind: "direct".into(),
            passive: true,
            durable: false,
            auto_delete: false,
            internal: false,
            nowait: false,
            arguments: values::none(),
        };
        let delete = exchange::Delete { exchange: exchange_name(number), if_unused: false, nowait: false };
        let calls = [exchange::AMQPMethod::Declare(declare), exchange::AMQPMethod::Delete(delete)];
        step(LAST, calls.map(|call| Operation::Call(AMQPClass::Exchange(call))).to_vec())
    }));
    steps
}

fn queue_name(number: usize) -> ShortString {
    format!("{PLACE}q{number}").into()
}

fn exchange_name(number: usize) -> ShortString {
    format!("{PLACE}x{number}").into()
}

struct Maker {
    random: StdRng,
    /// How much each kind of operation is wanted.
    weights: Vec<(u32, Kind)>,
    messages: usize,
    tags: usize,
    /// Whether methods are put that few clients send.
    odd: bool,
    /// Whether the channel that an operation is for has selected transactions.
    in_transaction: bool,
    /// Whether an operation may be refused.
    at_fault: bool,
    /// Channels that have consumed, and channels that have a limit of their own.
    consuming: Vec<(usize, u16)>,
    limited: Vec<(usize, u16)>,
    transactions: Vec<(usize, u16)>,
    confirms: Vec<(usize, u16)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Publish,
    Consume,
    Get,
    Settle,
    QueueDeclare,
    QueuePassive,
    QueueDelete,
    QueuePurge,
    QueueBind,
    QueueUnbind,
    ExchangeDeclare,
    ExchangePassive,
    ExchangeDelete,
    ExchangeBind,
    ExchangeUnbind,
    Qos,
    Cancel,
    Confirm,
    Tx,
    Recover,
    CloseChannel,
    Disconnect,
    Odd,
}

const WEIGHTS: [(u32, Kind); 23] = [
    (24, Kind::Publish),
    (9, Kind::Consume),
    (9, Kind::Get),
    (18, Kind::Settle),
    (7, Kind::QueueDeclare),
    (4, Kind::QueuePassive),
    (3, Kind::QueueDelete),
    (2, Kind::QueuePurge),
    (7, Kind::QueueBind),
    (3, Kind::QueueUnbind),
    (4, Kind::ExchangeDeclare),
    (1, Kind::ExchangePassive),
    (2, Kind::ExchangeDelete),
    (3, Kind::ExchangeBind),
    (2, Kind::ExchangeUnbind),
    (5, Kind::Qos),
    (4, Kind::Cancel),
    (4, Kind::Confirm),
    (4, Kind::Tx),
    (3, Kind::Recover),
    (2, Kind::CloseChannel),
    (1, Kind::Disconnect),
    (1, Kind::Odd),
];

impl Maker {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let liking = [0, 1, 1, 2, 4];
        let weights = WEIGHTS.iter().map(|(weight, kind)| {
            let factor = if matches!(kind, Kind::Publish) { 2 } else { *liking.choose(&mut random).unwrap_or(&1) };
            (weight * factor, *kind)
        });
        let weights = weights.collect();
        let odd = random.random_bool(0.3);
        Self {
            random,
            weights,
            messages: 0,
            tags: 0,
            odd,
            in_transaction: false,
            at_fault: true,
            consuming: Vec::new(),
            limited: Vec::new(),
            transactions: Vec::new(),
            confirms: Vec::new(),
        }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.random_ratio(1, n)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from.choose(&mut self.random).cloned().expect("something to choose from")
    }

    /// Queues, exchanges and bindings, so that messages find a way.
    fn prologue(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for number in 0..self.random.random_range(1..=QUEUES) {
            let declare = self.queue_declare(Some(number));
            steps.push(self.on(0, 1, vec![declare]));
        }
        for number in 0..self.random.random_range(0..=EXCHANGES) {
            let declare = self.exchange_declare(Some(number));
            let bind = self.queue_bind();
            steps.push(self.on(0, 1, vec![declare]));
            steps.push(self.on(0, 1, vec![bind]));
        }
        steps
    }

    fn on(&mut self, connection: usize, channel: u16, operations: Vec<Operation>) -> Step {
        Step { connection, channel, as_it_is: false, operations }
    }

    fn step(&mut self) -> Step {
        // What closes a connection requeues channel by channel, in any order, and into consumers of the next one.
        let channels = if self.odd { 1 } else { 2 };
        let (connection, channel) = (self.random.random_range(0..LAST), self.random.random_range(1..=channels));
        let place = (connection, channel);
        let kind = self.kind();
        self.in_transaction = self.transactions.contains(&place);
        let many = if self.one_in(3) { self.random.random_range(2..=5) } else { 1 };
        let mut operations = match kind {
            Kind::Publish | Kind::Settle => self.written_at_once(kind, many, place),
            Kind::Get => (0..many).map(|_| self.get()).collect(),
            kind => vec![self.operation(kind, place)],
        };
        if operations.len() > 1 {
            operations.iter_mut().for_each(with_names);
        }
        let as_it_is = kind == Kind::Odd && self.odd && self.one_in(4);
        Step { connection, channel, as_it_is, operations }
    }

    /// Operations that are written behind each other without waiting. Only the first of several may be at fault: what was
    /// under way to a channel when RabbitMQ closes it comes before, after, or not at all.
    fn written_at_once(&mut self, kind: Kind, many: usize, place: (usize, u16)) -> Vec<Operation> {
        let mut operations = Vec::new();
        if self.one_in(4) {
            let first = match self.kind() {
                Kind::Consume | Kind::CloseChannel | Kind::Disconnect | Kind::Odd => Kind::Get,
                kind => kind,
            };
            operations.push(self.operation(first, place));
        }
        self.at_fault = operations.is_empty() && many == 1;
        operations.extend((0..many).map(|_| if kind == Kind::Publish { self.publish() } else { self.settle() }));
        self.at_fault = true;
        operations
    }

    fn kind(&mut self) -> Kind {
        let all: u32 = self.weights.iter().map(|(weight, _)| weight).sum();
        let mut at = self.random.random_range(0..all);
        for (weight, kind) in &self.weights {
            if at < *weight {
                return *kind;
            }
            at -= weight;
        }
        Kind::Publish
    }

    fn operation(&mut self, kind: Kind, place: (usize, u16)) -> Operation {
        use basic::AMQPMethod as B;
        use queue::AMQPMethod as Q;
        match kind {
            Kind::Publish => self.publish(),
            Kind::Settle => self.settle(),
            Kind::Get => self.get(),
            Kind::Consume if self.limited.contains(&place) && self.consuming.contains(&place) => self.get(),
            Kind::Consume => {
                self.consuming.push(place);
                let nowait = self.one_in(12);
                Operation::Call(AMQPClass::Basic(B::Consume(basic::Consume {
                    queue: self.any_queue(),
                    consumer_tag: if !nowait && self.one_in(4) { "".into() } else { self.new_tag() },
                    no_local: self.one_in(20),
                    no_ack: self.one_in(4),
                    exclusive: self.one_in(8),
                    nowait,
                    arguments: values::none(),
                })))
            }
            Kind::QueueDeclare => self.queue_declare(None),
            Kind::QueuePassive => {
                let queue = self.any_queue();
                let mut declare = plain_queue(queue);
                declare.passive = true;
                declare.durable = self.one_in(2);
                Operation::Call(AMQPClass::Queue(Q::Declare(declare)))
            }
            Kind::QueueDelete => Operation::Call(AMQPClass::Queue(Q::Delete(queue::Delete {
                queue: self.any_queue(),
                if_unused: self.one_in(3),
                if_empty: self.one_in(3),
                nowait: self.one_in(10),
            }))),
            Kind::QueuePurge => {
                let nowait = self.one_in(10);
                Operation::Call(AMQPClass::Queue(Q::Purge(queue::Purge { queue: self.any_queue(), nowait })))
            }
            Kind::QueueBind => self.queue_bind(),
            Kind::QueueUnbind => {
                let (queue, exchange) = (self.any_queue(), self.any_exchange());
                let (routing_key, arguments) = (self.pick(&KEYS).into(), self.binding_arguments());
                let unbind = queue::Unbind { queue, exchange, routing_key, arguments };
                Operation::Call(AMQPClass::Queue(Q::Unbind(unbind)))
            }
            Kind::ExchangeDeclare => self.exchange_declare(None),
            Kind::ExchangePassive | Kind::ExchangeDelete | Kind::ExchangeBind | Kind::ExchangeUnbind => {
                self.exchange(kind)
            }
            Kind::Qos => {
                // A limit for a channel with several consumers is kept in the session: docs/mapping.md.
                let global = !self.consuming.contains(&place) && self.one_in(3);
                if global {
                    self.limited.push(place);
                }
                let prefetch_count = self.pick(&[0, 1, 1, 2, 3]);
                Operation::Call(AMQPClass::Basic(B::Qos(basic::Qos { prefetch_count, global })))
            }
            Kind::Cancel => {
                let consumer_tag = format!("t{}", self.random.random_range(0..=self.tags)).into();
                let nowait = self.one_in(10);
                Operation::Call(AMQPClass::Basic(B::Cancel(basic::Cancel { consumer_tag, nowait })))
            }
            Kind::Confirm => {
                if self.transactions.contains(&place) && !self.one_in(10) {
                    return self.publish();
                }
                self.confirms.push(place);
                let nowait = self.one_in(10);
                Operation::Call(AMQPClass::Confirm(confirm::AMQPMethod::Select(confirm::Select { nowait })))
            }
            Kind::Tx => self.tx(place),
            Kind::Recover => {
                let requeue = !(self.odd && self.one_in(10));
                Operation::Call(AMQPClass::Basic(match self.one_in(4) {
                    true => B::RecoverAsync(basic::RecoverAsync { requeue }),
                    false => B::Recover(basic::Recover { requeue }),
                }))
            }
            Kind::CloseChannel => {
                let close = channel::Close { reply_code: 200, reply_text: "bye".into(), class_id: 0, method_id: 0 };
                Operation::Call(AMQPClass::Channel(channel::AMQPMethod::Close(close)))
            }
            Kind::Disconnect => Operation::Disconnect,
            Kind::Odd if self.odd => self.odd(),
            Kind::Odd => self.get(),
        }
    }

    /// A consumer tag: a new one, or where a connection may be closed for it, perhaps one that is in use.
    fn new_tag(&mut self) -> ShortString {
        let again = self.odd && self.one_in(3);
        self.tags += usize::from(!again);
        format!("t{}", self.tags).into()
    }

    fn any_queue(&mut self) -> ShortString {
        match self.random.random_range(0..40) {
            0 => format!("{PLACE}never").into(),
            // The queue that the channel declared last.
            1..4 => "".into(),
            _ => queue_name(self.random.random_range(0..QUEUES)),
        }
    }

    fn any_exchange(&mut self) -> ShortString {
        match self.random.random_range(0..40) {
            0 => format!("{PLACE}never").into(),
            1 => "".into(),
            2..6 => self.pick(&["amq.direct", "amq.fanout", "amq.topic", "amq.headers", "amq.match"]).into(),
            _ => exchange_name(self.random.random_range(0..EXCHANGES)),
        }
    }

    fn queue_declare(&mut self, number: Option<usize>) -> Operation {
        let unnamed = number.is_none() && self.one_in(6);
        let name = match number {
            Some(number) => queue_name(number),
            None if unnamed => "".into(),
            None => self.any_queue(),
        };
        let declare = queue::Declare {
            queue: name,
            passive: false,
            durable: !self.one_in(3),
            exclusive: self.one_in(if unnamed { 2 } else { 10 }),
            auto_delete: self.one_in(6),
            nowait: !unnamed && number.is_none() && self.one_in(12),
            arguments: values::queue_arguments(&mut self.random),
        };
        let nowait = declare.nowait && !declare.queue.as_str().is_empty();
        Operation::Call(AMQPClass::Queue(queue::AMQPMethod::Declare(queue::Declare { nowait, ..declare })))
    }

    fn exchange_declare(&mut self, number: Option<usize>) -> Operation {
        let exchange = match number {
            Some(number) => exchange_name(number),
            None => self.any_exchange(),
        };
        // Mostly the kind that goes with the number, so that a second declaration is often the same.
        let usual = exchange.as_str().bytes().last().map_or(0, usize::from) % KINDS.len();
        let kind = if self.one_in(5) { self.pick(&KINDS) } else { KINDS[usual] };
        let kind = if self.odd && self.one_in(12) { "x-no-such-type" } else { kind };
        let alternate = exchange_name(self.random.random_range(0..EXCHANGES));
        Operation::Call(AMQPClass::Exchange(exchange::AMQPMethod::Declare(exchange::Declare {
            exchange,
            kind: kind.into(),
            passive: false,
            durable: !self.one_in(4),
            auto_delete: self.one_in(6),
            internal: self.one_in(10),
            nowait: number.is_none() && self.one_in(12),
            arguments: values::exchange_arguments(&mut self.random, &alternate),
        })))
    }

    fn exchange(&mut self, kind: Kind) -> Operation {
        use exchange::AMQPMethod as X;
        let source = self.any_exchange();
        let nowait = self.one_in(12);
        Operation::Call(AMQPClass::Exchange(match kind {
            Kind::ExchangePassive => X::Declare(exchange::Declare {
                exchange: source,
                kind: self.pick(&["direct", "", "topic"]).into(),
                passive: true,
                durable: false,
                auto_delete: false,
                internal: false,
                nowait,
                arguments: values::none(),
            }),
            Kind::ExchangeDelete => X::Delete(exchange::Delete { exchange: source, if_unused: self.one_in(2), nowait }),
            Kind::ExchangeBind => X::Bind(exchange::Bind {
                destination: self.any_exchange(),
                source,
                routing_key: self.pick(&KEYS).into(),
                nowait,
                arguments: self.binding_arguments(),
            }),
            _ => X::Unbind(exchange::Unbind {
                destination: self.any_exchange(),
                source,
                routing_key: self.pick(&KEYS).into(),
                nowait,
                arguments: self.binding_arguments(),
            }),
        }))
    }

    fn queue_bind(&mut self) -> Operation {
        Operation::Call(AMQPClass::Queue(queue::AMQPMethod::Bind(queue::Bind {
            queue: self.any_queue(),
            exchange: self.any_exchange(),
            routing_key: self.pick(&KEYS).into(),
            nowait: self.one_in(12),
            arguments: self.binding_arguments(),
        })))
    }

    fn binding_arguments(&mut self) -> amq_protocol::types::FieldTable {
        if self.one_in(3) { values::binding_arguments(&mut self.random) } else { values::none() }
    }

    fn publish(&mut self) -> Operation {
        self.messages += 1;
        // In a transaction a fault is found at the commit, and by RabbitMQ at once: none is made.
        let at_fault = self.at_fault && !self.in_transaction;
        let default = !at_fault || self.one_in(2);
        let odd = self.odd && at_fault;
        let (exchange, routing_key) = match default {
            true => ("".into(), queue_name(self.random.random_range(0..QUEUES))),
            false => (self.any_exchange(), self.pick(&KEYS).into()),
        };
        let extra = [queue_name(self.random.random_range(0..QUEUES)), self.pick(&KEYS).into()];
        Operation::Publish(Box::new(Publish {
            method: basic::Publish {
                exchange,
                routing_key,
                mandatory: self.one_in(3),
                immediate: odd && self.one_in(60),
            },
            properties: match self.one_in(3) {
                true => values::properties(&mut self.random, &extra, odd),
                false => AMQPProperties::default(),
            },
            number: self.messages,
            size: self.pick(&[4, 4, 4, 4, 4, 4, 0, 300, 4088, 4089, 9000]),
        }))
    }

    fn settle(&mut self) -> Operation {
        let nth = self.random.random_range(0..8);
        let (requeue, multiple) = (self.one_in(2), self.one_in(3));
        let (which, multiple) = match self.random.random_range(0..60) {
            0 | 1 if !self.at_fault => (Which::Held(nth), multiple),
            0 => (Which::Unknown, multiple),
            1 => (Which::Again, multiple),
            2..5 => (Which::Zero, true),
            _ => (Which::Held(nth), multiple),
        };
        let how = match self.random.random_range(0..5) {
            0..2 => How::Ack,
            2..4 => How::Nack { requeue },
            _ => How::Reject { requeue },
        };
        Operation::Settle(Settle { which, multiple, how })
    }

    fn get(&mut self) -> Operation {
        let (queue, no_ack) = (self.any_queue(), self.one_in(3));
        Operation::Call(AMQPClass::Basic(basic::AMQPMethod::Get(basic::Get { queue, no_ack })))
    }

    fn tx(&mut self, place: (usize, u16)) -> Operation {
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
            _ => T::Select(tx::Select {}),
        };
        Operation::Call(AMQPClass::Tx(method))
    }

    /// What hardly any client sends.
    fn odd(&mut self) -> Operation {
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
fn with_names(operation: &mut Operation) {
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

fn plain_queue(queue: ShortString) -> queue::Declare {
    queue::Declare {
        queue,
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        nowait: false,
        arguments: values::none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_makes_the_same_program() {
        for seed in 0..50 {
            let (one, two) = (program(seed, 40), program(seed, 40));
            assert_eq!(one.to_string(), two.to_string());
            assert_ne!(one.to_string(), program(seed + 1, 40).to_string());
        }
    }
}
