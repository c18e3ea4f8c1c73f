//! `forebay-load`: see the crate's documentation.

use std::process::ExitCode;

/// A request makes a dozen small allocations; the system's allocator shows in the rate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    forebay_loadtest::cli::main(std::env::args_os())
}
