//! The house rules that a compiler does not check: who may use whom, which modules are pure, what no file may name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders and files that never await, read no clock and know no runtime: `docs/architecture.md`, "Map".
const PURE: [&str; 29] = [
    "amqp-compat/src/model",
    "amqp-compat/src/session",
    "amqp-compat/src/mapping",
    "amqp-compat/src/codec",
    "nats-bridge/src/encryption/bound.rs",
    "nats-bridge/src/encryption/envelope.rs",
    "nats-bridge/src/retry.rs",
    "nats-bridge/src/schema/avro",
    "nats-bridge/src/schema/compatibility.rs",
    "nats-bridge/src/schema/contains.rs",
    "nats-bridge/src/schema/contains",
    "nats-bridge/src/schema/document.rs",
    "nats-bridge/src/schema/json.rs",
    "nats-bridge/src/schema/protobuf",
    "nats-bridge/src/schema/varint.rs",
    "sidecar/src/copies/backlog.rs",
    "sidecar/src/copies/ledger.rs",
    "sidecar/src/dual/returns.rs",
    "sidecar/src/phase.rs",
    "sidecar/src/gate.rs",
    "sidecar/src/integrity.rs",
    "sidecar/src/ownership.rs",
    "sidecar/src/fence.rs",
    "sidecar/src/fence/names.rs",
    "sidecar/src/fence/queue.rs",
    "sidecar/src/parity.rs",
    "sidecar/src/management/documents",
    "sidecar/src/assess",
    "sidecar/src/plan",
];

/// What a pure module must not contain.
const IMPURE: [&str; 7] = ["tokio", "async_nats", ".await", "async fn", "Instant::now", "SystemTime::now", "std::net"];

#[test]
fn pure_modules_await_nothing_and_read_no_clock() {
    let mut found = Vec::new();
    let mut files = 0;
    for place in PURE {
        for file in rust_files(&root().join(place)).into_iter().filter(|file| !is_test(file)) {
            files += 1;
            for (number, line) in code(&file) {
                for word in IMPURE {
                    if names(&line, word) {
                        found.push(format!("{}:{number}: {word}", shown(&file)));
                    }
                }
            }
        }
    }
    assert!(files > 0, "none of {PURE:?} is there");
    assert!(found.is_empty(), "impure:\n{}", found.join("\n"));
}

#[test]
fn the_core_knows_no_amqp_word() {
    let mut found = Vec::new();
    for file in rust_files(&root().join("nats-bridge")) {
        for (number, line) in lines(&file) {
            let line = line.to_lowercase();
            for word in ["amqp", "rabbit", "lapin"] {
                if line.contains(word) {
                    found.push(format!("{}:{number}: {word}", shown(&file)));
                }
            }
        }
    }
    assert!(found.is_empty(), "the core has heard of AMQP:\n{}", found.join("\n"));
}

#[test]
fn only_the_client_names_lapin_in_the_amqp_crate() {
    let mut found = Vec::new();
    for file in rust_files(&root().join("amqp-compat/src")) {
        if shown(&file).starts_with("amqp-compat/src/client") {
            continue;
        }
        for (number, line) in code(&file) {
            if line.contains("lapin::") || line.contains("use lapin") {
                found.push(format!("{}:{number}", shown(&file)));
            }
        }
    }
    assert!(found.is_empty(), "lapin outside the client:\n{}", found.join("\n"));
}

#[test]
fn dependencies_point_in_one_direction() {
    // Each crate, and the crates of ours that it may use outside its tests.
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("nats-bridge", &[][..]),
        ("amqp-compat", &["nats-bridge"][..]),
        ("sidecar", &["nats-bridge", "amqp-compat"][..]),
        ("bindings/verbs", &["nats-bridge", "amqp-compat", "sidecar"][..]),
        ("bindings/python", &["nats-bridge", "amqp-compat", "sidecar"][..]),
        ("bindings/node", &["nats-bridge", "amqp-compat", "sidecar"][..]),
        ("test-support", &[][..]),
        ("xtask", &["test-support"][..]),
    ]);
    let ours: Vec<&str> = allowed.keys().map(|dir| dir.rsplit('/').next().expect("a name")).collect();
    let mut found = Vec::new();
    for (dir, may_use) in &allowed {
        let manifest = root().join(dir).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).expect("each crate has a manifest");
        let mut section = String::new();
        for line in text.lines() {
            if line.starts_with('[') {
                section = line.trim_matches(['[', ']']).to_owned();
                continue;
            }
            if section != "dependencies" && section != "build-dependencies" {
                continue;
            }
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if ours.contains(&name) && !may_use.contains(&name) {
                found.push(format!("{dir} uses {name}"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_file_names_a_registry_host_or_the_machine_it_was_written_on() {
    // Put together here, so that this file does not contain what it forbids.
    let forbidden = [
        ["registry.", "npmjs"].concat(),
        ["pypi", ".org"].concat(),
        ["files.python", "hosted"].concat(),
        ["/work", "/wt"].concat(),
        ["/work", "/main"].concat(),
        ["/work", "/shared"].concat(),
        [".lib", "rary/"].concat(),
    ];
    let mut found = Vec::new();
    for file in committed_files() {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (index, line) in text.lines().enumerate() {
            for word in &forbidden {
                if line.contains(word.as_str()) {
                    found.push(format!("{}:{}: {word}", shown(&file), index + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_file_is_named_after_nothing() {
    let empty_names = ["utils", "util", "helpers", "helper", "common", "types", "misc"];
    let found: Vec<String> = committed_files()
        .into_iter()
        .filter(|file| {
            let stems = [file.file_stem(), file.parent().and_then(Path::file_name)];
            stems.into_iter().flatten().any(|name| empty_names.iter().any(|empty| name == *empty))
        })
        .map(|file| shown(&file))
        .collect();
    assert!(found.is_empty(), "name these by what is in them:\n{}", found.join("\n"));
}

#[test]
fn no_rust_file_grows_out_of_sight() {
    let found: Vec<String> = committed_files()
        .into_iter()
        .filter(|file| file.extension().is_some_and(|ext| ext == "rs") && !is_test(file))
        .filter_map(|file| {
            let count = lines(&file).len();
            (count > 800).then(|| format!("{}: {count} lines", shown(&file)))
        })
        .collect();
    assert!(found.is_empty(), "split these by noun:\n{}", found.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

fn lines(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect()
}

/// The lines of code: no comments, and nothing after the file's test module began.
fn code(file: &Path) -> Vec<(usize, String)> {
    lines(file)
        .into_iter()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .collect()
}

/// Whether the line has this word, and not only as the beginning of a longer one.
fn names(line: &str, word: &str) -> bool {
    let whole = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| whole(&line[at + word.len()..]))
}

/// Whether the whole file is tests.
fn is_test(file: &Path) -> bool {
    file.file_stem().is_some_and(|name| name == "tests") || file.components().any(|part| part.as_os_str() == "tests")
}

fn rust_files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let mut files = Vec::new();
    if let Ok(entries) = fs::read_dir(place) {
        for entry in entries {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                files.extend(rust_files(&path));
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// Every file that git tracks, or would.
fn committed_files() -> Vec<PathBuf> {
    let listed = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root())
        .output()
        .expect("git lists the files of the checkout");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8(listed.stdout).expect("file names are UTF-8");
    text.split('\0')
        .filter(|name| !name.is_empty())
        .map(|name| root().join(name))
        .filter(|file| file.is_file())
        .collect()
}
