//! Why a disk cannot have an overlay, and what its owner can do about it.

use std::io;
use std::path::PathBuf;

use super::grains;
use crate::error::{Help, io_reason};

/// Why a disk cannot have an overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// No file for it.
    #[error("no file in {} for what a snapshot's guest writes: {}", folder.display(), io_reason(source))]
    Make {
        /// Where it was to be.
        folder: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// More bits than there may be.
    #[error("a snapshot's disk is at most {} TiB long, and this one has {len} bytes", grains::MAX_LEN >> 40)]
    Length {
        /// Of the disk.
        len: u64,
    },
}

impl Help for OverlayError {
    fn help(&self) -> String {
        match self {
            OverlayError::Make { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => {
                "the file is as long as the disk, with holes: raise 'ulimit -f', or set TMPDIR to a \
                 folder on a file system with longer files (xfs, tmpfs)"
                    .into()
            }
            OverlayError::Make { source, .. }
                if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) =>
            {
                "allow more open files: 'ulimit -n 256'".into()
            }
            OverlayError::Make { .. } => {
                "set TMPDIR to a folder in which you may write, with room for what is written".into()
            }
            OverlayError::Length { .. } => "attach it with ',ro', or a copy of it".into(),
        }
    }
}
