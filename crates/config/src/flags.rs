//! Flags of a command line from the keys of a section: one for each, of the same name, with the same form.
//!
//! Each key of the file is a flag on the command line and the other way round, read by the same code and
//! told by the same words. A flag wins over the file, and the file over the default.

use crate::document::Document;
use crate::section::{Key, Section};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// The flags that were given, for the keys of `S`.
#[derive(Debug, Clone)]
pub struct Flags<S> {
    /// By key: the same as a file would say it, a line each.
    given: BTreeMap<&'static str, String>,
    section: PhantomData<S>,
}

impl<S> Default for Flags<S> {
    fn default() -> Self {
        Self { given: BTreeMap::new(), section: PhantomData }
    }
}

impl<S: Section> Flags<S> {
    /// The flags, each with the name of its key as its identity, to be changed before they are added to a
    /// command.
    pub fn args() -> Vec<Arg> {
        S::keys().iter().map(flag::<S>).collect()
    }

    /// Whether the flag of this key was given.
    pub fn has(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// The names of the keys whose flags were given.
    pub fn given(&self) -> impl Iterator<Item = &'static str> {
        self.given.keys().copied()
    }

    /// The section as the flags say, and as `below` where they say nothing.
    pub fn over(&self, below: S) -> S {
        // Each flag was checked when it was parsed.
        let text: String = self.given.values().map(String::as_str).collect();
        S::read_over(&Document::parse(&text).root(), below)
    }
}

