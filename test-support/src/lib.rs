//! Real servers for tests: each on free loopback ports, in a directory of its own, stopped when dropped.
//!
//! The servers block and use `std` alone, so that tests, benchmarks and `cargo xtask demo` can use them alike.

pub mod cluster;
pub mod eventually;
pub mod fault_proxy;
pub mod nats;
mod ports;
pub mod postgres;
pub mod rabbit;
pub mod random;
pub mod redis;
mod signal;
mod watchdog;
