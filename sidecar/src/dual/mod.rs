//! One AMQP session over RabbitMQ and JetStream.

pub mod merge;
