//! Frames of HTTP/2: the same are found however the bytes arrive, and a flood is a flood in any pieces.
#![no_main]
use forebay_http2guard::{Budget, Frame, Scanner, ServerBudget};
use libfuzzer_sys::fuzz_target;
use std::time::Instant;

fn frames(bytes: &[u8], size: usize) -> Vec<Frame> {
    let mut scanner = Scanner::new();
    let mut found = Vec::new();
    for mut piece in bytes.chunks(size) {
        while !piece.is_empty() {
            assert!(scanner.belonging(piece) <= piece.len());
            let (taken, frame) = scanner.next(piece);
            assert!(taken > 0 || frame.is_some());
            found.extend(frame);
            piece = &piece[taken..];
        }
    }
    found
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let at_once = frames(bytes, bytes.len().max(1));
    assert_eq!(at_once, frames(bytes, usize::from(size).max(1)));
    let now = Instant::now();
    let mut budget = Budget::new(now);
    for (place, frame) in at_once.iter().enumerate() {
        let verdict =
            if place % 4 == 3 { budget.sent(frame, now) } else { budget.received(frame, now) };
        if verdict.is_err() {
            break;
        }
    }
    let mut budget = ServerBudget::new(u32::from(size) << 10, now);
    for (place, frame) in at_once.iter().enumerate() {
        if place % 4 == 3 {
            budget.sent(frame);
        } else if budget.received(frame, now).is_err() {
            break;
        }
    }
});
