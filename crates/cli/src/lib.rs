//! The part of a command line that all programs share: the version with its commit, and the files that a package
//! installs beside a program.
//!
//! Manual pages and completions that are kept by hand fall behind the flags. Each program therefore writes its own
//! from the declaration of its flags: `PROGRAM --generate DIR` fills a directory that is laid out like
//! `/usr/share`, so a package needs one command per program and knows no file names.

use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches, value_parser};
use clap_complete::Shell;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The version of the programs; in a release build with the commit and its date: `0.1.0 (c9120c0f1 2026-11-30)`.
pub const VERSION: &str = env!("FOREBAY_VERSION");

/// Identity of the flag.
const GENERATE: &str = "generate";

/// A program's command line: what it was given, or that files were written instead.
#[derive(Debug)]
pub enum Parsed<C> {
    /// The arguments of an ordinary start.
    Arguments(C),
    /// `--generate` was given, and its files are written.
    Generated,
}

/// Parses a command line, the program's name first.
///
/// # Errors
/// The arguments make no sense, or ask for help or the version (as [`clap::Parser::try_parse_from`]), or the files
/// of `--generate` can't be written.
pub fn parse<C: CommandFactory + FromArgMatches>(
    args: impl IntoIterator<Item = OsString>,
) -> Result<Parsed<C>, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut command = C::command().version(VERSION).arg(flag());
    // Alone it needs no subcommand; a command line without it is told which subcommands there are.
    let alone = args.get(1).is_some_and(|word| word.to_string_lossy().starts_with("--generate"));
    if alone {
        command = command.subcommand_required(false).arg_required_else_help(false);
    }
    let mut matches = command.try_get_matches_from_mut(args)?;
    match matches.remove_one::<PathBuf>(GENERATE) {
        Some(folder) => match generate(&declared::<C>(), &folder) {
            Ok(()) => Ok(Parsed::Generated),
            Err(error) => {
                let text = format!("{}: {error}\n", folder.display());
                Err(command.error(clap::error::ErrorKind::Io, text))
            }
        },
        None => arguments(&mut command, &mut matches).map(Parsed::Arguments),
    }
}

fn arguments<C: FromArgMatches>(
    command: &mut Command,
    matches: &mut ArgMatches,
) -> Result<C, clap::Error> {
    C::from_arg_matches_mut(matches).map_err(|error| error.format(command))
}

fn declared<C: CommandFactory>() -> Command {
    C::command().version(VERSION).arg(flag())
}

fn flag() -> Arg {
    Arg::new(GENERATE).long("generate").value_name("DIR").value_parser(value_parser!(PathBuf)).help(
        "Write manual pages and shell completions below DIR, such as /usr/local/share, and exit",
    )
}

/// Writes a program's manual pages and its completions for bash, zsh and fish, where packages have them.
fn generate(command: &Command, folder: &Path) -> io::Result<()> {
    let name = command.get_name();
    let pages = folder.join("man/man1");
    std::fs::create_dir_all(&pages)?;
    let mut built = command.clone().disable_help_subcommand(true);
    built.build();
    write_pages(&built, &pages)?;
    for (shell, place) in [
        (Shell::Bash, format!("bash-completion/completions/{name}")),
        (Shell::Zsh, format!("zsh/site-functions/_{name}")),
        (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), name, &mut text);
        let file = folder.join(place);
        file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(file, text)?;
    }
    Ok(())
}

/// Writes the page of a command and those of its subcommands. A subcommand without a help of its own stands for
/// another program, which writes its own page.
fn write_pages(command: &Command, folder: &Path) -> io::Result<()> {
    clap_mangen::Man::new(command.clone()).generate_to(folder)?;
    let own = |command: &&Command| !command.is_hide_set() && !command.is_disable_help_flag_set();
    command.get_subcommands().filter(own).try_for_each(|command| write_pages(command, folder))
}

#[cfg(test)]
mod tests;
