//! Real servers for tests: each on free loopback ports, in a directory of its own, stopped when dropped.
//!
//! Everything here blocks and uses `std` alone, so that tests, benchmarks and `cargo xtask demo` can use it alike.

pub mod eventually;
pub mod nats;
pub mod rabbit;