impl<S: Section> FromArgMatches for Flags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: Key| {
            // A command need not have all of them.
            let values = matches.try_get_many::<String>(key.name).ok().flatten()?;
            let values: Vec<&str> = values.map(String::as_str).collect();
            let value = values.join(", ");
            let value = if key.is_list { format!("[{value}]") } else { value };
            Some((key.name, format!("{} = {value}\n", key.name)))
        };
        Ok(Self { given: S::keys().into_iter().filter_map(given).collect(), section: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<S: Section> clap::Args for Flags<S> {
    fn augment_args(command: Command) -> Command {
        command.args(Self::args())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn flag<S: Section>(key: &Key) -> Arg {
    let (name, is_list) = (key.name, key.is_list);
    // As long as the process lives, as the command line itself.
    let long: &'static str = Box::leak(name.replace('_', "-").into_boxed_str());
    let flag = Arg::new(name)
        .long(long)
        .value_name(key.kind)
        .value_parser(move |text: &str| written::<S>((name, is_list), text))
        .help(help(key));
    if is_list {
        return flag.action(ArgAction::Append);
    }
    if key.kind == "BOOL" { flag.num_args(0..=1).default_missing_value("true") } else { flag }
}

/// The documentation in one paragraph, without a full stop at its end, and with the default.
fn help(key: &Key) -> String {
    let words: Vec<_> = key.doc.iter().map(|line| line.trim()).collect();
    let words = words.join(" ");
    let words = words.strip_suffix('.').unwrap_or(&words);
    match &key.default {
        Some(default) if !key.is_list => {
            format!("{words} [default: {}]", default.trim_matches('"'))
        }
        _ => words.to_owned(),
    }
}

/// The value as a file has it.
fn written<S: Section>(key: (&str, bool), text: &str) -> Result<String, String> {
    let quoted = quoted(text);
    let Some(error) = error_in::<S>(key, &quoted) else { return Ok(quoted) };
    // Numbers and truth values stand bare.
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_');
    if !text.chars().all(is_word) {
        return Err(error);
    }
    match error_in::<S>(key, text) {
        None => Ok(text.to_owned()),
        // The error concerns the number, not its being text.
        Some(error) if text.parse::<f64>().is_ok() => Err(error),
        Some(_) => Err(error),
    }
}

/// The first thing that is wrong with this value of a key, in words.
fn error_in<S: Section>((name, is_list): (&str, bool), value: &str) -> Option<String> {
    let text = if is_list { format!("{name} = [{value}]") } else { format!("{name} = {value}") };
    let document = Document::parse(&text);
    S::read_over(&document.root(), S::default());
    let found = document.finish().err()?;
    // The name stands before it, which the command line names itself; that other keys are missing is no
    // matter of this one. A text that is not TOML has no name.
    let of_key = |message: &str| match message.split_once(": ") {
        Some((key, words)) if key == name => Some(words.to_owned()),
        Some((key, _)) if S::keys().iter().any(|known| known.name == key) => None,
        _ => Some(message.to_owned()),
    };
    found.iter().find_map(|error| of_key(&error.message))
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        if c == '"' || c == '\\' || c.is_control() {
            out.push_str(&format!("\\U{:08X}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::form::{any, list_within, optional, positive, required, within};
    use clap::Parser;
    use std::time::Duration;

    crate::section! {
        /// The section under test.
        struct Tested {
            /// How many,
            /// at most.
            most_of_all: usize = 7, within(1..=9);
            /// How long. Default: none.
            time: Option<Duration> = None, optional(positive()), shown "\"5s\"";
            /// Whether.
            is_so: bool = false, any();
            /// Its name.
            name: String = "n".to_owned(), any();
            /// Sizes, one after the other.
            sizes: Vec<u64> = Vec::new(), list_within(1..=9);
        }
    }

    crate::section! {
        /// Keys that must be there.
        struct Due {
            /// Where to.
            to: String = String::new(), required(any()), shown "\"there\"";
            /// How long.
            length as "for": Duration = Duration::from_secs(1), required(positive()), shown "\"5s\"";
        }
    }

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        flags: Flags<Tested>,
    }

    fn parse(words: &[&str]) -> Result<Tested, String> {
        let cli = Cli::try_parse_from([&["test"], words].concat());
        cli.map(|cli| cli.flags.over(Tested::default())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_wins_over_what_is_below_it_and_is_read_as_a_file_is() {
        assert_eq!(parse(&[]).unwrap(), Tested::default());
        let found =
            parse(&["--most-of-all", "9", "--time=2s", "--is-so", "--name", "a \"b\"\n5"]).unwrap();
        let (time, name) = (Some(Duration::from_secs(2)), "a \"b\"\n5".to_owned());
        let sizes = Vec::new();
        assert_eq!(found, Tested { most_of_all: 9, time, is_so: true, name, sizes });
        assert_eq!(parse(&["--sizes", "1", "--sizes=9"]).unwrap().sizes, [1, 9]);
        assert_eq!(parse(&["--name", "5"]).unwrap().name, "5", "a number may be a name");
        for (words, expected) in [
            (&["--most-of-all", "10"][..], "expected 1 to 9, found 10"),
            (&["--most-of-all", "many"], "expected a whole number"),
            (&["--most-of-all", "1\nis_so = true"], "expected a whole number"),
            (&["--time", "5"], "expected a duration"),
            (&["--time", "0s"], "expected more than 0"),
            (&["--is-so=maybe"], "expected true or false"),
            (&["--sizes", "1", "--sizes", "10"], "expected 1 to 9, found 10"),
            (&["--sizes", "1]\nis_so = [true"], "expected a whole number"),
        ] {
            let said = parse(words).unwrap_err();
            assert!(said.contains(expected), "{expected}\n--- not in\n{said}");
        }
    }

    #[test]
    fn keys_that_a_file_must_have_are_defaulted_by_the_program_and_bounded_all_the_same() {
        #[derive(Debug, Parser)]
        struct Cli {
            #[command(flatten)]
            flags: Flags<Due>,
        }
        let parse = |words: &[&str]| Cli::try_parse_from([&["test"], words].concat());
        let below = Due { to: "here".to_owned(), length: Duration::from_secs(7) };
        let flags = parse(&["--for", "9s"]).unwrap().flags;
        assert_eq!((flags.has("for"), flags.has("to")), (true, false));
        assert_eq!(flags.given().collect::<Vec<_>>(), ["for"]);
        let length = Duration::from_secs(9);
        assert_eq!(flags.over(below.clone()), Due { length, ..below });
        let error = parse(&["--for", "0s"]).unwrap_err().to_string();
        assert!(error.contains("expected more than 0"), "{error}");
    }

    #[test]
    fn help_tells_the_documentation_and_the_default() {
        let help = <Cli as clap::CommandFactory>::command().render_help().to_string();
        for expected in [
            "--most-of-all <N>",
            "How many, at most [default: 7]",
            "--time <TIME>",
            "How long. Default: none\n",
            "--is-so [<BOOL>]",
            "Whether [default: false]",
        ] {
            assert!(help.contains(expected), "{expected}\n--- not in\n{help}");
        }
    }
}
