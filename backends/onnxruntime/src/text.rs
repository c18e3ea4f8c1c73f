//! Words of the library's errors.

/// On one line, and short enough for a header or a log line.
pub(crate) fn shortened(text: &str) -> String {
    const MAX_MESSAGE: usize = 600;
    let mut text = text.replace(char::is_control, " ");
    if let Some((cut, _)) = text.char_indices().nth(MAX_MESSAGE) {
        text.truncate(cut);
        text.push('…');
    }
    text
}
