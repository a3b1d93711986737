//! ELF: an uncompressed vmlinux, or any other program that is built for the machine.
//!
//! ```text
//!   ELF header ─▶ program headers ─▶ PT_LOAD: bytes of the file ─▶ guest physical address
//!                                 └▶ PT_NOTE: "Xen" 18   = PVH entry
//!                                             "Linux"    = this is a Linux kernel
//! ```
//!
//! Linux is entered at its ELF entry point by the 64-bit boot protocol. Other programs with a PVH
//! note are entered there, and those without at their entry point in long mode.

use linux_loader::loader::bootparam::setup_header;

use super::error::KernelError;
use super::linux;
use super::placement::{Placement, Protocol, ProtocolChoice, Segment};
use super::source::Source;
use crate::arch::x86_64::layout;

const EHDR_BYTES: usize = 64;
const PHDR_BYTES: usize = 56;
/// No kernel has as many; a bound for what a damaged header may cost.
const MAX_PROGRAM_HEADERS: u16 = 256;
const MAX_NOTE_BYTES: u64 = 1 << 20;

const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const EM_RISCV: u16 = 243;
const ET_REL: u16 = 1;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

/// XEN_ELFNOTE_PHYS32_ENTRY (Xen, xen/include/public/elfnote.h).
const XEN_PHYS32_ENTRY: u32 = 18;

/// An ELF kernel.
#[derive(Debug)]
pub struct ElfImage {
    /// `e_entry`.
    pub entry: u64,
    /// PT_LOAD segments by physical address.
    pub segments: Vec<Segment>,
    /// Entry by PVH, where there is a note.
    pub pvh_entry: Option<u64>,
    /// A note owned by "Linux" is there.
    pub is_linux: bool,
    /// The setup header of the bzImage that it came in.
    pub header: Option<setup_header>,
}

/// A program header, the fields that matter.
struct ProgramHeader {
    kind: u32,
    segment: Segment,
    align: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl ElfImage {
    /// Reads the headers.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn parse(source: &Source) -> Result<Self, KernelError> {
        let truncated = |part: String| KernelError::Truncated {
            path: source.path().into(),
            part,
            len: source.len(),
        };
        let damaged = |what: String| KernelError::Damaged {
            path: source.path().into(),
            what,
        };
        let header = source
            .read(0, EHDR_BYTES)
            .ok_or_else(|| truncated("ELF header".into()))?;
        check_machine(source, &header)?;
        let field = || truncated("ELF header".into());
        let entry = u64_at(&header, 24).ok_or_else(field)?;
        let table = u64_at(&header, 32).ok_or_else(field)?;
        let entry_size = u16_at(&header, 54).ok_or_else(field)?;
        let count = u16_at(&header, 56).ok_or_else(field)?;
        if count == 0 {
            return Err(damaged("it has no program headers".into()));
        }
        if usize::from(entry_size) != PHDR_BYTES || count > MAX_PROGRAM_HEADERS {
            return Err(damaged(format!(
                "{count} program headers of {entry_size} bytes"
            )));
        }
        let headers = source
            .read(table, usize::from(count) * PHDR_BYTES)
            .ok_or_else(|| truncated("ELF program headers".into()))?;
        let mut image = ElfImage {
            entry,
            segments: Vec::new(),
            pvh_entry: None,
            is_linux: false,
            header: None,
        };
        for (n, bytes) in headers.chunks_exact(PHDR_BYTES).enumerate() {
            let Some(header) = program_header(bytes) else {
                continue;
            };
            let segment = header.segment;
            let in_file = segment
                .offset
                .checked_add(segment.file_len)
                .is_some_and(|end| end <= source.len());
            match header.kind {
                PT_LOAD if segment.memory_len > 0 => {
                    if segment.memory_len < segment.file_len
                        || segment.address.checked_add(segment.memory_len).is_none()
                    {
                        return Err(damaged(format!("segment {n} has impossible lengths")));
                    }
                    if !in_file {
                        return Err(truncated(format!("segment {n}")));
                    }
                    image.segments.push(segment);
                }
                PT_NOTE => {
                    if !in_file {
                        return Err(truncated(format!("notes (segment {n})")));
                    }
                    let len = segment.file_len.min(MAX_NOTE_BYTES) as usize;
                    image.read_notes(&source.read_up_to(segment.offset, len), header.align);
                }
                PT_INTERP => {
                    return Err(KernelError::Unsupported {
                        path: source.path().into(),
                        what: "a program for an operating system, not a kernel".into(),
                        help: "give a vmlinux or a bzImage",
                    });
                }
                _ => {}
            }
        }
        if image.segments.is_empty() {
            return Err(damaged("it has nothing to load".into()));
        }
        image.segments.sort_by_key(|segment| segment.address);
        let overlap = image.segments.windows(2).any(
            |pair| matches!(pair, [a, b] if a.address.saturating_add(a.memory_len) > b.address),
        );
        if overlap {
            return Err(damaged("its segments overlap".into()));
        }
        Ok(image)
    }

