//! The reference of the configuration, as its declarations have it: a file that has every key
//! (`conf/reference.toml`), and a page for reading (`docs/reference/configuration.md`).
//!
//! The keys, their documentation, their defaults and what is allowed come from where they are declared. Here
//! stands only the order of the sections, and which example each of them is shown by: a file that can be read
//! needs names and addresses.

use super::listener::{HttpKeys, ListenerKeys, Tcp};
use super::poll::{CustomPollKeys, PollKeys};
use super::pool::{EndpointKeys, Fleet, Pool};
use super::probe::ProbeKeys;
use super::route::{RouteKeys, VariantKeys, WeightKeys};
use super::shared_store::SharedKeys;
use super::tls::{CertificateKeys, TlsKeys};
use super::{CacheMemory, Config, Limits, RouteCache, RouteRollout, Server, Shadow};
use forebay_config::pool::{Ejection, Hedge, ProbeSchedule, Queue, Retry};
use forebay_config::{Key, Section, comment, listed};

/// A table of the file.
struct Part {
    /// The heading of a chapter that begins with it.
    chapter: Option<&'static str>,
    about: &'static [&'static str],
    /// Its form in the file, such as `[limits]`; empty where the table before goes on.
    header: &'static str,
    /// Keys that stand in it without an explanation.
    given: &'static str,
    keys: Vec<Key>,
}

/// The table `header`, with the keys of `S`.
fn part<S: Section>(header: &'static str) -> Part {
    Part { chapter: None, about: S::ABOUT, header, given: "", keys: S::keys() }
}

/// An example of a table whose keys are explained elsewhere.
fn example(header: &'static str, about: &'static [&'static str], given: &'static str) -> Part {
    Part { chapter: None, about, header, given, keys: Vec::new() }
}

impl Part {
    /// At the beginning of a chapter, whose heading says what it is about.
    fn chapter(self, chapter: &'static str) -> Self {
        Self { chapter: Some(chapter), about: &[], ..self }
    }

    fn about(self, about: &'static [&'static str]) -> Self {
        Self { about, ..self }
    }

    /// With `lines` before its keys.
    fn given(self, lines: &'static str) -> Self {
        Self { given: lines, ..self }
    }

    /// With the keys of a further section.
    fn and<S: Section>(mut self) -> Self {
        self.keys.extend(S::keys());
        self
    }

    /// Without keys that are explained elsewhere.
    fn without(mut self, names: &[&str]) -> Self {
        self.keys.retain(|key| !names.contains(&key.name));
        self
    }
}

/// The file, in its order.
fn parts() -> Vec<Part> {
    [process(), listeners(), pools(), other_pools(), routes()].into_iter().flatten().collect()
}

fn process() -> Vec<Part> {
    vec![part::<Server>("[server]").chapter("the process; changes need a restart")]
}

fn listeners() -> Vec<Part> {
    vec![
        part::<ListenerKeys>("[[listener]]")
            .and::<HttpKeys>()
            .chapter("where requests come in; changes need a restart"),
        example(
            "[[listener]]",
            &[
                " A listener at which TLS ends; one of protocol = \"tcp\" can have it, too. A PROXY header comes before",
                " it. The files are read again by a reload: new connections get a renewed certificate, those that are",
                " open stay. A handshake must be done within limits.header_timeout.",
            ],
            "address = \"127.0.0.1:8444\"\nprotocols = [\"http/1.1\", \"h2\"]\n",
        ),
        part::<CertificateKeys>("[listener.tls]").and::<TlsKeys>().about(&[]),
        part::<Tcp>("[[listener]]").given("address = \"127.0.0.1:8443\"\nprotocol = \"tcp\"\n"),
        part::<Limits>("[limits]").chapter("bounds of one request"),
        part::<CacheMemory>("[cache]").chapter("the response cache"),
        part::<SharedKeys>("[cache.shared]"),
    ]
}

fn pools() -> Vec<Part> {
    vec![
        part::<EndpointKeys>("[pool.models]")
            .and::<Pool>()
            .chapter("pools: interchangeable endpoints"),
        part::<Queue>("[pool.models.queue]"),
        part::<ProbeKeys>("[pool.models.probe]").and::<ProbeSchedule>(),
        part::<PollKeys>("[pool.models.poll]"),
        part::<Retry>("[pool.models.retry]"),
        part::<Hedge>("[pool.models.hedge]"),
        part::<Ejection>("[pool.models.ejection]"),
    ]
}

fn other_pools() -> Vec<Part> {
    vec![
        part::<Fleet>("[pool.local.fleet]"),
        part::<CustomPollKeys>("[pool.local.poll]").given("kind = \"custom\"\n"),
        example(
            "[pool.plain]",
            &[
                " A pool for connections at Layer 4. All of the above holds here too: a connection is picked an",
                " endpoint as a request is, and connecting is tried again elsewhere within the same budget.",
            ],
            "endpoints = [\"127.0.0.1:8101\", \"127.0.0.1:8102\"]\nprobe = { kind = \"tcp\" }\n",
        ),
    ]
}

