//! Where sectors live, and how they move.
//!
//! A [`Storage`] reads and writes bytes at an offset, straight from and into guest pages. It knows
//! nothing of virtio: the same trait serves a unit test that has a temporary file and two buffers.

pub mod buffers;
pub mod lock;
pub mod raw;

use std::io;

pub use buffers::IoBuffers;
pub use raw::{OpenError, RawDisk};

/// Bytes in a sector, the unit of virtio-blk (virtio 1.2, 5.2.4) and of every disk image's length.
pub const SECTOR_BYTES: u64 = 512;

/// A disk's content.
pub trait Storage: Send {
    /// Length in bytes, a multiple of [`SECTOR_BYTES`].
    fn len(&self) -> u64;

    /// True for a disk of no sectors.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills all of `buffers` from byte `offset` on.
    ///
    /// # Errors
    /// Those of the host; a file that has become shorter gives `UnexpectedEof`.
    fn read_at(&mut self, buffers: &mut IoBuffers, offset: u64) -> io::Result<()>;

    /// Writes all of `buffers` from byte `offset` on.
    ///
    /// # Errors
    /// Those of the host.
    fn write_at(&mut self, buffers: &mut IoBuffers, offset: u64) -> io::Result<()>;

    /// Returns when everything written before is on stable storage.
    ///
    /// # Errors
    /// Those of the host.
    fn flush(&mut self) -> io::Result<()>;
}
