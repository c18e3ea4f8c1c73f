//! The content of a model, as a worker states it with each answer.
//!
//! A cache must know whether two answers came from the same content, and whether that content is still
//! served. Names and versions do not say so: a version may be loaded again from other files, and a label
//! may move.

use std::fmt;
use std::str::FromStr;

/// The content that gave an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelContent {
    /// Of the model's files and its configuration, as a number; never 0.
    pub content: u64,
    /// The generation (see [`LoadReport`](crate::LoadReport)) in which this content is served to requests that
    /// ask for the same model and version; `None` if it was replaced while it worked.
    pub generation: Option<u64>,
    /// Whether the rows of its inputs are independent: each row of an answer depends on that row alone.
    pub has_rows: bool,
}

/// The header's value is not of this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedContent;

/// Stands behind the numbers of a model whose rows are independent.
const ROWS: &str = ";rows";

impl fmt::Display for ModelContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.content)?;
        if let Some(generation) = self.generation {
            write!(f, "@{generation:x}")?;
        }
        f.write_str(if self.has_rows { ROWS } else { "" })
    }
}

impl FromStr for ModelContent {
    type Err = MalformedContent;

    fn from_str(text: &str) -> Result<Self, MalformedContent> {
        let number = |text: &str| {
            let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let number = u64::from_str_radix(text, 16).ok().filter(|&number| is_hex && number > 0);
            number.ok_or(MalformedContent)
        };
        let (text, has_rows) = match text.strip_suffix(ROWS) {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (content, generation) = match text.split_once('@') {
            Some((content, generation)) => (content, Some(number(generation)?)),
            None => (text, None),
        };
        Ok(Self { content: number(content)?, generation, has_rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_and_nothing_else_is_read() {
        for generation in [None, Some(1), Some((1 << 53) - 1)] {
            for has_rows in [false, true] {
                let content = ModelContent { content: 0xab, generation, has_rows };
                assert_eq!(content.to_string().parse(), Ok(content));
            }
        }
        for text in [
            "",
            "@",
            "0",
            "1@",
            "@1",
            "1@0",
            "+1",
            "1@+1",
            "g",
            "11111111111111111",
            "1 ",
            "1;rows;rows",
        ] {
            assert_eq!(text.parse::<ModelContent>(), Err(MalformedContent), "{text}");
        }
    }
}