fn routes() -> Vec<Part> {
    vec![
        part::<RouteKeys>("[[route]]")
            .chapter("routes: which requests go to which pool; the first match wins"),
        part::<RouteCache>("[route.cache]"),
        example(
            "[[route]]",
            &[
                " A route that is split: each request is answered by one of its variants, drawn at random by weight.",
            ],
            "name = \"split\"\nmodels = [\"bert\"]\n",
        ),
        part::<VariantKeys>("[[route.variant]]").and::<WeightKeys>().without(&["model", "version"]),
        part::<VariantKeys>("[[route.variant]]")
            .about(&[" Another one, which asks for another model."])
            .without(&["name", "pool"])
            .given("name = \"canary\"\npool = \"models\"\nweight = 50\n"),
        part::<Shadow>("[route.shadow]"),
        part::<RouteRollout>("[route.rollout]"),
    ]
}

const ABOUT_FILE: &str = "\
# Every key that forebay knows, with its default and the reason for it.
#
# Units are written in the value (\"250ms\", \"64KiB\", \"20%\"); a bare number where a unit is due is
# refused. A key that is left out has the default shown here, unless it says \"required\".
# `forebay check FILE` reports everything that is wrong with a file at once.
#
# This file is written by `forebay check --reference`.
";

const ABOUT_PAGE: &str = "\
# Configuration reference

Every key of the proxy's configuration file, with what is allowed, its default and the reason for it. The same
as a file that can be used stands in [conf/reference.toml](../../conf/reference.toml).

Units are written in the value (`\"250ms\"`, `\"64KiB\"`, `\"20%\"`); a bare number where a unit is due is refused.
`forebay check FILE` reports everything that is wrong with a file at once, each with its line.

This page is written by `forebay check --reference=markdown`.
";

/// The columns of the line under which a chapter of the file begins.
const RULE: usize = 96;

impl Config {
    /// A configuration file that has every key that there is, with its documentation and its default.
    pub fn reference_file() -> String {
        let mut text = ABOUT_FILE.to_owned();
        for part in parts() {
            text.push('\n');
            if let Some(chapter) = part.chapter {
                let begun = format!("# --- {chapter} ");
                text.push_str(&format!("{begun:-<RULE$}\n\n"));
            }
            text.push_str(&comment(part.about));
            text.push_str(&format!("{}\n{}", part.header, part.given));
            if !part.given.is_empty() && !part.keys.is_empty() {
                text.push('\n');
            }
            text.push_str(&listed(&part.keys));
        }
        text
    }

    /// The same as a page in Markdown.
    pub fn reference_page() -> String {
        let mut text = ABOUT_PAGE.to_owned();
        for part in parts() {
            if let Some(chapter) = part.chapter {
                let (first, rest) = chapter.split_at(1);
                text.push_str(&format!("\n## {}{rest}\n", first.to_uppercase()));
            }
            text.push_str(&format!("\n### `{}`\n", part.header));
            text.push_str(&paragraph(part.about));
            if !part.given.is_empty() {
                text.push_str(&format!("\n```text\n{}\n{}```\n", part.header, part.given));
            }
            part.keys.iter().for_each(|key| text.push_str(&entry(key)));
        }
        text
    }
}

/// A key on the page: its name, what is allowed, its default, and what it is about.
fn entry(key: &Key) -> String {
    let default = match &key.default {
        Some(default) => format!("default `{default}`"),
        None if key.is_required => format!("required, for example `{}`", key.shown),
        None => format!("for example `{}`", key.shown),
    };
    format!("\n**`{}`**: {}; {default}\n{}", key.name, key.expected, paragraph(key.doc))
}

/// Documentation in Markdown: lines that are set in, which are a table of words, stay as they are.
fn paragraph(lines: &[&str]) -> String {
    let mut text = String::new();
    let mut in_table = false;
    for (place, line) in lines.iter().enumerate() {
        let is_set_in = line.starts_with("  ");
        if is_set_in != in_table {
            text.push_str(if is_set_in { "\n```text\n" } else { "```\n" });
            in_table = is_set_in;
        } else if place == 0 {
            text.push('\n');
        }
        text.push_str(&format!("{}\n", if is_set_in { &line[3..] } else { line.trim() }));
    }
    if in_table {
        text.push_str("```\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_default_in_its_line_says_what_holds_without_it() {
        for part in parts() {
            for key in part.keys.iter().filter(|key| key.default.is_none()) {
                let doc = key.doc.concat().to_lowercase();
                let says = |word: &str| doc.contains(word);
                // A key may also be required beside another only.
                let fits = says("required") || (says("default: ") && !key.is_required);
                assert!(fits, "{} {}: neither required nor a default", part.header, key.name);
                assert!(!key.shown.is_empty(), "{} {}: no example", part.header, key.name);
            }
        }
    }

    #[test]
    fn words_in_columns_stay_in_columns() {
        let text = paragraph(&[" One of:", "   a  first", "   bc second", " And more."]);
        assert_eq!(text, "\nOne of:\n\n```text\na  first\nbc second\n```\nAnd more.\n");
    }
}
