//! A program: what is asked of both brokers, step by step.
//!
//! Names of exchanges and queues begin with [`PLACE`], which stands for a prefix of the run's own on the wire.

use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, channel, confirm, exchange, queue};
use amq_protocol::types::ShortString;

use crate::{generate, render};

/// Stands for the prefix of a run; as long as one.
pub const PLACE: &str = "~~~~~~";

/// Steps in the order in which they are done; each is over, with all that follows from it, before the next one.
#[derive(Debug, Clone)]
pub struct Program {
    pub seed: u64,
    pub steps: Vec<Step>,
}

/// Operations that are written to one channel at once.
#[derive(Debug, Clone)]
pub struct Step {
    pub connection: usize,
    pub channel: u16,
    /// Whether the channel is left closed if it is; else it is opened first.
    pub as_it_is: bool,
    pub operations: Vec<Operation>,
}

#[derive(Debug, Clone)]
pub enum Operation {
    /// A method, as it is.
    Call(AMQPClass),
    Publish(Box<Publish>),
    Settle(Settle),
    /// Closes the connection, whatever its clients hold.
    Disconnect,
    /// Closes the connection's socket, without a word.
    Lose,
    Answer(Answer),
    /// Says how much is in a queue, takes it all, and deletes the queue.
    Drain(ShortString),
}

#[derive(Debug, Clone)]
pub struct Publish {
    pub method: basic::Publish,
    pub properties: AMQPProperties,
    /// Makes its body differ from every other one.
    pub number: usize,
    /// The length of its body, if that is longer than its number.
    pub size: usize,
}

/// A direct reply to a request that came; nothing is sent if none has come.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// To which of the names that came in requests.
    pub to: usize,
    pub number: usize,
    pub mandatory: bool,
    /// Whether it is only asked if somebody waits for it.
    pub asks: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Settle {
    pub which: Which,
    pub multiple: bool,
    pub how: How,
}

/// The delivery that is settled.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    /// One of those that the channel holds; nothing is sent if it holds none.
    Held(usize),
    /// A tag that the channel has not given out yet.
    Unknown,
    /// A tag that was settled before; nothing is sent if there is none.
    Again,
    /// Tag 0: all of them.
    Zero,
}

#[derive(Debug, Clone, Copy)]
pub enum How {
    Ack,
    Nack { requeue: bool },
    Reject { requeue: bool },
}

impl Program {
    /// One for each step, with those at the end of every program.
    pub fn titles(&self) -> Vec<String> {
        self.steps.iter().chain(&generate::epilogue()).map(|step| step.to_string()).collect()
    }
}

impl Publish {
    pub fn body(&self) -> Vec<u8> {
        let mut body = format!("m{}", self.number).into_bytes();
        if self.size == 0 {
            body.clear();
        }
        body.extend((body.len()..self.size).map(|at| b'a' + (at % 26) as u8));
        body
    }
}

impl Settle {
    pub fn method(self, delivery_tag: u64) -> basic::AMQPMethod {
        let multiple = self.multiple;
        match self.how {
            How::Ack => basic::AMQPMethod::Ack(basic::Ack { delivery_tag, multiple }),
            How::Nack { requeue } => basic::AMQPMethod::Nack(basic::Nack { delivery_tag, multiple, requeue }),
            How::Reject { requeue } => basic::AMQPMethod::Reject(basic::Reject { delivery_tag, requeue }),
        }
    }

    pub fn is_multiple(self) -> bool {
        self.multiple && !matches!(self.how, How::Reject { .. })
    }
}

impl Step {
    /// Whether things may happen elsewhere because of it. The last steps take everything out, one after the other.
    pub fn is_followed_up(&self) -> bool {
        self.connection != LAST
    }
}

/// The connection that looks at what is left.
pub const LAST: usize = 2;

/// Whether a method is answered, by its own `-ok` or by a close.
pub fn is_answered(class: &AMQPClass) -> bool {
    use basic::AMQPMethod as B;
    use exchange::AMQPMethod as X;
    use queue::AMQPMethod as Q;
    match class {
        AMQPClass::Basic(B::Consume(m)) => !m.nowait,
        AMQPClass::Basic(B::Cancel(m)) => !m.nowait,
        AMQPClass::Basic(B::Qos(_) | B::Get(_) | B::Recover(_)) => true,
        AMQPClass::Basic(_) => false,
        AMQPClass::Exchange(X::Declare(m)) => !m.nowait,
        AMQPClass::Exchange(X::Delete(m)) => !m.nowait,
        AMQPClass::Exchange(X::Bind(m)) => !m.nowait,
        AMQPClass::Exchange(X::Unbind(m)) => !m.nowait,
        AMQPClass::Queue(Q::Declare(m)) => !m.nowait,
        AMQPClass::Queue(Q::Bind(m)) => !m.nowait,
        AMQPClass::Queue(Q::Purge(m)) => !m.nowait,
        AMQPClass::Queue(Q::Delete(m)) => !m.nowait,
        AMQPClass::Queue(Q::Unbind(_)) => true,
        AMQPClass::Exchange(_) | AMQPClass::Queue(_) => false,
        AMQPClass::Confirm(confirm::AMQPMethod::Select(m)) => !m.nowait,
        AMQPClass::Channel(channel::AMQPMethod::CloseOk(_)) => false,
        AMQPClass::Channel(_) | AMQPClass::Tx(_) => true,
        AMQPClass::Connection(_) | AMQPClass::Access(_) | AMQPClass::Confirm(_) => false,
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "{number:4}. {step}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let closed = if self.as_it_is { " (as it is)" } else { "" };
        write!(f, "c{}/{}{closed}", self.connection, self.channel)?;
        for operation in &self.operations {
            match operation {
                Operation::Call(class) => write!(f, "  {}", render::method(class))?,
                Operation::Publish(publish) => {
                    let Publish { method, properties, number, size } = &**publish;
                    write!(
                        f,
                        "  basic.publish to '{}' key '{}'",
                        render::here(&method.exchange),
                        render::here(&method.routing_key)
                    )?;
                    let flags = [(method.mandatory, " mandatory"), (method.immediate, " immediate")];
                    flags.iter().filter(|(is, _)| *is).try_for_each(|(_, name)| f.write_str(name))?;
                    write!(f, " m{number} of {size} bytes{}", render::properties(properties))?;
                }
                Operation::Settle(Settle { which, multiple, how }) => {
                    let multiple = if *multiple { " multiple" } else { "" };
                    write!(f, "  {how:?} {which:?}{multiple}")?;
                }
                Operation::Drain(queue) => write!(f, "  what is left in '{}'", render::here(queue))?,
                Operation::Disconnect => write!(f, "  connection.close")?,
                Operation::Lose => write!(f, "  the socket is closed")?,
                Operation::Answer(Answer { to, number, mandatory, asks }) => {
                    let mandatory = if *mandatory { " mandatory" } else { "" };
                    let what = if *asks { "asks for".to_owned() } else { format!("answers m{number}{mandatory} to") };
                    write!(f, "  {what} request {to}")?;
                }
            }
        }
        Ok(())
    }
}
