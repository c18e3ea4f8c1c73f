//! Memory that was taken for a while goes back to the system when it is not needed any more.
//!
//! Each thread has its own part of the heap, and what is freed there stays the thread's until it
//! allocates again. A process that has seen a burst of connections, of requests or of long bodies and is
//! idle since would hold their memory for as long as it is idle. So it counts what takes memory
//! ([`Taken`]), and when much of that has ended, every I/O thread returns what it does not use the next
//! time that it has nothing to do ([`idle_thread`]).
//!
//! Huge pages are not asked for by a process of many connections either: with them the first byte of a
//! buffer takes 2 MiB, and most buffers of a connection are never filled.

use crate::allocator::give_back_lasting;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::sleep;

/// Interval of the check whether much work has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Looks for which threads that have not given back anything are woken.
const ROUNDS: u32 = 3;

/// Number of times that memory was to be given back.
static WANTED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Number of times that this thread has given memory back.
    static GIVEN: Cell<u64> = const { Cell::new(0) };
}

/// Keeps the process's memory in small pages.
pub fn without_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "can't change transparent huge pages");
    }
}

/// Lets child processes decide for themselves: the setting is inherited, and an inference engine gains from
/// huge pages.
pub fn with_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(false);
}

/// The current amount of something that takes memory, in any unit.
#[derive(Debug, Default)]
pub struct Taken {
    now: AtomicUsize,
    /// The most since it was last looked at.
    most: AtomicUsize,
}

impl Taken {
    /// Counts so much more; returns how much there is with it.
    pub fn add(&self, more: usize) -> usize {
        let now = self.now.fetch_add(more, Relaxed).saturating_add(more);
        // Mostly there has been more already, and then nothing is written.
        if now > self.most.load(Relaxed) {
            self.most.fetch_max(now, Relaxed);
        }
        now
    }

    /// Counts so much less; it was counted before.
    pub fn remove(&self, less: usize) {
        self.now.fetch_sub(less, Relaxed);
    }

    /// The current amount.
    pub fn now(&self) -> usize {
        self.now.load(Relaxed)
    }

    /// The current amount, and the maximum since the last call.
    fn look(&self) -> (usize, usize) {
        let now = self.now();
        (now, self.most.swap(now, Relaxed).max(now))
    }
}

/// Decides when enough work has ended to give memory back.
#[derive(Debug)]
struct Fall {
    most: usize,
    /// Amount below which an end is ignored.
    few: usize,
    /// Whether anything was used since memory was last given back.
    is_used: bool,
}

impl Fall {
    /// Whether less than half is left of what there was when memory was last given back, or since; or
    /// whether there has been something, and nothing of it is left.
    fn takes_in(&mut self, (now, most): (usize, usize)) -> bool {
        let rests = self.is_used && most == 0;
        self.is_used = most > 0;
        self.most = self.most.max(most);
        let fell = self.most - now > self.few && now < self.most / 2;
        if fell {
            self.most = now;
        }
        fell || rests
    }
}

/// Something that is counted, and how much of it may end without a thought of its memory: what takes a
/// mebibyte or so.
pub type Watched<'a> = (&'a Taken, usize);

/// Gives memory back when much work has ended, until dropped. Each thread of the runtime calls
/// [`idle_thread`] when it has nothing to do.
pub async fn watch(watched: &[Watched<'_>]) {
    let threads = Handle::current().metrics().num_workers();
    let mut falls: Vec<_> =
        watched.iter().map(|(_, few)| Fall { most: 0, few: *few, is_used: false }).collect();
    let mut rounds = 0;
    loop {
        sleep(CHECK_INTERVAL).await;
        for (fall, (taken, _)) in falls.iter_mut().zip(watched) {
            if fall.takes_in(taken.look()) {
                rounds = ROUNDS;
            }
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

/// An I/O thread has nothing to do.
pub fn idle_thread() {
    let wanted = WANTED.load(Relaxed);
    if GIVEN.replace(wanted) != wanted {
        give_back();
    }
}

/// Gives back what this thread does not use, and what no thread does. Takes some tens of microseconds, and
/// longer for much.
#[allow(unsafe_code, reason = "the allocator's interface is C")]
pub fn give_back() {
    // SAFETY: it may be called by any thread at any time, and changes nothing that is allocated.
    unsafe { libmimalloc_sys::mi_collect(true) };
    give_back_lasting();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_between_two_looks_is_seen() {
        let (taken, mut fall) = (Taken::default(), Fall { most: 0, few: 100, is_used: false });
        assert_eq!(taken.add(300), 300);
        taken.remove(300);
        assert!(fall.takes_in(taken.look()));
        assert!(fall.takes_in(taken.look()), "all of it has ended");
        assert!(!fall.takes_in(taken.look()), "once for each burst");
        taken.add(1);
        taken.remove(1);
        assert!(!fall.takes_in(taken.look()), "it may not be over");
        assert!(fall.takes_in(taken.look()), "little by little it is as much");
        assert!(!fall.takes_in(taken.look()));
    }

    #[test]
    fn a_slow_end_is_an_end_and_a_little_less_is_none() {
        let (taken, mut fall) = (Taken::default(), Fall { most: 0, few: 100, is_used: false });
        taken.add(1000);
        let mut gave = 0;
        for _ in 0..100 {
            taken.remove(10);
            gave += u32::from(fall.takes_in(taken.look()));
        }
        assert!((2..=4).contains(&gave), "at each half: {gave}");
        for _ in 0..100 {
            taken.add(90);
            taken.remove(90);
            assert!(!fall.takes_in(taken.look()));
        }
    }
}
