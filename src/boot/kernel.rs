//! A kernel image of any format.

use std::path::Path;

use super::bzimage::BzImage;
use super::elf::ElfImage;
use super::error::KernelError;
use super::placement::{Placement, ProtocolChoice};
use super::recognize::{Kind, Use};
use super::setup;
use super::source::Source;

/// What kind of image it is.
#[derive(Debug)]
pub enum KernelFormat {
    /// An uncompressed kernel.
    Elf(ElfImage),
    /// A compressed kernel with its own decompressor.
    BzImage(BzImage),
}

/// A kernel image, its headers read and checked.
#[derive(Debug)]
pub struct Kernel {
    /// The file.
    pub source: Source,
    /// What is in it.
    pub format: KernelFormat,
}

impl Kernel {
    /// Opens an image and finds out what it is.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        Kernel::of_source(Source::open(path)?)
    }

    /// Finds out what an image is.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn of_source(source: Source) -> Result<Self, KernelError> {
        let start = source.read_up_to(0, 0x400);
        let format = if start.starts_with(b"\x7fELF") {
            KernelFormat::Elf(ElfImage::parse(&source)?)
        } else if setup::recognize(&start) {
            KernelFormat::BzImage(BzImage::parse(&source)?)
        } else {
            let kind = Kind::of_content(&source).unwrap_or(Kind {
                what: "a file of unknown format",
                belongs: Use::Kernel,
            });
            return Err(KernelError::Unknown {
                path: source.path().into(),
                what: kind.what,
                help: kind.help_for_kernel(source.path()),
            });
        };
        Ok(Kernel { source, format })
    }

    /// Decides where the kernel goes in a machine of `memory` bytes.
    ///
    /// # Errors
    /// When it does not fit, or cannot be entered as `choice` says.
    pub fn place(&self, choice: ProtocolChoice, memory: u64) -> Result<Placement, KernelError> {
        match &self.format {
            KernelFormat::Elf(elf) => elf.place(&self.source, choice, memory),
            KernelFormat::BzImage(image) => image.place(&self.source, choice, memory),
        }
    }
}
