//! `forebay-worker`: see the library's documentation.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    forebay_worker::main(std::env::args_os())
}
