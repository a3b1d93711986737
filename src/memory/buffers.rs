//! A list of guest memory ranges as the kernel's `struct iovec`, checked once.
//!
//! A driver names its buffers by guest physical addresses; preadv(2), pwritev(2) and io_uring want
//! addresses of this process. [`IoBuffers::push`] turns one into the other, and refuses what is not RAM.
//! Direct I/O wants buffers at multiples of a block's length as well; where the guest's are not, a
//! [chunk](super::bounce) of our own goes between ([`IoBuffers::align`]), and whoever moves the bytes finds
//! one window after the other in it.

use std::io;
use std::sync::Arc;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::bounce::{BouncePool, CHUNK_BYTES, Chunk};

/// Linux's UIO_MAXIOV: the most segments one `preadv(2)` takes.
pub const MAX_SEGMENTS_PER_CALL: usize = 1024;

/// A list that has been used keeps room for so many segments: what Linux reads ahead is 32 pages. Longer
/// ones are allocated when they are needed, which is next to nothing beside the bytes that they move.
pub const KEPT_SEGMENTS: usize = 32;

/// Guest memory ranges, in order, for one transfer.
///
/// Owns a reference to the guest's memory, so the pointers stay mapped as long as it lives, and is
/// meant to be kept and [cleared](IoBuffers::clear) from request to request, so that few requests allocate.
pub struct IoBuffers {
    memory: Arc<GuestMemoryMmap>,
    segments: Vec<libc::iovec>,
    /// Segments before this one are done.
    next: usize,
    bytes: u64,
    moved: u64,
    bounce: Option<Bounce>,
}

/// A chunk that is used instead of guest memory which direct I/O cannot use.
struct Bounce {
    chunk: Chunk,
    /// What is left of the piece that is in the chunk. The guest's segments are those that follow `next`.
    window: [libc::iovec; 1],
    /// The chunk gets what the guest has; else the guest gets what is moved into it.
    fill: bool,
}

// SAFETY: the raw pointers in `segments` point into `memory`, which is Send and Sync and which this
// object keeps mapped, and that of the window into a chunk that it owns; they are only handed to the kernel,
// and copied from and to by whoever has the object.
unsafe impl Send for IoBuffers {}

