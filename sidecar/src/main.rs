//! The `nats-bridge` binary; everything is in the library, so that tests can use it.

use std::process::ExitCode;

/// The C library's takes a fifth of the sidecar's time in `shadow`: what one thread has allocated another one frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sidecar::cli::main()
}
