//! An allocator that keeps for a while what it will be asked for again, and no more than that.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// The variable from which the allocator reads its delay, in milliseconds.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
/// The variable that allows huge pages.
const HUGE_PAGES: &str = "MIMALLOC_ALLOW_THP";
/// Each request frees tensors that the next one needs again. If the allocator gave them back to the system
/// after its default of 10 ms, they would cost a third of the time of some models: every page is cleared and
/// mapped again.
const DEFAULT_PURGE_DELAY: &str = "1000";

/// No huge pages: what is allocated of one size lies together, and one value of it would hold 2 MiB. With
/// them a model takes twice the memory; without them the times of models are the same.
const DEFAULT_HUGE_PAGES: &str = "0";

/// Starts this program again, as the same process, with an allocator that waits longer and takes small
/// pages: it reads its environment before any code of this program runs. A variable that is set already is
/// kept.
pub(crate) fn configure() {
    let wanted = [(PURGE_DELAY, DEFAULT_PURGE_DELAY), (HUGE_PAGES, DEFAULT_HUGE_PAGES)];
    let unset = wanted.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
    let unset: Vec<_> = unset.collect();
    if unset.is_empty() {
        return;
    }
    let mut arguments = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) {
        let mut command = Command::new(program);
        command.arg0(name).args(arguments).envs(unset);
        // Comes back only if that is not allowed here; then it runs as it is.
        let _ = command.exec();
    }
}

/// Returns what this thread has freed, and what threads that have ended left, to the system: loading
/// and compiling need several times the memory that stays.
#[allow(unsafe_code, reason = "the allocator's interface is C")]
pub(crate) fn give_back() {
    // SAFETY: it may be called by any thread at any time, and changes nothing that is allocated.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Lets other threads have the pages in which this one has had nothing for some calls: requests of many
/// sizes would else leave some with each thread for each size that there ever was. Takes some
/// microseconds.
#[allow(unsafe_code, reason = "the allocator's interface is C")]
pub(crate) fn share() {
    // SAFETY: as above.
    unsafe { libmimalloc_sys::mi_collect(false) };
}
