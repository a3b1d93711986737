//! An image file: bounded reads that say what was missing.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::error::io_reason;

/// An open image of known length.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    /// Where the image begins in the file.
    start: u64,
    len: u64,
}

/// Why an image file cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// open(2) or read(2) refused.
    #[error("{}: {}", path.display(), io_reason(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// A directory, a pipe, a device.
    #[error("{} is {what}, not a file", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// No bytes.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl Source {
    /// Opens a regular file that is not empty.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Io {
            path: path.into(),
            source,
        };
        let meta = std::fs::metadata(path).map_err(failed)?;
        let file_type = meta.file_type();
        let what = if file_type.is_dir() {
            Some("a directory")
        } else if file_type.is_fifo() || file_type.is_socket() {
            Some("a pipe or socket")
        } else if file_type.is_char_device() || file_type.is_block_device() {
            Some("a device")
        } else {
            None
        };
        if let Some(what) = what {
            return Err(SourceError::Kind {
                path: path.into(),
                what,
            });
        }
        Source::of_file(File::open(path).map_err(failed)?, path.into())
    }

    /// A regular file that is open already; `path` is for messages.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn of_file(file: File, path: PathBuf) -> Result<Self, SourceError> {
        match file.metadata() {
            Ok(meta) if meta.len() == 0 => Err(SourceError::Empty { path }),
            Ok(meta) => Ok(Source {
                path,
                file,
                start: 0,
                len: meta.len(),
            }),
            Err(source) => Err(SourceError::Io { path, source }),
        }
    }

    /// The `len` bytes of `file` from `start` on; `path` is for messages.
    ///
    /// # Errors
    /// When the file does not have them.
    pub fn window(file: File, path: PathBuf, start: u64, len: u64) -> Result<Self, SourceError> {
        let whole = Source::of_file(file, path)?;
        if start.checked_add(len).is_none_or(|end| end > whole.len) {
            return Err(SourceError::Io {
                path: whole.path,
                source: io::ErrorKind::UnexpectedEof.into(),
            });
        }
        match len {
            0 => Err(SourceError::Empty { path: whole.path }),
            _ => Ok(Source {
                start,
                len,
                ..whole
            }),
        }
    }

    /// Where in the open file the image begins.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: an empty file is not opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes at `offset`; `None` where the file ends before.
    pub fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(len as u64)?;
        if end > self.len {
            return None;
        }
        let mut bytes = vec![0; len];
        let at = self.start.checked_add(offset)?;
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }

    /// Up to `len` bytes at `offset`.
    pub fn read_up_to(&self, offset: u64, len: usize) -> Vec<u8> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.read(offset, len.min(left)).unwrap_or_default()
    }

    /// Reads what is at `offset` into `bytes`; how many came, of which there may be fewer at any time, and none
    /// where the image ends or cannot be read.
    pub fn read_some(&self, offset: u64, bytes: &mut [u8]) -> usize {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = bytes.len().min(left);
        let bytes = bytes.get_mut(..count).unwrap_or_default();
        let at = self.start.saturating_add(offset);
        loop {
            match self.file.read_at(bytes, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.unwrap_or(0),
            }
        }
    }

    /// Copies `len` bytes at `offset` into guest memory at `to`.
    ///
    /// # Errors
    /// When the file has become shorter or cannot be read, or there is no RAM.
    pub fn load(&self, offset: u64, len: u64, memory: &GuestMemoryMmap, to: u64) -> io::Result<()> {
        use std::io::Seek;
        let count = usize::try_from(len).map_err(io::Error::other)?;
        let mut file = &self.file;
        file.seek(io::SeekFrom::Start(self.start.saturating_add(offset)))?;
        let mut done = 0;
        // One read(2) need not bring all: file systems over a network bring what fits a message.
        while done < count {
            let at = GuestAddress(to.saturating_add(done as u64));
            let left = count.saturating_sub(done);
            match memory.read_volatile_from(at, &mut file, left) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(some) => done = done.saturating_add(some),
                Err(GuestMemoryError::IOError(error))
                    if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(())
    }
}
