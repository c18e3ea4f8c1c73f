//! Flags from the keys of a scenario: the same names, bounds, defaults and words.
//!
//! A command has the flags that make sense for it, and a flag may be shorter than its key. Such differences are
//! declared here; everything else is the key's own declaration.

use crate::scenario::{Constant, General, Http, Infer, Live, Open, Request, Sim, Trust};
use clap::Arg;
use forebay_config::flags::Flags;
use std::time::Duration;

/// How long to measure where flags say nothing.
pub(super) const DEFAULT_LENGTH: Duration = Duration::from_secs(10);

/// Declares the flags of a section's keys on a command line: `adapt` takes each flag, and returns it changed, or
/// nothing where the command has none for its key.
macro_rules! flags {
    ($(#[doc = $doc:literal] $name:ident: $section:ty = $adapt:expr;)*) => {$(
        #[doc = $doc]
        #[derive(Debug, Clone, Default)]
        pub(crate) struct $name(Flags<$section>);

        impl $name {
            fn args() -> impl Iterator<Item = Arg> {
                Flags::<$section>::args().into_iter().filter_map($adapt)
            }

            /// The flags that were given, as they are written.
            #[allow(dead_code, reason = "not every command asks")]
            pub(super) fn given(&self) -> impl Iterator<Item = String> {
                let given: Vec<_> = self.0.given().collect();
                Self::args()
                    .filter(move |arg| given.contains(&arg.get_id().as_str()))
                    .filter_map(|arg| arg.get_long().map(|long| format!("--{long}")))
            }
        }

        impl std::ops::Deref for $name {
            type Target = Flags<$section>;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        impl clap::FromArgMatches for $name {
            fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
                Flags::from_arg_matches(matches).map(Self)
            }

            fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
                self.0.update_from_arg_matches(matches)
            }
        }

        impl clap::Args for $name {
            fn augment_args(command: clap::Command) -> clap::Command {
                command.args(Self::args())
            }

            fn augment_args_for_update(command: clap::Command) -> clap::Command {
                Self::augment_args(command)
            }
        }
    )*};
}

flags! {
    /// Settings of a whole run.
    GeneralFlags: General = |flag| Some(match flag.get_id().as_str() {
        "objectives" => flag.long("objective").num_args(1..).help_heading("Result"),
        "name" => flag.help_heading("Result"),
        _ => flag.help_heading(LOAD),
    });
    /// The seed alone.
    SeedFlag: General = |flag| (flag.get_id() == "seed").then_some(flag);
    /// The target, and the connections to it.
    LiveFlags: Live = |flag| Some(match flag.get_id().as_str() {
        "connections" => flag.short('c').help_heading(LOAD),
        _ => flag.help_heading(LOAD),
    });
    /// The trusted certificates.
    TrustFlags: Trust = |flag| Some(match flag.get_id().as_str() {
        "insecure" => flag.require_equals(true).help_heading(LOAD),
        _ => flag.conflicts_with("insecure").help_heading(LOAD),
    });
    /// How an open loop is spaced.
    OpenFlags: Open = |flag| Some(arrivals(flag).requires("rate"));
    /// How the steps of a search are spaced.
    SpacingFlag: Open = |flag| {
        let help = help_of(&flag).replace("default: constant", "default: the scenario's, or poisson");
        Some(arrivals(flag).help(help).help_heading("Search"))
    };
    /// An open loop at one rate.
    ConstantFlags: Constant = |flag| Some(match flag.get_id().as_str() {
        "for" => defaulted(flag, &format!("{DEFAULT_LENGTH:?}")),
        _ => flag,
    }.help_heading(LOAD));
    /// Settings of all kinds of requests. There is a single request, so it needs no weight.
    RequestFlags: Request = |flag| match flag.get_id().as_str() {
        "weight" => None,
        "headers" => Some(flag.long("header").short('H').help_heading(REQUESTS)),
        _ => Some(flag.help_heading(REQUESTS)),
    };
    /// An inference.
    InferFlags: Infer = |flag| Some(match flag.get_id().as_str() {
        "model" => flag.short('m').conflicts_with_all(["path", "method", "body"]),
        "version" => flag.long("model-version").requires("model"),
        "batch" => flag.value_delimiter(',').requires("model"),
        "input" => flag.num_args(1..).requires("model"),
        _ => flag.requires("model"),
    }.help_heading(REQUESTS));
    /// Any other request.
    HttpFlags: Http = |flag| Some(match flag.get_id().as_str() {
        "path" => defaulted(flag, "the URL's"),
        _ => flag,
    }.help_heading(REQUESTS));
    /// The policies of a simulation.
    PolicyFlags: Sim = |flag| match flag.get_id().as_str() {
        "policy" => Some(flag.conflicts_with("table")),
        "policies" => Some(flag.value_delimiter(',').value_name("NAME,…").requires("table")),
        _ => None,
    };
}

const LOAD: &str = "Load";
const REQUESTS: &str = "Requests";

/// Adds the default of a flag whose key has none.
fn defaulted(flag: Arg, default: &str) -> Arg {
    let help = format!("{} [default: {default}]", help_of(&flag));
    flag.help(help)
}

fn help_of(flag: &Arg) -> String {
    flag.get_help().map(ToString::to_string).unwrap_or_default()
}

fn arrivals(flag: Arg) -> Arg {
    flag.long("arrivals").help_heading(LOAD)
}
