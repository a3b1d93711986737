//! What can be wrong with a kernel image, and what to do about it.

use std::path::PathBuf;

use super::source::SourceError;
use crate::arch::x86_64::layout;
use crate::error::Help;

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not readable.
    #[error("kernel {0}")]
    Source(#[from] SourceError),
    /// No format that we know.
    #[error("kernel {} is {what}, not a bootable x86_64 kernel", path.display())]
    Unknown {
        /// The image.
        path: PathBuf,
        /// What it looks like.
        what: &'static str,
        /// What its reader may have wanted.
        help: String,
    },
    /// The file ends too early.
    #[error("kernel {} is truncated: it ends at byte {len}, before the end of its {part}", path.display())]
    Truncated {
        /// The image.
        path: PathBuf,
        /// What is incomplete.
        part: String,
        /// Length of the file.
        len: u64,
    },
    /// Headers that contradict themselves.
    #[error("kernel {} is damaged: {what}", path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// The contradiction.
        what: String,
    },
    /// A valid image of a kind that is not booted here.
    #[error("kernel {} is {what}", path.display())]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to use instead.
        help: &'static str,
    },
    /// Larger than the guest's memory.
    #[error(
        "kernel {} needs memory up to {} MiB, and the machine has {} MiB",
        path.display(), needs.div_ceil(1 << 20), memory >> 20
    )]
    TooLarge {
        /// The image.
        path: PathBuf,
        /// First byte past what it needs.
        needs: u64,
        /// The guest's memory in bytes.
        memory: u64,
    },
    /// `--protocol pvh` for an image without a PVH entry.
    #[error("kernel {} has no PVH entry point", path.display())]
    NoPvh {
        /// The image.
        path: PathBuf,
    },
}

impl Help for KernelError {
    fn help(&self) -> String {
        match self {
            KernelError::Source(SourceError::Kind { .. }) => {
                "give the kernel image itself, for example /boot/vmlinuz or a vmlinux".into()
            }
            KernelError::Source(SourceError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                "some distributions make kernels readable for root only: 'sudo chmod +r' it, or copy it".into()
            }
            KernelError::Source(_) => {
                "check the path; a Debian kernel is /boot/vmlinuz-$(uname -r)".into()
            }
            KernelError::Unknown { help, .. } => help.clone(),
            KernelError::Unsupported { help, .. } => (*help).into(),
            KernelError::Truncated { .. } | KernelError::Damaged { .. } => {
                "copy or download the image again".into()
            }
            KernelError::TooLarge { needs, .. } if *needs > layout::MMIO_HOLE_START => {
                "no amount of memory helps: a kernel must lie below 3 GiB".into()
            }
            KernelError::TooLarge { needs, .. } => format!(
                "give the machine more memory: --memory {}M",
                needs.div_ceil(1 << 20).saturating_add(64)
            ),
            KernelError::NoPvh { .. } => {
                "leave --protocol away, or build the kernel with CONFIG_PVH=y".into()
            }
        }
    }
}
