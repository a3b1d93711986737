//! A list of guest memory ranges as the kernel's `struct iovec`, checked once.

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

/// Linux's UIO_MAXIOV: the most segments one `preadv(2)` takes.
const MAX_SEGMENTS_PER_CALL: usize = 1024;

/// Guest memory ranges, in order, for one transfer.
///
/// Owns a reference to the guest's memory, so the pointers stay mapped as long as it lives, and is
/// meant to be kept and [cleared](IoBuffers::clear) from request to request: no allocation then.
pub struct IoBuffers {
    memory: Arc<GuestMemoryMmap>,
    segments: Vec<libc::iovec>,
    /// Segments before this one are done.
    next: usize,
    bytes: u64,
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
        }
    }

    /// Forgets all ranges, keeps the allocation.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.next = 0;
        self.bytes = 0;
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
        let before = self.segments.len();
        let Ok(slices) =
            self.memory
                .get_slices(addr, len as usize, vm_memory::Permissions::ReadWrite)
        else {
            return false;
        };
        for slice in slices {
            let Ok(slice) = slice else {
                self.segments.truncate(before);
                return false;
            };
            self.segments.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        self.bytes = self.bytes.saturating_add(u64::from(len));
        true
    }

    /// Calls `transfer` (a `preadv`-like call) until all bytes have moved.
    ///
    /// `transfer` gets the segments that are left and the file offset where they begin, and
    /// answers as the system call does: bytes moved, or -1 and errno.
    pub(super) fn drive(
        &mut self,
        mut offset: u64,
        mut transfer: impl FnMut(&[libc::iovec], i64) -> isize,
    ) -> io::Result<()> {
        while let Some(rest) = self.segments.get(self.next..).filter(|r| !r.is_empty()) {
            let batch = rest.get(..MAX_SEGMENTS_PER_CALL).unwrap_or(rest);
            let at =
                i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            match transfer(batch, at) {
                0 if batch.iter().all(|segment| segment.iov_len == 0) => {
                    self.next = self.next.saturating_add(batch.len());
                }
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                moved if moved > 0 => {
                    offset = offset.saturating_add(moved.unsigned_abs() as u64);
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
    fn advance(&mut self, mut count: usize) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn an_end_of_file_is_an_error_and_not_a_loop() {
        let mut buffers = IoBuffers::new(memory());
        assert!(buffers.push(GuestAddress(0), 10));
        let error = buffers.drive(0, |_, _| 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
