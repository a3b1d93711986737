//! A disk whose writes are thrown away: an image that is only read, and over it a file without a
//! name that takes what is written.
//!
//! ```text
//!             ┌───────────── grains: one bit for each 4 KiB ─────────────┐
//!             │ 0                                                        │ 1
//!   read ─────┴─▶ base: any image, opened for reading      read, write ──┴─▶ top: an unnamed file
//!                   └── the rest of a grain that is written in part ──────────▶ at the same offsets
//! ```
//!
//! Byte n of the disk is byte n of the top's file, which is sparse: it takes space for what is written
//! and never more than the disk is long. Zeros are holes in it.
//!
//! Nothing in the top has to outlive the process. So it is never flushed, and goes through the
//! host's page cache also where the base does not.

mod error;
mod folder;
mod grains;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::access::CacheMode;
use super::image::{Image, Layers, Place, Work, hole};
use super::raw::Raw;
use crate::memory::{IoBuffers, ram};
pub use error::OverlayError;
use grains::{Claim, Grains};

/// Where a write covers a part of a grain, the rest is copied from the base in pieces of this length.
/// Each of a disk's threads may have one in hand.
pub const PIECE: u32 = 64 << 10;

/// See the [module](self).
pub struct Overlay {
    base: Arc<dyn Image>,
    top: Arc<Top>,
    grains: Grains,
    len: u64,
    /// Memory for pieces that are on their way from the base to the top.
    spare: Mutex<Vec<Arc<GuestMemoryMmap>>>,
}

impl Overlay {
    /// An overlay, empty as yet, over `base`, which was opened from `path`.
    ///
    /// # Errors
    /// See [`OverlayError`].
    pub fn over(base: Arc<dyn Image>, path: &Path) -> Result<Self, OverlayError> {
        let whole = base.len();
        let len = whole.saturating_sub(whole % u64::from(base.alignment().max(1)));
        let grains = Grains::new(len).ok_or(OverlayError::Length { len })?;
        let (file, folder) = folder::make(len)?;
        log::info!(
            "disk {}: what the guest writes goes to an unnamed file in {}, gone at the end",
            path.display(),
            folder.display()
        );
        Overlay::of(base, grains, file, len, (path.into(), folder))
    }

    fn of(
        base: Arc<dyn Image>,
        grains: Grains,
        file: File,
        len: u64,
        (path, folder): (PathBuf, PathBuf),
    ) -> Result<Self, OverlayError> {
        let raw = Raw::new(file, len, CacheMode::Writeback);
        let raw = raw.map_err(|source| OverlayError::Make {
            folder: folder.clone(),
            source,
        })?;
        Ok(Overlay {
            base,
            top: Arc::new(Top { raw, path, folder }),
            grains,
            len,
            spare: Mutex::default(),
        })
    }

    fn put(&self, offset: u64, buffers: &mut IoBuffers, claim: &Claim<'_>) -> io::Result<()> {
        self.top.run(write(offset), buffers)?;
        self.grains.set(claim);
        Ok(())
    }

    fn read(&self, offset: u64, buffers: &mut IoBuffers) -> io::Result<()> {
        let end = offset.saturating_add(buffers.len());
        let mut at = offset;
        while at < end {
            let (there, same) = self.grains.run(self.grains.touched(at, end));
            let stop = self.grains.start(same).min(end);
            let from: &dyn Image = if there { &*self.top } else { &*self.base };
            let work = Work::Read { offset: at };
            if at == offset && stop == end {
                return from.run(work, buffers);
            }
            buffers.part(stop.saturating_sub(at), |part| from.run(work, part))?;
            at = stop;
        }
        Ok(())
    }

    /// Has `put` change the bytes from `offset` to before `end` in the top. Where their grains are not
    /// all there yet, the rest of the first and the last one is copied from the base before.
    fn change(
        &self,
        offset: u64,
        end: u64,
        put: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let touched = self.grains.touched(offset, end);
        if self.grains.has_all(touched.clone()) {
            return put();
        }
        let claim = self.grains.claim(touched.clone());
        let first = self.grains.start(touched.start);
        let last = self.grains.start(touched.end.saturating_sub(1));
        let past = self.grains.start(touched.end).min(self.len);
        let in_base = |at: u64| {
            !self
                .grains
                .has_all(self.grains.touched(at, at.saturating_add(1)))
        };
        // Both are asked before anything is copied, as the first grain and the last may be the same.
        let (head, tail) = (in_base(first), in_base(last));
        if head {
            self.copy(first, offset)?;
        }
        if tail {
            self.copy(end, past)?;
        }
        put()?;
        self.grains.set(&claim);
        Ok(())
    }

