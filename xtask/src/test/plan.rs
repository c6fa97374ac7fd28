//! The steps of `cargo xtask test`, in order: cheap ones first, and all Rust steps on one profile and one set of
//! features, so that little is compiled twice.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::runner::{Commands, Order, Step};
use super::tally::Reads;
use crate::failure::{Doing, Failure};
use crate::tools::{Packages, Tools};
use crate::{process, workspace};

/// Built by maturin and napi, whose own steps test them: as plain Rust they would be linked without an interpreter.
const BINDINGS: [&str; 2] = ["nats-bridge-python", "nats-bridge-node"];

/// The packages whose tests are repeated on the oldest nats-server that is supported.
const TALK_TO_NATS: [&str; 2] = ["nats-bridge", "amqp-compat"];

/// A test binary of theirs that talks to RabbitMQ alone, and the tests of others that do: no nats-server makes a difference to them.
const RABBITMQ_ALONE: (&str, &str) = ("rabbitmq_link", "lapin_on_rabbitmq");

/// The test binaries that run longest, longest first.
const LONGEST: [&str; 9] = [
    "jetstream",
    "failover",
    "rabbitmq_link",
    "client",
    "page",
    "management",
    "oracle",
    "rolls_back_by_itself",
    "ten_losses",
];

/// All steps. With `only_list`, nothing is installed.
///
/// # Errors
/// When a tool is missing and cannot be brought.
pub fn steps(only_list: bool) -> Result<Vec<Step>, Failure> {
    let places = if only_list { Places::unfilled() } else { Places::fill()? };
    let mut steps = rust(&places);
    steps.extend(python(&places));
    steps.extend(node(&places));
    steps.extend(clients(&places));
    steps.extend(demo());
    Ok(steps)
}

fn rust(places: &Places) -> Vec<Step> {
    let mut docs = places.cargo(&["doc", "--no-deps", "--document-private-items"]);
    docs.args(workspace_without_bindings()).env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
    let mut build = places.cargo(&["build", "--all-targets"]);
    build.args(workspace_without_bindings());
    vec![
        check("format", "rustfmt would change nothing", vec![places.cargo(&["fmt", "--all", "--check"])]),
        check(
            "clippy",
            "clippy has nothing to say about any target",
            vec![places.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])],
        ),
        check("docs", "the documentation builds and its links lead somewhere", vec![docs]),
        check("build", "everything compiles, tests and examples included", vec![build]),
        tests(
            "rust tests",
            "the promises hold, on real servers",
            Box::new({
                let places = places.clone();
                move || every_test(&places)
            }),
        ),
        tests(
            "oldest nats-server",
            "what talks to NATS works on the oldest supported server too",
            Box::new({
                let places = places.clone();
                move || on_the_oldest_server(&places)
            }),
        ),
    ]
}

fn python(places: &Places) -> Vec<Step> {
    let dir = workspace::root().join("bindings/python");
    let mut pyright = Command::new(&places.pyright);
    pyright.args(["--pythonpath".as_ref(), places.python.as_os_str()]).current_dir(&dir);
    vec![
        Step {
            name: "python tests".to_owned(),
            promise: "the Python package builds as a wheel, installs into an empty environment, and keeps its promises there",
            commands: Box::new({
                let places = places.clone();
                move || in_a_clean_environment(&places, &dir)
            }),
            order: Order::Chain,
            reads: Reads::Pytest,
            limit: LIMIT,
        },
        check(
            "python types",
            "pyright, as configured in pyproject.toml (strict), accepts package and tests",
            vec![pyright],
        ),
    ]
}

