//! Values that point at something: a file, a section of the same file.

use crate::diagnostic::Span;
use crate::form::Shown;
use crate::section::Form;
use crate::table::Table;
use crate::value::FromToml;
use std::path::PathBuf;

/// A path, which starts at the folder of the file where it is relative.
pub struct PathInFile;

/// A path, which starts at the folder of the file ([`Document::in_folder`](crate::Document::in_folder)) where it is
/// relative.
pub const fn path_in_file() -> PathInFile {
    PathInFile
}

impl Form<PathBuf> for PathInFile {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: PathBuf) -> PathBuf {
        table.get::<PathBuf>(key).map_or(default, |path| table.document().folder().join(path))
    }

    fn show(&self, value: &PathBuf) -> Option<String> {
        Some(value.shown())
    }

    fn expected(&self) -> String {
        PathBuf::EXPECTED.to_owned()
    }

    fn kind(&self) -> &'static str {
        PathBuf::KIND
    }
}

/// The name of a section of the file.
pub struct SectionName(&'static str);

/// The name of one of the sections `[section.NAME]` of the file, which are read by then.
pub const fn section_name(section: &'static str) -> SectionName {
    SectionName(section)
}

impl SectionName {
    /// Notes that there is no section of this name, if there is none.
    pub fn check(&self, table: &Table<'_, '_>, key: &str, name: &str, span: Span) {
        let known = table.document().names(self.0);
        if known.iter().any(|known| known == name) {
            return;
        }
        let known: Vec<_> = known.iter().map(|name| format!("{name:?}")).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        table.note(span, key, format!("expected a {} ({known}), found {name:?}", self.0));
    }
}

impl Form<String> for SectionName {
    fn read(&self, table: &Table<'_, '_>, key: &str, default: String) -> String {
        let Some((name, span)) = table.spanned::<String>(key) else { return default };
        self.check(table, key, &name, span);
        name
    }

    fn show(&self, value: &String) -> Option<String> {
        Some(value.shown())
    }

    fn expected(&self) -> String {
        format!("the name of a {}", self.0)
    }

    fn kind(&self) -> &'static str {
        String::KIND
    }
}

/// Tables that have a declaration of their own.
pub struct Nested(&'static str);

/// Tables that have a declaration of their own, by which the program reads them; `expected` says in words what
/// stands here. The key is declared for its documentation.
pub const fn nested(expected: &'static str) -> Nested {
    Nested(expected)
}

impl Form<()> for Nested {
    fn read(&self, _: &Table<'_, '_>, _: &str, (): ()) {}

    fn show(&self, (): &()) -> Option<String> {
        None
    }

    fn expected(&self) -> String {
        self.0.to_owned()
    }

    fn kind(&self) -> &'static str {
        "TABLE"
    }
}