    /// Copies what lies between two offsets from the base to the top.
    fn copy(&self, mut from: u64, to: u64) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        let memory = self.borrow()?;
        let mut buffers = IoBuffers::new(memory.clone());
        let mut result = Ok(());
        while from < to && result.is_ok() {
            let len = to.saturating_sub(from).min(PIECE.into());
            let mut piece = |image: &dyn Image, work| {
                buffers.clear();
                match buffers.push(GuestAddress(0), len as u32) {
                    true => image.run(work, &mut buffers),
                    false => Err(io::ErrorKind::OutOfMemory.into()),
                }
            };
            result = piece(&*self.base, Work::Read { offset: from })
                .and_then(|()| piece(&*self.top, write(from)));
            from = from.saturating_add(len);
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push(memory);
        result
    }

    fn borrow(&self) -> io::Result<Arc<GuestMemoryMmap>> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = spare.pop() {
            return Ok(memory);
        }
        // A mapping of its own, so that it is aligned for any host's direct I/O.
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PIECE as usize)])
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        ram::leave_out_of_core_dumps(&memory);
        Ok(Arc::new(memory))
    }
}

/// A write to the top: what is thrown away at the end need not be durable.
fn write(offset: u64) -> Work {
    Work::Write {
        offset,
        durable: false,
    }
}

impl Layers for Overlay {
    /// What is read where nothing has been written.
    fn base(&self) -> &Arc<dyn Image> {
        &self.base
    }

    /// What is written, at its offsets.
    fn top(&self) -> Arc<dyn Image> {
        self.top.clone()
    }

    /// An error of the top's file, with what the user has to know of it.
    fn explained(&self, error: io::Error) -> io::Error {
        self.top.explained(error)
    }

    /// Where the `len` bytes from `offset` on are. What is in the top stays there.
    fn place(&self, offset: u64, len: u64) -> Place {
        let touched = self.grains.touched(offset, offset.saturating_add(len));
        let end = touched.end;
        match self.grains.run(touched) {
            (true, same) if same >= end => Place::Top,
            (false, same) if same >= end => Place::Base,
            _ => Place::Both,
        }
    }

    /// Writes what needs nothing from the base, if nobody is at work on the same grains: all that
    /// the host does for it is a copy into its page cache.
    fn write_whole(&self, offset: u64, buffers: &mut IoBuffers) -> Option<io::Result<()>> {
        let end = offset.saturating_add(buffers.len());
        let grain = self.grains.bytes();
        if !offset.is_multiple_of(grain) || (!end.is_multiple_of(grain) && end < self.len) {
            return None;
        }
        let claim = self.grains.try_claim(self.grains.touched(offset, end))?;
        Some(self.put(offset, buffers, &claim))
    }
}

impl Image for Overlay {
    fn len(&self) -> u64 {
        self.len
    }

    fn run(&self, work: Work, buffers: &mut IoBuffers) -> io::Result<()> {
        match work {
            Work::Read { offset } => self.read(offset, buffers),
            Work::Write { offset, .. } => {
                let end = offset.saturating_add(buffers.len());
                self.change(offset, end, || self.top.run(write(offset), buffers))
            }
            Work::Zero { offset, len, .. } => {
                let end = offset.saturating_add(len);
                self.change(offset, end, || self.top.run(hole(offset, len), buffers))
            }
            Work::Flush => Ok(()),
            // Space of the top comes back; what is in the base stays what it is.
            Work::Discard { .. } => self.top.run(work, buffers),
        }
    }

    fn alignment(&self) -> u32 {
        self.base.alignment()
    }

    fn layers(self: Arc<Self>) -> Option<Arc<dyn Layers>> {
        Some(self)
    }
}

/// The file that is written.
struct Top {
    raw: Raw,
    /// The disk's.
    path: PathBuf,
    folder: PathBuf,
}

impl Image for Top {
    fn len(&self) -> u64 {
        self.raw.len()
    }

    fn raw_file(&self) -> Option<&File> {
        self.raw.raw_file()
    }

    fn run(&self, work: Work, buffers: &mut IoBuffers) -> io::Result<()> {
        let result = self.raw.run(work, buffers);
        result.map_err(|error| self.explained(error))
    }
}

impl Top {
    /// Says which folder is full, as the user knows of the image alone and would look there.
    fn explained(&self, error: io::Error) -> io::Error {
        match error.kind() {
            kind @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                let text = format!(
                    "disk {}: no room in {} for what its guest writes; set TMPDIR to a folder \
                     with more, the next time",
                    self.path.display(),
                    self.folder.display()
                );
                io::Error::new(kind, text)
            }
            _ => error,
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
