//! nats-bridge
fn main() {}
