#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use clap::{Parser, Subcommand};

/// A program for tests.
#[derive(Debug, Parser)]
#[command(name = "lathe")]
struct Cli {
    /// Turns per minute
    #[arg(long)]
    speed: Option<u32>,
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Cut a thread
    Cut,
}

fn parsed(args: &[&str]) -> Result<Parsed<Cli>, clap::Error> {
    parse(std::iter::once(&"lathe").chain(args).map(OsString::from))
}

#[test]
fn an_ordinary_command_line_is_parsed_as_declared() {
    let Ok(Parsed::Arguments(cli)) = parsed(&["--speed", "300", "cut"]) else { unreachable!() };
    assert_eq!((cli.speed, matches!(cli.command, Task::Cut)), (Some(300), true));
    let missing = parsed(&["--speed", "300"]).unwrap_err().to_string();
    assert!(missing.contains("[subcommands: cut, help]"), "{missing}");
    let version = parsed(&["--version"]).unwrap_err().to_string();
    assert_eq!(version, format!("lathe {VERSION}\n"));
}

#[test]
fn a_build_for_development_says_so() {
    let expected = format!("{} (debug build)", env!("CARGO_PKG_VERSION"));
    if cfg!(debug_assertions) {
        assert_eq!(VERSION, expected);
    }
}

#[test]
fn pages_and_completions_are_written_where_packages_have_them() {
    let folder = std::env::temp_dir().join(format!("forebay-cli-{}", std::process::id()));
    let text = folder.display().to_string();
    assert!(matches!(parsed(&["--generate", &text]), Ok(Parsed::Generated)));
    for (file, expected) in [
        ("man/man1/lathe.1", "Turns per minute"),
        ("man/man1/lathe-cut.1", "Cut a thread"),
        ("bash-completion/completions/lathe", "--speed"),
        ("zsh/site-functions/_lathe", "#compdef lathe"),
        ("fish/vendor_completions.d/lathe.fish", "complete -c lathe"),
    ] {
        let found = std::fs::read_to_string(folder.join(file)).unwrap();
        assert!(found.contains(expected), "{file}: {found}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_that_names_it() {
    let error = parsed(&["--generate", "/dev/null/share"]).unwrap_err().to_string();
    assert!(error.contains("/dev/null/share"), "{error}");
}