/// A wheel, an environment that has it and nothing else, and the tests from there; what they need themselves they find behind it.
fn in_a_clean_environment(places: &Places, dir: &Path) -> Result<Vec<Command>, Failure> {
    let (wheels, clean) = (workspace::target().join("wheels"), workspace::target().join("clean-venv"));
    for old in [&wheels, &clean] {
        match fs::remove_dir_all(old) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Failure::new(error)),
            _ => {}
        }
    }
    let mut build = places.python(&["-m", "maturin", "build", "--quiet", "--auditwheel", "skip", "--out"]);
    build.arg(&wheels).current_dir(dir).env("VIRTUAL_ENV", &places.venv).env_remove("CONDA_PREFIX");
    let mut make = places.python(&["-m", "venv"]);
    make.arg(&clean);
    let inside = |args: &[&str]| {
        let mut python = Command::new(clean.join("bin/python"));
        python.args(args).current_dir(dir);
        places.set(&mut python);
        python
    };
    let mut install = inside(&["-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"]);
    install.arg("--find-links").arg(&wheels).arg("nats-bridge");
    // A `.pth` file is not read on PYTHONPATH: what is being developed there is not seen.
    let packages = process::output(
        "python",
        places.python(&["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).current_dir(dir),
    )?;
    let mut pytest = inside(&["-c", FROM_THE_WHEEL]);
    pytest.env("PYTHONPATH", packages.trim());
    Ok(vec![build, make, install, pytest])
}

const FROM_THE_WHEEL: &str = "import sys, nats_bridge, pytest
assert nats_bridge.__file__.startswith(sys.prefix), nats_bridge.__file__
sys.exit(pytest.main(['--quiet']))";

fn node(places: &Places) -> Vec<Step> {
    let dir = workspace::root().join("bindings/node");
    let npm = |args: &[&str]| places.npm(&dir, args);
    // Two folders below the workspace, as the tests are in the package.
    let clean = workspace::target().join("packed");
    let mut install = Command::new("node");
    install.args(["scripts/install-packed.mjs".as_ref(), clean.as_os_str()]).current_dir(&dir);
    vec![
        step(
            "node tests",
            "the Node package builds, packs, installs into an empty folder, and keeps its promises there",
            Reads::Node,
            vec![
                npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"]),
                npm(&["run", "build"]),
                install,
                places.npm(&clean, &["test"]),
            ],
        ),
        check("node types", "tsc, strict, accepts package and tests", vec![npm(&["run", "typecheck"])]),
    ]
}

fn clients(places: &Places) -> Vec<Step> {
    let dir = workspace::root().join("tests/clients");
    let mut pytest = places.python(&["-m", "pytest", "--quiet"]);
    pytest.current_dir(dir.join("pika"));
    vec![
        step("pika", "a pika client works on `serve --embedded`", Reads::Pytest, vec![pytest]),
        step(
            "amqplib",
            "an amqplib client works on `serve --embedded`",
            Reads::Node,
            vec![
                places.npm(&dir.join("amqplib"), &["ci", "--no-audit", "--no-fund"]),
                places.npm(&dir.join("amqplib"), &["test"]),
            ],
        ),
    ]
}

/// The main job on real servers, with the binary that the step `build` made.
fn demo() -> Vec<Step> {
    let demo = |more: &[&str]| {
        let mut command = workspace::xtask();
        command.args(["demo", "--quick", "--binary"]).arg(workspace::target().join("debug/nats-bridge")).args(more);
        vec![command]
    };
    let mut chaos = workspace::xtask();
    let debug = workspace::target().join("debug");
    chaos.args(["chaos", "--runs", "2", "--seed", "1", "--rate", "500", "--seconds", "3"]);
    chaos.args(["--kill", "nats,sidecar,application", "--binary"]).arg(debug.join("nats-bridge"));
    chaos.arg("--application").arg(debug.join("application"));
    vec![
        check("chaos", "no message is lost when anything is killed at random while weights change", vec![chaos]),
        check("demo", "unmodified applications move to JetStream, back, and there again, unnoticed", demo(&[])),
        check("demo, chaos", "no message is lost when servers are killed on the way", demo(&["--chaos"])),
    ]
}

/// What `cargo test --no-fail-fast` does, with the test binaries side by side.
fn every_test(places: &Places) -> Result<Vec<Command>, Failure> {
    let mut commands: Vec<_> = test_binaries(places)?.iter().map(|binary| binary.command(places)).collect();
    let mut docs = places.cargo(&["test", "--doc", "--no-fail-fast"]);
    docs.args(workspace_without_bindings());
    commands.push(docs);
    Ok(commands)
}

/// The test binaries of the packages that talk to NATS, as the step `rust tests` ran them, but on another server.
fn on_the_oldest_server(places: &Places) -> Result<Vec<Command>, Failure> {
    let wanted = |binary: &TestBinary| {
        let of_theirs = TALK_TO_NATS.iter().any(|package| binary.dir == workspace::root().join(package));
        of_theirs && binary.kind == "test" && binary.name != RABBITMQ_ALONE.0
    };
    let on_the_oldest = |binary: TestBinary| {
        let mut command = binary.command(places);
        command.args(["--skip", RABBITMQ_ALONE.1]).env("NATS_SERVER", &places.oldest_nats_server);
        command
    };
    Ok(test_binaries(places)?.into_iter().filter(wanted).map(on_the_oldest).collect())
}

/// A program of tests that cargo has built.
struct TestBinary {
    name: String,
    /// What it tests: `lib`, `bin` or, below `tests/`, `test`.
    kind: String,
    program: String,
    /// Its package's directory.
    dir: PathBuf,
}

impl TestBinary {
    fn command(&self, places: &Places) -> Command {
        let mut command = Command::new(&self.program);
        places.set(&mut command);
        command.current_dir(&self.dir);
        command
    }
}

/// All test binaries, those that run longest first: else the last one would run alone.
fn test_binaries(places: &Places) -> Result<Vec<TestBinary>, Failure> {
    let mut cargo = places.cargo(&["test", "--no-run", "--message-format=json", "--quiet"]);
    cargo.args(workspace_without_bindings());
    let messages = process::output("cargo test --no-run", &mut cargo)?;
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).doing("cargo's messages are not JSON")?;
        let target = &message["target"];
        if message["profile"]["test"] == true
            && let Some(program) = message["executable"].as_str()
            && let Some(name) = target["name"].as_str()
            && let Some(kind) = target["kind"][0].as_str()
            && let Some(dir) = message["manifest_path"].as_str().and_then(|manifest| Path::new(manifest).parent())
        {
            let (name, kind, program) = (name.to_owned(), kind.to_owned(), program.to_owned());
            binaries.push(TestBinary { name, kind, program, dir: dir.to_owned() });
        }
    }
    binaries.sort_by_key(|binary| LONGEST.iter().position(|name| *name == binary.name).unwrap_or(LONGEST.len()));
    Ok(binaries)
}

