//! An allocator that counts.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicI64, Ordering},
};

/// Bytes that are allocated and not freed.
static LIVE: AtomicI64 = AtomicI64::new(0);

/// Returns the bytes that were asked for and not freed, if [`Counted`] is the allocator.
pub fn live_bytes() -> i64 {
    LIVE.load(Ordering::Relaxed)
}

/// The system's allocator, counted.
#[derive(Debug)]
pub struct Counted;

impl Counted {
    fn count(size: usize, sign: i64) {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        LIVE.fetch_add(sign * size, Ordering::Relaxed);
    }
}

#[allow(unsafe_code, reason = "an allocator is, and this one hands on what it is given")]
// SAFETY: each call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 1);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::count(layout.size(), -1);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count(layout.size(), -1);
        Self::count(size, 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
