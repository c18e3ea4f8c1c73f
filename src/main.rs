//! The program `forebay`; see the crate's documentation.

use std::process::ExitCode;

/// Many small, short-lived allocations on several threads, which the system's allocator is not made
/// for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    forebay::cli::main()
}
