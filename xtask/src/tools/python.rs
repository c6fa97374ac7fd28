//! The project's own Python environment, `.tools/venv`: nothing is installed into the system's Python.

use std::path::PathBuf;
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{Packages, Tools, requirements, say, system};
use crate::failure::{Doing, Failure};
use crate::process;

/// The oldest Python that the applications and the binding run on.
const OLDEST: (u32, u32) = (3, 11);

/// The environment's interpreter with `packages` installed.
pub(super) fn ensure(tools: &mut Tools, packages: Packages) -> Result<PathBuf, Failure> {
    let (name, file) = match packages {
        Packages::Apps => ("python-apps", "apps.txt"),
        Packages::Test => ("python-test", "test.txt"),
        Packages::Bench => ("python-bench", "bench.txt"),
    };
    let file = requirements(file);
    let pinned = std::fs::read(&file).doing(format_args!("cannot read {}", file.display()))?;
    let digest = format!("{:x}", Sha256::digest(&pinned));
    let stamp = tools.stamp(name);
    let program = program(tools);
    if program.exists() && std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == digest) {
        return Ok(program);
    }
    let program = interpreter(tools)?;
    say(format_args!("installing the pinned Python packages of {} into {}", short(&file), venv(tools).display()));
    process::output(
        "installing Python packages",
        Command::new(&program)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"])
            .args(["--requirement".as_ref(), file.as_os_str()]),
    )?;
    std::fs::write(&stamp, digest).doing(format_args!("cannot write {}", stamp.display()))?;
    Ok(program)
}

/// The environment's interpreter; the environment is made if it is not there.
pub(super) fn interpreter(tools: &mut Tools) -> Result<PathBuf, Failure> {
    let program = program(tools);
    if program.exists() {
        return Ok(program);
    }
    let system_python = find()?;
    let venv = venv(tools);
    // Debian splits this part of Python's standard library off.
    if process::output("ensurepip", Command::new(&system_python).args(["-c", "import ensurepip, venv"])).is_err() {
        system::install("python3-venv", "the project's own Python environment")?;
    }
    say(format_args!("making a Python environment in {}", venv.display()));
    process::output("making a Python environment", Command::new(&system_python).args(["-m", "venv"]).arg(&venv))?;
    Ok(program)
}

fn venv(tools: &Tools) -> PathBuf {
    tools.dir().join("venv")
}

fn program(tools: &Tools) -> PathBuf {
    venv(tools).join("bin/python")
}

/// A new enough Python of the system: `$PYTHON`, or `python3` from PATH.
fn find() -> Result<PathBuf, Failure> {
    let program = std::env::var_os("PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let script = "import sys; print(sys.version_info[0], sys.version_info[1])";
    let said = process::output("python3", Command::new(&program).args(["-c", script])).map_err(|_| {
        Failure::new("Python 3.11 or newer is needed as `python3`; on Debian and Ubuntu: sudo apt-get install python3 python3-venv")
    })?;
    let mut numbers = said.split_whitespace().map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST => Ok(program),
        _ => Err(Failure::new(format_args!(
            "{} is Python {}, but 3.11 or newer is needed; name one with PYTHON=/path/to/python3",
            program.display(),
            said.trim().replace(' ', ".")
        ))),
    }
}

fn short(file: &std::path::Path) -> String {
    file.strip_prefix(crate::workspace::root()).unwrap_or(file).display().to_string()
}
