use crate::Table;
use crate::excerpt::{Excerpt, Lines, brief};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// Byte range in the source.
pub type Span = Range<usize>;

/// Errors that are kept: more than anyone corrects at once, and a bound for a file of nonsense.
const MAX_NOTED: usize = 1000;
/// Errors that are shown.
const MAX_SHOWN: usize = 100;

/// A parsed file, and all that was found wrong with it so far.
///
/// Use: [`Document::parse`], read through [`Document::root`], then [`Document::finish`].
pub struct Document<'s> {
    source: &'s str,
    root: DeTable<'s>,
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
            root: root.into_inner(),
            diagnostics: RefCell::new(diagnostics),
            unkept: Cell::new(errors.len().saturating_sub(MAX_NOTED)),
            asked: RefCell::default(),
            present: RefCell::default(),
        }
    }

    /// The table at the top.
    pub fn root(&self) -> Table<'_, 's> {
        Table::new(self, String::new(), &self.root, 0..0)
    }

    /// Notes an error that only the program can see, such as a name that nothing has.
    pub fn error(&self, span: Span, message: impl Into<String>) {
        if self.is_full() {
            self.unkept.set(self.unkept.get() + 1);
        } else {
            self.diagnostics.borrow_mut().push((span, message.into()));
        }
    }

    /// Are there so many errors that further ones are only counted?
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

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub message: String,
    pub(crate) excerpt: Excerpt,
}

/// All that is wrong with a file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    shown: Vec<Diagnostic>,
    /// How many there are beside those.
    more: usize,
}

impl Diagnostics {
    /// One error alone.
    pub(crate) fn one(source: &str, span: &Span, message: &str) -> Self {
        Self { shown: vec![Lines::new(source).locate(span, message)], more: 0 }
    }

    /// The errors, in the order of the file; the first ones if there are very many.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Diagnostic> {
        self.shown.iter()
    }

    /// The errors as a person reads them: `name:line:column: message`, then the line itself, or a
    /// part of it if it is long.
    pub fn render(&self, name: &str) -> String {
        use fmt::Write;
        let mut out = String::new();
        for d in &self.shown {
            let number = d.line.to_string();
            let Excerpt { text, indent, width } = &d.excerpt;
            let (indent, mark) = (" ".repeat(number.len() + 5 + indent), "^".repeat(*width));
            // Writing to a string does not fail.
            let _ = writeln!(out, "{name}:{}:{}: {}", d.line, d.column, d.message);
            let _ = writeln!(out, "  {number} | {text}");
            let _ = writeln!(out, "{indent}{mark}");
        }
        if self.more > 0 {
            let _ = writeln!(out, "{name}: {} more errors", self.more);
        }
        out
    }
}

/// One line an error, for logs.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, d) in self.shown.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}:{}: {}", d.line, d.column, d.message)?;
        }
        if self.more > 0 {
            write!(f, "; {} more errors", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// What a value is, in words, for "found …".
pub(crate) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("{:?}", brief(s)),
        DeValue::Integer(i) => format!("the number {}", brief(&i.to_string())),
        DeValue::Float(f) => format!("the number {}", brief(f.as_str())),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(d) => format!("the date {d}"),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
