//! Pure: AMQP names and properties to NATS subjects and headers, and back.
