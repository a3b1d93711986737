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

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::error::KernelError;
use super::kernel::{Placement, Protocol, ProtocolChoice, Segment};
use super::source::Source;
use crate::arch::x86_64::layout;

const HEADER_START: u64 = 0x1f1;
const HEADER_END_BYTE: usize = 0x201;
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// 2.10 brought pref_address and init_size (Linux 2.6.31), without which the memory that the
/// decompressor needs is unknown.
const MIN_VERSION: u16 = 0x020a;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry is 0x200 behind the 32-bit one.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

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
    /// As it stands in the file.
    pub header: setup_header,
    /// The version string, "6.1.0-13-cloud-amd64 (...) #1 SMP ...".
    pub version: Option<String>,
    /// Offset of the protected-mode kernel in the file.
    pub kernel_offset: u64,
    /// Its length.
    pub kernel_len: u64,
    /// Offset of the compressed vmlinux in the file.
    pub payload_offset: u64,
    /// Its length.
    pub payload_len: u64,
    /// How it is compressed.
    pub compression: Compression,
}

impl BzImage {
    /// Whether a file that begins like this is one.
    pub fn recognize(start: &[u8]) -> bool {
        start
            .get(MAGIC_AT..)
            .is_some_and(|bytes| bytes.starts_with(MAGIC))
    }

    /// Reads and checks the setup header.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn parse(source: &Source) -> Result<Self, KernelError> {
        let truncated = |part: &str| KernelError::Truncated {
            path: source.path().into(),
            part: part.into(),
            len: source.len(),
        };
        let unsupported = |what: String, help| KernelError::Unsupported {
            path: source.path().into(),
            what,
            help,
        };
        let header = read_header(source).ok_or_else(|| truncated("setup header"))?;
        let version = header.version;
        if version < MIN_VERSION {
            return Err(unsupported(
                format!(
                    "a bzImage of boot protocol {}.{:02}, older than Linux 2.6.31",
                    version >> 8,
                    version & 0xff
                ),
                "use a newer kernel",
            ));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(unsupported(
                "a zImage, loaded below 1 MiB".into(),
                "build it as bzImage",
            ));
        }
        let setup_sects = match header.setup_sects {
            0 => 4, // boot.rst: "for backwards compatibility"
            n => u64::from(n),
        };
        let kernel_offset = (setup_sects + 1) * SECTOR;
        let kernel_len = u64::from(header.syssize) * 16;
        // Both are at most 64 GiB, so the sums cannot overflow.
        if kernel_len == 0 {
            return Err(KernelError::Damaged {
                path: source.path().into(),
                what: "the setup header gives it a length of 0".into(),
            });
        }
        // syssize counts paragraphs of 16 bytes; builds up to 6.9 round it up past the file's end.
        if kernel_offset + kernel_len > source.len().next_multiple_of(16) {
            return Err(truncated("protected-mode kernel"));
        }
        let kernel_len = kernel_len.min(source.len().saturating_sub(kernel_offset));
        let payload_offset = kernel_offset + u64::from(header.payload_offset);
        let payload_len = u64::from(header.payload_length);
        if payload_offset + payload_len > source.len() {
            return Err(truncated("compressed vmlinux"));
        }
        Ok(BzImage {
            version: read_version(source, &header),
            kernel_offset,
            kernel_len,
            payload_offset,
            payload_len,
            compression: Compression::detect(&source.read_up_to(payload_offset, 8)),
            header,
        })
    }

    /// True when it has a 64-bit entry.
    pub fn has_64_bit_entry(&self) -> bool {
        self.header.xloadflags & XLF_KERNEL_64 != 0
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
        let header = self.header;
        let (pref_address, init_size) = (header.pref_address, u64::from(header.init_size));
        let load = if header.relocatable_kernel == 0 {
            pref_address
        } else {
            layout::HIGH_RAM_START
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
        let end = pref_address
            .checked_add(init_size)
            .map(|end| end.max(load.saturating_add(self.kernel_len)))
            .ok_or_else(|| KernelError::Damaged {
                path: source.path().into(),
                what: format!("it wants {init_size} bytes at {pref_address:#x}"),
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
        let cmdline_max = match header.cmdline_size {
            0 => 255,
            n => n as usize,
        };
        Ok(Placement {
            protocol,
            entry,
            segments: vec![Segment {
                offset: self.kernel_offset,
                file_len: self.kernel_len,
                address: load,
                memory_len: self.kernel_len,
            }],
            end,
            header,
            initrd_limit: match header.initrd_addr_max {
                0 => 0x37ff_ffff, // boot.rst: what it was before the field existed
                limit => u64::from(limit),
            },
            cmdline_max: cmdline_max.min(layout::COMMAND_LINE_MAX - 1),
        })
    }
}

/// The setup header: it ends where the byte at 0x201 says, and what a newer protocol adds behind
/// is not ours to copy.
fn read_header(source: &Source) -> Option<setup_header> {
    let start = source.read(0, MAGIC_AT)?;
    let end = MAGIC_AT.checked_add(usize::from(*start.get(HEADER_END_BYTE)?))?;
    let len = end.checked_sub(HEADER_START as usize)?;
    let bytes = source.read(HEADER_START, len)?;
    let mut header = setup_header::default();
    for (to, from) in header.as_mut_slice().iter_mut().zip(bytes) {
        *to = from;
    }
    Some(header)
}

fn read_version(source: &Source, header: &setup_header) -> Option<String> {
    if header.kernel_version == 0 {
        return None;
    }
    let bytes = source.read_up_to(u64::from(header.kernel_version) + 0x200, 512);
    let end = bytes.iter().position(|&b| b == 0)?;
    let text = std::str::from_utf8(bytes.get(..end)?).ok()?;
    (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
}