impl IoBuffers {
    /// An empty list over `memory`.
    pub fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        IoBuffers {
            memory,
            segments: Vec::new(),
            next: 0,
            bytes: 0,
            moved: 0,
            bounce: None,
        }
    }

    /// Forgets all ranges, and keeps a small allocation for the next ones.
    pub fn clear(&mut self) {
        self.segments.clear();
        if self.segments.capacity() > KEPT_SEGMENTS {
            self.segments.shrink_to(KEPT_SEGMENTS);
        }
        self.next = 0;
        self.bytes = 0;
        self.moved = 0;
        self.bounce = None;
    }

    /// Makes room for `count` ranges, so that the list is as long as they need and no longer.
    pub fn reserve(&mut self, count: usize) {
        if count > KEPT_SEGMENTS {
            self.segments.reserve_exact(count);
        } else if self.segments.capacity() == 0 {
            self.segments.reserve_exact(KEPT_SEGMENTS);
        }
    }

    /// The segments that are left to move; those of a piece, where the bytes go through a chunk. After it has
    /// moved (`advance`) there are more of them, until all bytes have.
    pub fn rest(&self) -> &[libc::iovec] {
        match &self.bounce {
            Some(Bounce { window, .. }) if window.iter().all(|w| w.iov_len == 0) => &[],
            Some(Bounce { window, .. }) => window,
            None => self.segments.get(self.next..).unwrap_or_default(),
        }
    }

    /// How many segments of guest memory there are.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Bytes that have moved.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Makes addresses and lengths multiples of `alignment`, a power of two, by a chunk of `pool` where
    /// the guest's are not. With `fill`, the chunk gets what the guest has there; else the guest gets
    /// what is moved.
    ///
    /// # Errors
    /// When the pool has no chunk.
    pub fn align(
        &mut self,
        alignment: u32,
        fill: bool,
        pool: Option<&Arc<BouncePool>>,
    ) -> io::Result<()> {
        let mask = (alignment as usize).saturating_sub(1);
        let aligned = |s: &libc::iovec| (s.iov_base.addr() | s.iov_len) & mask == 0;
        if mask == 0 || self.segments.iter().all(aligned) {
            return Ok(());
        }
        let chunk = pool
            .and_then(BouncePool::take)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let window = [libc::iovec {
            iov_base: chunk.memory().cast(),
            iov_len: 0,
        }];
        self.bounce = Some(Bounce {
            chunk,
            window,
            fill,
        });
        self.open_window();
        Ok(())
    }

    /// The next piece goes through the chunk, if there is one and something is left.
    fn open_window(&mut self) {
        let left = self.bytes.saturating_sub(self.moved);
        let Some(bounce) = &mut self.bounce else {
            return;
        };
        let len = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        bounce.window = [libc::iovec {
            iov_base: bounce.chunk.memory().cast(),
            iov_len: len,
        }];
        if bounce.fill {
            let mut at = bounce.chunk.memory();
            let rest = self.segments.get(self.next..).unwrap_or_default();
            for (guest, part) in pieces(rest, len) {
                // SAFETY: the guest's range was checked when it was pushed and is mapped as long as `self`; the
                // parts are `len` bytes in all, which is no more than the chunk has. The two are different
                // mappings.
                unsafe { guest.copy_to_nonoverlapping(at, part) };
                at = at.wrapping_add(part);
            }
        }
    }

    /// Total length in bytes of the ranges that were pushed.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// True when no bytes were pushed.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends the `len` bytes at guest physical address `addr`; false, with nothing appended that
    /// would be used, when any of them is not guest RAM.
    #[must_use]
    pub fn push(&mut self, addr: GuestAddress, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        if let Ok(slice) = self.memory.get_slice(addr, len as usize) {
            self.segments.push(segment(&slice));
            self.bytes = self.bytes.saturating_add(u64::from(len));
            return true;
        }
        // Some of it is no RAM, or it lies in two regions.
        let before = self.segments.len();
        for slice in self.memory.get_slices(addr, len as usize) {
            let Ok(slice) = slice else {
                self.segments.truncate(before);
                return false;
            };
            self.segments.push(segment(&slice));
        }
        self.bytes = self.bytes.saturating_add(u64::from(len));
        true
    }

    /// Has `work` move the next `len` bytes, as if they were all there is, and counts them as moved
    /// when it has.
    pub(crate) fn part(
        &mut self,
        len: u64,
        work: impl FnOnce(&mut IoBuffers) -> io::Result<()>,
    ) -> io::Result<()> {
        let later = self.cut(len);
        let (bytes, moved) = (self.bytes, self.moved);
        (self.bytes, self.moved) = (len, 0);
        self.open_window();
        let result = work(self);
        (self.bytes, self.moved) = (bytes, moved.saturating_add(len));
        self.next = self.segments.len();
        self.segments.extend(later);
        self.open_window();
        result
    }

    /// Takes away all segments but those of the next `len` bytes.
    fn cut(&mut self, mut len: u64) -> Vec<libc::iovec> {
        let mut at = self.next;
        while let Some(segment) = self.segments.get_mut(at) {
            let whole = segment.iov_len;
            if len < whole as u64 {
                // The bytes before the cut stay, in a segment of their own if there are any.
                let before = len as usize;
                let after = libc::iovec {
                    iov_base: segment.iov_base.wrapping_byte_add(before),
                    iov_len: whole.saturating_sub(before),
                };
                segment.iov_len = before;
                let keep = at.saturating_add(usize::from(before > 0));
                let mut later = self.segments.split_off(keep.min(self.segments.len()));
                match later.first_mut() {
                    Some(first) if before == 0 => *first = after,
                    _ => later.insert(0, after),
                }
                return later;
            }
            len = len.saturating_sub(whole as u64);
            at = at.saturating_add(1);
        }
        Vec::new()
    }

    /// Calls `transfer` (a `preadv`-like call) until all bytes have moved. What has moved before, by
    /// whatever way, is not moved again.
    ///
    /// `transfer` gets the segments that are left and the file offset where they begin, and
    /// answers as the system call does: bytes moved, or -1 and errno.
    pub(crate) fn drive(
        &mut self,
        offset: u64,
        mut transfer: impl FnMut(&[libc::iovec], i64) -> isize,
    ) -> io::Result<()> {
        loop {
            let rest = self.rest();
            if rest.is_empty() {
                return Ok(());
            }
            let batch = rest.get(..MAX_SEGMENTS_PER_CALL).unwrap_or(rest);
            let at = i64::try_from(offset.saturating_add(self.moved))
                .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            match transfer(batch, at) {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                moved if moved > 0 => {
                    self.advance(moved.unsigned_abs());
                }
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Marks the next `count` bytes as moved. Those that were read into a chunk are copied to where the guest
    /// wants them.
    pub(crate) fn advance(&mut self, count: usize) {
        let Some(Bounce {
            window: [window],
            fill,
            ..
        }) = &mut self.bounce
        else {
            return self.skip(count);
        };
        let count = count.min(window.iov_len);
        let mut at: *mut u8 = window.iov_base.cast();
        window.iov_base = window.iov_base.wrapping_byte_add(count);
        window.iov_len = window.iov_len.saturating_sub(count);
        let (is_done, fill) = (window.iov_len == 0, *fill);
        if !fill {
            let rest = self.segments.get(self.next..).unwrap_or_default();
            for (guest, part) in pieces(rest, count) {
                // SAFETY: as in `open_window`, and the other way round: `count` is no more than is left of the
                // window.
                unsafe { guest.copy_from_nonoverlapping(at, part) };
                at = at.wrapping_add(part);
            }
        }
        self.skip(count);
        if is_done {
            self.open_window();
        }
    }

    /// Leaves the next `count` bytes of the segments behind.
    fn skip(&mut self, mut count: usize) {
        self.moved = self.moved.saturating_add(count as u64);
        while let Some(segment) = self.segments.get_mut(self.next) {
            if count < segment.iov_len {
                segment.iov_base = segment.iov_base.wrapping_byte_add(count);
                segment.iov_len = segment.iov_len.saturating_sub(count);
                return;
            }
            count = count.saturating_sub(segment.iov_len);
            self.next = self.next.saturating_add(1);
        }
    }
}

fn segment<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

/// The first `len` bytes of `segments`: address and length of each piece.
fn pieces(segments: &[libc::iovec], len: usize) -> impl Iterator<Item = (*mut u8, usize)> {
    segments.iter().scan(len, |left, segment| {
        let part = segment.iov_len.min(*left);
        *left = left.saturating_sub(part);
        (part > 0).then_some((segment.iov_base.cast(), part))
    })
}

#[cfg(test)]
#[path = "buffers_tests.rs"]
mod tests;
