use crate::diagnostic::{Diagnostics, Lines, Span};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// Errors that are kept: more than anyone corrects at once, and a bound for a file of nonsense.
const MAX_NOTED: usize = 1000;
/// Errors that are shown.
const MAX_SHOWN: usize = 100;

/// A parsed file, and all that was found wrong with it so far.
///
/// Use: [`Document::parse`], read through [`Document::root`], then [`Document::finish`].
pub struct Document<'s> {
    source: &'s str,
    /// The folder of relative paths.
    folder: PathBuf,
    /// Names of the tables that were read by name, by the key that they stand under.
    names: RefCell<BTreeMap<String, Vec<String>>>,
    pub(crate) root: DeTable<'s>,
    diagnostics: RefCell<Vec<(Span, String)>>,
    /// Errors beyond [`MAX_NOTED`].
    unkept: Cell<usize>,
    asked: RefCell<BTreeSet<String>>,
    present: RefCell<BTreeSet<String>>,
}

impl<'s> Document<'s> {
    /// Parses `source`. Syntax errors are noted like all others; what could be read is there.
    pub fn parse(source: &'s str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(source);
        let diagnostics = errors
            .iter()
            .take(MAX_NOTED)
            .map(|error| (error.span().unwrap_or(0..0), error.message().to_owned()))
            .collect();
        Self {
            source,
            folder: PathBuf::new(),
            names: RefCell::default(),
            root: root.into_inner(),
            diagnostics: RefCell::new(diagnostics),
            unkept: Cell::new(errors.len().saturating_sub(MAX_NOTED)),
            asked: RefCell::default(),
            present: RefCell::default(),
        }
    }

    /// Makes relative paths in the file start at `folder`, usually the file's own.
    #[must_use]
    pub fn in_folder(self, folder: &Path) -> Self {
        Self { folder: folder.to_owned(), ..self }
    }

    /// The folder of relative paths in the file.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names under which tables stand at `key`, as far as they were read.
    pub(crate) fn names(&self, key: &str) -> Vec<String> {
        self.names.borrow().get(key).cloned().unwrap_or_default()
    }

    pub(crate) fn know_names(&self, key: &str, names: impl Iterator<Item = String>) {
        self.names.borrow_mut().insert(key.to_owned(), names.collect());
    }

    /// Notes an error that only the program can see, such as a name that nothing has.
    pub fn error(&self, span: Span, message: impl Into<String>) {
        if self.is_full() {
            self.unkept.set(self.unkept.get() + 1);
        } else {
            self.diagnostics.borrow_mut().push((span, message.into()));
        }
    }

    /// Whether there are so many errors that further ones are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.diagnostics.borrow().len() >= MAX_NOTED
    }

    /// Ends reading: all errors in the order of the file, or none.
    ///
    /// # Errors
    /// Everything that was noted, by the parser, the tables and the program.
    pub fn finish(self) -> Result<(), Diagnostics> {
        let mut found = self.diagnostics.into_inner();
        found.sort_by_key(|(span, _)| span.start);
        found.dedup();
        if found.is_empty() {
            return Ok(());
        }
        let lines = Lines::new(self.source);
        let more = self.unkept.get() + found.len().saturating_sub(MAX_SHOWN);
        found.truncate(MAX_SHOWN);
        let shown = found.iter().map(|(span, text)| lines.locate(span, text)).collect();
        Err(Diagnostics { shown, more })
    }

    /// Every key that the program asked for, with its path; `*` stands for a name or an index.
    pub fn keys_asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    /// The keys of [`Document::keys_asked`] that the file has somewhere.
    pub fn keys_present(&self) -> BTreeSet<String> {
        self.present.borrow().clone()
    }

    pub(crate) fn note_key(&self, path: String, present: bool) {
        if present {
            self.present.borrow_mut().insert(path.clone());
        }
        self.asked.borrow_mut().insert(path);
    }
}
