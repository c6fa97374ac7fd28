//! `cargo xtask tools`: brings what is missing, and says what it installs.

mod nats_server;
mod node;
mod postgresql;
mod python;
mod rabbitmq;
mod rabbitmq_c;
mod redis;
mod system;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::failure::{Doing, Failure};
use crate::workspace;

/// Arguments of `tools`.
#[derive(Debug, Args)]
pub struct ToolsArgs {
    /// What to bring [default: all].
    #[arg(value_enum)]
    tools: Vec<Tool>,
    /// Where the programs and packages go [default: .tools in the checkout].
    #[arg(long, value_name = "DIR")]
    tools_dir: Option<PathBuf>,
}

/// Brings everything that any command of ours needs.
///
/// # Errors
/// The first thing that is missing and cannot be brought, with what to do.
pub fn run(args: &ToolsArgs) -> Result<ExitCode, Failure> {
    let mut tools = Tools::open(args.tools_dir.clone())?;
    let all = [
        Tool::NatsServer,
        Tool::OldestNatsServer,
        Tool::Rabbitmq,
        Tool::Postgresql,
        Tool::Redis,
        Tool::Python,
        Tool::Pyright,
    ];
    for tool in if args.tools.is_empty() { &all[..] } else { &args.tools } {
        let (name, place) = match tool {
            Tool::NatsServer => ("nats-server", tools.nats_server()?),
            Tool::OldestNatsServer => ("nats-server, oldest supported", tools.oldest_nats_server()?),
            Tool::Rabbitmq => ("rabbitmq-server", tools.rabbitmq()?),
            Tool::Postgresql => ("postgresql", tools.postgresql()?),
            Tool::Redis => ("redis-server", tools.redis()?),
            Tool::Python => ("python", tools.python(Packages::Test)?),
            Tool::Pyright => ("pyright", tools.pyright()?),
        };
        println!("{:<30} {}", format!("{name}:"), place.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// What can be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tool {
    /// The pinned nats-server, into the tools folder.
    NatsServer,
    /// The oldest nats-server that is supported, for tests.
    OldestNatsServer,
    /// RabbitMQ, from the system's packages.
    Rabbitmq,
    /// PostgreSQL, from the system's packages.
    Postgresql,
    /// Redis, from the system's packages.
    Redis,
    /// A Python environment with the pinned packages.
    Python,
    /// The type checker for Python.
    Pyright,
}

/// Which Python packages a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packages {
    /// What the demo's applications import.
    Apps,
    /// What the tests need; it includes [`Packages::Apps`].
    Test,
    /// The clients that our package is measured beside.
    Bench,
}

/// The tools folder. One process at a time fills it.
pub struct Tools {
    dir: PathBuf,
    _lock: File,
}

impl Tools {
    /// Opens the folder, waiting for another of our commands that fills it now.
    ///
    /// # Errors
    /// When the folder cannot be made or locked.
    pub fn open(dir: Option<PathBuf>) -> Result<Self, Failure> {
        let dir = dir.unwrap_or_else(|| workspace::root().join(".tools"));
        std::fs::create_dir_all(&dir).doing(format_args!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize().doing(format_args!("cannot find {}", dir.display()))?;
        let lock = File::create(dir.join(".lock")).doing("cannot make the lock file of the tools folder")?;
        lock.lock().doing("cannot lock the tools folder")?;
        Ok(Self { dir, _lock: lock })
    }

    /// The pinned nats-server.
    ///
    /// # Errors
    /// When it is not there and cannot be downloaded.
    pub fn nats_server(&mut self) -> Result<PathBuf, Failure> {
        nats_server::ensure(self, &nats_server::CURRENT)
    }

    /// The oldest nats-server that is supported.
    ///
    /// # Errors
    /// When it is not there and cannot be downloaded.
    pub fn oldest_nats_server(&mut self) -> Result<PathBuf, Failure> {
        nats_server::ensure(self, &nats_server::OLDEST)
    }

    /// The system's `rabbitmq-server`.
    ///
    /// # Errors
    /// When it is not there and cannot be installed, with what to run.
    pub fn rabbitmq(&mut self) -> Result<PathBuf, Failure> {
        rabbitmq::ensure()
    }

    /// What programs that use rabbitmq-c are compiled with.
    ///
    /// # Errors
    /// When it is not there and cannot be installed, with what to run.
    pub fn rabbitmq_c(&mut self) -> Result<(), Failure> {
        rabbitmq_c::ensure()
    }

    /// The system's PostgreSQL: the directory of its programs.
    ///
    /// # Errors
    /// When it is not there and cannot be installed, with what to run.
    pub fn postgresql(&mut self) -> Result<PathBuf, Failure> {
        postgresql::ensure()
    }

    /// The system's `redis-server`.
    ///
    /// # Errors
    /// When it is not there and cannot be installed, with what to run.
    pub fn redis(&mut self) -> Result<PathBuf, Failure> {
        redis::ensure()
    }

    /// The Python interpreter of the project's own environment, with these packages in it.
    ///
    /// # Errors
    /// When Python is too old or missing, or the packages cannot be brought.
    pub fn python(&mut self, packages: Packages) -> Result<PathBuf, Failure> {
        python::ensure(self, packages)
    }

    /// The type checker for Python.
    ///
    /// # Errors
    /// When Node is too old or missing, or the package cannot be brought.
    pub fn pyright(&mut self) -> Result<PathBuf, Failure> {
        node::pyright(self)
    }

    /// Makes sure that Node and npm are there; they are not installed by us.
    ///
    /// # Errors
    /// When they are missing or too old, with what to do.
    pub fn node(&mut self) -> Result<(), Failure> {
        node::check_node()
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of a stamp: a file that says with what content something was installed.
    fn stamp(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".{name}.installed"))
    }
}

/// A file of pinned requirements, in the checkout.
fn requirements(name: &str) -> PathBuf {
    workspace::root().join("xtask/requirements").join(name)
}

/// Tells the user what is being brought, on standard error.
fn say(text: impl std::fmt::Display) {
    eprintln!("tools: {text}");
}
