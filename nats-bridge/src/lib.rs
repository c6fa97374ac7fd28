//! nats-bridge
