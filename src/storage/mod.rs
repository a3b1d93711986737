//! Where sectors live, and how they move.
//!
//! ```text
//!   a virtqueue's worker                         the host
//!   ────────────────────                         ────────
//!   Job { work, buffers } ──▶ Engine::submit ─▶ io_uring, or threads ─┐
//!                             Engine::commit                           ├─▶ Image ─▶ file
//!   Job, io::Result       ◀── Engine::complete ◀── an event fd ────────┘
//! ```
//!
//! - an [`Image`] knows which bytes of the disk are where: [`raw`], [`qcow2`], and over one of them,
//!   for a disk whose writes are thrown away, an [`overlay`];
//! - an [`Engine`] keeps many requests going at once and tells of their ends by an event fd;
//! - [`IoBuffers`](crate::memory::buffers): guest memory as the kernel wants it; nothing is copied on the way;
//! - [`mod@format`]: which formats of images there are; [`access`], [`open`]: from a path to an image;
//!   [`foreign`]: what is refused there, as it is no disk of ours.
//!
//! Nothing here knows of virtio: the same types serve a test that has a file and two buffers.

pub mod access;
pub mod aligned;
pub mod engine;
pub mod error;
pub mod foreign;
pub mod format;
pub mod lock;
pub mod open;
pub mod overlay;
pub mod qcow2;
pub mod raw;

use std::fs::File;
use std::io;
use std::sync::Arc;

pub use crate::memory::IoBuffers;
pub use access::{Access, CacheMode};
pub use engine::{Engine, IoMode};
pub use error::OpenError;
pub use format::Format;
pub use open::Opened;
pub use overlay::{Overlay, OverlayError};

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

    /// The same as an overlay, if it is one: then an engine may go to the images that it is made of.
    fn overlay(self: Arc<Self>) -> Option<Arc<Overlay>> {
        None
    }

    /// What offsets, lengths and addresses in memory must be a multiple of; 1 where they need not.
    fn alignment(&self) -> u32 {
        1
    }
}
