//! Chunked bodies: the end is the same however the bytes arrive.
#![no_main]
use forebay_framing::chunked::Chunks;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let mut whole = Chunks::default();
    let at_once = whole.scan(bytes);
    let mut pieces = Chunks::default();
    let mut seen = 0;
    let mut in_pieces = Ok(0);
    for piece in bytes.chunks(usize::from(size).max(1)) {
        match pieces.scan(piece) {
            Ok(taken) => seen += taken,
            Err(error) => {
                in_pieces = Err(error);
                break;
            }
        }
        in_pieces = Ok(seen);
        if pieces.is_done() {
            break;
        }
    }
    assert_eq!(at_once, in_pieces);
    if at_once.is_ok() {
        assert_eq!((whole.is_done(), whole.data_left()), (pieces.is_done(), pieces.data_left()));
    }
    if let Ok(end) = at_once && whole.is_done() {
        assert_eq!(&bytes[end - 2..end], b"\r\n");
    }
});
