//! A local nats-server, started and supervised.
