//! AMQP sessions over RabbitMQ, through lapin.
