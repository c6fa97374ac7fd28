//! `cargo xtask`: the project's commands. `demo` shows the main job, `chaos` kills programs on the way, `test` is what CI runs, `bench` measures, `tools`
//! brings what they need.

mod bench;
mod chaos;
mod demo;
mod failure;
mod process;
mod stop;
mod test;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Move unmodified RabbitMQ applications to JetStream while they run, and check every message.
    Demo(demo::DemoArgs),
    /// Kill RabbitMQ, nats-server, the sidecar and applications at random while weights change under load, and check every message.
    Chaos(chaos::ChaosArgs),
    /// Run all checks and tests, of Rust, Python and Node. This is what CI runs.
    Test(test::TestArgs),
    /// Measure beside the peers, in release.
    Bench(bench::BenchArgs),
    /// Bring what is missing: nats-server, RabbitMQ, Python and Node packages.
    Tools(tools::ToolsArgs),
}

fn main() -> ExitCode {
    let ran = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tools(args) => tools::run(&args),
    };
    match ran {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(2)
        }
    }
}
