//! The form of a report.

/// Adds a line: what it is about, and the words.
pub(super) fn line(text: &mut String, what: &str, value: &str) {
    text.push_str(&format!("  {what:14} {value}\n"));
}
