//! A list of guest memory ranges as the kernel's `struct iovec`, checked once.
//!
//! A driver names its buffers by guest physical addresses; preadv(2), pwritev(2) and io_uring want
//! addresses of this process. [`IoBuffers::push`] turns one into the other, and refuses what is not RAM.
//! Direct I/O wants buffers at multiples of a block's length as well; where the guest's are not, a buffer
//! of our own goes between ([`IoBuffers::align`]).

use std::alloc::{self, Layout};
use std::io;
use std::sync::Arc;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// Linux's UIO_MAXIOV: the most segments one `preadv(2)` takes.
pub const MAX_SEGMENTS_PER_CALL: usize = 1024;

/// Guest memory ranges, in order, for one transfer.
///
/// Owns a reference to the guest's memory, so the pointers stay mapped as long as it lives, and is
/// meant to be kept and [cleared](IoBuffers::clear) from request to request, so that no request allocates.
pub struct IoBuffers {
    memory: Arc<GuestMemoryMmap>,
    segments: Vec<libc::iovec>,
    /// Segments before this one are done.
    next: usize,
    bytes: u64,
    moved: u64,
    bounce: Option<Bounce>,
}

/// A buffer of ours that is used instead of guest memory which direct I/O cannot use.
struct Bounce {
    memory: *mut u8,
    layout: Layout,
    /// The guest's segments.
    original: Vec<libc::iovec>,
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed here alone.
        unsafe { alloc::dealloc(self.memory, self.layout) }
    }
}

