//! bzImage: what distributions ship as vmlinuz.
//!
//! ```text
//!   0x000  boot sector (obsolete)
//!   0x1f1  setup header: "HdrS" at 0x202, protocol version, limits, preferred address
//!   ...    real-mode code, skipped
//!   (setup_sects + 1) * 512   protected-mode kernel: a decompressor and the compressed vmlinux;
//!                             entered at its start (32-bit) or 0x200 behind it (64-bit)
//! ```
//!
//! Source: Linux, Documentation/arch/x86/boot.rst.

use super::error::KernelError;
use super::placement::{Placement, Protocol, ProtocolChoice, Segment};
use super::setup::Setup;
use super::source::Source;
use crate::arch::x86_64::layout;

const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry is 0x200 behind the 32-bit one.
const ENTRY_64: u64 = 0x200;

/// How the vmlinux inside is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// xz, with the x86 filter.
    Xz,
    /// zstd.
    Zstd,
    /// LZ4, the legacy frame format.
    Lz4,
    /// bzip2.
    Bzip2,
    /// The LZMA alone format.
    Lzma,
    /// LZO.
    Lzo,
    /// An ELF file as it is.
    None,
    /// The header names no payload: the program is as it stands, or the protocol is too old to
    /// tell where it is.
    Absent,
    /// Not one of these.
    Unknown,
}

impl Compression {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Zstd => "zstd",
            Compression::Lz4 => "lz4",
            Compression::Bzip2 => "bzip2",
            Compression::Lzma => "lzma",
            Compression::Lzo => "lzo",
            Compression::None => "none",
            Compression::Absent => "no payload named",
            Compression::Unknown => "unknown",
        }
    }

    /// Recognizes the first bytes of a payload.
    pub fn detect(payload: &[u8]) -> Self {
        const MAGICS: [(&[u8], Compression); 8] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x02\x21\x4c\x18", Compression::Lz4),
            (b"BZh", Compression::Bzip2),
            (b"\x5d\0\0", Compression::Lzma),
            (b"\x89LZO", Compression::Lzo),
            (b"\x7fELF", Compression::None),
        ];
        MAGICS
            .iter()
            .find(|(magic, _)| payload.starts_with(magic))
            .map_or(Compression::Unknown, |(_, found)| *found)
    }
}

/// A bzImage.
#[derive(Debug)]
pub struct BzImage {
    /// What its header says.
    pub setup: Setup,
    /// The version string, "6.1.0-13-cloud-amd64 (...) #1 SMP ...".
    pub version: Option<String>,
    /// How the vmlinux inside is compressed.
    pub compression: Compression,
}

impl BzImage {
    /// Reads and checks the setup header.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn parse(source: &Source) -> Result<Self, KernelError> {
        let setup = Setup::parse(source)?;
        Ok(BzImage {
            version: setup.kernel_version(source),
            compression: setup.payload.map_or(Compression::Absent, |(offset, _)| {
                Compression::detect(&source.read_up_to(offset, 8))
            }),
            setup,
        })
    }

    /// True when it has a 64-bit entry.
    pub fn has_64_bit_entry(&self) -> bool {
        self.setup.xloadflags & XLF_KERNEL_64 != 0
    }

    pub(super) fn place(
        &self,
        source: &Source,
        choice: ProtocolChoice,
        memory: u64,
    ) -> Result<Placement, KernelError> {
        if choice == ProtocolChoice::Pvh {
            return Err(KernelError::NoPvh {
                path: source.path().into(),
            });
        }
        let setup = &self.setup;
        let load = match setup.pref_address {
            Some(address) if !setup.relocatable => address,
            _ => layout::HIGH_RAM_START,
        };
        if load < layout::HIGH_RAM_START {
            return Err(KernelError::Unsupported {
                path: source.path().into(),
                what: format!("not relocatable and made for {load:#x}, below 1 MiB"),
                help: "build it with CONFIG_RELOCATABLE=y",
            });
        }
        // The decompressor works in place: the vmlinux is put at the preferred address, and
        // init_size bytes from there on are used until the kernel looks at the memory map.
        let end = setup
            .end
            .map(|end| end.max(load.saturating_add(setup.kernel_len)))
            .ok_or_else(|| KernelError::Damaged {
                path: source.path().into(),
                what: format!("it wants {} bytes at {:#x}", { setup.header.init_size }, {
                    setup.header.pref_address
                }),
            })?;
        if end > memory.min(layout::MMIO_HOLE_START) {
            return Err(KernelError::TooLarge {
                path: source.path().into(),
                needs: end,
                memory,
            });
        }
        let (protocol, entry) = if self.has_64_bit_entry() {
            (Protocol::Linux64, load.saturating_add(ENTRY_64))
        } else {
            (Protocol::Linux32, load)
        };
        Ok(Placement {
            protocol,
            entry,
            segments: vec![Segment {
                offset: setup.kernel_offset,
                file_len: setup.kernel_len,
                address: load,
                memory_len: setup.kernel_len,
            }],
            end,
            header: setup.header,
            initrd_limit: setup.initrd_max,
            cmdline_max: setup.cmdline_max.min(layout::COMMAND_LINE_MAX - 1),
        })
    }
}
