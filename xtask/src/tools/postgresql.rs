//! PostgreSQL, from the system's packages.

use std::path::PathBuf;

use super::{say, system};
use crate::failure::Failure;

pub(super) fn ensure() -> Result<PathBuf, Failure> {
    if let Ok(found) = test_support::postgres::find() {
        return Ok(found);
    }
    system::install("postgresql", "the PostgreSQL that the tests of the transactional outbox start")?;
    say(
        "the package may have started a PostgreSQL service of the system on port 5432: we do not use it, and you may turn it off (systemctl disable --now postgresql)",
    );
    test_support::postgres::find().map_err(Failure::new)
}
