//! An allocator that keeps what lasts apart from what is needed for a moment.
//!
//! A part of the heap goes back to the system only when nothing of it is used. A connection holds a few kilobytes for as
//! long as it is open, a request ten times as much for some milliseconds. Where both are allocated from the same pages, a
//! burst of requests leaves pages that are nearly empty and can't be given back, since the odd connection lies in
//! each of them: memory of connections that are idle is then the memory of the burst that they came with. So what
//! lasts as long as its connection is allocated within [`lasting`], which has pages of its own.
//!
//! All threads allocate from these pages. Only mimalloc 3 allows that: in mimalloc 2, a heap is its thread's own, and the
//! calls have the same names. A feature of a dependency, `v2`, would swap one for the other. So
//! [`NEEDS_VERSION_3`] names a function that only mimalloc 3 has: with another, no program is linked.

use libmimalloc_sys::{mi_heap_delete, mi_heap_malloc_aligned, mi_heap_new, mi_heap_t};
use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};

thread_local! {
    /// Whether what this thread allocates now lasts.
    static LASTS: Cell<bool> = const { Cell::new(false) };
}

/// The part of the heap for what lasts, once there is any.
static HEAP: AtomicPtr<mi_heap_t> = AtomicPtr::new(null_mut());

/// Many small allocations on several threads, which the system's allocator is not made for.
#[derive(Debug)]
pub struct Allocator;

/// Allocates what `make` does beside other things that last. Short, and without a wait: all of the thread's
/// allocations meanwhile are meant. Without [`Allocator`] as the program's allocator, it makes no difference.
pub fn lasting<T>(make: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            LASTS.set(self.0);
        }
    }
    let _before = Before(LASTS.replace(true));
    make()
}

/// Gives back what this thread does not use of the part for what lasts.
#[allow(unsafe_code, reason = "the allocator's interface is C")]
pub(crate) fn give_back_lasting() {
    let heap = HEAP.load(Acquire);
    if !heap.is_null() {
        // SAFETY: the heap is never deleted, and any thread may collect its own part of it.
        unsafe { libmimalloc_sys::mi_heap_collect(heap, true) };
    }
}

#[allow(unsafe_code, reason = "the allocator's interface is C")]
unsafe extern "C" {
    /// Whether a pointer lies in a heap. Only mimalloc 3 has it: if it is not found, the feature `v2` has to go.
    fn mi_heap_contains(heap: *const mi_heap_t, pointer: *const c_void) -> bool;
}

/// Keeps programs from being linked with mimalloc 2.
#[used]
static NEEDS_VERSION_3: unsafe extern "C" fn(*const mi_heap_t, *const c_void) -> bool =
    mi_heap_contains;

#[cold]
#[allow(unsafe_code, reason = "the allocator's interface is C")]
fn new_heap() -> *mut mi_heap_t {
    // SAFETY: it may be called by any thread at any time.
    let heap = unsafe { mi_heap_new() };
    match HEAP.compare_exchange(null_mut(), heap, Release, Acquire) {
        Ok(_) => heap,
        Err(other) => {
            if !heap.is_null() {
                // SAFETY: nothing has been allocated in it, and no other thread knows of it.
                unsafe { mi_heap_delete(heap) };
            }
            other
        }
    }
}

#[allow(unsafe_code, reason = "an allocator's interface is unsafe")]
// SAFETY: all memory is mimalloc's, whose `free` and `realloc` take what any of its heaps has given.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if LASTS.get() {
            let known = HEAP.load(Acquire);
            let heap = if known.is_null() { new_heap() } else { known };
            if !heap.is_null() {
                // SAFETY: the heap is never deleted, and any thread may allocate from it.
                return unsafe {
                    mi_heap_malloc_aligned(heap, layout.size(), layout.align()).cast()
                };
            }
        }
        // SAFETY: the caller's promise is passed on, here and below.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above. Buffers are zeroed, which are long and mostly have pages of their own.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: see above.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see above.
        unsafe { MiMalloc.realloc(pointer, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code, reason = "an allocator's interface is unsafe")]
    use super::*;

    #[test]
    fn any_thread_may_use_a_heap() {
        // Two digits each for the minor version and the patch. SAFETY: it reads a constant.
        let version = unsafe { libmimalloc_sys::mi_version() };
        assert!(version >= 30_000, "expected mimalloc 3, found {version}");
    }

    fn allocated(bytes: usize) -> (*mut u8, Layout) {
        let layout = Layout::from_size_align(bytes, 16).unwrap_or(Layout::new::<u128>());
        // SAFETY: the layout has a size.
        (unsafe { Allocator.alloc(layout) }, layout)
    }

    fn lies_in_heap_for_what_lasts(pointer: *mut u8) -> bool {
        // SAFETY: the heap is never deleted; the pointer is not read.
        unsafe { mi_heap_contains(HEAP.load(Acquire), pointer.cast()) }
    }

    #[test]
    fn what_lasts_is_apart_and_is_freed_by_any_thread() {
        let outer = lasting(|| {
            let first = allocated(100);
            let nested = lasting(|| allocated(3000));
            (first, nested, allocated(100))
        });
        let other = allocated(100);
        for (pointer, _) in [outer.0, outer.1, outer.2] {
            assert!(lies_in_heap_for_what_lasts(pointer));
        }
        assert!(!lies_in_heap_for_what_lasts(other.0));
        let all =
            [outer.0, outer.1, outer.2, other].map(|(pointer, layout)| (pointer as usize, layout));
        let freed = std::thread::spawn(move || {
            for (pointer, layout) in all {
                // SAFETY: allocated above with this layout, and not used any more.
                unsafe { Allocator.dealloc(pointer as *mut u8, layout) };
            }
        });
        assert!(freed.join().is_ok());
        give_back_lasting();
    }

    #[test]
    fn a_panic_ends_what_lasts() {
        let caught =
            std::panic::catch_unwind(|| lasting(|| std::panic::resume_unwind(Box::new(()))));
        assert!(caught.is_err() && !LASTS.get());
    }
}
