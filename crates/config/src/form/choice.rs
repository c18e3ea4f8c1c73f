//! Values that are chosen among a few, each by its name.

use crate::diagnostic::Span;
use crate::section::Form;
use crate::table::Table;

/// One of these, by its name.
pub struct OneOf<T: 'static>(&'static [(&'static str, T)]);

/// One of `names`.
pub const fn one_of<T>(names: &'static [(&'static str, T)]) -> OneOf<T> {
    OneOf(names)
}

impl<T: Copy + PartialEq> Form<T> for OneOf<T> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: T) -> T {
        table.choice(key, self.0, default)
    }

    fn show(&self, value: &T) -> Option<String> {
        let found = self.0.iter().find(|(_, known)| known == value);
        found.map(|(name, _)| format!("{name:?}"))
    }

    fn expected(&self) -> String {
        names(self.0).join(" or ")
    }

    fn kind(&self) -> &'static str {
        "NAME"
    }
}

/// A list of some of these, each by its name.
pub struct SomeOf<T: 'static>(&'static [(&'static str, T)]);

/// A list of some of `names`.
pub const fn some_of<T>(names: &'static [(&'static str, T)]) -> SomeOf<T> {
    SomeOf(names)
}

impl<T: Copy + PartialEq> Form<Vec<T>> for SomeOf<T> {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: Vec<T>) -> Vec<T> {
        let Some((names, _)) = table.items::<String>(key) else { return default };
        let known = |(name, span): (String, Span)| {
            let found = self.0.iter().find(|(known, _)| *known == name);
            if found.is_none() {
                table.note(span, key, format!("expected {}, found {name:?}", self.expected()));
            }
            found.map(|(_, value)| *value)
        };
        names.into_iter().flatten().filter_map(known).collect()
    }

    fn show(&self, value: &Vec<T>) -> Option<String> {
        let name = |value: &T| {
            let found = self.0.iter().find(|(_, known)| known == value);
            found.map(|(name, _)| format!("{name:?}"))
        };
        let names: Vec<_> = value.iter().filter_map(name).collect();
        Some(format!("[{}]", names.join(", ")))
    }

    fn expected(&self) -> String {
        format!("some of {}", names(self.0).join(", "))
    }

    fn kind(&self) -> &'static str {
        "NAME"
    }

    fn is_list(&self) -> bool {
        true
    }
}

/// As they stand in a file.
fn names<T>(named: &[(&str, T)]) -> Vec<String> {
    named.iter().map(|(name, _)| format!("{name:?}")).collect()
}
