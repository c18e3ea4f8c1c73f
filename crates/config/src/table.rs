use crate::diagnostic::Span;
use crate::document::Document;
use crate::excerpt::brief;
use crate::value::{FromToml, describe};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

impl<'s> Document<'s> {
    /// The table at the top.
    pub fn root(&self) -> Table<'_, 's> {
        Table::new(self, String::new(), &self.root, 0..0)
    }
}

/// One table of a [`Document`]. Dropping it reports unknown keys.
pub struct Table<'d, 's> {
    document: &'d Document<'s>,
    path: String,
    entries: &'d DeTable<'s>,
    span: Span,
    asked: RefCell<BTreeSet<String>>,
}

impl<'d, 's> Table<'d, 's> {
    pub(crate) fn new(
        document: &'d Document<'s>,
        path: String,
        entries: &'d DeTable<'s>,
        span: Span,
    ) -> Self {
        Self { document, path, entries, span, asked: RefCell::default() }
    }

    /// The position of the table.
    pub fn span(&self) -> Span {
        self.span.clone()
    }

    /// The document, to note errors in.
    pub fn document(&self) -> &'d Document<'s> {
        self.document
    }

    /// Whether there is a value at `key`, valid or not.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _)| name.get_ref() == key)
    }

    /// The position of the value of `key`, valid or not; `None` if it is absent.
    pub fn place_of(&self, key: &str) -> Option<Span> {
        self.entry(key).map(Spanned::span)
    }

    /// Notes the value of `key`, if there is one: it means something only with `beside`, another key and its
    /// value, and that is not there.
    pub fn refuse(&self, key: &str, beside: &str) {
        if let Some(span) = self.place_of(key) {
            self.note(span, key, format!("expected {beside} beside it"));
        }
    }

    /// The value of `key`, or `None` if it is absent or not a `T` (which is noted).
    pub fn get<T: FromToml>(&self, key: &str) -> Option<T> {
        self.spanned(key).map(|(value, _)| value)
    }

    /// The value of `key`, or `default`.
    pub fn or<T: FromToml>(&self, key: &str, default: T) -> T {
        self.get(key).unwrap_or(default)
    }

    /// Like [`Table::get`], with its place in the file.
    pub fn spanned<T: FromToml>(&self, key: &str) -> Option<(T, Span)> {
        let value = self.entry(key)?;
        match T::from_toml(value.get_ref()) {
            Ok(read) => Some((read, value.span())),
            Err(problem) => {
                let found = problem.unwrap_or_else(|| describe(value.get_ref()));
                self.note(value.span(), key, format!("expected {}, found {found}", T::EXPECTED));
                None
            }
        }
    }

    /// The items of the array at `key`, each with its place, and the array's own. An item that is
    /// not a `T` is noted where it stands, and `None` here.
    #[allow(clippy::type_complexity, reason = "said in one sentence")]
    pub fn items<T: FromToml>(&self, key: &str) -> Option<(Vec<Option<(T, Span)>>, Span)> {
        let value = self.entry(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            let found = describe(value.get_ref());
            self.note(value.span(), key, format!("expected an array, found {found}"));
            return None;
        };
        let read = |item: &Spanned<DeValue<'_>>| match T::from_toml(item.get_ref()) {
            Ok(read) => Some((read, item.span())),
            Err(problem) => {
                let found = problem.unwrap_or_else(|| describe(item.get_ref()));
                self.note(item.span(), key, format!("expected {}, found {found}", T::EXPECTED));
                None
            }
        };
        Some((items.iter().map(read).collect(), value.span()))
    }

    /// The value of `key`; its absence is noted.
    pub fn required<T: FromToml>(&self, key: &str) -> Option<T> {
        self.required_spanned(key).map(|(value, _)| value)
    }

    /// Like [`Table::required`], with its place in the file.
    pub fn required_spanned<T: FromToml>(&self, key: &str) -> Option<(T, Span)> {
        if !self.has(key) {
            self.note(self.span.clone(), key, format!("expected {}, found nothing", T::EXPECTED));
        }
        self.spanned(key)
    }

    /// The value of `key` if it lies within `range`, else `default`; a value outside is noted.
    pub fn within<T>(&self, key: &str, range: std::ops::RangeInclusive<T>, default: T) -> T
    where
        T: FromToml + PartialOrd + Display,
    {
        let Some((value, span)) = self.spanned::<T>(key) else { return default };
        if range.contains(&value) {
            return value;
        }
        let (min, max) = range.into_inner();
        self.note(span, key, format!("expected {min} to {max}, found {value}"));
        default
    }

    /// The choice that the string at `key` names, or `default`.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], default: T) -> T {
        let Some((name, span)) = self.spanned::<String>(key) else { return default };
        if let Some((_, choice)) = choices.iter().find(|(known, _)| *known == name) {
            return *choice;
        }
        let known: Vec<_> = choices.iter().map(|(known, _)| format!("{known:?}")).collect();
        self.note(span, key, format!("expected {}, found {name:?}", known.join(" or ")));
        default
    }

    /// The kind of `known` that the key `kind` names; `None` if it is absent or names none, which is noted.
    pub fn kind(&self, known: &[&'static str]) -> Option<&'static str> {
        let (found, span) = self.required_spanned::<String>("kind")?;
        let kind = known.iter().copied().find(|kind| *kind == found);
        if kind.is_none() {
            let known: Vec<_> = known.iter().map(|kind| format!("{kind:?}")).collect();
            let message = format!("expected {}, found {found:?}", known.join(" or "));
            self.note(span, "kind", message);
        }
        kind
    }

    /// The table at `key`, if there is one.
    pub fn table(&self, key: &str) -> Option<Table<'d, 's>> {
        let value = self.entry(key)?;
        self.as_table(value, key, self.join(key))
    }

    /// The table at `key`, or an empty one: every key in it has a default.
    pub fn table_or_empty(&self, key: &str) -> Table<'d, 's> {
        static EMPTY: std::sync::OnceLock<DeTable<'static>> = std::sync::OnceLock::new();
        self.table(key).unwrap_or_else(|| {
            let empty = EMPTY.get_or_init(DeTable::new);
            Table::new(self.document, self.join(key), empty, self.span.clone())
        })
    }

    /// The array of tables at `key`; empty if it is absent.
    pub fn tables(&self, key: &str) -> Vec<Table<'d, 's>> {
        let Some(value) = self.entry(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let found = describe(value.get_ref());
            self.note(value.span(), key, format!("expected tables ([[{key}]]), found {found}"));
            return Vec::new();
        };
        let path = format!("{}.*", self.join(key));
        items.iter().filter_map(|item| self.as_table(item, key, path.clone())).collect()
    }

    /// The items of the array at `key`, each a name or a table; empty if it is absent.
    pub fn names_or_tables(&self, key: &str) -> Vec<NameOrTable<'d, 's>> {
        let Some(value) = self.entry(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let found = describe(value.get_ref());
            self.note(value.span(), key, format!("expected an array, found {found}"));
            return Vec::new();
        };
        let path = format!("{}.*", self.join(key));
        let read = |item: &'d Spanned<DeValue<'s>>| match item.get_ref() {
            DeValue::String(name) => Some(NameOrTable::Name(name.to_string(), item.span())),
            _ => self.as_table(item, key, path.clone()).map(NameOrTable::Table),
        };
        items.iter().filter_map(read).collect()
    }

    /// The value of `key`, a name or a table, if there is one.
    pub fn name_or_table(&self, key: &str) -> Option<NameOrTable<'d, 's>> {
        let value = self.entry(key)?;
        match value.get_ref() {
            DeValue::String(name) => Some(NameOrTable::Name(name.to_string(), value.span())),
            _ => self.as_table(value, key, self.join(key)).map(NameOrTable::Table),
        }
    }

    /// The tables whose names are identity (`[key.name]`), in the order of their names. From then on
    /// [`form::section_name`](crate::form::section_name) knows these names.
    pub fn named(&self, key: &str) -> Vec<(String, Table<'d, 's>)> {
        let Some(value) = self.entry(key) else { return Vec::new() };
        let DeValue::Table(named) = value.get_ref() else {
            let found = describe(value.get_ref());
            self.note(value.span(), key, format!("expected tables ([{key}.NAME]), found {found}"));
            return Vec::new();
        };
        let path = format!("{}.*", self.join(key));
        self.document.know_names(key, named.keys().map(|name| name.get_ref().to_string()));
        let read = |(name, value): (&Spanned<_>, &'d Spanned<_>)| {
            let name: &std::borrow::Cow<'_, str> = name.get_ref();
            Some((name.to_string(), self.as_table(value, name, path.clone())?))
        };
        named.iter().filter_map(read).collect()
    }

    /// Notes an error at `key` of this table.
    pub fn note(&self, span: Span, key: &str, message: impl Display) {
        self.document.error(span, format!("{}: {message}", self.join(key)));
    }

    fn as_table(
        &self,
        value: &'d Spanned<DeValue<'s>>,
        key: &str,
        path: String,
    ) -> Option<Table<'d, 's>> {
        if let DeValue::Table(entries) = value.get_ref() {
            return Some(Table::new(self.document, path, entries, value.span()));
        }
        let found = describe(value.get_ref());
        self.note(value.span(), key, format!("expected a table, found {found}"));
        None
    }

    fn entry(&self, key: &str) -> Option<&'d Spanned<DeValue<'s>>> {
        self.asked.borrow_mut().insert(key.to_owned());
        let found = self.entries.iter().find(|(name, _)| name.get_ref() == key);
        self.document.note_key(self.join(key), found.is_some());
        found.map(|(_, value)| value)
    }

    fn join(&self, key: &str) -> String {
        let key = brief(key);
        if self.path.is_empty() { key.into_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// An item that can be written shortly, as a name, or in full.
#[allow(missing_debug_implementations, reason = "a table has none")]
pub enum NameOrTable<'d, 's> {
    /// The name, and where it stands.
    Name(String, Span),
    /// In full.
    Table(Table<'d, 's>),
}

impl Drop for Table<'_, '_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        for (name, _) in self.entries.iter().filter(|(name, _)| !asked.contains(&**name.get_ref()))
        {
            let key: &str = name.get_ref();
            if self.document.is_full() {
                self.document.error(name.span(), "");
                continue;
            }
            let hint = match nearest(key, &asked) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => {
                    let known: Vec<_> = asked.iter().map(String::as_str).collect();
                    format!("expected one of {}", known.join(", "))
                }
            };
            self.note(name.span(), key, format_args!("unknown key, {hint}"));
        }
    }
}

/// Longer than any key.
const MAX_KEY: usize = 64;

/// The known name that differs from `key` in the fewest letters, if it is near enough to be meant.
fn nearest<'a>(key: &str, known: &'a BTreeSet<String>) -> Option<&'a str> {
    // A longer one is near to none, and comparing it takes long.
    if key.len() > MAX_KEY {
        return None;
    }
    known
        .iter()
        .map(|name| (distance(key, name), name.as_str()))
        .filter(|(edits, name)| *edits <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance; both are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
