//! `cargo xtask demo`
use crate::failure::Failure;
use std::process::ExitCode;
/// x
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
/// x
pub fn run(_: &DemoArgs) -> Result<ExitCode, Failure> {
    Ok(ExitCode::SUCCESS)
}
