//! Checks that several sections of the configuration share. Each notes what it expected and what it
//! found, and goes on with a value that will do, so that everything else is checked too.

use forebay_config::{Form, Span, Table};
use http::HeaderName;
use std::collections::BTreeSet;
use std::time::Duration;

/// Longest name of a model or a version, in bytes: they are file names in a repository.
pub(crate) const MAX_MODEL_NAME: usize = 255;

pub(super) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
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
pub(super) fn absolute_path(table: &Table<'_, '_>, key: &str, default: &str) -> String {
    let Some((path, span)) = table.spanned::<String>(key) else { return default.to_owned() };
    if !path.starts_with('/') {
        table.note(span, key, format!("expected a path that begins with /, found {path:?}"));
    } else if path.parse::<http::Uri>().is_err() || !path.is_ascii() {
        table.note(span, key, format!("expected a path as it stands in a URL, found {path:?}"));
    }
    path
}

/// Time between two of something that goes on for ever; less than a millisecond is a flood.
pub(super) fn interval(table: &Table<'_, '_>, key: &str, default: Duration) -> Duration {
    let Some((value, span)) = table.spanned::<Duration>(key) else { return default };
    if value < millis(1) {
        table.note(span, key, format!("expected 1ms or more, found {value:?}"));
        return default;
    }
    value
}

/// Time that one of something periodic may take: what takes longer delays the next.
pub(super) fn timeout_within(
    table: &Table<'_, '_>,
    key: &str,
    default: Duration,
    interval: Duration,
) -> Duration {
    let value = positive(table, key, default);
    if let Some((found, span)) = table.spanned::<Duration>(key)
        && found > interval
    {
        let expected = format!("expected at most the interval ({interval:?})");
        table.note(span, key, format!("{expected}, found {found:?}"));
    }
    value
}

pub(super) fn at_least(table: &Table<'_, '_>, key: &str, least: Duration) -> Option<Duration> {
    let (value, span) = table.spanned::<Duration>(key)?;
    if value < least {
        table.note(span, key, format!("expected {least:?} or more, found {value:?}"));
    }
    Some(value.max(least))
}

pub(super) fn positive(table: &Table<'_, '_>, key: &str, default: Duration) -> Duration {
    match table.spanned::<Duration>(key) {
        Some((Duration::ZERO, span)) => {
            table.note(span, key, "expected more than 0, found 0");
            default
        }
        Some((value, _)) => value,
        None => default,
    }
}

/// Index of the pool with this name; that there is none is noted.
pub(super) fn known_pool(
    table: &Table<'_, '_>,
    pools: &[String],
    name: &str,
    span: Span,
) -> Option<usize> {
    let found = pools.iter().position(|pool| *pool == name);
    if found.is_none() {
        let known: Vec<_> = pools.iter().map(|pool| format!("{pool:?}")).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        table.note(span, "pool", format!("expected a pool ({known}), found {name:?}"));
    }
    found
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

    fn kind(&self) -> &'static str {
        "HEADER"
    }
}
