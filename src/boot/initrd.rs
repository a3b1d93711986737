//! The initial RAM disk: as high as the kernel allows, away from everything else.

use std::path::{Path, PathBuf};

use super::placement::Placement;
use super::recognize::Kind;
use super::source::{Source, SourceError};
use crate::arch::x86_64::layout;
use crate::error::Help;

const PAGE: u64 = 4096;

/// Why an initrd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// Not readable.
    #[error("initrd {0}")]
    Source(#[from] SourceError),
    /// A file of another kind.
    #[error("initrd {} is {what}, not an initramfs", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// Where it belongs.
        help: String,
    },
    /// No room between the kernel and the end of RAM.
    #[error(
        "initrd {} of {} MiB does not fit: {} MiB are free above the kernel",
        path.display(), len.div_ceil(1 << 20), free >> 20
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// What is free, in bytes.
        free: u64,
        /// Whether more memory would help.
        limited_by_kernel: bool,
    },
}

impl Help for InitrdError {
    fn help(&self) -> String {
        match self {
            InitrdError::Source(SourceError::Kind { .. }) => {
                "give the initramfs image itself, for example /boot/initrd.img".into()
            }
            InitrdError::Source(_) => {
                "check the path; a Debian initrd is /boot/initrd.img-$(uname -r)".into()
            }
            InitrdError::Kind { help, .. } => help.clone(),
            InitrdError::NoRoom {
                limited_by_kernel: true,
                ..
            } => {
                "this kernel takes an initrd at low addresses only: make the initrd smaller".into()
            }
            InitrdError::NoRoom { .. } => {
                "give the machine more memory with --memory, or make the initrd smaller".into()
            }
        }
    }
}

/// An initrd and where it goes.
#[derive(Debug)]
pub struct Initrd {
    source: Source,
    address: u64,
}

impl Initrd {
    /// Opens the file and finds a place in a machine of `memory` bytes beside `kernel`.
    ///
    /// # Errors
    /// See [`InitrdError`].
    pub fn open(path: &Path, kernel: &Placement, memory: u64) -> Result<Self, InitrdError> {
        let source = Source::open(path)?;
        if let Some(kind) = Kind::of(&source)
            && let Some(help) = kind.help_for_initrd(path)
        {
            return Err(InitrdError::Kind {
                path: path.into(),
                what: kind.what,
                help,
            });
        }
        Initrd::place(source, kernel, memory)
    }

    /// Finds a place for it in a machine of `memory` bytes beside `kernel`.
    ///
    /// # Errors
    /// See [`InitrdError`].
    pub fn place(source: Source, kernel: &Placement, memory: u64) -> Result<Self, InitrdError> {
        let ram_end = memory.min(layout::MMIO_HOLE_START);
        let limit = kernel.initrd_limit.saturating_add(1);
        let end = ram_end.min(limit);
        let start = kernel.end.next_multiple_of(PAGE);
        let address = end
            .checked_sub(source.len())
            .map(|address| address & !(PAGE - 1))
            .filter(|address| *address >= start)
            .ok_or_else(|| InitrdError::NoRoom {
                path: source.path().into(),
                len: source.len(),
                free: end.saturating_sub(start),
                limited_by_kernel: limit < ram_end,
            })?;
        Ok(Initrd { source, address })
    }

    /// The file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Guest physical address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes. Below 4 GiB, as all of it lies there.
    pub fn len(&self) -> u64 {
        self.source.len()
    }

    /// Never: an empty file is not opened.
    pub fn is_empty(&self) -> bool {
        self.source.is_empty()
    }
}
