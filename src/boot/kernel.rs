//! A kernel image of any format, and where its parts go.

use std::path::Path;

use linux_loader::loader::bootparam::setup_header;

use super::bzimage::BzImage;
use super::elf::ElfImage;
use super::error::KernelError;
use super::recognize::{Kind, Use};
use super::setup;
use super::source::Source;
use crate::arch::x86_64::registers::Mode;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Linux boot protocol, 64-bit entry.
    Linux64,
    /// Linux boot protocol, 32-bit entry.
    Linux32,
    /// PVH: 32-bit entry with a `hvm_start_info`.
    Pvh,
}

impl Protocol {
    /// The CPU mode in which the kernel is entered.
    pub fn mode(self) -> Mode {
        match self {
            Protocol::Linux64 => Mode::Long,
            Protocol::Linux32 | Protocol::Pvh => Mode::Protected,
        }
    }

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Linux64 => "Linux boot protocol, 64-bit entry",
            Protocol::Linux32 => "Linux boot protocol, 32-bit entry",
            Protocol::Pvh => "PVH",
        }
    }
}

/// Which protocol the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolChoice {
    /// What the image is best entered by
    #[default]
    Auto,
    /// The Linux boot protocol
    Linux,
    /// PVH, through the entry that the image's ELF note names
    Pvh,
}

/// A part of the file and its place in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Guest physical address.
    pub address: u64,
    /// Bytes in memory; those past `file_len` are zero.
    pub memory_len: u64,
}

/// Where everything goes.
#[derive(Debug, Clone)]
pub struct Placement {
    /// How the kernel is entered.
    pub protocol: Protocol,
    /// Address of its first instruction.
    pub entry: u64,
    /// What is copied.
    pub segments: Vec<Segment>,
    /// First address past what the kernel uses before it looks at the memory map.
    pub end: u64,
    /// The setup header, for the Linux protocols.
    pub header: setup_header,
    /// The highest address that the last byte of an initrd may have.
    pub initrd_limit: u64,
    /// Longest command line without its NUL.
    pub cmdline_max: usize,
}

/// What kind of image it is.
#[derive(Debug)]
pub enum Format {
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
    pub format: Format,
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
            Format::Elf(ElfImage::parse(&source)?)
        } else if setup::recognize(&start) {
            Format::BzImage(BzImage::parse(&source)?)
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
            Format::Elf(elf) => elf.place(&self.source, choice, memory),
            Format::BzImage(image) => image.place(&self.source, choice, memory),
        }
    }
}
