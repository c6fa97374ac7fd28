//! Where things are in the checkout.

use std::path::{Path, PathBuf};

/// The root of the checkout that this program was built from.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that runs us, so that the pinned toolchain is used throughout.
///
/// What `cargo run` told us about this package is kept from it: build scripts (ring's, for one) watch those variables,
/// and everything above them would be built again each time `cargo build` and `cargo xtask` take turns.
pub fn cargo() -> std::process::Command {
    let mut cargo = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text.starts_with("CARGO_CRATE_") {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(root());
    cargo
}

/// This program again, for a step that is a command of ours: as the step before it has just built it.
pub fn xtask() -> std::process::Command {
    let mut xtask = std::process::Command::new(target().join("debug/xtask"));
    xtask.current_dir(root());
    xtask
}
