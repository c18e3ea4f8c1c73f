//! Compares the memory that a model states with the memory that is allocated.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "an allocator that counts")]

use forebay_tract::{LoadOptions, Model};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts the bytes that are allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes beside a share of what is stated: graphs that are small, tables of threads.
const FIXED: usize = 1 << 20;

#[test]
fn a_model_holds_no_more_than_it_says_and_leaves_nothing() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
    for name in ["magika", "silero-vad", "ppocr-cls"] {
        let onnx = std::fs::read(models.join(name).join("1/model.onnx")).unwrap();
        let options = LoadOptions { max_batch: 8, open: 16, ..LoadOptions::default() };
        for _ in 0..2 {
            let before = LIVE.load(Relaxed);
            let model = Model::load(&onnx, &options).unwrap();
            let (live, stated) = (LIVE.load(Relaxed) - before, model.memory());
            assert!(live <= stated + stated / 10 + FIXED, "{name}: {live} of {stated}");
            drop(model);
            let left = LIVE.load(Relaxed).saturating_sub(before);
            assert!(left < FIXED / 8, "{name}: {left}");
        }
    }
}
