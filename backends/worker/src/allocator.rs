//! An allocator that keeps for a while what it will be asked for again.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// What the allocator reads its delay from, in milliseconds.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
/// Each request frees tensors that the next one needs again. Given back to the system after 10 ms,
/// as the allocator does on its own, they cost a third of the time of some models: every page is
/// cleared and mapped anew.
const DEFAULT_PURGE_DELAY: &str = "1000";

/// Starts this program again, as the same process, with an allocator that waits longer: it reads its
/// environment before anything of ours runs. Whoever has set the variable is not overruled.
pub(crate) fn delay_purging() {
    if std::env::var_os(PURGE_DELAY).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) {
        let mut command = Command::new(program);
        command.arg0(name).args(arguments).env(PURGE_DELAY, DEFAULT_PURGE_DELAY);
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
