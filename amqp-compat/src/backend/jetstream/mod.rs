//! AMQP sessions over JetStream.
