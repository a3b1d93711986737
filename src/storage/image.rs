//! What a disk's content is to whoever works with it: an [`Image`], and the [`Work`] that it is asked to do.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::memory::IoBuffers;

/// Bytes in a sector, the unit of virtio-blk (virtio 1.2, 5.2.4) and of every disk image's length.
pub const SECTOR_BYTES: u64 = 512;

/// What is to be done with a stretch of a disk. Offsets and lengths are in bytes, and checked to
/// lie on the disk by whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Fill the buffers from `offset` on.
    Read {
        /// First byte.
        offset: u64,
    },
    /// Write the buffers from `offset` on.
    Write {
        /// First byte.
        offset: u64,
        /// Done only when it is on stable storage.
        durable: bool,
    },
    /// Make durable all writes that have been done.
    Flush,
    /// The content is not needed any more; it may become anything, or stay.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Make the content zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The host may take the space back.
        unmap: bool,
    },
}

/// Some work, its buffers, and a number by which whoever asked knows it again.
pub struct Job {
    /// The asker's own.
    pub token: u16,
    /// What to do.
    pub work: Work,
    /// With what.
    pub buffers: IoBuffers,
}

/// A disk's content.
pub trait Image: Send + Sync {
    /// Length in bytes, a multiple of [`SECTOR_BYTES`].
    fn len(&self) -> u64;

    /// True for a disk of no sectors.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Does `work` and returns when it is done.
    ///
    /// # Errors
    /// Those of the host; a file that has become shorter gives `UnexpectedEof`.
    fn run(&self, work: Work, buffers: &mut IoBuffers) -> io::Result<()>;

    /// The file of which byte n is byte n of the disk, if that is all there is to it: then an
    /// engine may go to the file itself.
    fn raw_file(&self) -> Option<&File> {
        None
    }

    /// The same as two layers, if it is made of them: then an engine may go to each of them.
    fn layers(self: Arc<Self>) -> Option<Arc<dyn Layers>> {
        None
    }

    /// What offsets, lengths and addresses in memory must be a multiple of; 1 where they need not.
    fn alignment(&self) -> u32 {
        1
    }
}

/// Where the bytes of a stretch of a layered image are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// All in the base.
    Base,
    /// All in the top.
    Top,
    /// Some here, some there.
    Both,
}

/// An image that is made of two: a base that is only read, and a top that holds what was written.
pub trait Layers: Image {
    /// The image below, which is not changed.
    fn base(&self) -> &Arc<dyn Image>;

    /// The image above; it is a raw file.
    fn top(&self) -> Arc<dyn Image>;

    /// Where the `len` bytes from `offset` on are.
    fn place(&self, offset: u64, len: u64) -> Place;

    /// Writes `buffers` at `offset` into the top, if that is nothing but a copy into the page cache;
    /// `None` if it is more.
    fn write_whole(&self, offset: u64, buffers: &mut IoBuffers) -> Option<io::Result<()>>;

    /// The error of a write to the top, in words that name its file.
    fn explained(&self, error: io::Error) -> io::Error;
}

/// Makes zeros in the top. They always become a hole: its space is the host's, whatever the guest wants
/// of its disk.
pub fn hole(offset: u64, len: u64) -> Work {
    Work::Zero {
        offset,
        len,
        unmap: true,
    }
}
