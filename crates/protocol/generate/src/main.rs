//! Makes `src/grpc/pb` from `proto/`; with `--check` it only says whether that is up to date.
//!
//! ```sh
//! cargo run --manifest-path crates/protocol/generate/Cargo.toml -- --check
//! ```

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

const PROTOS: [&str; 3] = ["inference.proto", "health.proto", "orca.proto"];

fn main() -> Result<()> {
    let check = std::env::args().any(|argument| argument == "--check");
    let protocol = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no parent")?;
    let fresh = std::env::temp_dir().join(format!("forebay-protocol-{}", std::process::id()));
    std::fs::create_dir(&fresh)?;
    let files = protox::compile(PROTOS, [protocol.join("proto")])?;
    prost_build::Config::new()
        // Tensors are not copied, and maps keep an order, so that equal messages are equal bytes.
        .bytes([".inference.ModelInferRequest", ".inference.ModelInferResponse"])
        .btree_map(["."])
        .out_dir(&fresh)
        .compile_fds(files)?;
    for entry in std::fs::read_dir(&fresh)? {
        let made = entry?.path();
        let kept = protocol.join("src/grpc/pb").join(made.file_name().context("no file name")?);
        let style = protocol.join("../../rustfmt.toml");
        let rustfmt = Command::new("rustfmt").arg("--config-path").arg(style).arg(&made).status();
        ensure!(rustfmt?.success(), "rustfmt failed");
        let made = std::fs::read_to_string(made)?;
        if check {
            let text = std::fs::read_to_string(&kept).unwrap_or_default();
            ensure!(made == text, "{} differs from proto/: run without --check", kept.display());
        } else {
            std::fs::write(kept, made)?;
        }
    }
    std::fs::remove_dir_all(fresh)?;
    Ok(())
}
