//! Memory of our own between guest memory and direct I/O, where the guest's addresses do not suit it.
//!
//! Direct I/O (O_DIRECT, open(2)) wants addresses and lengths to be multiples of a block. A driver may give any:
//! then the bytes go through a [`Chunk`], and a request that is longer than one goes in pieces, a chunk full
//! each. How many chunks there are is decided before the guest runs, in a [`BouncePool`] of each queue;
//! so whatever a guest asks for, this is all that it can have. Whoever finds no chunk waits until a request that
//! has one ends.
//!
//! ```text
//!   guest memory     ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓   a request at an odd address
//!                    └── window ─┘ ┌ next ┘
//!   chunk            [▓▓▓▓▓▓▓▓▓▓▓]◀┘             128 KiB, at a multiple of 4 KiB
//!                          ▲▼
//!   the file         ......▓▓▓▓▓▓▓▓▓▓▓▓▓......
//! ```

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// Bytes of a chunk, a multiple of every block's length.
pub const CHUNK_BYTES: usize = 128 << 10;

/// The chunks of one queue.
#[derive(Debug)]
pub struct BouncePool {
    base: *mut u8,
    count: usize,
    /// The numbers of those that nobody has.
    free: Mutex<Vec<usize>>,
    /// How many those are, for a look without the lock.
    left: AtomicUsize,
}

// SAFETY: the mapping at `base` stays as long as the pool lives, and each of its chunks has one owner at a
// time, who alone hands its address to the kernel or copies from and to it.
unsafe impl Send for BouncePool {}
// SAFETY: as above; what changes is behind a lock or atomic.
unsafe impl Sync for BouncePool {}

impl BouncePool {
    /// A pool of `count` chunks. They take no memory before they are used.
    ///
    /// # Errors
    /// When the host has no room for the mapping.
    pub fn new(count: usize) -> io::Result<Arc<Self>> {
        let bytes = Self::bytes(count).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping that nobody else knows of.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for advice in [libc::MADV_DONTDUMP, libc::MADV_NOHUGEPAGE] {
            // SAFETY: advice about our own mapping, which changes no content. A kernel that does not know
            // it is as good.
            unsafe { libc::madvise(base, bytes, advice) };
        }
        Ok(Arc::new(BouncePool {
            base: base.cast(),
            count,
            free: Mutex::new((0..count).collect()),
            left: AtomicUsize::new(count),
        }))
    }

    /// Whether somebody could have a chunk.
    pub fn has_room(&self) -> bool {
        self.left.load(Ordering::Acquire) > 0
    }

    /// A chunk that nobody has; `None` when there is none.
    pub fn take(self: &Arc<Self>) -> Option<Chunk> {
        let mut free = lock(&self.free);
        let number = free.pop()?;
        self.left.store(free.len(), Ordering::Release);
        Some(Chunk {
            memory: self.base.wrapping_add(number.saturating_mul(CHUNK_BYTES)),
            number,
            pool: self.clone(),
        })
    }

    fn bytes(count: usize) -> Option<usize> {
        count.checked_mul(CHUNK_BYTES).filter(|bytes| *bytes > 0)
    }
}

impl Drop for BouncePool {
    fn drop(&mut self) {
        if let Some(bytes) = Self::bytes(self.count) {
            // SAFETY: mapped by `new` with this length; every chunk holds the pool, so there are none.
            unsafe { libc::munmap(self.base.cast(), bytes) };
        }
    }
}

/// [`CHUNK_BYTES`] bytes at a multiple of a page, given back to their pool when they are dropped.
#[derive(Debug)]
pub struct Chunk {
    memory: *mut u8,
    number: usize,
    pool: Arc<BouncePool>,
}

impl Chunk {
    /// The first of its bytes.
    pub fn memory(&self) -> *mut u8 {
        self.memory
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut free = lock(&self.pool.free);
        free.push(self.number);
        self.pool.left.store(free.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_no_more_than_it_has_and_takes_all_back() {
        let pool = BouncePool::new(3).unwrap();
        let chunks: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(chunks.len(), 3);
        assert!(!pool.has_room());
        let mut addresses: Vec<_> = chunks.iter().map(|c| c.memory().addr()).collect();
        addresses.sort_unstable();
        for pair in addresses.windows(2) {
            assert_eq!(pair[1] - pair[0], CHUNK_BYTES, "chunks do not overlap");
        }
        assert!(addresses.iter().all(|at| at % 4096 == 0));
        drop(chunks);
        assert!(pool.has_room());
        // Each of them again, one after the other.
        for _ in 0..10 {
            assert!(pool.take().is_some());
        }
        assert!(BouncePool::new(0).is_err() && BouncePool::new(usize::MAX).is_err());
    }
}
