//! The setup header of a bzImage, and what to take where an old one says nothing.
//!
//! Each version of the boot protocol made the header longer; what its fields held before they
//! existed is told by boot.rst, or known from the kernels of that time:
//!
//! ```text
//!   2.00  the header itself, initrd                    2.06  cmdline_size        before: 255 bytes
//!   2.02  cmd_line_ptr         before: not booted here  2.08  payload             before: not known
//!   2.03  initrd_addr_max      before: 0x37ffffff       2.10  pref_address,
//!   2.04  syssize has 32 bits  before: the file's end         init_size           before: generous
//!   2.05  relocatable_kernel   before: 0                2.12  xloadflags          before: 0
//! ```
//!
//! Source: Linux, Documentation/arch/x86/boot.rst.

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::error::KernelError;
use super::source::Source;

const HEADER_START: u64 = 0x1f1;
const HEADER_END_BYTE: usize = 0x201;
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// Linux 2.4: older kernels take their command line from the real-mode code, which is skipped here.
const MIN_VERSION: u16 = 0x0202;
const LOADED_HIGH: u8 = 1;
const SECTOR: u64 = 512;
/// Where kernels ran that were older than pref_address: CONFIG_PHYSICAL_START was at most this.
const OLD_PHYSICAL_START: u64 = 0x100_0000;
/// Such a kernel unpacks to at most this many times its size, its variables included.
const OLD_GROWTH: u64 = 8;
/// What the smallest of them need.
const OLD_MIN_SIZE: u64 = 16 << 20;

/// A setup header, every field of which can be used whatever its protocol version is.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// As it stands in the file, for the zero page.
    pub header: setup_header,
    /// Offset of the protected-mode kernel in the file.
    pub kernel_offset: u64,
    /// Its length in bytes.
    pub kernel_len: u64,
    /// Offset and length of the compressed vmlinux in the file, when the header names one.
    pub payload: Option<(u64, u64)>,
    /// Whether it runs where it is loaded.
    pub relocatable: bool,
    /// Where it would like to run; `None` when the protocol is too old to say.
    pub pref_address: Option<u64>,
    /// First address past the memory that it uses until it looks at the memory map.
    pub end: Option<u64>,
    /// The highest address that the last byte of an initrd may have.
    pub initrd_max: u64,
    /// Longest command line in bytes, without its NUL.
    pub cmdline_max: usize,
    /// Flags of protocol 2.12.
    pub xloadflags: u16,
}

/// Whether a file that begins like this has a setup header.
pub fn recognize(start: &[u8]) -> bool {
    start
        .get(MAGIC_AT..)
        .is_some_and(|bytes| bytes.starts_with(MAGIC))
}

/// "2.09"
pub fn version_name(version: u16) -> String {
    format!("{}.{:02}", version >> 8, version & 0xff)
}

impl Setup {
    /// Reads the header and checks it against the file's length.
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
        let since = |first: u16| version >= first;
        if !since(MIN_VERSION) {
            let what = format!(
                "a bzImage of boot protocol {}, older than Linux 2.4",
                version_name(version)
            );
            return Err(unsupported(
                what,
                "protocol 2.02 or newer is needed: use a newer kernel",
            ));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(unsupported(
                "a zImage, loaded below 1 MiB".into(),
                "build it as bzImage",
            ));
        }
        if header.code32_start == 0 {
            return Err(unsupported(
                format!(
                    "a bzImage that only the BIOS of a PC can start (boot protocol {}, code32_start is 0), as iPXE's lkrn is",
                    version_name(version)
                ),
                "there is no BIOS here, kernels are entered at their 32-bit or 64-bit entry: give a Linux kernel",
            ));
        }
        let setup_sects = match header.setup_sects {
            0 => 4, // boot.rst: "for backwards compatibility"
            n => u64::from(n),
        };
        let kernel_offset = (setup_sects + 1) * SECTOR;
        let file_rest = source.len().saturating_sub(kernel_offset);
        // syssize counts paragraphs of 16 bytes; builds up to 6.9 round it up past the file's end.
        let kernel_len = match since(0x0204) {
            true => u64::from(header.syssize) * 16,
            false => file_rest,
        };
        if kernel_len == 0 {
            return Err(KernelError::Damaged {
                path: source.path().into(),
                what: "the setup header gives it a length of 0".into(),
            });
        }
        // Both are at most 64 GiB, so the sum cannot overflow.
        if kernel_offset + kernel_len > source.len().next_multiple_of(16) {
            return Err(truncated("protected-mode kernel"));
        }
        let kernel_len = kernel_len.min(file_rest);
        let payload = (since(0x0208) && header.payload_length != 0).then(|| {
            let offset = kernel_offset + u64::from(header.payload_offset);
            (offset, u64::from(header.payload_length))
        });
        if payload.is_some_and(|(offset, len)| offset + len > source.len()) {
            return Err(truncated("compressed vmlinux"));
        }
        let pref_address = since(0x020a).then_some(header.pref_address);
        let end = match pref_address {
            Some(address) => address.checked_add(u64::from(header.init_size)),
            None => {
                Some(OLD_PHYSICAL_START + kernel_len.saturating_mul(OLD_GROWTH).max(OLD_MIN_SIZE))
            }
        };
        // Fields of a packed struct are copied before use.
        let (initrd_addr_max, cmdline_size) = (header.initrd_addr_max, header.cmdline_size);
        Ok(Setup {
            header,
            kernel_offset,
            kernel_len,
            payload,
            relocatable: since(0x0205) && header.relocatable_kernel != 0,
            pref_address,
            end,
            initrd_max: if since(0x0203) && initrd_addr_max != 0 {
                u64::from(initrd_addr_max)
            } else {
                0x37ff_ffff
            },
            cmdline_max: if since(0x0206) && cmdline_size != 0 {
                cmdline_size as usize
            } else {
                255
            },
            xloadflags: if since(0x020c) { header.xloadflags } else { 0 },
        })
    }

    /// The version string, "6.1.0-13-cloud-amd64 (...) #1 SMP ...".
    pub fn kernel_version(&self, source: &Source) -> Option<String> {
        if self.header.kernel_version == 0 {
            return None;
        }
        let bytes = source.read_up_to(u64::from(self.header.kernel_version) + 0x200, 512);
        let end = bytes.iter().position(|&b| b == 0)?;
        let text = std::str::from_utf8(bytes.get(..end)?).ok()?;
        (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
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
