//! A raw image: byte n of the disk is byte n of a file or block device.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::access::CacheMode;
use super::image::{Image, Work};
use crate::memory::IoBuffers;

/// Direct I/O wants offsets, lengths and addresses to be multiples of one of these, depending on the
/// device. The least comes first.
const ALIGNMENTS: [u32; 2] = [512, 4096];
/// A page of zeros, which a call writes many times over: on a file system that cannot make a range zero by itself.
#[repr(align(4096))]
struct ZeroPage([u8; 4096]);
static ZERO_PAGE: ZeroPage = ZeroPage([0; 4096]);
/// So many times: 256 KiB.
const ZERO_PAGES: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub struct Raw {
    file: File,
    len: u64,
    alignment: u32,
}

impl Raw {
    /// The image in the first `len` bytes of `file`.
    ///
    /// # Errors
    /// When it was opened for direct I/O that does not work.
    pub fn new(file: File, len: u64, cache: CacheMode) -> io::Result<Self> {
        let alignment = match cache {
            CacheMode::Writeback => 1,
            CacheMode::Direct => probe_alignment(&file)?,
        };
        Ok(Raw {
            file,
            len,
            alignment,
        })
    }

    fn fallocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        let range = |n: u64| i64::try_from(n).map_err(|_| io::ErrorKind::InvalidInput);
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        loop {
            // SAFETY: the call reads and writes no memory of ours.
            let done = unsafe {
                libc::fallocate64(self.file.as_raw_fd(), mode, range(offset)?, range(len)?)
            };
            if done == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap {
            libc::FALLOC_FL_PUNCH_HOLE
        } else {
            libc::FALLOC_FL_ZERO_RANGE
        };
        match self.fallocate(mode, offset, len) {
            Err(error) if is_not_for_here(&error) => self.write_zeros(offset, len),
            result => result,
        }
    }

