//! Pure: the AMQP 0-9-1 protocol of one connection; frames in, frames and commands out.
