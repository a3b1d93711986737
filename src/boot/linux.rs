//! The Linux boot protocol's zero page (`struct boot_params`).
//!
//! Sources: Linux, Documentation/arch/x86/boot.rst and zero-page.rst.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::placement::Placement;
use crate::arch::x86_64::{e820, layout};

const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
/// "Undefined" loader without an id of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;

/// What the zero page tells of.
#[derive(Debug, Clone, Copy)]
pub struct ZeroPage<'a> {
    /// The kernel.
    pub placement: &'a Placement,
    /// Length of the command line without its NUL.
    pub cmdline_len: usize,
    /// Address and length of the initrd.
    pub initrd: Option<(u64, u64)>,
    /// RAM in bytes.
    pub memory: u64,
}

/// The header that a bzImage would have had, for an ELF kernel that has none.
pub fn header_for_elf() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HDRS,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    }
}

/// Writes the zero page to [`layout::ZERO_PAGE`].
///
/// # Errors
/// When there is no RAM.
pub fn write_zero_page(
    memory: &GuestMemoryMmap,
    what: ZeroPage<'_>,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params {
        hdr: what.placement.header,
        acpi_rsdp_addr: layout::ACPI_TABLES,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = what.cmdline_len as u32;
    if let Some((address, len)) = what.initrd {
        // Initrds are placed below 4 GiB.
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    for (slot, entry) in params.e820_table.iter_mut().zip(e820::map(what.memory)) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.len,
            r#type: entry.kind as u32,
        };
        params.e820_entries = params.e820_entries.saturating_add(1);
    }
    memory.write_slice(params.as_slice(), GuestAddress(layout::ZERO_PAGE))
}

/// Writes the command line with its NUL to [`layout::COMMAND_LINE`].
///
/// # Errors
/// When there is no RAM.
pub fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str) -> Result<(), GuestMemoryError> {
    memory.write_slice(cmdline.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    let end = layout::COMMAND_LINE.saturating_add(cmdline.len() as u64);
    memory.write_obj(0u8, GuestAddress(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::placement::{Placement, Protocol};

    #[test]
    fn fields_are_where_the_protocol_puts_them() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x100000)]).unwrap();
        let placement = Placement {
            protocol: Protocol::Linux64,
            entry: 0,
            segments: vec![],
            end: 0,
            header: header_for_elf(),
            initrd_limit: 0,
            cmdline_max: 0,
        };
        write_zero_page(
            &memory,
            ZeroPage {
                placement: &placement,
                cmdline_len: 11,
                initrd: Some((0x7000_0000, 0x1234)),
                memory: 4 << 30,
            },
        )
        .unwrap();
        let at = |offset: u64| GuestAddress(layout::ZERO_PAGE + offset);
        assert_eq!(
            memory.read_obj::<u64>(at(0x70)).unwrap(),
            layout::ACPI_TABLES
        );
        assert_eq!(memory.read_obj::<u8>(at(0x1e8)).unwrap(), 4, "e820 entries");
        assert_eq!(memory.read_obj::<u16>(at(0x1fe)).unwrap(), BOOT_FLAG);
        assert_eq!(memory.read_obj::<[u8; 4]>(at(0x202)).unwrap(), *b"HdrS");
        assert_eq!(memory.read_obj::<u32>(at(0x218)).unwrap(), 0x7000_0000);
        assert_eq!(memory.read_obj::<u32>(at(0x21c)).unwrap(), 0x1234);
        assert_eq!(memory.read_obj::<u32>(at(0x228)).unwrap(), 0x20000);
        assert_eq!(
            memory.read_obj::<u64>(at(0x2d0 + 8)).unwrap(),
            layout::LOW_RAM_END
        );
    }
}
