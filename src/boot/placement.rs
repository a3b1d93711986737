//! How a kernel is entered, and where its parts go in guest memory.

use linux_loader::loader::bootparam::setup_header;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
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
