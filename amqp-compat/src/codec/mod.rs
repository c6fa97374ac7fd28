//! Frames as bytes, for both sides: the session with its clients, and the link to RabbitMQ.
//!
//! What goes with every message is read and written here, straight from and to the bytes: `basic.publish`,
//! `basic.deliver`, `basic.get-ok`, the acknowledgements, content headers and bodies. All other methods are
//! `amq-protocol`'s, and so are the types; the tests hold this module against it.

mod reading;
mod writing;

#[cfg(test)]
mod tests;

pub(crate) use reading::{Head, content_header, method, take_body};
pub(crate) use writing::Output;

/// The protocol header of AMQP 0-9-1, which a client sends first and a server answers to any other.
pub(crate) const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";

/// What comes before a frame's payload: type, channel and size.
pub(crate) const HEAD: usize = 7;
/// What a frame takes besides its payload: its head and the end octet.
pub(crate) const OVERHEAD: usize = HEAD + 1;
/// The end octet.
pub(crate) const END: u8 = 0xCE;

/// The type of frames that are a method.
pub(crate) const METHOD: u8 = 1;
/// The type of frames that are a content header.
pub(crate) const HEADER: u8 = 2;
/// The type of frames that are a part of a body.
pub(crate) const BODY: u8 = 3;
/// The type of heartbeats.
pub(crate) const HEARTBEAT: u8 = 8;

const CLASS_BASIC: u16 = 60;

/// Class and method id of the methods that are read and written here.
mod id {
    pub(super) const PUBLISH: [u8; 4] = [0, 60, 0, 40];
    pub(super) const DELIVER: [u8; 4] = [0, 60, 0, 60];
    pub(super) const GET_OK: [u8; 4] = [0, 60, 0, 71];
    pub(super) const ACK: [u8; 4] = [0, 60, 0, 80];
    pub(super) const REJECT: [u8; 4] = [0, 60, 0, 90];
    pub(super) const NACK: [u8; 4] = [0, 60, 0, 120];
}

/// Which properties a content header has; their values follow in this order.
pub(crate) mod flag {
    pub(crate) const CONTENT_TYPE: u16 = 1 << 15;
    pub(crate) const CONTENT_ENCODING: u16 = 1 << 14;
    pub(crate) const HEADERS: u16 = 1 << 13;
    pub(super) const DELIVERY_MODE: u16 = 1 << 12;
    pub(super) const PRIORITY: u16 = 1 << 11;
    pub(super) const CORRELATION_ID: u16 = 1 << 10;
    pub(super) const REPLY_TO: u16 = 1 << 9;
    pub(super) const EXPIRATION: u16 = 1 << 8;
    pub(super) const MESSAGE_ID: u16 = 1 << 7;
    pub(super) const TIMESTAMP: u16 = 1 << 6;
    pub(super) const TYPE: u16 = 1 << 5;
    pub(super) const USER_ID: u16 = 1 << 4;
    pub(super) const APP_ID: u16 = 1 << 3;
    pub(super) const CLUSTER_ID: u16 = 1 << 2;
}