// SAFETY: the raw pointers in `segments` point into `memory`, which is Send and Sync and which this
// object keeps mapped; they are only ever handed to the kernel.
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

    /// Forgets all ranges, and keeps the allocation for the next ones.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.next = 0;
        self.bytes = 0;
        self.moved = 0;
        self.bounce = None;
    }

    /// The segments that are left to move.
    pub fn rest(&self) -> &[libc::iovec] {
        self.segments.get(self.next..).unwrap_or_default()
    }

    /// Bytes that have moved.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Makes addresses and lengths multiples of `alignment`, a power of two, by a buffer of our
    /// own where the guest's are not; `fill` copies what the guest has there into it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn align(&mut self, alignment: u32, fill: bool) -> io::Result<()> {
        let mask = (alignment as usize).saturating_sub(1);
        let aligned = |s: &libc::iovec| (s.iov_base.addr() | s.iov_len) & mask == 0;
        if self.segments.iter().all(aligned) {
            return Ok(());
        }
        let no_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
        let len = usize::try_from(self.bytes).map_err(|_| no_memory())?;
        let layout = Layout::from_size_align(len, alignment as usize).map_err(|_| no_memory())?;
        // SAFETY: the length is not 0, or all segments would be aligned.
        let memory = unsafe { alloc::alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(no_memory());
        }
        let whole = libc::iovec {
            iov_base: memory.cast(),
            iov_len: len,
        };
        let bounce = Bounce {
            memory,
            layout,
            original: std::mem::replace(&mut self.segments, vec![whole]),
        };
        if fill {
            // SAFETY: as `copy` wants it; the guest's side is the source.
            unsafe { bounce.copy(|ours, guest, len| guest.copy_to_nonoverlapping(ours, len)) };
        }
        self.bounce = Some(bounce);
        Ok(())
    }

    /// Ends a use of [`IoBuffers::align`]. With `keep`, what was read is copied to where the guest wants it.
    pub fn restore(&mut self, keep: bool) {
        let Some(bounce) = self.bounce.take() else {
            return;
        };
        if keep {
            // SAFETY: as `copy` wants it; the guest's side is the destination.
            unsafe { bounce.copy(|ours, guest, len| guest.copy_from_nonoverlapping(ours, len)) };
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
        let result = work(self);
        (self.bytes, self.moved) = (bytes, moved.saturating_add(len));
        self.next = self.segments.len();
        self.segments.extend(later);
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
        while let Some(rest) = self.segments.get(self.next..).filter(|r| !r.is_empty()) {
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
        Ok(())
    }

    /// Marks the next `count` bytes as moved.
    pub(crate) fn advance(&mut self, mut count: usize) {
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

impl Bounce {
    /// Calls `copy` for each piece: our address, the guest's, the length.
    ///
    /// # Safety
    /// The guest's memory is still mapped, and `copy` touches no more than the lengths.
    unsafe fn copy(&self, mut copy: impl FnMut(*mut u8, *mut u8, usize)) {
        let mut at = 0usize;
        for segment in &self.original {
            // The segments' lengths add up to the layout's size.
            copy(
                self.memory.wrapping_add(at),
                segment.iov_base.cast(),
                segment.iov_len,
            );
            at = at.saturating_add(segment.iov_len);
        }
    }
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

    #[test]
    fn what_direct_io_cannot_use_is_copied() {
        let memory = memory();
        let mut buffers = IoBuffers::new(memory.clone());
        memory.write_slice(b"abcdef", GuestAddress(0x801)).unwrap();
        assert!(buffers.push(GuestAddress(0x801), 3));
        assert!(buffers.push(GuestAddress(0x804), 509));
        buffers.align(512, true).unwrap();
        let [one] = buffers.rest() else {
            panic!("one buffer")
        };
        assert_eq!((one.iov_base.addr() % 512, one.iov_len), (0, 512));
        // SAFETY: our own buffer of 512 bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(one.iov_base.cast::<u8>(), 512) };
        assert_eq!(&bytes[..6], b"abcdef");
        bytes[1..4].copy_from_slice(b"XYZ");
        buffers.restore(true);
        let mut back = [0; 6];
        memory.read_slice(&mut back, GuestAddress(0x801)).unwrap();
        assert_eq!(&back, b"aXYZef");

        buffers.clear();
        assert!(buffers.push(GuestAddress(0x800), 512));
        buffers.align(512, true).unwrap();
        assert!(buffers.bounce.is_none(), "already as it should be");
    }

    #[test]
    fn an_end_of_file_is_an_error_and_not_a_loop() {
        let mut buffers = IoBuffers::new(memory());
        assert!(buffers.push(GuestAddress(0), 10));
        let error = buffers.drive(0, |_, _| 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    /// Every byte of `segments`, by its address.
    fn addresses(segments: &[libc::iovec]) -> Vec<usize> {
        let bytes = |s: &libc::iovec| (0..s.iov_len).map(|n| s.iov_base.addr() + n).collect();
        segments
            .iter()
            .flat_map(|s| -> Vec<usize> { bytes(s) })
            .collect()
    }

    proptest::proptest! {
        /// Any ranges, some of them in two regions; any cuts, and transfers that stop anywhere.
        #[test]
        fn each_byte_moves_once_and_in_its_place(
            ranges in proptest::collection::vec((0u64..0x1f00, 0u32..90), 1..8),
            mut cuts in proptest::collection::vec(0u64..60, 0..12),
            stops in proptest::collection::vec(1usize..50, 1..6),
        ) {
            let mut buffers = IoBuffers::new(memory());
            for (at, len) in ranges {
                proptest::prop_assert!(buffers.push(GuestAddress(at), len));
            }
            let all = addresses(buffers.rest());
            proptest::prop_assert_eq!(all.len() as u64, buffers.len());
            let (mut left, mut seen, mut stops) = (buffers.len(), Vec::new(), stops.into_iter().cycle());
            cuts.push(u64::MAX);
            for cut in cuts {
                let len = cut.min(left);
                left -= len;
                let done = buffers.part(len, |part| {
                    let wanted = part.len();
                    let moved = part.drive(1 << 40, |segments, at| {
                        let bytes = addresses(segments);
                        assert_eq!(at as u64 - (1 << 40) + bytes.len() as u64, wanted);
                        let some = bytes.len().min(stops.next().unwrap());
                        seen.extend(&bytes[..some]);
                        some as isize
                    });
                    moved.map(|()| assert_eq!(part.moved(), wanted))
                });
                proptest::prop_assert!(done.is_ok());
            }
            proptest::prop_assert_eq!(seen, all);
            proptest::prop_assert_eq!(buffers.moved(), buffers.len());
        }
    }
}
