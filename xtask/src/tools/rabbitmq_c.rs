//! RabbitMQ's C client, from the system's packages.

use std::path::Path;

use super::system;
use crate::failure::Failure;

/// Where Debian and Ubuntu put its header, by version.
const HEADERS: [&str; 2] = ["/usr/include/amqp.h", "/usr/include/rabbitmq-c/amqp.h"];

pub(super) fn ensure() -> Result<(), Failure> {
    if HEADERS.iter().any(|header| Path::new(header).exists()) {
        return Ok(());
    }
    system::install("librabbitmq-dev", "the client that `--client rabbitmq-c` measures with")
}
