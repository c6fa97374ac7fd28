//! Redis, from the system's packages.

use std::path::PathBuf;

use super::{say, system};
use crate::failure::Failure;

pub(super) fn ensure() -> Result<PathBuf, Failure> {
    if let Ok(found) = test_support::redis::find() {
        return Ok(found);
    }
    system::install("redis-server", "the Redis that the tests of the ledger start")?;
    say(
        "the package may have started a Redis service of the system on port 6379: we do not use it, and you may turn it off (systemctl disable --now redis-server)",
    );
    test_support::redis::find().map_err(Failure::new)
}
