//! Pure: the AMQP 0-9-1 protocol of one connection; frames in, frames and commands out.
//!
//! [`Session`] is one connection. It is fed the client's bytes, the broker's [`crate::backend::Event`]s and the time, and
//! it fills an output buffer and a queue of [`crate::backend::Command`]s. It awaits nothing and reads no clock, so that
//! every rule of the protocol is tested with tables of frames.
//!
//! | file | what it knows |
//! |---|---|
//! | `frame` | bytes to frames, and what a malformed frame is |
//! | `handshake` | server properties, login responses, tuning |
//! | `connection` | the life of a connection: [`Session`] |
//! | `heartbeat` | when to send a heartbeat, and when a silent peer is gone |
//! | `channel` | the life of a channel, and the order of what happens on it: deliveries, settlements, publishing |
//! | `limits`, `counts` | the bounds of a session, and what it counts |
//! | `description` | what can be told of a connection while it runs |
//! | `topology` | exchange and queue methods |
//! | `publish` | a publish is put together from its frames |
//! | `confirms` | publisher confirms, in publish order |
//! | `consumers` | consumers, prefetch and credit |
//! | `tx` | transactions: what waits for `tx.commit` |
//! | `unacked` | delivery tags that wait for their settlement |
//! | `overdue` | deliveries that a client takes too long to settle |

mod channel;
mod confirms;
mod connection;
mod consumers;
mod counts;
mod description;
mod frame;
mod handshake;
mod heartbeat;
mod limits;
mod overdue;
mod publish;
mod topology;
mod tx;
mod unacked;

#[cfg(test)]
mod tests;

pub use connection::{Ask, Refusal, Session};
pub use counts::Counts;
pub use description::{ChannelDescription, ConsumerDescription, Description};
pub use handshake::RABBITMQ_VERSION;
pub use limits::Limits;
