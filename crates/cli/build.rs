//! Finds out which commit is built: a report about a program is worth little without it.
//!
//! A release build knows its commit from git, or from `archive.txt`, into which `git archive` writes it. A
//! development build does not, since every commit would compile all programs again. Without either, as from a
//! copied directory, the version stands alone.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=archive.txt");
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let version = variable("CARGO_PKG_VERSION");
    let origin = if variable("PROFILE") == "debug" {
        Some("debug build".to_owned())
    } else {
        archived(&folder).or_else(|| checked_out(&folder))
    };
    let text = origin.map_or(version.clone(), |origin| format!("{version} ({origin})"));
    println!("cargo:rustc-env=FOREBAY_VERSION={text}");
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// The commit that `git archive` wrote: `HASH DATE`.
fn archived(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join("archive.txt")).ok()?;
    let text = text.trim();
    (!text.is_empty() && !text.starts_with('$')).then(|| text.to_owned())
}

/// The commit of the working tree that this folder is tracked in: `HASH DATE`.
fn checked_out(folder: &Path) -> Option<String> {
    // Sources that were unpacked inside another project's repository are not that project's.
    git(folder, &["ls-files", "--error-unmatch", "build.rs"])?;
    // The log of HEAD grows with each commit and checkout. Where none is kept, HEAD and its branch say the same.
    let branch = git(folder, &["symbolic-ref", "-q", "HEAD"]);
    for name in ["logs/HEAD", "HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let file = folder.join(git(folder, &["rev-parse", "--git-path", name])?);
        // A file that does not exist would run this script at each build.
        if file.exists() {
            println!("cargo:rerun-if-changed={}", file.display());
        }
    }
    git(folder, &["log", "-1", "--format=%h %cs", "--abbrev=9"])
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
