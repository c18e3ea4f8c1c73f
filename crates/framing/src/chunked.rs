//! Finds the end of a chunked body.
//!
//! The bytes behind a body on the same connection are the next request, so the end must be found exactly and
//! by the standard (RFC 9112, 7.1): a reader that accepts a bare line feed as a line's end, or skips unknown
//! parts, finds another end than one that does not.

/// Longest line that states a chunk's size, extensions included.
const MAX_SIZE_LINE: usize = 1024;
/// Longest trailers together.
const MAX_TRAILERS: usize = 16 * 1024;
/// Digits of the largest size.
const MAX_DIGITS: usize = 15;

/// Follows a chunked body, piece by piece.
#[derive(Debug)]
pub struct Chunks {
    state: State,
    /// Bytes of the present line, or of all trailers.
    length: usize,
}

/// The next part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Digits of a size.
    Size(u64),
    /// The rest of the line that states it.
    Extension(u64),
    /// The end of that line.
    SizeEnd(u64),
    /// Content of this many bytes.
    Data(u64),
    /// The line end behind them.
    DataCr,
    DataLf,
    /// A trailer, or the empty line behind all.
    Trailer,
    /// The rest of a trailer.
    Field,
    FieldEnd,
    LastLf,
    Done,
}

impl Default for Chunks {
    /// Nothing seen yet.
    fn default() -> Self {
        Self { state: State::Size(0), length: 0 }
    }
}

impl Chunks {
    /// Whether the end has been seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Number of content bytes that come next.
    pub fn data_left(&self) -> u64 {
        if let State::Data(left) = self.state { left } else { 0 }
    }

    /// Takes in that so many bytes of content passed, no more than are left.
    pub fn passed(&mut self, bytes: u64) {
        if let State::Data(left) = self.state {
            self.state = match left.saturating_sub(bytes) {
                0 => State::DataCr,
                left => State::Data(left),
            };
        }
    }

    /// Goes over `bytes`; says how many of them belong to the body.
    ///
    /// # Errors
    /// The expected element, in words.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut seen = 0;
        while seen < bytes.len() && self.state != State::Done {
            if let State::Data(left) = self.state {
                let here = bytes.len() - seen;
                let passed = usize::try_from(left).unwrap_or(usize::MAX).min(here);
                self.passed(passed as u64);
                seen += passed;
            } else {
                self.state = self.next(bytes[seen])?;
                seen += 1;
            }
        }
        Ok(seen)
    }

    fn next(&mut self, byte: u8) -> Result<State, &'static str> {
        self.length += 1;
        let trailing =
            matches!(self.state, State::Trailer | State::Field | State::FieldEnd | State::LastLf);
        if self.length > if trailing { MAX_TRAILERS } else { MAX_SIZE_LINE } {
            return Err("expected shorter chunk extensions or trailers");
        }
        match (self.state, byte) {
            (State::Size(size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if self.length > MAX_DIGITS {
                    return Err("expected a chunk size of at most 15 hexadecimal digits");
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Ok(State::Size(size * 16 + u64::from(digit)))
            }
            (State::Size(_), _) if self.length == 1 => Err("expected a chunk size"),
            (State::Size(size) | State::Extension(size), b'\r') => Ok(State::SizeEnd(size)),
            (State::Size(size), b';' | b' ' | b'\t') => Ok(State::Extension(size)),
            (State::Extension(size), b'\t' | b' '..=b'~' | 0x80..) => Ok(State::Extension(size)),
            (State::SizeEnd(size), b'\n') => {
                self.length = 0;
                Ok(if size == 0 { State::Trailer } else { State::Data(size) })
            }
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => {
                self.length = 0;
                Ok(State::Size(0))
            }
            (State::Trailer, b'\r') => Ok(State::LastLf),
            (State::Trailer, b'!'..=b'~') => Ok(State::Field),
            (State::Field, b'\r') => Ok(State::FieldEnd),
            (State::Field, b'\t' | b' '..=b'~' | 0x80..) => Ok(State::Field),
            (State::FieldEnd, b'\n') => Ok(State::Trailer),
            (State::LastLf, b'\n') => Ok(State::Done),
            (State::Trailer | State::Field | State::FieldEnd | State::LastLf, _) => {
                Err("expected a trailer or an empty line")
            }
            (State::DataCr | State::DataLf, _) => Err("expected CRLF behind a chunk"),
            _ => Err("expected a chunk size and CRLF"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    #[test]
    fn the_end_is_found_wherever_the_pieces_are_cut() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A;name=\"v\"\r\n0123456789\r\n1\r\n\r\r\n000\r\n\r\n",
            "3 ; x\r\nabc\r\n0\r\ntrailer: 1\r\nother:\t\r\n\r\n",
        ] {
            let stream = [body.as_bytes(), b"GET / HTTP/1.1\r\n"].concat();
            for cut in 0..stream.len() {
                let mut chunks = Chunks::default();
                let first = chunks.scan(&stream[..cut]).unwrap();
                let second = chunks.scan(&stream[first..]).unwrap();
                assert_eq!(first + second, body.len(), "{body:?} cut at {cut}");
                assert!(chunks.is_done());
                assert_eq!(chunks.scan(b"more"), Ok(0));
            }
        }
    }

    #[test]
    fn what_is_not_by_the_letter_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(MAX_SIZE_LINE));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(MAX_TRAILERS));
        for bad in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x5\r\n",
            "5\nhello\r\n",
            "5\r\nhello\n",
            "5\r\nhelloo\r\n",
            "5;a\nb\r\nhello\r\n",
            "5;a\0b\r\n",
            "5\r\r\n",
            "fffffffffffffffff\r\n",
            "0000000000000000\r\n",
            "0\r\nbad\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\n\n",
            long.as_str(),
            trailers.as_str(),
        ] {
            assert!(
                Chunks::default().scan(bad.as_bytes()).is_err(),
                "{:?}",
                &bad[..bad.len().min(40)]
            );
        }
    }

    #[test]
    fn content_is_not_looked_at() {
        let mut chunks = Chunks::default();
        chunks.scan(b"fffffffffff\r\n").unwrap();
        assert_eq!(chunks.data_left(), 0xfff_ffff_ffff);
        assert_eq!(chunks.scan(&[b'\n'; 1000]), Ok(1000));
        assert_eq!(chunks.data_left(), 0xfff_ffff_ffff - 1000);
    }
}
