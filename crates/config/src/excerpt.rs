//! The part of a line that an error is about, as it can be shown on a terminal.
//!
//! A generated file may have thousands of endpoints in one line, and any file may hold control
//! characters. A line is shown as a window round the error, without anything that moves the cursor.

use std::borrow::Cow;
use unicode_width::UnicodeWidthChar as _;

/// Characters of a line that are shown, and those of them before the error.
pub(crate) const MAX_EXCERPT: usize = 100;
const MAX_BEFORE: usize = 40;
/// Longest message in characters. The ends of a message say the most.
pub(crate) const MAX_MESSAGE: usize = 1000;
/// Longest piece of the file in a message.
const MAX_QUOTED: usize = 100;

/// A part of a line, and where in it the error is, in columns of a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Excerpt {
    pub(crate) text: String,
    pub(crate) indent: usize,
    pub(crate) width: usize,
}

impl Excerpt {
    /// Of `line`, about the `length` characters from `column` on, which begins at 0.
    pub(crate) fn new(line: &str, column: usize, length: usize) -> Self {
        let skipped = column.saturating_sub(MAX_BEFORE);
        let mut text = String::new();
        let (mut indent, mut width) = (0, 0);
        if skipped > 0 {
            text.push('…');
            indent += 1;
        }
        let mut rest = line.chars().skip(skipped);
        for (at, c) in (skipped..).zip(rest.by_ref().take(MAX_EXCERPT)) {
            let c = printable(c);
            text.push(c);
            let columns = c.width().unwrap_or(1);
            if at < column {
                indent += columns;
            } else if at - column < length {
                width += columns;
            }
        }
        if rest.next().is_some() {
            text.push('…');
        }
        Self { text, indent, width: width.max(1) }
    }
}

/// A tab counts as one space, so that a mark stands below what it marks.
pub(crate) fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        // Marks that turn the direction of text hide what is there.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// `text`, or its ends if it is long.
pub(crate) fn brief(text: &str) -> Cow<'_, str> {
    ends(text, MAX_QUOTED)
}

pub(crate) fn ends(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let tail = most / 4;
    let head: String = text.chars().take(most - tail).collect();
    let mut end: Vec<char> = text.chars().rev().take(tail).collect();
    end.reverse();
    Cow::Owned(format!("{head}…{}", end.into_iter().collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_shown_as_a_window_round_the_error() {
        let line = format!("{}!{}", "a".repeat(70_000), "b".repeat(70_000));
        let excerpt = Excerpt::new(&line, 70_000, 1);
        assert_eq!((excerpt.indent, excerpt.width), (MAX_BEFORE + 1, 1));
        let expected =
            format!("…{}!{}…", "a".repeat(MAX_BEFORE), "b".repeat(MAX_EXCERPT - MAX_BEFORE - 1));
        assert_eq!(excerpt.text, expected);
    }

    #[test]
    fn the_mark_stands_below_wide_and_hidden_characters() {
        let excerpt = Excerpt::new("\t日本\u{1b}[1m\u{202e}x = ?", 11, 1);
        assert_eq!(excerpt.text, " 日本\u{fffd}[1m\u{fffd}x = ?");
        assert_eq!((excerpt.indent, excerpt.width), (13, 1));
    }
}
