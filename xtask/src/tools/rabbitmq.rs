//! RabbitMQ, from the system's packages.

use std::path::{Path, PathBuf};

use super::{say, system};
use crate::failure::Failure;

/// Where Debian and Ubuntu put the scripts that run as the calling user.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

pub(super) fn ensure() -> Result<PathBuf, Failure> {
    let program = Path::new(PROGRAM);
    if program.exists() {
        return Ok(program.to_owned());
    }
    system::install("rabbitmq-server", "the RabbitMQ that the demo and the tests start")?;
    if !program.exists() {
        return Err(Failure::new(format_args!(
            "the package rabbitmq-server was installed, but {PROGRAM} is not there"
        )));
    }
    say(
        "the package may have started a RabbitMQ service of the system on port 5672: we do not use it, and you may turn it off (systemctl disable --now rabbitmq-server)",
    );
    Ok(program.to_owned())
}
