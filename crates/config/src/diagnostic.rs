//! Errors in a file, with their places, as a person reads them.

use crate::excerpt::{Excerpt, MAX_EXCERPT, MAX_MESSAGE, ends, printable};
use std::fmt;
use std::ops::Range;

/// Byte range in the source.
pub type Span = Range<usize>;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The expected and the found value.
    pub message: String,
    pub(crate) excerpt: Excerpt,
}

/// All that is wrong with a file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    pub(crate) shown: Vec<Diagnostic>,
    /// Number of further errors.
    pub(crate) more: usize,
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

/// The start of each line of a source.
pub(crate) struct Lines<'s> {
    source: &'s str,
    starts: Vec<usize>,
}

impl<'s> Lines<'s> {
    pub(crate) fn new(source: &'s str) -> Self {
        let starts =
            std::iter::once(0).chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { source, starts }
    }

    pub(crate) fn locate(&self, span: &Span, message: &str) -> Diagnostic {
        let at = self.source.floor_char_boundary(span.start);
        let end = self.source.floor_char_boundary(span.end).max(at);
        let line = self.starts.partition_point(|&start| start <= at);
        let start = self.starts[line - 1];
        let text = self.source[start..].split('\n').next().unwrap_or_default();
        let text = text.strip_suffix('\r').unwrap_or(text);
        let column = self.source[start..at].chars().count();
        let length = self.source[at..end].chars().take(MAX_EXCERPT).count();
        let message = ends(message, MAX_MESSAGE).chars().map(printable).collect();
        Diagnostic {
            line,
            column: column + 1,
            message,
            excerpt: Excerpt::new(text, column, length),
        }
    }
}
