//! What the `nats-bridge` binary is made of: the command line, the AMQP listener on JetStream alone (`serve`), and the
//! sidecar that moves RabbitMQ traffic to JetStream and back.

pub mod cli;
pub mod control_api;
pub mod embedded;
pub mod http;
pub mod parity;
pub mod ready;
