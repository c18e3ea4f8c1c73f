//! The program `forebay`; see the crate's documentation.

use forebay_process::allocator::Allocator;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    forebay::cli::main()
}
