//! Heads of HTTP/1 requests: one that passes has an end that every reader finds in the same place.
#![no_main]
use forebay_framing::request_head::{Framing, check, request_line};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = request_line(bytes);
    // The reader of a connection hands over the bytes up to the first empty line.
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return };
    let (bytes, inner) = (&bytes[..end + 4], &bytes[..end]);
    let Ok(framing) = check(bytes) else { return };
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            0 => panic!("holds a NUL"),
            b'\n' => assert_eq!(bytes[at - 1], b'\r', "holds a lone LF"),
            b'\r' => assert_eq!(bytes.get(at + 1), Some(&b'\n'), "holds a lone CR"),
            _ => {}
        }
    }
    // A reader of the plainest kind finds the same framing.
    let text = String::from_utf8_lossy(inner).to_ascii_lowercase();
    let field = |name: &str| text.lines().skip(1).find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let length = field("content-length").map(|value| value.trim().parse::<u64>());
    let chunked = field("transfer-encoding").map(|value| value.trim() == "chunked");
    match framing {
        Framing::Chunked => assert_eq!((length, chunked), (None, Some(true))),
        Framing::Length(stated) => {
            assert_eq!(chunked, None);
            assert_eq!(length.unwrap_or(Ok(0)), Ok(stated));
        }
        Framing::Open => assert!(length.is_none() && chunked.is_none()),
    }
});
