//! Joins what RabbitMQ delivered with the copies in the standby stream.
