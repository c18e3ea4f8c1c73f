//! Reading what several tables of a scenario have in common.

use forebay_config::{FromToml, Table};

/// The value at `key`, or `instead` if there is none, which is noted.
pub(super) fn required<T: FromToml>(table: &Table<'_, '_>, key: &str, instead: T) -> T {
    table.required(key).unwrap_or(instead)
}

/// The word at `kind`; the first of `known` in place of one that is missing or unknown.
pub(super) fn kind_of(table: &Table<'_, '_>, known: &[&'static str]) -> &'static str {
    let first = known.first().copied().unwrap_or_default();
    let Some((found, span)) = table.required_spanned::<String>("kind") else { return first };
    known.iter().copied().find(|kind| *kind == found).unwrap_or_else(|| {
        let known: Vec<String> = known.iter().map(|kind| format!("{kind:?}")).collect();
        table.note(span, "kind", format!("expected {}, found {found:?}", known.join(" or ")));
        first
    })
}
