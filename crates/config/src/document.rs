use crate::Table;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// Byte range in the source.
pub type Span = Range<usize>;

/// A parsed file, and all that was found wrong with it so far.
///
/// Use: [`Document::parse`], read through [`Document::root`], then [`Document::finish`].
pub struct Document<'s> {
    source: &'s str,
    root: DeTable<'s>,
    diagnostics: RefCell<Vec<(Span, String)>>,
    asked: RefCell<BTreeSet<String>>,
    present: RefCell<BTreeSet<String>>,
}

impl<'s> Document<'s> {
    /// Parses `source`. Syntax errors are noted like all others; what could be read is there.
    pub fn parse(source: &'s str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(source);
        let diagnostics = errors
            .iter()
            .map(|error| (error.span().unwrap_or(0..0), error.message().to_owned()))
            .collect();
        Self {
            source,
            root: root.into_inner(),
            diagnostics: RefCell::new(diagnostics),
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
        self.diagnostics.borrow_mut().push((span, message.into()));
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
        Err(Diagnostics(found.into_iter().map(|(span, text)| lines.locate(&span, text)).collect()))
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
    text: String,
    width: usize,
}

/// All that is wrong with a file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// The errors, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Diagnostic> {
        self.0.iter()
    }

    /// The errors as a person reads them: `name:line:column: message`, then the line itself.
    pub fn render(&self, name: &str) -> String {
        use fmt::Write;
        let mut out = String::new();
        for d in &self.0 {
            let number = d.line.to_string();
            // Writing to a string does not fail.
            let _ = writeln!(out, "{name}:{}:{}: {}", d.line, d.column, d.message);
            let _ = writeln!(out, "  {number} | {}", d.text);
            let indent = number.len() + 5 + d.column - 1;
            let _ = writeln!(out, "{:indent$}{}", "", "^".repeat(d.width.max(1)));
        }
        out
    }
}

/// One line an error, for logs.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, d) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}:{}: {}", d.line, d.column, d.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// Where the lines of a source begin.
struct Lines<'s> {
    source: &'s str,
    starts: Vec<usize>,
}

impl<'s> Lines<'s> {
    fn new(source: &'s str) -> Self {
        let starts =
            std::iter::once(0).chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { source, starts }
    }

    fn locate(&self, span: &Span, message: String) -> Diagnostic {
        let mut at = span.start.min(self.source.len());
        while !self.source.is_char_boundary(at) {
            at -= 1;
        }
        let line = self.starts.partition_point(|&start| start <= at);
        let start = self.starts[line - 1];
        let text = self.source[start..].lines().next().unwrap_or("");
        let column = self.source[start..at].chars().count() + 1;
        let shown = text.chars().count().saturating_sub(column - 1);
        Diagnostic {
            line,
            column,
            message,
            text: text.replace('\t', " "),
            width: span.len().min(shown),
        }
    }
}

/// What a value is, in words, for "found …".
pub(crate) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("{s:?}"),
        DeValue::Integer(i) => format!("the number {i}"),
        DeValue::Float(f) => format!("the number {}", f.as_str()),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(d) => format!("the date {d}"),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