    /// Notes: name length, descriptor length, type; then both, padded to the alignment.
    fn read_notes(&mut self, mut notes: &[u8], align: u64) {
        let pad = if align == 8 { 8 } else { 4 };
        while let (Some(name_len), Some(desc_len), Some(kind)) =
            (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
        {
            let (name_len, desc_len) = (name_len as usize, desc_len as usize);
            let desc_at = name_len.next_multiple_of(pad).saturating_add(12);
            let Some(name) = notes.get(12..name_len.saturating_add(12)) else {
                return;
            };
            let Some(desc) = notes.get(desc_at..desc_at.saturating_add(desc_len)) else {
                return;
            };
            match name.strip_suffix(b"\0").unwrap_or(name) {
                b"Linux" => self.is_linux = true,
                b"Xen" if kind == XEN_PHYS32_ENTRY => {
                    self.pvh_entry = u64_at(desc, 0).or_else(|| u32_at(desc, 0).map(u64::from));
                }
                _ => {}
            }
            let next = desc_at.saturating_add(desc_len.next_multiple_of(pad));
            notes = notes.get(next..).unwrap_or_default();
        }
    }

    /// Chooses the protocol and checks that everything fits.
    pub(super) fn place(
        &self,
        source: &Source,
        choice: ProtocolChoice,
        memory: u64,
    ) -> Result<Placement, KernelError> {
        let damaged = |what: String| KernelError::Damaged {
            path: source.path().into(),
            what,
        };
        let pvh = match choice {
            ProtocolChoice::Linux => None,
            ProtocolChoice::Pvh => Some(self.pvh_entry.ok_or_else(|| KernelError::NoPvh {
                path: source.path().into(),
            })?),
            ProtocolChoice::Auto if self.is_linux => None,
            ProtocolChoice::Auto => self.pvh_entry,
        };
        let (protocol, entry) = match pvh {
            Some(entry) => (Protocol::Pvh, entry),
            None => (Protocol::Linux64, self.entry),
        };
        let mut end = 0u64;
        for segment in &self.segments {
            if segment.address < layout::HIGH_RAM_START {
                return Err(KernelError::Unsupported {
                    path: source.path().into(),
                    what: format!(
                        "linked to be loaded at {:#x}, below 1 MiB, where the boot tables are",
                        segment.address
                    ),
                    help: "link it to an address from 0x100000 on",
                });
            }
            end = end.max(segment.address.saturating_add(segment.memory_len));
        }
        let ram_end = memory.min(layout::MMIO_HOLE_START);
        if end > ram_end {
            return Err(KernelError::TooLarge {
                path: source.path().into(),
                needs: end,
                memory,
            });
        }
        let inside = self.segments.iter().any(|segment| {
            (segment.address..segment.address.saturating_add(segment.memory_len)).contains(&entry)
        });
        if !inside {
            return Err(damaged(format!("its entry {entry:#x} is in no segment")));
        }
        Ok(Placement {
            protocol,
            entry,
            segments: self.segments.clone(),
            end,
            header: self.header.unwrap_or_else(linux::header_for_elf),
            initrd_limit: layout::MMIO_HOLE_START - 1,
            cmdline_max: layout::COMMAND_LINE_MAX - 1,
        })
    }
}

fn program_header(bytes: &[u8]) -> Option<ProgramHeader> {
    Some(ProgramHeader {
        kind: u32_at(bytes, 0)?,
        segment: Segment {
            offset: u64_at(bytes, 8)?,
            address: u64_at(bytes, 24)?,
            file_len: u64_at(bytes, 32)?,
            memory_len: u64_at(bytes, 40)?,
        },
        align: u64_at(bytes, 48)?,
    })
}

fn check_machine(source: &Source, header: &[u8]) -> Result<(), KernelError> {
    const AMD64: &str = "Bantam runs x86_64 guests: take a 64-bit x86 kernel";
    let unsupported = |what: &str, help| {
        Err(KernelError::Unsupported {
            path: source.path().into(),
            what: what.into(),
            help,
        })
    };
    if header.get(5) != Some(&ELFDATA2LSB) {
        return unsupported("a big-endian ELF file", AMD64);
    }
    match u16_at(header, 18) {
        Some(EM_X86_64) if header.get(4) == Some(&ELFCLASS64) => {}
        Some(EM_X86_64) => return unsupported("an x32 ELF file", AMD64),
        Some(EM_386) => {
            return unsupported(
                "a 32-bit x86 ELF file",
                "use the bzImage of that kernel, which has a 32-bit entry, or a 64-bit kernel",
            );
        }
        Some(EM_AARCH64) => return unsupported("an arm64 ELF file", AMD64),
        Some(EM_RISCV) => return unsupported("a RISC-V ELF file", AMD64),
        _ => return unsupported("an ELF file for another machine", AMD64),
    }
    if u16_at(header, 16) == Some(ET_REL) {
        return unsupported(
            "an object file or kernel module, not a kernel",
            "give a vmlinux or a bzImage",
        );
    }
    Ok(())
}
