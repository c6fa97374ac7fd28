//! Programs from seeds.
//!
//! Each program prefers some operations to others, and is about some features, by the luck of its seed, so that rare ones
//! meet often in some.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use amq_protocol::protocol::{AMQPClass, basic, exchange};
use amq_protocol::types::ShortString;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::program::{How, LAST, Operation, PLACE, Program, Settle, Step};
use crate::values;

mod channels;
mod exchanges;
mod messages;
mod operations;
mod queues;
mod themes;

use themes::Themes;

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
    Program { seed, steps: steps_apart(steps) }
}

/// The steps, with those in two whose operations are open or other here when they are written at once (docs/mapping.md):
///
/// - An ack overtakes what is given back before it, if a classic queue of RabbitMQ has not come to that yet.
/// - Where the whole channel has a limit, RabbitMQ uses the credit of a settlement before what is given back behind it, or
///   after.
/// - What is given back right behind a publish may be in its queue before it.
fn steps_apart(steps: Vec<Step>) -> Vec<Step> {
    let mut limited = BTreeSet::new();
    let mut apart = Vec::new();
    for mut step in steps {
        let place = (step.connection, step.channel);
        let mut together: Vec<Operation> = Vec::new();
        for operation in std::mem::take(&mut step.operations) {
            if sets_limit(&operation) {
                limited.insert(place);
            }
            let is_limited = limited.contains(&place);
            let behind = |what: fn(&Operation) -> bool| together.iter().any(what);
            let is_open = (behind(gives_back) && (acks(&operation) || is_limited && settles(&operation)))
                || (gives_back(&operation) && (behind(publishes) || is_limited && behind(settles)));
            if is_open {
                apart.push(Step { operations: std::mem::take(&mut together), ..step.clone() });
            }
            together.push(operation);
        }
        apart.push(Step { operations: together, ..step });
    }
    apart
}

fn settles(operation: &Operation) -> bool {
    matches!(operation, Operation::Settle(_))
}

fn acks(operation: &Operation) -> bool {
    matches!(operation, Operation::Settle(Settle { how: How::Ack, .. }))
}

fn gives_back(operation: &Operation) -> bool {
    let how = match operation {
        Operation::Settle(Settle { how, .. }) => how,
        _ => return false,
    };
    matches!(how, How::Nack { requeue: true } | How::Reject { requeue: true })
}

fn publishes(operation: &Operation) -> bool {
    matches!(operation, Operation::Publish(_) | Operation::Answer(_))
}

/// Whether it is `basic.qos` for a whole channel.
fn sets_limit(operation: &Operation) -> bool {
    matches!(operation, Operation::Call(AMQPClass::Basic(basic::AMQPMethod::Qos(basic::Qos { global: true, .. }))))
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
    themes: Themes,
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
    Lose,
    Request,
    Answer,
    Odd,
}

const WEIGHTS: [(u32, Kind); 26] = [
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
    (1, Kind::Lose),
    (7, Kind::Request),
    (9, Kind::Answer),
    (1, Kind::Odd),
];

impl Maker {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let themes = Themes::new(&mut random);
        let liking = [0, 1, 1, 2, 4];
        let weights = WEIGHTS.iter().map(|(weight, kind)| {
            let factor = match kind {
                Kind::Publish => 2,
                Kind::Request | Kind::Answer => u32::from(themes.replies),
                _ => *liking.choose(&mut random).unwrap_or(&1),
            };
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
            themes,
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
            operations.iter_mut().for_each(channels::with_names);
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
                Kind::Consume | Kind::CloseChannel | Kind::Disconnect | Kind::Lose | Kind::Odd => Kind::Get,
                Kind::Request | Kind::Answer => Kind::Get,
                // What comes before its answer is at fault or not, by how far RabbitMQ is with it.
                Kind::Tx => Kind::Get,
                // What it rejects may come to the queue that is published to, by how far RabbitMQ's queues are before or behind.
                Kind::Settle if kind == Kind::Publish && self.themes.dead_letters => Kind::Get,
                kind => kind,
            };
            // It does not stay the first one if it is put in the order of priorities below.
            self.at_fault = !(self.themes.priorities && kind == Kind::Publish && first == Kind::Publish);
            operations.push(self.operation(first, place));
        }
        self.at_fault = operations.is_empty() && many == 1;
        operations.extend((0..many).map(|_| if kind == Kind::Publish { self.publish() } else { self.settle() }));
        self.at_fault = true;
        // A low one first would find a consumer in RabbitMQ before the next one is there.
        let priority = |operation: &Operation| match operation {
            Operation::Publish(publish) => Reverse(publish.properties.priority().unwrap_or_default()),
            _ => Reverse(u8::MAX),
        };
        if self.themes.priorities && kind == Kind::Publish {
            operations.sort_by_key(priority);
        }
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