fn workspace_without_bindings() -> Vec<&'static str> {
    let mut args = vec!["--workspace"];
    for binding in BINDINGS {
        args.extend(["--exclude", binding]);
    }
    args
}

/// Enough for a cold build on a small machine.
const LIMIT: Duration = Duration::from_secs(20 * 60);

fn step(name: &str, promise: &'static str, reads: Reads, commands: Vec<Command>) -> Step {
    let commands = Box::new(move || Ok(commands));
    Step { name: name.to_owned(), promise, commands, order: Order::Chain, reads, limit: LIMIT }
}

/// Test binaries mostly wait, for servers and for time to pass: one at a time they would leave the processors idle.
fn tests(name: &str, promise: &'static str, commands: Commands) -> Step {
    Step { name: name.to_owned(), promise, commands, order: Order::AtOnce(2), reads: Reads::Cargo, limit: LIMIT }
}

fn check(name: &str, promise: &'static str, commands: Vec<Command>) -> Step {
    step(name, promise, Reads::Check, commands)
}

/// Where the programs that the steps run are.
#[derive(Debug, Clone)]
struct Places {
    nats_server: PathBuf,
    oldest_nats_server: PathBuf,
    venv: PathBuf,
    python: PathBuf,
    pyright: PathBuf,
}

impl Places {
    fn fill() -> Result<Self, Failure> {
        let mut tools = Tools::open(None)?;
        tools.rabbitmq()?;
        tools.postgresql()?;
        tools.redis()?;
        tools.node()?;
        let python = tools.python(Packages::Test)?;
        Ok(Self {
            nats_server: tools.nats_server()?,
            oldest_nats_server: tools.oldest_nats_server()?,
            venv: python.ancestors().nth(2).expect("an interpreter lies in VENV/bin").to_owned(),
            python,
            pyright: tools.pyright()?,
        })
    }

    fn unfilled() -> Self {
        let none = PathBuf::new;
        Self { nats_server: none(), oldest_nats_server: none(), venv: none(), python: none(), pyright: none() }
    }

    /// Every step sees the same servers and the same interpreter: pyo3's build script runs again when it changes. What the
    /// compiler keeps to be faster the next time would be half of the 28 GB that all the tests take on the disk.
    fn set(&self, command: &mut Command) {
        command
            .env("CARGO_INCREMENTAL", "0")
            .env("NATS_SERVER", &self.nats_server)
            .env("NATS_BRIDGE", workspace::target().join("debug/nats-bridge"))
            .env("PYO3_PYTHON", &self.python);
    }

    fn cargo(&self, args: &[&str]) -> Command {
        let mut cargo = workspace::cargo();
        cargo.args(args);
        self.set(&mut cargo);
        cargo
    }

    fn python(&self, args: &[&str]) -> Command {
        let mut python = Command::new(&self.python);
        python.args(args);
        self.set(&mut python);
        python
    }

    fn npm(&self, dir: &Path, args: &[&str]) -> Command {
        let mut npm = Command::new("npm");
        npm.args(args).current_dir(dir);
        self.set(&mut npm);
        npm
    }
}
