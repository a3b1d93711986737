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
    /// [moved](IoBuffers::advance) there are more of them, until all bytes have.
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
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn memory() -> Arc<GuestMemoryMmap> {
        Arc::new(
            GuestMemoryMmap::from_ranges(&[
                (GuestAddress(0), 0x1000),
                (GuestAddress(0x1000), 0x1000),
                (GuestAddress(0x10000), 0x1000),
            ])
            .unwrap(),
        )
    }

    #[test]
    fn ranges_outside_of_ram_are_refused_whole() {
        let mut buffers = IoBuffers::new(memory());
        assert!(!buffers.push(GuestAddress(0x1800), 0x1000));
        assert!(!buffers.push(GuestAddress(u64::MAX), 2));
        assert!(buffers.is_empty());
        assert!(buffers.segments.is_empty());
        assert!(
            buffers.push(GuestAddress(0x800), 0x1000),
            "two regions in a row"
        );
        assert_eq!(buffers.len(), 0x1000);
    }

    #[test]
    fn short_transfers_are_continued_where_they_stopped() {
        let mut buffers = IoBuffers::new(memory());
        assert!(buffers.push(GuestAddress(0), 10));
        assert!(buffers.push(GuestAddress(0x10000), 10));
        let mut seen = Vec::new();
        buffers
            .drive(100, |segments, at| {
                let left: usize = segments.iter().map(|s| s.iov_len).sum();
                seen.push((at, left));
                left.min(7) as isize
            })
            .unwrap();
        assert_eq!(seen, [(100, 20), (107, 13), (114, 6)]);

        buffers.clear();
        assert!(buffers.push(GuestAddress(0), 10));
        buffers.advance(4);
        buffers
            .drive(100, |segments, at| {
                assert_eq!((at, segments[0].iov_len), (104, 6), "the rest alone");
                6
            })
            .unwrap();
    }

    #[test]
    fn parts_are_the_bytes_in_order_wherever_they_are_cut() {
        let lens = [10u32, 5, 1, 20];
        for cuts in [
            vec![36],
            vec![10, 26],
            vec![3, 4, 20, 9],
            vec![15, 1, 19, 1],
        ] {
            let mut buffers = IoBuffers::new(memory());
            for (at, len) in lens.into_iter().enumerate() {
                assert!(buffers.push(GuestAddress(at as u64 * 0x100), len));
            }
            let bytes = |segments: &[libc::iovec]| -> Vec<usize> {
                let each =
                    |s: &libc::iovec| (0..s.iov_len).map(|n| s.iov_base.addr() + n).collect();
                segments
                    .iter()
                    .flat_map(|s| -> Vec<usize> { each(s) })
                    .collect()
            };
            let (all, mut seen) = (bytes(buffers.rest()), Vec::new());
            for cut in &cuts {
                let part = |part: &mut IoBuffers| {
                    assert_eq!((part.len(), part.moved()), (*cut, 0));
                    assert!(part.rest().iter().all(|s| s.iov_len > 0));
                    seen.extend(bytes(part.rest()));
                    part.drive(0, |segments, _| bytes(segments).len() as isize)
                };
                buffers.part(*cut, part).unwrap();
            }
            assert_eq!(seen, all, "{cuts:?}");
            assert_eq!((buffers.len(), buffers.moved()), (36, 36));
            assert!(buffers.rest().is_empty());
        }
    }

    /// A file that is a vector, and takes nothing but whole blocks of 512 bytes at addresses like that.
    fn direct(
        file: &mut [u8],
        write: bool,
        most: usize,
    ) -> impl FnMut(&[libc::iovec], i64) -> isize {
        move |segments, at| {
            let [one] = segments else {
                panic!("{} segments", segments.len());
            };
            assert_eq!((one.iov_base.addr() | one.iov_len | at as usize) % 512, 0);
            let len = one.iov_len.min(most);
            let place = &mut file[at as usize..][..len];
            // SAFETY: what direct I/O does with a buffer of its own, which nobody else has.
            let bytes = unsafe { std::slice::from_raw_parts_mut(one.iov_base.cast::<u8>(), len) };
            match write {
                true => place.copy_from_slice(bytes),
                false => bytes.copy_from_slice(place),
            }
            len as isize
        }
    }

    #[test]
    fn what_direct_io_cannot_use_goes_through_a_chunk_in_pieces() {
        const LEN: usize = 3 * CHUNK_BYTES + 1024;
        let regions = [(GuestAddress(0), LEN + 0x10000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        let pool = BouncePool::new(1).unwrap();
        let text: Vec<u8> = (0..LEN).map(|n| (n % 251) as u8).collect();
        for most in [usize::MAX, 512, 4096 * 3] {
            for write in [true, false] {
                let (from, to) = (0x801u64, 0x804u64);
                let mut buffers = IoBuffers::new(memory.clone());
                assert!(buffers.push(GuestAddress(from), 3));
                assert!(buffers.push(GuestAddress(to), LEN as u32 - 3));
                let mut file = text.clone();
                match write {
                    true => {
                        memory.write_slice(&text, GuestAddress(from)).unwrap();
                        file.fill(0);
                    }
                    false => memory
                        .write_slice(&vec![9; LEN + 8], GuestAddress(from))
                        .unwrap(),
                }
                buffers.align(512, write, Some(&pool)).unwrap();
                assert!(!pool.has_room(), "one request has it");
                let longest = buffers.rest().iter().map(|s| s.iov_len).max();
                assert_eq!(longest, Some(CHUNK_BYTES));
                buffers.drive(0, direct(&mut file, write, most)).unwrap();
                assert_eq!(buffers.moved(), LEN as u64);
                assert!(file == text, "written {write}, {most} at a time");
                let mut back = vec![0; LEN + 1];
                memory.read_slice(&mut back, GuestAddress(from)).unwrap();
                assert!(back[..LEN] == text, "written {write}, {most} at a time");
                assert!(write || back[LEN] == 9, "no more than was asked for");
                buffers.clear();
                assert!(pool.has_room(), "the next one can have it");
            }
        }
    }

    #[test]
    fn parts_of_a_request_go_through_a_chunk_as_well() {
        const LEN: usize = CHUNK_BYTES + 4096;
        let regions = [(GuestAddress(0), LEN + 0x10000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        let pool = BouncePool::new(1).unwrap();
        let text: Vec<u8> = (0..LEN).map(|n| (n % 253) as u8).collect();
        for write in [true, false] {
            memory.write_slice(&text, GuestAddress(0x1001)).unwrap();
            let mut file = text.clone();
            match write {
                true => file.fill(0),
                false => memory
                    .write_slice(&vec![0; LEN], GuestAddress(0x1001))
                    .unwrap(),
            }
            let mut buffers = IoBuffers::new(memory.clone());
            assert!(buffers.push(GuestAddress(0x1001), 100));
            assert!(buffers.push(GuestAddress(0x1065), LEN as u32 - 100));
            buffers.align(512, write, Some(&pool)).unwrap();
            let mut at = 0;
            for len in [512, 4096, CHUNK_BYTES as u64 - 4096, 4096 - 512] {
                let from = at as u64;
                buffers
                    .part(len, |part| {
                        part.drive(from, direct(&mut file, write, usize::MAX))
                    })
                    .unwrap();
                at += len as usize;
            }
            assert_eq!((at, buffers.moved()), (LEN, LEN as u64));
            assert!(buffers.rest().is_empty());
            let mut back = vec![0; LEN];
            memory.read_slice(&mut back, GuestAddress(0x1001)).unwrap();
            assert!(file == text && back == text, "written {write}");
        }
    }

    #[test]
    fn without_a_chunk_there_is_an_error_and_with_good_addresses_none_is_needed() {
        let memory = memory();
        let pool = BouncePool::new(1).unwrap();
        let odd = || {
            let mut buffers = IoBuffers::new(memory.clone());
            assert!(buffers.push(GuestAddress(0x801), 512));
            buffers
        };
        let (mut first, mut second) = (odd(), odd());
        first.align(512, true, Some(&pool)).unwrap();
        assert!(second.align(512, true, Some(&pool)).is_err());
        assert!(odd().align(512, true, None).is_err());
        odd().align(1, true, None).unwrap();
        let mut good = IoBuffers::new(memory.clone());
        assert!(good.push(GuestAddress(0x800), 512));
        good.align(512, true, Some(&pool)).unwrap();
        assert!(good.bounce.is_none(), "already as it should be");
        drop(first);
        second.align(512, true, Some(&pool)).unwrap();
    }

    #[test]
    fn a_list_that_was_long_does_not_stay_so() {
        let mut buffers = IoBuffers::new(memory());
        for count in [1280, 5, 33, 1280] {
            buffers.reserve(count);
            for _ in 0..count {
                assert!(buffers.push(GuestAddress(0), 1));
            }
            assert!(buffers.segments.capacity() <= count.max(KEPT_SEGMENTS));
            buffers.clear();
            assert!(buffers.segments.capacity() <= KEPT_SEGMENTS);
        }
    }

    #[test]
    fn an_end_of_file_is_an_error_and_not_a_loop() {
        let mut buffers = IoBuffers::new(memory());
        assert!(buffers.push(GuestAddress(0), 10));
        let error = buffers.drive(0, |_, _| 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
