//! Packages of the operating system: only what is absent, and as root only then.

use std::process::Command;

use super::say;
use crate::failure::Failure;
use crate::process;

/// Installs `package`, which is for `purpose`, with apt.
///
/// # Errors
/// When there is no apt, no way to be root, or apt fails; the text says what to run by hand.
pub(super) fn install(package: &str, purpose: &str) -> Result<(), Failure> {
    let by_hand = format!("install it by hand and run this again: apt-get install {package}");
    if !process::on_path("apt-get") {
        return Err(Failure::new(format_args!(
            "{package} is missing ({purpose}), and this system has no apt-get: install it with your system's packages and run this again"
        )));
    }
    let root = process::output("id", Command::new("id").arg("-u"))?.trim() == "0";
    if !root && !process::on_path("sudo") {
        return Err(Failure::new(format_args!(
            "{package} is missing ({purpose}), and you are neither root nor is there sudo: {by_hand}"
        )));
    }
    let as_root = |arguments: &[&str]| {
        let mut command = if root {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            sudo.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            sudo
        };
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).arg("--quiet=2");
        command
    };
    say(format_args!(
        "installing the system's package {package}: {purpose}{}",
        if root { "" } else { " (sudo may ask for your password)" }
    ));
    let install = ["install", "--yes", "--no-install-recommends", package];
    if process::run("apt-get install", &mut as_root(&install)).is_ok() {
        return Ok(());
    }
    // The package lists of a fresh machine are empty or old.
    process::run("apt-get update", &mut as_root(&["update"]))
        .and_then(|()| process::run("apt-get install", &mut as_root(&install)))
        .map_err(|failure| Failure::new(format_args!("{failure}; {by_hand}")))
}
