//! The bound of the store is the memory that it takes.
#![allow(unsafe_code, reason = "an allocator is written so")]
#![allow(clippy::unwrap_used, reason = "tests")]

use forebay_cache::{Answer, Asked, Content, Entry, Hasher, Store};
use forebay_protocol::oip::{Data, InferRequest, InferResponse, Tensor};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Counts bytes as an allocator with classes of sizes takes them: multiples of 16, with a word of its own.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

fn size(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16)
}

// SAFETY: all is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(size(layout), Relaxed);
        // SAFETY: as the caller has promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(size(layout), Relaxed);
        // SAFETY: as the caller has promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn fill(store: &Store, from: usize, to: usize, length: impl Fn(usize) -> usize) {
    let hasher = Hasher::new([0; 32]);
    let (route, model): (Arc<str>, Arc<str>) = ("route".into(), "model".into());
    for number in from..to {
        let name = number.to_string();
        let asked = Asked {
            route: &route,
            variant: "variant",
            model: &name,
            version: None,
            epoch: "",
            client: None,
            vary: &[],
        };
        let question = hasher.question(&asked, &InferRequest::default()).unwrap();
        let length = length(number);
        let tensor = Tensor::new("y", vec![length], Data::Uint8(vec![1; length].into())).unwrap();
        let response = InferResponse { outputs: vec![tensor], ..InferResponse::default() };
        let entry = Entry {
            answer: Answer::new(response),
            route: Arc::clone(&route),
            model: Arc::clone(&model),
            version: None,
            born: Duration::ZERO,
            expires: Duration::from_secs(60),
            gone: Duration::from_secs(60),
            took: Duration::ZERO,
        };
        store.insert(question, Content(1), Arc::new(entry));
    }
}

#[test]
fn the_bound_is_the_memory_that_is_taken() {
    type Length = fn(usize) -> usize;
    let kinds: [(&str, Length); 4] = [
        ("numbers", |_| 16),
        ("short vectors", |_| 400),
        ("embeddings", |_| 1_536),
        ("mixed", |number| number * 7_919 % 20_000),
    ];
    for (kind, length) in kinds {
        let bound = 8 << 20;
        let before = TAKEN.load(Relaxed);
        let store = Store::new(bound);
        // Twice as many as fit.
        let mut number = 0;
        while store.evicted() == 0 || number < 1_000 {
            fill(&store, number, number + 500, length);
            number += 500;
        }
        fill(&store, number, number * 2, length);
        let taken = TAKEN.load(Relaxed) - before;
        #[allow(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = taken as f64 / store.bytes() as f64;
        eprintln!("{kind}: {taken} bytes taken, {} stated, {ratio:.3}", store.bytes());
        assert!((0.85..=1.05).contains(&ratio), "{kind}: {ratio:.3}");
    }
}
