//! Frame boundaries in a stream of bytes, however the bytes are cut.

/// Bytes of a frame header (RFC 9113, section 4.1).
const HEADER: usize = 9;
/// Bytes of the payload that a [`Frame`] shows: enough for the error code of a GOAWAY.
const START: usize = 8;
const START_LENGTH: u32 = 8;

/// The flag END_STREAM of DATA and HEADERS.
const END_STREAM: u8 = 0x1;
/// The flag END_HEADERS of HEADERS and CONTINUATION.
const END_HEADERS: u8 = 0x4;
/// The flag PADDED of DATA and HEADERS.
const PADDED: u8 = 0x8;

/// Frame types (RFC 9113, section 6).
pub(crate) mod kind {
    /// DATA.
    pub(crate) const DATA: u8 = 0;
    /// HEADERS.
    pub(crate) const HEADERS: u8 = 1;
    /// PRIORITY.
    pub(crate) const PRIORITY: u8 = 2;
    /// RST_STREAM.
    pub(crate) const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub(crate) const SETTINGS: u8 = 4;
    /// PING.
    pub(crate) const PING: u8 = 6;
    /// GOAWAY.
    pub(crate) const GOAWAY: u8 = 7;
    /// WINDOW_UPDATE.
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION.
    pub(crate) const CONTINUATION: u8 = 9;
}

/// The header of a frame and the first bytes of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its type, as a number (RFC 9113, section 6).
    pub kind: u8,
    /// Its flags; their meaning depends on the type.
    pub flags: u8,
    /// Its stream; 0 for the connection.
    pub stream: u32,
    /// Bytes of its payload.
    pub length: u32,
    /// The first bytes of the payload, zeros where it is shorter.
    pub start: [u8; START],
}

impl Frame {
    fn parse(bytes: &[u8; HEADER + START]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3, start @ ..] = *bytes;
        Self {
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
            length: u32::from_be_bytes([0, l0, l1, l2]),
            start,
        }
    }

    /// Whether a DATA or HEADERS frame ends its stream.
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & END_STREAM != 0
    }

    /// Whether a HEADERS or CONTINUATION frame ends its header block.
    pub fn ends_headers(&self) -> bool {
        matches!(self.kind, kind::HEADERS | kind::CONTINUATION) && self.flags & END_HEADERS != 0
    }

    /// Bytes of content in a DATA frame, its padding excluded.
    pub fn content(&self) -> u32 {
        if self.flags & PADDED == 0 {
            return self.length;
        }
        self.length.saturating_sub(1 + u32::from(self.start[0]))
    }

    /// The error code of RST_STREAM and GOAWAY; `None` for other frames and malformed ones.
    pub fn error_code(&self) -> Option<u32> {
        let [a, b, c, d, e, f, g, h] = self.start;
        match self.kind {
            kind::RST_STREAM if self.length == 4 => Some(u32::from_be_bytes([a, b, c, d])),
            kind::GOAWAY if self.length >= 8 => Some(u32::from_be_bytes([e, f, g, h])),
            _ => None,
        }
    }
}

/// Finds the frames in one direction of a connection.
#[derive(Debug)]
pub struct Scanner {
    /// The present frame's header and the start of its payload, as far as they are here.
    bytes: [u8; HEADER + START],
    here: u8,
    /// Bytes of the present frame's payload that are still to come, beyond its start.
    rest: u32,
}

impl Scanner {
    /// A scanner at the beginning of a frame.
    pub fn new() -> Self {
        Self { bytes: [0; HEADER + START], here: 0, rest: 0 }
    }

    /// Whether the next byte is the first of a frame.
    pub fn at_boundary(&self) -> bool {
        self.here == 0 && self.rest == 0
    }

    /// The type of the frame that has begun and is not complete, once it is known.
    pub fn present_kind(&self) -> Option<u8> {
        let begun = self.rest > 0 || self.here > 3;
        begun.then_some(self.bytes[3])
    }

