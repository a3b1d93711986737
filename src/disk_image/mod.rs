//! Disk images as files: `bantam image`.
//!
//! - [`create`]: a new one, empty;
//! - [`info`]: what one is;
//! - [`convert`]: one made into another;
//! - [`resize`]: another length.
//!
//! A new file has no name before it is whole ([`target`]): whatever ends the command, nothing half
//! done is left behind, and no image is ever overwritten.

pub mod convert;
pub mod create;
pub mod info;
pub mod resize;
pub mod target;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{ExitStatus, Help, io_reason};
use crate::storage::access::{open_file, take_lock};
use crate::storage::open;
use crate::storage::{Access, Format, OpenError, SECTOR_BYTES, foreign};

/// What can go wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened, or is locked, or damaged.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file is in the way.
    #[error("{} is there already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The words do not fit together.
    #[error("{what}")]
    Words {
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// The host refuses.
    #[error("cannot {what} {}: {}", path.display(), io_reason(source))]
    Host {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

impl ImageError {
    /// The exit code: 2 where the words are wrong, 3 where the files are.
    pub fn status(&self) -> ExitStatus {
        match self {
            ImageError::Words { .. } => ExitStatus::Usage,
            _ => ExitStatus::Start,
        }
    }
}

impl Help for ImageError {
    fn help(&self) -> String {
        match self {
            ImageError::Open(OpenError::Locked { .. }) => {
                "end the machine that has it, or wait until it has ended".into()
            }
            ImageError::Open(OpenError::Open { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "give yourself access to it (ls -l shows who has)".into()
            }
            ImageError::Open(OpenError::Foreign { path, format, .. }) => {
                let way = format.way_out(path);
                format!("{way}; or say '-f raw' to use its bytes as they are")
            }
            ImageError::Open(OpenError::Unnamed { .. }) => {
                "say '-f qcow2'; or '-f raw', if it is a raw disk and a guest has written that to it"
                    .into()
            }
            ImageError::Open(OpenError::Rests { .. }) => {
                "if you trust the image to name that file, say --backing".into()
            }
            ImageError::Open(error) => error.help(),
            ImageError::Exists { .. } => {
                "give another name, or remove it first if nobody needs it".into()
            }
            ImageError::Words { help, .. } => help.clone(),
            ImageError::Host { what: "resize", .. } => {
                "the disk has its old length; 'qemu-img check' tells more of a qcow2 image".into()
            }
            ImageError::Host { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "make room; nothing of the new image is left behind".into()
                }
                io::ErrorKind::NotFound => "make the folder first".into(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "choose a folder in which you may write".into()
                }
                _ => "'bantam image info' and 'qemu-img check' tell more of an image".into(),
            },
        }
    }
}

fn host<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ImageError + 'a {
    move |source| ImageError::Host {
        what,
        path: path.into(),
        source,
    }
}

/// Rounds up to whole sectors, as qemu-img does.
fn whole_sectors(len: u64) -> Result<u64, ImageError> {
    // The kernel's limit of a file's length is that of an i64.
    match len.checked_next_multiple_of(SECTOR_BYTES) {
        Some(0) => Err(ImageError::Words {
            what: "a disk of no bytes".into(),
            help: "give a size: 20G".into(),
        }),
        Some(len) if i64::try_from(len).is_ok() => Ok(len),
        _ => Err(ImageError::Words {
            what: "larger than any file can be".into(),
            help: "give less: 20G".into(),
        }),
    }
}

/// Opens an image under its lock; returns its format as well, which is that of its name unless
/// `format` says it.
fn open_locked(
    path: &Path,
    format: Option<Format>,
    read_only: bool,
) -> Result<(File, Format), OpenError> {
    let access = Access {
        format: format.unwrap_or(Format::of_name(path)),
        guessed: format.is_none(),
        read_only,
        ..Access::default()
    };
    let mut file = open_file(path, access)?;
    take_lock(&file, path, read_only)?;
    let len = file.seek(SeekFrom::End(0)).unwrap_or(0);
    open::check_content(&file, path, len, access)?;
    Ok((file, access.format))
}

/// The format of a file that is to be made at `path`.
fn format_to_make(path: &Path, format: Option<Format>) -> Result<Format, ImageError> {
    match (format, foreign::by_name(path)) {
        (Some(format), _) => Ok(format),
        (None, None) => Ok(Format::of_name(path)),
        (None, Some(foreign)) => Err(ImageError::Words {
            what: format!(
                "{} would be {} by its name; Bantam makes raw and qcow2 images",
                path.display(),
                foreign.name
            ),
            help: "let its name end in .qcow2 or .img; or say the format, and it is made with this name"
                .into(),
        }),
    }
}
