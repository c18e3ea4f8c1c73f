//! Memory that many connections took goes back to the system when they are gone.
//!
//! Each thread has its own part of the heap, and what is freed there stays the thread's until it
//! allocates again. A proxy that has seen a burst of connections and is idle since would hold their
//! memory for as long as it is idle. So when many connections have ended, every I/O thread returns
//! what it does not use the next time that it has nothing to do.
//!
//! Huge pages are not asked for either: with them the first byte of a buffer takes 2 MiB, and most
//! buffers of a connection are never filled.

use crate::server::Lifecycle;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::sleep;

/// How often the number of connections is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Connections that end without a thought of their memory: less than a mebibyte.
const FEW: usize = 100;
/// Looks for which threads that have not given back anything are woken.
const ROUNDS: u32 = 3;

/// How often memory was to be given back.
static WANTED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// How often this thread has done so.
    static GIVEN: Cell<u64> = const { Cell::new(0) };
}

/// Has the process's memory in small pages.
pub fn without_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "transparent huge pages stay as they are");
    }
}

/// Has what this process starts decide for itself: the setting is inherited, and an inference engine
/// gains from huge pages.
pub fn with_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(false);
}

/// An I/O thread has nothing to do.
pub fn idle_thread() {
    let wanted = WANTED.load(Relaxed);
    if GIVEN.replace(wanted) != wanted {
        give_back();
    }
}

/// Watches the connections until dropped.
pub async fn watch(lifecycle: Arc<Lifecycle>, threads: usize) {
    let (mut most, mut rounds) = (0, 0);
    loop {
        sleep(LOOK).await;
        let open = lifecycle.occupied();
        most = most.max(open);
        if most - open > FEW && open < most / 2 {
            most = open;
            rounds = ROUNDS;
        }
        if rounds > 0 {
            rounds -= 1;
            WANTED.fetch_add(1, Relaxed);
            // Threads that sleep are woken by work.
            for _ in 0..4 * threads {
                tokio::spawn(tokio::task::yield_now());
            }
        }
    }
}

#[allow(unsafe_code, reason = "the allocator's interface is C")]
fn give_back() {
    // SAFETY: it may be called by any thread at any time, and changes nothing that is allocated.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
