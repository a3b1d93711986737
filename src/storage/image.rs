//! What a disk's content is to whoever works with it: an [`Image`], and the [`Work`] that it is asked to do.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

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

impl Work {
    /// Whether it is a read that ended with this `error` because the file has been cut short. Who knows the image's format
    /// knows what is to be read there.
    pub fn is_cut(self, error: &io::Error) -> bool {
        matches!(self, Work::Read { .. }) && error.kind() == io::ErrorKind::UnexpectedEof
    }
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

    /// The same with its helper, if another process reads its format: then an engine may go to the file
    /// itself where the helper has said what is there.
    fn helped(self: Arc<Self>) -> Option<Arc<dyn Helped>> {
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

/// An image whose format is read by another process, the helper.
pub trait Helped: Image {
    /// The files of its chain, of which byte n is byte n: the image's own, then that on which it rests, and so on.
    fn files(&self) -> Vec<Arc<dyn Image>>;

    /// Adds a queue: `event` becomes readable when the helper has done something for it, or is gone. Returns
    /// its number.
    ///
    /// # Errors
    /// When the helper is gone, or has as many queues as it can.
    fn add_queue(&self, event: &Arc<EventFd>) -> io::Result<u32>;

    /// Gives a queue's number back.
    fn remove_queue(&self, queue: u32);

    /// How `work` may be done without the helper, if it may.
    fn direct(&self, work: Work, buffers: &mut IoBuffers) -> Option<Direct>;

    /// Gives back a claim.
    fn end_direct(&self, claim: u32);

    /// Has the helper begin with `work`; false if that is not possible yet. Then the queue's event becomes
    /// readable when it may be.
    fn ask(&self, work: Work, buffers: &mut IoBuffers, errand: &mut Errand) -> bool;

    /// How the work of an errand that has begun has ended, if it has.
    fn answer(
        &self,
        work: Work,
        buffers: &mut IoBuffers,
        errand: &mut Errand,
    ) -> Option<io::Result<()>>;

    /// Whether the errand may have an answer: a look that costs next to nothing.
    fn has_answer(&self, errand: &Errand) -> bool;

    /// Waits a moment for the answer of an errand that has begun.
    fn wait(&self, errand: &Errand);

    /// Forgets an errand that has not begun.
    fn forget(&self, errand: &mut Errand);

    /// Has the queue's event become readable at the next end.
    fn arm(&self, queue: u32);

    /// The queue looks by itself from now on.
    fn disarm(&self, queue: u32);
}

/// What can be done without a helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// It has been done: what was to be read is zeros.
    Done,
    /// This, on a file.
    On {
        /// The number of the file among [`Helped::files`].
        file: usize,
        /// The work at its place there.
        work: Work,
        /// To be given back when it is done.
        claim: u32,
    },
}

/// How far the helper is with some work.
#[derive(Debug)]
pub struct Errand {
    /// The queue that wants to know of its end.
    pub queue: u32,
    /// Where it lies in the memory that is shared with the helper.
    pub slot: Option<usize>,
    /// The announcement of a change.
    pub change: Option<u32>,
    /// When it began, by the clock of the image.
    pub since: u64,
    /// Bytes of the part that is under way.
    pub part: usize,
}

impl Errand {
    /// One that has not begun.
    pub fn of(queue: u32) -> Self {
        Errand {
            queue,
            slot: None,
            change: None,
            since: 0,
            part: 0,
        }
    }
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
