//! Programs from Node packages, pinned by a lock file with hashes and installed into `.tools/node`.

use std::path::PathBuf;
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{Tools, say};
use crate::failure::{Doing, Failure};
use crate::{process, workspace};

/// The oldest Node that the addon and the tests run on.
const OLDEST_MAJOR: u32 = 20;

pub(super) fn pyright(tools: &mut Tools) -> Result<PathBuf, Failure> {
    let dir = tools.dir().join("node");
    let program = dir.join("node_modules/.bin/pyright");
    let source = workspace::root().join("xtask/node");
    let lock = source.join("package-lock.json");
    let digest =
        format!("{:x}", Sha256::digest(std::fs::read(&lock).doing("cannot read xtask/node/package-lock.json")?));
    let stamp = tools.stamp("node");
    if program.exists() && std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == digest) {
        return Ok(program);
    }
    check_node()?;
    say(format_args!("installing the pinned Node packages of xtask/node into {}", dir.display()));
    std::fs::create_dir_all(&dir).doing("cannot make the folder for Node packages")?;
    for file in ["package.json", "package-lock.json", ".npmrc"] {
        std::fs::copy(source.join(file), dir.join(file)).doing(format_args!("cannot copy xtask/node/{file}"))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(&dir);
    process::output("npm ci", &mut npm)?;
    std::fs::write(&stamp, digest).doing(format_args!("cannot write {}", stamp.display()))?;
    Ok(program)
}

/// Fails when Node is missing or too old.
pub(super) fn check_node() -> Result<(), Failure> {
    let missing = || {
        Failure::new(
            "Node 20 or newer with npm is needed as `node` and `npm`; see https://nodejs.org or your distribution's packages",
        )
    };
    let said = process::output("node", Command::new("node").arg("--version")).map_err(|_| missing())?;
    let major = said.trim().trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major >= OLDEST_MAJOR && process::on_path("npm") => Ok(()),
        Some(major) if major < OLDEST_MAJOR => {
            Err(Failure::new(format_args!("Node {} was found, but 20 or newer is needed", said.trim())))
        }
        _ => Err(missing()),
    }
}
