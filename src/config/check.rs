//! Checks that several sections of the configuration share. Each notes what it expected and what it
//! found, and goes on with a value that will do, so that everything else is checked too.

use forebay_config::form::{Text, text};
use forebay_config::{Form, Span, Table};
use http::HeaderName;
use std::collections::BTreeSet;
use std::time::Duration;

/// Longest name of a model or a version, in bytes: they are file names in a repository.
pub(crate) const MAX_MODEL_NAME: usize = 255;

pub(super) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Names that may be used once.
#[derive(Default)]
pub(super) struct Names(BTreeSet<String>);

impl Names {
    pub(super) fn take(&mut self, table: &Table<'_, '_>, key: &str, name: &str, span: Span) {
        if name.is_empty() {
            table.note(span, key, "expected a name, found \"\"");
        } else if !self.0.insert(name.to_owned()) {
            table.note(span, key, format!("expected each once, found {name:?} again"));
        }
    }
}

pub(super) fn header_name(table: &Table<'_, '_>, key: &str) -> Option<HeaderName> {
    let (name, span) = table.spanned::<String>(key)?;
    let header = name.parse().ok();
    if header.is_none() {
        table.note(span, key, format!("expected the name of a header, found {name:?}"));
    }
    header
}

/// A path to ask an endpoint for.
pub(super) const fn request_path() -> Text {
    text("PATH", "a path that begins with /", |path| {
        if !path.starts_with('/') {
            Some("a path that begins with /")
        } else if path.parse::<http::Uri>().is_err() || !path.is_ascii() {
            Some("a valid URL path")
        } else {
            None
        }
    })
}

/// The time that one of something periodic may take: what takes longer delays the next. `read` is the value of
/// `timeout`, or its default; `default` stands for it where nothing is said.
pub(super) fn timeout_within(
    table: &Table<'_, '_>,
    read: Duration,
    default: Duration,
    interval: Duration,
) -> Duration {
    let Some(span) = table.place_of("timeout") else { return default };
    if read > interval {
        let expected = format!("expected at most the interval ({interval:?})");
        table.note(span, "timeout", format!("{expected}, found {read:?}"));
    }
    read
}

/// The name of a header, or none.
pub(super) struct Header;

/// The name of a header, or none.
pub(super) const fn header() -> Header {
    Header
}

impl Form<Option<HeaderName>> for Header {
    fn read(
        &self,
        table: &Table<'_, '_>,
        key: &str,
        default: Option<HeaderName>,
    ) -> Option<HeaderName> {
        header_name(table, key).or(default)
    }

    fn show(&self, value: &Option<HeaderName>) -> Option<String> {
        value.as_ref().map(|name| format!("{:?}", name.as_str()))
    }

    fn expected(&self) -> String {
        "the name of a header".to_owned()
    }

    fn kind(&self) -> &'static str {
        "HEADER"
    }
}

/// Any number of names of headers.
pub(super) struct HeaderNames;

impl Form<Vec<HeaderName>> for HeaderNames {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Vec<HeaderName>) -> Vec<HeaderName> {
        let Some((items, _)) = table.items::<String>(key) else { return default };
        let mut names = Vec::new();
        for (text, span) in items.into_iter().flatten() {
            match text.parse() {
                Ok(name) => names.push(name),
                Err(_) => {
                    table.note(span, key, format!("expected the name of a header, found {text:?}"));
                }
            }
        }
        names
    }

    fn show(&self, names: &Vec<HeaderName>) -> Option<String> {
        let names: Vec<_> = names.iter().map(|name| format!("{:?}", name.as_str())).collect();
        Some(format!("[{}]", names.join(", ")))
    }

    fn expected(&self) -> String {
        "a list of names of headers".to_owned()
    }

    fn kind(&self) -> &'static str {
        "HEADER"
    }

    fn is_list(&self) -> bool {
        true
    }
}