    /// Takes in the beginning of `bytes`, up to the end of the first frame that is complete enough
    /// to be shown. Returns how many bytes were taken, and that frame.
    pub fn next(&mut self, bytes: &[u8]) -> (usize, Option<Frame>) {
        let skipped = usize::try_from(self.rest).unwrap_or(usize::MAX).min(bytes.len());
        // At most what `rest` is, which fits.
        self.rest -= u32::try_from(skipped).unwrap_or(self.rest);
        let mut taken = skipped;
        while taken < bytes.len() {
            let wanted = self.wanted();
            let here = usize::from(self.here);
            let more = (wanted - here).min(bytes.len() - taken);
            self.bytes[here..here + more].copy_from_slice(&bytes[taken..taken + more]);
            taken += more;
            self.here = u8::try_from(here + more).unwrap_or(u8::MAX);
            // The length of the payload is known only now.
            if usize::from(self.here) == self.wanted() && usize::from(self.here) >= HEADER {
                return (taken, Some(self.complete()));
            }
        }
        (taken, None)
    }

    /// Takes in `bytes` without a look at their frames.
    pub fn skip(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.next(bytes).0..];
        }
    }

    /// Number of the current frame's first bytes that the scanner needs.
    fn wanted(&self) -> usize {
        if usize::from(self.here) < HEADER {
            return HEADER;
        }
        let length = u32::from_be_bytes([0, self.bytes[0], self.bytes[1], self.bytes[2]]);
        HEADER + usize::try_from(length).unwrap_or(usize::MAX).min(START)
    }

    fn complete(&mut self) -> Frame {
        self.bytes[usize::from(self.here)..].fill(0);
        let frame = Frame::parse(&self.bytes);
        self.rest = frame.length.saturating_sub(START_LENGTH);
        self.here = 0;
        frame
    }

    /// Number of `bytes` that belong to the current frame; 0 at a boundary or where its length is not known
    /// yet.
    pub fn belonging(&self, bytes: &[u8]) -> usize {
        if self.here == 0 {
            return usize::try_from(self.rest).unwrap_or(usize::MAX).min(bytes.len());
        }
        let mut copy = Self { bytes: self.bytes, here: self.here, rest: self.rest };
        match copy.next(bytes) {
            (taken, Some(_)) => {
                let rest = usize::try_from(copy.rest).unwrap_or(usize::MAX);
                taken.saturating_add(rest).min(bytes.len())
            }
            (taken, None) => taken,
        }
    }
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags];
        [&head[..], &stream.to_be_bytes(), payload].concat()
    }

    fn scan(scanner: &mut Scanner, mut bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let (taken, frame) = scanner.next(bytes);
            assert!(taken > 0, "no progress");
            bytes = &bytes[taken..];
            frames.extend(frame);
        }
        frames
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let parts = [
            frame(kind::SETTINGS, 0, 0, &[]),
            frame(kind::DATA, END_STREAM, 1, &[7; 1000]),
            frame(kind::RST_STREAM, 0, 3, &[0, 0, 0, 8]),
            frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 9, 0, 0, 0, 11, b'x']),
            frame(kind::DATA, PADDED, 5, &[4, 0, 0, 0, 0]),
            frame(0xfe, 0xff, 0x8000_0001, &[1; 8]),
        ];
        let bytes = parts.concat();
        let expected = scan(&mut Scanner::new(), &bytes);
        let kinds: Vec<_> = expected.iter().map(|frame| frame.kind).collect();
        assert_eq!(kinds, [4, 0, 3, 7, 0, 0xfe]);
        assert_eq!(expected[1].length, 1000);
        assert!(expected[1].ends_stream());
        assert_eq!(expected[2].error_code(), Some(8));
        assert_eq!(expected[3].error_code(), Some(11));
        assert_eq!(expected[4].content(), 0);
        assert_eq!(expected[5].stream, 1, "the reserved bit does not count");
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..1000 {
            let (mut scanner, mut found, mut at) = (Scanner::new(), Vec::new(), 0);
            while at < bytes.len() {
                let end = (at + rng.usize(1..40)).min(bytes.len());
                found.extend(scan(&mut scanner, &bytes[at..end]));
                at = end;
            }
            assert_eq!(found, expected, "seed {seed}");
            assert!(scanner.at_boundary(), "seed {seed}");
        }
    }

    #[test]
    fn the_rest_of_a_frame_is_told_from_the_next_one() {
        let bytes = [frame(kind::DATA, 0, 1, &[0; 100]), frame(kind::PING, 0, 0, &[0; 8])].concat();
        for cut in 0..=109 {
            let mut scanner = Scanner::new();
            scan(&mut scanner, &bytes[..cut]);
            let expected = if cut == 0 { 0 } else { 109 - cut };
            assert_eq!(scanner.belonging(&bytes[cut..]), expected, "cut at {cut}");
        }
    }
}
