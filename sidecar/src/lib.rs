//! What the `nats-bridge` binary is made of: the command line, the AMQP listener on JetStream alone (`serve`), and the
//! sidecar that moves RabbitMQ traffic to JetStream and back.

pub mod assess;
pub mod cli;
pub mod control;
pub mod control_api;
pub mod copies;
pub mod dual;
pub mod embedded;
pub mod fence;
pub mod gate;
pub mod http;
pub mod integrity;
pub mod management;
pub mod ownership;
pub mod parity;
pub mod phase;
pub mod plan;
mod rabbit_gate;
pub mod ready;
pub mod running;
pub mod sharing;
pub mod standby;
pub mod traces;
