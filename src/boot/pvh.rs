//! PVH: the `hvm_start_info` structure and what it points to.
//!
//! ```text
//!   EBX ─▶ start info ─▶ memory map entries
//!                     ├▶ module list ─▶ initrd
//!                     ├▶ command line
//!                     └▶ RSDP
//! ```
//!
//! Source: Xen, xen/include/public/arch-x86/hvm/start_info.h.

use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::arch::x86_64::{e820, layout};

const MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const VERSION: u32 = 1;
const MODULE_LIST: u64 = layout::PVH_START_INFO + 0x80;
const MEMORY_MAP: u64 = layout::PVH_START_INFO + 0x100;

/// Writes the start info to [`layout::PVH_START_INFO`].
///
/// # Errors
/// When there is no RAM.
pub fn write_start_info(
    memory: &GuestMemoryMmap,
    initrd: Option<(u64, u64)>,
    ram: u64,
) -> Result<(), GuestMemoryError> {
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: layout::ACPI_TABLES,
        memmap_paddr: MEMORY_MAP,
        ..Default::default()
    };
    if let Some((paddr, size)) = initrd {
        info.nr_modules = 1;
        info.modlist_paddr = MODULE_LIST;
        let module = hvm_modlist_entry {
            paddr,
            size,
            ..Default::default()
        };
        memory.write_slice(module.as_slice(), GuestAddress(MODULE_LIST))?;
    }
    let mut at = MEMORY_MAP;
    for entry in e820::map(ram) {
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.len,
            type_: entry.kind as u32,
            reserved: 0,
        };
        memory.write_slice(entry.as_slice(), GuestAddress(at))?;
        at = at.saturating_add(entry.as_slice().len() as u64);
        info.memmap_entries = info.memmap_entries.saturating_add(1);
    }
    memory.write_slice(info.as_slice(), GuestAddress(layout::PVH_START_INFO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_info_leads_to_the_initrd_and_the_memory_map() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x100000)]).unwrap();
        write_start_info(&memory, Some((0x500_0000, 77)), 1 << 30).unwrap();
        let info: hvm_start_info = memory
            .read_obj(GuestAddress(layout::PVH_START_INFO))
            .unwrap();
        assert_eq!((info.magic, info.nr_modules), (MAGIC, 1));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x500_0000, 77));
        assert_eq!(info.memmap_entries, 3);
    }
}
