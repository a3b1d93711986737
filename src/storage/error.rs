//! Why an image cannot be opened, and what its owner can do about it.

use std::io;
use std::path::PathBuf;

use super::foreign::Foreign;
use super::image::SECTOR_BYTES;
use crate::error::{Help, io_reason};

/// Why a disk image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// open(2) refused.
    #[error("disk {}: {}", path.display(), io_reason(source))]
    Open {
        /// The image.
        path: PathBuf,
        /// Whether it was to be written as well.
        read_only: bool,
        /// The host's reason.
        source: io::Error,
    },
    /// Not a regular file or block device.
    #[error("disk {} is {what}, not an image file or block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Empty, or a length that does not divide into sectors.
    #[error("disk {} is {len} bytes long, which is not a multiple of {SECTOR_BYTES}", path.display())]
    Length {
        /// The image.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// No sectors at all.
    #[error("disk {} is empty", path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// An image of somebody else's, or none at all.
    #[error("disk {} is {}{}, and not a raw or qcow2 image", path.display(), format.name, if *named { " by its name" } else { "" })]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: &'static Foreign,
        /// Only its name says so.
        named: bool,
    },
    /// A name that does not say qcow2, and a content that does.
    #[error("disk {} is a qcow2 image, which its name does not say", path.display())]
    Unnamed {
        /// The image.
        path: PathBuf,
    },
    /// A backing file, which nobody has allowed.
    #[error("disk {} rests on a backing file, '{name}'", path.display())]
    Rests {
        /// The image.
        path: PathBuf,
        /// The file below, as the image names it.
        name: String,
    },
    /// A lock is held.
    #[error("disk {} is in use by {}{}", path.display(), holders(pids), if *read_only { " that may write to it" } else { "" })]
    Locked {
        /// The image.
        path: PathBuf,
        /// The processes that hold it, as far as they can be found.
        pids: Vec<u32>,
        /// Whether this machine only wanted to read.
        read_only: bool,
    },
    /// O_DIRECT is not for this file system.
    #[error("disk {} cannot be used without the page cache: {}", path.display(), io_reason(source))]
    Direct {
        /// The image.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The process that is to read the image.
    #[error("disk {}: the process that reads the image: {}", path.display(), io_reason(source))]
    Helper {
        /// The image.
        path: PathBuf,
        /// The host's reason, or how the process has ended.
        source: io::Error,
    },
    /// The image's format is damaged, or asks for what is not there.
    #[error("disk {}: {reason}", path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        help: String,
    },
}

fn holders(pids: &[u32]) -> String {
    match pids {
        [] => "another process".into(),
        [pid] => format!("process {pid}"),
        [pid, rest @ ..] => format!("process {pid} and {} more", rest.len()),
    }
}

impl Help for OpenError {
    fn help(&self) -> String {
        match self {
            OpenError::Open {
                source, read_only, ..
            } if source.kind() == io::ErrorKind::PermissionDenied
                || source.kind() == io::ErrorKind::ReadOnlyFilesystem =>
            {
                if *read_only {
                    "give yourself read access to it (ls -l shows who has)".into()
                } else {
                    "add ',ro' to attach it read-only, ',snapshot' to throw away what is written, or \
                     give yourself write access"
                        .into()
                }
            }
            OpenError::Open {
                read_only: true, ..
            } => "check the path".into(),
            OpenError::Open { .. } => {
                "check the path; 'bantam image create disk.qcow2 20G' makes a disk".into()
            }
            OpenError::Kind { .. } => "give the path of a raw image or of a block device".into(),
            OpenError::Length { path, len } => format!(
                "if it is a raw image that lost its end, 'truncate -s {} {}' pads it with zeros",
                len.div_ceil(SECTOR_BYTES).saturating_mul(SECTOR_BYTES),
                path.display()
            ),
            OpenError::Empty { .. } => {
                "make another one: 'bantam image create disk.qcow2 20G'".into()
            }
            OpenError::Foreign { path, format, .. } => {
                let way = format.way_out(path);
                format!("{way}; or say --disk FILE,format=raw to use its bytes as they are")
            }
            OpenError::Unnamed { .. } => {
                "say format=qcow2; or format=raw, if it is a raw disk and a guest has written that to it"
                    .into()
            }
            OpenError::Rests { .. } => {
                "if you trust the image to name that file, allow it with 'backing=on'".into()
            }
            OpenError::Locked {
                read_only: false, ..
            } => "stop the other machine, or attach the image with ',ro' or ',snapshot' to both".into(),
            OpenError::Locked { .. } => {
                "stop the other machine, or attach the image with ',ro' or ',snapshot' there as well"
                    .into()
            }
            OpenError::Direct { .. } => {
                "leave 'cache=direct' away, or keep the image on another file system".into()
            }
            OpenError::Helper { source, .. } if source.raw_os_error() == Some(libc::EAGAIN) => {
                "raise the limit of processes: ulimit -u; or that of the cgroup (pids.max)".into()
            }
            OpenError::Helper { .. } => {
                "'qemu-img check' tells whether the image is damaged; if it is not, try again, and report this line if it comes again"
                    .into()
            }
            OpenError::Damaged { help, .. } => help.clone(),
        }
    }
}