    fn write_zeros(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        let page = |left: u64| libc::iovec {
            iov_base: ZERO_PAGE.0.as_ptr().cast_mut().cast(),
            iov_len: left.min(ZERO_PAGE.0.len() as u64) as usize,
        };
        while len > 0 {
            let mut left = len;
            let mut vector = [page(0); ZERO_PAGES];
            for entry in &mut vector {
                *entry = page(left);
                left = left.saturating_sub(entry.iov_len as u64);
            }
            let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            let (fd, count) = (self.file.as_raw_fd(), vector.len() as libc::c_int);
            // SAFETY: each entry is the page of zeros, or a part of it, which is only read.
            match unsafe { libc::pwritev(fd, vector.as_ptr(), count, at) } {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written @ 1.. => {
                    offset = offset.saturating_add(written.unsigned_abs() as u64);
                    len = len.saturating_sub(written.unsigned_abs() as u64);
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
}

/// The errors of a file system that has no such call, or of a device whose blocks are larger than the
/// range.
fn is_not_for_here(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

/// The least alignment that a read with O_DIRECT succeeds with.
fn probe_alignment(file: &File) -> io::Result<u32> {
    let mut memory = vec![0; 8192];
    let start = memory.as_ptr().align_offset(4096).min(4096);
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for alignment in ALIGNMENTS {
        let end = start.saturating_add(alignment as usize);
        let Some(buffer) = memory.get_mut(start..end) else {
            continue;
        };
        match file.read_at(buffer, 0) {
            Ok(_) => return Ok(alignment),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Image for Raw {
    fn len(&self) -> u64 {
        self.len
    }

    fn raw_file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn alignment(&self) -> u32 {
        self.alignment
    }

    fn run(&self, work: Work, buffers: &mut IoBuffers) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        match work {
            Work::Read { offset } => buffers.drive(offset, |segments, at| {
                // SAFETY: every segment was checked to be guest RAM that `buffers` keeps mapped,
                // or is a chunk of their own; the kernel writes only into them, and there are no
                // Rust references into them.
                unsafe { libc::preadv(fd, segments.as_ptr(), segments.len() as libc::c_int, at) }
            }),
            Work::Write { offset, durable } => buffers.drive(offset, |segments, at| {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                let count = segments.len() as libc::c_int;
                // SAFETY: as above; the kernel only reads from the segments.
                unsafe {
                    if durable {
                        libc::pwritev2(fd, segments.as_ptr(), count, at, flags)
                    } else {
                        libc::pwritev(fd, segments.as_ptr(), count, at)
                    }
                }
            }),
            Work::Flush => self.file.sync_data(),
            Work::Discard { offset, len } => {
                match self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len) {
                    // A hint (virtio 1.2, 5.2.6.2): the content may stay.
                    Err(error) if is_not_for_here(&error) => Ok(()),
                    result => result,
                }
            }
            Work::Zero { offset, len, unmap } => self.zero(offset, len, unmap),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    fn disk(bytes: &[u8]) -> Raw {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Raw::new(file, bytes.len() as u64, CacheMode::Writeback).unwrap()
    }

    fn memory() -> Arc<GuestMemoryMmap> {
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap())
    }

    #[test]
    fn sectors_go_out_and_come_back() {
        let disk = disk(&[7; 4096]);
        let memory = memory();
        memory.write_slice(&[9; 512], GuestAddress(0x100)).unwrap();
        let mut buffers = IoBuffers::new(memory.clone());
        assert!(buffers.push(GuestAddress(0x100), 512));
        let write = |durable| Work::Write {
            offset: 1024,
            durable,
        };
        disk.run(write(false), &mut buffers).unwrap();
        disk.run(Work::Flush, &mut buffers).unwrap();

        buffers.clear();
        assert!(buffers.push(GuestAddress(0x1000), 1000));
        assert!(buffers.push(GuestAddress(0x2000), 1048));
        disk.run(Work::Read { offset: 0 }, &mut buffers).unwrap();
        let mut back = vec![0; 2048];
        memory
            .read_slice(&mut back[..1000], GuestAddress(0x1000))
            .unwrap();
        memory
            .read_slice(&mut back[1000..], GuestAddress(0x2000))
            .unwrap();
        assert!(back[..1024].iter().all(|&b| b == 7));
        assert!(back[1024..1536].iter().all(|&b| b == 9));
        assert!(back[1536..].iter().all(|&b| b == 7));
    }

    #[test]
    fn a_file_cut_short_at_run_time_is_an_error() {
        let disk = disk(&[7; 4096]);
        disk.file.set_len(512).unwrap();
        let memory = memory();
        let mut buffers = IoBuffers::new(memory);
        assert!(buffers.push(GuestAddress(0), 4096));
        assert_eq!(
            disk.run(Work::Read { offset: 0 }, &mut buffers)
                .unwrap_err()
                .kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn ranges_become_zeros_and_holes() {
        use std::os::unix::fs::MetadataExt;
        let disk = disk(&[7; 1 << 20]);
        let mut none = IoBuffers::new(memory());
        let zero = |offset, len, unmap| Work::Zero { offset, len, unmap };
        disk.run(zero(512, 1024, false), &mut none).unwrap();
        disk.write_zeros(4096, 200_000).unwrap();
        disk.write_zeros(500_000, 300_000).unwrap();
        let mut back = vec![1; 1 << 20];
        disk.file.read_exact_at(&mut back, 0).unwrap();
        for (at, byte) in back.iter().enumerate() {
            let cleared = (512..1536).contains(&at)
                || (4096..204_096).contains(&at)
                || (500_000..800_000).contains(&at);
            assert_eq!(*byte == 0, cleared, "{at}");
        }
        let before = disk.file.metadata().unwrap().blocks();
        disk.run(zero(0, 512 << 10, true), &mut none).unwrap();
        let discard = Work::Discard {
            offset: 512 << 10,
            len: 256 << 10,
        };
        disk.run(discard, &mut none).unwrap();
        let meta = disk.file.metadata().unwrap();
        assert_eq!(meta.len(), 1 << 20, "holes do not shorten a file");
        assert!(
            meta.blocks() <= before.saturating_sub(1024),
            "space came back"
        );
    }
}
