//! The bounds of a session.

use std::time::Duration;

/// The bounds of a session.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest body of a message in bytes; a larger one is refused with 406. Default 16 MiB.
    pub max_message: usize,
    /// Bytes of messages that have begun to arrive, over all channels; above it the connection is closed with 506.
    /// Default 64 MiB.
    pub max_assembling: usize,
    /// Publishes that the broker has not answered; at it, nothing more is read. Default 32 768.
    pub max_publishes: usize,
    /// Their bodies in bytes; at it, nothing more is read. Default 64 MiB.
    pub max_publish_bytes: usize,
    /// Commands that the broker has not taken; at it, nothing more is read. Default 1024.
    pub max_commands: usize,
    /// Bytes of frames that wait for a request on their channel; at it, nothing more is read. Default 1 MiB.
    pub max_parked: usize,
    /// Bytes that the client has not taken; at it, no more events are taken, at four times it nothing more is read.
    /// Default 1 MiB.
    pub max_output: usize,
    /// How long a handshake may take. Default 10 s.
    pub handshake: Duration,
    /// How long the peer is waited for when a connection is closed. Default 10 s.
    pub closing: Duration,
    /// How long publishes and requests are waited for when a client leaves or the server stops. Default 5 s.
    pub draining: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            max_message: 16 * MIB,
            max_assembling: 64 * MIB,
            max_publishes: 32_768,
            max_publish_bytes: 64 * MIB,
            max_commands: 1024,
            max_parked: MIB,
            max_output: MIB,
            handshake: Duration::from_secs(10),
            closing: Duration::from_secs(10),
            draining: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// These, with messages no larger than fit into `max_payload` bytes of a broker beside their headers.
    #[must_use]
    pub fn within(self, max_payload: usize) -> Self {
        const HEADERS: usize = 256 * 1024;
        Self { max_message: max_payload.saturating_sub(HEADERS).clamp(1, self.max_message.max(1)), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_fits_into_what_the_broker_takes() {
        let limits = Limits::default();
        assert_eq!(limits.within(17 << 20).max_message, 16 << 20);
        assert_eq!(limits.within(1 << 20).max_message, (1 << 20) - (256 << 10));
        assert_eq!(limits.within(0).max_message, 1);
    }
}
